"""`make fuzz`: a million changed inputs over every reader and every argument, in processes of their own.

    python -m tests.fuzz [--inputs N] [--seed S] [--jobs N] [--only TARGET ...]
    python -m tests.fuzz --only TARGET --seed S --number N     one input again, with its traceback

It prints the seed, the number of inputs that were tried, the slowest one, the largest memory, and each distinct failure
with the first input that shows it. The exit status is 1 if there is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.run import TARGETS, attempt, prepared, random_of

_CHUNK = 5000  # inputs of one process
# The share of all inputs that each target gets: a slow reader gets fewer.
_SLOW = ("torch-files", "preparation-input", "preparation-state")
_SLOW += ("arguments-pretrain", "arguments-finetune", "arguments-finetune-with-ga", "arguments-preprocess")
_SHARES = {name: 0.3 if name in _SLOW else 1.0 for name in TARGETS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=int(os.environ.get("FUZZ_INPUTS") or 1_000_000))
    parser.add_argument("--seed", default=os.environ.get("FUZZ_SEED") or "1")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("FUZZ_JOBS") or len(os.sched_getaffinity(0))))
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--number", type=int, help="this input alone")
    parser.add_argument("--from-to", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.number is not None:
        return _again(args.only[0], args.seed, args.number)
    if args.from_to:
        return _child(args.only[0], args.seed, *args.from_to, Path(args.at))
    return _parent(args)


def _again(name: str, seed: str, number: int) -> int:
    from tests.fuzz.outcome import limits

    target = prepared(name, Path(tempfile.mkdtemp(prefix="fuzz-")))
    with limits():
        failure, shown, seconds = attempt(target, random_of(seed, name, number))
    print(f"{shown}\n{seconds:.3f} s\n{failure.detail if failure else 'a result or a sentence'}")
    return int(failure is not None)


def _child(name: str, seed: str, first: int, last: int, at: Path) -> int:
    """Try some inputs of one target, and print a line of JSON that says what became of them."""
    from tests.fuzz.outcome import limits

    target, failures = prepared(name, Path(tempfile.mkdtemp(prefix="fuzz-"))), {}
    counts: Counter[str] = Counter()
    slowest, base = (0.0, first), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with limits(), open(at, "wb", buffering=0) as place:
        for number in range(first, last):
            os.pwrite(place.fileno(), b"%20d" % number, 0)
            failure, shown, seconds = attempt(target, random_of(seed, name, number))
            slowest = max(slowest, (seconds, number))
            if failure:
                counts[failure.place] += 1
                failures.setdefault(failure.place, {"target": name, "number": number, "input": shown, **asdict(failure)})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"inputs": last - first, "counts": counts, "failures": failures, "slowest": slowest, "peak": peak, "base": base}
        )
    )
    return 0


def _parent(args: argparse.Namespace) -> int:
    total = sum(_SHARES[name] for name in args.only)
    pieces = []
    for name in args.only:
        count = max(1, round(args.inputs * _SHARES[name] / total))
        pieces += [(name, first, min(count, first + _CHUNK)) for first in range(0, count, _CHUNK)]
    print(
        f"seed {args.seed}, {sum(b - a for _, a, b in pieces)} inputs over {len(args.only)} targets, {args.jobs} at a time",
        flush=True,
    )
    began, done = time.monotonic(), []
    with ThreadPoolExecutor(args.jobs) as pool:
        for result in pool.map(lambda piece: _run(args.seed, *piece), pieces):
            done.append(result)
    return _report(args, done, time.monotonic() - began)


def _run(seed: str, name: str, first: int, last: int) -> dict:
    """Run one child process and read its line. If it dies, the input that it had begun is a failure."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        words = ["--only", name, "--seed", seed, "--from-to", str(first), str(last), "--at", f"{folder}/at"]
        result = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *words], env={**os.environ, "TMPDIR": folder}, capture_output=True, text=True
        )
        if result.returncode == 0:
            return {"name": name, **json.loads(result.stdout.splitlines()[-1])}
        at = Path(folder, "at")
        number = int(at.read_text() or first) if at.is_file() else first
    detail = result.stderr[-3000:]
    failure = {
        "target": name,
        "number": number,
        "input": "",
        "place": f"{name}: the process died ({result.returncode})",
        "detail": detail,
    }
    counts = {failure["place"]: 1}
    dead = {"name": name, "inputs": number - first + 1, "counts": counts, "failures": {failure["place"]: failure}}
    rest = _run(seed, name, number + 1, last) if at and number + 1 < last and "Traceback" not in detail else None
    return _joined(dead | {"slowest": (0.0, 0), "peak": 0, "base": 0}, rest)


def _joined(one: dict, other: dict | None) -> dict:
    if other is None:
        return one
    counts = Counter(one["counts"]) + Counter(other["counts"])
    return {
        "name": one["name"], "inputs": one["inputs"] + other["inputs"], "counts": counts,
        "failures": other["failures"] | one["failures"],
        "slowest": max(tuple(one["slowest"]), tuple(other["slowest"])),
        "peak": max(one["peak"], other["peak"]), "base": max(one["base"], other["base"]),
    }  # fmt: skip


def _report(args: argparse.Namespace, done: list[dict], seconds: float) -> int:
    counts: Counter[str] = Counter()
    failures: dict[str, dict] = {}
    for name in args.only:
        own = [result for result in done if result["name"] == name]
        slowest = max(tuple(result["slowest"]) for result in own)
        grown = max(result["peak"] - result["base"] for result in own) / 1024
        failed = sum(sum(result["counts"].values()) for result in own)
        print(f"  {name:22} {sum(r['inputs'] for r in own):8} inputs, {failed:6} failed, slowest {slowest[0]:.2f} s "
              f"(number {slowest[1]}), memory grew by {grown:.0f} MB at most")  # fmt: skip
        for result in own:
            counts.update(result["counts"])
            failures = result["failures"] | failures
    inputs = sum(result["inputs"] for result in done)
    print(f"{inputs} inputs in {seconds:.0f} s; {sum(counts.values())} failed, in {len(failures)} distinct places")
    for place, count in counts.most_common():
        found = failures[place]
        print(
            f"\n{count} × {place}\n  again: python -m tests.fuzz --only {found['target']} "
            f"--seed {args.seed} --number {found['number']}"
        )
        print(
            f"  input: {found['input'][:300]}\n  " + found["detail"].strip().splitlines()[-1][:300]
            if found["detail"].strip()
            else ""
        )
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
