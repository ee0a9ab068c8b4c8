"""The two halves of a causal language model: the trunk, which gives hidden states, and the vocabulary head.

Everything that scores given tokens goes through here, so that several roles can share a trunk and no more logits
exist at a time than needed. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import TrivetError

Head = Callable[[Tensor], Tensor]


class LinearHead(NamedTuple):
    """A vocabulary head that is a matrix (V, H) and a factor: logits = scale * weight h."""

    weight: Tensor
    scale: float


def causal_model(model: Any) -> Any:
    """The language model itself, out of PEFT's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """The transformer below the head of a causal or classifying model; adapters in it stay in it."""
    inner = causal_model(model)
    return getattr(inner, inner.base_model_prefix)


def hidden_states(trunk: Any, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Last hidden states (B, T, H), after the trunk's final norm; tensors are moved to the trunk's device."""
    device = next(trunk.parameters()).device
    out = trunk(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.long().to(device),
        position_ids=positions_BT.to(device),
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode within the block; afterwards each module has its own mode back.

    Modes may differ inside a model, where some layers recompute their activations: `model.train(before)` would give
    all of them the outermost one's, and switch that off without a word.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def vocabulary_head(model: Any) -> Head:
    """From hidden states to logits as the model itself computes them, its scaling and soft cap included.

    Raises:
        TrivetError: the model does something else to its logits, so that taking it apart would change them.
    """
    inner = causal_model(model)
    linear, config = inner.get_output_embeddings(), inner.config.get_text_config()
    factor, cap = _factor(config), getattr(config, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = linear(hidden)
        if factor != 1.0:
            logits = logits * factor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    _require_same_logits(inner, head)
    return head


def linear_head(model: Any) -> LinearHead | None:
    """The head's matrix and factor where it is nothing more: no soft cap, bias, adapter or quantisation."""
    inner = causal_model(model)
    linear, config = inner.get_output_embeddings(), inner.config.get_text_config()
    plain = type(linear) is nn.Linear and linear.bias is None and linear.weight.is_floating_point()
    if not plain or getattr(config, "final_logit_softcapping", None) is not None:
        return None
    return LinearHead(linear.weight, _factor(config))


def _factor(config: Any) -> float:
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)


@torch.no_grad()
def _require_same_logits(inner: Any, head: Head) -> None:
    device = next(inner.parameters()).device
    ids = torch.arange(1, 9, device=device)[None] % inner.config.get_text_config().vocab_size
    with evaluating(inner):
        whole = inner(input_ids=ids, use_cache=False).logits.float()
        halves = head(trunk_of(inner)(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(whole, halves, rtol=1e-3, atol=1e-3):
        raise TrivetError(
            f"model.base: {type(inner).__name__} changes its logits after its output layer in a way that PPO does not "
            "know; use stages of kind sft and dpo with it"
        )
