"""LoRA layers that compute directly: PEFT's own numbers to the bit, with fewer casts and copies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models import adapters, lora_pass
from pipeline.models.lora_pass import with_direct_passes
from pipeline.recipe.schema import AdapterSettings
from pipeline.runtime import autocast
from tests.models.small_models import attending, build

IDS = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))


def adapted(name: str = "llama", dtype: torch.dtype = torch.bfloat16, alpha: int = 12, **options: Any) -> Any:
    """With two adapters, both of which do something; the first is switched on."""
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    model: Any = get_peft_model(build(attending()[name], 3.0).to(dtype), config)
    model.add_adapter("other", config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.3, generator=draw)
    return model


def loss_and_gradients(model: Any, precision: str = "bf16") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with autocast(precision):
        logits = model(input_ids=IDS).logits
    logits.float().log_softmax(-1)[..., 5].sum().backward()
    return logits.detach(), {key: each.grad.clone() for key, each in model.named_parameters() if each.grad is not None}


class Casts(TorchDispatchMode):
    """Counts tensors that are put into another type."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Casts]:
    with Casts() as casts:
        yield casts


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", "bf16"), ("float32", "bf16"), ("float32", "fp32")])
@pytest.mark.parametrize(
    ("name", "alpha"), [("llama", 12), ("llama", 8), ("qwen3", 8), ("gemma3_windows", 3), ("phi", 2)]
)
def test_logits_and_gradients_are_the_same_bits(name, alpha, dtype, precision):
    """Of a base in either type, under autocast and without; with factors that are a power of two and others."""
    plain = adapted(name, getattr(torch, dtype), alpha)
    direct = with_direct_passes(copy.deepcopy(plain))
    expected, gradients = loss_and_gradients(plain, precision)
    found, others = loss_and_gradients(direct, precision)
    assert torch.equal(found, expected)
    assert gradients.keys() == others.keys() and len(gradients) > 20
    for key, gradient in gradients.items():
        assert torch.equal(others[key], gradient) and gradient.abs().max() > 0, key


def test_adapters_are_switched_as_before():
    """Another adapter, both, none, one that was merged, and one that was added later."""
    plain = adapted()
    direct = with_direct_passes(copy.deepcopy(plain))
    seen = []
    for switch in (
        lambda model: model.set_adapter("other"),
        lambda model: model.base_model.set_adapter(["default", "other"]),
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: (model.base_model.enable_adapter_layers(), model.base_model.set_adapter("default")),
        lambda model: model.merge_adapter(["default"]),
        lambda model: model.unmerge_adapter(),
    ):
        for model in (plain, direct):
            switch(model)
        seen.append(_logits(plain))
        assert torch.equal(_logits(direct), seen[-1])
    assert all(not torch.equal(one, seen[0]) for one in seen[1:4])


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad(), autocast("bf16"):
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_is_not_plain_goes_the_librarys_way(options):
    plain = adapted(**options).train()
    direct = with_direct_passes(copy.deepcopy(plain))
    for model in (plain, direct):
        torch.manual_seed(0)
        model.logits_seen = loss_and_gradients(model)[0]
    assert torch.equal(plain.logits_seen, direct.logits_seen)


def test_outside_autocast_inputs_are_cast(monkeypatch):
    """A base in bfloat16 under factors in float32, as continuous batching computes in a thread of its own."""
    plain = adapted()
    direct = with_direct_passes(copy.deepcopy(plain))
    with torch.no_grad():
        assert torch.equal(direct(input_ids=IDS).logits, plain(input_ids=IDS).logits)
        monkeypatch.setattr(lora_pass, "_is_plain", lambda *_: True)
        with pytest.raises(RuntimeError, match="dtype"):
            direct(input_ids=IDS)


def test_a_bit_would_show(monkeypatch):
    """Control: the factor applied to the input instead of the product, which rounds elsewhere."""
    plain = adapted()
    direct = with_direct_passes(copy.deepcopy(plain))

    def scaled_first(self: Any, x: torch.Tensor) -> torch.Tensor:
        first, second = self.lora_A["default"], self.lora_B["default"]
        return self.base_layer(x) + second(first(x * self.scaling["default"]))

    for layer in direct.modules():
        if "forward" in vars(layer):
            layer.forward = scaled_first.__get__(layer)
    assert not torch.equal(_logits(direct), _logits(plain))


def test_fewer_casts_and_fewer_copies():
    """No input is cast there and back, forward or backward, and what a backward pass keeps shrinks by those copies."""
    plain = adapted()
    direct = with_direct_passes(copy.deepcopy(plain))
    casts, kept = [], []
    for model in (plain, direct):
        held: dict[int, int] = {}
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda t, held=held: held.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
            ),
            counted() as count,
        ):
            loss_and_gradients(model)
        casts.append(count.count)
        kept.append(sum(held.values()))
    layers = sum("forward" in vars(layer) for layer in direct.modules())
    assert layers == 14
    # Each input to float32 and back, and its gradient the same way, which the first layer's attention has none of.
    assert casts[0] - casts[1] == 4 * layers - 2 * 3
    assert kept[1] < 0.9 * kept[0]


def test_every_way_to_an_adapter_leads_here(tmp_path):
    settings = AdapterSettings(r=4)
    fresh = adapters.attach_new(build(attending()["llama"], 3.0), settings, dropout=False)
    fresh.save_pretrained(tmp_path)
    trained = adapters.attach_trained(build(attending()["llama"], 3.0), tmp_path)
    frozen = adapters.attach_frozen(build(attending()["llama"], 3.0), tmp_path, "x")
    for model in (fresh, trained, frozen, adapters.attach_frozen(frozen, tmp_path, "y")):
        assert sum("forward" in vars(layer) for layer in model.modules()) == 14
