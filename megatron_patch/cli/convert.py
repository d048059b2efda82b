"""Model conversion both ways: `python -m megatron_patch.cli.convert --flags`, as model_convertor.sh writes them."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from megatron_patch.arguments.conversion import SCRIPT, Conversion, read
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.folders.engine import choose_engine


def main(argv: list[str]) -> int:
    """Read, convert, sum up. The status to leave with: 0, 2 for what a user can mend, 1 for the disk."""
    print_any_text()
    try:
        job = read(argv)
    except (UserError, OSError) as error:
        print(f"{SCRIPT}: {sentence(error)}", file=sys.stderr)
        return 2
    before = _identity(job.target)
    try:
        engine, line = choose_engine(job.megatron_path)
        print(line, flush=True)
        _run(job, engine)
    except UserError as error:
        print(f"{SCRIPT}: {error}\n{_what_is_there(job.target, before)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{SCRIPT}: {sentence(error)} {_what_is_there(job.target, before)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{SCRIPT}: interrupted. {_what_is_there(job.target, before)}", file=sys.stderr)
        return 130
    return 0


def _identity(folder: Path) -> tuple[int, int] | None:
    """Tells a folder from another one that takes its name; None where there is none."""
    if not folder.exists():
        return None
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _what_is_there(target: Path, before: tuple[int, int] | None) -> str:
    """The sentence about `target` after a failure."""
    now = _identity(target)
    if now is None:
        return f"Nothing was left at {target}."
    if now == before:
        return f"{target} is as it was."
    return f"What is at {target} came there while this ran: look at it before you use it."


def _run(job: Conversion, engine: str | None) -> None:
    from megatron_patch.conversion.convert import convert

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Through links, so that the disk whose room is measured is the one that is written.
    summary = convert(replace(job, target=Path(os.path.realpath(job.target))), engine)
    for note in summary.notes:
        print(note)
    checked = "" if summary.verified is None else f", {summary.verified} compared with the source"
    size = f"{summary.bytes / 1e9:.2f} GB" if summary.bytes >= 1e9 else f"{summary.bytes / 1e6:.1f} MB"
    files = "1 file" if summary.files == 1 else f"{summary.files} files"
    print(
        f"{summary.tensors} tensors{checked}, {size} in {files}, {summary.seconds:.1f} s, "
        f"{summary.bytes / 1e6 / summary.seconds:.0f} MB/s, peak memory {summary.peak_bytes / 2**30:.2f} GiB."
    )
    print(f"Written: {job.target}")
    print(_next_step(job), flush=True)


def _next_step(job: Conversion) -> str:
    if job.to_hf:
        return f'Next: transformers.AutoModelForCausalLM.from_pretrained("{job.target}")'
    return (
        f"Next: give {job.target} as PRETRAIN_CHECKPOINT_PATH to examples/llama2/run_pretrain_megatron_llama.sh or "
        f"run_finetune_megatron_llama.sh, with EXTRA_VOCAB_SIZE {job.extra_vocab_size}; any TP and PP will do."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
