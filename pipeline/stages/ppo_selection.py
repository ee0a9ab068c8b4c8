"""Measurements on held-out prompts while PPO trains, and which of the policies measured is handed on.

The score on training prompts keeps rising when the policy has begun to exploit it; so candidates are compared on
prompts they never trained on, the same ones with the same sampling noise, and the policy before the first step is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from data_prep.checks import passes
from evaluation.intervals import bootstrap_mean_ci, paired_bootstrap_ci
from evaluation.text_measures import repetition
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.collect import sequence_divergences
from pipeline.rollouts.rewards import Episode
from pipeline.stages.ppo_setup import Bench
from pipeline.stages.prompts import PromptRow

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
    scores_heldout: list[float] | None = None
    """By the reward model that is watched, prompt by prompt; None without one."""
    rule_accuracy: float | None = None
    """Share of answers that pass their prompts' rules; None where no prompt has one. Not optimised unless rewarded."""
    repeat_ngram: float | None = None
    """Share of an answer's token 4-grams that occurred in it before; None in checkpoints of before it was measured."""
    answers: list[dict[str, float]] = field(default_factory=list)
    """Prompt by prompt the score after penalties (`score_used`), `tokens`, and `eos`; empty in such checkpoints."""

    def rows(self) -> list[dict[str, float | None]]:
        """What each prompt gave, in order."""
        watched: list[float | None] = [None] * len(self.scores)
        if self.scores_heldout is not None:
            watched = [*self.scores_heldout]
        columns = zip(self.scores, self.divergences, watched, self.answers, strict=True)
        return [{"score": score, "kl": kl, "score_heldout": other, **rest} for score, kl, other, rest in columns]

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(self.scores) / len(self.scores)

    @property
    def score_heldout(self) -> float | None:
        """Mean score by the reward model that is watched."""
        return None if self.scores_heldout is None else sum(self.scores_heldout) / len(self.scores_heldout)

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
            scores_heldout=None if bench.watched is None else bench.watched.scores(episodes),
            rule_accuracy=_rule_accuracy(episodes),
            repeat_ngram=repetition([episode.answer.ids for episode in episodes]),
            answers=[
                {"score_used": used, "tokens": len(episode.answer.ids), "eos": episode.answer.stopped}
                for used, episode in zip(found.used, episodes, strict=True)
            ],
        )


def _rule_accuracy(episodes: Sequence[Episode]) -> float | None:
    right = [passes(one.prompt.check, one.text) for one in episodes if one.prompt.check is not None]
    return sum(right) / len(right) if right else None


def is_better(new: Measurement, best: Measurement | None, settings: PpoSettings) -> bool:
    """Whether a new measurement takes the place of the one selected so far; never outside the KL budget."""
    if settings.kl_max is not None and new.kl > settings.kl_max:
        return False
    if best is None or settings.select == "last":
        return True
    return _worth(new, settings) > _worth(best, settings)


def _worth(found: Measurement, settings: PpoSettings) -> float:
    """What policies are compared by: the objective, or the same with the score of the model that is watched."""
    if settings.select == "heldout" and found.score_heldout is not None:
        return found.score_heldout - settings.kl_coef * found.kl
    return found.objective


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
        **_heldout_gain(before, selected),
    }


def _heldout_gain(before: Measurement, selected: Measurement) -> dict[str, Any]:
    """The same by the reward model that is watched; nothing without one."""
    if before.scores_heldout is None or selected.scores_heldout is None:
        return {}
    gain = paired_bootstrap_ci(before.scores_heldout, selected.scores_heldout)
    return {
        "score_heldout_before": before.score_heldout,
        "score_heldout": selected.score_heldout,
        "score_heldout_gain": gain.estimate,
        "score_heldout_gain_ci95": gain.bounds,
    }
