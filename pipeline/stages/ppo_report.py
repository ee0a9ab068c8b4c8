"""What learning from one rollout looked like: figures of its steps, over tokens and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.rollouts.collect import MicroBatch

Seen = dict[str, Any]
"""What one pass over a micro-batch showed, as ranks tell each other."""


@dataclass(slots=True)
class UpdateReport:
    """What one rollout's learning looked like, over all ranks."""

    steps: int = 0
    first_maxdev: float = 0.0
    """Largest |ratio - 1| before the first step: 0, or old and new log-probabilities are not of one kind."""
    sums: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    ratio_max: float = 0.0
    stopped_early: bool = False
    first_mean: float = 1.0
    """Mean ratio of the first minibatch, before the policy has changed: 1, for the same reason."""
    exploded: float | None = None
    """Mean ratio of the minibatch for which learning from this rollout ended, if one was beyond all bounds."""

    def add(self, name: str, value: float, weight: float = 1.0) -> None:
        """Take a value into the mean of that name."""
        self.sums[name] = self.sums.get(name, 0.0) + value * weight
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def means(self) -> dict[str, float]:
        """The weighted mean of everything that was added."""
        return {name: total / max(self.weights[name], 1e-12) for name, total in self.sums.items()}


def seen_in(micro: MicroBatch, loss: Tensor, diagnostics: Any) -> Seen:
    """What a pass over a micro-batch showed: its part of the step's loss, its rows, and means over its tokens."""
    return {
        "loss": loss.item(), "rows": list(micro.rows), **{k: float(v) for k, v in diagnostics._asdict().items()},
    }  # fmt: skip


def token_mean(everywhere: Sequence[Seen], name: str) -> float:
    """The mean of a figure over all tokens of a step, from what was seen in its micro-batches on all ranks."""
    tokens = sum(each["tokens"] for each in everywhere)
    return float(sum(each[name] * each["tokens"] for each in everywhere) / max(tokens, 1.0))
