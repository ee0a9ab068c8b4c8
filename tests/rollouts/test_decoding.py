"""Answers decoded in streams: those of transformers, token by token, on every architecture; and their work, counted."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers import MambaConfig

from pipeline.models import adapters, answer_cache
from pipeline.models.answer_cache import AnswerCache
from pipeline.models.forward import trunk_of
from pipeline.models.stream_forward import attend_in_streams
from pipeline.recipe.schema import AdapterSettings
from pipeline.rollouts import decoding, generate
from pipeline.rollouts.answers import Answer, Sampling
from pipeline.rollouts.generate import Generator
from pipeline.runtime import Ranks
from pipeline.streams import pack
from tests.models.small_models import attending, build, shape

ALONE = Ranks(0, 0, 1)
ATTENDING = attending()
LENGTH = 14
STOPS = tuple(range(3, 12))
"""Many of the 64 words, so that answers are of all lengths."""


def some_prompts() -> list[list[int]]:
    """Of 1 to 31 tokens; most begin with the same ten, two are one, and one begins as another whole one does."""
    draw = random.Random(0)
    ids = lambda count: [draw.randrange(12, 64) for _ in range(count)]  # noqa: E731
    system = ids(10)
    found = [[*system, *ids(length)] for length in (21, 3, 12, 1, 7)]
    return [*found, found[2], [*found[4], *ids(4)], ids(1), ids(9)]


PROMPTS = some_prompts()


@pytest.fixture
def small() -> Any:
    """A small Llama that attends in streams."""
    model = build(ATTENDING["llama"], 6.0)
    assert attend_in_streams(model) is None
    return model


def generator(model: Any, size: int = 9, stop_ids: tuple[int, ...] = STOPS, **options: Any) -> Generator:
    return Generator(model, 0, stop_ids, size, "fp32", ALONE, **options)


class Work:
    """Counts what goes through the first layer and the head of a model, by pass."""

    def __init__(self, model: Any):
        self.tokens: list[int] = []
        self.heads: list[int] = []
        layers = next(module for name, module in model.named_modules() if name.endswith(("layers", ".h")))
        layers[0].register_forward_pre_hook(self._layer, with_kwargs=True)
        model.get_output_embeddings().register_forward_pre_hook(self._head)

    def _layer(self, module: Any, inputs: Any, options: Any) -> None:
        hidden = inputs[0] if inputs else options["hidden_states"]
        self.tokens.append(hidden.shape[0] * hidden.shape[1])

    def _head(self, module: Any, inputs: Any) -> None:
        self.heads.append(inputs[0].shape[:-1].numel())

    def forget(self) -> None:
        self.tokens.clear()
        self.heads.clear()


# The same answers


@pytest.mark.parametrize("temperature", [None, 0.8])
@pytest.mark.parametrize("name", ATTENDING)
def test_answers_are_those_of_transformers(name, temperature):
    """Greedy and sampled, with windows shorter than the prompts and with absolute positions too."""
    model = build(ATTENDING[name], 6.0)
    assert attend_in_streams(model) is None
    sampling = Sampling(LENGTH, temperature, seed=3)
    expected = generator(model, padded=True).answers(PROMPTS, sampling)
    work = Work(model)
    found = generator(model).answers(PROMPTS, sampling)
    assert found == expected
    assert sum(work.tokens) < len(PROMPTS) * max(map(len, PROMPTS)), "it did not go through streams"
    assert any(answer.stopped for answer in found) or name in ("gemma3_windows", "cohere")
    assert len({tuple(answer.ids) for answer in found}) > 5


@pytest.mark.parametrize("size", [1, 2, 5])
def test_answers_do_not_depend_on_the_batch(small, size):
    sampling = Sampling(LENGTH, 0.8, seed=3)
    whole = generator(small).answers(PROMPTS, sampling)
    assert generator(small, size=size).answers(PROMPTS, sampling) == whole
    assert len({len(answer.ids) for answer in whole}) > 3


def test_an_adapter_takes_part(small):
    torch.manual_seed(0)
    model: Any = adapters.attach_new(small, AdapterSettings(r=4), dropout=False)
    plain = generator(model).answers(PROMPTS, Sampling(LENGTH))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    found = generator(model).answers(PROMPTS, Sampling(LENGTH))
    assert found == generator(model, padded=True).answers(PROMPTS, Sampling(LENGTH)) != plain


def test_stops_and_limits(small):
    """A first token that ends, a limit of one token, a stop at the limit, and no stop at all."""
    free = generator(small, stop_ids=()).answers(PROMPTS, Sampling(LENGTH))
    assert all(len(answer.ids) == LENGTH and not answer.stopped for answer in free)
    first = free[0].ids[0]
    assert generator(small, stop_ids=(first,)).answers(PROMPTS[:1], Sampling(LENGTH)) == [Answer([first], True)]
    assert generator(small, stop_ids=(first,)).answers(PROMPTS[:1], Sampling(1)) == [Answer([first], True)]
    assert generator(small, stop_ids=()).answers(PROMPTS[:1], Sampling(1)) == [Answer([first], False)]


def test_gradients_and_modes_are_left_as_they_were(small):
    small.train()
    small.get_input_embeddings().eval()
    wanted = [parameter.requires_grad for parameter in small.parameters()]
    generator(small).answers(PROMPTS, Sampling(2))
    assert small.training and not small.get_input_embeddings().training
    assert [parameter.requires_grad for parameter in small.parameters()] == wanted
    assert torch.is_grad_enabled()


# Controls: what the comparison would not forgive


def reversed_rows(self: AnswerCache, rows: Any, keep: Any = AnswerCache.keep) -> None:
    keep(self, list(reversed(rows)))


def one_slot_late(self: AnswerCache, trunk: Any, tokens_B: Any, extend: Any = AnswerCache.extend) -> Any:
    self._at_B = self._at_B + (max(self._lengths) == max(map(len, PROMPTS)))
    return extend(self, trunk, tokens_B)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [("keep", reversed_rows), ("_mask", lambda self, filled, window: None), ("extend", one_slot_late)],
)
def test_a_fault_in_the_cache_would_show(small, monkeypatch, method, wrong):
    expected = generator(small).answers(PROMPTS, Sampling(LENGTH))
    monkeypatch.setattr(AnswerCache, method, wrong)
    assert generator(small).answers(PROMPTS, Sampling(LENGTH)) != expected


def test_a_window_that_is_forgotten_would_show(monkeypatch):
    model = build(ATTENDING["mistral_window"], 6.0)
    assert attend_in_streams(model) is None
    expected = generator(model).answers(PROMPTS, Sampling(LENGTH))
    mask = AnswerCache._mask
    monkeypatch.setattr(AnswerCache, "_mask", lambda self, filled, window: mask(self, filled, None))
    assert generator(model).answers(PROMPTS, Sampling(LENGTH)) != expected


def test_what_stands_on_unused_slots_never_matters(small, monkeypatch):
    expected = generator(small).answers(PROMPTS, Sampling(LENGTH))
    rows = AnswerCache._rows

    def littered(self: AnswerCache, stream: Any, where_BP: Any) -> Any:
        found = rows(self, stream, where_BP)
        for row, length in enumerate(self._lengths):
            found[row, :, length:] = 1e4
        return found

    monkeypatch.setattr(answer_cache.AnswerCache, "_rows", littered)
    assert generator(small).answers(PROMPTS, Sampling(LENGTH)) == expected


# Counted work


def test_a_prompts_tokens_go_forward_once_and_ended_answers_do_not(small):
    """Prompts without padding and with common beginnings once; then one token a row that is still there."""
    work = Work(small)
    found = generator(small).answers(PROMPTS, Sampling(LENGTH, 0.8, seed=3))
    work.forget()
    found = generator(small).answers(PROMPTS, Sampling(LENGTH, 0.8, seed=3))
    tried = [8, 8]  # the head is tried on eight tokens, whole and in two parts
    assert work.tokens[:2] == tried
    prompts, *steps = work.tokens[2:]
    assert prompts == len(pack(PROMPTS).ids_N) < 0.7 * sum(map(len, PROMPTS))
    assert work.heads[2:] == [len(PROMPTS), *steps], "logits of last tokens alone"
    lengths = sorted(len(answer.ids) for answer in found)
    assert len(steps) == lengths[-1] - 1
    going = [sum(length > step for length in lengths) for step in range(1, lengths[-1])]
    assert all(
        live <= rows <= max(live / decoding.STILL_FULL, live + 1) for live, rows in zip(going, steps, strict=True)
    )
    assert sum(steps) < 0.7 * len(steps) * len(PROMPTS), "transformers carries all rows to the end"
    work.forget()
    generator(small, padded=True).answers(PROMPTS, Sampling(LENGTH, 0.8, seed=3))
    assert work.tokens == [len(PROMPTS) * max(map(len, PROMPTS)), *[len(PROMPTS)] * len(steps)]


def test_a_prompt_answered_often_is_read_once(small):
    """Eight samples of one prompt: its tokens once, and eight rows from there on, of equal length and so unmasked."""
    work = Work(small)
    masks = []
    mask = AnswerCache._mask
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerCache, "_mask", lambda self, *at: masks.append(mask(self, *at)) or masks[-1])
        found = generator(small, stop_ids=()).answers([PROMPTS[0]] * 8, Sampling(5, 1.0))
    assert work.tokens[2:] == [len(PROMPTS[0]), 8, 8, 8, 8]
    assert len({tuple(answer.ids) for answer in found}) == 8
    assert masks and all(each is None for each in masks)


# Who decodes in streams


def test_a_model_that_cannot_is_left_to_transformers(monkeypatch):
    model = build(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, eos_token_id=2), 4.0)
    assert attend_in_streams(model) is not None
    monkeypatch.setattr(generate, "decode", None)
    assert len(generator(model).answers(PROMPTS, Sampling(4))) == len(PROMPTS)


def test_padded_is_transformers_generate(small, monkeypatch):
    calls = []
    own = type(small).generate
    monkeypatch.setattr(type(small), "generate", lambda self, **options: calls.append(1) or own(self, **options))
    generator(small).answers(PROMPTS, Sampling(2))
    assert not calls
    generator(small, padded=True).answers(PROMPTS, Sampling(2))
    assert calls == [1]
    plain = build(ATTENDING["llama"], 6.0)
    generator(plain).answers(PROMPTS, Sampling(2))
    assert calls == [1, 1], "a model that does not attend in streams"


def test_a_head_that_cannot_be_taken_apart_is_left_to_transformers(small, monkeypatch):
    expected = generator(small).answers(PROMPTS, Sampling(LENGTH))
    odd = copy.deepcopy(small)
    forward = odd.forward

    def doubled(*args: Any, **options: Any) -> Any:
        out = forward(*args, **options)
        out.logits = out.logits * 2
        return out

    monkeypatch.setattr(odd, "forward", doubled)
    assert decoding.streaming_head(odd) is None and decoding.streaming_head(small) is not None
    assert generator(odd).answers(PROMPTS, Sampling(LENGTH)) == expected
    assert trunk_of(odd) is not None


def test_shape_has_room() -> None:
    assert max(map(len, PROMPTS)) + LENGTH <= shape()["max_position_embeddings"]
