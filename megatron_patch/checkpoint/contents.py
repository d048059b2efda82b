"""What a training checkpoint holds, and which rank writes which part of it.

Every tensor that several data-parallel ranks have is written by one of them, so that all write about as many bytes.
Under ZeRO-1 optimizer state is divided over them already.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import heapq
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_patch.checkpoint.adapter_folder import trained_alone
from megatron_patch.checkpoint.optimizer_state import SHARDING, SHARDING_TYPE, sharded_optimizer_state
from megatron_patch.checkpoint.run_progress import RunProgress
from megatron_patch.core import parallel
from megatron_patch.formats.lazy import InMemory
from megatron_patch.formats.new_files import NewFile, write_new_files
from megatron_patch.formats.new_metadata import Chunk, Span
from megatron_patch.formats.streaming import Item, plan_distcp, write_files

_LEAST_FILES, _MOST_FILES = 2, 8  # that a rank writes, side by side
_FILE_BYTES = 1 << 30  # there are more than two from so many bytes a file on


def run_state(
    model: Any,
    optimizer: ChainedOptimizer,
    scheduler: Any,
    progress: RunProgress,
    *,
    is_loading: bool,
    weights_only: bool = False,
    trained_only: bool = False,
) -> dict[str, Any]:
    """Everything that a checkpoint holds, as megatron-core's sharded state dict of this rank; no memory is copied.

    In bf16 under ZeRO-1 the fp32 weights have no memory of their own. They are rebuilt in the gradient buffers, which
    are free between two steps: to be saved from there, or loaded into there.

    Args:
        model, optimizer, scheduler, progress: the run's.
        is_loading: whether the dict is for loading, so that the moments must be allocated.
        weights_only: leave out what going on takes: optimizer, schedule, random state.
        trained_only: leave out weights that are not trained.
    """
    weights = module(model).sharded_state_dict(metadata=dict(SHARDING))
    if trained_only:
        weights = trained_alone(module(model), weights)
    if weights_only:
        return {"model": weights, "progress": dict(vars(progress))}
    return {
        "model": weights,
        "optimizer": sharded_optimizer_state(optimizer, weights, is_loading=is_loading),
        "scheduler": scheduler.state_dict(),
        "progress": dict(vars(progress)),
        "rng": _sharded_rng(),
    }


def _sharded_rng() -> ShardedObject:
    """This rank's random state by its place among stages and tensor-parallel ranks, once for all replicas."""
    shape = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    place = (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank())
    return ShardedObject("rng", parallel.rng_state(), shape, place, replica_id=parallel_state.get_data_parallel_rank())


def module(model: Any) -> Any:
    """The model inside core's DDP wrapper; a model without one is itself."""
    return model.module if hasattr(model, "module") else model


@dataclass(frozen=True)
class Part:
    """A tensor, or a rectangle of one, that this rank writes.

    Attributes:
        key: the whole tensor's name.
        values: contiguous, on the device.
        shape: what the file gives it, with the axis of layers in front where core has one.
        offset: where it begins in the whole tensor, for each axis.
        whole: the whole tensor's shape.
    """

    key: str
    values: torch.Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    whole: tuple[int, ...]


@dataclass(frozen=True)
class Contents:
    """What this rank writes.

    Attributes:
        files: the parts of each of its files.
        objects: key → archive of what is no tensor and belongs to one rank.
        common: archive of what all ranks have alike; empty but on the first rank.
        addresses: where weights and optimizer state lie, by which another call knows that `files` are still right.
    """

    files: list[list[Part]]
    objects: dict[str, bytes]
    common: bytes
    addresses: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(part.values.nbytes for file in self.files for part in file)

    @property
    def names(self) -> list[str]:
        """The files' names."""
        return [f"__{parallel.rank()}_{number}.distcp" for number in range(len(self.files))]

    @property
    def objects_name(self) -> str:
        """The name of the file of objects."""
        return f"__{parallel.rank()}_objects.distcp"

    def write(self, folder: Path, on_bytes: Callable[[int], None]) -> list[Span]:
        """Write the files, tensor by tensor from the device to the disk; returns the tensors' places, file after file.

        Args:
            on_bytes: is told each number of bytes that was written, from several threads.

        Raises:
            OSError: the operating system refuses something.
        """
        # The writing threads read on streams of their own. So the last update, and the fp32 weights that `run_state`
        # rebuilds in the gradient buffers, must be finished first.
        device.synchronize()
        files = [
            (name, [Item(part.key, InMemory(part.values.view(-1)), part.shape, part.offset) for part in parts])
            for name, parts in zip(self.names, self.files)
        ]
        written = write_files(folder, files, plan_distcp, on_bytes, at_once=len(files), keeps_cache=True)
        if self.objects:
            file = NewFile(folder / self.objects_name, keeps_cache=True)
            file.add_bytes(b"".join(self.objects.values()))
            write_new_files([file], on_bytes)
        return [Span(one.file, one.offset, one.length) for one in written]

    def described(self, spans: Sequence[Span]) -> tuple[list[Chunk], dict[str, Span]]:
        """What `.metadata` says of this rank's tensors, which lie at `spans`, and of its objects."""
        parts = (part for file in self.files for part in file)
        chunks = [
            Chunk(part.key, part.whole, part.offset, part.shape, part.values.dtype, span)
            for part, span in zip(parts, spans, strict=True)
        ]
        objects, start = {}, 0
        for key, data in self.objects.items():
            objects[key] = Span(self.objects_name, start, len(data))
            start += len(data)
        return chunks, objects


def contents_of(
    model: Any,
    optimizer: ChainedOptimizer,
    scheduler: Any,
    progress: RunProgress,
    *,
    weights_only: bool,
    trained_only: bool = False,
    known: Contents | None = None,
) -> Contents:
    """This rank's share of a checkpoint; every rank calls it.

    Args:
        model, optimizer, scheduler, progress, weights_only, trained_only: as for `run_state`.
        known: what a call before has given. ZeRO's tensors stay where they are, so only the rest is made anew; the
            device and the other ranks are not waited for then.
    """
    with_zero = isinstance(optimizer.chained_optimizers[0], DistributedOptimizer)
    addresses = tuple(_addresses(model, optimizer))
    can_know = known is not None and with_zero and not weights_only
    if known is not None and can_know and not parallel.any_rank(known.addresses != addresses):
        return _with_new_objects(known, optimizer, scheduler, progress)
    how = {"weights_only": weights_only, "trained_only": trained_only}
    state = run_state(model, optimizer, scheduler, progress, is_loading=False, **how)
    sharded, common = save_preprocess({**state, "content_metadata": dict(SHARDING)})
    # ZeRO's parts are each rank's own. Everything else all data-parallel ranks have alike.
    own = list(nested_values(sharded.pop("optimizer"))) if with_zero and not weights_only else []
    alike = list(nested_values(sharded))
    tensors = _divided(entry for entry in alike if isinstance(entry, ShardedTensor))
    tensors += [entry for entry in own if _is_first(entry.replica_id)]
    files = _files([_part(entry) for entry in tensors])
    return Contents(files, _objects(alike), _common(common), addresses)


def _with_new_objects(known: Contents, optimizer: ChainedOptimizer, scheduler: Any, progress: RunProgress) -> Contents:
    """`known` with this moment's state of what is no tensor, in the order of `run_state`."""
    common = {
        "optimizer": {**optimizer.chained_optimizers[0].state_dict(), "param_state_sharding_type": SHARDING_TYPE},
        "scheduler": scheduler.state_dict(),
        "progress": dict(vars(progress)),
        "content_metadata": dict(SHARDING),
    }
    return replace(known, objects={**known.objects, **_objects([_sharded_rng()])}, common=_common(common))


def _addresses(model: Any, optimizer: ChainedOptimizer) -> Iterator[int]:
    """The first byte of each weight and of each tensor of the optimizer's state."""
    yield from (parameter.data_ptr() for parameter in module(model).parameters())
    adam = optimizer.chained_optimizers[0].optimizer
    tensors = (value for values in adam.state.values() for value in values.values() if isinstance(value, torch.Tensor))
    yield from (value.data_ptr() for value in (*tensors, *adam.remainders.values()))


def _objects(entries: Iterable[Any]) -> dict[str, bytes]:
    """Key → archive of each entry that is no tensor, and of which this rank has the first copy."""
    first = [entry for entry in entries if not isinstance(entry, ShardedTensor) and _is_first(entry.replica_id)]
    return {entry.unique_key: _NOTHING if entry.data is None else archive([entry.data]) for entry in first}


def _common(values: dict[str, Any]) -> bytes:
    return archive(values) if parallel.rank() == 0 else b""


def archive(value: object) -> bytes:
    """What torch.save makes of an object."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


_NOTHING = archive([None])  # most objects: each linear layer's `_extra_state`


def _is_first(replica: ReplicaId) -> bool:
    """Whether a rank has the first of equal copies."""
    return not any(replica) if isinstance(replica, tuple) else replica == 0


def _divided(shared: Iterable[ShardedTensor]) -> list[ShardedTensor]:
    """Of tensors that all data-parallel ranks have alike, those that this one writes.

    Every rank divides the same list in the same way, the largest first, each to the one that has the fewest bytes.
    """
    mine, own = [], parallel_state.get_data_parallel_rank()
    loads = [(0, rank) for rank in range(parallel_state.get_data_parallel_world_size())]
    for entry in sorted(shared, key=lambda one: (-one.data.nbytes, one.key, one.global_offset)):
        if isinstance(entry.replica_id, tuple) and any(entry.replica_id[:-1]):
            continue  # another tensor-parallel rank has the first copy
        size, rank = heapq.heappop(loads)
        heapq.heappush(loads, (size + entry.data.nbytes, rank))
        if rank == own:
            mine.append(entry)
    return mine


def _part(entry: ShardedTensor) -> Part:
    values = entry.data.detach()
    assert values.is_contiguous(), entry.key
    shape = (1,) * entry.prepend_axis_num + tuple(entry.local_shape)
    return Part(entry.key, values, shape, tuple(entry.global_offset), tuple(entry.global_shape))


def _files(parts: list[Part]) -> list[list[Part]]:
    """`parts` in files of about the same size."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    most = max(_LEAST_FILES, min(_MOST_FILES, (os.cpu_count() or 1) // (2 * here)))
    count = max(_LEAST_FILES, min(most, sum(part.values.nbytes for part in parts) // _FILE_BYTES))
    files: list[list[Part]] = [[] for _ in range(count)]
    sizes = [(0, number) for number in range(count)]
    for part in sorted(parts, key=lambda one: -one.values.nbytes):
        size, number = heapq.heappop(sizes)
        heapq.heappush(sizes, (size + part.values.nbytes, number))
        files[number].append(part)
    return [file for file in files if file]
