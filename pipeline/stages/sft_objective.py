"""Imitation on streams: negative log-likelihood, averaged over the step's response tokens."""

from __future__ import annotations

from collections.abc import Sequence

from data_prep.chat import EncodedDemonstration
from pipeline.stages.stream_trainer import Call, Found
from pipeline.streams import Stream, stream_of


class Imitation:
    """What SFT learns from demonstrations."""

    def items(self, row: EncodedDemonstration) -> int:
        """Response tokens."""
        return sum(row.response_mask)

    def tokens(self, row: EncodedDemonstration) -> int:
        """All of the row."""
        return len(row.input_ids)

    def stream(self, rows: Sequence[EncodedDemonstration]) -> Stream:
        """Rows one behind the other."""
        return stream_of([(row.input_ids, row.response_mask) for row in rows])

    def compute(self, call: Call, rows: Sequence[EncodedDemonstration], stream: Stream) -> Found:
        """Loss of response tokens."""
        return Found(-call(stream).sum(), {})
