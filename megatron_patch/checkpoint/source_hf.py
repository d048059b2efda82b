"""A Hugging Face LLaMA folder: safetensors or pytorch_model*.bin, one file or shards with an index."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from megatron_patch.checkpoint.lazy import FileTensor, LazyTensor, Strided
from megatron_patch.checkpoint.mapping import hf_shapes, listed, name_findings, natural, places
from megatron_patch.checkpoint.safetensors_files import read_safetensors
from megatron_patch.checkpoint.source import TORCH_DTYPES, Source
from megatron_patch.checkpoint.torch_files import read_torch_file
from megatron_patch.model_config import LlamaConfig, read_hf_config

# In the order of preference; an index first, since a folder with shards may have other files beside it.
_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


def weights_file(folder: Path) -> Path | None:
    """The index or the single file with a folder's weights; None where it has neither."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def is_hf_folder(path: Path) -> bool:
    return (path / "config.json").is_file() and weights_file(path) is not None


def open_hf(folder: Path) -> Source:
    """Find every tensor of a Hugging Face folder.

    Raises:
        ValueError: config.json, a shard or a tensor is missing, damaged, unknown, or has another shape; named each time.
    """
    config = read_hf_config(folder)
    weights = weights_file(folder)
    if weights is None:
        raise ValueError(f"{folder} holds no weights; one of {', '.join(_FILES)} must be there.")
    tensors = _tensors(weights)
    missing, unknown = name_findings(config, tensors)
    if missing:
        raise ValueError(f"{weights} lacks {listed(missing)}; config.json asks for them: copy the folder again.")
    if unknown:
        where = ", ".join(sorted({str(_path(tensors[name])) for name in unknown[:6]}))
        raise ValueError(f"{where} holds tensors that a LLaMA does not have: {listed(unknown)}; they would be lost.")
    _check_shapes(config, tensors)
    dtypes = Counter(tensor.dtype for name, tensor in tensors.items() if not name.endswith("inv_freq"))
    most = dtypes.most_common(1)[0][0]
    return Source(
        kind="hf",
        root=folder,
        config=config,
        extra_vocab_size=0,
        dtype=next(name for name, dtype in TORCH_DTYPES.items() if dtype == most),
        lookup=lambda place: tuple(tensors[name] for name in place.hf_names),
        is_hf=True,
    )


def _tensors(weights: Path) -> dict[str, LazyTensor]:
    """Every tensor of `weights`, an index or a single file."""
    if not weights.name.endswith(".index.json"):
        return _read(weights)
    where = _weight_map(weights)
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(where.values()), key=natural):
        path = weights.parent / shard
        if Path(shard).name != shard:
            raise ValueError(f"{weights} names the shard {shard!r}, which is no plain file name; it was refused.")
        if not path.is_file():
            raise ValueError(f"{path} is missing, and {weights.name} names it; copy the folder again.")
        found = _read(path)
        absent = sorted((name for name, file in where.items() if file == shard and name not in found), key=natural)
        if absent:
            raise ValueError(f"{path} lacks {listed(absent)}, which {weights.name} places there; copy the folder again.")
        tensors |= found
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        return {str(name): str(file) for name, file in content["weight_map"].items()}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r}); copy the folder again.") from None


def _read(path: Path) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return dict(read_safetensors(path))
    content: Any = read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(value, (FileTensor, Strided)) for value in content.values()):
        raise ValueError(f"{path} holds more than tensors by name; it is no {path.name} of a Hugging Face model.")
    return content


def _path(tensor: LazyTensor) -> Path:
    return tensor.path if isinstance(tensor, FileTensor) else tensor.storage.path  # type: ignore[attr-defined]


def _check_shapes(config: LlamaConfig, tensors: dict[str, LazyTensor]) -> None:
    for place in places(config):
        for name, shape in zip(place.hf_names, hf_shapes(config, place)):
            got = tuple(tensors[name].shape)
            if got != shape:
                hint = " (as many elements in another order)" if prod(got) == prod(shape) else ""
                raise ValueError(
                    f"{_path(tensors[name])}: tensor {name} has shape {list(got)}{hint}, and config.json makes it {list(shape)}."
                )
