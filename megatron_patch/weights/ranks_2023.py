"""The files of a checkpoint of 2023, one a rank: what each weight in them is, whatever its name.

    FOLDER/mp_rank_TT[_PPP]/model_rng.pt or model_optim_rng.pt    TT tensor-parallel rank, PPP pipeline stage
    FOLDER/mp_rank_TT[_PPP]/distrib_optim.pt                      optimizer state
    FOLDER/mp_rank_TT[_PPP]_DDD/optim.pt                          the same in September 2023; DDD data-parallel rank

Optimizer state is not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import FileTensor, LazyTensor, Strided, load
from megatron_patch.formats.names_2023 import (
    FINAL_NORMS,
    PART,
    SPELLINGS,
    is_norm_bias,
    is_without_weights,
    layer_and_name,
)
from megatron_patch.formats.rank_folders import rank_files
from megatron_patch.formats.torch_files import read_torch_file
from megatron_patch.weights.table import EMBEDDING, OUTPUT_LAYER, listed, natural


@dataclass(frozen=True)
class Rank:
    """One rank's file.

    Attributes:
        arguments: the namespace of the recorded arguments, or None.
        layers: a layer's number, from 0 in each stage → what a weight is, by `names_2023.SPELLINGS` → its shard.
        names: of the first layer's tensors, in the file's order.
        final_norm: [H], on the last stage.
        embedding, head: [rows, H]; the first stage must have the one, the last stage the other. Others may have them
            too.
        has_lm_head: whether a copy of the head stands beside `language_model`, which only converters write.
    """

    path: Path
    arguments: Any
    layers: Mapping[int, Mapping[str, LazyTensor]]
    names: tuple[str, ...]
    final_norm: LazyTensor | None
    embedding: LazyTensor | None
    head: LazyTensor | None
    has_lm_head: bool


@dataclass(frozen=True)
class Ranks:
    """All ranks' files.

    Attributes:
        files: `files[stage][tensor-parallel rank]`.
        layers: (stage, number in it) of each layer of the model.
    """

    folder: Path
    files: tuple[tuple[Rank, ...], ...]
    layers: tuple[tuple[int, int], ...]

    @property
    def first(self) -> Rank:
        """The first stage's first rank."""
        return self.files[0][0]

    @property
    def width(self) -> int:
        """Tensor-parallel ranks, T."""
        return len(self.files[0])

    def shards(self, layer: int, part: str) -> list[LazyTensor]:
        """`part` of `layer`, counted over the model, on every tensor-parallel rank.

        `names_2023.SPELLINGS` has parts and shapes.

        Raises:
            UserError: a rank lacks it, or has another shape or dtype than the first.
        """
        stage, number = self.layers[layer]
        for rank in self.files[stage]:
            if part not in rank.layers[number]:
                names = " or ".join(SPELLINGS[part])
                raise UserError(f"{rank.path} lacks layers.{number}.{names}; the checkpoint is not whole, or is no LLaMA's.")
        found = [rank.layers[number][part] for rank in self.files[stage]]
        _check_alike(self.files[stage], found, f"layers.{number}.{SPELLINGS[part][0]}", rows=True)
        return found

    def vocabulary(self, *, is_embedding: bool) -> list[LazyTensor]:
        """The embedding's shards on the first stage's ranks, or the output layer's on the last one's: [rows, H] each.

        Raises:
            UserError: a rank lacks it, or has another dtype or width than the first.
        """
        stage, found = self.files[0 if is_embedding else -1], []
        for rank in stage:
            tensor = rank.embedding if is_embedding else rank.head
            if tensor is None:
                name = "word_embeddings" if is_embedding else "output_layer"
                raise UserError(f"{rank.path} lacks {name}; the checkpoint is not whole, or is no LLaMA's.")
            found.append(tensor)
        _check_alike(stage, found, "word_embeddings" if is_embedding else "output_layer", rows=False)
        return found

    @property
    def final_norm(self) -> LazyTensor:
        """[H], of which every rank of the last stage has a copy.

        Raises:
            UserError: it is not there.
        """
        rank = self.files[-1][0]
        if rank.final_norm is None:
            raise UserError(f"{rank.path} lacks {' or '.join(FINAL_NORMS)}; the checkpoint is not whole, or is no LLaMA's.")
        return rank.final_norm

    def has(self, layer: int, part: str) -> bool:
        """Whether the first rank of the layer's stage has `part`."""
        stage, number = self.layers[layer]
        return part in self.files[stage][0].layers[number]


def _check_alike(stage: Sequence[Rank], shards: Sequence[LazyTensor], name: str, *, rows: bool) -> None:
    """Raise unless ranks hold equal shares in one dtype.

    With `rows` false, as for the vocabulary, shares may differ in rows.
    """
    first = shards[0]
    for rank, shard in zip(stage, shards):
        if shard.dtype != first.dtype or shard.shape[1:] != first.shape[1:] or (rows and shard.shape != first.shape):
            raise UserError(
                f"{rank.path}: {name} is {shard.dtype} {list(shard.shape)}, and {first.dtype} {list(first.shape)} on the first "
                "rank; these are no shards of one checkpoint."
            )


def read_ranks(folder: Path) -> Ranks:
    """Find the weights in every rank's file; the tensors' bytes are not read.

    Raises:
        UserError: a rank is missing, or holds something else than the weights of a LLaMA.
    """
    files = tuple(tuple(_read_rank(path) for path in stage) for stage in rank_files(folder))
    _check_layout(folder, files)
    layers = []
    for stage, ranks in enumerate(files):
        for rank in ranks:
            if set(rank.layers) != set(range(len(ranks[0].layers))):
                numbers = sorted(rank.layers)
                raise UserError(f"{rank.path} has the layers {numbers}; they must count from 0 without a gap, as on other ranks.")
        layers += [(stage, number) for number in range(len(ranks[0].layers))]
    if not layers:
        raise UserError(f"{folder} holds no layers of a LLaMA; give another checkpoint.")
    return Ranks(folder, files, tuple(layers))


def _check_layout(folder: Path, files: tuple[tuple[Rank, ...], ...]) -> None:
    arguments = files[0][0].arguments
    for name, found in (("tensor_model_parallel_size", len(files[0])), ("pipeline_model_parallel_size", len(files))):
        recorded = getattr(arguments, name, found)
        if recorded != found:
            raise UserError(f"{folder} was written with {name} {recorded}, and files for {found} are there; copy it again.")


def _read_rank(path: Path) -> Rank:
    content = read_torch_file(path, only="model")
    if isinstance(content, dict) and "model0" in content:
        raise UserError(
            f"{path} is one of a run with interleaved pipeline stages (model0, model1, …), which is not read; "
            "save it again from the original without --num-layers-per-virtual-pipeline-stage."
        )
    model = _below(content, "model")
    if not isinstance(model, dict):
        raise UserError(f"{path} is no checkpoint of a language model of 2023: 'model' is not in it.")
    flat = any(isinstance(name, str) and name.startswith("decoder.layers.") for name in model)
    encoder, embedding, head = _flat_parts(model) if flat else _nested_parts(model)
    if not isinstance(encoder, dict) or not all(isinstance(name, str) for name in encoder):
        raise UserError(
            f"{path} is no checkpoint of a language model of 2023: there are no tensors by name in language_model's 'encoder'."
        )
    for name, tensor in (("word_embeddings", embedding), ("output_layer", head)):
        if tensor is not None:
            _check_tensor(path, name, tensor, 2)
    layers, final_norm = _by_part(path, encoder)
    names = tuple(short for layer, short in map(layer_and_name, encoder) if layer == 0)
    return Rank(path, content.get("args"), layers, names, final_norm, embedding, head, "lm_head" in model)


def _below(tree: object, *keys: str) -> Any:
    """What a tree of dictionaries holds below `keys`; None where a key is missing, or something is no dictionary."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _flat_parts(model: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(encoder, embedding, head) under megatron-core's names, which are one flat dictionary."""
    outside = {EMBEDDING, OUTPUT_LAYER}
    encoder = {str(name).removeprefix("decoder."): tensor for name, tensor in model.items() if name not in outside}
    return encoder, model.get(EMBEDDING), model.get(OUTPUT_LAYER)


def _nested_parts(model: dict[str, Any]) -> tuple[Any, Any, Any]:
    """(encoder, embedding, head) of Megatron-LM's `language_model`: dictionaries in dictionaries."""
    language_model = _below(model, "language_model")
    encoder = _below(language_model, "encoder")
    embedding = _below(language_model, "embedding", "word_embeddings", "weight")
    head = _below(language_model, "output_layer", "weight")
    return (
        _below(language_model, "transformer") if encoder is None else encoder,
        embedding,
        _below(model, "lm_head", "weight") if head is None else head,
    )


def _by_part(path: Path, encoder: Mapping[str, Any]) -> tuple[dict[int, dict[str, LazyTensor]], LazyTensor | None]:
    """(layers, final norm): the encoder's tensors. Biases of norms are left out, and must be zero."""
    layers: dict[int, dict[str, LazyTensor]] = {}
    final_norm, unknown = None, []
    for name, tensor in encoder.items():
        layer, short = layer_and_name(name)
        if is_without_weights(name):
            continue
        is_norm = is_norm_bias(name) or name in FINAL_NORMS or PART.get(short, "").endswith("norm")
        if is_norm or short in PART:
            _check_tensor(path, name, tensor, 1 if is_norm else 2)
        if is_norm_bias(name):
            if bool(load(tensor).any()):
                raise UserError(f"{path}: {name} is not zero, and a LLaMA's norm has no bias; it would be lost.")
        elif layer is None and name in FINAL_NORMS and final_norm is None:
            final_norm = tensor
        elif layer is not None and short in PART and PART[short] not in layers.setdefault(layer, {}):
            layers[layer][PART[short]] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise UserError(f"{path} holds tensors that a LLaMA does not have: {listed(sorted(unknown, key=natural))}.")
    return layers, final_norm


def _check_tensor(path: Path, name: str, tensor: Any, axes: int) -> None:
    if not isinstance(tensor, FileTensor | Strided) or len(tensor.shape) != axes:
        kind = f"a tensor of shape {list(tensor.shape)}" if hasattr(tensor, "shape") else f"a {type(tensor).__name__}"
        raise UserError(f"{path}: {name} is {kind}; a floating-point tensor of {axes} axes belongs there: copy it again.")
