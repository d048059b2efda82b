"""What the files of a 2023 checkpoint say about its vocabulary, without torch and without a tensor's bytes.

The launcher needs the number of rows before any process starts. `torch_archive` reads a file into plain values; nothing
that it names is looked up or called. The processes read the same file later and compare.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron_patch.formats import dtypes
from megatron_patch.formats.archive_zip import Window
from megatron_patch.formats.names_2023 import PART, layer_and_name
from megatron_patch.formats.rank_folders import rank_files
from megatron_patch.formats.torch_archive import UNREADABLE, Archive, StoredTensor, entries, read_archive, tensor_inside
from megatron_patch.formats.unpickling import Built, Name
from megatron_patch.formats.vocabulary_2023 import VocabularyRows

# Bytes of an element, by the name of its storage's class, of what a weight may be.
_BYTES = {one.storage: one.itemsize for one in dtypes.ALL if one.name.startswith(("float", "bfloat"))}
_NAMESPACES = {Name("argparse", "Namespace"), Name("types", "SimpleNamespace")}
_UNREADABLE = (OSError, pickle.UnpicklingError, *UNREADABLE)


def read_vocabulary_rows(folder: Path) -> VocabularyRows | None:
    """What the first stage's files below `folder` say about the vocabulary.

    None if they cannot be read. The processes, which read them too, then say why.

    Raises:
        UserError: a rank's folder or file is missing.
    """
    rows, arguments, is_wider = 0, None, False
    files = rank_files(folder)[0]
    for path in files:
        archive = _archive(path)
        found = None if archive is None else _embedding_and_norm(archive)
        if archive is None or found is None:
            return None
        embedding, norm = found
        rows += embedding.shape[0] if embedding.shape else 0
        arguments = arguments or _namespace(_entry(archive.value, "args"))
        is_wider = _BYTES.get(embedding.storage, 0) > _BYTES.get(norm.storage, 0)
    return VocabularyRows(rows, len(files), is_wider, arguments)


def _archive(path: Path) -> Archive | None:
    """What a torch.save file describes; None if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return read_archive(Window(stream, 0, path.stat().st_size))
    except _UNREADABLE:
        return None


def _embedding_and_norm(archive: Archive) -> tuple[StoredTensor, StoredTensor] | None:
    """The embedding, and a norm to compare its dtype with, in the structure of any of the original's programs.

    None if one of them is not there.
    """
    model = _entry(archive.value, "model")
    if _entry(model, "language_model") is not None:
        encoder = _entry(model, "language_model", "encoder") or _entry(model, "language_model", "transformer")
        embedding = _entry(model, "language_model", "embedding", "word_embeddings", "weight")
        prefix = ""
    else:
        encoder, embedding, prefix = model, _entry(model, "embedding.word_embeddings.weight"), "decoder."
    inner = entries(encoder)
    names = [name for name in inner if isinstance(name, str)]
    norms = (inner[name] for name in names if PART.get(layer_and_name(name.removeprefix(prefix))[1]) == "attention_norm")
    try:
        return tensor_inside(archive, embedding), tensor_inside(archive, next(norms, None))
    except pickle.UnpicklingError:
        return None


def _namespace(value: Any) -> SimpleNamespace | None:
    """The recorded arguments of a training run, as attributes; None if `value` is something else."""
    if type(value) is not Built or value.callee not in _NAMESPACES or type(value.state) is not dict:
        return None
    return SimpleNamespace(**{name: one for name, one in value.state.items() if isinstance(name, str)})


def _entry(value: Any, *names: str) -> Any:
    """What stands in dictionaries inside each other under `names`; None if one of them is not there."""
    for name in names:
        value = entries(value).get(name)
    return value
