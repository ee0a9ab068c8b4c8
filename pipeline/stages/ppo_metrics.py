"""What a rollout looked like: the figures to watch a PPO run by, as (sum, count) over all ranks.

Names: objective/* is what is optimised, policy/* and value/* how learning went, response/* what answers look like.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from evaluation.text_measures import repetition
from pipeline.algorithms.kl import k1, k3
from pipeline.algorithms.masked import Moments, masked_sum
from pipeline.algorithms.ppo import effective_sample_size
from pipeline.peak_memory import begin_phase
from pipeline.rollouts.collect import MicroBatch, moments_over_ranks
from pipeline.rollouts.rewards import Episode, Scores
from pipeline.runtime import Ranks, gather_lists


class Times:
    """Wall-clock seconds of the phases of a rollout, and the most memory each took on a GPU."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block."""
        begin_phase()
        started = time.monotonic()
        yield
        self._seconds[phase] = time.monotonic() - started
        if torch.cuda.is_available():
            self._peaks[phase] = torch.cuda.max_memory_allocated() / 2**30

    @property
    def total(self) -> float:
        """All seconds together."""
        return max(sum(self._seconds.values()), 1e-9)

    def metrics(self) -> dict[str, float]:
        """Seconds and GiB by phase."""
        return {
            **{f"time/{phase}": seconds for phase, seconds in self._seconds.items()},
            **{f"mem/peak_{phase}": peak for phase, peak in self._peaks.items()},
        }


def rollout_metrics(
    episodes: Sequence[Episode],
    scores: Scores,
    minibatches: Sequence[Sequence[MicroBatch]],
    kl_coef: float,
    ranks: Ranks,
    samples: int = 1,
) -> tuple[dict[str, float], list[float]]:
    """Figures of a rollout before anything is learnt from it, and each episode's divergence, in order.

    Args:
        episodes: of all ranks.
        scores: of all episodes.
        minibatches: this rank's.
        kl_coef: that the rewards were made with.
        ranks: this process among its peers.
        samples: answers to each prompt, next to one another.
    """
    mine = [micro for minibatch in minibatches for micro in minibatch]
    by_row = [entry for micro in mine for entry in _row_figures(micro)]
    everywhere = {entry["row"]: entry for part in gather_lists([by_row]) for entry in part}
    rows = [everywhere[index] for index in range(len(episodes))]
    divergences = [row["k1"] for row in rows]
    kl, tokens = _mean(divergences), sum(len(e.answer.ids) for e in episodes)
    metrics = {
        "objective/score": _mean(scores.whole),
        "objective/score_std": float(torch.tensor(scores.whole).std(correction=0)),
        "objective/score_used": _mean(scores.used),
        **({"objective/score_std_prompt": _std_of_a_prompt(scores.used, samples)} if samples > 1 else {}),
        **(
            {f"objective/score_{name}": _mean(part) for name, part in scores.parts.items()}
            if len(scores.parts) > 1
            else {}
        ),
        "objective/kl_seq": kl,
        "objective/kl_token": sum(divergences) / tokens,
        "objective/kl_k3_seq": _mean([row["k3"] for row in rows]),
        "objective/kl_reward": -kl_coef * kl,
        "objective/rlhf_reward": _mean(scores.used) - kl_coef * kl,
        "objective/sqrt_kl": max(kl, 0.0) ** 0.5,
        "policy/entropy": sum(row["entropy"] for row in rows) / tokens,
        "kl_ctl/beta": kl_coef,
        **_response_metrics(episodes),
        **_token_metrics(mine),
        **_sampler_metrics(mine),
    }
    return metrics, divergences


def _row_figures(micro: MicroBatch) -> list[dict[str, float]]:
    mask = micro.mask_BR
    columns = {
        "k1": masked_sum(k1(micro.old_logps_BR, micro.ref_logps_BR), mask, dim=-1),
        "k3": masked_sum(k3(micro.old_logps_BR, micro.ref_logps_BR), mask, dim=-1),
        "entropy": masked_sum(micro.entropies_BR, mask, dim=-1),
    }
    lists = {name: column.tolist() for name, column in columns.items()}
    return [{"row": row, **{name: lists[name][i] for name in lists}} for i, row in enumerate(micro.rows)]


def _token_metrics(mine: Sequence[MicroBatch]) -> dict[str, float]:
    values = moments_over_ranks([(micro.values_BR, micro.mask_BR) for micro in mine])
    returns = moments_over_ranks([(micro.returns_BR, micro.mask_BR) for micro in mine])
    # Before whitening: return less value is the advantage.
    advantages = moments_over_ranks([(micro.returns_BR - micro.values_BR, micro.mask_BR) for micro in mine])
    explained = 1 - float(advantages.squares) / float(returns.squares) if float(returns.squares) > 0 else 0.0
    return {
        "value/mean": float(values.mean),
        "value/explained_var": explained,
        "returns/mean": float(returns.mean),
        "returns/std": _std(returns),
        "adv/mean": float(advantages.mean),
        "adv/std": _std(advantages),
    }


def _sampler_metrics(mine: Sequence[MicroBatch]) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's; 0 where the policy itself samples."""
    reported = [micro for micro in mine if micro.sampler_logps_BR is not None]
    if not any(gather_lists([bool(reported)])):
        return {"rollout/logp_diff_mean": 0.0, "rollout/logp_diff_max": 0.0, "rollout/ess": 1.0}
    found = []
    for micro in reported:
        assert micro.sampler_logps_BR is not None and micro.weights_BR is not None
        apart = (micro.sampler_logps_BR - micro.old_logps_BR).abs()
        found.append((
            float(masked_sum(apart, micro.mask_BR)), float(micro.mask_BR.sum()),
            float(torch.where(micro.mask_BR, apart, 0.0).max()),
            float(effective_sample_size(micro.weights_BR, micro.mask_BR)),
        ))  # fmt: skip
    everywhere = gather_lists(found)
    tokens = sum(entry[1] for entry in everywhere)
    return {
        "rollout/logp_diff_mean": sum(entry[0] for entry in everywhere) / tokens,
        "rollout/logp_diff_max": max(entry[2] for entry in everywhere),
        "rollout/ess": sum(entry[3] * entry[1] for entry in everywhere) / tokens,
    }


def _response_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    lengths = sorted(len(episode.answer.ids) for episode in episodes)
    stopped = _mean([float(episode.answer.stopped) for episode in episodes])
    return {
        "response/len_mean": _mean(lengths),
        "response/len_p95": lengths[int(0.95 * (len(lengths) - 1))],
        "response/eos_rate": stopped,
        "response/truncated_rate": 1 - stopped,
        "response/repeat_ngram": repetition([episode.answer.ids for episode in episodes]) or 0.0,
        "prompt/len_mean": _mean([len(episode.prompt_ids) for episode in episodes]),
    }


def _std_of_a_prompt(scores: Sequence[float], samples: int) -> float:
    """Root of the mean variance among the answers to one prompt."""
    by_prompt = torch.tensor(scores, dtype=torch.float64).reshape(-1, samples)
    return float(by_prompt.var(dim=1, correction=0).mean().sqrt())


def _std(moments: Moments) -> float:
    variance: Tensor = moments.squares / moments.n.clamp(min=1)
    return float(variance.sqrt())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
