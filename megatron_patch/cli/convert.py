"""Model conversion both ways: `python -m megatron_patch.cli.convert --flags`, as model_convertor.sh writes them."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from megatron_patch.arguments.commands import after_conversion
from megatron_patch.arguments.conversion import SCRIPT, Conversion, read
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.folders.engine import choose_engine
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.formats.read_ahead import read_ahead
from megatron_patch.language.sentences import counted, fill, in_language
from megatron_patch.processes.imports import many_imports

_WEIGHTS = ("*.safetensors", "*.bin", "consolidated.*.pth", "*.distcp", "mp_rank_*/model*.pt")


def main(argv: list[str]) -> int:
    """Read, convert, sum up. The status to leave with: 0, 2 for what a user can mend, 1 for the disk."""
    print_any_text()
    try:
        job = read(argv)
    except (UserError, OSError) as error:
        print(f"{SCRIPT}: {in_language(sentence(error))}", file=sys.stderr)
        return 2
    before = _identity(job.target)
    try:
        engine, line = choose_engine(job.megatron_path)
        print(in_language(line), flush=True)
        _run(job, engine)
    except UserError as error:
        print(f"{SCRIPT}: {in_language(str(error))}\n{_what_is_there(job.target, before)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{SCRIPT}: {in_language(sentence(error))} {_what_is_there(job.target, before)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{SCRIPT}: {fill('interrupted.')} {_what_is_there(job.target, before)}", file=sys.stderr)
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
        return fill("Nothing was left at {}.", target)
    if now == before:
        return fill("{} is as it was.", target)
    return fill("What is at {} came there while this ran: look at it before you use it.", target)


def _run(job: Conversion, engine: str | None) -> None:
    with read_ahead(_weights(job.source)), many_imports():
        from megatron_patch.conversion.convert import convert

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Through links, so that the disk whose room is measured is the one that is written.
    summary = convert(replace(job, target=Path(os.path.realpath(job.target))), engine)
    for note in summary.notes:
        print(in_language(note))
    checked = "" if summary.verified is None else fill(", {} compared with the source", summary.verified)
    tensors = counted(summary.tensors, "tensor") + checked
    size = f"{summary.bytes / 1e9:.2f} GB" if summary.bytes >= 1e9 else f"{summary.bytes / 1e6:.1f} MB"
    rate, peak = f"{summary.bytes / 1e6 / summary.seconds:.0f}", f"{summary.peak_bytes / 2**30:.2f}"
    template = "{}, {} in {}, {} s, {} MB/s, peak memory {} GiB."
    print(fill(template, tensors, size, counted(summary.files, "file"), f"{summary.seconds:.1f}", rate, peak))
    print(fill("Written: {}", job.target))
    print(_next_step(job), flush=True)


def _weights(source: Path) -> list[Path]:
    """The files that a conversion reads first, as far as their names tell."""
    with suppress(UserError):  # it is no Megatron checkpoint; who opens it says what is wrong, if anything is
        source = resolve_checkpoint(source).folder
    return sorted(path for pattern in _WEIGHTS for path in source.glob(pattern))


def _next_step(job: Conversion) -> str:
    if job.adapter_only:
        return fill('Next: peft.PeftModel.from_pretrained(base_model, "{}")', job.target)
    if job.to_hf:
        return fill('Next: transformers.AutoModelForCausalLM.from_pretrained("{}")', job.target)
    layout = (job.tensor_model_parallel_size, job.pipeline_model_parallel_size)
    return after_conversion(job.target, job.megatron_path, *layout, job.extra_vocab_size)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
