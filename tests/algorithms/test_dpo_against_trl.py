"""The loss that is trained (TRL's DPOTrainer, as the stage sets it up) against `pipeline.algorithms.dpo`.

TRL computes on padded batches through its fused head; here every row goes through the model by itself, without
padding, and its log-probabilities into our formulas. Tiny model, float32, uneven rows; relative tolerance 1e-5.
"""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig

from pipeline.algorithms.dpo import dpo_loss
from pipeline.models import adapters
from pipeline.recipe.schema import AdapterSettings
from pipeline.recipe.stage_settings import DpoSettings
from pipeline.stages.dpo import REFERENCE, CommittedDPOTrainer
from pipeline.stages.dpo_loss import loss_arguments

BETA = 0.3
AVERAGED = {"ipo": "ipo", "sigmoid_norm": "sigmoid"}
"""Losses that TRL computes on log-probabilities per token."""


def random_rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Prompts of 1 to 9 tokens, answers of 1 to 12, very uneven."""
    draw = random.Random(seed)
    ids = lambda low, high: [draw.randrange(3, 259) for _ in range(draw.randint(low, high))]  # noqa: E731
    rows = [{"prompt_ids": ids(1, 9), "chosen_ids": ids(1, 12), "rejected_ids": ids(1, 12)} for _ in range(count)]
    rows[0] = {"prompt_ids": ids(9, 9), "chosen_ids": ids(12, 12), "rejected_ids": ids(1, 1)}
    return rows


ROWS = random_rows(4, seed=0)


@pytest.fixture
def policy(lively_model) -> Any:
    """A policy with an adapter that has learnt something."""
    torch.manual_seed(0)
    model = adapters.attach_new(lively_model, AdapterSettings(r=4, alpha=8), dropout=False)
    _stir(model, adapters.TRAINED, 0.02)
    return model


def _stir(model: Any, adapter: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}." in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def trainer_of(
    policy: Any, tokenizer: Any, folder: Path, settings: DpoSettings, *, moved: bool = True, **extra: Any
) -> CommittedDPOTrainer:
    """The stage's trainer; with `moved` the policy has left its reference."""
    arguments: dict[str, Any] = {**loss_arguments(settings), **extra}
    config = DPOConfig(
        output_dir=str(folder), beta=settings.beta, max_length=None, use_cpu=True, bf16=False, report_to="none",
        gradient_checkpointing=False, disable_tqdm=True, **arguments,
    )  # fmt: skip
    trainer = CommittedDPOTrainer(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
        rpo_alpha=settings.rpo_alpha if settings.loss_type == "rpo" else None,
    )
    if moved:
        _stir(policy, adapters.TRAINED, 0.02)
    return trainer


def trl_loss(trainer: CommittedDPOTrainer, rows: list[dict[str, list[int]]]) -> Tensor:
    return trainer._compute_loss(trainer.model, trainer.data_collator(rows), False)


def row_logps(model: Any, row: dict[str, list[int]], answer: str) -> Tensor:
    """log pi of each answer token, from one unpadded forward pass."""
    prompt, ids = row["prompt_ids"], [*row["prompt_ids"], *row[answer]]
    logps = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
    return torch.stack([logps[at - 1, ids[at]] for at in range(len(prompt), len(ids))])


def four(model: Any, rows: list[dict[str, list[int]]], *, averaged: bool = False) -> tuple[Tensor, ...]:
    """Policy chosen and rejected, reference chosen and rejected, (B,) each."""

    def side(answer: str) -> Tensor:
        found = [row_logps(model, row, answer) for row in rows]
        return torch.stack([logps.mean() if averaged else logps.sum() for logps in found])

    policy = side("chosen_ids"), side("rejected_ids")
    model.set_adapter(REFERENCE, inference_mode=True)
    with torch.no_grad():
        reference = side("chosen_ids"), side("rejected_ids")
    model.set_adapter(adapters.TRAINED)
    return (*policy, *reference)


SETTINGS = [
    *(("sigmoid", e) for e in (0.0, 0.1, 0.4)),
    *(("robust", e) for e in (0.0, 0.1)),
    *(("exo_pair", e) for e in (1e-3, 0.2)),
    *((name, e) for name in ("aot", "aot_unpaired") for e in (0.0, 0.2)),
    *((name, 0.0) for name in ("hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop")),
    *((name, 0.0) for name in AVERAGED),
]


@pytest.mark.parametrize(("loss_type", "e"), SETTINGS)
def test_every_loss_is_what_the_formula_says(policy, tiny_tokenizer, tmp_path, loss_type, e):
    """Among them conservative DPO, which TRL has only as a sum of two others."""
    settings = DpoSettings(loss_type=loss_type, label_smoothing=e, beta=BETA)
    trainer = trainer_of(policy, tiny_tokenizer, tmp_path, settings)
    with torch.no_grad():
        found = trl_loss(trainer, ROWS).item()
    tensors = four(policy, ROWS, averaged=loss_type in AVERAGED)
    expected = dpo_loss(*tensors, BETA, AVERAGED.get(loss_type, loss_type), e).losses_B
    assert found == pytest.approx(expected.mean().item(), rel=1e-5, abs=1e-5)
    assert expected.std().item() > 1e-3, "the rows must differ, or the mean proves little"
    if loss_type in AVERAGED:
        summed = dpo_loss(*four(policy, ROWS), BETA, AVERAGED[loss_type], e).losses_B.mean().item()
        assert abs(found - summed) > 1e-2, "control: sums instead of averages"


def test_the_settings_cover_every_loss_of_a_recipe():
    from pipeline.recipe.stage_settings import DPO_LOSSES

    assert {name for name, _ in SETTINGS} | {"rpo"} == set(DPO_LOSSES)


def test_label_smoothing_alone_would_be_ignored(policy, tiny_tokenizer, tmp_path):
    """Why conservative DPO is composed: TRL's `sigmoid` with label smoothing is plain DPO."""
    plain = DpoSettings(beta=BETA)
    trainer = trainer_of(policy, tiny_tokenizer, tmp_path, plain, label_smoothing=0.4)
    found = trl_loss(trainer, ROWS).item()
    tensors = four(policy, ROWS)
    assert found == pytest.approx(dpo_loss(*tensors, BETA).losses_B.mean().item(), rel=1e-5)
    assert abs(found - dpo_loss(*tensors, BETA, "sigmoid", 0.4).losses_B.mean().item()) > 1e-2


@pytest.mark.parametrize(("loss_type", "e"), [("sigmoid", 0.0), ("sigmoid", 0.1), ("rpo", 0.0)])
def test_gradients_agree(policy, tiny_tokenizer, tmp_path, loss_type, e):
    """On the trained adapter, to 1e-5 of the largest entry; the reference gets none."""
    settings = DpoSettings(loss_type=loss_type, label_smoothing=e, beta=BETA, rpo_alpha=0.5)
    trainer = trainer_of(policy, tiny_tokenizer, tmp_path, settings)
    trained = [parameter for name, parameter in policy.named_parameters() if f".{adapters.TRAINED}." in name]
    found = torch.autograd.grad(trl_loss(trainer, ROWS), trained)
    assert all(p.grad is None and not p.requires_grad for n, p in policy.named_parameters() if f".{REFERENCE}." in n)
    tensors = four(policy, ROWS)
    total = dpo_loss(*tensors, BETA, "sigmoid", e).losses_B.mean()
    if loss_type == "rpo":
        total = total + 0.5 * torch.stack([-row_logps(policy, row, "chosen_ids").mean() for row in ROWS]).mean()
    expected = torch.autograd.grad(total, trained)
    largest = max(gradient.abs().max().item() for gradient in expected)
    assert largest > 1e-2
    for mine, theirs in zip(expected, found, strict=True):
        assert (mine - theirs).abs().max().item() < 1e-5 * max(largest, 1.0)


# RPO


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_rpo_adds_the_likelihood_of_each_answer(policy, tiny_tokenizer, tmp_path, alpha):
    """DPO + alpha * mean over pairs of (-log pi(chosen) / its tokens)."""
    settings = DpoSettings(loss_type="rpo", rpo_alpha=alpha, beta=BETA)
    trainer = trainer_of(policy, tiny_tokenizer, tmp_path, settings)
    found = trl_loss(trainer, ROWS).item()
    with torch.no_grad():
        dpo = dpo_loss(*four(policy, ROWS), BETA).losses_B.mean().item()
        nll = [-row_logps(policy, row, "chosen_ids").mean().item() for row in ROWS]
        over_tokens = [-row_logps(policy, row, "chosen_ids") for row in ROWS]
    assert found == pytest.approx(dpo + alpha * sum(nll) / len(nll), rel=1e-5)
    assert abs(torch.cat(over_tokens).mean().item() - sum(nll) / len(nll)) > 1e-2, "control: the two means differ"
    assert trainer._metrics["eval" if not policy.training else "train"]["nll/chosen"] == pytest.approx(
        [sum(nll) / len(nll)], rel=1e-5
    )


def test_rpo_does_not_depend_on_how_rows_fall_into_batches(policy, tiny_tokenizer, tmp_path):
    """Whole, in twos, one by one: one loss. Control: TRL's own `sft` term gives three different ones."""

    def spread(trainer: CommittedDPOTrainer) -> float:
        with torch.no_grad():
            values = [
                sum(trl_loss(trainer, ROWS[at : at + size]).item() for at in range(0, 4, size)) / (4 // size)
                for size in (4, 2, 1)
            ]
        return max(values) - min(values)

    twin = copy.deepcopy(policy)
    ours = trainer_of(policy, tiny_tokenizer, tmp_path, DpoSettings(loss_type="rpo", beta=BETA))
    theirs = trainer_of(
        twin, tiny_tokenizer, tmp_path, DpoSettings(beta=BETA), loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]
    )
    assert spread(ours) < 2e-5
    assert spread(theirs) > 1e-2


# The first step


@pytest.mark.parametrize("loss_type", ["sigmoid", "rpo"])
def test_training_starts_at_log_two_with_ties(policy, tiny_tokenizer, tmp_path, loss_type):
    """The policy is its reference: loss log 2 to 1e-6, margins exactly 0, no pair counted as won."""
    settings = DpoSettings(loss_type=loss_type, beta=BETA, rpo_alpha=0.5)
    trainer = trainer_of(policy, tiny_tokenizer, tmp_path, settings, moved=False)
    found = trl_loss(trainer, ROWS).item()
    metrics = trainer._metrics["train" if policy.training else "eval"]
    if loss_type == "rpo":
        found -= 0.5 * metrics["nll/chosen"][0]
    assert found == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected"):
        assert metrics[name] == [0.0], name
    _stir(policy, adapters.TRAINED, 0.02)
    assert abs(trl_loss(trainer, ROWS).item() - math.log(2)) > 1e-2, "control: away from the reference"
    assert metrics["rewards/margins"][1] != 0.0


def test_one_small_step_raises_the_margin(policy, tiny_tokenizer, tmp_path):
    """Down the gradient from the reference the mean margin grows at the rate the gradient says (to 5 %)."""
    trainer = trainer_of(policy, tiny_tokenizer, tmp_path, DpoSettings(beta=BETA), moved=False)
    trained = [parameter for name, parameter in policy.named_parameters() if f".{adapters.TRAINED}." in name]
    loss = trl_loss(trainer, ROWS)
    gradient = torch.autograd.grad(loss, trained)
    step = 1e-5
    with torch.no_grad():
        for parameter, slope in zip(trained, gradient, strict=True):
            parameter.sub_(step * slope)
        after = trl_loss(trainer, ROWS)
    expected = step * sum(slope.square().sum().item() for slope in gradient)
    assert expected > 1e-5
    assert loss.item() - after.item() == pytest.approx(expected, rel=0.05)
    assert trainer._metrics["train" if policy.training else "eval"]["rewards/margins"][1] > 0


def test_the_metrics_are_the_implicit_rewards(policy, tiny_tokenizer, tmp_path):
    """Both through TRL's loss and through RPO's."""
    twin = copy.deepcopy(policy)
    for model, loss_type in ((policy, "sigmoid"), (twin, "rpo")):
        trainer = trainer_of(model, tiny_tokenizer, tmp_path, DpoSettings(loss_type=loss_type, beta=BETA))
        trl_loss(trainer, ROWS)
        metrics = trainer._metrics["train" if model.training else "eval"]
        with torch.no_grad():
            found = dpo_loss(*four(model, ROWS), BETA)
        won = (found.chosen_rewards_B > found.rejected_rewards_B).float().mean().item()
        assert metrics["rewards/chosen"] == pytest.approx([found.chosen_rewards_B.mean().item()], rel=1e-4, abs=1e-5)
        assert metrics["rewards/rejected"] == pytest.approx(
            [found.rejected_rewards_B.mean().item()], rel=1e-4, abs=1e-5
        )
        assert metrics["rewards/accuracies"] == pytest.approx([won])
