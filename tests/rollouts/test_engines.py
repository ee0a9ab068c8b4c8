"""Which engine a recipe gets, and that what a sampler says of its tokens reaches the weights that PPO trains with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.algorithms.ppo import importance_weights
from pipeline.errors import RecipeError, SourceUnreachableError
from pipeline.models.roles import POLICY
from pipeline.rollouts.answers import Answer, Sampling
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.rewards import Episode
from pipeline.stages import ppo_engine
from pipeline.stages.ppo_engine import PolicyEngine, make_engine
from pipeline.stages.ppo_metrics import rollout_metrics
from pipeline.stages.ppo_vllm import ColocatedEngine, ServerEngine
from tests.rollouts.ppo_parts import ALONE, LORA, PAD, Parts, collected, make_parts, some_episodes, some_scores, stir
from tests.rollouts.served_model import FakeServer

COUNT = 12
TEMPERATURE = 0.8


@pytest.fixture
def parts(lively_folder, tmp_path) -> Parts:
    return make_parts(tmp_path, lively_folder, LORA, temperature=TEMPERATURE, rollout_batch_size=COUNT)


def made(parts: Parts, *, quantization: str = "none", **settings: Any) -> Any:
    changed = parts.settings.model_copy(update=settings)
    model = parts.context.recipe.model.model_copy(update={"quantization": quantization})
    context = SimpleNamespace(**{
        **vars(parts.context), "recipe": parts.context.recipe.model_copy(update={"model": model})
    })  # fmt: skip
    formatter: Any = SimpleNamespace(stop_ids=(2, 7))
    return make_engine(context, changed, parts.roles, formatter, PAD, "fp32")


def sampled(parts: Parts, engine: Any, longest: int = 12) -> list[Episode]:
    asked = some_episodes(COUNT)
    answers = engine.answers([each.prompt_ids for each in asked], Sampling(longest, TEMPERATURE, seed=1))
    return [each._replace(answer=answer) for each, answer in zip(asked, answers, strict=True)]


def move(parts: Parts) -> None:
    """As if the policy had been trained since."""
    stir(((f"lora_B {index}", each) for index, each in enumerate(parts.roles.trainable(POLICY)[1::2])), seed=6)


def metrics_of(parts: Parts, episodes: list[Episode]) -> tuple[dict[str, float], list[Any]]:
    minibatches = collected(parts, episodes, some_scores(COUNT))
    scores: Any = SimpleNamespace(whole=some_scores(COUNT), used=some_scores(COUNT), parts={"x": some_scores(COUNT)})
    return rollout_metrics(episodes, scores, minibatches, 0.1, ALONE)[0], minibatches[0]


# Choice


def test_transformers_samples_with_the_policy(parts):
    """All engines that need nothing else; greedily they say the same."""
    engines = [made(parts, rollout_engine=kind) for kind in ("auto", "streams", "generate", "paged")]
    assert all(isinstance(each, PolicyEngine) for each in engines)
    prompts = [each.prompt_ids for each in some_episodes(COUNT)]
    with parts.roles.sampling() as model:
        expected = Generator(model, PAD, (2, 7), 4, "fp32", ALONE, padded=True).answers(prompts, Sampling(12))
    assert [each.answers(prompts, Sampling(12)) for each in engines] == [expected] * 4


@pytest.mark.parametrize(("kind", "padded"), [("auto", False), ("streams", False), ("generate", True)])
def test_who_decodes_in_streams(parts, monkeypatch, kind, padded):
    """By transformers where the recipe says so; and where the model cannot, which is said, or refused."""
    called = []
    monkeypatch.setattr(
        Generator, "_by_transformers", lambda self, prompts, *_: called.append(1) or ANSWERS[: len(prompts)]
    )
    made(parts, rollout_engine=kind).answers([[5, 6], [7]], Sampling(2))
    assert bool(called) == padded


ANSWERS = [Answer([2], True)] * COUNT


def test_a_policy_that_cannot_decode_in_streams(parts, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(parts.context.console, "say", said.append)
    monkeypatch.setattr(ppo_engine, "streaming_head", lambda model: None)
    for why, patch in (
        ("the output of LlamaForCausalLM cannot be taken apart", {}),
        ("its attention is eager", {"attend_in_streams": lambda model: "its attention is eager"}),
        ("the policy is spread over the ranks", {"is_spread_model": lambda model: True}),
    ):
        for name, value in patch.items():
            monkeypatch.setattr(ppo_engine, name, value)
        made(parts, rollout_engine="auto")
        assert said.pop().startswith(f"transformers' generate samples the answers: {why}")
        with pytest.raises(
            RecipeError, match=rf"rollout_engine: streams are not possible here: {why}.*leave it at auto"
        ):
            made(parts, rollout_engine="streams")
        made(parts, rollout_engine="generate")
        assert not said


def test_an_attention_that_pads_is_named(parts, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(parts.context.console, "say", said.append)
    monkeypatch.setattr(ppo_engine, "streaming_head", lambda model: None)
    model = parts.context.recipe.model.model_copy(update={"attention": "sdpa"})
    monkeypatch.setattr(parts.context, "recipe", parts.context.recipe.model_copy(update={"model": model}))
    made(parts, rollout_engine="auto")
    assert said == ["transformers' generate samples the answers: model.attention is sdpa, which pads rows"]


def test_vllm_engines(parts, fake_vllm, lively_folder, monkeypatch):
    monkeypatch.setattr(ppo_engine, "device", lambda: torch.device("cuda"))
    server = FakeServer(str(lively_folder))
    try:
        vllm = parts.settings.vllm.model_copy(update={"url": server.url, "gpu_memory_utilization": 0.2})
        found = made(parts, rollout_engine="vllm_server", vllm=vllm)
        assert isinstance(found, ServerEngine)
        assert server.calls[-1] == "/init_weight_transfer_engine"
    finally:
        server.stop()
    found = made(parts, rollout_engine="vllm_colocate", vllm=vllm, generation_batch_size=5, max_new_tokens=88)
    assert isinstance(found, ColocatedEngine)
    options = fake_vllm.STARTED[-1].options
    longest = parts.context.recipe.data.prompts.max_prompt_length + 88
    assert (options["gpu_memory_utilization"], options["max_model_len"], options["max_num_seqs"]) == (0.2, longest, 5)


@pytest.mark.parametrize("kind", ["vllm_server", "vllm_colocate"])
def test_vllm_engines_refuse(parts, kind, monkeypatch):
    """A quantised base, a machine without a GPU, and then a process without vLLM."""
    with pytest.raises(RecipeError, match=rf"stages\.ppo\.rollout_engine: {kind} is sent merged weights.* nf4; write"):
        made(parts, rollout_engine=kind, quantization="nf4")
    with pytest.raises(RecipeError, match=rf"{kind} needs a CUDA GPU.*--set stages\.ppo\.rollout_engine=generate"):
        made(parts, rollout_engine=kind)
    monkeypatch.setattr(ppo_engine, "device", lambda: torch.device("cuda"))
    with pytest.raises(SourceUnreachableError, match=r"pip install 'trl\[vllm\]'"):
        made(parts, rollout_engine=kind)


# What the sampler says


def test_paged_sampling_is_sampling_from_the_policy(parts):
    """Its log-probabilities are the trainer's, so nothing is weighed anew: every weight is 1 but for rounding."""
    metrics, minibatch = metrics_of(parts, sampled(parts, made(parts, rollout_engine="paged")))
    for micro in minibatch:
        assert torch.allclose(micro.weights_BR, micro.mask_BR.float(), atol=1e-4)
    assert 0 < metrics["rollout/logp_diff_mean"] <= metrics["rollout/logp_diff_max"] < 1e-4
    assert metrics["rollout/ess"] == pytest.approx(1.0, abs=1e-6)


def test_a_stale_sampler_is_weighed(parts):
    """The answers are those of the policy before it moved; weights and figures follow by hand from both."""
    episodes = sampled(parts, made(parts, rollout_engine="paged"))
    move(parts)
    metrics, minibatch = metrics_of(parts, episodes)
    differences, inside = [], []
    for micro in minibatch:
        told = torch.zeros_like(micro.old_logps_BR)
        for row, index in enumerate(micro.rows):
            told[row, : len(episodes[index].answer.ids)] = torch.tensor(episodes[index].answer.logps)
        ratio = (micro.old_logps_BR - told).exp()
        assert torch.allclose(micro.weights_BR, torch.where(micro.mask_BR, ratio.clamp(max=2.0), 0.0), atol=1e-6)
        assert torch.equal(
            micro.weights_BR, importance_weights(micro.old_logps_BR, micro.sampler_logps_BR, micro.mask_BR, 2.0)
        )
        differences.append((micro.old_logps_BR - told).abs()[micro.mask_BR])
        inside.append(micro.weights_BR[micro.mask_BR])
    apart, weights = torch.cat(differences), torch.cat(inside)
    assert float(weights.max()) == 2.0 and float(weights.min()) < 0.5
    assert metrics["rollout/logp_diff_mean"] == pytest.approx(float(apart.mean()), rel=1e-4)
    assert metrics["rollout/logp_diff_mean"] > 0.05
    assert metrics["rollout/logp_diff_max"] == pytest.approx(float(apart.max()), rel=1e-4)
    assert metrics["rollout/ess"] < 0.95


def test_the_policy_itself_is_not_weighed(parts):
    """`generate` says nothing of its tokens, stale or not."""
    metrics, minibatch = metrics_of(parts, sampled(parts, made(parts, rollout_engine="generate")))
    assert all(micro.weights_BR is None for micro in minibatch)
    assert (metrics["rollout/logp_diff_mean"], metrics["rollout/ess"]) == (0.0, 1.0)


@pytest.mark.parametrize("shift", [1, -1])
def test_log_probabilities_out_of_place_would_show(parts, shift):
    """Control: every token has its neighbour's."""
    episodes = sampled(parts, made(parts, rollout_engine="paged"))
    turned = []
    for each in episodes:
        logps = each.answer.logps or []
        answer = replace(each.answer, logps=logps[shift:] + logps[:shift])
        turned.append(each._replace(answer=answer))
    assert metrics_of(parts, turned)[0]["rollout/logp_diff_mean"] > 0.1


def test_answers_keep_their_log_probabilities_to_the_end(parts):
    """The stop token has one; an answer that was cut off has as many as tokens."""
    episodes = sampled(parts, made(parts, rollout_engine="paged"), longest=150)
    answers: list[Answer] = [each.answer for each in episodes]
    assert {each.stopped for each in answers} == {True, False}
    for each in answers:
        assert each.logps is not None and len(each.logps) == len(each.ids) and max(each.logps) <= 0
        assert (each.ids[-1] in (2, 7)) == each.stopped
