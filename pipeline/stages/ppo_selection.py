"""Measurements on held-out prompts while PPO trains, and which of the policies measured is handed on.

The score on training prompts keeps rising when the policy has begun to exploit it; so candidates are compared on
prompts they never trained on, the same ones with the same sampling noise, and the policy before the first step is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from data_prep.checks import passes
from evaluation.intervals import bootstrap_mean_ci, paired_bootstrap_ci
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.collect import sequence_divergences
from pipeline.rollouts.rewards import Episode
from pipeline.stages.ppo_setup import Bench, PromptRow

_SEED = 0
"""Held-out answers are drawn with the same noise in every measurement, and in every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One policy on the held-out prompts."""

    rollout: int
    """After how many rollouts; 0 is the policy that the stage started from."""
    scores: list[float]
    """Weighted sum of the rewards, prompt by prompt."""
    divergences: list[float]
    """log pi(y|x) - log ref(y|x), prompt by prompt."""
    objective: float
    """What policies are compared by: mean score after penalties less kl_coef times the divergence."""
    eos_rate: float
    response_tokens: float
    rule_accuracy: float | None = None
    """Share of answers that pass their prompts' rules; None where no prompt has one. Not optimised unless rewarded."""

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(self.scores) / len(self.scores)

    @property
    def kl(self) -> float:
        """Estimated divergence from the reference, in nats per answer."""
        return sum(self.divergences) / len(self.divergences)

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)


class Examiner:
    """Measures the policy as it is on the held-out prompts."""

    def __init__(self, bench: Bench, prompts: Sequence[PromptRow]):
        self._bench = bench
        self._prompts = prompts

    def measure(self, rollout: int) -> Measurement | None:
        """The measurement; None without held-out prompts."""
        if not self._prompts:
            return None
        bench, settings = self._bench, self._bench.settings
        task = partial(bench.context.console.progress, "held-out answers")
        episodes = bench.answer(self._prompts, _SEED, task)
        found = bench.judge(episodes)
        divergences = sequence_divergences(
            bench.roles, episodes, settings.temperature, settings.per_device_batch_size, bench.pad_id,
            bench.context.ranks,
        )  # fmt: skip
        count = len(episodes)
        return Measurement(
            rollout=rollout,
            scores=found.whole,
            divergences=divergences,
            objective=sum(found.used) / count - settings.kl_coef * sum(divergences) / count,
            eos_rate=sum(episode.answer.stopped for episode in episodes) / count,
            response_tokens=sum(len(episode.answer.ids) for episode in episodes) / count,
            rule_accuracy=_rule_accuracy(episodes),
        )


def _rule_accuracy(episodes: Sequence[Episode]) -> float | None:
    right = [passes(one.prompt.check, one.text) for one in episodes if one.prompt.check is not None]
    return sum(right) / len(right) if right else None


def is_better(new: Measurement, best: Measurement | None, settings: PpoSettings) -> bool:
    """Whether a new measurement takes the place of the one selected so far; never outside the KL budget."""
    if settings.kl_max is not None and new.kl > settings.kl_max:
        return False
    return best is None or settings.select == "last" or new.objective > best.objective


def gains(before: Measurement | None, selected: Measurement | None) -> dict[str, Any]:
    """The stage's headline figures; null where there were no held-out prompts."""
    if before is None or selected is None:
        return dict.fromkeys(("score_before", "score", "score_gain", "score_gain_ci95", "kl_to_reference", "eval_n"))
    gain = paired_bootstrap_ci(before.scores, selected.scores)
    divergence = bootstrap_mean_ci(selected.divergences)
    return {
        "score_before": before.score,
        "score": selected.score,
        "score_gain": gain.estimate,
        "score_gain_ci95": gain.bounds,
        "kl_to_reference": divergence.estimate,
        "kl_ci95": divergence.bounds,
        "eos_rate_before": before.eos_rate,
        "eos_rate": selected.eos_rate,
        "response_tokens_before": before.response_tokens,
        "response_tokens": selected.response_tokens,
        "eval_n": len(before.scores),
    }
