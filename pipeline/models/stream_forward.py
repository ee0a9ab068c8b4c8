"""A model that takes a stream: log-probabilities of its response tokens, or the score of each of its sequences.

Whether a model can attend in streams is not read off its name but tried, on random tokens, against what it gives for
padded rows: models that keep a state instead of attending, or attend in a way of their own, cannot. Layer 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.batches import pad_right, positions
from pipeline.errors import TrivetError
from pipeline.models.forward import (
    causal_model,
    evaluating,
    padded_hidden_states,
    stream_hidden_states,
    trunk_of,
    vocabulary_head,
)
from pipeline.models.heads import values_at
from pipeline.models.seeing import reads_images
from pipeline.models.stream_attention import STREAMS, register
from pipeline.streams import Segment, Stream, at_places, pack

_AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-4}
_ROUGH_AGREEMENT = 0.25
"""A stream may differ from padded rows by this share of what attending to another sequence's tokens changes."""
_ATTENDING = {"full_attention", "sliding_attention"}


def attend_in_streams(model: Any) -> str | None:
    """Let a transformers model attend in streams, for good; why not, where that is impossible.

    Everything else that it does stays scaled-dot-product attention, to the last bit.

    Args:
        model: without PEFT's wrapper, or in it.
    """
    inner = causal_model(model)
    if reads_images(inner):
        return f"{type(inner).__name__} reads images beside text, and streams are for text models"
    asked = inner.config._attn_implementation
    if asked == STREAMS:
        return None
    if asked != "sdpa":
        return f"its attention is {asked}"
    if _keeps_a_state(inner):
        return f"{type(inner).__name__} has layers that carry a state from token to token"
    register()
    try:
        inner.set_attn_implementation(STREAMS)
        refusal = _disagreement(inner)
    except (TypeError, ValueError, NotImplementedError, RuntimeError, AttributeError, KeyError) as error:
        refusal = f"{type(inner).__name__} does not take them ({type(error).__name__}: {error})"
    if refusal is not None:
        inner.set_attn_implementation(asked)
    return refusal


def take_streams(model: Any) -> str | None:
    """Teach a model that attends in streams to be called as `model(stream=...)`; why not, where that is impossible.

    A causal language model then gives log-probabilities of the stream's response tokens (M,), one with a scalar head
    its sequences' scores (S,), both float32. All its other calls stay what they were.
    """
    inner = causal_model(model)
    if inner.config._attn_implementation != STREAMS:
        return f"its attention is {inner.config._attn_implementation}"
    plain = inner.forward
    try:
        read = _scores if getattr(inner, "score", None) is not None else _token_logps(inner)
    except TrivetError as error:
        return str(error)

    def forward(self: Any, *args: Any, stream: Stream | None = None, **kwargs: Any) -> Any:
        if stream is None:
            return plain(*args, **kwargs)
        return read(self, stream_hidden_states(trunk_of(self), stream, stream.below), stream)

    inner.forward = MethodType(forward, inner)
    return None


def _scores(inner: Any, hidden_NH: Tensor, stream: Stream) -> Tensor:
    return values_at(at_places(hidden_NH, stream.ends_S), inner.score)


def _token_logps(inner: Any) -> Callable[[Any, Tensor, Stream], Tensor]:
    head = vocabulary_head(inner)

    def read(inner: Any, hidden_NH: Tensor, stream: Stream) -> Tensor:
        return head.token_logps(at_places(hidden_NH, stream.predictors_M), stream.targets_M)

    return read


def _keeps_a_state(inner: Any) -> bool:
    """State-space and linear attention, which convolve over time; a probe in half precision may miss what they do."""
    types = getattr(inner.config.get_text_config(), "layer_types", None) or ()
    convolves = any(isinstance(module, nn.Conv1d) for module in trunk_of(inner).modules())
    return convolves or not set(types) <= _ATTENDING


@torch.no_grad()
def _disagreement(inner: Any) -> str | None:
    """Whether sequences that share a beginning see what they see alone, compared with what a wrong context would do."""
    trunk = trunk_of(inner)
    computed_in = next(trunk.parameters()).dtype
    sequences = _random_sequences(inner.config.get_text_config().vocab_size)
    packed = pack(sequences)
    last = packed.segments[-1]
    # Control: the last sequence looks at one that it does not continue as well.
    wrong = replace(packed, segments=(*packed.segments[:-1], Segment(last.start, last.stop, ((0, last.start),))))
    ids_BT, mask_BT = pad_right(sequences, 0)
    with evaluating(inner):
        expected_BTH = padded_hidden_states(trunk, ids_BT, mask_BT, positions(mask_BT))
        expected = torch.stack([expected_BTH[row, len(ids) - 1] for row, ids in enumerate(sequences)]).float()
        ends = torch.tensor([int(places[-1]) for places in packed.places], device=expected.device)
        found, control = (stream_hidden_states(trunk, each).float()[ends] for each in (packed, wrong))
    off = float((found - expected).abs().mean(-1).max())
    allowed = float((control - expected)[-1].abs().mean())
    if off <= _AGREEMENT.get(computed_in, _ROUGH_AGREEMENT) * allowed:
        return None
    return f"{type(inner).__name__} gives other numbers for them (off by {off:.2g}, a wrong context by {allowed:.2g})"


def _random_sequences(vocabulary: int) -> list[list[int]]:
    """Two that share a beginning, one that shares less of it, one that shares nothing, and an answer to that."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=draw).tolist()

    first, other = ids(14), ids(11)
    return [[*first, *ids(6)], [*first, *ids(4)], [*first[:9], *ids(5)], [*other, *ids(3)], [*other, *ids(7)]]
