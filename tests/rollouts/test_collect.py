"""From episodes to what PPO trains on: who trains on which rows, and how scores become rewards and advantages."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models.roles import POLICY, REFERENCE
from pipeline.rollouts import collect as collecting
from pipeline.rollouts.answers import Answer
from pipeline.rollouts.collect import MicroBatch, collect, lay_out, sequence_divergences
from pipeline.runtime import Ranks
from tests.rollouts.ppo_parts import (
    ALONE,
    PAD,
    Parts,
    collected,
    lively_base,
    make_parts,
    shaping_of,
    some_episodes,
    some_scores,
    stir,
)

EPISODES, SCORES = some_episodes(16), some_scores(16)
LENGTHS = [len(e.prompt_ids) + len(e.answer.ids) for e in EPISODES]


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


@pytest.fixture(scope="module")
def moved(llama, tmp_path_factory) -> Parts:
    """A policy that has left its reference."""
    parts = make_parts(
        tmp_path_factory.mktemp("moved"), llama, minibatches=2, per_device_batch_size=2, kl_coef=0.3, temperature=0.7,
        gae_lambda=0.9, gamma=0.97, whiten_advantages=False,
    )  # fmt: skip
    stir((item for item in parts.policy.model.named_parameters() if ".default." in item[0]), seed=8)
    return parts


def flat(minibatches: list[list[MicroBatch]]) -> list[MicroBatch]:
    return [micro for minibatch in minibatches for micro in minibatch]


# Who trains on what


@pytest.mark.parametrize(("minibatches", "size"), [(1, 4), (2, 2), (4, 1), (1, 2), (4, 4)])
def test_the_layout_is_the_same_for_any_number_of_ranks(minibatches, size):
    alone = lay_out(LENGTHS, minibatches, size, ALONE, 3)
    assert sorted(row for minibatch in alone for rows in minibatch for row in rows) == list(range(16))
    assert len(alone) == minibatches and {sum(map(len, minibatch)) for minibatch in alone} == {16 // minibatches}
    assert {len(rows) for minibatch in alone for rows in minibatch} == {size}
    for world in (2, 4):
        if 16 // minibatches % (size * world):
            continue
        shares = [lay_out(LENGTHS, minibatches, size, Ranks(rank, rank, world), 3) for rank in range(world)]
        for number, whole in enumerate(alone):
            dealt = [share[number] for share in shares]
            assert {len(micro) for micro in dealt} == {len(whole) // world}, "as many forward passes on every rank"
            assert [rows for round_ in zip(*dealt, strict=True) for rows in round_] == whole


@pytest.mark.parametrize("most", [1, max(LENGTHS), 2 * max(LENGTHS), 10**6])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_passes_within_a_number_of_tokens(most, world):
    """As if padded; every row once, longest first; no process is left without a pass, and none makes two too many."""
    shares = [lay_out(LENGTHS, 2, 3, Ranks(rank, rank, world), 3, most) for rank in range(world)]
    by_rows = lay_out(LENGTHS, 2, 8, ALONE, 3)
    for number, (whole,) in enumerate(by_rows):
        passes = [rows for share in shares for rows in share[number]]
        assert sorted(row for rows in passes for row in rows) == sorted(whole)
        assert all(share[number] for share in shares)
        for rows in passes:
            assert len(rows) == 1 or len(rows) * LENGTHS[rows[0]] <= most
            assert [LENGTHS[row] for row in rows] == sorted((LENGTHS[row] for row in rows), reverse=True)
        if most == 10**6:
            assert len(passes) == world
        if most == 1:
            assert len(passes) == len(whole)


def test_micro_batches_hold_rows_of_similar_length():
    """And the longest come first."""
    for minibatch in lay_out(LENGTHS, 2, 2, ALONE, 3):
        lengths = [LENGTHS[row] for rows in minibatch for row in rows]
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("most", [None, 3 * max(LENGTHS)])
@pytest.mark.parametrize(("minibatches", "samples"), [(1, 4), (2, 4), (2, 2), (4, 4)])
def test_the_answers_to_a_prompt_stay_together(minibatches, samples, most):
    """In a step always, and in a pass where it holds whole groups; the passes with the longest rows come first."""
    layout = lay_out(LENGTHS, minibatches, 4, ALONE, 3, most, samples)
    assert sorted(row for minibatch in layout for rows in minibatch for row in rows) == list(range(16))
    for minibatch in layout:
        groups = [[row // samples for row in rows] for rows in minibatch]
        counts = Counter(group for each in groups for group in each)
        assert set(counts.values()) == {samples}
        if most is None:
            assert all(len(set(each)) == 4 // samples for each in groups)
        else:
            assert all(len(rows) == 1 or len(rows) * max(LENGTHS[row] for row in rows) <= most for rows in minibatch)
        if most is None:
            sums = [sum(LENGTHS[row] for row in rows) for rows in minibatch]
            assert sums[0] == max(sums) or samples < 4
    shares = [lay_out(LENGTHS, minibatches, 2, Ranks(rank, rank, 2), 3, most, samples) for rank in (0, 1)]
    dealt = sorted(row for share in shares for minibatch in share for rows in minibatch for row in rows)
    assert dealt == list(range(16))


def test_a_group_that_fits_into_a_pass_is_not_cut_up():
    """At 40 tokens: three rows of 10, then a group of three that would be cut after one, then one too large for any."""
    lengths = [10, 10, 10, 9, 9, 9, 30, 30, 30]
    (minibatch,) = lay_out(lengths, 1, 9, ALONE, 0, 40, 3)
    assert {frozenset(rows) for rows in minibatch} == {
        frozenset({0, 1, 2}), frozenset({3, 4, 5}), frozenset({6}), frozenset({7}), frozenset({8}),
    }  # fmt: skip


def test_the_seed_draws_the_minibatches():
    first, again, other = (lay_out(LENGTHS, 4, 2, ALONE, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert [set().union(*minibatch) for minibatch in first] != [set().union(*minibatch) for minibatch in other]


def test_every_episode_carries_its_own(moved):
    """Ids, score and log-probabilities belong to the episode that the row names."""
    for micro in flat(collected(moved, EPISODES, SCORES)):
        for place, row in enumerate(micro.rows):
            ids = EPISODES[row].answer.ids
            assert micro.batch.response_ids_BR[place, : len(ids)].tolist() == ids
            assert int(micro.batch.lengths_B[place]) == len(ids)


# Rewards and advantages


def test_without_a_value_model_the_others_are_the_baseline(llama, tmp_path):
    """Token by token what is still to come, less the mean worth of the prompt's other answers; in one float64 loop."""
    parts = make_parts(
        tmp_path, llama, advantage_estimator="rloo", samples_per_prompt=4, minibatches=2, per_device_batch_size=2,
        kl_coef=0.3, whiten_advantages=False,
    )  # fmt: skip
    assert parts.roles.learning == (POLICY,)
    stir((item for item in parts.policy.model.named_parameters() if ".default." in item[0]), seed=8)
    found: dict[int, list[float]] = {}
    rewards: dict[int, list[float]] = {}
    for micro in flat(collected(parts, EPISODES, SCORES)):
        for place, row in enumerate(micro.rows):
            length = len(EPISODES[row].answer.ids)
            apart = (micro.old_logps_BR - micro.ref_logps_BR)[place, :length].double()
            rewards[row] = (-0.3 * apart).tolist()
            rewards[row][-1] += SCORES[row]
            found[row] = micro.advantages_BR[place, :length].tolist()
            assert not micro.advantages_BR[place, length:].any()
    assert max(abs(value) for row in rewards.values() for value in row[:-1]) > 0.01, "the divergence has a part in it"
    for row in range(16):
        others = [sum(rewards[j]) for j in range(16) if j // 4 == row // 4 and j != row]
        expected = [sum(rewards[row][t:]) - sum(others) / 3 for t in range(len(rewards[row]))]
        assert found[row] == pytest.approx(expected, abs=1e-5)


def test_rewards_sum_to_score_less_divergence(moved):
    seen, divergences = set(), []
    for micro in flat(collected(moved, EPISODES, SCORES)):
        apart = torch.where(micro.mask_BR, micro.old_logps_BR - micro.ref_logps_BR, 0.0).sum(-1)
        for place, row in enumerate(micro.rows):
            expected = SCORES[row] - 0.3 * float(apart[place])
            assert float(micro.rewards_BR[place].sum()) == pytest.approx(expected, abs=1e-5)
            last = len(EPISODES[row].answer.ids) - 1
            per_token = micro.rewards_BR[place] + 0.3 * (micro.old_logps_BR - micro.ref_logps_BR)[place]
            assert float(per_token[last]) == pytest.approx(SCORES[row], abs=1e-5), "the score is on the last token"
            assert per_token[:last].abs().max() < 1e-6 if last else True
            assert not micro.rewards_BR[place, last + 1 :].any()
            seen.add(row)
            divergences.append(float(apart[place]))
    assert seen == set(range(16))
    assert max(abs(each) for each in divergences) > 0.5


def test_at_the_start_the_penalty_is_exactly_zero(llama, tmp_path):
    """The policy is its reference bit for bit, so that a reward is the score and nothing else."""
    for number, temperature in enumerate((1.0, 0.7)):
        parts = make_parts(tmp_path / str(number), llama, temperature=temperature, kl_coef=5.0)
        for micro in flat(collected(parts, EPISODES, SCORES)):
            assert torch.equal(micro.old_logps_BR, micro.ref_logps_BR)
            at_end = torch.arange(micro.mask_BR.shape[1]) == micro.batch.lengths_B[:, None] - 1
            expected = torch.where(at_end, torch.tensor([SCORES[row] for row in micro.rows])[:, None], 0.0)
            assert torch.equal(micro.rewards_BR, expected.float())


def test_advantages_and_returns_are_those_of_the_loop(moved):
    """delta_t + gamma lambda A_(t+1), row by row in python; returns before whitening."""
    whitened = _settings(moved, whiten_advantages=True)
    plain, white = flat(collected(moved, EPISODES, SCORES)), flat(collected(whitened, EPISODES, SCORES))
    everything = []
    for micro in plain:
        for place, row in enumerate(micro.rows):
            length = len(EPISODES[row].answer.ids)
            rewards, values = (x[place, :length].double().tolist() for x in (micro.rewards_BR, micro.values_BR))
            advantage = 0.0
            for t in reversed(range(length)):
                after = values[t + 1] if t + 1 < length else 0.0
                advantage = rewards[t] + 0.97 * after - values[t] + 0.97 * 0.9 * advantage
                assert float(micro.advantages_BR[place, t]) == pytest.approx(advantage, abs=1e-5)
                assert float(micro.returns_BR[place, t]) == pytest.approx(advantage + values[t], abs=1e-5)
                everything.append(advantage)
    mean = sum(everything) / len(everything)
    std = math.sqrt(sum((each - mean) ** 2 for each in everything) / len(everything))
    for a, b in zip(plain, white, strict=True):
        assert torch.equal(a.returns_BR, b.returns_BR)
        expected = torch.where(a.mask_BR, (a.advantages_BR - mean) / std, 0.0)
        assert torch.allclose(b.advantages_BR, expected, atol=1e-5)


def _settings(parts: Parts, **changes: Any) -> Parts:
    settings = parts.settings.model_copy(update=changes)
    return Parts(parts.context, settings, parts.policy, parts.roles)


def test_two_ranks_whiten_together(moved, monkeypatch):
    """Each with the moments of both: as one process does, and not as each would alone."""
    whitened = _settings(moved, whiten_advantages=True)
    whole = {micro.rows: micro for micro in flat(collected(whitened, EPISODES, SCORES))}
    plain = [flat(collected(moved, EPISODES, SCORES, Ranks(rank, rank, 2))) for rank in (0, 1)]

    def moments(parts: list[MicroBatch]) -> list[Any]:
        found = [collecting.masked_moments(micro.advantages_BR, micro.mask_BR) for micro in parts]
        return [tuple(float(field) for field in each) for each in found]

    for rank in (0, 1):
        other = moments(plain[1 - rank])
        monkeypatch.setattr(collecting, "gather_lists", lambda mine, other=other: [*mine, *other])
        for micro in flat(collected(whitened, EPISODES, SCORES, Ranks(rank, rank, 2))):
            assert torch.allclose(micro.advantages_BR, whole[micro.rows].advantages_BR, atol=1e-6)
        monkeypatch.undo()
        by_itself = flat(collected(whitened, EPISODES, SCORES, Ranks(rank, rank, 2)))
        assert any(
            not torch.allclose(micro.advantages_BR, whole[micro.rows].advantages_BR, atol=1e-3) for micro in by_itself
        )


def test_a_rank_without_rows_takes_the_others_moments(monkeypatch):
    monkeypatch.setattr(collecting, "gather_lists", lambda mine: [*mine, (2.0, 0.5, 3.0), (4.0, 2.0, 1.0)])
    found = collecting.moments_over_ranks([])
    assert [float(field) for field in found] == pytest.approx([6.0, 1.5, 4.0 + 2 * 1.0 + 4 * 0.25])


def test_nothing_of_it_carries_a_gradient(moved):
    for micro in flat(collected(moved, EPISODES, SCORES)):
        for name in ("old_logps_BR", "ref_logps_BR", "values_BR", "rewards_BR", "advantages_BR", "returns_BR"):
            field = getattr(micro, name)
            assert not field.requires_grad and field.dtype == torch.float32
            assert torch.isfinite(field).all()


# Where the sampler is not the policy itself


def test_the_samplers_log_probabilities_become_capped_weights(moved):
    """min(pi / mu, cap) token by token; none where the sampler reports nothing."""
    plain = flat(collected(moved, EPISODES, SCORES))
    assert all(micro.weights_BR is None and micro.sampler_logps_BR is None for micro in plain)
    reported: dict[int, list[float]] = {}
    for micro in plain:
        for place, row in enumerate(micro.rows):
            own = micro.old_logps_BR[place, : len(EPISODES[row].answer.ids)].tolist()
            reported[row] = [logp + (0.3, -0.2, -2.0)[t % 3] for t, logp in enumerate(own)]
    episodes = [e._replace(answer=Answer(e.answer.ids, e.answer.stopped, reported[i])) for i, e in enumerate(EPISODES)]
    layout = lay_out(LENGTHS, 2, 2, ALONE, 5)
    for micro in flat(collect(moved.roles, episodes, SCORES, layout, shaping_of(moved.settings), PAD)):
        expected = torch.tensor([math.exp(-0.3), math.exp(0.2), 2.0]).repeat(10)[: micro.mask_BR.shape[1]]
        assert micro.weights_BR is not None
        assert torch.allclose(micro.weights_BR, torch.where(micro.mask_BR, expected, 0.0), atol=1e-4)
    # The penalty is the policy's own, whatever the sampler says.
    again = flat(collect(moved.roles, episodes, SCORES, layout, shaping_of(moved.settings), PAD))
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a.rewards_BR, b.rewards_BR) and torch.equal(a.advantages_BR, b.advantages_BR)


# Divergence of whole answers


def test_divergences_are_in_order_whatever_the_batches(moved):
    with torch.no_grad():
        expected = []
        for episode in EPISODES:
            batch = collecting._batch([episode], PAD)
            apart = (
                moved.roles.logps(POLICY, batch, 0.7).logps_BR - moved.roles.logps(REFERENCE, batch, 0.7).logps_BR
            )  # fmt: skip
            expected.append(float(apart.sum()))
    for size in (1, 5, 16):
        found = sequence_divergences(moved.roles, EPISODES, 0.7, size, PAD, ALONE)
        assert found == pytest.approx(expected, abs=1e-4)
    shares = [sequence_divergences(moved.roles, EPISODES, 0.7, 3, PAD, Ranks(rank, rank, 2)) for rank in (0, 1)]
    assert shares[0] == pytest.approx(expected[::2], abs=1e-4)
    assert shares[1] == pytest.approx(expected[1::2], abs=1e-4)
    assert max(expected) - min(expected) > 0.5
