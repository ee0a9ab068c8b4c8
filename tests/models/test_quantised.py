"""A quantised base on the CPU computes what its dequantised weights would, gradients and saved adapters included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import RecipeError
from pipeline.models import adapters, load, quantised
from pipeline.models.forward import evaluating
from pipeline.models.load import load_base
from pipeline.recipe.schema import ModelSettings

pytest.importorskip("bitsandbytes")
IDS = torch.arange(3, 54).reshape(3, 17)


def base_of(folder: Path, kind: str) -> Any:
    return load_base(folder, ModelSettings(base="x", quantization=kind), frozen=True, precision="fp32")


def dequantised(folder: Path, quantised_base: Any) -> Any:
    """The base in float32 with the weights that the quantised one stands for."""
    from bitsandbytes.functional import dequantize_4bit

    plain: Any = base_of(folder, "none")
    seen = 0
    for (_, layer), (_, other) in zip(quantised_base.named_modules(), plain.named_modules(), strict=True):
        if type(layer).__name__ == "Linear4bit":
            other.weight.data, seen = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float(), seen + 1
        elif type(layer).__name__ == "Linear8bitLt":
            # Where they lie once the layer has been called, as loading did.
            other.weight.data, seen = layer.state.CB.float() * layer.state.SCB[:, None] / 127, seen + 1
    assert seen >= 14, "the base was not quantised"
    return plain


def passes(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits in evaluation mode, and then an adapter's gradients, as PPO takes both of one policy."""
    torch.manual_seed(5)
    policy: Any = adapters.attach_new(model, ModelSettings(base="x").adapter, dropout=False)  # type: ignore[arg-type]
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad(), evaluating(policy):
        logits = policy(IDS).logits
    policy.eval()(IDS, labels=IDS).loss.backward()
    return logits, {name: each.grad for name, each in policy.named_parameters() if each.grad is not None}


def apart(folder: Path, kind: str) -> tuple[float, float]:
    """Largest difference of logits, and largest relative one of a gradient."""
    model = base_of(folder, kind)
    plain = dequantised(folder, model)
    (logits, gradients), (expected, wanted) = passes(model), passes(plain)
    assert gradients.keys() == wanted.keys() and gradients
    worst = max(float((gradients[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)
    return float((logits - expected).abs().max()), worst


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_all_passes_are_those_of_the_dequantised_weights(tiny_folder, kind):
    logits, gradients = apart(tiny_folder, kind)
    assert logits < 1e-5 and gradients < 1e-4


def test_without_care_evaluation_mode_computes_something_else(tiny_folder, monkeypatch):
    """The library's own way; how it computes nf4 depends on the machine, int8 it rounds on every one."""
    monkeypatch.setattr(load, "compute_one_way", lambda model: None)
    logits, _ = apart(tiny_folder, "int8")
    assert logits > 1e-4


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_is_saved_without_its_base_and_found_again(tiny_folder, tmp_path, kind):
    settings = ModelSettings(base="x", quantization=kind)
    policy: Any = adapters.attach_new(base_of(tiny_folder, kind), settings.adapter, dropout=False)  # type: ignore[arg-type]
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapters.save(policy, tmp_path, "x")
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved and all("lora_" in name and tensor.dtype == torch.float32 for name, tensor in saved.items())
    again: Any = adapters.attach_frozen(base_of(tiny_folder, kind), tmp_path, adapters.TRAINED)
    with torch.no_grad(), evaluating(policy), evaluating(again):
        assert torch.allclose(policy(IDS).logits, again(IDS).logits, atol=1e-5)
        assert policy.generate(input_ids=IDS[:, :5], max_new_tokens=3, do_sample=False).shape[0] == 3


def test_without_the_library_it_is_a_sentence(tiny_folder, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"model\.quantization: nf4 needs bitsandbytes, which is not installed here"):
        base_of(tiny_folder, "nf4")
