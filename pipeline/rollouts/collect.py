"""From episodes to what PPO trains on: who trains on which rows, log-probabilities, values, rewards, advantages.

Rows are laid out once per rollout: a seeded draw into minibatches, and in each minibatch micro-batches of similar
length, shared out over the ranks. Micro-batches stay as they are for all passes, so old and new log-probabilities come
from passes of one shape, and their ratio is exactly 1 until the first step. Layer 3.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.algorithms.gae import gae
from pipeline.algorithms.kl import k1, penalised_rewards
from pipeline.algorithms.logps import TokenScores
from pipeline.algorithms.masked import Moments, combine_moments, masked_moments, masked_sum, whiten
from pipeline.algorithms.ppo import importance_weights
from pipeline.algorithms.rloo import leave_one_out
from pipeline.batches import ResponseBatch, by_length, longest_first, response_batch
from pipeline.models.roles import POLICY, REFERENCE, VALUE, Roles
from pipeline.rollouts.rewards import Episode
from pipeline.runtime import Ranks, equally_many, gather_lists, gather_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows of one forward pass, with everything that stays fixed while the policy learns from them."""

    rows: tuple[int, ...]
    """Which episodes of the rollout."""
    batch: ResponseBatch
    old_logps_BR: Tensor
    """Of the policy as it was when it sampled."""
    ref_logps_BR: Tensor
    entropies_BR: Tensor
    values_BR: Tensor
    rewards_BR: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor
    weights_BR: Tensor | None
    """Importance weights, where the sampler is not the policy itself."""
    sampler_logps_BR: Tensor | None

    @property
    def mask_BR(self) -> Tensor:
        """True on response tokens."""
        return self.batch.response_mask_BR.to(self.old_logps_BR.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """How scores become advantages."""

    temperature: float
    kl_coef: float
    gamma: float
    gae_lambda: float
    whiten: bool
    importance_cap: float
    samples_per_prompt: int = 1
    """Answers to each prompt, next to one another. Without a value model each is compared with the others."""


Layout = list[list[tuple[int, ...]]]
"""This rank's micro-batches, by minibatch: indices of episodes."""


def lay_out(
    lengths: Sequence[int], minibatches: int, batch_size: int, ranks: Ranks, seed: int,
    most_tokens: int | None = None, samples: int = 1,
) -> Layout:  # fmt: skip
    """Which episodes this rank passes through the models together.

    The minibatches, and the micro-batches in them, are the same for any number of ranks.

    Args:
        lengths: tokens of each episode, prompt and answer.
        minibatches: optimiser steps per pass; divides the number of episodes.
        batch_size: rows per forward pass; times the ranks, divides a minibatch.
        ranks: this process among its peers.
        seed: draws the minibatches.
        most_tokens: of a forward pass, as if it were padded, instead of a number of rows. No process is left without
            a pass, so that where there are more of them than passes needed, passes are smaller.
        samples: episodes of each prompt, next to one another: they stay together, also in a pass that holds a
            multiple of so many rows, which reads their prompt once. Divides a minibatch.
    """
    groups = [range(first, first + samples) for first in range(0, len(lengths), samples)]
    random.Random(seed).shuffle(groups)
    size = len(lengths) // minibatches
    layout: Layout = []
    for start in range(0, len(groups), size // samples):
        ordered = longest_first(groups[start : start + size // samples], lengths)
        rows = [row for group in ordered for row in group]
        if most_tokens is None:
            micro = [tuple(rows[first : first + batch_size]) for first in range(0, size, batch_size)]
        else:
            micro = _within(ordered, lengths, most_tokens, size // ranks.world_size)
        layout.append(micro[ranks.rank :: ranks.world_size])
    return layout


def _within(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], most: int, most_rows: int
) -> list[tuple[int, ...]]:
    """Rows, in order, in passes with at most so many tokens if padded; a group that fits into one is not cut up."""

    def fits(rows: Sequence[int]) -> bool:
        return len(rows) <= most_rows and len(rows) * max(lengths[row] for row in rows) <= most

    found: list[list[int]] = [[]]
    for group in groups:
        if fits(group) and not fits([*found[-1], *group]):
            found.append([])
        for row in group:
            if found[-1] and not fits([*found[-1], row]):
                found.append([])
            found[-1].append(row)
    return [tuple(rows) for rows in found if rows]


@torch.no_grad()
def collect(
    roles: Roles,
    episodes: Sequence[Episode],
    used_scores: Sequence[float],
    layout: Layout,
    shaping: Shaping,
    pad_id: int,
) -> list[list[MicroBatch]]:
    """This rank's share of a rollout, by minibatch.

    Args:
        roles: policy, reference and, where there is one, value as they are at this rollout.
        episodes: of all ranks.
        used_scores: of all episodes, after penalties.
        layout: of this rank.
        shaping: how scores become advantages.
        pad_id: any id.
    """
    # Role by role, so that adapters are switched three times per rollout.
    flat = [rows for micro_batches in layout for rows in micro_batches]
    batches = [_batch([episodes[i] for i in rows], pad_id) for rows in flat]
    old, values = _of_policy(roles, batches, shaping.temperature)
    reference = [roles.logps(REFERENCE, batch, shaping.temperature).logps_BR for batch in batches]
    rewards = [
        _rewards(rows, batch, policy, ref_logps, used_scores, shaping.kl_coef)
        for rows, batch, policy, ref_logps in zip(flat, batches, old, reference, strict=True)
    ]
    gamma, gae_lambda = shaping.gamma, shaping.gae_lambda
    if VALUE in roles.learning:
        values = values or [roles.values(batch) for batch in batches]
    else:
        gamma = gae_lambda = 1.0
        values = _of_the_others(flat, rewards, shaping.samples_per_prompt)
    made = []
    parts = zip(flat, batches, old, reference, rewards, values, strict=True)
    for rows, batch, policy, ref_logps, reward, value in parts:
        assert policy.entropies_BR is not None
        mask = batch.response_mask_BR.to(policy.logps_BR.device)
        found = gae(reward, value, mask, gamma, gae_lambda)
        sampler = _sampler_logps([episodes[i] for i in rows], mask)
        weights = None
        if sampler is not None:
            weights = importance_weights(policy.logps_BR, sampler, mask, shaping.importance_cap)
        made.append(
            MicroBatch(
                rows=rows, batch=batch, old_logps_BR=policy.logps_BR, ref_logps_BR=ref_logps,
                entropies_BR=policy.entropies_BR, values_BR=value, rewards_BR=reward,
                advantages_BR=found.advantages_BR, returns_BR=found.returns_BR, weights_BR=weights,
                sampler_logps_BR=sampler,
            )
        )  # fmt: skip
    if shaping.whiten:
        moments = moments_over_ranks([(micro.advantages_BR, micro.mask_BR) for micro in made])
        made = [
            replace(micro, advantages_BR=whiten(micro.advantages_BR, micro.mask_BR, moments=moments)) for micro in made
        ]
    each = iter(made)
    return [[next(each) for _ in micro_batches] for micro_batches in layout]


@torch.no_grad()
def sequence_divergences(
    roles: Roles, episodes: Sequence[Episode], temperature: float, batch_size: int, pad_id: int, ranks: Ranks
) -> list[float]:
    """log pi(y|x) - log ref(y|x) of each episode, in order, on every rank: their mean estimates KL(pi || ref)."""
    mine = list(range(ranks.rank, len(episodes), ranks.world_size))
    lengths = [len(episodes[i].prompt_ids) + len(episodes[i].answer.ids) for i in mine]
    picked = [[mine[index] for index in rows] for rows in by_length(lengths, batch_size)]
    if roles.spread:
        picked = equally_many(picked, [0])
    batches = [_batch([episodes[i] for i in rows], pad_id) for rows in picked]
    policy, reference = (
        [roles.logps(role, batch, temperature).logps_BR for batch in batches] for role in (POLICY, REFERENCE)
    )
    found: dict[int, float] = {}
    for rows, batch, logps, ref_logps in zip(picked, batches, policy, reference, strict=True):
        mask = batch.response_mask_BR.to(logps.device)
        found.update(zip(rows, masked_sum(k1(logps, ref_logps), mask, dim=-1).tolist(), strict=True))
    return gather_lists([found[index] for index in mine])


def moments_over_ranks(parts: Sequence[tuple[Tensor, Tensor]]) -> Moments:
    """Number, mean and squared deviations of masked values over this rank's parts and all ranks."""
    mine = [tuple(field.item() for field in masked_moments(x, mask)) for x, mask in parts]
    return combine_moments(Moments(*map(_scalar, row)) for row in gather_lists(mine))


def _rewards(
    rows: Sequence[int], batch: ResponseBatch, policy: TokenScores, ref_logps_BR: Tensor, used: Sequence[float],
    kl_coef: float,
) -> Tensor:  # fmt: skip
    device = policy.logps_BR.device
    scores = torch.tensor([used[i] for i in rows], dtype=torch.float32, device=device)
    return penalised_rewards(scores, policy.logps_BR, ref_logps_BR, batch.response_mask_BR.to(device), kl_coef)


def _of_the_others(flat: Sequence[Sequence[int]], rewards: Sequence[Tensor], samples: int) -> list[Tensor]:
    """In the value model's place, at every token of an answer: what the other answers to its prompt were worth.

    Rewards are 0 where a row is padding, so that a row's sum is its answer's.
    """
    mine: dict[int, float] = {}
    for rows, reward in zip(flat, rewards, strict=True):
        mine.update(zip(rows, reward.sum(-1, dtype=torch.float64).tolist(), strict=True))
    baselines = leave_one_out(torch.tensor(gather_rows(mine), dtype=torch.float64), samples).tolist()
    return [
        reward.new_tensor([baselines[row] for row in rows])[:, None].expand_as(reward)
        for rows, reward in zip(flat, rewards, strict=True)
    ]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _of_policy(
    roles: Roles, batches: Sequence[ResponseBatch], temperature: float
) -> tuple[list[TokenScores], list[Tensor]]:
    """What the policy's layers give: log-probabilities, and values where their head stands on these layers."""
    if not roles.value_reads_policy:
        return [roles.logps(POLICY, batch, temperature, entropy=True) for batch in batches], []
    both = [roles.logps_and_values(batch, temperature, entropy=True) for batch in batches]
    return [found for found, _ in both], [values for _, values in both]


def _batch(episodes: Sequence[Episode], pad_id: int) -> ResponseBatch:
    return response_batch([e.prompt_ids for e in episodes], [e.answer.ids for e in episodes], pad_id)


def _sampler_logps(episodes: Sequence[Episode], mask_BR: Tensor) -> Tensor | None:
    """Log-probabilities as the sampler reported them (B, R), where it did."""
    if any(episode.answer.logps is None for episode in episodes):
        return None
    found = torch.zeros(mask_BR.shape, dtype=torch.float32)
    for row, episode in enumerate(episodes):
        found[row, : len(episode.answer.ids)] = torch.tensor(episode.answer.logps)
    return found.to(mask_BR.device)
