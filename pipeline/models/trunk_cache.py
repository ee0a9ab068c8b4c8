"""What a frozen trunk gave for streams, kept in memory within a budget: for other roles, and for later passes. Layer 2.

Entries are found by content: the same tokens at the same positions, seeing the same. A stream's states are always
computed from it alone, so they are the same bits whether they were kept, did not fit, or are made again after a resume.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.frozen_trunk import Below, FrozenTrunk
from pipeline.streams import Packed, Segment, Stream

_Key = tuple[bytes, bytes, tuple[Segment, ...]]


class TrunkCache:
    """Asks a frozen trunk once for each stream, as far as memory goes.

    Args:
        trunk: to ask.
        budget: bytes; what does not fit any more is computed each time.
    """

    def __init__(self, trunk: FrozenTrunk, budget: int):
        self.trunk = trunk
        self._budget = budget
        self._held = 0
        self._kept: dict[_Key, Tensor] = {}

    def below(self, stream: Stream | Packed) -> Below:
        """What stands in for the frozen layers in a pass over a stream."""
        return Below(self.trunk, self._states(stream))

    def below_parts(self, stream: Stream, parts: Sequence[Stream]) -> Below:
        """The same for a stream that is made up of parts, each asked for by itself.

        Args:
            stream: of all sequences.
            parts: streams of the first few sequences, the next few, and so on.
        """
        states = [self._states(part) for part in parts]
        whole_NH = states[0].new_empty((len(stream.ids_N), states[0].shape[-1]))
        at = iter(stream.places)
        for part, own_NH in zip(parts, states, strict=True):
            for places in part.places:
                # Where parts begin alike the last one's states stand, which are equal but for rounding.
                whole_NH[torch.from_numpy(next(at))] = own_NH[torch.from_numpy(places)]
        return Below(self.trunk, whole_NH)

    def bytes_for(self, tokens: int) -> int:
        """What the states of so many tokens take."""
        trunk = self.trunk.trunk
        return tokens * int(trunk.config.get_text_config().hidden_size) * next(trunk.parameters()).dtype.itemsize

    def has_room_for(self, tokens: int) -> bool:
        """Whether so many tokens' states fit in an empty cache."""
        return self.bytes_for(tokens) <= self._budget

    def forget(self) -> None:
        """Make room: what was asked for so far will not be asked for again."""
        self._kept.clear()
        self._held = 0

    def _states(self, stream: Stream | Packed) -> Tensor:
        key = (stream.ids_N.cpu().numpy().tobytes(), stream.positions_N.cpu().numpy().tobytes(), stream.segments)
        kept = self._kept.get(key)
        if kept is not None:
            return kept.to(next(self.trunk.trunk.parameters()).device, non_blocking=True)
        found = self.trunk.states(stream)
        size = found.numel() * found.element_size()
        if self._held + size <= self._budget:
            # In the host's memory: a GPU's is what training is short of.
            self._kept[key] = found.cpu()
            self._held += size
        return found
