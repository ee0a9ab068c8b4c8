"""Masked sums, means and whitening: by hand, against plain loops and torch, blind to what the false positions hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from pipeline.algorithms.masked import (
    AGGREGATIONS,
    Moments,
    accumulation_dtype,
    aggregate,
    combine_moments,
    keep,
    masked_max,
    masked_mean,
    masked_moments,
    masked_sum,
    whiten,
)

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


# The largest


def test_max_by_hand():
    """Of 1 2 4 and 8 16 32 under 110 and 101: 32; under nothing 0; pads never count; a true NaN shows."""
    x = tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    mask = tensor([[True, True, False], [True, False, True]])
    assert masked_max(x, mask).item() == 32.0
    for rubbish in RUBBISH:
        assert masked_max(torch.where(mask, x, rubbish), mask).item() == 32.0
    assert masked_max(x, torch.zeros_like(mask)).item() == 0.0
    assert masked_max(x[:, :0], mask[:, :0]).item() == 0.0
    assert math.isnan(masked_max(torch.where(mask, math.nan, x), mask).item())


# Aggregation


def losses_of_uneven_responses() -> tuple[Tensor, Tensor]:
    """Responses of 5, 1, 0 and 2 tokens, double precision; pads hold NaN."""
    mask = tensor([[True] * 5, [True] + [False] * 4, [False] * 5, [False, True, True, False, False]])
    losses = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(mask, losses, math.nan), mask


def slow_aggregate(losses: Tensor, mask: Tensor, mode: str) -> float:
    total, tokens = 0.0, 0
    for row, real in zip(losses.tolist(), mask.tolist(), strict=True):
        inside = 0.0
        for value, true in zip(row, real, strict=True):
            if true:
                inside += value
                tokens += 1
        total += inside / sum(real) if mode == "sequence_mean" and any(real) else inside
    B, R = mask.shape
    return total / {"token_mean": tokens, "sequence_mean": B, "sequence_sum": B, "constant": B * R}[mode]


def counts(mask: Tensor, mode: str) -> int:
    """What divides: this adds up over the parts of a batch."""
    B, R = mask.shape
    return {"token_mean": int(mask.sum()), "sequence_mean": B, "sequence_sum": B, "constant": B * R}[mode]


def test_aggregation_by_hand():
    """Rows 1 2 4 and 8, B = 2, R = 3.

    Tokens: 15 / 4 = 3.75. Means of the rows 7/3 and 8, of these 5.1667. Sums 7 and 8, mean 7.5. 15 / (2 * 3) = 2.5.
    """
    losses = tensor([[1.0, 2.0, 4.0], [8.0, 0.0, 0.0]], dtype=torch.float64)
    mask = tensor([[True, True, True], [True, False, False]])
    expected = {"token_mean": 3.75, "sequence_mean": (7 / 3 + 8) / 2, "sequence_sum": 7.5, "constant": 2.5}
    assert set(expected) == set(AGGREGATIONS)
    for mode, value in expected.items():
        assert aggregate(losses, mask, mode).item() == pytest.approx(value, abs=1e-15)
    assert aggregate(losses, mask).item() == 3.75


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_aggregation_against_a_loop(mode):
    losses, mask = losses_of_uneven_responses()
    assert aggregate(losses, mask, mode).item() == pytest.approx(slow_aggregate(losses, mask, mode), abs=1e-15)


def test_aggregation_modes_differ():
    losses, mask = losses_of_uneven_responses()
    found = [aggregate(losses, mask, mode).item() for mode in AGGREGATIONS]
    assert min(abs(a - b) for i, a in enumerate(found) for b in found[:i]) > 1e-3


@pytest.mark.parametrize("split", [(4,), (2, 2), (1, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_aggregation_of_parts_adds_up(mode, split):
    """Value and gradient of a batch in any split, under its own count (1e-15).

    Control: parts that divide by their own count and are averaged give another gradient wherever the counts differ.
    """
    losses, mask = losses_of_uneven_responses()

    def gradient(denominator: int | None) -> tuple[float, Tensor]:
        x = losses.clone().requires_grad_()
        parts = [
            aggregate(part, real, mode, denominator)
            for part, real in zip(x.split(split), mask.split(split), strict=True)
        ]
        total = sum(parts[1:], parts[0]) if denominator else torch.stack(parts).mean()
        total.backward()
        assert x.grad is not None
        return total.item(), x.grad

    whole = losses.clone().requires_grad_()
    expected = aggregate(whole, mask, mode)
    expected.backward()
    assert whole.grad is not None
    value, grad = gradient(counts(mask, mode))
    assert value == pytest.approx(expected.item(), abs=1e-15)
    assert torch.allclose(grad, whole.grad, rtol=0, atol=1e-15)
    uneven = len({counts(part, mode) for part in mask.split(split)}) > 1
    assert torch.allclose(gradient(None)[1], whole.grad, rtol=0, atol=1e-15) is not uneven


def test_some_split_is_uneven_in_every_mode():
    """So that the control above controls something."""
    _, mask = losses_of_uneven_responses()
    for mode in AGGREGATIONS:
        assert len({counts(part, mode) for part in mask.split((1, 3))}) > 1


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_empty_responses_contribute_nothing(mode):
    """Zero and finite gradients, exactly 0 on pads, even in a batch of nothing else."""
    losses = torch.full((2, 3), math.nan, requires_grad=True)
    none = torch.zeros(2, 3, dtype=torch.bool)
    aggregate(losses, none, mode).backward()
    assert losses.grad is not None and losses.grad.tolist() == [[0.0] * 3] * 2
    assert aggregate(losses, none, mode).item() == 0.0
    assert aggregate(losses[:0], none[:0], mode).item() == 0.0
    real, mask = losses_of_uneven_responses()
    real.requires_grad_()
    aggregate(real, mask, mode).backward()
    assert real.grad is not None and (real.grad[~mask] == 0).all() and torch.isfinite(real.grad).all()
    assert (real.grad[mask] != 0).all()


def test_aggregation_refuses_what_it_does_not_know():
    losses, mask = losses_of_uneven_responses()
    with pytest.raises(ValueError, match="unknown aggregation 'mean'; expected one of token_mean"):
        aggregate(losses, mask, "mean")
    with pytest.raises(ValueError, match=r"expected a mask of shape \(B, R\), found \(4,\)"):
        aggregate(losses[:, 0], mask[:, 0])
    with pytest.raises(ValueError, match=r"expected the shape of mask_BR, \(4, 5\), found losses_BR \(4, 1\)"):
        aggregate(losses[:, :1], mask)


# Whitening


def ragged(seed: int = 0, offset: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Rows of 6, 0, 1 and 3 values; pads hold NaN."""
    mask = torch.arange(6) < tensor([6, 0, 1, 3])[:, None]
    x = offset + 3.0 * torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(mask, x, math.nan).to(dtype), mask


def test_whitening_by_hand():
    """1, 3, 5 have mean 3 and population variance 8/3: -2, 0 and 2 over 1.6329932 give -+1.2247449."""
    x = tensor([[1.0, 3.0, math.nan], [5.0, math.inf, -math.inf]], dtype=torch.float64)
    mask = tensor([[True, True, False], [True, False, False]])
    found = whiten(x, mask)
    assert found.flatten().tolist() == pytest.approx([-1.2247448714, 0.0, 0.0, 1.2247448714, 0.0, 0.0], abs=1e-10)
    n, mean, squares = masked_moments(x, mask)
    assert (n.item(), mean.item(), squares.item()) == (3.0, 3.0, 8.0)


@pytest.mark.parametrize("seed", range(3))
def test_whitening_against_torch(seed):
    """torch on the true values alone (1e-12): mean 0, population variance 1; unbiased variance is something else."""
    x, mask = ragged(seed)
    std, mean = torch.std_mean(x[mask], correction=0)
    found = whiten(x, mask)
    assert torch.allclose(found[mask], (x[mask] - mean) / std, rtol=0, atol=1e-12)
    assert found[mask].mean().abs() < 1e-12
    assert found[mask].var(correction=0).item() == pytest.approx(1.0, abs=1e-12)
    assert abs(found[mask].var(correction=1).item() - 1.0) > 0.05
    assert (found[~mask] == 0).all()


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_whitening_ignores_pads(rubbish):
    x, mask = ragged()
    assert torch.equal(whiten(x.masked_fill(~mask, rubbish), mask), whiten(x.masked_fill(~mask, 0.0), mask))
    leaf = x.masked_fill(~mask, rubbish).requires_grad_()
    (whiten(leaf, mask) * torch.arange(24.0).view(4, 6)).sum().backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
    assert (leaf.grad[~mask] == 0).all() and leaf.grad[mask].abs().max() > 0.1


@pytest.mark.parametrize("split", [(2, 2), (1, 3), (1, 1, 1, 1)])
def test_whitening_over_ranks_is_that_of_the_whole(split):
    """Each rank has other rows, one none at all (1e-13). Control: with its own moments each is far off."""
    x, mask = ragged(offset=7.0)
    parts = list(zip(x.split(split), mask.split(split), strict=True))
    gathered = torch.stack([torch.stack(masked_moments(*part)) for part in parts])
    together = combine_moments(Moments(*row) for row in gathered)
    found = torch.cat([whiten(*part, moments=together) for part in parts])
    assert torch.allclose(found, whiten(x, mask), rtol=0, atol=1e-13)
    alone = torch.cat([whiten(*part) for part in parts])
    assert (alone - whiten(x, mask)).abs().max() > 0.1


def test_moments_of_nothing_change_nothing():
    x, mask = ragged()
    nothing = masked_moments(x, torch.zeros_like(mask))
    assert [value.item() for value in nothing] == [0.0, 0.0, 0.0]
    found = combine_moments([nothing, masked_moments(x, mask), nothing])
    assert [value.item() for value in found] == pytest.approx([value.item() for value in masked_moments(x, mask)])
    assert [value.item() for value in combine_moments([nothing, nothing])] == [0.0, 0.0, 0.0]
    assert whiten(x, torch.zeros_like(mask)).tolist() == torch.zeros(4, 6).tolist()


@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_a_common_offset_costs_no_precision(offset):
    """(1e-6 at 1e8, where doubles are 1.5e-8 apart.) Control: a sum of squares in float32 loses everything."""
    x, mask = ragged(offset=offset)
    centred = whiten(ragged()[0], mask)
    assert torch.allclose(whiten(x, mask), centred, rtol=0, atol=1e-14 * offset)
    parts = [masked_moments(x[i : i + 1], mask[i : i + 1]) for i in range(4)]
    assert torch.allclose(whiten(x, mask, moments=combine_moments(parts)), centred, rtol=0, atol=1e-14 * offset)
    true = x[mask].float()
    naive = (true.square().mean() - true.mean().square()).item()
    assert abs(naive - x[mask].var(correction=0).item()) > 1.0


def test_a_common_offset_in_float32():
    """Integers near 1e6, which float32 holds exactly, whiten as those near 0 do."""
    mask = torch.ones(1, 4, dtype=torch.bool)
    small = tensor([[1.0, 2.0, 4.0, 8.0]])
    assert torch.equal(whiten(small + 1e6, mask), whiten(small, mask))
    assert whiten(small, mask).dtype == torch.float32


def test_whitening_leaves_noise_alone():
    """Equal but for 1e-12: divided by the floor of 1e-4, not by their own spread, which would make them of size 1."""
    x = 0.3 + 1e-12 * tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones_like(x, dtype=torch.bool)
    assert whiten(x, mask).abs().max().item() == pytest.approx(1e-8, rel=1e-3)
    assert whiten(x, mask, eps_std=1e-30).abs().max().item() == pytest.approx(1.0, rel=1e-3)
    assert whiten(x, mask, eps_std=10.0).abs().max().item() == pytest.approx(1e-13, rel=1e-3)
    one = tensor([[5.0, math.nan]], requires_grad=True)
    alone = whiten(one, tensor([[True, False]]))
    alone.sum().backward()
    assert alone.tolist() == [[0.0, 0.0]]
    assert one.grad is not None and one.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision_of_whitening(given_dtype, expected):
    x, mask = ragged(dtype=given_dtype)
    found = whiten(x, mask)
    assert found.dtype == expected
    assert {value.dtype for value in masked_moments(x, mask)} == {torch.float64}
    assert torch.allclose(found.double(), whiten(x.double(), mask), rtol=0, atol=1e-6)


def test_keep_is_exact_zero_with_zero_gradient():
    x = tensor([math.nan, -math.inf, 2.0], dtype=torch.bfloat16, requires_grad=True)
    kept = keep(x, tensor([False, False, True]))
    kept.sum().backward()
    assert kept.tolist() == [0.0, 0.0, 2.0] and kept.dtype == torch.float32
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="but its mask"):
        keep(x, tensor([[True]]))
