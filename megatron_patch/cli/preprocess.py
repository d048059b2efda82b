"""Data preparation: JSON files → `.bin`/`.idx` for pre-training, and raw WuDao → `wudao_train.json`,
`wudao_valid.json`.

    python -m megatron_patch.cli.preprocess --input FILE_OR_FOLDER ... --output-prefix PREFIX --tokenizer-folder FOLDER
    python -m megatron_patch.cli.preprocess --input FILE_OR_FOLDER ... --sft-output-dir FOLDER

The pair is PREFIX.bin and PREFIX.idx, exactly as named. run_make_pretraining_dataset.sh calls this with its
six arguments. Exit status: 2 for a usage error, 1 where the data or the machine stopped it, 143 after SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_patch.arguments.commands import after_preparation, after_split
from megatron_patch.arguments.preparation import Checked, Preparation, read
from megatron_patch.arguments.preparation_list import PREPARE
from megatron_patch.data.compared_engine import PAYS_FROM
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.language.sentences import counted, fill, in_language
from megatron_patch.preparation.encoding import Settings, one_thread
from megatron_patch.preparation.pair import preprocess
from megatron_patch.preparation.partial_pair import output_paths, require_apart
from megatron_patch.preparation.wudao_split import TRAIN, VALID, require_free, split_wudao
from megatron_patch.records.files import find_files, not_read

# Bytes of input for which starting another process pays: where the reference reads them, and where the fast engine
# does, which is six times as fast and takes a second more to start.
_WORTH_A_PROCESS, _WORTH_A_FAST_PROCESS = 4 << 20, 32 << 20


def _check_what_is_read(checked: Checked) -> None:
    """The tokenizer; then, where nothing is wrong, that no output would replace the input or an earlier split."""
    job = checked.job
    if job.prefix and job.tokenizer_folder:
        checked.add("--tokenizer-folder", job.tokenizer_folder, _problem(load_tokenizer, job.tokenizer_folder))
    if checked.findings.found:
        return
    files = find_files(job.input)
    if job.prefix:
        got = job.output_prefix or job.output_dir
        checked.add(job.prefix_flag, got, _problem(require_apart, files, output_paths(job.prefix)))
    if folder := job.sft_output_dir:
        checked.add("--sft-output-dir", folder, _problem(require_free, files, Path(folder), job.overwrite))


def _problem(function: Callable[..., object], *arguments: object) -> str | None:
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return None


def main(argv: list[str]) -> int:
    """Check, make what is asked for, say what was made. The exit status."""
    print_any_text()
    checked = read(argv)
    job = checked.job
    try:
        if checked.usable:
            _check_what_is_read(checked)
    except (UserError, OSError) as error:
        print(f"{PREPARE.name}: {in_language(sentence(error))}", file=sys.stderr)
        return 2
    checked.findings.exit_if_any(PREPARE.name)
    for line in not_read(job.input):
        print(line, file=sys.stderr)
    try:
        if job.prefix:
            _make_indexed(job, job.prefix)
        if job.sft_output_dir:
            _make_split(job, job.sft_output_dir)
    except (UserError, OSError) as error:
        print(fill("error: {}", in_language(sentence(error))), file=sys.stderr)
        return 1
    return 0


def _make_indexed(job: Preparation, prefix: str) -> None:
    assert job.tokenizer_folder is not None, "a pair without a tokenizer has been refused"
    one_thread()
    settings = Settings(
        job.tokenizer_folder, job.keys, job.clean, not job.no_append_eod, job.max_document_mb, bool(job.text_keys)
    )  # fmt: skip
    size = sum(path.stat().st_size for path in find_files(job.input))
    shards = job.shards(size)
    is_slow = job.tokenizer_engine == "reference" or size < PAYS_FROM
    worth = _WORTH_A_PROCESS if is_slow else _WORTH_A_FAST_PROCESS
    made = []
    for shard in shards:
        name = prefix + shard.suffix if job.split_by_size and shard else prefix
        counts = preprocess(
            job.input, name, settings,
            workers=min(job.workers, 1 + size // (shard.count if shard else 1) // worth),
            max_bad_fraction=job.max_bad_fraction, overwrite=job.overwrite, tokenizer_engine=job.tokenizer_engine, shard=shard,
        )  # fmt: skip
        print("\n".join(map(in_language, counts.lines(name))))
        made += [(counts.tokens, name)] if counts.tokens else []  # a part in which no record begins gives no pair
    if made and not job.shard:
        print(after_preparation(made, job.megatron_path))


def _make_split(job: Preparation, folder: str) -> None:
    counts = split_wudao(
        job.input, folder, keys=job.json_key, clean=job.clean, valid_fraction=job.valid_fraction,
        max_bad_fraction=job.max_bad_fraction, overwrite=job.overwrite, max_document_mb=job.max_document_mb,
    )  # fmt: skip
    train, valid = counted(counts.train, "sample"), counted(counts.valid, "sample")
    bad, empty = counted(counts.bad, "bad record"), counted(counts.empty, "empty record")
    print(fill("{}: {} in {}, {} in {}; {} and {} gave none.", folder, train, TRAIN, valid, VALID, bad, empty))
    print(after_split(Path(folder) / TRAIN, Path(folder) / VALID, job.megatron_path))


def _terminate(signal_number: int, _: object) -> None:
    """End as an exception does, so that workers are ended and partial files removed; a second signal ends at once."""
    signal.signal(signal_number, signal.SIG_DFL)
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main(sys.argv[1:]))
