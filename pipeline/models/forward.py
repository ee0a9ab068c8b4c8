"""The two halves of a causal language model: the trunk, which gives hidden states, and the vocabulary head.

Everything that scores given tokens goes through here, so that several roles can share a trunk, no more logits exist at
a time than needed, and no layer sees padding or the same beginning twice where the trunk attends in streams. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.algorithms.linear_logps import linear_token_scores
from pipeline.algorithms.logps import TokenScores, chunked_token_logps
from pipeline.errors import TrivetError
from pipeline.models.shards import is_spread, whole
from pipeline.models.stream_attention import STREAMS, Attending, Layout
from pipeline.streams import Packed, StandIn, Stream, at_places, pack

CHUNK = 512
"""Tokens whose logits exist at a time."""


def causal_model(model: Any) -> Any:
    """The language model itself, out of PEFT's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """The transformer below the head of a causal or classifying model; adapters in it stay in it."""
    inner = causal_model(model)
    return getattr(inner, inner.base_model_prefix)


def attends_in_streams(model: Any) -> bool:
    """Whether a model, or its trunk, has been found to attend in streams."""
    return bool(causal_model(model).config._attn_implementation == STREAMS)


def hidden_states(
    trunk: Any,
    ids_BT: Tensor,
    mask_BT: Tensor,
    positions_BT: Tensor,
    below: Callable[[Packed], StandIn] | None = None,
    *,
    in_float32: bool = False,
) -> Tensor:
    """Last hidden states (B, T, H), after the trunk's final norm, on its device; anything at padding.

    Args:
        trunk: of a causal or classifying model.
        ids_BT: best on the CPU, where beginnings are compared.
        mask_BT: true on real tokens.
        positions_BT: of `batches.positions`.
        below: knows what the lowest layers of a trunk that attends in streams give.
        in_float32: as for a stream.
    """
    if not attends_in_streams(trunk):
        return padded_hidden_states(trunk, ids_BT, mask_BT, positions_BT)
    ids, mask = ids_BT.cpu(), mask_BT.bool().cpu()
    packed = pack([row[real].tolist() for row, real in zip(ids, mask, strict=True)])
    where_BT = torch.zeros_like(ids)
    for row, places in enumerate(packed.places):
        where_BT[row, mask[row]] = torch.from_numpy(places)
    known = None if below is None else below(packed)
    hidden_NH = stream_hidden_states(trunk, packed, known, in_float32=in_float32)
    return at_places(hidden_NH, where_BT.to(hidden_NH.device))


def padded_hidden_states(trunk: Any, ids_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """The same as the model's own padded forward pass gives it."""
    device = next(trunk.parameters()).device
    out = trunk(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.long().to(device),
        position_ids=positions_BT.to(device),
        use_cache=False,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def stream_hidden_states(
    trunk: Any, stream: Stream | Packed, below: StandIn | None = None, *, in_float32: bool = False
) -> Tensor:
    """Last hidden states (N, H) of a stream, on the trunk's device; the trunk attends in streams.

    Args:
        trunk: of a causal or classifying model.
        stream: its tokens.
        below: what the lowest layers give for it, where that is known.
        in_float32: as for `Layout`.
    """
    positions_N = stream.positions_N.to(next(trunk.parameters()).device)
    with below.standing_in() if below is not None else nullcontext():
        layout = Layout(stream.segments, positions_N, in_float32=in_float32)
        return attended_hidden_states(trunk, stream.ids_N[None], positions_N[None], layout)[0]


def attended_hidden_states(trunk: Any, ids_BT: Tensor, positions_BT: Tensor, attending: Attending) -> Tensor:
    """Last hidden states (B, T, H) where something else than a mask says who looks at whom; the trunk takes streams."""
    device = next(trunk.parameters()).device
    out = trunk(
        input_ids=ids_BT.to(device),
        # Four dimensions keep transformers from making a mask.
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
        position_ids=positions_BT.to(device),
        use_cache=False,
        layout=attending,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def _dropouts(model: Any) -> Iterator[tuple[Any, str]]:
    """Modules that drop something out, and under which name they keep its share."""
    for module in model.modules():
        name = "p" if isinstance(module, torch.nn.Dropout) else "attention_dropout"
        share = getattr(module, name, 0.0)
        if isinstance(share, float) and share > 0.0:
            yield module, name


def without_dropout(model: Any) -> Any:
    """Turn all dropout off for good: the log-probabilities of two passes must be those of one policy."""
    for module, name in _dropouts(model):
        setattr(module, name, 0.0)
    return model


def has_dropout(model: Any) -> bool:
    """Whether chance has a part in a training pass of the model."""
    return any(True for _ in _dropouts(model))


@contextmanager
def undropped(model: Any) -> Iterator[None]:
    """Within the block chance has no part in a training pass of the model."""
    shares = [(module, name, getattr(module, name)) for module, name in _dropouts(model)]
    without_dropout(model)
    try:
        yield
    finally:
        for module, name, share in shares:
            setattr(module, name, share)


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


@dataclass(frozen=True, slots=True)
class VocabularyHead:
    """From hidden states to logits, as the model computes them: a linear layer, a factor, a soft cap."""

    linear: Any
    factor: float
    cap: float | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits (..., V)."""
        return self._finished(self.linear(hidden))

    def _of_copies(self) -> Callable[[Tensor], Tensor]:
        """The same from copies of weights that are whole now and in pieces when the backward pass comes.

        Without the layer, whose calls all ranks must make equally often.
        """
        weight = self.linear.weight.detach().clone()
        bias = None if self.linear.bias is None else self.linear.bias.detach().clone()
        return lambda hidden: self._finished(nn.functional.linear(hidden, weight, bias))

    def _finished(self, logits: Tensor) -> Tensor:
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def token_logps(self, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
        """log pi of each target (M,), in at least float32."""
        return self.scores(hidden_MH[None], targets_M[None]).logps_BR[0]

    def scores(
        self,
        hidden_BRH: Tensor,
        targets_BR: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        mask_BR: Tensor | None = None,
    ) -> TokenScores:
        """Log-probabilities and, where asked, entropies (B, R), 0 where the mask is false.

        Args:
            hidden_BRH: `hidden[b, r]` predicts `targets[b, r]`.
            targets_BR: token ids; anything where the mask is false.
            temperature: divides the logits.
            entropy: of each distribution.
            mask_BR: true where wanted, None for everywhere.
        """
        weight = self._frozen_matrix()
        wants_gradient = entropy and torch.is_grad_enabled() and hidden_BRH.requires_grad
        if weight is None or wants_gradient:
            parameters = [*self.linear.parameters(recurse=False)]
            if not any(map(is_spread, parameters)):
                return chunked_token_logps(hidden_BRH, self, targets_BR, temperature, CHUNK, entropy, mask_BR)
            if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
                # Trained, so that its gradient must go through the layer: once, however many tokens this rank has.
                return chunked_token_logps(
                    hidden_BRH, self, targets_BR, temperature, targets_BR.numel(), entropy, mask_BR
                )
            with whole(*parameters):
                copies = self._of_copies()
            return chunked_token_logps(hidden_BRH, copies, targets_BR, temperature, CHUNK, entropy, mask_BR)
        with whole(weight):
            return linear_token_scores(
                hidden_BRH, weight, targets_BR, temperature, CHUNK, factor=self.factor, entropy=entropy, mask_BR=mask_BR
            )

    def _frozen_matrix(self) -> Tensor | None:
        """The head as a matrix (V, H), where it is no more than that: no cap, bias, adapter, quantisation, training."""
        layer = self.linear
        plain = type(layer) is nn.Linear and layer.bias is None and layer.weight.is_floating_point()
        if not plain or self.cap is not None or (layer.weight.requires_grad and torch.is_grad_enabled()):
            return None
        weight: Tensor = layer.weight
        return weight


def vocabulary_head(model: Any, *, known: bool = False) -> VocabularyHead:
    """The head of a causal model, its scaling and soft cap included.

    Args:
        model: to take it from.
        known: that trunk and head make up this model has been seen already.

    Raises:
        TrivetError: the model does something else to its logits, so that taking it apart would change them.
    """
    inner = causal_model(model)
    config = inner.config.get_text_config()
    factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    head = VocabularyHead(inner.get_output_embeddings(), factor, getattr(config, "final_logit_softcapping", None))
    if not known:
        _require_same_logits(inner, head)
    return head


@torch.no_grad()
def _require_same_logits(inner: Any, head: VocabularyHead) -> None:
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
