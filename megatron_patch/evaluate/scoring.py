"""Windows through the model, a few at a time, each replica its share; the sums of all replicas together."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from megatron_patch.errors import UserError
from megatron_patch.evaluate.sequences import TEXT, Reading, Unused, Window, windows_of
from megatron_patch.formats.progress import shown
from megatron_patch.generate.decoder import WORTH_MEASURING, Decoder

# Documents of which a window is not made yet are few, so that a file of any size fits.
_PATIENCE = 64


@dataclass(frozen=True)
class Score:
    """What the model makes of one file.

    Attributes:
        documents: samples or documents of which something was predicted.
        tokens: that were predicted.
        loss: mean of −ln of their probabilities; NaN where the model gives none, as with an fp16 that overflows.
        cut: samples longer than PAD_LEN, whose rest was not predicted.
        left_out: records that cannot be used.
        without_answer: samples without an answer within PAD_LEN, and documents without a token to predict.
    """

    path: str
    kind: str
    documents: int
    tokens: int
    loss: float
    cut: int = 0
    left_out: int = 0
    without_answer: int = 0

    @property
    def perplexity(self) -> float:
        """e^loss, infinite where no double holds it."""
        return math.exp(self.loss) if not self.loss > 700.0 else math.inf

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON, which knows neither NaN nor infinity."""
        found = {**asdict(self), "perplexity": self.perplexity}
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()}


def score_file(decoder: Decoder, path: str, kind: str, reading: Reading, batch: int) -> Score:
    """Loss over a file, the same on every process.

    Args:
        kind: that of the file, by `kind_of`.
        batch: windows of one pass, at least. On a GPU it is as many as keep it busy and fit into its memory.

    Raises:
        UserError: the file cannot be read, or nothing in it is to be predicted.
    """
    ranks = decoder.ranks
    sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)  # of losses, tokens, documents
    seen, predicted, unused = 0, 0, Unused()

    def all_windows() -> Iterator[Window]:
        nonlocal seen, predicted
        for number, of_document in enumerate(windows_of(path, kind, reading, unused)):
            seen += 1
            if kind == TEXT:  # one document, of whose windows each replica takes its share, and the first one counts it
                yield from itertools.islice(of_document, ranks.replica, None, ranks.replicas)
                predicted = int(ranks.replica == 0)
            elif number % ranks.replicas == ranks.replica:
                labelled = (window for window in of_document if (window.labels >= 0).any())
                for window in itertools.islice(labelled, 1):
                    predicted += 1
                    yield window
                yield from labelled

    windows = all_windows()
    if ranks.speaks and ranks.replica == 0:
        windows = shown(windows, "evaluating {}", "windows", of=path)
    # Processes that share a model must take the same batches.
    tokens_of_pass = min(ranks.from_all(decoder.tokens_of_pass()))
    passes: Counter[int] = Counter()
    for together in _batches(windows, batch, tokens_of_pass):
        size = sum(len(one.tokens) for one in together)
        passes[size] += 1
        sums[:2] += _sums(decoder, together, measured=passes[size] > WORTH_MEASURING)
    sums[2] = predicted
    if dist.is_initialized():
        if not (ranks.is_last_stage and ranks.tensor == 0):
            sums.zero_()
        dist.all_reduce(sums)
    total, tokens, documents = sums.tolist()
    if not tokens:
        raise UserError(
            f"{path}: nothing in its {seen} documents is to be predicted; PAD_LEN may be too small, or answers empty."
        )
    without = seen - int(documents) + unused.empty
    return Score(path, kind, int(documents), int(tokens), total / tokens, unused.cut, unused.left_out, without)


def _batches(windows: Iterator[Window], size: int, tokens: int) -> Iterator[list[Window]]:
    """`size` windows at a time, or more of up to `tokens` tokens together.

    Those of like length are beside each other: equal lengths are one launch of attention.
    """
    held: list[Window] = []
    for window in windows:
        held.append(window)
        if len(held) == _PATIENCE * size:
            yield from _parted(held, size, tokens)
            held = []
    yield from _parted(held, size, tokens)


def _parted(windows: list[Window], size: int, tokens: int) -> Iterator[list[Window]]:
    windows.sort(key=lambda one: len(one.tokens))
    part: list[Window] = []
    held = 0
    for window in windows:
        if len(part) >= size and held + len(window.tokens) > tokens:
            yield part
            part, held = [], 0
        part.append(window)
        held += len(window.tokens)
    if part:
        yield part


def _sums(decoder: Decoder, windows: list[Window], *, measured: bool) -> torch.Tensor:
    """fp64 [2]: the sum of the losses of a batch, and how many they are; `measured` as `Decoder.losses` takes it."""
    device = decoder.ranks.device
    tokens, labels = (torch.cat([torch.from_numpy(getattr(one, name)) for one in windows]) for name in ("tokens", "labels"))
    positions = torch.cat([torch.arange(len(one.tokens)) for one in windows])
    ends = torch.tensor([len(one.tokens) for one in windows]).cumsum(0).tolist()
    losses = decoder.losses(tokens.to(device), positions.to(device), labels, ends, measured=measured)
    return torch.stack([losses.double().sum(), torch.tensor(float(len(losses)), dtype=torch.float64, device=device)])


def table(scores: list[Score], say: Callable[[str], None]) -> None:
    """A line a file, and their sum where they are several."""
    rows = [("file", "kind", "documents", "tokens", "loss", "perplexity")]
    rows += [_row(score) for score in scores]
    if len(scores) > 1:
        rows.append(_row(together(scores)))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        say("  ".join(cell.ljust(width) if n < 2 else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths))))


def together(scores: list[Score]) -> Score:
    """All files as one: the mean over their tokens."""
    tokens = sum(score.tokens for score in scores)
    loss = sum(score.loss * score.tokens for score in scores) / tokens
    documents, cut, left_out, without = (
        sum(getattr(score, name) for score in scores) for name in ("documents", "cut", "left_out", "without_answer")
    )
    return Score("all", "", documents, tokens, loss, cut, left_out, without)


def _row(score: Score) -> tuple[str, str, str, str, str, str]:
    return (score.path, score.kind, f"{score.documents:,}", f"{score.tokens:,}", f"{score.loss:.6f}", f"{score.perplexity:.4f}")
