"""What is in a checkpoint, as lines of text. Only its small files are read, and nothing in them can run code."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.folders.layout import CheckpointLocation, read_model_description, resolve_checkpoint
from megatron_patch.folders.tracker import BEST_TRACKER, read_tracker
from megatron_patch.formats.distcp_metadata import kept_elsewhere, read_backends, read_dcp_metadata
from megatron_patch.formats.json_files import json_object, one_line
from megatron_patch.formats.nodes_file import lacking_sentence
from megatron_patch.language.sentences import fill, in_language


def describe_checkpoint(path: Path) -> list[str]:
    """Lines about a checkpoint root or one iteration's folder: place, versions, model, tensors, size in MB.

    Raises:
        UserError: there is no checkpoint, or a file of it is damaged.
    """
    location = resolve_checkpoint(path)
    out = [
        fill(
            "checkpoint {}, {} ({})",
            *(location.root, location.folder.name, fill("the 2023 layout") if location.kind == "megatron_2023" else "torch_dist"),
        ),
        fill("states: {}", ", ".join(sorted(p.name for p in location.root.iterdir() if p.is_dir() and _is_state(p.name)))),
    ]
    if (best := read_tracker(location.root, BEST_TRACKER)) is not None:
        out.append(fill("the lowest validation loss: iteration {}", best))
    out += _model_lines(location)
    out += _native_lines(location.folder) if location.kind == "native" else _legacy_lines(location.folder)
    size = sum(f.stat().st_size for f in location.folder.rglob("*") if f.is_file())
    return [*out, fill("{} MB in {}", f"{size / 1e6:.1f}", location.folder)]


def _is_state(name: str) -> bool:
    """Whether a folder of this name is a state of the model: `release` or an iteration."""
    return name == "release" or name.startswith("iter_")


def _model_lines(location: CheckpointLocation) -> list[str]:
    """What model.json, config.json and the tokenizer's files say."""
    out = []
    description = read_model_description(location)
    if description:
        m = description.model
        out.append(
            fill(
                "model: {} layers, hidden {}, ffn {}, {} heads, {} KV groups, vocabulary {} + {}, {}; made for TP {}, PP {}",
                *(m.num_layers, m.hidden_size, m.ffn_hidden_size, m.num_attention_heads, m.num_query_groups, m.vocab_size),
                *(description.extra_vocab_size, description.dtype),
                *(description.tensor_model_parallel_size, description.pipeline_model_parallel_size),
            )
        )
        versions = json_object(location.folder / "model.json")
        own, core = (one_line(versions.get(name)) for name in ("megatron_patch", "megatron_core"))
        out.append(fill("written by megatron_patch {}, megatron-core {}", own, core))
    config = location.root / "config.json"
    if config.is_file():
        hf = json_object(config)
        wanted = (
            "model_type",
            "num_hidden_layers",
            "hidden_size",
            "vocab_size",
            "torch_dtype",
            "transformers_version",
        )
        out.append("config.json: " + ", ".join(f"{k} {one_line(hf[k])}" for k in wanted if k in hf))
    names = [n for n in ("tokenizer.model", "tokenizer.json") if (location.root / n).is_file()]
    found = fill("tokenizer: {}", in_language(" and ".join(names))) if names else fill("tokenizer: none in this folder")
    return [*out, found]


def _native_lines(folder: Path) -> list[str]:
    """What torch_dist's metadata say: versions, numbers of tensors, dtypes, each tensor of the model."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    versions = read_backends(folder)
    tensors: dict[str, TensorStorageMetadata] = {}
    others = 0
    for name, entry in read_dcp_metadata(folder, kept_elsewhere(folder)).state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            tensors[name] = entry
        else:
            others += 1
    model = {n: t for n, t in tensors.items() if not n.startswith("optimizer")}
    missing = lacking_sentence(folder)
    out = [in_language(missing)] if missing else []
    out += [fill("format: {}", one_line(", ".join(f"{k} {v}" for k, v in versions.items())))]
    out.append(
        fill(
            "{} model tensors, {} numbers; {} optimizer tensors; {} other objects",
            *(len(model), sum(math.prod(t.size) for t in model.values()), len(tensors) - len(model), others),
        )
    )
    kinds = Counter(str(t.properties.dtype) for t in tensors.values())
    out.append(fill("types: {}", ", ".join(f"{kind} ({n})" for kind, n in kinds.items())))
    row = "  {}  {}  {}  {} chunks"
    return out + [fill(row, n, tuple(t.size), t.properties.dtype, len(t.chunks)) for n, t in sorted(model.items())]


def _legacy_lines(folder: Path) -> list[str]:
    """What the first rank's file of a 2023 checkpoint says: its arguments, and the tensors of its first layer."""
    from megatron_patch.formats.torch_files import read_torch_file

    files = sorted(folder.glob("mp_rank_*/model*rng.pt"))
    content = read_torch_file(files[0], only="model")
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"{files[0]} is no checkpoint of a language model of 2023: model is not in it.")
    recorded = getattr(content.get("args"), "__dict__", {})  # of a damaged file they may be a number
    args = {name: value for name, value in recorded.items() if isinstance(name, str) and isinstance(value, (int, str))}
    out = [fill("{} files, checkpoint version {}", len(files), content.get("checkpoint_version"))]
    out.append(fill("recorded arguments: {}", ", ".join(f"{one_line(name, 60)} {one_line(args[name])}" for name in sorted(args))))
    out.append(f"{files[0].parent.name}:")
    return out + [
        f"  {n}  {tuple(t.shape)}  {t.dtype}" for n, t in _flat(content["model"]) if "layers." not in n or "layers.0." in n
    ]


def _flat(tree: Any, name: str = "") -> list[tuple[str, Any]]:
    """(name, tensor) of all tensors in nested dictionaries; a name is the keys that lead there, joined by dots."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{name}.{key}" if name else str(key))]
    return [(name, tree)] if hasattr(tree, "shape") else []
