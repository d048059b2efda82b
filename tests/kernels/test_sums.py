import pytest
import torch

from megatron_patch.kernels.sums import sum_parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape, parts", [((7, 688), 3), ((2, 4098), 1), ((1,), 7)])
def test_sum_rounded_once(draw, agree, implementation, dtype, shape, parts):
    own, others = draw(dtype, *shape, requires_grad=False), draw(dtype, parts, *shape, requires_grad=False)
    truth = own.double() + others.double().sum(0)
    out = torch.empty_like(own)
    sum_parts(own, others, out, implementation=implementation)
    agree(out, truth)
    apart = list(others[-3:])  # added in the same order
    again = torch.empty_like(own)
    sum_parts(own, others[: parts - len(apart)], again, apart, implementation=implementation)
    assert torch.equal(again, out)
    sum_parts(own, others, own, implementation=implementation)  # in place
    assert torch.equal(own, out)


def test_parts_of_another_shape_are_an_error():
    own = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="parts must be n of them"):
        sum_parts(own, torch.zeros(3, 2, 4), own)
    with pytest.raises(ValueError, match="at most 3"):
        sum_parts(own, torch.zeros(0, 4, 2), own, [own] * 4)
