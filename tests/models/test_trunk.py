"""Adapters on the upper layers, and the frozen trunk below them: the same numbers and gradients, from less work."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from pipeline.errors import RecipeError
from pipeline.models import adapters
from pipeline.models.decoder import adapter_targets, decoder_layers
from pipeline.models.forward import stream_hidden_states, trunk_of
from pipeline.models.frozen_trunk import Below, FrozenTrunk, split_trunk
from pipeline.models.stream_forward import attend_in_streams, take_streams
from pipeline.models.trunk_cache import TrunkCache
from pipeline.recipe.schema import AdapterSettings
from pipeline.streams import Stream, stream_of
from tests.models.small_models import attending, build, gpt2_shape, shape

LAYERS, TOP = 4, 2
ATTENDING = attending(LAYERS)
DENSE = [name for name in ATTENDING if name != "mixtral"]
WORLD = 2**30


def rows(count: int = 6, seed: int = 0) -> list[tuple[list[int], list[bool]]]:
    """Answers behind prompts behind one system message, of uneven lengths."""
    draw = random.Random(seed)
    system = [draw.randrange(3, 64) for _ in range(10)]
    found = []
    for _ in range(count):
        prompt, answer = ([draw.randrange(3, 64) for _ in range(draw.randint(1, 9))] for _ in range(2))
        found.append(([*system, *prompt, *answer], [False] * (len(system) + len(prompt)) + [True] * len(answer)))
    return found


def adapted(config: Any, **settings: Any) -> Any:
    """A model with an adapter that does something on its upper layers, ready for streams."""
    model = build(config, 4.0)
    if config.model_type == "mixtral":
        settings = {"target_modules": ("q_proj", "o_proj"), **settings}
    wanted = AdapterSettings(**{"r": 4, "layers": f"top-{TOP}", **settings})
    found: Any = adapters.attach_new(model, wanted, dropout=False)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=draw)
    assert attend_in_streams(found) is None and take_streams(found) is None
    return found


def split(model: Any) -> FrozenTrunk:
    found = split_trunk(model)
    assert found.trunk is not None, found.why_not
    return found.trunk


def with_below(stream: Stream, below: Any) -> Stream:
    return replace(stream, below=below)


def gradients(model: Any, stream: Stream) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of the sequences, and the gradient of a weighted sum of them."""
    model.zero_grad()
    logps = stream.per_sequence(model(stream=stream))
    (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
    return logps.detach(), {
        name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
    }


def require_equal(found: Any, expected: Any) -> None:
    assert torch.allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
    assert found[1].keys() == expected[1].keys() and len(expected[1]) >= 4
    for name, value in expected[1].items():
        assert value.abs().max() > 0
        assert (found[1][name] - value).abs().max() <= 1e-5 * value.abs().max(), name


# Where the adapter goes


def adapted_modules(model: Any) -> set[str]:
    return {key.rpartition(".lora_A")[0] for key, _ in model.named_parameters() if "lora_A" in key}


@pytest.mark.parametrize("name", DENSE)
def test_the_adapter_is_on_the_top_layers_alone(name):
    """All linear modules of them and of no other layer, as PEFT finds them where all layers are meant."""
    path, _ = decoder_layers(trunk_of(build(ATTENDING[name], 1.0)))
    top, everywhere = (
        adapted_modules(adapted(ATTENDING[name], layers=layers)) for layers in (f"top-{TOP}", "all")
    )  # fmt: skip
    assert top == {key for key in everywhere if any(f".{path}.{index}." in key for index in (2, 3))}
    assert len(everywhere) == 2 * len(top) > 0


def test_layers_are_named_by_index_too():
    model = adapted(ATTENDING["llama"], layers=(1, 3), target_modules=("q_proj",))
    found = {key.split(".layers.")[1].split(".")[0] for key, _ in model.named_parameters() if "lora_A" in key}
    assert found == {"1", "3"} and len(split(model).frozen) == 1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("top-5", r"adapter\.layers: top-5, but the base model has 4 decoder layers; write top-1 to top-4, or all"),
        ((0, 4), r"model\.adapter\.layers: layer 4, but the base model has 4 decoder layers; name some of 0 to 3"),
        ((), r"model\.adapter\.layers: an empty list, but"),
    ],
)  # fmt: skip
def test_layers_that_are_not_there(layers, message):
    with pytest.raises(RecipeError, match=message):
        adapter_targets(build(ATTENDING["llama"], 1.0), AdapterSettings(layers=layers))


def test_experts_are_not_left_out_unsaid():
    with pytest.raises(RecipeError, match="all-linear includes experts here, which PEFT adapts in all layers or none"):
        adapter_targets(build(ATTENDING["mixtral"], 1.0), AdapterSettings(layers="top-1"))


def test_a_later_stage_finds_the_same_layers(tmp_path):
    """The artefact says where its adapter goes."""
    model = adapted(ATTENDING["llama"])
    model.save_pretrained(tmp_path)
    again = adapters.attach_trained(build(ATTENDING["llama"], 4.0), tmp_path)
    names = [{key for key, _ in each.named_parameters() if "lora_" in key} for each in (model, again)]
    assert names[0] == names[1]


# Two parts and the whole


@pytest.mark.parametrize("name", ATTENDING)
def test_the_parts_are_the_whole(name):
    """Log-probabilities and every gradient in float32; and the frozen layers' own is never asked for.

    Control: states of other tokens give other numbers.
    """
    model = adapted(ATTENDING[name]).train()
    trunk, stream = split(model), stream_of(rows())
    assert len(trunk.frozen) == LAYERS - TOP
    expected = gradients(model, stream)
    below = trunk.below(stream)
    assert not below.states_NH.requires_grad
    found = gradients(model, with_below(stream, below))
    require_equal(found, expected)
    assert torch.equal(found[0], expected[0])
    other = gradients(model, with_below(stream, Below(trunk, below.states_NH.roll(1, 0))))
    assert (other[0] - expected[0]).abs().max() > 1e-2
    require_equal(gradients(model, stream), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activations_may_be_recomputed(reentrant):
    model = adapted(ATTENDING["llama"])
    stream = stream_of(rows())
    expected = gradients(model, stream)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    require_equal(gradients(model, with_below(stream, split(model).below(stream))), expected)


def test_a_reward_model_starts_from_it_too(tmp_path):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_config(LlamaConfig(**shape(LAYERS), num_labels=1))
    found: Any = adapters.attach_for_scores(model, AdapterSettings(r=4, layers="top-1"), None)
    assert attend_in_streams(found) is None and take_streams(found) is None
    trunk, stream = split(found), stream_of(rows())
    assert len(trunk.frozen) == LAYERS - 1
    assert torch.equal(found(stream=with_below(stream, trunk.below(stream))), found(stream=stream))


def count_tokens(model: Any) -> list[int]:
    """Tokens that went through each layer's feed-forward part."""
    _, layers = decoder_layers(trunk_of(model))
    seen = [0] * len(layers)
    for index, layer in enumerate(layers):

        def note(_: Any, inputs: Any, __: Any, index: int = index) -> None:
            seen[index] += inputs[0].shape[-2]

        layer.mlp.register_forward_hook(note)
    return seen


def test_work_is_what_the_layers_say():
    """Three readers of one stream: the frozen layers see its tokens once, the others three times."""
    model = adapted(ATTENDING["llama"])
    trunk, stream = split(model), stream_of(rows())
    seen = count_tokens(model)
    below = trunk.below(stream)
    for _ in range(3):
        model(stream=with_below(stream, below))
    size = len(stream.ids_N)
    assert seen == [size] * (LAYERS - TOP) + [3 * size] * TOP


# Where there is none


def test_an_adapter_on_the_lowest_layer_leaves_none():
    assert split_trunk(adapted(ATTENDING["llama"], layers="all")) == (None, None)
    assert split_trunk(adapted(ATTENDING["llama"], layers=(0, 3))) == (None, None)


def test_another_adapter_further_down_counts():
    """PPO's roles stand on one base: the lowest adapter of all decides."""
    model = adapted(ATTENDING["llama"])
    lower = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")
    model.add_adapter("other", lower)
    assert len(split(model).frozen) == 1


def test_trained_embeddings_leave_none():
    model = adapted(ATTENDING["llama"])
    trunk_of(model).embed_tokens.weight.requires_grad_(True)
    assert split_trunk(model) == (None, None)


def test_dropout_below_is_refused():
    """Each pass would draw its own; where a stage has switched it off there is none."""
    config = GPT2Config(**gpt2_shape(LAYERS))
    model = adapted(config)
    assert "drops activations out below the adapter" in (split_trunk(model).why_not or "")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert split_trunk(model).trunk is not None


def test_padded_rows_have_none():
    model = adapters.attach_new(build(ATTENDING["llama"], 4.0), AdapterSettings(r=2, layers="top-1"), dropout=False)
    assert split_trunk(model) == (None, "rows are padded")


def test_a_model_that_cannot_be_split_is_found_out(monkeypatch):
    """An upper layer that looks at what a lower one left behind, and a trunk that runs none of its layers."""
    model = adapted(ATTENDING["llama"])
    layers = trunk_of(model).layers
    original, left = type(layers[0]).forward, {}

    def forward(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        if self is layers[0]:
            left["by the lowest"] = hidden_states
        out = original(self, hidden_states, *args, **kwargs)
        return out + left.pop("by the lowest") if self is layers[3] and left else out

    monkeypatch.setattr(type(layers[0]), "forward", forward)
    trunk_of(model).embed_tokens.register_forward_hook(lambda *_: left.clear())
    assert "gives other numbers in two parts" in (split_trunk(model).why_not or "")
    monkeypatch.undo()
    monkeypatch.setattr(type(trunk_of(model)), "forward", lambda self, input_ids, **_: self.embed_tokens(input_ids))
    assert "cannot be split" in (split_trunk(model).why_not or "")


# What is kept


def test_kept_or_not_the_bits_are_the_same():
    model = adapted(ATTENDING["llama"])
    trunk, stream = split(model), stream_of(rows())
    seen = count_tokens(model)
    keeping, forgetful = TrunkCache(trunk, WORLD), TrunkCache(trunk, 0)
    first, second, third = (cache.below(stream).states_NH for cache in (keeping, keeping, forgetful))
    assert torch.equal(first, second) and torch.equal(first, third)
    assert seen[0] == 2 * len(stream.ids_N), "once by the one that keeps, once by the other"
    keeping.forget()
    assert torch.equal(keeping.below(stream).states_NH, first) and seen[0] == 3 * len(stream.ids_N)


def test_a_budget_is_kept_to():
    model = adapted(ATTENDING["llama"])
    trunk, streams = split(model), [stream_of([row]) for row in rows()]
    size = len(streams[0].ids_N) + len(streams[1].ids_N)
    cache = TrunkCache(trunk, 0)
    assert cache.bytes_for(size) == size * 32 * 4 and not cache.has_room_for(size)
    cache = TrunkCache(trunk, size * 32 * 4)
    assert cache.has_room_for(size) and not cache.has_room_for(size + 1)
    for each in (*streams, *streams):
        cache.below(each)
    assert cache._held == size * 32 * 4 == sum(each.numel() * 4 for each in cache._kept.values())


def test_what_looks_alike_is_not_confused():
    """The same tokens in one sequence, in two, and with another answer."""
    trunk = split(adapted(ATTENDING["llama"]))
    ids = [*range(3, 15)]
    mask = [False] * 11 + [True]
    one, two = stream_of([([*ids, *ids], mask * 2)]), stream_of([(ids, mask), ([*ids[:6], *ids[:6]], mask)])
    cache = TrunkCache(trunk, WORLD)
    for each in (one, two, one):
        assert torch.equal(cache.below(each).states_NH, trunk.states(each))
    assert len(cache._kept) == 2


def test_rows_put_together_are_their_stream():
    """Each row asked for alone, then in streams of any rows; equal to the streams' own but for rounding."""
    model = adapted(ATTENDING["gemma3_windows"])
    trunk, given = split(model), rows(8)
    parts = [stream_of(given[start : start + 2]) for start in range(0, 8, 2)]
    cache = TrunkCache(trunk, WORLD)
    seen = count_tokens(model)
    for order in ((0, 1, 2, 3), (3, 1), (2,), (1, 0)):
        picked = [row for index in order for row in given[2 * index : 2 * index + 2]]
        stream = stream_of(picked)
        below = cache.below_parts(stream, [parts[index] for index in order])
        assert torch.allclose(below.states_NH, trunk.states(stream), rtol=1e-4, atol=1e-4)
        require_equal(gradients(model, with_below(stream, below)), gradients(model, stream))
    alone = sum(len(part.ids_N) for part in parts)
    computed = sum(len(stream_of([row for index in order for row in given[2 * index : 2 * index + 2]]).ids_N)
                   for order in ((0, 1, 2, 3), (3, 1), (2,), (1, 0)))  # fmt: skip
    assert seen[0] == alone + 2 * computed, "the cache asked for each row once"


def test_plain_calls_go_on_as_before():
    model = adapted(ATTENDING["llama"])
    ids = torch.tensor([rows()[0][0]])
    before = model(input_ids=ids).logits
    trunk, stream = split(model), stream_of(rows())
    model(stream=with_below(stream, trunk.below(stream)))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in trunk.above[0].__dict__ and "forward" not in trunk.frozen[0].__dict__
    with pytest.raises(KeyError), trunk.below(stream).standing_in():
        raise KeyError
    assert torch.equal(stream_hidden_states(trunk_of(model), stream), stream_hidden_states(trunk_of(model), stream))
    assert isinstance(causal(model), type(AutoModelForCausalLM.from_config(ATTENDING["llama"])))


def causal(model: Any) -> Any:
    return model.get_base_model()
