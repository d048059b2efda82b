"""A LLaMA as Meta publishes it, as a source: consolidated.00.pth, …, params.json, and tokenizer.model.

Every consolidated file is the shard of one model-parallel rank of fairscale. `llama/model.py` of meta-llama/llama cuts
projections into heads and into the feed-forward layer by rows, projections out of them by columns, the embedding by
columns (by rows from LLaMA-3 on) and the output layer by rows. Norms are whole in every file.

Meta's model rotates neighbouring elements of a head. Hugging Face's and Megatron's rotate element i with element
i + D/2. So the rows of q and k go into another order, by the formula of transformers' convert_llama_weights_to_hf.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import PARAMS
from megatron_patch.formats.json_files import json_object
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided, beside, stack
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.formats.torch_files import read_torch_file
from megatron_patch.llama.model_config import LlamaConfig, read_hf_config
from megatron_patch.llama.rope_scaling import DEFAULT_THETA
from megatron_patch.weights.hugging_face_buffers import check_frequencies
from megatron_patch.weights.table import Source, hf_shapes, hf_source, listed, natural, places

ROWS, COLUMNS, WHOLE = "rows", "columns", "whole"
# (Hugging Face's name, Meta's name, how ranks share it); `{}` is the layer
TABLE = (
    ("model.embed_tokens.weight", "tok_embeddings.weight", COLUMNS),
    ("model.layers.{}.self_attn.q_proj.weight", "layers.{}.attention.wq.weight", ROWS),
    ("model.layers.{}.self_attn.k_proj.weight", "layers.{}.attention.wk.weight", ROWS),
    ("model.layers.{}.self_attn.v_proj.weight", "layers.{}.attention.wv.weight", ROWS),
    ("model.layers.{}.self_attn.o_proj.weight", "layers.{}.attention.wo.weight", COLUMNS),
    ("model.layers.{}.mlp.gate_proj.weight", "layers.{}.feed_forward.w1.weight", ROWS),
    ("model.layers.{}.mlp.up_proj.weight", "layers.{}.feed_forward.w3.weight", ROWS),
    ("model.layers.{}.mlp.down_proj.weight", "layers.{}.feed_forward.w2.weight", COLUMNS),
    ("model.layers.{}.input_layernorm.weight", "layers.{}.attention_norm.weight", WHOLE),
    ("model.layers.{}.post_attention_layernorm.weight", "layers.{}.ffn_norm.weight", WHOLE),
    ("model.norm.weight", "norm.weight", WHOLE),
    ("lm_head.weight", "output.weight", ROWS),
)
_TO_META = {hf: (meta, shared) for hf, meta, shared in TABLE}
_ROTATED = ("q_proj.weight", "k_proj.weight")
_FILE = re.compile(r"consolidated\.([0-9]{2})\.pth")
# From LLaMA-2 on once, in LLaMA-1 in every layer.
_FREQUENCIES = re.compile(r"rope\.freqs|layers\.[0-9]+\.attention\.inner_attention\.rope\.freqs")
_REFUSED = ("moe", "vision_chunk_size", "quantization_args", "lora_args")


@dataclass(frozen=True)
class HalvesOfHeads:
    """`base` [N·D, H], q or k in Meta's order, in Hugging Face's: of each head first its even rows, then its odd ones.

    The formula of transformers' converter is view(N, D/2, 2, H).transpose(1, 2).
    """

    base: LazyTensor
    head_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `base`: [N·D, H]."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """That of `base`."""
        return self.base.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Rows `first` to `last` into `out` [last − first, H]. Heads are read whole, since their rows are mixed."""
        size = self.head_size
        start, end = first // size * size, -(-last // size) * size
        heads = torch.empty(end - start, self.shape[1], dtype=self.dtype)
        self.base.read(start, end, heads)
        halves = heads.view(-1, size // 2, 2, self.shape[1]).transpose(1, 2).reshape(end - start, self.shape[1])
        out.copy_(halves[first - start : last - start])


def open_meta(folder: Path, fallback: LlamaConfig | None = None) -> Source:
    """Find every tensor of Meta's files; the tensors' bytes are not read.

    Args:
        folder: where consolidated.00.pth and params.json lie.
        fallback: the size that the user named. Its position limit is taken, which Meta's files do not tell.

    Raises:
        UserError: params.json, a file or a tensor is missing, damaged, unknown, or has another shape. The message names
            it.
    """
    params = _params(folder / PARAMS)
    ranks = [_rank(path) for path in _files(folder)]
    config, notes = _config(folder, params, ranks, fallback)
    _check_names(folder, config, ranks)
    tensors = {name: _tensor(folder, config, ranks, name) for place in places(config) for name in place.hf_names}
    _check_shapes(folder, config, tensors)
    frequencies = {name: tensor for name, tensor in ranks[0].items() if _FREQUENCIES.fullmatch(name)}
    notes += check_frequencies(config, frequencies)
    return hf_source("meta", folder, config, tensors, notes)


def _params(path: Path) -> Mapping[str, Any]:
    """params.json; what belongs to another kind of model than a LLaMA or LLaMA-2 is refused."""
    if not path.is_file():
        raise UserError(f"{path} is missing beside Meta's consolidated files; copy the folder again.")
    refuse_placeholder(path)
    params = json_object(path)
    refused = [key for key in _REFUSED if params.get(key)]
    if refused:
        raise UserError(f"{path} has {', '.join(refused)}, which a LLaMA or LLaMA-2 does not: this model would be misread.")
    if params.get("use_scaled_rope"):
        raise UserError(f"{path} has use_scaled_rope: llama3's rotary scaling is not supported; supported are LLaMA and LLaMA-2.")
    return params


def _whole(params: Mapping[str, Any], key: str, folder: Path, default: int | None = None) -> int:
    value = params.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise UserError(f"{folder / PARAMS}: {key} is {value!r}; it must be a whole number of at least 1.")
    return value


def _positive(params: Mapping[str, Any], key: str, folder: Path, default: float) -> float:
    value = params.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:  # a NaN is not
        raise UserError(f"{folder / PARAMS}: {key} is {value!r}; it must be a number above 0.")
    return float(value)


def _files(folder: Path) -> list[Path]:
    """consolidated.00.pth, .01.pth … without a gap.

    Whether the last ones are missing, `_config` sees by the tensors' shapes.
    """
    numbers = sorted(int(match[1]) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)))
    missing = [number for number in range(max(numbers, default=0) + 1) if number not in numbers]
    if missing:
        names = listed([f"consolidated.{number:02d}.pth" for number in missing])
        raise UserError(f"{folder}: {names} {'is' if len(missing) == 1 else 'are'} missing; copy the folder again.")
    return [folder / f"consolidated.{number:02d}.pth" for number in numbers]


def _rank(path: Path) -> dict[str, Any]:
    """One file's tensors by Meta's names: frequencies in memory, the others as places in the file."""
    refuse_placeholder(path)
    content = read_torch_file(path, skipped=lambda name, axes: bool(_FREQUENCIES.fullmatch(name)))
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path} holds more than tensors by name; it is none of Meta's files.")
    for name, tensor in content.items():
        if not isinstance(tensor, (FileTensor, Strided)) and not _FREQUENCIES.fullmatch(name):
            raise UserError(f"{path}: {name} is no 16-bit or 32-bit floating-point tensor; it is none of Meta's files.")
    return content


def _config(
    folder: Path, params: Mapping[str, Any], ranks: list[dict[str, Any]], fallback: LlamaConfig | None
) -> tuple[LlamaConfig, tuple[str, ...]]:
    """(configuration, notes): config.json's, where the user has added one, else that of params.json and the tensors."""
    if (folder / "config.json").is_file():
        return read_hf_config(folder), ()
    heads, dim = _whole(params, "n_heads", folder), _whole(params, "dim", folder)
    if dim % heads or dim // heads % 2:
        raise UserError(f"{folder / PARAMS}: dim {dim} in {heads} n_heads makes no even head size.")
    share = _shape(folder, ranks[0], "layers.0.attention.wq.weight")[0]
    if share * len(ranks) < dim:
        raise UserError(
            f"{folder} has {len(ranks)} consolidated files, each with {share} of the {dim} rows of attention.wq.weight: "
            f"there must be {-(-dim // max(1, share))}; copy the folder again."
        )
    rows = sum(_shape(folder, rank, "output.weight")[0] for rank in ranks)
    recorded = params.get("vocab_size", -1)
    if recorded not in (-1, None, rows):
        raise UserError(f"{folder / PARAMS}: vocab_size is {recorded!r}, and output.weight has {rows} rows over all files.")
    theta = _positive(params, "rope_theta", folder, DEFAULT_THETA)
    positions, why = _positions(params, theta, ranks[0], fallback)
    config = LlamaConfig(
        num_layers=_layers(params, folder, ranks[0]),
        hidden_size=dim,
        ffn_hidden_size=sum(_shape(folder, rank, "layers.0.feed_forward.w1.weight")[0] for rank in ranks),
        num_attention_heads=heads,
        num_query_groups=_whole(params, "n_kv_heads", folder, heads),
        vocab_size=rows,
        max_position_embeddings=positions,
        norm_epsilon=_positive(params, "norm_eps", folder, 1e-5),  # Meta's own default
        rotary_base=theta,
    )
    note = (
        f"Meta's files do not say how many positions the model was trained with: {positions} was taken ({why}). "
        "To say otherwise, put a config.json beside params.json, or name the size where the command takes one (MN llama2-7b, "
        "MODEL_SIZE 7B)."
    )
    return config, (note,)


def _layers(params: Mapping[str, Any], folder: Path, rank: Mapping[str, Any]) -> int:
    """n_layers. The file must have the last one, so that a wild number is refused before every layer is looked for."""
    layers = _whole(params, "n_layers", folder)
    _shape(folder, rank, f"layers.{layers - 1}.attention_norm.weight")
    return layers


def _positions(params: Mapping[str, Any], theta: float, rank: Mapping[str, Any], fallback: LlamaConfig | None) -> tuple[int, str]:
    """(position limit, why).

    Meta's files do not hold it, so it is told by what else differs between the published models.
    """
    if fallback is not None and fallback.max_position_embeddings > 2048:
        # Up to 2048 it is llama-7b or llama-13b, and these names are given to LLaMA-2 as well: they tell nothing.
        return fallback.max_position_embeddings, "the named size"
    if theta > DEFAULT_THETA:
        return 16384, "rope_theta is above 10000, as in Code Llama"
    if params.get("n_kv_heads") not in (None, params.get("n_heads")):
        return 4096, "n_kv_heads is there, as in LLaMA-2 70B"
    if "rope.freqs" in rank:
        return 4096, "rope.freqs is there once, as in LLaMA-2"
    if any(_FREQUENCIES.fullmatch(name) for name in rank):
        return 2048, "every layer has rope.freqs, as in LLaMA-1"
    return 2048, "LLaMA-1's, the smaller one, since nothing tells them apart"


def _shape(folder: Path, rank: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The shape of Meta's tensor `name` on one rank; an error where it is missing."""
    if name not in rank:
        raise UserError(f"{folder}: a consolidated file lacks {name}; copy the folder again.")
    return tuple(rank[name].shape)


def _meta_name(hf_name: str) -> tuple[str, str]:
    """(Meta's name, how ranks share it) of a Hugging Face tensor."""
    layer = re.search(r"\d+", hf_name)
    meta, shared = _TO_META[re.sub(r"\d+", "{}", hf_name, count=1)]
    return meta.format(layer[0] if layer else ""), shared


def _check_names(folder: Path, config: LlamaConfig, ranks: list[dict[str, Any]]) -> None:
    """Raise for a file that lacks a tensor, or has one that no LLaMA has."""
    expected = {_meta_name(name)[0] for place in places(config) for name in place.hf_names}
    for number, rank in enumerate(ranks):
        path = folder / f"consolidated.{number:02d}.pth"
        missing = sorted(expected - set(rank), key=natural)
        if missing:
            raise UserError(f"{path} lacks {listed(missing)}; {PARAMS} asks for them: copy the folder again.")
        unknown = sorted((name for name in set(rank) - expected if not _FREQUENCIES.fullmatch(name)), key=natural)
        if unknown:
            raise UserError(f"{path} holds tensors that a LLaMA does not have: {listed(unknown)}; they would be lost.")


def _tensor(folder: Path, config: LlamaConfig, ranks: list[dict[str, Any]], name: str) -> LazyTensor:
    """The whole Hugging Face tensor `name`, put together from every rank's share."""
    meta, shared = _meta_name(name)
    parts = [rank[meta] for rank in ranks]
    if len({(tuple(part.shape), part.dtype) for part in parts}) > 1:
        raise UserError(f"{folder}: {meta} has another shape or dtype in one consolidated file than in another; copy them again.")
    if shared == WHOLE:
        return parts[0]
    by_rows = shared == ROWS or (meta == "tok_embeddings.weight" and parts[0].shape[1] == config.hidden_size)
    whole = stack(parts) if by_rows else beside(parts)
    if not name.endswith(_ROTATED):
        return whole
    if parts[0].shape[0] % config.kv_channels:
        raise UserError(f"{folder}: a file's {parts[0].shape[0]} rows of {meta} are no whole heads of {config.kv_channels}.")
    return HalvesOfHeads(whole, config.kv_channels)


def _check_shapes(folder: Path, config: LlamaConfig, tensors: Mapping[str, LazyTensor]) -> None:
    for place in places(config):
        for name, wanted in zip(place.hf_names, hf_shapes(config, place)):
            got = tuple(tensors[name].shape)
            if got != wanted:
                raise UserError(f"{folder}: {_meta_name(name)[0]} has shape {list(got)}, and it must be {list(wanted)}.")
