"""Model conversion both ways: `python -m megatron_patch.cli.convert --flags`, as model_convertor.sh writes them."""

from __future__ import annotations

import signal
import sys

from megatron_patch.checkpoint.conversion_arguments import SCRIPT, Conversion, read
from megatron_patch.megatron_path import choose_engine


def main(argv: list[str]) -> int:
    """Read, convert, sum up. The status to leave with: 0, 2 for what a user can mend, 1 for the disk."""
    job = read(argv)
    try:
        engine, line = choose_engine(job.megatron_path)
        print(line, flush=True)
        _run(job, engine)
    except ValueError as error:
        print(f"{SCRIPT}: {error}\nNothing was left at {job.target}.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{SCRIPT}: {error}. Nothing was left at {job.target}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{SCRIPT}: interrupted. Nothing was left at {job.target}.", file=sys.stderr)
        return 130
    return 0


def _run(job: Conversion, engine: str | None) -> None:
    from megatron_patch.checkpoint.convert import convert

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    summary = convert(job, engine)
    for note in summary.notes:
        print(note)
    checked = "" if summary.verified is None else f", {summary.verified} compared with the source"
    print(
        f"{summary.tensors} tensors{checked}, {summary.bytes / 1e9:.2f} GB in {summary.files} files, {summary.seconds:.1f} s, "
        f"{summary.bytes / 1e6 / summary.seconds:.0f} MB/s, peak memory {summary.peak_bytes / 2**30:.2f} GiB."
    )
    print(f"Written: {summary.target}")
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
