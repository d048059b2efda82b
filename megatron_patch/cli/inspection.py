"""Look into what training reads and writes: `python -m megatron_patch.cli.inspection PATH`.

PATH is a `.bin`/`.idx` pair (with or without the ending), a fine-tuning JSON file, a checkpoint's folder, or an
adapter's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron_patch.arguments.inspection import Inspection, read
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.folders.adapter_base import find_adapter
from megatron_patch.inspection.data import describe_indexed, describe_sft
from megatron_patch.language.sentences import fill, in_language


def main(argv: list[str]) -> int:
    """Print what PATH holds. Exit status 0, or 2 with a sentence where it cannot be read."""
    print_any_text()
    job = read(argv)
    try:
        print("\n".join(describe(job)))
    except (UserError, OSError) as error:
        print(fill("error: {}", in_language(sentence(error))), file=sys.stderr)
        return 2
    return 0


def describe(job: Inspection) -> list[str]:
    """The lines about what `job.path` is.

    Raises:
        UserError: it is nothing that is known, or it is damaged.
    """
    path, text = Path(job.path), job.path
    tokenizer = load_tokenizer(job.tokenizer_folder) if job.tokenizer_folder else None
    prefix = text[:-4] if text.endswith((".bin", ".idx")) else text
    if Path(prefix + ".idx").exists() or Path(prefix + ".bin").exists():
        return describe_indexed(prefix, tokenizer, job.samples)
    if path.is_file():
        pad_len = job.max_padding_length or job.seq_length
        return describe_sft(
            path,
            tokenizer,
            job.samples,
            template=job.template,
            pad_len=pad_len,
            seq_len=max(pad_len, job.seq_length),
        )
    if path.is_dir():
        from megatron_patch.inspection.adapter import describe_adapter
        from megatron_patch.inspection.checkpoint import describe_checkpoint

        adapter = find_adapter(path)
        if adapter == path:
            return describe_adapter(path)
        return describe_checkpoint(path) + (describe_adapter(adapter) if adapter is not None else [])
    raise UserError(
        f"{path} does not exist; give a .bin/.idx pair, a fine-tuning JSON file, or the folder of a checkpoint or an adapter."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
