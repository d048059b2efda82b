"""Look into what training reads and writes: `python -m megatron_patch.cli.inspection PATH`.

PATH is a `.bin`/`.idx` pair (with or without the ending), a fine-tuning JSON file, or a checkpoint's folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_patch.arguments.findings import Parser
from megatron_patch.data.prompts import TEMPLATES
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import path_problem
from megatron_patch.inspection.data import describe_indexed, describe_sft


def main(argv: list[str]) -> int:
    """Print what PATH holds. Exit status 0, or 2 with a sentence where it cannot be read."""
    p = Parser(prog="megatron_patch.cli.inspection", description=__doc__)
    p.add_argument("path")
    p.add_argument("--tokenizer-folder", help="decodes samples, and counts a fine-tuning file's tokens")
    p.add_argument("--samples", type=int, default=3, help="how many are shown (default 3)")
    p.add_argument("--template", choices=TEMPLATES, default="alpaca", help="for a fine-tuning file")
    p.add_argument("--seq-length", type=int, default=2048, help="for a fine-tuning file (default 2048)")
    p.add_argument(
        "--max-padding-length", type=int, help="PAD_LEN of a fine-tuning file (default: --seq-length)"
    )
    print_any_text()
    args = p.parse_args(argv)
    try:
        print("\n".join(describe(args)))
    except (UserError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


def describe(args: argparse.Namespace) -> list[str]:
    """The lines for what `args.path` is. UserError where it is nothing that is known, or damaged."""
    for given in (args.path, args.tokenizer_folder):
        if given is not None and (problem := path_problem(given) or ("" if given else "it takes a path: write one.")):
            raise UserError(f"got '{one_line(given)}'; {problem}")
    path, text = Path(args.path), args.path
    tokenizer = load_tokenizer(args.tokenizer_folder) if args.tokenizer_folder else None
    prefix = text[:-4] if text.endswith((".bin", ".idx")) else text
    if Path(prefix + ".idx").exists() or Path(prefix + ".bin").exists():
        return describe_indexed(prefix, tokenizer, args.samples)
    if path.is_file():
        pad_len = args.max_padding_length or args.seq_length
        return describe_sft(
            path,
            tokenizer,
            args.samples,
            template=args.template,
            pad_len=pad_len,
            seq_len=max(pad_len, args.seq_length),
        )
    if path.is_dir():
        from megatron_patch.inspection.checkpoint import describe_checkpoint

        return describe_checkpoint(path)
    raise UserError(
        f"{path} does not exist; give a .bin/.idx pair, a fine-tuning JSON file or a checkpoint's folder."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
