"""How many micro-batches go through the model at once, and how many layers then keep what AC sel would compute again.

For a run, which measures what fits, and for a plan, which computes it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Products of so many tokens are as fast as those of more, and activations take memory for each of them.
_ENOUGH_TOKENS = 8192


def pass_sizes(micro_batches: int, tokens: int) -> tuple[int, ...]:
    """Numbers of micro-batches that may go through the model at once, the largest first; empty: one at a time.

    Args:
        micro_batches: of a step, for each replica.
        tokens: of a micro-batch.
    """
    larger = {4: 2 * tokens < _ENOUGH_TOKENS, 2: True}
    return tuple(size for size, pays in larger.items() if pays and micro_batches % size == 0)


def choose_pass(sizes: Sequence[int], layers: int, fits: Callable[[int, int, int], bool]) -> tuple[int, int]:
    """(micro-batches of a pass, layers that keep in it what they would compute again), as many as fit.

    Computing again in all layers costs more than passes of four in place of two save. So four go only where all layers
    keep.

    Args:
        sizes: as `pass_sizes` gives them.
        layers: that could keep something.
        fits: (micro-batches, layers that keep, shares of memory that stay free) → whether that fits. Where layers keep
            something, a second share stays free.
    """
    alone = {size: (layers, 2) if layers and size > 2 else (0, 1) for size in sizes}
    together = next((size for size, more in alone.items() if fits(size, *more)), 1)
    return together, next((kept for kept in range(layers, 0, -1) if fits(together, kept, 2)), 0)
