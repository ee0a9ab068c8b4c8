"""TRL's RewardTrainer on rows that are tokenised already, under the commit protocol and with its head in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import RewardTrainer

from pipeline.models.forward import causal_model
from pipeline.stages.offline import CommittedTrainer
from pipeline.stages.reward_objective import MarginPair


class CommittedRewardTrainer(CommittedTrainer, RewardTrainer):
    """TRL's trainer under the commit protocol.

    Its loss is `pipeline.algorithms.bradley_terry`'s, averaged over the pairs of a micro-batch.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # On a quantised base TRL casts everything that is trained to bfloat16, in which scores near 8 tie.
        causal_model(self.model).score.float()

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def trainer_rows(pairs: Sequence[MarginPair]) -> list[dict[str, Any]]:
    """The trainer's rows: prompt and answer as one, and the margin where any pair has one."""
    found: list[dict[str, Any]] = [
        {"chosen_ids": [*row.prompt_ids, *row.chosen_ids], "rejected_ids": [*row.prompt_ids, *row.rejected_ids]}
        for row, _ in pairs
    ]
    if any(margin for _, margin in pairs):
        for each, (_, margin) in zip(found, pairs, strict=True):
            each["margin"] = margin
    return found
