"""Reward-model and policy losses against TRL's own trainers, whose methods run here on given scores and log-probs.

TRL 1.16 has no PPO, but its GRPO trainer has the same clipped surrogate per token; `delta`, its cap on the ratio, is
the dual clip where it lies above 1 + clip_high. Double precision, 1e-14.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer, RewardTrainer
from trl.trainer.utils import selective_log_softmax_and_entropy

from pipeline.algorithms.bradley_terry import bradley_terry_loss
from pipeline.algorithms.logps import chunked_token_logps, token_logps
from pipeline.algorithms.ppo import policy_loss

ALONE = SimpleNamespace(
    gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
)
"""An accelerator of one process."""


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Reward model


@pytest.mark.parametrize("c", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry(c, with_margin):
    """The mean over pairs, and the gradient of every score."""
    chosen, rejected, margin = 2 * draw(3, 5, seed=0)
    theirs = torch.cat([chosen, rejected]).requires_grad_()
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=c),
        accelerator=ALONE,
        _total_train_tokens=0,
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {"attention_mask": torch.ones(10, 1)} | ({"margin": margin} if with_margin else {})
    expected = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=theirs[:, None]), inputs)
    expected.backward()

    ours = torch.stack([chosen, rejected]).requires_grad_()
    found = bradley_terry_loss(*ours, margin if with_margin else None, c or 0.0).mean()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-14)
    assert theirs.grad is not None and ours.grad is not None
    assert torch.allclose(ours.grad.flatten(), theirs.grad, rtol=0, atol=1e-14)


# Policy


LOSS_TYPES = {"bnpo": "token_mean", "grpo": "sequence_mean", "luspo": "sequence_sum", "dr_grpo": "constant"}


def trl_loss(
    loss_type: str, logps: Tensor, old: Tensor, A: Tensor, mask: Tensor, delta: float | None, weights: Tensor | None
) -> tuple[Tensor, dict[str, list[float]]]:
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logps, torch.zeros_like(logps), None),
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(delta=delta),
        accelerator=ALONE,
        loss_type=loss_type, beta=0.0, epsilon_low=0.2, epsilon_high=0.28, max_completion_length=logps.shape[1],
        importance_sampling_level="token", top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        aux_loss_enabled=False, _entropy_bonus_enabled=False,
        use_vllm=weights is not None, vllm_importance_sampling_correction=True,
        _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    ids = torch.zeros_like(mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.double(),
        "advantages": A, "old_per_token_logps": old, "importance_sampling_ratio": weights,
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["eval"]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_policy_loss(loss_type, dual_clip, weighted):
    """Loss, gradient and clip fractions, with responses of uneven length, some ratios beyond every bound."""
    logps, A = draw(6, 8, seed=1), draw(6, 8, seed=2)
    old = logps + 0.5 * draw(6, 8, seed=3)
    weights = draw(6, 8, seed=4).exp().clamp(max=2.0) if weighted else None
    mask = torch.arange(8) < torch.tensor([8, 1, 5, 3, 8, 2])[:, None]

    theirs, ours = (logps.clone().requires_grad_() for _ in range(2))
    expected, metrics = trl_loss(loss_type, theirs, old, A, mask, dual_clip, weights)
    expected.backward()
    found, diagnostics = policy_loss(
        ours, old, A, mask, 0.2, 0.28, dual_clip, weights_BR=weights, aggregation=LOSS_TYPES[loss_type]
    )
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-14)
    assert theirs.grad is not None and ours.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-14)
    assert diagnostics.clipfrac_high.item() == pytest.approx(metrics["clip_ratio/high_mean"][0], abs=1e-6)
    assert diagnostics.clipfrac_low.item() == pytest.approx(metrics["clip_ratio/low_mean"][0], abs=1e-6)
    assert diagnostics.clipfrac_high > 0 and diagnostics.clipfrac_low > 0
    assert (diagnostics.clipfrac_dual > 0) == (dual_clip is not None)


# Log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropies(temperature):
    """`selective_log_softmax_and_entropy`, values and gradients (1e-13)."""
    logits = 3.0 * draw(3, 5, 11, seed=5)
    ids = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([5, 0, 2])[:, None]
    gradients = []
    for function in (
        lambda x: selective_log_softmax_and_entropy(x, ids, temperature=temperature, row_mask=mask),
        lambda x: chunked_token_logps(x, lambda h: h, ids, temperature, chunk=3, entropy=True, mask_BR=mask),
    ):
        x = logits.clone().requires_grad_()
        logps, entropies = function(x)
        gradients.append((logps, entropies, *torch.autograd.grad((logps + 0.3 * entropies.square()).sum(), x)))
    for theirs, ours in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)
    pad = torch.nn.functional.pad
    shifted = token_logps(pad(logits, (0, 0, 0, 1)), pad(ids, (1, 0)), temperature)
    assert torch.allclose(shifted[mask], gradients[0][0][mask], rtol=0, atol=1e-13)
