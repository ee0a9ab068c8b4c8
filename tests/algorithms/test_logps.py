"""Log-probabilities: by hand, against a float64 loop, and the shift of logits against ids."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from pipeline.algorithms.logps import seq_logps, token_logps


def slow_token_logps(logits: torch.Tensor, ids: torch.Tensor) -> list[list[float]]:
    """log softmax(logits_t)[id_(t+1)], one number at a time in double precision."""
    found = []
    for row, tokens in zip(logits.double().tolist(), ids.tolist(), strict=True):
        line = []
        for t in range(len(tokens) - 1):
            highest = max(row[t])
            total = sum(math.exp(value - highest) for value in row[t])
            line.append(row[t][tokens[t + 1]] - highest - math.log(total))
        found.append(line)
    return found


def random_case(seed: int = 0, B: int = 3, T: int = 5, V: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    return logits, torch.randint(V, (B, T), generator=generator)


def test_by_hand():
    """Vocabulary {0, 1}, ids 1 0 1.

    Logits [0, ln 3] give p(1) = 3/4, and id 1 stands at place 0: nothing predicts it. Position 0 predicts id 0 with
    p = 1/4: ln 1/4. Position 1, logits [ln 4, 0], predicts id 1 with p = 1/5: ln 1/5. Position 2 predicts nothing.
    """
    logits = tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [7.0, -7.0]]], dtype=torch.float64)
    found = token_logps(logits, tensor([[1, 0, 1]]))
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([math.log(1 / 4), math.log(1 / 5)], abs=1e-12)
    assert seq_logps(found, tensor([[True, True]])).tolist() == pytest.approx([-math.log(20)], abs=1e-12)
    assert seq_logps(found, tensor([[False, True]])).tolist() == pytest.approx([-math.log(5)], abs=1e-12)


def test_against_the_loop():
    """Double precision to 1e-12; control: unshifted, or shifted the other way, is far off."""
    logits, ids = random_case()
    expected = tensor(slow_token_logps(logits, ids), dtype=torch.float64)
    assert torch.allclose(token_logps(logits, ids), expected, rtol=0, atol=1e-12)
    every = torch.log_softmax(logits, -1)
    unshifted = every.gather(-1, ids[..., None]).squeeze(-1)[:, 1:]
    backwards = every[:, 1:].gather(-1, ids[:, :-1, None]).squeeze(-1)
    assert (unshifted - expected).abs().max() > 0.5
    assert (backwards - expected).abs().max() > 0.5


def test_the_last_logits_and_the_first_id_do_not_matter():
    logits, ids = random_case()
    before = token_logps(logits, ids)
    logits[:, -1] = math.nan
    ids[:, 0] = (ids[:, 0] + 1) % 7
    assert torch.equal(token_logps(logits, ids), before)


def test_adding_to_all_logits_of_a_position_changes_nothing():
    """Softmax is blind to a shift, even one of 1e4 where exp overflows (1e-11 for the cancellation)."""
    logits, ids = random_case()
    for shift in (1e4, -1e4):
        assert torch.allclose(token_logps(logits + shift, ids), token_logps(logits, ids), rtol=0, atol=1e-11)


def test_probabilities_sum_to_one():
    logits, ids = random_case(T=2)
    total = sum(
        token_logps(logits, torch.stack([ids[:, 0], torch.full_like(ids[:, 0], token)], 1)).exp() for token in range(7)
    )
    assert torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_gradient_is_one_hot_minus_probabilities():
    logits, ids = random_case(B=1)
    logits.requires_grad_()
    token_logps(logits, ids).sum().backward()
    expected = torch.zeros_like(logits)
    expected[:, :-1] = torch.nn.functional.one_hot(ids[:, 1:], 7) - torch.softmax(logits[:, :-1], -1)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision_of_the_result(given_dtype, expected):
    """Computed on the numbers given: bfloat16 logits are taken as they are and normalised in float32 (1e-5)."""
    logits, ids = random_case(V=50)
    given_logits = logits.to(given_dtype)
    found = token_logps(given_logits, ids)
    exact = tensor(slow_token_logps(given_logits, ids), dtype=torch.float64)
    assert found.dtype == expected
    error = (found.double() - exact).abs().max().item()
    assert error < (1e-12 if given_dtype == torch.float64 else 1e-5)
    if given_dtype == torch.bfloat16:
        low = torch.log_softmax(given_logits, -1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
        assert (low.double() - exact).abs().max().item() > 1e-3, "control: in bfloat16 throughout"


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
def test_padding_changes_neither_the_sum_nor_its_gradient(rubbish):
    """Rubbish in the logits of padded positions, the response mask false there."""
    logits, ids = random_case()
    mask = tensor([[True] * 4, [True, True, False, False], [False, True, True, False]])
    clean = logits.clone().requires_grad_()
    dirty = logits.clone()
    dirty[1, 2:] = rubbish
    dirty[2, 3:] = rubbish
    dirty.requires_grad_()
    results = [seq_logps(token_logps(x, ids), mask) for x in (clean, dirty)]
    assert torch.equal(results[0], results[1])
    for result in results:
        result.sum().backward()
    assert clean.grad is not None and dirty.grad is not None
    real = torch.isfinite(logits[..., 0])
    real[1, 2:] = False
    real[2, 3:] = False
    assert torch.equal(clean.grad[real], dirty.grad[real])
    assert clean.grad[~real].abs().max() == 0.0


def test_gradient_of_a_sum_is_exactly_zero_on_padding():
    """What the loss sees are token log-probabilities; a masked one gets gradient 0 even where it is NaN."""
    logps = tensor([[-1.0, math.nan, -2.0]], requires_grad=True)
    seq_logps(logps, tensor([[True, False, True]])).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == [[1.0, 0.0, 1.0]]


def test_shapes_that_do_not_fit_are_refused():
    logits, ids = random_case()
    for wrong in (ids[:, 1:], ids[:2], ids[0]):
        with pytest.raises(ValueError, match="do not fit ids"):
            token_logps(logits, wrong)
    logps = token_logps(logits, ids)
    with pytest.raises(ValueError, match="but its mask"):
        seq_logps(logps, torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be boolean"):
        seq_logps(logps, torch.ones(3, 4, dtype=torch.long))
