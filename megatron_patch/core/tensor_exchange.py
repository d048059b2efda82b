"""What tensor-parallel ranks exchange around a product under sequence parallelism.

Before a product the parts of the sequence are gathered. Or after it the ranks' partial sums are added, and each rank
keeps its part.

`CollectiveExchange` lets NCCL (or gloo) do that. `CopyExchange` lets copy engines do it while products run. A product
that needs the gathered sequence begins with the half in which its own rank's part lies, and the other half is copied
meanwhile. A product whose results are added begins with the half for which the other ranks wait. Sums are made in
float32 and rounded once.

Rows are tokens here: a sequence's part [S / TP, B, H] is a matrix of S · B / TP rows, and rank r's follow rank r - 1's.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from megatron_patch.core.peer_memory import Peers, Side, peers_of
from megatron_patch.kernels.sums import MOST_APART, sum_parts

# (which rows of the whole sequence, these rows [n, H]): what is computed from a gathered sequence.
Use = Callable[[slice, torch.Tensor], None]
# (which rows of the whole sequence, where they go [n, H]): writes this rank's partial sums.
Produce = Callable[[slice, torch.Tensor], None]


@dataclass(frozen=True)
class Arriving:
    """A tensor that is still written, by a collective or by copies.

    Attributes:
        tensor: what is written.
        wait: lets what is launched next come after it.
        held: what another stream uses until then. Memory that nobody holds is given to whoever asks next on this
            stream, who would write it at the same time.
    """

    tensor: torch.Tensor
    wait: Callable[[], object]
    held: tuple[torch.Tensor, ...] = ()

    def get(self) -> torch.Tensor:
        """The tensor; whatever is launched from here on comes after it was written."""
        self.wait()
        return self.tensor


@dataclass(frozen=True)
class Room:
    """Where a rank writes partial sums of the whole sequence, [rows, H]: `own`, and every rank's."""

    own: torch.Tensor
    of_ranks: list[torch.Tensor]


# Multiply-adds for each element of a sum. From here on half a product takes as long as copying the other half from the
# other ranks, at 600 TFLOP/s and 370 GB/s.
HIDES = 1600


class CollectiveExchange:
    """Through torch.distributed."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def gather(self, part: torch.Tensor, use: Use, keeps: bool) -> torch.Tensor:
        """`use` the whole sequence [n · TP, H], of which each rank has a `part` [n, H]; with `keeps` it stays."""
        whole = self.begin_gather(part).get()
        use(slice(0, len(whole)), whole)
        return whole

    def begin_gather(self, part: torch.Tensor) -> Arriving:
        """The whole sequence, beside what is launched next."""
        whole = part.new_empty(len(part) * self.group.size(), part.size(1))
        work = distributed.all_gather_into_tensor(whole, part, group=self.group, async_op=True)
        return Arriving(whole, work.wait)

    def sum(self, produce: Produce, rows: int, width: int, like: torch.Tensor, depth: int) -> torch.Tensor:
        """This rank's part of the ranks' sums, [rows / TP, width], of `like`'s dtype.

        Args:
            depth: multiply-adds that each element costs this rank.
        """
        room = self.room(rows, width, like)
        produce(slice(0, rows), room.own)
        return self.begin_sum(room).get()

    def room(self, rows: int, width: int, like: torch.Tensor) -> Room:
        """To be written, then given to `begin_sum`."""
        own = like.new_empty(rows, width)
        return Room(own, [own])

    def begin_sum(self, room: Room) -> Arriving:
        """This rank's part of the ranks' sums, beside what is launched next."""
        mine = room.own.new_empty(len(room.own) // self.group.size(), room.own.size(1))
        work = distributed.reduce_scatter_tensor(mine, room.own, group=self.group, async_op=True)
        return Arriving(mine, work.wait)


class CopyExchange:
    """Through the ranks' memory: the same methods as `CollectiveExchange`.

    What others read lies in one of three places, taken in turn. When a place is written again, every rank has read it:
    to come here, this rank has waited for all copies but those of the last exchange, and ranks met before each of
    those.
    """

    _PLACES = 3  # within a pass; `begin_pass` says what happens between two

    def __init__(self, peers: Peers) -> None:
        self.peers, self.side = peers, Side()
        self.places: list[list[torch.Tensor]] = []  # bytes; of each place, every rank's
        self.turn = 0
        rank, size = peers.rank, peers.size
        halves = range(size // 2), range(size // 2, size)
        self.near, self.far = halves if rank in halves[0] else (halves[1], halves[0])

    def gather(self, part: torch.Tensor, use: Use, keeps: bool) -> torch.Tensor:
        """`use` is called for two halves."""
        n, alone = len(part), len(self.near) == 1
        whole = part.new_empty(n * self.peers.size, part.size(1))
        place = self._place(n, part.size(1), part)
        place[self.peers.rank].copy_(part)
        with self.side.after():
            self.peers.meet()
            self._copy(whole, place, self.near)
            near_is_here = self.side.mark()
            self._copy(whole, place, self.far)
            if alone and keeps:
                self._own(whole, n).copy_(part)
        rows = _rows(self.near, n)
        if alone:
            use(rows, part)
        else:
            self._own(whole, n).copy_(part)
            self.side.join(near_is_here)
            use(rows, whole[rows])
        self.side.join()
        rows = _rows(self.far, n)
        use(rows, whole[rows])
        return whole

    def begin_gather(self, part: torch.Tensor) -> Arriving:
        n = len(part)
        whole = part.new_empty(n * self.peers.size, part.size(1))
        place = self._place(n, part.size(1), part)
        place[self.peers.rank].copy_(part)
        with self.side.after():
            self.peers.meet()
            self._copy(whole, place, range(self.peers.size))
            self._own(whole, n).copy_(part)
        return Arriving(whole, self.side.join, held=(part,))

    def sum(self, produce: Produce, rows: int, width: int, like: torch.Tensor, depth: int) -> torch.Tensor:
        """`produce` is called for two halves if half a product hides the copies of the other half.

        The kernel that adds reads the rest where it lies.
        """
        size = self.peers.size
        room, n = self.room(rows, width, like), rows // size
        if depth < HIDES and size - 1 <= MOST_APART:
            produce(slice(0, rows), room.own)
            return self._added(room, like.new_empty(0, n, width), range(size))
        parts, here = like.new_empty(len(self.far), n, width), _rows(self.far, n)
        produce(here, room.own[here])
        with self.side.after():
            self.peers.meet()
            # The ranks of the far half have begun with this one's rows.
            self._parts(parts, room, self.far)
        here = _rows(self.near, n)
        produce(here, room.own[here])
        return self._added(room, parts, self.near)

    def _added(self, room: Room, parts: torch.Tensor, ranks: range) -> torch.Tensor:
        """This rank's rows, the `parts` that are copied beside, and those that `ranks` have computed last."""
        n, apart = parts.size(1), [self._own(room.of_ranks[rank], parts.size(1)) for rank in self.peers.others(ranks)]
        if self.peers.size > 2 or apart:  # otherwise met for the parts
            self.peers.meet(1)
        self.side.join()
        mine = parts.new_empty(parts.shape[1:])
        sum_parts(self._own(room.own, n), parts, mine, apart)
        return mine

    def room(self, rows: int, width: int, like: torch.Tensor) -> Room:
        place = self._place(rows, width, like)
        return Room(place[self.peers.rank], place)

    def begin_sum(self, room: Room) -> Arriving:
        n = len(room.own) // self.peers.size
        parts = room.own.new_empty(self.peers.size - 1, n, room.own.size(1))
        mine = torch.empty_like(parts[0])
        with self.side.after():
            self.peers.meet()
            self._parts(parts, room, range(self.peers.size))
            sum_parts(self._own(room.own, n), parts, mine)
        return Arriving(mine, self.side.join, held=(parts,))

    def _own(self, whole: torch.Tensor, n: int) -> torch.Tensor:
        return whole[_rows(range(self.peers.rank, self.peers.rank + 1), n)]

    def _copy(self, whole: torch.Tensor, place: list[torch.Tensor], ranks: range) -> None:
        """Their parts into the whole sequence."""
        for rank in self.peers.others(ranks):
            n = len(place[rank])
            whole[rank * n : (rank + 1) * n].copy_(place[rank])

    def _parts(self, parts: torch.Tensor, room: Room, ranks: range) -> None:
        """What `ranks` have computed of this rank's rows."""
        for place, rank in zip(parts, self.peers.others(ranks), strict=True):
            place.copy_(self._own(room.of_ranks[rank], parts.size(1)))

    def _place(self, rows: int, width: int, like: torch.Tensor) -> list[torch.Tensor]:
        """The next place as a matrix of every rank. The first of a size is allocated in a pass that is launched."""
        taken = rows * width * like.element_size()
        if not self.places or self.places[0][0].numel() < taken:
            self.side.join()
            self.places = [self.peers.views(like.new_empty(taken, dtype=torch.uint8)) for _ in range(self._PLACES)]
        self.turn = (self.turn + 1) % self._PLACES
        return [whole[:taken].view(like.dtype).view(rows, width) for whole in self.places[self.turn]]


Exchange = CollectiveExchange | CopyExchange
_exchanges: dict[ProcessGroup, Exchange] = {}


def exchange_of(group: ProcessGroup) -> Exchange:
    """Through copy engines where `peer_memory.open_groups` has opened the group."""
    if group not in _exchanges:
        peers = peers_of(group)
        if peers is not None and peers.size <= 2 * (MOST_APART + 1):
            _exchanges[group] = CopyExchange(peers)
        else:
            _exchanges[group] = CollectiveExchange(group)
    return _exchanges[group]


def begin_pass() -> None:
    """Meet before a pass: all copies of the passes before are over on every rank, so every place may be written.

    Places are taken in turn while a pass is launched or recorded. Recorded passes are replayed in another order, in
    which the first place of one may be the last of the pass before.
    """
    for exchange in _exchanges.values():
        if isinstance(exchange, CopyExchange):
            exchange.peers.meet(1)


def close() -> None:
    """Let go of the other ranks' memory. Passes that are over may still know their exchange."""
    for exchange in _exchanges.values():
        if isinstance(exchange, CopyExchange):
            exchange.places.clear()
    _exchanges.clear()


def _rows(ranks: range, n: int) -> slice:
    return slice(ranks.start * n, ranks.stop * n)
