"""Bradley-Terry on streams, both answers of a pair behind one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from data_prep.chat import EncodedPair
from data_prep.records import PreferencePair
from pipeline.algorithms.bradley_terry import bradley_terry_loss
from pipeline.stages.stream_trainer import Call, Found
from pipeline.streams import Stream, stream_of


class MarginPair(NamedTuple):
    """A pair and how much better its chosen answer is; 0 where it is not said."""

    pair: EncodedPair
    margin: float


def margin_pairs(
    records: Sequence[PreferencePair], rows: Sequence[EncodedPair], *, use_margins: bool
) -> list[MarginPair]:
    """Pairs with the margins that their records state, where those are used."""
    return [
        MarginPair(row, (record.margin or 0.0) if use_margins else 0.0)
        for record, row in zip(records, rows, strict=True)
    ]


class Comparison:
    """What a reward model learns from pairs.

    Args:
        use_margins: whether any pair's margin is asked for.
        center_coefficient: weight of the squared sum of both scores.
    """

    def __init__(self, *, use_margins: bool, center_coefficient: float):
        self._use_margins = use_margins
        self._center = center_coefficient

    def items(self, row: MarginPair) -> int:
        """Pairs count alike."""
        return 1

    def tokens(self, row: MarginPair) -> int:
        """Both answers, each behind its prompt."""
        return 2 * len(row.pair.prompt_ids) + len(row.pair.chosen_ids) + len(row.pair.rejected_ids)

    def stream(self, rows: Sequence[MarginPair]) -> Stream:
        """Sequences 2i and 2i + 1 are the chosen and the rejected answer of pair i."""
        return stream_of([answer for row in rows for answer in row.pair.answers()])

    def compute(self, call: Call, rows: Sequence[MarginPair], stream: Stream) -> Found:
        """Loss and what TRL's trainer would log of it."""
        scores_B2 = call(stream).view(-1, 2)
        margins = torch.tensor([row.margin for row in rows], device=scores_B2.device) if self._use_margins else None
        loss = bradley_terry_loss(scores_B2[:, 0], scores_B2[:, 1], margins, self._center).sum()
        detached_B2 = scores_B2.detach()
        gaps_B = detached_B2[:, 0] - detached_B2[:, 1]
        metrics = {
            "accuracy": (gaps_B > 0).float(),
            "margin": gaps_B,
            "mean_reward": detached_B2.mean(-1),
        }
        return Found(loss, {name: float(values.sum()) for name, values in metrics.items()})
