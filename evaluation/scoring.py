"""What the run's reward models say of every policy's sampled answers, and of further answers of the reference.

A part of `measuring`: answers are drawn there, and kept there as soon as they are made. Layer 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from evaluation.finite import require_finite
from evaluation.likelihood import Row
from evaluation.policies import Policies
from evaluation.scores import RewardScorer
from pipeline.artefact import Artefact
from pipeline.context import StageContext
from pipeline.models.reward_model import read_spec

Keep = Callable[[str, str, Callable[[str], dict[str, Any]]], dict[str, Any]]
"""Name of a measurement, a policy, and what measures it: gives what was measured now or before."""


class RewardModels:
    """Scores answers by the run's reward models.

    Args:
        context: of the evaluation.
        policies: gives the models.
        artefacts: stage name to sealed artefact.
        pad_id, precision: as for `RewardScorer`.
        keep: keeps a measurement.
    """

    def __init__(
        self,
        context: StageContext,
        policies: Policies,
        artefacts: Mapping[str, Artefact],
        pad_id: int,
        precision: str,
        keep: Keep,
    ):
        self._context = context
        self._policies = policies
        self._artefacts = artefacts
        self._pad_id = pad_id
        self._precision = precision
        self._keep = keep

    def of_policies(self, figure: str, judge: str, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[float]]:
        """One reward model's scores of every policy's answers, by policy.

        Args:
            figure: what the scores are called.
            judge: the reward stage.
            rows: policy to its answers behind their prompts.
        """
        return {name: self.kept(f"{figure}-{name}", name, judge, found) for name, found in rows.items()}

    def kept(self, task: str, policy: str, judge: str, rows: Sequence[Row]) -> list[float]:
        """Scores of a policy's answers, or those that were found before under the same name."""
        found: list[float] = self._keep(task, policy, partial(self._scores, judge, rows))["scores"]
        return found

    def _scores(self, judge: str, rows: Sequence[Row], policy: str) -> dict[str, Any]:
        members, spec = self._policies.members(judge), read_spec(self._artefacts[judge])
        size = self._context.recipe.evaluation.batch_size
        scorer = RewardScorer(members, spec, self._pad_id, size, self._precision, self._context.ranks)
        task = self._context.progress(f"score of {policy} by {judge}")
        found = scorer.score([ids for ids, _ in rows], task)
        require_finite(found, by=judge, figure="score", of=f"{policy}'s sampled answer", task="score")
        return {"scores": found}
