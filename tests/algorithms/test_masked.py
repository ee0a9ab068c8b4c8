"""Masked sums and means: by hand, against plain loops, and blind to whatever the false positions hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from pipeline.algorithms.masked import accumulation_dtype, masked_mean, masked_sum

RUBBISH = (math.nan, math.inf, -math.inf, 1e38)


def test_sum_by_hand():
    """Rows 1 2 4 and 8 16 32, masks 110 and 101: 1 + 2 + 8 + 32 = 43; by row 3 and 40; by column 9, 2, 32."""
    x = tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = tensor([[True, True, False], [True, False, True]])
    assert masked_sum(x, mask).item() == 43.0
    assert masked_sum(x, mask, dim=-1).tolist() == [3.0, 40.0]
    assert masked_sum(x, mask, dim=0).tolist() == [9.0, 2.0, 32.0]


def test_mean_by_hand():
    """43 over four true positions is 10.75; over a given count of 86 it is 0.5."""
    x = tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = tensor([[True, True, False], [True, False, True]])
    assert masked_mean(x, mask).item() == 10.75
    assert masked_mean(x, mask, denominator=86.0).item() == 0.5
    assert masked_mean(x, mask, denominator=tensor(86)).item() == 0.5


def test_an_empty_mask_gives_zero_and_zero_gradient():
    x = tensor([math.nan, 1.0], requires_grad=True)
    none = tensor([False, False])
    mean = masked_mean(x, none)
    mean.backward()
    assert mean.item() == 0.0
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0]
    assert masked_sum(tensor([[math.nan], [2.0]]), tensor([[False], [True]]), dim=1).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_masked_positions_change_neither_value_nor_gradient(rubbish):
    """Control: multiplying by the mask lets NaN and infinity through."""
    clean = tensor([[1.0, -3.0, 0.0, 0.0]], requires_grad=True)
    dirty = tensor([[1.0, -3.0, rubbish, rubbish]], requires_grad=True)
    mask = tensor([[True, True, False, False]])
    for reduce in (masked_sum, masked_mean):
        values = [reduce(x.square(), mask) for x in (clean, dirty)]
        assert values[0].item() == values[1].item()
        gradients = [torch.autograd.grad(value, x)[0] for value, x in zip(values, (clean, dirty), strict=True)]
        assert gradients[0].tolist() == gradients[1].nan_to_num(0.0, 0.0, 0.0).tolist()
    direct = dirty.detach().clone().requires_grad_()
    masked_sum(direct, mask).backward()
    assert direct.grad is not None and direct.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    if not math.isfinite(rubbish):
        assert not math.isfinite((dirty.detach() * mask).sum().item())


@given(rows=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=0, max_size=6), min_size=1, max_size=5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_ragged_lists_against_a_loop(rows, data):
    """Sums of float64 rows of uneven length, whatever pads them (absolute 1e-9 on values up to 3e4)."""
    width = max(map(len, rows)) + 1
    pad = data.draw(st.sampled_from([0.0, *RUBBISH]))
    x = torch.full((len(rows), width), pad, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        start = data.draw(st.integers(0, width - len(row)))
        x[index, start : start + len(row)] = tensor(row, dtype=torch.float64)
        mask[index, start : start + len(row)] = True
    total = 0.0
    for row, found in zip(rows, masked_sum(x, mask, dim=1).tolist(), strict=True):
        by_row = 0.0
        for value in row:
            by_row += value
        assert found == pytest.approx(by_row, abs=1e-9)
        total += by_row
    count = sum(map(len, rows))
    assert masked_sum(x, mask).item() == pytest.approx(total, abs=1e-9)
    assert masked_mean(x, mask).item() == pytest.approx(total / count if count else 0.0, abs=1e-9)


def test_a_shared_denominator_makes_the_split_irrelevant():
    """Uneven halves of a batch add up to the whole under its token count.

    Control: with a mean each, [1, 1, 1, 1] and [5] average to 3, where all five tokens have mean 9/5.
    """
    x = tensor([[1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = tensor([[True] * 4, [True, False, False, False]])
    halves = [masked_mean(x[i : i + 1], mask[i : i + 1], denominator=5.0).item() for i in range(2)]
    assert sum(halves) == pytest.approx(masked_mean(x, mask).item(), abs=1e-15) == pytest.approx(1.8, abs=1e-15)
    assert sum(masked_mean(x[i : i + 1], mask[i : i + 1]).item() for i in range(2)) / 2 == 3.0


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_precision_is_kept_and_low_precision_accumulates_in_float32(given_dtype, expected):
    """1000 ones after 256: bfloat16, with eight significant bits, would stay at 256."""
    x = torch.cat([tensor([256.0]), torch.ones(1000)]).to(given_dtype)
    total = masked_sum(x, torch.ones_like(x, dtype=torch.bool))
    assert accumulation_dtype(x) == total.dtype == expected
    assert total.item() == 1256.0
    if given_dtype == torch.bfloat16:
        stuck = tensor(256.0, dtype=torch.bfloat16)
        for _ in range(10):
            stuck = stuck + tensor(1.0, dtype=torch.bfloat16)
        assert stuck.item() == 256.0


def test_masks_must_be_masks():
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"mask must be boolean, found torch\.int64"):
        masked_sum(x, torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(TypeError, match="mask must be boolean"):
        masked_mean(x, torch.ones(2, 3))
    for shape in [(2, 1), (3,), (1, 3), (2, 3, 1)]:
        with pytest.raises(ValueError, match=r"x has shape \(2, 3\) but its mask"):
            masked_sum(x, torch.ones(shape, dtype=torch.bool))
