"""Rows of very uneven lengths behind one system message, for trainings of a few steps on the tiny model."""

from __future__ import annotations

import random
from typing import Any

import torch

from data_prep.chat import EncodedDemonstration, EncodedPair

STEPS, PER_STEP = 12, 6
SYSTEM = list(range(3, 15))


def demonstrations() -> list[EncodedDemonstration]:
    draw, rows = random.Random(0), []
    for _ in range(STEPS * PER_STEP):
        prompt, answer = ([draw.randrange(3, 259) for _ in range(draw.randint(1, 14))] for _ in range(2))
        mask = [False] * (len(SYSTEM) + len(prompt)) + [True] * len(answer)
        rows.append(EncodedDemonstration([*SYSTEM, *prompt, *answer], mask, False))
    return rows


def pairs() -> list[EncodedPair]:
    draw, rows = random.Random(1), []
    for _ in range(STEPS * PER_STEP):
        prompt, chosen, rejected = ([draw.randrange(3, 259) for _ in range(draw.randint(1, 14))] for _ in range(3))
        rows.append(EncodedPair([*SYSTEM, *prompt], chosen, rejected, False))
    return rows


def trained(trainer: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Logged values of each step, and the adapter afterwards."""
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    weights = {name: value.detach() for name, value in trainer.model.named_parameters() if value.requires_grad}
    return logged, weights
