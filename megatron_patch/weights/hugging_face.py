"""A Hugging Face LLaMA folder as a source: safetensors or pytorch_model*.bin, one file or shards with an index."""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import HFWeights, find_weights
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.formats.safetensors_files import read_safetensors
from megatron_patch.formats.torch_files import read_torch_file
from megatron_patch.llama.model_config import LlamaConfig, read_hf_config
from megatron_patch.weights.hugging_face_buffers import (
    check_frequencies,
    is_bias,
    is_frequencies,
    is_harmless,
    zero_biases,
)
from megatron_patch.weights.table import Source, hf_shapes, hf_source, listed, name_findings, natural, places


def open_hf(folder: Path) -> Source:
    """Find every tensor of a Hugging Face folder; the tensors' bytes are not read.

    Raises:
        UserError: config.json, a shard or a tensor is missing, damaged, unknown, or has another shape. The message
            names it.
    """
    config = _config(folder)
    weights = find_weights(folder)
    tensors, frequencies = _tensors(weights)
    notes = (*weights.notes, *check_frequencies(config, frequencies))
    zero, more = zero_biases({name: tensor for name, tensor in tensors.items() if is_bias(name)})
    tensors = {name: tensor for name, tensor in tensors.items() if name not in zero}
    _check_names(config, weights.source, tensors)
    _check_shapes(config, tensors)
    return hf_source("hf", folder, config, tensors, (*notes, *more))


def _config(folder: Path) -> LlamaConfig:
    if not (folder / "config.json").is_file():
        find_weights(folder)  # an adapter's or another program's folder has none: that raises, and calls it by its name
    return read_hf_config(folder)


def _tensors(weights: HFWeights) -> tuple[dict[str, LazyTensor], dict[str, torch.Tensor]]:
    """(tensors that may be learnt, by name; inv_freq [D/2] by name, in memory).

    Raises:
        UserError: two files hold one tensor, or a file lacks one that the index places there.
    """
    tensors: dict[str, LazyTensor] = {}
    frequencies: dict[str, torch.Tensor] = {}
    for path in sorted(weights.files, key=lambda path: natural(path.name)):
        found, buffers = _read(path)
        twice = sorted((name for name in found if name in tensors and weights.where is None), key=natural)
        if twice:
            raise UserError(f"{path} holds {listed(twice)}, and so does {_path(tensors[twice[0]])}; copy the folder again.")
        where = weights.where or {}
        names = {*found, *buffers}
        absent = sorted((name for name, file in where.items() if file == path.name and name not in names), key=natural)
        if absent:
            raise UserError(f"{path} lacks {listed(absent)}, which {weights.source.name} places there; copy the folder again.")
        tensors |= found
        frequencies |= {name: tensor for name, tensor in buffers.items() if tensor is not None}
    return tensors, frequencies


def _read(path: Path) -> tuple[dict[str, LazyTensor], dict[str, torch.Tensor | None]]:
    """One file's (tensors that may be learnt; buffers: inv_freq itself, None for one whose values do not matter)."""
    refuse_placeholder(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content: Any = read_torch_file(path, skipped=partial(_is_buffer, path))
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds more than tensors by name; it is no {path.name} of a Hugging Face model.")
    tensors: dict[str, LazyTensor] = {}
    buffers: dict[str, torch.Tensor | None] = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor) and is_frequencies(name):
            buffers[name] = value
        elif isinstance(value, torch.Tensor) and is_harmless(name, value.dim()):
            buffers[name] = None
        elif isinstance(value, (FileTensor, Strided)):
            tensors[name] = value
        else:
            what = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
            raise UserError(
                f"{path} holds more than 16-bit and 32-bit floating-point tensors by name ({name} is {what}); it is no "
                f"{path.name} of a Hugging Face model: save the model with save_pretrained(FOLDER)."
            )
    return tensors, buffers


def _read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, torch.Tensor | None]]:
    tensors, skipped = read_safetensors(path, skipped=partial(_is_buffer, path))
    buffers: dict[str, torch.Tensor | None] = dict.fromkeys(skipped)
    wanted = [name for name in skipped if is_frequencies(name)]
    if not wanted:
        return dict(tensors), buffers
    try:
        with safe_open(path, framework="pt") as library:  # reads any dtype, and whole tensors: these are small
            buffers |= {name: library.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again.") from None
    return dict(tensors), buffers


# Endings of GPTQ's, AWQ's and bitsandbytes' tensors.
_QUANTIZED = (".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", ".quant_map", ".nested_absmax", ".weight_scale")


def _is_buffer(path: Path, name: str, axes: int) -> bool:
    """Whether `name`, of `axes` axes, is no weight.

    Raises:
        UserError: it belongs to a quantized model. Said here, since otherwise its other tensors would be said to have a
            wrong dtype, which helps nobody.
    """
    if name.endswith(_QUANTIZED):
        raise UserError(
            f"{path} holds a quantized model ({name} is there), from which no training goes on: take the folder that it was "
            "made from, with float16 or bfloat16 weights."
        )
    return is_frequencies(name) or is_harmless(name, axes)


def _path(tensor: LazyTensor) -> Path:
    """The file of a tensor as `_read` gives it, a `FileTensor` or a `Strided`."""
    return tensor.path if isinstance(tensor, FileTensor) else tensor.storage.path  # type: ignore[attr-defined]


# What other programs put before every name, or leave out.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "base_model.model.", "_fsdp_wrapped_module.", "llama.", "language_model.")


def _check_names(config: LlamaConfig, weights: Path, tensors: dict[str, LazyTensor]) -> None:
    """Raise for a missing or unknown tensor, with what most likely happened.

    That is a wrapper's prefix, tied weights, or a part of a model.
    """
    missing, unknown = name_findings(config, tensors)
    if missing:
        hint = "config.json asks for them: copy the folder again"
        for wrapper in _WRAPPERS:
            if all(wrapper + name in tensors for name in missing):
                hint = f"their names there begin with {wrapper!r}: save the model again without that wrapper"
            elif all(name.removeprefix(wrapper) in tensors for name in missing if name.startswith("model.")):
                hint = f"their names there lack {wrapper!r}: save the whole LlamaForCausalLM"
        if missing == ["lm_head.weight"]:
            hint = "it is the output layer, which must be a matrix of its own: save the whole LlamaForCausalLM, untied"
        raise UserError(f"{weights} lacks {listed(missing)}; {hint}.")
    if unknown:
        where = ", ".join(sorted({str(_path(tensors[name])) for name in unknown[:6]}))
        raise UserError(f"{where} holds tensors that a LLaMA does not have: {listed(unknown)}; they would be lost.")


def _check_shapes(config: LlamaConfig, tensors: dict[str, LazyTensor]) -> None:
    """Raise for the first tensor whose shape is not what config.json makes it."""
    for place in places(config):
        for name, shape in zip(place.hf_names, hf_shapes(config, place)):
            got = tuple(tensors[name].shape)
            if got != shape:
                hint = " (as many elements in another order)" if prod(got) == prod(shape) else ""
                raise UserError(
                    f"{_path(tensors[name])}: tensor {name} has shape {list(got)}{hint}, and config.json makes it {list(shape)}."
                )
