"""The fused head against plain log-softmax: values, gradients, chunks, entropies, masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.algorithms.linear_logps import linear_token_scores
from pipeline.algorithms.logps import chunked_token_logps

torch.manual_seed(0)
HIDDEN = torch.randn(2, 5, 7, dtype=torch.float64)
WEIGHT = torch.randn(11, 7, dtype=torch.float64)
TARGETS = torch.randint(0, 11, (2, 5))
MASK = torch.tensor([[True, True, False, True, True], [False, True, True, False, True]])
COEFFICIENTS = torch.randn(2, 5, dtype=torch.float64)


def plain(hidden: Tensor, scale: float = 1.0) -> Tensor:
    return torch.log_softmax(scale * hidden @ WEIGHT.T, -1).gather(-1, TARGETS[..., None])[..., 0]


@pytest.mark.parametrize(("factor", "temperature"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (0.25, 0.7)])
@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_values_and_gradients(factor, temperature, chunk):
    ours, slow = HIDDEN.clone().requires_grad_(), HIDDEN.clone().requires_grad_()
    found = linear_token_scores(ours, WEIGHT, TARGETS, temperature, chunk, factor=factor).logps_BR
    expected = plain(slow, factor / temperature)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    (found * COEFFICIENTS).sum().backward()
    (expected * COEFFICIENTS).sum().backward()
    assert torch.allclose(ours.grad, slow.grad, rtol=0, atol=1e-12)
    assert ours.grad.abs().max() > 0.1


def test_by_finite_differences():
    hidden = HIDDEN[:1, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: linear_token_scores(x, WEIGHT, TARGETS[:1, :3], 0.7, 2).logps_BR, (hidden,)
    )


def test_what_the_mask_leaves_out_costs_and_changes_nothing():
    hidden = HIDDEN.clone()
    hidden[~MASK] = torch.nan
    hidden.requires_grad_()
    found = linear_token_scores(hidden, WEIGHT, TARGETS, entropy=True, mask_BR=MASK)
    assert torch.equal(found.logps_BR[~MASK], torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(found.logps_BR[MASK], plain(HIDDEN)[MASK], atol=1e-12)
    found.logps_BR.sum().backward()
    assert torch.equal(hidden.grad[~MASK], torch.zeros(3, 7, dtype=torch.float64)) and hidden.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_the_other_formulation_gives_the_same_bits(temperature):
    """In float32 too: where one scores a policy and the other trains it, the first ratio must be exactly 1."""
    hidden, weight = HIDDEN.float(), WEIGHT.float()
    ours = linear_token_scores(hidden, weight, TARGETS, temperature, 4, entropy=True)
    theirs = chunked_token_logps(hidden, lambda h: h @ weight.T, TARGETS, temperature, chunk=4, entropy=True)
    assert torch.equal(ours.logps_BR, theirs.logps_BR)
    assert ours.entropies_BR is not None and theirs.entropies_BR is not None
    assert torch.allclose(ours.entropies_BR, theirs.entropies_BR, atol=1e-6)
    assert linear_token_scores(HIDDEN, WEIGHT, TARGETS).entropies_BR is None


def test_half_precision_keeps_float32_sums():
    found = linear_token_scores(HIDDEN.bfloat16(), WEIGHT.bfloat16(), TARGETS).logps_BR
    assert found.dtype == torch.float32
    assert (found - plain(HIDDEN)).abs().max() < 0.2


def test_refusals():
    with pytest.raises(ValueError, match="the head is trained"):
        linear_token_scores(HIDDEN, WEIGHT.clone().requires_grad_(), TARGETS)
    with torch.no_grad():
        linear_token_scores(HIDDEN, WEIGHT.clone().requires_grad_(), TARGETS)
    for hidden, targets in ((HIDDEN[0], TARGETS), (HIDDEN[..., :-1], TARGETS), (HIDDEN, TARGETS[:, :-1])):
        with pytest.raises(ValueError, match="do not fit"):
            linear_token_scores(hidden, WEIGHT, targets)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        linear_token_scores(HIDDEN, WEIGHT, TARGETS, chunk=0)
