"""Attention within a stream: a segment sees itself up to each token, and what it continues whole. Layer 2.

Registered with transformers under a name of its own; a call without segments is its scaled-dot-product attention, mask
and all, so a model can keep this implementation for everything it does. On a CPU, and in float32, each segment is one
call of torch's kernel. On a GPU in half precision a whole stream is one call of its variable-length flash kernel, for
which the keys of common beginnings are repeated before each segment that continues them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.streams import Segment

STREAMS = "trivet_streams"
"""Name of this implementation in transformers' registries."""


class Attending(Protocol):
    """Who looks at whom in one call of a model, asked by every attention layer of it."""

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None,
        scale: float | None,
        dropout: float,
    ) -> Tensor:
        """What a layer's queries find (B, T, heads, D).

        Args:
            module: the layer.
            query: (B, heads, T, D).
            key: (B, key heads, T, D), and so is value.
            value: as key.
            window: how many tokens back, itself included, a token sees; None for all.
            scale: of the products; None for 1 / sqrt(D).
            dropout: of the attention weights.
        """
        ...


class Layout:
    """The segments of one stream with what every layer needs of them, made once.

    Args:
        segments: in order; together they are the whole stream.
        positions_N: position of each token in its own sequence.
        in_float32: on a CPU, attend in float32 whatever the model computes in. It is closer, and faster: torch's kernel
            for bfloat16 takes twice as long for the way back through segments of a hundred tokens.
    """

    def __init__(self, segments: Sequence[Segment], positions_N: Tensor, *, in_float32: bool = False):
        self.segments = tuple(segments)
        self.in_float32 = in_float32
        self._positions_N = positions_N
        self._longest = [sum(stop - start for start, stop in (*each.context, each[:2])) for each in self.segments]
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._flash: tuple[Tensor, Tensor, Tensor, int, int] | None = None

    def keys(self, segment: Segment) -> tuple[slice, ...]:
        """What a segment's tokens may look at, as ranges of the stream in the order of their positions."""
        return tuple(slice(start, stop) for start, stop in (*segment.context, (segment.start, segment.stop)))

    def mask(self, index: int, window: int | None) -> Tensor | None:
        """True where a token (rows) sees another (columns, as in `keys`); None where that is plain causality.

        Args:
            index: of the segment.
            window: how many tokens back, itself included, a token sees; None for all.
        """
        segment = self.segments[index]
        if window is not None and self._longest[index] <= window:
            window = None
        if window is None and not segment.context:
            return None
        if (index, window) not in self._masks:
            at_Q = self._positions_N[segment.start : segment.stop]
            at_K = torch.cat([self._positions_N[each] for each in self.keys(segment)])
            distance_QK = at_Q[:, None] - at_K[None, :]
            seen = distance_QK >= 0
            self._masks[index, window] = seen if window is None else seen & (distance_QK < window)
        return self._masks[index, window]

    def flash(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Key places (K,), cumulative lengths of queries and of keys (S + 1,), and the longest of both."""
        if self._flash is None:
            device = self._positions_N.device
            queries = [segment.stop - segment.start for segment in self.segments]
            places = [
                torch.cat([torch.arange(each.start, each.stop) for each in self.keys(segment)])
                for segment in self.segments
            ]
            keys = [len(each) for each in places]
            cumulative_queries, cumulative_keys = (
                torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32) for lengths in (queries, keys)
            )
            at = torch.cat(places).to(device)
            self._flash = (at, cumulative_queries, cumulative_keys, max(queries), max(keys))
        return self._flash

    def attention(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window: int | None,
        scale: float | None,
        dropout: float,
    ) -> Tensor:
        """As `Attending` says, over the whole stream."""
        if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
            return _flash(query, key, value, scale, window, self)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if not self.in_float32 or query.dtype != torch.bfloat16:
            return self._by_segments(query, key, value, window, scale=scale, dropout_p=dropout)
        # Autocast would put them back into bfloat16.
        with torch.autocast(query.device.type, enabled=False):
            found = self._by_segments(query.float(), key.float(), value.float(), window, scale=scale, dropout_p=dropout)
        return found.to(query.dtype)

    def _by_segments(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any) -> Tensor:
        count = len(self.segments)
        parts = [_attend(self, index, query, key, value, window, **options) for index in range(count)]
        return torch.cat(parts, dim=2).transpose(1, 2)


def stream_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Attending | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it.

    Args:
        module: the attention layer.
        query: (1, heads, N, D) of a stream; anything transformers allows without a layout.
        key: (1, key heads, N, D), and so is value.
        value: as key.
        attention_mask: for calls without a layout.
        scaling: of the products; None for 1 / sqrt(D).
        dropout: of the attention weights.
        layout: of the stream, or of what continues one, handed on from the model's call.
        kwargs: `sliding_window` is heeded; what a kernel cannot do is refused.

    Returns:
        (1, N, heads, D) and None.

    Raises:
        NotImplementedError: the layer wants something that streams do not have, such as a soft cap.
    """
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options = {"scaling": scaling, "dropout": dropout, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"streams have no attention with {name}")
    window = kwargs.get("sliding_window")
    return layout.attention(module, query, key, value, window=window, scale=scaling, dropout=dropout), None


def _attend(
    layout: Layout, index: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, **options: Any
) -> Tensor:
    segment = layout.segments[index]
    mask = layout.mask(index, window)
    ranges = layout.keys(segment)
    keys, values = (torch.cat([each[:, :, at] for at in ranges], dim=2) for each in (key, value))
    queries = query[:, :, segment.start : segment.stop]
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None, **options)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, layout: Layout
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    places_K, queries, keys, longest_query, longest_key = layout.flash()
    out: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[places_K],
        value[0].transpose(0, 1)[places_K],
        queries,
        keys,
        longest_query,
        longest_key,
        scale=scaling,
        # Aligned at the end of queries and keys: the last token of an answer sees all of its prompt.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    stream: Tensor = out[None]
    return stream


def register() -> None:
    """Make the implementation known to transformers; doing so twice changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(STREAMS, stream_attention)
    AttentionMaskInterface.register(STREAMS, sdpa_mask)
