"""What the files of a 2023 checkpoint say about its vocabulary, without torch and without a tensor's bytes.

The launcher needs the number of rows before any process starts. `torch.save` writes a zip archive, whose structure is a
pickle of protocol 2, `NAME/data.pkl`. Here that pickle becomes plain values: dictionaries, numbers, shapes. Nothing
that it names is looked up or called. The processes load the file through torch later and compare.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megatron_patch.formats.names_2023 import PART, layer_and_name
from megatron_patch.formats.rank_folders import rank_files
from megatron_patch.formats.vocabulary_2023 import VocabularyRows

_LARGEST = 64 << 20  # bytes of a data.pkl; those of LLaMA-2 70B have less than one MB
_BYTES = {"HalfStorage": 2, "BFloat16Storage": 2, "FloatStorage": 4, "DoubleStorage": 8}
_NAMESPACES = {("argparse", "Namespace"), ("types", "SimpleNamespace")}
_TENSORS = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}
# Steps of pickle that protocol 2 does not have, or that torch.save never writes.
_REFUSED = (
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.INST,
    pickle.OBJ,
    pickle.NEWOBJ_EX,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
)

# What the zip and the unpickler raise for bytes that are no file of torch.save; the last five, for a broken pickle.
_UNREADABLE = (
    OSError, EOFError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile, NotImplementedError,
    ValueError, KeyError, TypeError, AttributeError, IndexError,
)  # fmt: skip


@dataclass(frozen=True)
class _Global:
    """A class or function by its name. It is never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class _Tensor:
    """A tensor: its number of rows and the bytes of one element, 0 for a dtype that no weight has."""

    rows: int
    item_bytes: int


@dataclass
class _Namespace:
    """The recorded arguments of a training run, which are read as attributes."""

    values: dict[str, Any] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


class _Opaque:
    """An object of any other class. It takes what the pickle gives it and keeps nothing."""

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    def extend(self, values: object) -> None:
        pass


class _StructureReader(pickle._Unpickler):
    """Python's own unpickler, with calls that call nothing.

    It is the one written in Python: its memo is a dictionary, where C's is an array as long as the largest number in
    it.
    """

    stack: list[Any]  # `load` sets it; typeshed knows of no `stack`
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED
    }

    def find_class(self, module: str, name: str) -> _Global:
        """The name itself, where pickle would import it."""
        return _Global(module, name)

    def persistent_load(self, reference: Any) -> Any:
        """A storage, ('storage', class, key, device, number of elements), becomes the bytes of one element."""
        return _BYTES.get(reference[1].name, 0)

    def _call(self) -> None:
        """REDUCE and NEWOBJ: what `_made` gives, where pickle would call."""
        arguments = self.stack.pop()
        called = self.stack.pop()
        self.stack.append(_made(called, arguments))

    def _build(self) -> None:
        """BUILD: only a namespace takes its state."""
        state = self.stack.pop()
        made = self.stack[-1]
        if isinstance(made, _Namespace) and isinstance(state, dict):
            made.values.update(state)

    dispatch[pickle.REDUCE[0]] = _call
    dispatch[pickle.NEWOBJ[0]] = _call
    dispatch[pickle.BUILD[0]] = _build


def _made(called: Any, arguments: Any) -> Any:
    """The plain value that stands for `called(*arguments)`."""
    name = (called.module, called.name)
    if name in _NAMESPACES:
        return _Namespace()
    if name == ("collections", "OrderedDict"):
        return {}
    if name in _TENSORS:  # (storage, offset, size, stride, …)
        return _Tensor(arguments[2][0] if arguments[2] else 0, arguments[0])
    if name == ("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    if name == ("torch._tensor", "_rebuild_from_type_v2"):  # with attributes: (function, type, arguments, attributes)
        return _made(arguments[0], arguments[2])
    return _Opaque()


def read_vocabulary_rows(folder: Path) -> VocabularyRows | None:
    """What the first stage's files below `folder` say about the vocabulary.

    None if they cannot be read. The processes, which read them with torch, then say why.

    Raises:
        UserError: a rank's folder or file is missing.
    """
    rows, arguments, is_wider = 0, None, False
    files = rank_files(folder)[0]
    for path in files:
        content = _structure(path)
        found = _embedding_and_norm(content)
        if found is None:
            return None
        embedding, norm = found
        rows += embedding.rows
        arguments = arguments or content.get("args")
        is_wider = embedding.item_bytes > norm.item_bytes
    return VocabularyRows(rows, len(files), is_wider, arguments)


def _structure(path: Path) -> Any:
    """The plain value that data.pkl of a torch.save file describes; None if there is none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
            longest = min(_LARGEST, path.stat().st_size)
            if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size > longest:
                return None
            return _StructureReader(io.BytesIO(archive.read(entry))).load()
    except _UNREADABLE:
        return None


def _embedding_and_norm(content: Any) -> tuple[_Tensor, _Tensor] | None:
    """The embedding, and a norm to compare its dtype with, in the structure of any of the original's programs.

    None if one of them is not there.
    """
    model = _entry(content, "model")
    if _entry(model, "language_model") is not None:
        encoder = _entry(model, "language_model", "encoder") or _entry(model, "language_model", "transformer")
        embedding = _entry(model, "language_model", "embedding", "word_embeddings", "weight")
        prefix = ""
    else:
        encoder, embedding, prefix = model, _entry(model, "embedding.word_embeddings.weight"), "decoder."
    names = [name for name in encoder if isinstance(name, str)] if isinstance(encoder, dict) else []
    norms = (encoder[name] for name in names if PART.get(layer_and_name(name.removeprefix(prefix))[1]) == "attention_norm")
    norm = next(norms, None)
    return (embedding, norm) if isinstance(embedding, _Tensor) and isinstance(norm, _Tensor) else None


def _entry(value: Any, *names: str) -> Any:
    """What stands in dictionaries inside each other under `names`; None if one of them is not there."""
    for name in names:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value
