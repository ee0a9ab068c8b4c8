"""PPO against its closed form: a one-layer Llama must end at pi*(y|x) = ref(y|x) exp(score / kl_coef) / Z(x).

Eight words of which 0 ends an answer, at most three of them: all 400 answers to each of two prompts are counted out, so
that the distance to the optimum is exact. Only the recipe and the tokenizer are left out: sampling, scoring,
log-probabilities, rewards, advantages and steps are those of the stage.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.records import Message, Origin, Prompt
from pipeline.algorithms.kl import k2
from pipeline.algorithms.masked import keep
from pipeline.models.forward import trunk_of, vocabulary_head
from pipeline.models.roles import POLICY, REFERENCE, VALUE, Roles, Trunk
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts import collect as collecting
from pipeline.rollouts.answers import Sampling
from pipeline.rollouts.collect import Shaping, collect, lay_out
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.rewards import Episode, Penalties, score
from pipeline.runtime import Ranks
from pipeline.stages.ppo_update import Learner

pytestmark = pytest.mark.slow
ALONE = Ranks(0, 0, 1)
VOCABULARY, LONGEST, EOS, PAD = 8, 3, 0, 4
PROMPTS = [(1, 6), (1, 7, 5)]
"""Neither begins with the other, so that no state belongs to both with another number of words to come."""
ANSWERS = [
    tuple(words)
    for length in (1, 2, 3)
    for words in itertools.product(range(VOCABULARY), repeat=length)
    if EOS not in words[:-1] and (length == LONGEST or words[-1] == EOS)
]
NEAR = 0.02


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=16, initializer_range=0.1, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS,
        )
    ).eval()  # fmt: skip


class Table:
    """A score for every answer to each prompt: of each word at its place, and of each word behind another."""

    name = "table"

    def __init__(self, seed: int):
        draw = torch.Generator().manual_seed(100 + seed)
        self._places = 0.5 * torch.randn(len(PROMPTS), LONGEST, VOCABULARY, generator=draw)
        self._pairs = 0.35 * torch.randn(len(PROMPTS), VOCABULARY, VOCABULARY, generator=draw)
        self._known = {
            (prompt, answer): self._sum(prompt, answer) for prompt in range(len(PROMPTS)) for answer in ANSWERS
        }

    def of(self, prompt: int, answer: Sequence[int]) -> float:
        return self._known[prompt, tuple(answer)]

    def _sum(self, prompt: int, answer: Sequence[int]) -> float:
        places = sum(float(self._places[prompt, place, word]) for place, word in enumerate(answer))
        return places + sum(float(self._pairs[prompt, a, b]) for a, b in itertools.pairwise(answer))

    def scores(self, episodes: Sequence[Episode]) -> list[float]:
        return [self.of(episode.prompt.origin.row, episode.answer.ids) for episode in episodes]


@torch.no_grad()
def distribution(model: Any, temperature: float) -> Tensor:
    """Probability of every answer to each prompt (2, 400), one token after another as they are sampled."""
    found = []
    for prompt in PROMPTS:
        rows = [[*prompt, *answer, *[PAD] * (LONGEST - len(answer))] for answer in ANSWERS]
        logps = torch.log_softmax(model(input_ids=torch.tensor(rows)).logits.double() / temperature, -1)
        first = len(prompt) - 1
        found.append([
            sum(float(logps[row, first + place, word]) for place, word in enumerate(answer))
            for row, answer in enumerate(ANSWERS)
        ])  # fmt: skip
    probabilities = torch.tensor(found, dtype=torch.float64).exp()
    assert torch.allclose(probabilities.sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-5)
    return probabilities


def optimum(reference: Tensor, table: Table, kl_coef: float, missing_eos: float) -> Tensor:
    """ref exp(score / kl_coef) / Z."""
    scores = torch.tensor(
        [[table.of(p, a) - missing_eos * (a[-1] != EOS) for a in ANSWERS] for p in range(len(PROMPTS))]
    )
    return torch.softmax(reference.log() + scores.double() / kl_coef, -1)


def apart(a: Tensor, b: Tensor) -> float:
    """Total variation, of the prompt where it is larger."""
    return float(0.5 * (a - b).abs().sum(-1).max())


def train(seed: int, settings: PpoSettings, table: Table, sampled_at: float) -> tuple[Any, Any, list[float]]:
    """Policy, reference, and the first ratio's deviation of each rollout."""
    batch = settings.rollout_batch_size
    policy, own = llama(seed), trunk_of(llama(seed + 50))
    reference = copy.deepcopy(policy).requires_grad_(False)
    head = torch.nn.Linear(32, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    trunks = {
        POLICY: Trunk(module=trunk_of(policy), trainable=tuple(policy.parameters())),
        REFERENCE: Trunk(module=trunk_of(reference)),
        VALUE: Trunk(module=own, trainable=tuple(own.parameters())),
    }
    if settings.value_trunk == "policy":
        trunks[VALUE] = Trunk(module=trunk_of(policy))
    if not settings.has_value_model:
        del trunks[VALUE]
    roles = Roles(trunks, vocabulary_head(policy), vocabulary_head(reference), {VALUE: head}, policy, "fp32")
    rollouts = settings.episodes // batch
    learner = Learner(roles, settings, rollouts, ALONE, None, PAD)
    shaping = Shaping(
        temperature=settings.temperature, kl_coef=settings.kl_coef, gamma=settings.gamma,
        gae_lambda=settings.gae_lambda, whiten=True, importance_cap=2.0,
        samples_per_prompt=settings.samples_per_prompt,
    )  # fmt: skip
    penalties = Penalties(LONGEST, settings.missing_eos_penalty, 0, 1.0, None)
    prompts = [
        Prompt(messages=(Message(role="user", content="x"),), origin=Origin(source="x", row=row))
        for row in range(len(PROMPTS))
    ]
    samples = settings.samples_per_prompt
    asked = [place // samples % 2 for place in range(batch)]
    deviations = []
    for rollout in range(rollouts):
        with roles.sampling() as model:
            answers = Generator(model, PAD, (EOS,), batch, "fp32", ALONE).answers(
                [PROMPTS[p] for p in asked], Sampling(LONGEST, sampled_at, seed=seed * 1000 + rollout)
            )
        episodes = [Episode(prompts[p], list(PROMPTS[p]), answers[i], "") for i, p in enumerate(asked)]
        found = score(episodes, [(table, 1.0)], penalties)
        lengths = [len(e.prompt_ids) + len(e.answer.ids) for e in episodes]
        layout = lay_out(lengths, settings.minibatches, settings.per_device_batch_size, ALONE, rollout, samples=samples)
        minibatches = collect(roles, episodes, found.used, layout, shaping, PAD)
        deviations.append(learner.learn(minibatches, rollout, value_only=False).first_maxdev)
    return policy, reference, deviations


def settings_of(rollouts: int = 340, **changes: Any) -> PpoSettings:
    return PpoSettings.model_validate({
        "episodes": rollouts * 512, "rollout_batch_size": 512, "per_device_batch_size": 256, "minibatches": 2,
        "epochs": 1, "learning_rate": 3e-3, "schedule": "linear", "warmup_ratio": 0.0, "kl_coef": 1.0,
        "missing_eos_penalty": 0.0, "max_new_tokens": LONGEST, "precision": "fp32", **changes,
    })  # fmt: skip


def distances(seed: int, settings: PpoSettings, sampled_at: float | None = None) -> dict[str, float]:
    """Of the trained policy from the optimum, and from optima of other settings."""
    table, temperature = Table(seed), settings.temperature
    policy, reference, deviations = train(seed, settings, table, sampled_at or temperature)
    assert max(deviations) == 0.0
    at = sampled_at or temperature
    ref, trained = distribution(reference, at), distribution(policy, at)
    kl_coef, missing = settings.kl_coef, settings.missing_eos_penalty
    found = {
        "optimum": apart(trained, optimum(ref, table, kl_coef, missing)),
        "before": apart(ref, optimum(ref, table, kl_coef, missing)),
        "half_the_price": apart(trained, optimum(ref, table, kl_coef / 2, missing)),
        "other_penalty": apart(trained, optimum(ref, table, kl_coef, 1.0 - missing)),
        "other_temperature": apart(trained, optimum(distribution(reference, 1.7 - at), table, kl_coef, missing)),
    }
    print(seed, {name: round(value, 4) for name, value in found.items()})
    return found


@pytest.mark.parametrize(("seed", "temperature", "trunk"), [(0, 1.0, "own"), (1, 0.7, "own"), (0, 1.0, "policy")])
def test_it_ends_at_the_optimum(seed, temperature, trunk):
    """At 0.7 at that of the tempered models; with layers that policy and value share at the same. Controls: the optima
    of half the price, of the other temperature and of a penalty for no end are well apart from it.
    """
    found = distances(seed, settings_of(temperature=temperature, value_trunk=trunk))
    assert found["optimum"] < NEAR
    assert min(found[name] for name in found if name != "optimum") > 2 * NEAR


def test_against_the_others_of_a_prompt_it_ends_near_the_optimum_too():
    """Less near for as many answers, as a prompt's mean says nothing of the words so far: 0.042 here, 0.027 from four
    times as many answers, and 0.037 with a value model that learns nothing. Controls as above.
    """
    found = distances(0, settings_of(advantage_estimator="rloo", samples_per_prompt=4))
    assert found["optimum"] < 2.5 * NEAR
    assert min(found[name] for name in found if name != "optimum") > 5 * NEAR


def test_a_missing_end_costs_what_it_costs():
    """Against the optimum of the score less the penalty."""
    found = distances(0, settings_of(missing_eos_penalty=1.0))
    assert found["optimum"] < NEAR
    assert min(found[name] for name in found if name != "optimum") > 2 * NEAR


def test_control_another_penalty_of_divergence_ends_elsewhere(monkeypatch):
    """k2 instead of k1 in the reward, which looks as good in a log."""
    original = collecting.penalised_rewards

    def squared(scores: Tensor, logps: Tensor, ref_logps: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
        plain = original(scores, logps, ref_logps, mask, 0.0)
        return plain - kl_coef * keep(k2(logps, ref_logps), mask)

    monkeypatch.setattr(collecting, "penalised_rewards", squared)
    assert distances(0, settings_of())["optimum"] > 2 * NEAR


def test_control_without_temperature_in_the_log_probabilities_it_ends_elsewhere():
    """Sampled at 0.7, trained as if at 1."""
    assert distances(0, settings_of(temperature=1.0), sampled_at=0.7)["optimum"] > 2 * NEAR
