"""Over-optimisation while PPO trains: has the second reward model's score turned though the training reward rises?

The rule itself is `evaluation.overoptimisation`; this is what it is fed, and what a stage says and does of it. Layer 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.overoptimisation import Turn, mean_since, watch


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
