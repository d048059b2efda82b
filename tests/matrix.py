"""`make matrix`: the suite's core with each supported Python, megatron-core and torch, a table of it in docs/matrix.md.

    python -m tests.matrix [PYTHON/CORE/TORCH ...]

A corner needs its Python on this machine: on PATH, of uv, or of pyenv. Its environment in .matrix/ takes about 5 GB
where PyPI's torch comes with CUDA, and is removed after its run. Rows of corners that were not run stay as they are.
The exit status is 1 where a test failed or a corner could not be installed.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "matrix.md"
# Both ends of each range, and everything between once.
CORNERS = (
    "3.11/0.16.1/2.11.0",
    "3.11/0.16.1/2.15.0",
    "3.12/0.17.1/2.12.1",
    "3.12/0.18.2/2.14.1",
    "3.13/0.18.2/2.13.0",
    "3.13/0.19.2/2.15.0",
)
# Where a change of version shows: classes of core and torch, files between versions, training, the scripts.
CORE = (
    "tests/core", "tests/model", "tests/checkpoint", "tests/formats", "tests/conversion", "tests/data/test_core_dataset.py",
    "tests/train/test_resume.py", "tests/train/test_pipeline.py", "tests/scripts/test_console.py",
)  # fmt: skip
HEAD = """# What was run with which versions

The suite's core (`CORE` in `tests/matrix.py`) on the CPU; `make matrix` runs it and writes this table, a row an environment.

| Python | megatron-core | torch | numpy | transformers | passed | skipped | failed | minutes | on |
|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Corner:
    """Versions as X.Y of Python and X.Y.Z of the two libraries."""

    python: str
    core: str
    torch: str

    @property
    def row(self) -> str:
        """How its row begins."""
        return f"| {self.python} | {self.core} | {self.torch} |"

    @property
    def folder(self) -> Path:
        return ROOT / ".matrix" / f"python{self.python}-core{self.core}-torch{self.torch}"


def main(argv: list[str]) -> int:
    status = 0
    for words in argv or CORNERS:
        corner = Corner(*words.split("/"))
        interpreter = find_python(corner.python)
        if interpreter is None:
            print(f"{words}: this machine has no Python {corner.python}; uv python install {corner.python}", flush=True)
            continue
        print(f"{words}: with {interpreter}", flush=True)
        try:
            row, failed = run(corner, interpreter)
        except subprocess.CalledProcessError as error:  # of pip, which has said why
            print(f"{words}: `{' '.join(error.cmd)}` failed; the corner was not run", flush=True)
            status = 1
            continue
        finally:
            shutil.rmtree(corner.folder, ignore_errors=True)
        print(row, flush=True)
        write(corner, row)
        status = status or int(failed)
    return status


def find_python(version: str) -> str | None:
    """An interpreter of that X.Y."""
    found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True).stdout if shutil.which("uv") else ""
    pyenv = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
    for candidate in (f"python{version}", *found.split(), *map(str, pyenv)):
        if shutil.which(candidate) and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def run(corner: Corner, interpreter: str) -> tuple[str, bool]:
    """The row of a corner, and whether a test failed in it."""
    python = str(corner.folder / "bin" / "python")
    subprocess.run([interpreter, "-m", "venv", str(corner.folder)], check=True)
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"torch=={corner.torch}"], check=True)
    subprocess.run([*pip, f"torch=={corner.torch}", f"megatron-core=={corner.core}", "-e", ".[test]"], cwd=ROOT, check=True)
    log, started = corner.folder.parent / f"{corner.folder.name}.log", time.monotonic()
    with open(log, "w", encoding="utf-8") as stream:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [python, "-m", "pytest", "-p", "no:cacheprovider", *CORE]
        ended = subprocess.run(words, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    minutes = (time.monotonic() - started) / 60
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|skipped|failed|error)", last)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if ended.returncode:
        print(f"{log} has what failed: {last}", flush=True)
    numbers = [*(version(python, name) for name in ("numpy", "transformers")), counts.get("passed", 0), counts.get("skipped", 0)]
    cells = [*numbers, failed, round(minutes), datetime.date.today()]
    return f"{corner.row} {' | '.join(map(str, cells))} |", ended.returncode != 0


def version(python: str, library: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({library!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def write(corner: Corner, row: str) -> None:
    """Put the row in the place of the corner's earlier one; what stands below the table stays."""
    lines = TABLE.read_text(encoding="utf-8").removeprefix(HEAD).splitlines() if TABLE.exists() else []
    rows = sorted([*(old for old in lines if old.startswith("| ") and not old.startswith(corner.row)), row])
    below = "\n".join(line for line in lines if not line.startswith("| ")).strip()
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(HEAD + "\n".join(rows) + "\n" + (f"\n{below}\n" if below else ""), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
