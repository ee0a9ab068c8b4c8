"""Continuous batching: greedy answers against `generate`, sampled ones against the softmax; nothing left changed."""

from __future__ import annotations

import copy
import gc
import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from pipeline.batches import response_batch
from pipeline.errors import TrivetError
from pipeline.models.roles import POLICY
from pipeline.rollouts.answers import Answer, Sampling, SamplingStopped
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.paged import CHUNK, PagedGenerator
from pipeline.runtime import Ranks, StopRequest
from tests.rollouts.ppo_parts import ALONE, LORA, PAD, make_parts

PROMPTS = [[1, 40, 41], [1, 42], [1, 43, 44, 45, 46, 47, 48, 49], [1, 50, 51, 52], [1], [1, 53]]
LENGTH = 12
GREEDY = Sampling(max_new_tokens=LENGTH)


@pytest.fixture(params=["sdpa", "eager"])
def model(request, lively_folder) -> Any:
    return AutoModelForCausalLM.from_pretrained(lively_folder, attn_implementation=request.param).eval()


def paged(model: Any, stop_ids: tuple[int, ...] = (2,), batch_size: int = 4) -> PagedGenerator:
    return PagedGenerator(model, stop_ids, batch_size, ALONE)


def generated(model: Any, prompts: list[list[int]] = PROMPTS, stop_ids: tuple[int, ...] = (2,)) -> list[Answer]:
    return Generator(model, PAD, stop_ids, 3, "fp32", ALONE).answers(prompts, GREEDY)


@torch.no_grad()
def said(model: Any, prompt: list[int], ids: list[int], temperature: float) -> list[float]:
    """Log-probability of each answer token by one plain forward pass over all of them."""
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


# Greedy


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_greedy_is_generate(model, batch_size):
    found = paged(model, batch_size=batch_size).answers(PROMPTS, GREEDY)
    assert found == generated(model)
    assert len({tuple(answer.ids) for answer in found}) > 3, "the answers must depend on their prompts"
    assert all(answer.logps is None for answer in found)


def test_stops_at_any_stop_id_and_keeps_it(model):
    free = generated(model, stop_ids=())
    stop_ids = (free[0].ids[1], free[2].ids[4])
    found = paged(model, stop_ids).answers(PROMPTS, GREEDY)
    assert found == generated(model, stop_ids=stop_ids)
    assert {answer.stopped for answer in found} == {True, False}
    assert all((answer.ids[-1] in stop_ids) == answer.stopped for answer in found)
    assert all(len(answer.ids) == LENGTH for answer in paged(model, ()).answers(PROMPTS, GREEDY))


def test_prompts_longer_than_a_pack(model):
    """Read in parts, between other answers' tokens."""
    prompts = [[1, *(40 + (i * i) % 150 for i in range(CHUNK + 300))], *PROMPTS[:2]]
    assert paged(model).answers(prompts, GREEDY) == generated(model, prompts)


def test_the_adapter_speaks(lively_folder, tmp_path):
    """The policy's adapter among those on the base, and the base when it is switched off."""
    parts = make_parts(tmp_path, lively_folder, LORA)
    with parts.roles.sampling() as policy:
        found = paged(policy).answers(PROMPTS, GREEDY)
        assert found == generated(policy)
        with policy.disable_adapter():
            assert paged(policy).answers(PROMPTS, GREEDY) != found


# Sampling


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_come_from_the_softmax(lively_model, temperature):
    """4000 draws, within five standard deviations of chi-square; its controls are the other temperature and top-k 50.

    The model's own settings, which continuous batching takes when it is given none, say top-k 5.
    """
    n, prompt = 4000, [1, 40, 41]
    lively_model.generation_config = GenerationConfig(do_sample=True, top_k=5, temperature=0.3)
    sampling = Sampling(max_new_tokens=1, temperature=temperature, seed=3)
    found = paged(lively_model, batch_size=1000).answers([prompt] * n, sampling)
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in found]), minlength=259).double()
    with torch.no_grad():
        logits = lively_model(input_ids=torch.tensor([prompt])).logits[0, -1].double()

    def deviations(weights: torch.Tensor) -> float:
        expected = n * torch.softmax(weights, -1)
        common = expected >= 5
        observed = torch.cat([counts[common], counts[~common].sum()[None]])
        wanted = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-3)
        chi_square = ((observed - wanted).square() / wanted).sum().item()
        return (chi_square - int(common.sum())) / math.sqrt(2 * int(common.sum()))

    assert abs(deviations(logits / temperature)) < 5
    assert deviations(logits / (1.7 - temperature)) > 15
    top = logits / temperature
    assert deviations(top.masked_fill(top < top.topk(50).values[-1], -1e9)) > 15
    assert lively_model.generation_config.top_k == 5


def test_what_the_library_would_do_on_its_own(lively_model):
    """Control: top-k bites where it is said or inherited; unsaid, `do_sample` is greedy."""
    cache = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64, seed=1)
    first = lively_model(input_ids=torch.tensor([[1, 40, 41]])).logits[0, -1]
    lively_model.generation_config = GenerationConfig(do_sample=True, top_k=2, max_new_tokens=1, eos_token_id=2)
    for given, allowed in ((None, 2), (GenerationConfig(max_new_tokens=1, eos_token_id=2), 1)):
        results = lively_model.generate_batch(
            [[1, 40, 41]] * 40, generation_config=given, continuous_batching_config=cache
        )
        tokens = {result.generated_tokens[0] for result in results.values()}
        assert tokens == set(first.topk(allowed).indices.tolist())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_tokens(model, temperature):
    """Of each token in its place: with stop tokens in the middle of what could be said, and without one."""
    free = generated(model, stop_ids=())
    stop_ids = (2, *{token for answer in free for token in answer.ids[1::3]})
    sampling = Sampling(LENGTH, temperature, seed=5)
    found = paged(model, stop_ids).answers(PROMPTS * 4, sampling)
    assert {answer.stopped for answer in found} == {True, False}
    for prompt, answer in zip(PROMPTS * 4, found, strict=True):
        assert answer.logps == pytest.approx(said(model, prompt, answer.ids, temperature), abs=1e-4)
    longest = max(range(len(found)), key=lambda index: len(found[index].ids))
    prompt, answer = (PROMPTS * 4)[longest], found[longest]
    assert answer.logps != pytest.approx(said(model, prompt, answer.ids, 1.7 - temperature), abs=1e-2)
    shifted = said(model, prompt, answer.ids, temperature)[1:]
    assert answer.logps is not None and answer.logps[:-1] != pytest.approx(shifted, abs=1e-2)


def test_the_same_call_gives_the_same_answers(lively_model):
    """Also with answers of all lengths, more of them than fit at a time; whatever the global generator did before."""
    sampling = Sampling(LENGTH, 1.0, seed=7)
    stop_ids = tuple(range(2, 40))
    first = paged(lively_model, stop_ids).answers(PROMPTS * 5, sampling)
    assert len({len(answer.ids) for answer in first}) > 3
    for seed in range(3):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        assert paged(lively_model, stop_ids).answers(PROMPTS * 5, sampling) == first
        assert torch.equal(torch.get_rng_state(), state)
    other = paged(lively_model, stop_ids).answers(PROMPTS * 5, Sampling(LENGTH, 1.0, seed=8))
    assert sum(a.ids == b.ids for a, b in zip(first, other, strict=True)) < 5


def test_equal_prompts_are_sampled_apart(lively_model):
    found = paged(lively_model).answers([[1, 40]] * 8, Sampling(LENGTH, 1.0))
    assert len({tuple(answer.ids) for answer in found}) == 8


# What it leaves behind


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_trainers_forward_is_unchanged(lively_folder, tmp_path, attention):
    """Log-probabilities before and after, bit for bit; modes module by module; gradients still flow."""
    parts = make_parts(tmp_path, lively_folder, LORA)
    parts.policy.model.get_base_model().set_attn_implementation(attention)
    batch = response_batch(PROMPTS, [[60, 61, 62]] * len(PROMPTS), PAD)
    with torch.no_grad():
        before = parts.roles.logps(POLICY, batch, 0.7).logps_BR
    inner = parts.policy.model.get_base_model()
    inner.model.train()
    inner.model.layers[0].eval()
    modes = [module.training for module in inner.modules()]
    assert len(set(modes)) == 2
    paged(parts.policy.model).answers(PROMPTS, Sampling(LENGTH, 0.7))
    assert [module.training for module in inner.modules()] == modes
    assert inner.config._attn_implementation == attention
    assert all(layer.self_attn.config._attn_implementation == attention for layer in inner.model.layers)
    with torch.no_grad():
        assert torch.equal(parts.roles.logps(POLICY, batch, 0.7).logps_BR, before)
    parts.roles.backward(parts.roles.logps(POLICY, batch, 0.7).logps_BR.sum())
    assert any(parameter.grad is not None for parameter in parts.roles.trainable(POLICY))


def test_the_cache_is_freed(lively_model):
    paged(lively_model).answers(PROMPTS, GREEDY)
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, PagedAttentionCache)]


@pytest.mark.parametrize("failure", [RuntimeError("broken"), ValueError("unheard of")])
def test_a_crash_in_its_thread_comes_out(model, failure):
    """The library logs it and returns what it has; the model is left as it was all the same."""
    attention = model.config._attn_implementation
    working = copy.deepcopy(model)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise failure

    model.model.layers[1].register_forward_pre_hook(fail)
    wanted = TrivetError if isinstance(failure, ValueError) else RuntimeError
    with pytest.raises(wanted, match=str(failure)) as found:
        paged(model).answers(PROMPTS, GREEDY)
    if wanted is TrivetError:
        assert "paged cannot run LlamaForCausalLM (unheard of); use rollout_engine: generate" in str(found.value)
    assert model.config._attn_implementation == attention
    assert paged(working).answers(PROMPTS, GREEDY) == generated(working)


def test_no_memory_for_the_cache(lively_model):
    with pytest.raises(TrivetError, match="lower generation_batch_size"):
        paged(lively_model, batch_size=10**6).answers(PROMPTS, Sampling(max_new_tokens=10**9))


# Bookkeeping


def test_progress_and_ranks(lively_model):
    seen: list[tuple[int, int]] = []
    whole = paged(lively_model).answers(PROMPTS, GREEDY, lambda *at: seen.append(at))
    assert seen == [(done, 6) for done in range(7)]
    stop = StopRequest()
    with pytest.raises(SamplingStopped):
        paged(lively_model).answers(PROMPTS, GREEDY, lambda done, total: setattr(stop, "asked", done == 1), stop)
    for rank in (0, 1):
        assert PagedGenerator(lively_model, (2,), 4, Ranks(rank, rank, 2)).answers(PROMPTS, GREEDY) == whole[rank::2]
    assert paged(lively_model).answers([], GREEDY) == []
    shares = [
        PagedGenerator(lively_model, (2,), 4, Ranks(rank, rank, 2)).answers([[1]] * 8, Sampling(LENGTH, 1.0))
        for rank in (0, 1)
    ]
    assert not {tuple(answer.ids) for answer in shares[0]} & {tuple(answer.ids) for answer in shares[1]}
