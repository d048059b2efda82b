"""`megatron-patch report OUTPUT_BASEPATH…`: one page of a run, or of several side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_patch.arguments.report import ReportJob, read
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.folders.durable_files import write_text
from megatron_patch.formats.json_files import one_line
from megatron_patch.language.sentences import counted, fill, in_language
from megatron_patch.report.page_file import MARK, page
from megatron_patch.report.payload import payload
from megatron_patch.report.reading import read_runs


def main(argv: list[str]) -> int:
    """Write the page. Exit status 0, or 2 with a sentence where a path holds no run or the file cannot be written."""
    print_any_text()
    job = read(argv)
    try:
        _write(job)
    except (UserError, OSError) as error:
        print(fill("error: {}", in_language(sentence(error))), file=sys.stderr)
        return 2
    return 0


def _write(job: ReportJob) -> None:
    target = Path(job.output)
    _refuse_another_file(target)
    runs, notes = read_runs(job.output_basepath)
    text = page(payload(runs, job.points, notes))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    for note in notes:
        print(note)
    size = fill("{} ({}, {} kB)", one_line(target), counted(len(runs), "run"), round(len(text) / 1000))
    print(fill("Written: {}", size))


def _refuse_another_file(target: Path) -> None:
    """Raise where `target` is a file that this command has not written."""
    if not target.exists():
        return
    with open(target, "rb") as stream:
        if stream.read(len(MARK)) != MARK.encode():
            raise UserError(f"{target} is there and is no report; give --output another name, or remove that file.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
