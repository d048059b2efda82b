"""A whole conversion: open the source, check it, write the target, verify it, put it in place, sum up."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_patch.arguments.conversion import Conversion, model_findings
from megatron_patch.config import PER_KV_HEAD
from megatron_patch.conversion.adapter_alone import open_adapter, size_of, tensors_of, write_alone
from megatron_patch.conversion.verify import verify
from megatron_patch.conversion.write import copy_beside, write_hf, write_json, write_native
from megatron_patch.data.tokenizer_json import add_tokenizer_json
from megatron_patch.errors import UserError
from megatron_patch.folders.adapter_base import base_of, find_adapter
from megatron_patch.folders.atomic_folder import new_folder
from megatron_patch.folders.durable_files import flush
from megatron_patch.folders.hugging_face_folder import meta_companions
from megatron_patch.folders.layout import COMPANIONS, ModelDescription, copy_companions, iteration_folder, write_model_description
from megatron_patch.folders.tracker import RELEASE, write_tracker
from megatron_patch.folders.trained_form import TrainedForm, base_layout, form_of, read_form, write_form
from megatron_patch.formats.lazy import nbytes
from megatron_patch.formats.placeholders import refuse_placeholders
from megatron_patch.formats.progress import Progress, Waiting, peak_memory
from megatron_patch.formats.streaming import Written
from megatron_patch.formats.vocabulary_2023 import claimed_rows
from megatron_patch.llama.model_config import LLAMA_SIZES, to_hf_config
from megatron_patch.weights.adapter import with_adapter
from megatron_patch.weights.source import (
    check_rest,
    check_shapes,
    open_source,
    with_dtype,
    with_extra_vocabulary,
    with_vocabulary_rows,
)
from megatron_patch.weights.table import BY_KEY, EMBEDDING, Place, Source, places

_MARGIN = 64 << 20  # bytes that headers and small files may take beside the weights


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        tensors, files, bytes: how many were written; of the bytes, those of the tensors.
        seconds: how long all of it took.
        peak_bytes: largest resident memory of the process so far.
        verified: tensors compared; None where `--verify` was not asked for.
        notes: what the user should know, one sentence each.
    """

    target: Path
    tensors: int
    files: int
    bytes: int
    seconds: float
    peak_bytes: int
    verified: int | None
    notes: tuple[str, ...]


def convert(job: Conversion, engine: str | None = None) -> Summary:
    """Run `job`. The target is there only if everything went well.

    Args:
        job: what to convert.
        engine: a Megatron-LM source tree whose megatron.core `--verify-logits` uses instead of the installed one.

    Raises:
        UserError: the source or the arguments are wrong; the message names file and tensor.
        OSError: the disk is full or fails.
    """
    start = time.monotonic()
    if job.adapter_only:
        return _adapter_alone(job, start)
    with Waiting("opening the source"):
        source = prepared(job)
        form = replace(form_of(job.source), gqa_layout=None)  # what is written has one order
    total = sum(nbytes(source.megatron(place)) for place in places(source.config))
    _check_space(job.target, total)
    with new_folder(job.target, job.overwrite) as folder:
        with Progress("writing", total) as progress:
            if job.to_hf:
                written = write_hf(folder, source, job.max_file_bytes, progress.add)
            else:
                written = write_release(folder, source, job, progress)
        write_form(folder if job.to_hf else iteration_folder(folder, None), form)
        with Waiting("comparing sums"):
            check_rest(source)
        verified = verify(source, folder, total) if job.verify else None
        notes = (*source.notes, *_tokenizer_note(job, source, folder), *_logits_note(job, source, folder, engine))
    return Summary(
        target=job.target,
        tensors=len(written),
        files=len({one.file for one in written}),
        bytes=total,
        seconds=time.monotonic() - start,
        peak_bytes=peak_memory(),
        verified=verified,
        notes=(*notes, *_form_note(form)),
    )


def _adapter_alone(job: Conversion, start: float) -> Summary:
    """As `convert`, with `--adapter-only`; `start` is the time at which it began."""
    origin, adapter = open_adapter(job.source, job.dtype)
    total = size_of(adapter)
    _check_space(job.target, total)
    with new_folder(job.target, job.overwrite) as folder, Progress("writing", total) as progress:
        write_alone(origin, adapter, job.base, folder, progress.add)
        form = read_form(origin)
        # As in a merge: another base may be the same one in another place.
        form = replace(form, gqa_layout=base_layout(form, job.gqa_layout, job.base))
        write_form(folder, form)
    tensors, seconds = len(tensors_of(adapter)), time.monotonic() - start
    return Summary(job.target, tensors, 1, total, seconds, peak_memory(), verified=None, notes=_form_note(form))


def _form_note(form: TrainedForm) -> tuple[str, ...]:
    """A sentence about the prompt template that goes on with the weights; nothing where none is recorded."""
    if form.template is None:
        return ()
    return (f"megatron_patch.json there says that the prompts of the fine-tuning had the form {form.template}.",)


def _tokenizer_note(job: Conversion, source: Source, folder: Path) -> tuple[str, ...]:
    """Adds tokenizer.json to a Hugging Face folder; a sentence where none could be made."""
    note = add_tokenizer_json(folder, rows=source.config.vocab_size + source.extra_vocab_size) if job.to_hf else None
    return () if note is None else (note,)


def _logits_note(job: Conversion, source: Source, folder: Path, engine: str | None) -> tuple[str, ...]:
    """What `--verify-logits` has found, as a sentence; nothing where it was not asked for."""
    if not job.verify_logits:
        return ()
    from megatron_patch.conversion.verify_logits import verify_logits

    rounded = _opened(job).dtype != source.dtype
    with Waiting("comparing logits"):
        agreed = verify_logits(
            source, job.source, folder, to_hf=job.to_hf, rounded=rounded, engine=engine, gqa_layout=job.gqa_layout or PER_KV_HEAD
        )  # fmt: skip
    return (agreed,)


def _opened(job: Conversion) -> Source:
    """The source of `job` as it is; an adapter merged into its base, in the dtype that the target is to have."""
    fallback, adapter = LLAMA_SIZES.get(job.model_name), find_adapter(job.source)
    if adapter is None:
        return open_source(job.source, fallback, job.gqa_layout or PER_KV_HEAD)
    layout = base_layout(read_form(adapter), job.gqa_layout, job.base)
    return with_adapter(open_source(base_of(adapter, job.base), fallback, layout), adapter, job.dtype)


def prepared(job: Conversion) -> Source:
    """The source of `job` with the rows and the dtype that the target is to have, every shape checked.

    Raises:
        UserError: it cannot be read, is of the wrong kind for `job`, or contradicts an argument.
    """
    source = _opened(job)
    if source.kind == "meta" and job.verify_logits:
        raise UserError(f"--verify-logits needs a folder that transformers loads; {job.source} holds Meta's files: leave it out.")
    if source.adapter is not None and job.verify_logits:
        raise UserError(f"--verify-logits compares whole models, and {job.source} holds an adapter: leave it out.")
    if source.adapter is None and (source.kind in ("hf", "meta")) == job.to_hf:
        wanted = "a Megatron checkpoint" if job.to_hf else "a Hugging Face folder"
        raise UserError(f"{job.source} is not {wanted}, which mg2hf = {str(job.to_hf).lower()} converts from.")
    refuse_placeholders(source.root / name for name in COMPANIONS)  # before a byte is written
    for name, got, problem in model_findings(job, source.config):
        raise UserError(f"{name}: got '{got}'; {problem}")
    if job.to_hf:
        source = with_vocabulary_rows(_with_recorded_rows(source, job.extra_vocab_size))
    elif source.extra_vocab_size:  # an adapter's, or those of the model under it
        source = _with_recorded_rows(source, job.extra_vocab_size)
    else:
        source = with_extra_vocabulary(source, job.extra_vocab_size)
    if job.dtype is not None:
        source = with_dtype(source, job.dtype)
    check_shapes(source)
    return source


def _with_recorded_rows(source: Source, extra: int) -> Source:
    """`source` with the extra rows that it records, or with `extra`, EXTRA_VOCAB_SIZE, where it records none.

    Raises:
        UserError: EXTRA_VOCAB_SIZE contradicts what is recorded.
    """
    recorded = source.extra_vocab_size
    if recorded == extra:
        return source
    if source.kind == "megatron_2023" and recorded == 0:
        rows = source.megatron(Place(BY_KEY[EMBEDDING], None)).shape[0]
        where = f"EXTRA_VOCAB_SIZE is {extra}, and {source.root}"
        return replace(source, extra_vocab_size=claimed_rows(0, rows, source.config.vocab_size, extra, where))
    if extra == 0:
        note = f"EXTRA_VOCAB_SIZE 0: the {recorded} rows added when the checkpoint was made are kept."
        return replace(source, notes=(*source.notes, note))
    raise UserError(
        f"EXTRA_VOCAB_SIZE is {extra}, and the checkpoint was made with {recorded}; write {recorded}, or 0, which keeps them."
    )


def write_release(folder: Path, source: Source, job: Conversion, progress: Progress) -> list[Written]:
    """Make the empty `folder` the root of a native checkpoint with `source` as its release.

    Returns:
        Where each chunk lies.

    Raises:
        UserError: a tensor cannot be read, or float16 cannot hold its values.
    """
    release = iteration_folder(folder, None)
    release.mkdir()
    written = write_native(release, source, job.max_file_bytes, progress.add)
    description = ModelDescription(
        model=source.config,
        extra_vocab_size=source.extra_vocab_size,
        dtype=source.dtype,
        tensor_model_parallel_size=job.tensor_model_parallel_size,
        pipeline_model_parallel_size=job.pipeline_model_parallel_size,
    )
    write_model_description(release, description)
    copy_beside(source, folder, COMPANIONS[:2])
    if source.kind == "meta":
        _complete_metas(folder, source)
    flush(release)
    write_tracker(folder, RELEASE)
    return written


def _complete_metas(folder: Path, source: Source) -> None:
    """Add the tokenizer, which Meta puts one folder up, and config.json, which Meta does not write."""
    for path in meta_companions(source.root):
        copy_companions(path.parent, folder, (path.name,))
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", to_hf_config(source.config, dtype=source.dtype))


def _check_space(target: Path, total: int) -> None:
    """Raise before a byte is written if the disk cannot hold the `total` bytes of the target's tensors."""
    folder = target.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < total + _MARGIN:
        raise UserError(
            f"{target} needs {total / 1e9:.2f} GB, and the disk of {folder} has {free / 1e9:.2f} GB free; make room there."
        )
