"""What a preparation left: the bytes of its pair, and its report."""

import json
from pathlib import Path


def pair(prefix):
    return [Path(f"{prefix}{ending}").read_bytes() for ending in (".bin", ".idx")]


def report(prefix):
    with open(f"{prefix}_skipped.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
