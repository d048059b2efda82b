"""Data preparation: JSON files → `.bin`/`.idx` for pre-training, and raw WuDao → `wudao_train.json`,
`wudao_valid.json`.

    python -m megatron_patch.cli.preprocess --input FILE_OR_FOLDER ... --output-prefix PREFIX --tokenizer-folder FOLDER
    python -m megatron_patch.cli.preprocess --input FILE_OR_FOLDER ... --sft-output-dir FOLDER

The pair is PREFIX.bin and PREFIX.idx, exactly as named. run_make_pretraining_dataset.sh calls this with its
six arguments. Exit status: 2 for a usage error, 1 where the data or the machine stopped it, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_patch.arguments.findings import Parser
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.folders.checkout import checkout_problem
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.typed import path_problem, unwritable
from megatron_patch.preparation.encoding import Settings
from megatron_patch.preparation.pair import output_paths, preprocess, require_apart
from megatron_patch.preparation.wudao import CLEANERS
from megatron_patch.preparation.wudao_split import TRAIN, VALID, require_free, split_wudao
from megatron_patch.records.json_records import MAX_DOCUMENT_MB, find_files

_WORTH_A_PROCESS = 4 << 20  # bytes of input for which starting another process pays
# The script's argument that each flag carries.
_SCRIPT_ARGUMENTS = {"--megatron-patch-path": "$2 MEGATRON_PATCH_PATH", "--input": "$3 input_data_dir",
                     "--tokenizer": "$4 tokenizer", "--output-dir": "$5 output_data_dir",
                     "--tokenizer-folder": "$6 load_dir"}  # fmt: skip


class _Parser(Parser):
    """Line ends in a documented argument are a finding under its name, among all others."""

    def says_line_ends_itself(self, flag: str) -> bool:
        return flag in _SCRIPT_ARGUMENTS


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = _Parser(
        prog="megatron_patch.cli.preprocess",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=__doc__.splitlines()[0], argument_default=None,
    )  # fmt: skip
    p.add_argument(
        "--input", nargs="+", required=True, help="files, or folders of .jsonl, .json, .jsonl.zst, .jsonl.gz"
    )
    p.add_argument("--tokenizer-folder", help="the folder with tokenizer.model or tokenizer.json")
    p.add_argument("--output-prefix", help="writes PREFIX.bin and PREFIX.idx")
    p.add_argument("--output-dir", help="instead of a prefix: writes wudao_<tokenizer>_text_document there")
    p.add_argument("--tokenizer", default="llamabpe", help="only a name: llamabpe")
    p.add_argument("--sft-output-dir", help=f"writes {TRAIN} and {VALID} there, as JSON lists")
    p.add_argument("--valid-fraction", type=float, default=0.01, help="of the records, for --sft-output-dir")
    p.add_argument(
        "--json-key",
        nargs="+",
        default=["text", "content"],
        help="a record's text is the first of these it has",
    )
    p.add_argument("--clean", choices=sorted(CLEANERS), default="none", help="wudao: the original's cleaning")
    p.add_argument(
        "--workers", type=int, default=_processors(), help="processes that tokenize"
    )
    p.add_argument(
        "--max-bad-fraction", type=float, default=0.001, help="of records that are no JSON or lack the key"
    )
    p.add_argument(
        "--max-document-mb", type=int, default=MAX_DOCUMENT_MB,
        help="10^6 bytes of a line or list item; a longer one is bad, and is not held in memory",
    )  # fmt: skip
    p.add_argument("--no-append-eod", action="store_true", help="no end token after a document")
    p.add_argument("--overwrite", action="store_true", help="replace a pair that other input made, or an earlier split")
    p.add_argument("--megatron-path", help="accepted for the script's sake; preparation needs no Megatron")
    p.add_argument("--megatron-patch-path", help="this project's folder")
    return p


def findings(args: argparse.Namespace) -> list[str]:
    """Everything that is wrong with the arguments, a sentence each."""
    out: list[str] = []

    def check(flag: str, got: object, problem: str | None) -> None:
        if problem:
            out.append(_finding(args, flag, got, problem))

    for flag, paths in _paths(args):
        for path in paths:
            check(flag, path, path_problem(path) or (None if path else "it takes a path: write one."))
    if out:
        return out
    if args.megatron_patch_path is not None:
        check("--megatron-patch-path", args.megatron_patch_path, checkout_problem(args.megatron_patch_path))
    check("--input", " ".join(args.input), _problem(find_files, args.input))
    check(
        "--tokenizer",
        args.tokenizer,
        None if args.tokenizer == "llamabpe" else "it takes llamabpe: write that.",
    )
    for flag, folder in (("--output-dir", args.output_dir), ("--sft-output-dir", args.sft_output_dir)):
        check(flag, folder, None if folder is None else unwritable(folder))
    if args.output_prefix or args.output_dir:
        check(
            "--output-prefix",
            args.output_prefix,
            unwritable(Path(args.output_prefix).parent) if args.output_prefix else None,
        )
        check(
            "--tokenizer-folder", args.tokenizer_folder, _problem(load_tokenizer, args.tokenizer_folder or "")
        )
    elif not args.sft_output_dir:
        check(
            "--output-prefix", "", "one of --output-prefix, --output-dir and --sft-output-dir must be given."
        )
    check(
        "--workers",
        args.workers,
        None if args.workers >= 1 else "it takes a whole number of at least 1: write 1.",
    )
    check(
        "--max-document-mb",
        args.max_document_mb,
        None if args.max_document_mb >= 1 else f"it takes a whole number of at least 1: write {MAX_DOCUMENT_MB}.",
    )
    for flag in ("--valid-fraction", "--max-bad-fraction"):
        value = getattr(args, flag[2:].replace("-", "_"))
        check(
            flag,
            value,
            None if 0 <= value <= 1 else "it takes a number from 0 to 1: write 0.01, for example.",
        )
    return out


def _paths(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """Flags that take paths, with those that were given."""
    one: tuple[str, ...] = ("--megatron-path", "--megatron-patch-path", "--tokenizer-folder")
    one += ("--output-prefix", "--output-dir", "--sft-output-dir")
    given = [(flag, getattr(args, flag[2:].replace("-", "_"))) for flag in one]
    return [("--input", args.input), *((flag, [path]) for flag, path in given if path is not None)]


def conflicts(args: argparse.Namespace) -> list[str]:
    """Outputs that would replace the input or an earlier split, a sentence each; for arguments without findings."""
    files, found = find_files(args.input), []
    if prefix := _prefix(args):
        flag, got = ("--output-prefix", prefix) if args.output_prefix else ("--output-dir", args.output_dir)
        found.append((flag, got, _problem(require_apart, files, output_paths(prefix))))
    if folder := args.sft_output_dir:
        found.append(("--sft-output-dir", folder, _problem(require_free, files, Path(folder), args.overwrite)))
    return [_finding(args, flag, got, problem) for flag, got, problem in found if problem]


def _finding(args: argparse.Namespace, flag: str, got: object, problem: str) -> str:
    """A finding under the name that the user knows the argument by."""
    name = _SCRIPT_ARGUMENTS.get(flag, flag) if args.megatron_patch_path is not None else flag
    return f"{name}: got '{one_line(got)}'; {problem}"


def _prefix(args: argparse.Namespace) -> str | None:
    """The pair's prefix; None where none is asked for."""
    if args.output_prefix or not args.output_dir:
        return args.output_prefix or None
    return os.path.join(args.output_dir, f"wudao_{args.tokenizer}_text_document")


def _processors() -> int:
    """Those that this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _problem(function: Callable[..., object], *arguments: object) -> str | None:
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return None


def main(argv: list[str]) -> int:
    """Check, make what is asked for, say what was made. The exit status."""
    args = parser().parse_args(argv)
    try:
        found = findings(args) or conflicts(args)
    except OSError as error:
        found = [f"{one_line(error)}."]
    if found:
        print(
            f"{len(found)} argument error{'s' if len(found) > 1 else ''}; nothing was started.",
            file=sys.stderr,
        )
        print("".join(f"  {sentence}\n" for sentence in found), end="", file=sys.stderr)
        return 2
    try:
        if prefix := _prefix(args):
            _make_indexed(args, prefix)
        if args.sft_output_dir:
            _make_split(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _make_indexed(args: argparse.Namespace, prefix: str) -> None:
    settings = Settings(
        args.tokenizer_folder, tuple(args.json_key), args.clean, not args.no_append_eod, args.max_document_mb
    )
    size = sum(path.stat().st_size for path in find_files(args.input))
    counts = preprocess(
        args.input, prefix, settings,
        workers=min(args.workers, 1 + size // _WORTH_A_PROCESS), max_bad_fraction=args.max_bad_fraction, overwrite=args.overwrite,
    )  # fmt: skip
    print("\n".join(counts.lines(prefix)))


def _make_split(args: argparse.Namespace) -> None:
    counts = split_wudao(
        args.input, args.sft_output_dir, keys=tuple(args.json_key), clean=args.clean,
        valid_fraction=args.valid_fraction, max_bad_fraction=args.max_bad_fraction, overwrite=args.overwrite,
        max_document_mb=args.max_document_mb,
    )  # fmt: skip
    print(f"{args.sft_output_dir}: {counts.train} samples in {TRAIN}, {counts.valid} in {VALID}; "
          f"{counts.bad} bad and {counts.empty} empty records gave none.")  # fmt: skip


def _terminate(signal_number: int, _: object) -> None:
    """End as an exception does, so that workers are ended and partial files removed; a second signal ends at once."""
    signal.signal(signal_number, signal.SIG_DFL)
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main(sys.argv[1:]))
