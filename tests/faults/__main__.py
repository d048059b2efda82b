"""`make soak`: a thousand faults at random moments of a tiny run, each compared with the run that nothing happened to.

    python -m tests.faults [--cases N] [--first N] [--seed S] [--jobs N] [--results FILE]
    python -m tests.faults --seed S --number N      one case again

Each case is a run of its own: the documented script, one fault at a random moment, and the same command again to the
end. The seed and the case's number decide fault and moment. It prints the seed and a table; the exit status is 1 if a
result was wrong, a checkpoint was lost, a process was left behind or a traceback came. With `--results` each case is a
line of that file once it has ended; the same command again takes up behind them, and the table is of all. Machines that
have the same faults share the cases by `--first`: their files in one make one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.survival import Chain, Counts, Fault, Reference, chance_of, uninterrupted
from tests.faults.table import FAULTS

_ITERATIONS = 24  # of a case's run, whose fault is among the first


def main() -> int:
    parser = argparse.ArgumentParser("tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=int(os.environ.get("SOAK_CASES") or 1000))
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SOAK_SEED") or 1))
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("SOAK_JOBS") or len(os.sched_getaffinity(0))))
    parser.add_argument("--first", type=int, default=0, help="the first of the cases, from 0")
    parser.add_argument("--number", type=int, help="this case alone")
    parser.add_argument("--results", type=Path, help="a file of JSON lines, one a case")
    args = parser.parse_args()
    done = read_results(args.results, args.seed) if args.results else {}
    wanted = range(args.first, args.cases) if args.number is None else [args.number]
    numbers = [number for number in wanted if number not in done or args.number is not None]
    possible = [fault for fault in FAULTS if not fault.absent()]
    for fault in FAULTS:
        if why := fault.absent():
            print(f"left out: {fault.name}: {why}")
    print(f"seed {args.seed}, {len(numbers)} cases of {len(possible)} faults, {args.jobs} at a time", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        counts = sorted({fault.processes for fault in possible})
        references = {count: uninterrupted(Path(folder) / f"uninterrupted-{count}", count, _ITERATIONS) for count in counts}
        with ThreadPoolExecutor(args.jobs) as pool:
            for case in pool.map(lambda number: one_case(args.seed, number, possible, references, Path(folder)), numbers):
                done[case[0]] = case
                if args.results:
                    keep(args.results, args.seed, case)
    return report(args.seed, [done[number] for number in sorted(done)])


Case = tuple[int, str, Counts]  # its number, the fault's name, what became of it


def keep(results: Path, seed: int, case: Case) -> None:
    """Add a case to the file of results."""
    number, name, counts = case
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seed": seed, "number": number, "fault": name, **dataclasses.asdict(counts)}) + "\n")


def read_results(results: Path, seed: int) -> dict[int, Case]:
    """The cases of this seed that have ended; of a case that stands there twice the later one."""
    found: dict[int, Case] = {}
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        values = json.loads(line)
        number, name = values.pop("number"), values.pop("fault")
        if values.pop("seed") == seed:
            found[number] = (number, name, Counts(**values))
    return found


def one_case(seed: int, number: int, faults: list[Fault], references: dict[int, Reference], folder: Path) -> Case:
    """One fault, and the run that goes on after it. The order of FAULTS is a part of what the number means."""
    chance = chance_of(seed, number)
    fault = chance.choice(faults)
    chain = Chain(folder / str(number), references[fault.processes], fault.processes)
    try:
        chain.suffer(fault, chance)
        chain.complete()
    except Exception as error:  # whatever it is, it is this case's result, and the others go on
        chain.counts.problems.append(f"{fault.name}: {error!r}")
    shutil.rmtree(chain.folder, ignore_errors=True)
    for problem in chain.counts.problems:
        print(f"\ncase {number}: {problem}\n  again: python -m tests.faults --seed {seed} --number {number}", flush=True)
    return number, fault.name, chain.counts


def report(seed: int, done: list[Case]) -> int:
    """Print the table, a fault a line, and their sum."""
    groups: dict[str, list[Counts]] = defaultdict(list)
    for _, name, counts in done:
        groups[name].append(counts)
    print("\n| fault | faults | wrong results | lost checkpoints | left behind | tracebacks | repeated | seconds to next step |")
    print("|---|---|---|---|---|---|---|---|")
    for name, all_counts in [*sorted(groups.items()), ("all", [counts for _, _, counts in done])]:
        print(f"| {name} | {' | '.join(_row(all_counts))} |")
    failed = [number for number, _, counts in done if counts.problems]
    print(f"\nseed {seed}: {len(failed)} of {len(done)} cases failed{': ' + str(failed[:50]) if failed else ''}")
    return int(bool(failed))


def _row(found: list[Counts]) -> list[str]:
    numbers = [sum(getattr(one, name) for one in found) for name in ("faults", "wrong", "lost", "left_behind", "tracebacks")]
    repeated = [one.repeated for one in found]
    seconds = [second for one in found for second in one.seconds]
    shown = f"median {statistics.median(seconds):.1f}, at most {max(seconds):.1f}" if seconds else ""
    return [*map(str, numbers), f"{sum(repeated)}, at most {max(repeated)}", shown]


if __name__ == "__main__":
    sys.exit(main())
