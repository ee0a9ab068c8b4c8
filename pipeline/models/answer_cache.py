"""Keys and values of answers under way, for a trunk that attends in streams.

Prompts go forward as one stream, nothing padded and a common beginning once, such as the system message of a template
or a prompt that is answered several times. From there on every answer has a row of its own, its tokens in the order of
their positions from the first slot on, so that rows of any lengths stand together and one that has ended is dropped.
Layer 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pipeline.models.forward import attended_hidden_states
from pipeline.models.stream_attention import Layout
from pipeline.streams import Packed


class AnswerCache:
    """What the attention layers need of B prompts and the answers to them so far.

    Args:
        prompts: as one stream.
        room: tokens that each answer may get.
        device: of the model.
    """

    def __init__(self, prompts: Packed, room: int, device: torch.device):
        self._prompts = prompts
        self._lengths = [len(places) for places in prompts.places]
        self._slots = max(self._lengths) + room
        self._device = device
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._at_B = torch.tensor(self._lengths, device=device)
        self._masks: dict[int | None, Tensor | None] = {}

    def read(self, trunk: Any) -> Tensor:
        """Let the prompts go forward; the last hidden state of each (B, H)."""
        positions_N = self._prompts.positions_N.to(self._device)
        reading = _Reading(self, self._prompts, positions_N)
        hidden_1NH = attended_hidden_states(trunk, self._prompts.ids_N[None], positions_N[None], reading)
        ends_B = torch.tensor([int(places[-1]) for places in self._prompts.places], device=hidden_1NH.device)
        return hidden_1NH[0, ends_B]

    def extend(self, trunk: Any, tokens_B: Tensor) -> Tensor:
        """Let one more token of each row go forward; its last hidden states (B, H)."""
        hidden_B1H = attended_hidden_states(trunk, tokens_B[:, None], self._at_B[:, None], self)
        self._lengths = [length + 1 for length in self._lengths]
        self._at_B = self._at_B + 1
        self._masks.clear()
        return hidden_B1H[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        at = torch.tensor(rows, device=self._device)
        self._lengths = [self._lengths[row] for row in rows]
        self._at_B = self._at_B[at]
        for layer, (keys, values) in self._kept.items():
            self._kept[layer] = (keys[at], values[at])

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
        """As `Attending` says, each row's new token over its row."""
        rows_B = torch.arange(len(self._lengths), device=self._device)
        filled = max(self._lengths) + 1
        keys, values = self._kept[module]
        for kept, new in ((keys, key), (values, value)):
            kept[rows_B, :, self._at_B] = new[:, :, 0]
        batch, heads, _, width = query.shape
        # Heads that share their keys are so many queries of one head: nothing is repeated for them.
        found = scaled_dot_product_attention(
            query.reshape(batch, key.shape[1], heads // key.shape[1], width),
            keys[:, :, :filled],
            values[:, :, :filled],
            attn_mask=self._mask(filled, window),
            dropout_p=dropout,
            scale=scale,
        )
        return found.reshape(batch, 1, heads, found.shape[-1])

    def take(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Note a layer's keys and values of the prompts' stream, (1, key heads, N, D) each."""
        where_BP = torch.zeros((len(self._lengths), max(self._lengths)), dtype=torch.long)
        for row, places in enumerate(self._prompts.places):
            where_BP[row, : len(places)] = torch.from_numpy(places)
        self._kept[module] = (self._rows(key, where_BP), self._rows(value, where_BP))

    def _rows(self, stream: Tensor, where_BP: Tensor) -> Tensor:
        _, heads, _, width = stream.shape
        # Not empty: what no one has written yet is masked, but a chance NaN would get through.
        rows = stream.new_zeros((where_BP.shape[0], heads, self._slots, width))
        rows[:, :, : where_BP.shape[1]] = stream[0][:, where_BP.to(stream.device)].transpose(0, 1)
        return rows

    def _mask(self, filled: int, window: int | None) -> Tensor | None:
        """True on the slots that a row's new token sees (B, 1, 1, filled); None where each sees all."""
        if window is not None and filled <= window:
            window = None
        if window is None and min(self._lengths) + 1 == filled:
            return None
        if window not in self._masks:
            back = self._at_B[:, None] - torch.arange(filled, device=self._device)
            seen = back >= 0 if window is None else (back >= 0) & (back < window)
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


class _Reading(Layout):
    """The prompts' stream, whose keys and values are kept as it goes by."""

    def __init__(self, cache: AnswerCache, prompts: Packed, positions_N: Tensor):
        super().__init__(prompts.segments, positions_N, in_float32=True)
        self._cache = cache

    def attention(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """As any stream's."""
        self._cache.take(module, key, value)
        return super().attention(module, query, key, value, **options)
