"""A language model in two halves gives the logits of the whole, bit for bit where nothing rounds differently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
)

from pipeline.batches import pad_left, positions
from pipeline.errors import TrivetError
from pipeline.models import forward
from pipeline.models.forward import causal_model, evaluating, hidden_states, trunk_of, vocabulary_head
from tests.models.small_models import build, gpt2_shape, shape

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**shape()),
    "llama_tied": LlamaConfig(**shape(), tie_word_embeddings=True),
    "gpt2": GPT2Config(**gpt2_shape()),
    "gemma2": Gemma2Config(**shape(), head_dim=8, final_logit_softcapping=2.0),
    "cohere": CohereConfig(**shape(), logit_scale=0.25),
    "granite": GraniteConfig(**shape(), logits_scaling=8.0),
}
CHANGED = ("gemma2", "cohere", "granite")
"""Models that do something to their logits after the output layer."""


FACTOR = 8.0
"""Of the weights: a soft cap or scale then matters."""
IDS, MASK = pad_left([[1, 7, 8, 9], [1, 20, 21, 22, 23, 24, 25]], 0)


@torch.no_grad()
def halves(model: Any) -> torch.Tensor:
    return vocabulary_head(model)(hidden_states(trunk_of(model), IDS, MASK, positions(MASK)))


@torch.no_grad()
def whole(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK.long(), position_ids=positions(MASK)).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_halves_are_the_whole(name):
    model = build(CONFIGS[name], FACTOR)
    assert torch.allclose(halves(model)[MASK], whole(model)[MASK], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CHANGED)
def test_the_output_layer_alone_would_be_wrong(name):
    """Control: these models are among them because a head that is only their output layer is off by a lot."""
    model = build(CONFIGS[name], FACTOR)
    with torch.no_grad():
        plain = model.get_output_embeddings()(hidden_states(trunk_of(model), IDS, MASK, positions(MASK)))
    assert (plain - whole(model))[MASK].abs().max() > 1.0


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_an_adapter_in_the_trunk_counts(name):
    model = build(CONFIGS[name], FACTOR)
    bare = whole(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert causal_model(wrapped) is model
    assert torch.allclose(halves(wrapped.eval())[MASK], whole(wrapped)[MASK], rtol=1e-6, atol=1e-6)
    assert (whole(wrapped) - bare)[MASK].abs().max() > 0.1


def test_an_adapter_on_the_output_layer_counts():
    model = build(CONFIGS["llama"], FACTOR)
    bare = whole(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)).eval()
    assert torch.allclose(halves(wrapped)[MASK], whole(wrapped)[MASK], rtol=1e-6, atol=1e-6)
    assert (whole(wrapped) - bare)[MASK].abs().max() > 0.1


def test_positions_reach_the_model():
    """Control: with absolute positions a padded row without them is another one."""
    model = build(CONFIGS["gpt2"], FACTOR)
    alone = trunk_of(model)(input_ids=IDS[:1, 3:]).last_hidden_state
    given = hidden_states(trunk_of(model), IDS, MASK, positions(MASK))[:1, 3:]
    counted = hidden_states(trunk_of(model), IDS, MASK, torch.arange(7).expand(2, 7))[:1, 3:]
    assert torch.allclose(given, alone, atol=1e-5)
    assert (counted - alone).abs().max() > 0.1


def test_a_classifier_has_the_same_trunk():
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS["llama"])
    assert trunk_of(model) is model.model


def test_every_module_keeps_its_own_mode():
    """Where some layers recompute their activations, and so are in training mode, they must stay so."""
    model = build(CONFIGS["llama"], FACTOR)
    model.model.layers[1].train()
    before = [module.training for module in model.modules()]
    assert 0 < sum(before) < len(before)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    vocabulary_head(model)
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == before


def test_a_model_that_does_something_else_is_refused():
    """Falcon-H1 multiplies its logits by a setting of its own; so may anything in `forward`."""
    config = FalconH1Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=8,
        lm_head_multiplier=0.5, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(TrivetError, match=r"model\.base: FalconH1ForCausalLM changes its logits .* kind sft and dpo"):
        vocabulary_head(build(config, FACTOR))
    model = build(CONFIGS["llama"], FACTOR)
    plain = model.forward

    def masking(**inputs: Any) -> Any:
        out = plain(**inputs)
        out.logits[..., 5] = -torch.inf
        return out

    model.forward = masking
    with pytest.raises(TrivetError, match="LlamaForCausalLM changes its logits"):
        vocabulary_head(model)


# Weights that ranks hold shares of


@pytest.fixture
def in_pieces(monkeypatch):
    """A head as ZeRO-3 leaves it: whole within `whole`, with nothing in it afterwards."""

    @contextmanager
    def gathered(*parameters: Any) -> Iterator[None]:
        kept = [(parameter, parameter.data) for parameter in parameters]
        for parameter in parameters:
            parameter.data = parameter.whole
        yield
        for parameter, pieces in kept:
            parameter.data = pieces

    def spread(head: Any) -> None:
        monkeypatch.setattr(forward, "is_spread", lambda parameter: hasattr(parameter, "whole"))
        monkeypatch.setattr(forward, "whole", gathered)
        for parameter in head.linear.parameters():
            parameter.whole, parameter.data = parameter.data, torch.empty(0)

    return spread


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("name", ["llama", "phi", "gemma2", "cohere"])
def test_a_frozen_head_in_pieces_hands_gradients_on(name, entropy, in_pieces):
    """With a bias, a cap or a scale, or for entropies: the backward pass comes when the pieces have gone again."""
    config = PhiConfig(**{**shape(), "num_key_value_heads": 4}) if name == "phi" else CONFIGS[name]
    head = vocabulary_head(build(config, FACTOR))
    head.linear.requires_grad_(False)
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(10).reshape(2, 5)

    def gradient() -> torch.Tensor:
        states = hidden.clone().requires_grad_()
        found = head.scores(states, targets, temperature=0.7, entropy=entropy)
        (found.logps_BR.sum() + (found.entropies_BR.sum() if entropy else 0.0)).backward()
        assert states.grad is not None
        return states.grad

    expected = gradient()
    in_pieces(head)
    assert torch.allclose(gradient(), expected, rtol=1e-5, atol=1e-6) and expected.abs().max() > 0.1


def test_a_trained_head_in_pieces_is_called_once_however_many_tokens_there_are(in_pieces, monkeypatch):
    """Whole in its own forward pass alone, which all ranks make equally often; control: other heads go in chunks."""
    monkeypatch.setattr(forward, "CHUNK", 2)
    head = vocabulary_head(build(CONFIGS["llama"], FACTOR))
    calls: list[int] = []
    head.linear.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    hidden, targets = torch.randn(2, 5, 32), torch.arange(10).reshape(2, 5)
    head.scores(hidden, targets)
    assert calls == [2] * 5
    calls.clear()
    in_pieces(head)
    head.linear.weight.data = head.linear.weight.whole
    head.scores(hidden, targets)
    assert calls == [10]
