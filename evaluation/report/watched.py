"""Whether a PPO or DPO stage went past the point where what it raises meant something, in words, from what it logged.

The second opinion is whatever the stage logged on held-out prompts besides what it trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evaluation.report.load import Stage
from evaluation.report.measures import plain

if TYPE_CHECKING:
    from evaluation.overoptimisation import Turn

OPINIONS: Mapping[str, str] = {
    "score_heldout": "the held-out score of a reward model that training does not use",
    "rule_accuracy": "the share of held-out prompts answered right",
}
"""What can show that the reward has stopped to mean something: held-out figures of a stage, the best first."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a kind of stage raises, and how it is spoken of."""

    name: str
    called: str
    step: str
    consequence: str


_TRAINED: Mapping[str, _Trained] = {
    "ppo": _Trained(
        "objective/score", "the training reward", "rollout",
        "Later policies have learned the faults of the reward: hand on one from before, raise kl_coef, or end earlier.",
    ),
    "dpo": _Trained(
        "rewards/margins", "the preference margin", "step",
        "Later policies are worse for it: write select: heldout, raise beta, or end earlier.",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the watch says of one stage."""

    told: str
    turned: bool
    opinion: str = ""
    """Name of the held-out figure that was watched."""
    step: float | None = None
    """Where it turned."""


def watched(stage: Stage) -> Watched | None:
    """A sentence on the stage; None where it logged no second opinion at all, or is of a kind that has none."""
    trained = _TRAINED.get(stage.kind)
    if trained is None:
        return None
    # Reports are written by a light process, which most of them need no numpy for.
    from evaluation.overoptimisation import LEAST, mean_since, watch

    held_out = _by_step(stage, "eval")
    opinion = next((name for name in OPINIONS if any(name in row for row in held_out.values())), None)
    if opinion is None:
        return None
    steps = [step for step in sorted(held_out) if opinion in held_out[step]]
    if len(steps) < LEAST:
        few = f"{len(steps)} measurements of {OPINIONS[opinion]}"
        return Watched(told=f"Too few to watch for over-optimisation: {few}, {LEAST} are needed.", turned=False)
    rewards = {p.step: p.value for p in stage.points if p.split == "train" and p.name == trained.name}
    training = [mean_since(rewards, before, step) for before, step in zip([-1.0, *steps], steps, strict=False)]
    scores, kl = ([held_out[step].get(name) for step in steps] for name in (opinion, "kl_seq"))
    turn = watch(steps, training, scores, kl)
    return Watched(
        told=_told(turn, opinion, trained),
        turned=turn is not None,
        opinion=opinion,
        step=None if turn is None else turn.step,
    )


def _told(turn: Turn | None, opinion: str, trained: _Trained) -> str:
    if turn is None:
        return f"No over-optimisation shown: {OPINIONS[opinion]} has not turned while {trained.called} rose."
    at = "" if turn.kl is None else f", at {plain(turn.kl)} nats"
    return (
        f"Over-optimisation: {trained.called} still rises, but {OPINIONS[opinion]} turned near {trained.step} "
        f"{turn.step:.0f}{at}, and fell from {plain(turn.best)} to {plain(turn.last)}. {trained.consequence}"
    )


def _by_step(stage: Stage, split: str) -> dict[float, dict[str, float | None]]:
    found: dict[float, dict[str, float | None]] = {}
    for point in stage.points:
        if point.split == split:
            found.setdefault(point.step, {})[point.name] = point.value
    return found
