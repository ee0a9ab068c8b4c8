"""Generated answers: greedy ones against a naive loop, sampled ones against the distribution they come from."""

from __future__ import annotations

import copy
import math
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from pipeline.models import adapters
from pipeline.recipe.schema import AdapterSettings
from pipeline.rollouts.answers import Answer, Sampling, SamplingStopped
from pipeline.rollouts.generate import Generator
from pipeline.runtime import Ranks, StopRequest, autocast

ALONE = Ranks(0, 0, 1)
PROMPTS = [[1, 40, 41], [1, 42], [1, 43, 44, 45, 46, 47, 48, 49], [1, 50, 51, 52], [1], [1, 53]]
LENGTH = 12


def naive_greedy(model: Any, prompt: list[int], stop_ids: tuple[int, ...], length: int) -> Answer:
    """argmax, one token at a time, the whole sequence anew each time."""
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids:
            return Answer(ids[len(prompt) :], True)
    return Answer(ids[len(prompt) :], False)


def generator(model: Any, stop_ids: tuple[int, ...] = (2,), batch_size: int = 3, pad_id: int = 0) -> Generator:
    return Generator(model, pad_id, stop_ids, batch_size, "fp32", ALONE)


def greedy(model: Any, **options: Any) -> list[Answer]:
    return generator(model, **options).answers(PROMPTS, Sampling(max_new_tokens=LENGTH))


def test_who_is_asked_to_stop_finishes_the_batch_in_hand(lively_model: Any) -> None:
    stop, seen = StopRequest(), []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        stop.asked = done > 0

    sampler = generator(lively_model)
    with pytest.raises(SamplingStopped):
        sampler.answers(PROMPTS, Sampling(LENGTH), progress, stop)
    assert seen == [0, 3] and len(PROMPTS) == 6
    assert sampler.answers(PROMPTS, Sampling(LENGTH), None, StopRequest()) == greedy(lively_model)


@pytest.fixture(params=["llama", "gpt2"])
def model(request) -> Any:
    """With absolute positions too: there a position that is off by the padding shows at once."""
    if request.param == "llama":
        return request.getfixturevalue("lively_model")
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=259, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    found = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return found.eval()


# Greedy


@pytest.mark.parametrize("batch_size", [1, 3, 6])
@pytest.mark.parametrize("pad_id", [0, 2, 77])
def test_greedy_is_the_naive_loop(model, batch_size, pad_id):
    expected = [naive_greedy(model, prompt, (2,), LENGTH) for prompt in PROMPTS]
    assert greedy(model, batch_size=batch_size, pad_id=pad_id) == expected
    assert len({tuple(answer.ids) for answer in expected}) > 3, "the answers must depend on their prompts"


def test_stops_at_any_stop_id(model):
    """Stop ids are taken from what the model says anyway: the second token of one answer, the fifth of another."""
    free = [naive_greedy(model, prompt, (), LENGTH).ids for prompt in PROMPTS]
    stop_ids = (free[0][1], free[2][4])
    expected = [naive_greedy(model, prompt, stop_ids, LENGTH) for prompt in PROMPTS]
    found = greedy(model, stop_ids=stop_ids)
    assert found == expected
    assert found[0].stopped and found[0].ids[-1] in stop_ids and len(found[0].ids) <= 2
    assert found[2].stopped and len(found[2].ids) <= 5
    for answer in found:
        assert sum(token in stop_ids for token in answer.ids) == answer.stopped, "nothing follows a stop token"
        assert answer.stopped or len(answer.ids) == LENGTH


def test_a_stop_token_at_the_limit_counts_as_stopped(model):
    ids = naive_greedy(model, PROMPTS[0], (), LENGTH).ids
    last = max(at for at in range(LENGTH) if ids[at] not in ids[:at])
    ended = generator(model, stop_ids=(ids[last],)).answers(PROMPTS[:1], Sampling(max_new_tokens=last + 1))
    assert ended == [Answer(ids[: last + 1], True)]
    cut = generator(model, stop_ids=(2,)).answers(PROMPTS[:1], Sampling(max_new_tokens=last + 1))
    assert cut == [Answer(ids[: last + 1], False)]


def test_generation_ends_when_every_answer_has(lively_model):
    """Two rows, each ended by another stop id at its first token: one forward pass, not fifty."""
    first = [naive_greedy(lively_model, prompt, (), 1).ids[0] for prompt in PROMPTS[:2]]
    assert first[0] != first[1]
    passes = []
    lively_model.register_forward_hook(lambda *_: passes.append(1))
    found = generator(lively_model, stop_ids=(2, *first)).answers(PROMPTS[:2], Sampling(max_new_tokens=50))
    assert found == [Answer([token], True) for token in first]
    assert len(passes) == 1


def test_a_pad_id_among_real_tokens_is_kept(model):
    """The pad id may be a token the model writes; an answer is cut at stop tokens only, never at padding."""
    ids = naive_greedy(model, PROMPTS[0], (), LENGTH).ids
    assert generator(model, stop_ids=(2,), pad_id=ids[0]).answers(PROMPTS[:1], Sampling(LENGTH))[0].ids[0] == ids[0]


HOSTILE: dict[str, Any] = {
    "do_sample": True, "temperature": 3.0, "top_k": 2, "top_p": 0.1, "repetition_penalty": 5.0,
    "min_p": 0.9, "typical_p": 0.1, "top_h": 0.1, "epsilon_cutoff": 0.5, "eta_cutoff": 0.5,
    "no_repeat_ngram_size": 1, "min_new_tokens": 9, "min_length": 30, "max_length": 3, "num_return_sequences": 1,
    "suppress_tokens": list(range(3, 200)), "begin_suppress_tokens": list(range(3, 250)), "bad_words_ids": [[60]],
    "forced_eos_token_id": 5, "forced_bos_token_id": 6, "exponential_decay_length_penalty": (1, 5.0),
    "sequence_bias": {(60,): 50.0}, "guidance_scale": 2.0, "length_penalty": 5.0, "renormalize_logits": True,
    "eos_token_id": list(range(3, 200)), "pad_token_id": 60, "encoder_repetition_penalty": 3.0,
    "watermarking_config": {"greenlist_ratio": 0.1, "bias": 50.0}, "max_time": 1e-9,
}  # fmt: skip
"""What a model's own generation_config.json may hold; several of these ship with well-known models."""
CLASH = ("forced_eos_token_id", "forced_bos_token_id")
"""What the library refuses beside `suppress_tokens`."""


@pytest.mark.parametrize("setting", [*HOSTILE, "all"])
def test_the_models_own_generation_settings_are_ignored(lively_model, setting):
    """Greedy and sampled answers, setting by setting; afterwards the model has its own settings back."""
    sampling = Sampling(max_new_tokens=LENGTH, temperature=0.9, seed=4)
    stop_ids = (2, naive_greedy(lively_model, PROMPTS[0], (), LENGTH).ids[4])
    plain = generator(lively_model, stop_ids), greedy(lively_model, stop_ids=stop_ids)
    sampled = plain[0].answers(PROMPTS, sampling)
    hostile = copy.deepcopy(lively_model)
    names = [name for name in HOSTILE if name not in CLASH] if setting == "all" else [setting]
    chosen = {name: HOSTILE[name] for name in names}
    hostile.generation_config = GenerationConfig(**chosen)
    assert greedy(hostile, stop_ids=stop_ids) == plain[1]
    assert generator(hostile, stop_ids).answers(PROMPTS, sampling) == sampled
    for name, value in chosen.items():
        kept = getattr(hostile.generation_config, name)
        assert (kept.to_dict().items() >= value.items()) if name == "watermarking_config" else kept == value


def test_settings_below_an_adapter_are_ignored_too(lively_model):
    torch.manual_seed(0)
    expected = greedy(lively_model)
    model = adapters.attach_new(lively_model, AdapterSettings(r=4), dropout=False)
    model.get_base_model().generation_config = GenerationConfig(repetition_penalty=5.0, min_new_tokens=9)
    model.get_base_model().generation_config.suppress_tokens = [expected[0].ids[0]]
    assert greedy(model) == expected
    assert model.generation_config.suppress_tokens == [expected[0].ids[0]]
    assert model.get_base_model().generation_config.suppress_tokens == [expected[0].ids[0]]


def test_the_hostile_settings_would_bite(lively_model):
    """Control: handed to the library as they are, they change the answers."""
    hostile = copy.deepcopy(lively_model)
    for setting in ("suppress_tokens", "repetition_penalty", "sequence_bias"):
        hostile.generation_config = GenerationConfig(**{setting: HOSTILE[setting]}, pad_token_id=0)
        found = hostile.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=LENGTH, do_sample=False, eos_token_id=2)
        assert found[0, 3:].tolist() != naive_greedy(lively_model, PROMPTS[0], (2,), LENGTH).ids


# Sampling


def test_sampled_answers_depend_on_the_seed_only(lively_model):
    """Neither on what the global generator has done, nor on the mode the model is in; and it is left as it was."""
    sampling = Sampling(max_new_tokens=LENGTH, temperature=1.0, seed=7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generator(lively_model).answers(PROMPTS, sampling)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.rand(5)
    lively_model.train()
    assert generator(lively_model).answers(PROMPTS, sampling) == first
    assert lively_model.training
    other = generator(lively_model).answers(PROMPTS, Sampling(max_new_tokens=LENGTH, temperature=1.0, seed=8))
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_equal_prompts_are_sampled_apart(lively_model):
    found = generator(lively_model, batch_size=4).answers([[1, 40]] * 8, Sampling(LENGTH, temperature=1.0))
    assert len({tuple(answer.ids) for answer in found}) == 8


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_come_from_the_softmax(lively_model, temperature):
    """6000 draws: chi-square over tokens expected at least five times within five standard deviations.

    With k cells it has mean k - 1 and variance 2 (k - 1). Control: the other temperature, or a cut to 50 tokens, is
    far outside.
    """
    n = 6000
    lively_model.generation_config = GenerationConfig(top_k=50, temperature=0.3)
    found = generator(lively_model, stop_ids=(2,), batch_size=1500).answers(
        [[1, 40, 41]] * n, Sampling(max_new_tokens=1, temperature=temperature, seed=3)
    )
    with torch.no_grad():
        logits = lively_model(input_ids=torch.tensor([[1, 40, 41]])).logits[0, -1].double()
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in found]), minlength=logits.numel()).double()

    def deviations(weights: torch.Tensor) -> float:
        expected = n * torch.softmax(weights, -1)
        common = expected >= 5
        observed = torch.cat([counts[common], counts[~common].sum()[None]])
        wanted = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-3)
        chi_square = ((observed - wanted).square() / wanted).sum().item()
        return (chi_square - int(common.sum())) / math.sqrt(2 * int(common.sum()))

    assert abs(deviations(logits / temperature)) < 5
    assert deviations(logits / (1.7 - temperature)) > 20
    top = logits / temperature
    assert deviations(top.masked_fill(top < top.topk(50).values[-1], -1e9)) > 20


def test_a_stop_token_can_be_sampled_first(lively_model):
    with torch.no_grad():
        top = int(lively_model(input_ids=torch.tensor([[1, 40]])).logits[0, -1].argmax())
    found = generator(lively_model, stop_ids=(top,)).answers([[1, 40]] * 50, Sampling(3, temperature=0.2))
    stopped = [answer for answer in found if answer.ids == [top]]
    assert len(stopped) > 5 and all(answer.stopped for answer in stopped)


# Bookkeeping


def test_progress_order_and_ranks(lively_model):
    seen: list[tuple[int, int]] = []
    sampling = Sampling(max_new_tokens=LENGTH)
    whole = generator(lively_model, batch_size=4).answers(PROMPTS, sampling, lambda *at: seen.append(at))
    assert seen == [(0, 6), (4, 6), (6, 6)]
    for rank in (0, 1):
        share = Generator(lively_model, 0, (2,), 4, "fp32", Ranks(rank, rank, 2)).answers(PROMPTS, sampling)
        assert share == whole[rank::2]
    assert generator(lively_model).answers([], sampling) == []


# Sampled answers and how prompts are dealt


def test_sampled_answers_do_not_depend_on_how_prompts_are_dealt(model):
    """Batches of any size, ranks of any number, other prompts beside: an answer has the noise of its place alone."""
    sampling = Sampling(max_new_tokens=LENGTH, temperature=0.8, seed=11)
    prompts = PROMPTS * 3
    stop_ids = tuple(range(2, 40))
    expected = generator(model, stop_ids, batch_size=1).answers(prompts, sampling)
    assert len({tuple(answer.ids) for answer in expected}) > 12, "equal prompts at other places differ"
    assert len({len(answer.ids) for answer in expected}) > 3
    for batch_size in (2, 5, 18):
        assert generator(model, stop_ids, batch_size=batch_size).answers(prompts, sampling) == expected
    for world in (2, 3):
        for rank in range(world):
            share = Generator(model, 0, stop_ids, 4, "fp32", Ranks(rank, rank, world)).answers(prompts, sampling)
            assert share == expected[rank::world]
    assert generator(model, stop_ids).answers(prompts[:7], sampling) == expected[:7]
    others = [prompt if place in (2, 9) else [1, 99, 98] for place, prompt in enumerate(prompts)]
    found = generator(model, stop_ids, batch_size=6).answers(others, sampling)
    assert (found[2], found[9]) == (expected[2], expected[9])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_whole_answers_come_from_the_tempered_model(temperature):
    """Six words, three tokens, 20000 answers: total variation from the exact probabilities of all 156 answers.

    Control: twice as far from the distribution at the other temperature as chance would put it.
    """
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=6, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=0)
    tiny = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in tiny.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    n = 20_000
    found = Generator(tiny, 5, (0,), 5000, "fp32", ALONE).answers([[1, 3]] * n, Sampling(3, temperature, seed=1))
    seen = Counter(tuple(answer.ids) for answer in found)

    def distance(temperature: float) -> float:
        exact = probabilities(tiny, (1, 3), 3, temperature)
        assert len(exact) == 1 + 5 + 25 * 6 and abs(sum(exact.values()) - 1) < 1e-6
        return 0.5 * sum(abs(seen[answer] / n - probability) for answer, probability in exact.items())

    chance = 0.5 * sum(math.sqrt(2 * p / (math.pi * n)) for p in probabilities(tiny, (1, 3), 3, temperature).values())
    assert distance(temperature) < 1.4 * chance and chance < 0.04
    assert distance(1.6 - temperature) > 3 * chance


def probabilities(model: Any, prompt: tuple[int, ...], length: int, temperature: float) -> dict[tuple[int, ...], float]:
    """Of every answer that ends with 0 or is so long."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    found = {}
    for token, probability in enumerate(torch.softmax(logits / temperature, -1).tolist()):
        if token == 0 or length == 1:
            found[(token,)] = probability
            continue
        for rest, inner in probabilities(model, (*prompt, token), length - 1, temperature).items():
            found[(token, *rest)] = probability * inner
    return found


# Adapters in the type they are computed in


class Casts(TorchDispatchMode):
    """Counts tensors that are put into another type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to)
        return func(*args, **(kwargs or {}))


def adapted(model: Any, kind: Any = "lora") -> Any:
    found: Any = adapters.attach_new(model.to(torch.bfloat16), AdapterSettings(r=4, type=kind), dropout=False)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=draw)
    return found


@pytest.mark.parametrize("temperature", [None, 0.9])
def test_adapters_are_cast_once_and_to_the_same_bits(lively_model, monkeypatch, temperature):
    """Far fewer casts; the weights that are trained are left as they were."""
    model = adapted(lively_model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert {value.dtype for name, value in before.items() if "lora_" in name} == {torch.float32}
    sampling = Sampling(LENGTH, temperature, seed=5)

    def answers() -> tuple[list[Answer], int]:
        with Casts() as casts:
            found = Generator(model, 0, (2,), 3, "bf16", ALONE).answers(PROMPTS, sampling)
        return found, casts.count

    held, few = answers()
    for name, value in model.named_parameters():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]) and not value.is_inference()
    monkeypatch.setattr(adapters, "held_in", lambda *_: nullcontext())
    plain, many = answers()
    assert held == plain
    assert few < 2 / 3 * many
    assert len({tuple(answer.ids) for answer in held}) > 3


def test_logits_are_the_same_to_the_bit(lively_model):
    model, ids = adapted(lively_model), torch.tensor(PROMPTS[2:3])
    with torch.no_grad(), autocast("bf16"):
        plain = model(input_ids=ids).logits
        with adapters.held_in(model, "bf16"):
            assert torch.equal(model(input_ids=ids).logits, plain)


@pytest.mark.parametrize(("kind", "precision"), [("dora", "bf16"), ("lora", "fp32")])
def test_what_would_change_numbers_is_left_alone(lively_model, kind, precision):
    model = adapted(lively_model, kind)
    with adapters.held_in(model, precision):
        assert {value.dtype for name, value in model.named_parameters() if "lora_" in name} == {torch.float32}
