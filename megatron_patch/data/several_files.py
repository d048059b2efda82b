"""Several JSON files as one data set: end to end, or drawn from by weight; and what each is called.

Without weights an epoch is every sample of every file, as if they were one file. With weights an epoch has as many
samples, and a file's weight is its share of them. A file that is asked for more than it has repeats; one that is
asked for less goes on in the next epoch where it stopped. No sample comes again before its file's others have come.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from megatron_patch.data import Say
from megatron_patch.data.json_dataset import JsonDataset
from megatron_patch.errors import UserError
from megatron_patch.records.files import SUFFIXES


@dataclass(frozen=True)
class Joined:
    """The samples of several data sets, one behind the other."""

    parts: tuple[JsonDataset, ...]
    ends: np.ndarray = field(init=False)  # int64 [parts]: for each, the number behind its last sample

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", np.cumsum([len(part) for part in self.parts]))

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def most_segments(self) -> int | None:
        """Of one sequence of any file; None without packing."""
        return most_segments(self.parts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample number `index`, as `JsonDataset` gives it."""
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        place = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[place][index - int(self.ends[place]) + len(self.parts[place])]


def most_segments(sets: Iterable[JsonDataset | Joined]) -> int | None:
    """Segments that a sequence of these sets has at most; None without packing."""
    counts = [count for one in sets if (count := one.most_segments) is not None]
    return max(counts, default=None)


def joined(parts: Sequence[JsonDataset]) -> JsonDataset | Joined:
    """One data set of all parts; a single one as it is."""
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


@dataclass(frozen=True)
class Blend:
    """Which samples of `Joined` files an epoch draws.

    Attributes:
        sizes: samples of each file.
        counts: samples that an epoch draws from each; together as many as the files have.
        seed: orders each pass over each file.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    seed: int

    def samples(self, epoch: int) -> torch.Tensor:
        """int64 [sum of `sizes`]: the epoch's sample numbers, file after file. A pure function of the epoch."""
        begins = [sum(self.sizes[:place]) for place in range(len(self.sizes))]
        return torch.cat([begin + self._of_file(place, epoch) for place, begin in enumerate(begins)])

    def _of_file(self, place: int, epoch: int) -> torch.Tensor:
        """A file's samples in an epoch: what comes next in passes over it, each a new permutation."""
        size, count = self.sizes[place], self.counts[place]
        first, last = epoch * count, (epoch + 1) * count
        passes = [_permutation(size, self.seed, place, number) for number in range(first // size, -(-last // size))]
        return torch.cat(passes)[first % size :][:count]


def blend_of(sizes: Sequence[int], weights: Sequence[float], seed: int) -> Blend:
    """An epoch of all samples together, shared out by weight. Shares are rounded so that their sum is right."""
    total, sum_of_weights = sum(sizes), sum(weights)
    exact = [total * weight / sum_of_weights for weight in weights]
    counts = [int(share) for share in exact]
    largest_rests = sorted(range(len(exact)), key=lambda place: (counts[place] - exact[place], place))
    for place in largest_rests[: total - sum(counts)]:
        counts[place] += 1
    return Blend(tuple(sizes), tuple(counts), seed)


@functools.lru_cache(maxsize=8)
def _permutation(size: int, seed: int, place: int, number: int) -> torch.Tensor:
    """Pass `number` over the file at `place`. The digest makes the seeds of files and passes unlike each other."""
    digest = hashlib.sha256(f"{seed} {place} {number}".encode()).digest()
    return torch.randperm(size, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))


def weighted(parts: Sequence[JsonDataset], weights: Sequence[float], seed: int, say: Say) -> Blend | None:
    """The blend of files with weights; None without weights. `say` gets a line for each file.

    Raises:
        UserError: a weight is so small that no sample of its file comes.
    """
    if not weights:
        return None
    blend = blend_of([len(part) for part in parts], weights, seed)
    for part, weight, size, count in zip(parts, weights, blend.sizes, blend.counts):
        path = part.report.path
        if not count:
            raise UserError(
                f"{path} has the weight {weight:g} of {sum(weights):g}, so none of an epoch's {sum(blend.sizes)} samples comes "
                "from it; write a higher weight, or leave the file out."
            )
        say(f"  {path}: {count} of an epoch's {sum(blend.sizes)} samples, {count / size:.3g} passes over its {size}")
    return blend


def names_of(paths: Sequence[str]) -> list[str]:
    """What to call each file: its name, with as many of its folders as tell it from the others.

    The ending is left out unless it alone tells two files apart. A file that is named again gets a number behind its
    name.
    """
    whole = [Path(path).absolute().parts[1:] for path in paths]
    names = []
    for place, path in enumerate(whole):
        name = _name(path, [other for other in whole if other != path])
        again = whole[:place].count(path)
        names.append(f"{name}-{again + 1}" if again else name)
    return names


def _name(path: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    """The shortest end of `path` that is no other's."""
    depths = range(1, len(path) + 1)
    for depth, whole in [*((depth, False) for depth in depths), *((depth, True) for depth in depths)]:
        name = _end(path, depth, whole)
        if not any(_end(other, depth, whole) == name for other in others):
            return name
    return "/".join(path)  # it is the end of another


def _end(path: tuple[str, ...], depth: int, whole: bool) -> str:
    """The last `depth` parts of a path, with the file's ending if `whole`."""
    ending = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path[-1].endswith(suffix)), "")
    return "/".join(path[-depth:]) if whole else "/".join(path[-depth:]).removesuffix(ending)
