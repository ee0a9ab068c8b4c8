"""The answers that a reward model is asked to score once it is trained, chosen before any training begins."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.build import EVALUATION_SEED, demonstrations, encode
from data_prep.chat import ChatFormatter
from data_prep.clean import limit_records
from evaluation.reward_stress import StressRow, stress_rows
from pipeline.context import StageContext
from pipeline.errors import DataError
from pipeline.stages.pairs import Pairs

MOST_REFERENCES = 256
"""So many answers fix the scale of scores."""
_PADDED = 8
"""So many sequences are scored alone and padded."""


@dataclass(frozen=True, slots=True)
class Questions:
    """Sequences of token ids to score."""

    chosen: list[list[int]]
    """Of the held-out pairs, prompt included."""
    rejected: list[list[int]]
    reference: list[list[int]]
    """Good answers, whose scores get mean 0 and deviation 1."""
    source: str
    """Which answers those are."""
    stress: list[StressRow]

    @property
    def padded(self) -> list[list[int]]:
        """The shortest held-out answers and the longest one, which pads them far; empty where all are as long."""
        by_length = sorted([*self.chosen, *self.rejected], key=len)
        if not by_length or len(by_length[0]) == len(by_length[-1]):
            return []
        return [*by_length[: min(_PADDED, len(by_length) - 1)], by_length[-1]]


def questions(context: StageContext, formatter: ChatFormatter, train: Pairs, held_out: Pairs) -> Questions:
    """What a stage asks its reward models.

    Raises:
        DataError: no reference answer can be used.
    """
    reference, source = _references(context, formatter, train)
    preference = context.recipe.data.preference
    assert preference is not None
    return Questions(
        chosen=[[*row.prompt_ids, *row.chosen_ids] for row in held_out.rows],
        rejected=[[*row.prompt_ids, *row.rejected_ids] for row in held_out.rows],
        reference=reference,
        source=source,
        stress=stress_rows(held_out.records, formatter, preference.max_length),
    )


def _references(context: StageContext, formatter: ChatFormatter, train: Pairs) -> tuple[list[list[int]], str]:
    """Demonstrations that SFT trains on; without any, the chosen answers of the pairs trained on here."""
    data = context.recipe.data
    if data.sft is None:
        rows = dict(zip(map(id, train.records), train.rows, strict=True))
        picked = [rows[id(record)] for record in limit_records(train.records, MOST_REFERENCES, EVALUATION_SEED)]
        return [[*row.prompt_ids, *row.chosen_ids] for row in picked], "data.preference, chosen answers"
    found = demonstrations(data, context.recipe.seed)
    limit = data.sft.max_length
    answers = [record for record in found.train if not record.is_text]
    records = limit_records(answers, MOST_REFERENCES, EVALUATION_SEED)
    encoded = encode(records, lambda record: formatter.demonstration(record, limit), found.report)
    if not encoded.rows:
        raise DataError(
            f"stage {context.stage}: scores get their scale from the demonstrations of data.sft, and none of "
            f"{len(records)} can be used ({found.report['dropped']}); raise data.sft.max_length or remove data.sft"
        )
    return [row.input_ids for row in encoded.rows], "data.sft, demonstrations"
