"""A quality score of a row in [0, 1] that shows its parts. No model is asked: it is a product of plain measures.

Every part is 1 for an answer in order and falls towards 0 with one kind of fault, so the score says how much is wrong
and the parts say what. It orders rows for a look and cuts off the worst; it does not tell a true answer from a false
one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from data_prep.cleaning import content, shape
from data_prep.cleaning.texts import answers, word_count
from data_prep.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The parts of a row's score, each in [0, 1]; of several answers the worst counts."""

    substance: float = 1.0
    """0 for nothing, a link or a bare refusal."""
    variety: float = 1.0
    """Share of phrases and of lines that repeat no earlier one."""
    legibility: float = 1.0
    """Falls with unusual signs and with words far from 3 to 10 characters."""
    completeness: float = 1.0
    """Falls where the answer breaks off."""
    readiness: float = 1.0
    """Halved by every placeholder that was left in."""

    @property
    def score(self) -> float:
        """The product of the parts."""
        return prod(asdict(self).values())


def quality(record: Record) -> Quality:
    """The quality of a record's answers; a prompt without an answer has none to find fault with."""
    found = [_of_answer(text) for text in answers(record)]
    return min(found, key=lambda each: each.score, default=Quality())


def _of_answer(text: str) -> Quality:
    nothing = max(content.is_empty(text), content.is_links_only(text))
    return Quality(
        substance=1.0 - nothing if nothing else 1.0 - 0.8 * content.is_refusal_stub(text),
        variety=1.0 - max(shape.repetition(text), shape.duplicate_lines(text)),
        legibility=(1.0 - shape.special_characters(text)) * _word_length(text),
        completeness=1.0 - 0.7 * shape.breaks_off(text) * (word_count(text) > 0),
        readiness=0.5 ** len(content.placeholders(text)),
    )


def _word_length(text: str) -> float:
    """1 between 3 and 10 characters a word, falling to 0 at none and at 40."""
    mean = shape.mean_word_length(text)
    if mean is None or 3 <= mean <= 10:
        return 1.0
    return mean / 3 if mean < 3 else max(0.0, (40 - mean) / 30)
