"""LoRA over core's parallel linear layers: the frozen weight, and the adapters of the Hugging Face layers in it.

core fuses q, k and v into one layer, and gate and up. Each has an adapter of its own, as PEFT makes them. Their As are
one matrix, `lora_a` [n·r, in], one below the other. Their Bs are one matrix, `lora_b` [rows, r], whose rows have the
order of the fused weight's, without those of layers that have no adapter. So what PEFT keeps are rows of both.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

from megatron_patch.core.partial_gradients import mark_partial
from megatron_patch.core.tensor_exchange import exchange_of
from megatron_patch.formats.peft_adapter import TARGETS, LoraConfig
from megatron_patch.kernels.dropout import Draws, kept
from megatron_patch.kernels.lora import Blocks
from megatron_patch.llama.fused_layers import GATE_UP, FusedLayer
from megatron_patch.model.fp8_linear import FP8, takes_fp8
from megatron_patch.model.frozen_linear import FrozenLinear, GatheredFrozenLinear, SummedFrozenLinear
from megatron_patch.model.frozen_products import Adapter, FrozenWeight
from megatron_patch.model.linear import ColumnLinear, RowLinear
from megatron_patch.model.packed_weight import PackedParameter, PackedWeight, packed_parameter


class _LoraLayer(torch.nn.Module):
    """What both layers share.

    Attributes, which `over` sets in a subclass, because core makes the layer from a class:
        lora: what is asked for.
        fused: the Hugging Face layers in this one, as this rank has them.

    Set from outside where there is dropout, None elsewhere:
        draws: by `number_dropout`.
        samples: numbers in the run of the samples that come next, int64 [B]; by the layer's forward pass.
    """

    lora: LoraConfig
    fused: FusedLayer
    cut: tuple[str, int]  # the matrix of the adapter that is cut over tensor-parallel ranks, and along which axis
    # core's
    weight: torch.nn.Parameter
    tp_group: torch.distributed.ProcessGroup
    sequence_parallel: bool
    # None, all three, where none of the Hugging Face layers has an adapter
    adapter: Any
    lora_a: Any
    lora_b: Any
    draws: Draws | None = None
    samples: torch.Tensor | None = None

    def _add_adapter(self) -> None:
        """Freeze the weight, and make A and B, of which B is zero. `fill_adapters` fills A."""
        self.weight.requires_grad_(False)
        if self.lora.quantizes:
            self.weight = packed_parameter(self.weight, self.fused.heights)
        blocks = Blocks(self.fused.heights, self.fused.numbers(self.lora.targets), self.lora.rank)
        if not blocks.count:
            self.adapter, self.lora_a, self.lora_b = None, None, None
            return
        self.adapter = Adapter(blocks, self.lora.scale)
        self.lora_a = self._matrix(blocks.count * self.lora.rank, self.weight.size(1))
        self.lora_b = self._matrix(self.fused.periods * blocks.rows, self.lora.rank)
        cut, axis = self.cut
        for name, matrix in (("lora_a", self.lora_a), ("lora_b", self.lora_b)):
            set_tensor_model_parallel_attributes(matrix, name == cut, axis if name == cut else -1, 1)
            if name != cut:
                mark_partial(matrix)

    @property
    def targets(self) -> tuple[str, ...]:
        """The Hugging Face layers in this one that have an adapter."""
        return tuple(name for name in self.fused.parts if name in self.lora.targets)

    def a_of(self, name: str) -> torch.Tensor:
        """A [r, in] of the Hugging Face layer `name`, as this rank has it; a view."""
        place = self.targets.index(name) * self.lora.rank
        return self.lora_a[place : place + self.lora.rank]

    def b_of(self, name: str) -> torch.Tensor:
        """B of the Hugging Face layer `name`, as this rank has it, [periods, rows of each, r]; a view."""
        _, rows, _ = list(self.adapter.blocks.places())[self.targets.index(name)]
        return self.lora_b.view(self.fused.periods, -1, self.lora.rank)[:, rows]

    def columns_of(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a whole A [r, in]."""
        return whole.chunk(self.tp_group.size(), 1)[self.tp_group.rank()] if self.cut[0] == "lora_a" else whole

    def _matrix(self, rows: int, columns: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.zeros(rows, columns, dtype=self.weight.dtype, device=self.weight.device))

    def _scaled(self) -> Adapter | None:
        """The adapter, whose scale also makes up for what dropout drops: so a mask is of zeros and ones, and exact."""
        if not self.drops:
            return self.adapter
        return replace(self.adapter, scale=self.adapter.scale / (1 - self.lora.dropout))

    def _frozen(self) -> FrozenWeight:
        if isinstance(self.weight, PackedParameter):
            return PackedWeight(self.weight, self.weight.packed)
        return FrozenWeight(self.weight, FP8) if takes_fp8(self) else FrozenWeight(self.weight)

    @property
    def drops(self) -> bool:
        """Whether the adapters' input has dropout now."""
        return self.adapter is not None and self.draws is not None and self.training

    def _kept(self, x: torch.Tensor) -> torch.Tensor | None:
        """1 where the adapters' input x [S, B, in] of the whole sequence is kept, 0 where not; None without dropout.

        Adapters of one layer share it, so that the input is read once.
        """
        if not self.drops:
            return None
        assert self.draws is not None and self.samples is not None, "a batch says which samples of the run it has"
        first = self.tp_group.rank() * x.size(-1) if self.cut[0] == "lora_a" else 0
        return kept(x.size(0), x.size(-1), self.samples, self.draws, first_column=first)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict[str, Any]:
        """core's entries for a checkpoint, of which the adapter's cut matrix says how it is cut.

        A weight in 4 bits has none: it is made again from what it was made of.
        """
        entries = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        replica = entries[prefix + "weight"].replica_id
        if isinstance(self.weight, PackedParameter):
            del entries[prefix + "weight"]
        if self.adapter is None:
            return entries
        name, axis = self.cut
        whole = entries[prefix + name]
        before = len(sharded_offsets)
        entry = ShardedTensor.from_rank_offsets(
            whole.key,
            getattr(self, name),
            *sharded_offsets,
            (before + axis, self.tp_group.rank(), self.tp_group.size()),
            replica_id=replica,
            prepend_axis_num=before,
        )
        entries[prefix + name] = self._in_file(entry, sharded_offsets)
        return entries

    def _in_file(self, entry: ShardedTensor, sharded_offsets: tuple) -> ShardedTensor | ShardedTensorFactory:
        """In a file all of gate comes before all of up, of which a rank has a part each."""
        both = self.adapter.blocks.count == 2 and self.fused.name == GATE_UP
        return apply_swiglu_sharded_factory(entry, sharded_offsets) if both else entry


class LoraColumnLinear(_LoraLayer, ColumnLinear):
    """A frozen weight [out, in] that is split over TP by its output, with adapters. Every rank has all of A."""

    cut = ("lora_b", 0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_adapter()

    def forward(self, input_: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        """[S, B, in], or [S / TP, B, in] with sequence parallelism, → ([S, B, out / TP], no bias)."""
        x, group = input_.contiguous(), self.tp_group
        matrices = (self.lora_a, self.lora_b, self._frozen(), self._scaled())
        if not self.sequence_parallel:
            return FrozenLinear.apply(x, *matrices, self._kept(x), group if group.size() > 1 else None), None
        if not self.drops:
            return GatheredFrozenLinear.apply(x, *matrices, exchange_of(group), group.size()), None
        x = gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=True, group=group)
        return FrozenLinear.apply(x, *matrices, self._kept(x), None), None


class LoraRowLinear(_LoraLayer, RowLinear):
    """A frozen weight [out, in] that is split over TP by its input, with an adapter. Every rank has all of B."""

    cut = ("lora_a", 1)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_adapter()

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[S, B, in / TP] → ([S, B, out], or with sequence parallelism [S / TP, B, out]; no bias)."""
        x, group = input_.contiguous(), self.tp_group
        matrices = (self.lora_a, self.lora_b, self._frozen(), self._scaled())
        if self.sequence_parallel and not self.drops:
            return SummedFrozenLinear.apply(x, *matrices, exchange_of(group)), None
        y = FrozenLinear.apply(x, *matrices, self._kept(x), None)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(y, group=group), None
        # core's function would hand a gradient on as another tensor, on which its largest number is not noted.
        return (y if group.size() == 1 else reduce_from_tensor_model_parallel_region(y, group=group)), None


LoraLayer = LoraColumnLinear | LoraRowLinear


def over(layer: type, lora: LoraConfig, fused: FusedLayer) -> type:
    """The subclass of `layer` for the adapters `lora` over the Hugging Face layers of `fused`."""
    return type(layer.__name__, (layer,), {"lora": lora, "fused": fused})


def adapters(model: Any) -> Iterator[tuple[int, LoraLayer]]:
    """(number of its layer in the whole model, from 0; layer that has an adapter) of this pipeline stage."""
    for layer in model.decoder.layers:
        for module in layer.modules():
            if isinstance(module, LoraLayer) and module.adapter is not None:
                yield layer.layer_number - 1, module


@torch.no_grad()
def fill_adapters(model: Any, seed: int) -> None:
    """Draw every A as PEFT does, uniformly within ±1/√in (Kaiming with a = √5). B is zero, so nothing changes yet.

    The numbers depend on the seed, the layer and the Hugging Face layer alone, so they are the same in every layout.
    """
    for number, module in adapters(model):
        own = module.lora_a.size(1)
        width = own * module.tp_group.size() if module.cut[0] == "lora_a" else own
        for name in module.targets:
            generator = torch.Generator().manual_seed((seed * 4096 + number) * len(TARGETS) + TARGETS.index(name))
            drawn = torch.rand(module.lora.rank, width, generator=generator).mul_(2).sub_(1).mul_(1 / math.sqrt(width))
            module.a_of(name).copy_(module.columns_of(drawn))


def number_dropout(model: Any, seed: int) -> None:
    """Give every layer that has an adapter what its dropout follows from, if there is dropout."""
    for layer in model.decoder.layers:
        layer.dropping = tuple(part for part in layer.modules() if isinstance(part, LoraLayer) and part.lora.dropout)
        for place, part in enumerate(layer.dropping):
            part.draws = Draws(seed, (layer.layer_number - 1) * len(TARGETS) + place, part.lora.dropout)


def freeze_the_rest(model: torch.nn.Module, lora: LoraConfig) -> None:
    """Leave adapters to be trained, and embedding and output layer where PEFT would save these whole."""
    for name, parameter in model.named_parameters():
        is_vocabulary = name in ("embedding.word_embeddings.weight", "output_layer.weight")
        parameter.requires_grad_(is_adapter(name) or (is_vocabulary and bool(lora.saved)))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's matrix."""
    return name.rpartition(".")[2] in ("lora_a", "lora_b")
