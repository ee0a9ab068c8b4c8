"""What a PPO stage watches while it trains, and what it says of it.

Over-optimisation: has the second reward model's score turned though the training reward rises? The rule itself is
`evaluation.overoptimisation`. And the importance ratio, which is 1 until the first step. Layer 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.overoptimisation import Turn, mean_since, watch
from pipeline.context import StageContext
from pipeline.errors import TrivetError
from pipeline.rollouts.rewards import Episode
from pipeline.stages.batch_rows import last_complete, named
from pipeline.stages.ppo_report import UpdateReport
from pipeline.stages.ppo_update import RATIO_EXPLODED, NotFiniteError

FIRST_RATIO = {"fp32": 1e-3}
ROUGH_FIRST_RATIO = 0.05
"""How far the mean ratio before a rollout's first step may be from 1: in fp32, else (0.003 was seen)."""
SAMPLER_APART = 0.1
"""Nats per token by which sampler and trainer may differ on average; weights merged in bf16 gave 0.035 to 0.05."""


def turn_so_far(measured: Sequence[Mapping[str, float]], scores: Sequence[float]) -> Turn | None:
    """The turn that the measurements up to now show, if any.

    Args:
        measured: rows of `rollout`, `score_heldout` and `kl_seq`, in order; without held-out scores there is no turn.
        scores: mean training reward of every rollout so far.
    """
    rows = [row for row in measured if "score_heldout" in row]
    by_rollout = {float(number): score for number, score in enumerate(scores, start=1)}
    steps = [float(row["rollout"]) for row in rows]
    training = [mean_since(by_rollout, before, step) for before, step in zip([-1.0, *steps], steps, strict=False)]
    return watch(steps, training, [row["score_heldout"] for row in rows], [row["kl_seq"] for row in rows])


def as_figures(turn: Turn) -> dict[str, Any]:
    """For checkpoints and results."""
    return {"rollout": turn.step, "kl": turn.kl, "best": turn.best, "last": turn.last}


def sentence(turn: Mapping[str, Any], judge: str, rollout: int, *, ends: bool) -> str:
    """What the console is told when the turn shows first.

    Args:
        turn: by `as_figures`.
        judge: the reward stage that is watched.
        rollout: the last one.
        ends: whether training ends for it.
    """
    consequence = "training ends" if ends else "later policies learn the faults of the reward"
    return (
        f"rollout {rollout}: the training reward still rises, but the score by {judge} turned near rollout "
        f"{turn['rollout']:.0f} and fell from {turn['best']:.2f} to {turn['last']:.2f}: {consequence}"
    )


def not_finite(error: NotFiniteError, context: StageContext, rollout: int, episodes: Sequence[Episode]) -> TrivetError:
    """The same error with where it happened: rollout, minibatch, prompts, and what the stage would go on from.

    Args:
        error: of the learner.
        context: of the stage.
        rollout: its number, from 1.
        episodes: of the rollout, of all ranks.
    """
    origins = [episodes[row].prompt.origin for row in error.rows]
    prompts = named(list(dict.fromkeys(f"{each.source}:{each.row}" for each in origins)))
    return TrivetError(
        f"{error} (rollout {rollout}, minibatch {error.minibatch + 1}); "
        f"{last_complete(context.checkpoints)}. It was computed on answers to the prompts of rows {prompts}. Lower "
        "learning_rate, raise kl_coef, or use precision: fp32"
    )


def ratio_warnings(report: UpdateReport, sampler_apart: float, rollout: int, precision: str) -> list[str]:
    """Sentences on importance ratios that no rounding explains; none for an honest rollout.

    Args:
        report: of the rollout's learning.
        sampler_apart: mean |log mu - log pi_old| per token, in nats; 0 where the sampler reports nothing.
        rollout: its number, from 1.
        precision: of the forward pass.
    """
    found = []
    allowed = FIRST_RATIO.get(precision, ROUGH_FIRST_RATIO)
    if abs(report.first_mean - 1) > allowed:
        found.append(
            f"rollout {rollout}: the mean ratio is {report.first_mean:.3g} before the first step, where the policy "
            f"is still the one that was scored and {precision} allows 1 +- {allowed:g}: the two passes differ in "
            "precision, temperature or template, so what is learnt is off; "
            "try precision: fp32, and report this if it stays"
        )
    if sampler_apart > SAMPLER_APART:
        found.append(
            f"rollout {rollout}: the sampling engine's log-probabilities are {sampler_apart:.2g} nats per token from "
            f"the trainer's, where rounding explains {SAMPLER_APART:g}: they disagree in precision, temperature, chat "
            "template or weights; compare the server's model and settings with the recipe's, or use rollout_engine: "
            "generate"
        )
    if report.exploded is not None:
        found.append(
            f"rollout {rollout}: the mean ratio of a minibatch was {report.exploded:.3g}, over {RATIO_EXPLODED:g}: "
            "nothing is learnt from it and the rest of this rollout; lower learning_rate or epochs"
        )
    return found
