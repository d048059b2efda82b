"""Faults planted one at a time, and the test that finds each: `python benchmarks/mutations.py [NAME ...]`.

Each is tried in a copy of the checkout: the text is replaced, and one of the named tests must fail. A mutation whose
text is gone is an error, since nothing was tried then. The tests must pass without a fault: `make test` shows that,
this program does not. Prints a line each, with the test that failed, and exits with 1 if any survived.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".demo", "*.egg-info", ".dev", "build", "dist")


@dataclass(frozen=True)
class Mutation:
    """One fault: `old` becomes `new` in `file`. With it, one of the tests that pytest finds by `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


TABLE = Path(__file__).with_name("planted_faults.toml")
MUTATIONS = tuple(Mutation(**fault) for fault in tomllib.loads(TABLE.read_text(encoding="utf-8"))["fault"])


def found_by(mutation: Mutation, folder: Path) -> str:
    """The first test that fails with the fault in place, "" if none does. `folder` is a copy, left as it was found.

    The copy stands first on PYTHONPATH: processes that tests start would otherwise import the installed checkout, which
    has no fault in it.
    """
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.file} has its text {text.count(mutation.old)} times; correct the table.")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests.split()]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text, encoding="utf-8")
    if result.returncode not in (0, 1):
        sys.exit(f"{mutation.name}: pytest could not run {mutation.tests}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    return failed[1] if failed else ""


def main(names: list[str]) -> int:
    """Try the named faults, or all; returns 1 if one survived."""
    wanted = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "checkout", ignore=_LEFT_OUT))
        for mutation in wanted:
            test = found_by(mutation, copy)
            survivors += [] if test else [mutation.name]
            print(f"found     {mutation.name}: {test}" if test else f"SURVIVED  {mutation.name}: {mutation.tests}", flush=True)
    print(f"{len(wanted)} mutations, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
