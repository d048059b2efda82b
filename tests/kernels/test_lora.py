"""The grouped products of LoRA: what each Hugging Face layer's own A and B compute, in float64."""

from __future__ import annotations

import pytest
import torch

from megatron_patch.kernels.lora import (
    Blocks,
    add_a_gradient,
    add_b_gradient,
    add_input_gradient_,
    expand_,
    shrink,
    shrink_gradient,
)

# (heights of a period, which part each block is, periods): q, k, v of grouped queries; without k; gate and up; up
# alone; one plain layer, of a height that no kernel's tile divides.
FORMS = {
    "qkv": ((64, 16, 16), (0, 1, 2), 3),
    "q and v": ((64, 16, 16), (0, None, 1), 2),
    "gate and up": ((96, 96), (0, 1), 1),
    "up": ((96, 96), (None, 0), 1),
    "plain": ((40,), (0,), 1),
}
TOKENS, WIDTH, RANK, SCALE = 67, 96, 5, 0.5


def parts_of(blocks: Blocks, periods: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each part: its columns of the output, and the rows of B that belong to them."""
    found = [([], []) for _ in range(blocks.count)]
    row = 0
    for period in range(periods):
        column = period * blocks.period
        for height, part in zip(blocks.heights, blocks.parts):
            if part is not None:
                found[part][0].extend(range(column, column + height))
                found[part][1].extend(range(row, row + height))
                row += height
            column += height
    return [(torch.tensor(columns), torch.tensor(rows)) for columns, rows in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forward_and_backward_are_each_part_s_own(draw, agree, implementation, dtype, form, device):
    if implementation == "triton" and dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bf16 numbers")
    heights, parts, periods = form
    blocks = Blocks(heights, parts, RANK)
    one = lambda *shape: draw(dtype, *shape, requires_grad=False)  # noqa: E731
    x, dy, dx = one(TOKENS, WIDTH), one(TOKENS, periods * blocks.period), one(TOKENS, WIDTH)
    y, a, b = one(*dy.shape), one(blocks.count * RANK, WIDTH), one(periods * blocks.rows, RANK)
    low, dlow = one(TOKENS, blocks.count * RANK), one(TOKENS, blocks.count * RANK)
    grads = torch.randn_like(a, dtype=torch.float32), torch.randn_like(b, dtype=torch.float32)
    places = parts_of(blocks, periods)
    agree(shrink(x, a, SCALE, implementation), SCALE * x.double() @ a.double().t())
    before = grads[1].double()
    wanted_y, wanted_db, wanted_low = y.double(), before.clone(), torch.empty(low.shape, dtype=torch.float64, device=device)
    for part, (columns, rows) in enumerate(places):
        mine = slice(part * RANK, (part + 1) * RANK)
        wanted_y[:, columns] += low[:, mine].double() @ b[rows].double().t()
        wanted_db[rows] += dy[:, columns].double().t() @ low[:, mine].double()
        wanted_low[:, mine] = SCALE * dy[:, columns].double() @ b[rows].double()
    agree(shrink_gradient(dy, b, blocks, SCALE, implementation), wanted_low)
    expand_(y, low, b, blocks, implementation)
    agree(y, wanted_y)
    wanted_dx = dx.double() + dlow.double() @ a.double()
    add_input_gradient_(dx, dlow, a, implementation)
    agree(dx, wanted_dx)
    wanted_da = grads[0].double() + dlow.double().t() @ x.double()
    add_a_gradient(grads[0], x, dlow, implementation=implementation)
    add_b_gradient(grads[1], dy, low, blocks, implementation=implementation)
    agree(grads[0], wanted_da)
    agree(grads[1], wanted_db)
    grads[0].fill_(7.0), grads[1].fill_(7.0)
    add_a_gradient(grads[0], x, dlow, overwrite=True, implementation=implementation)
    add_b_gradient(grads[1], dy, low, blocks, overwrite=True, implementation=implementation)
    agree(grads[0], dlow.double().t() @ x.double())
    agree(grads[1], wanted_db - before)
