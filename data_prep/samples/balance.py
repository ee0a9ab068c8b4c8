"""Which wrong answer goes with which right one, so that neither length, opening nor language gives the side away.

Every pair adds a signed count to cells such as "chosen 9-15 characters, rejected 61-90"; the mirrored pair subtracts
from the same cell. A seeded local search over the candidates drives all cells towards zero and the faults towards
their shares.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

from data_prep.samples import tokens
from data_prep.text_forms import language

SHARES = {
    "wrong_fact": 0.13,
    "ignored_format": 0.14,
    "rambling": 0.18,
    "truncated": 0.07,
    "terse": 0.05,
    "unsafe": 0.05,
    "over_refusal": 0.09,
    "sycophantic": 0.06,
    "invented_fact": 0.06,
    "wrong_language": 0.08,
    "off_topic": 0.04,
    "needless_doubt": 0.05,
}
_CHARACTERS = (3, 6, 10, 16, 24, 34, 46, 60, 76, 96, 120)
_WORDS = (1, 2, 3, 5, 7, 9, 12, 15, 19, 24)
_SWEEPS = 250
_WEIGHTS = {
    "characters": 300,
    "words": 300,
    "han": 300,
    "size": 1000,
    "longer": 200,
    "tilt": 6,
    "language": 200,
    "first": 150,
    "opening": 100,
    "fault": 800,
    "spread": 200,
}
"""Whole numbers, so that the search does not depend on the order in which they are summed."""

Cell = tuple[object, ...]


class Candidate(NamedTuple):
    """A wrong answer that a task could be paired with."""

    fault: str
    text: str


def _signed(kind: str, chosen: object, rejected: object, order: int) -> Iterable[tuple[Cell, int]]:
    """The cell of an unordered pair of values, counted up or down by which side has which."""
    if order:
        yield (kind, *((chosen, rejected) if order > 0 else (rejected, chosen))), order


def cells(family: str, chosen: str, candidate: Candidate) -> Counter[Cell]:
    """What a pair adds to each cell."""
    found: Counter[Cell] = Counter({("fault", candidate.fault): 1, ("spread", family, candidate.fault): 1})
    (c_chars, c_words), (r_chars, r_words) = tokens.sizes(chosen), tokens.sizes(candidate.text)
    for kind, edges, c, r in (("characters", _CHARACTERS, c_chars, r_chars), ("words", _WORDS, c_words, r_words)):
        left, right = bisect(edges, c), bisect(edges, r)
        found.update(dict(_signed(kind, left, right, (left > right) - (left < right))))
        found["longer", kind] = (c > r) - (c < r)
        if left == right:
            found["longer", kind, left] = (c > r) - (c < r)
    found["size", _size_class(c_chars, c_words)] += 1
    found["size", _size_class(r_chars, r_words)] -= 1
    found.update(_tilts(c_chars, c_words, r_chars, r_words))
    left_language, right_language = language(chosen), language(candidate.text)
    order = (left_language > right_language) - (left_language < right_language)
    found.update(dict(_signed("language", left_language, right_language, order)))
    if "zh" in (left_language, right_language):
        left, right = c_chars // 8, r_chars // 8
        found.update(dict(_signed("han", left, right, (left > right) - (left < right))))
    for side, text in ((1, chosen), (-1, candidate.text)):
        for place, token in enumerate(tokens.opening(text, 3)):
            found["first" if place == 0 else "opening", place, tokens.masked(token)] += side
    return Counter({cell: count for cell, count in found.items() if count})


class Open(NamedTuple):
    """A right answer and the wrong ones to choose from."""

    family: str
    chosen: str
    options: Sequence[Candidate]


def _size_class(chars: int, words: int) -> tuple[int, int]:
    """Characters and words together, coarsely: many characters in few words is Chinese, or JSON."""
    return bisect((4, 12, 24, 44, 66, 90), chars), bisect((1, 4, 6, 9, 12, 16, 20), words)


def _tilts(c_chars: int, c_words: int, r_chars: int, r_words: int) -> dict[Cell, int]:
    """What a classifier that is quadratic in the lengths can use: it finds nothing where all these sum to zero.

    With the sides mirrored only the products of a term that changes its sign (a difference, a log ratio) with one that
    does not (a sum, an absolute difference) matter; the logistic loss then has its minimum at zero weights.
    """
    chars, words = (c_chars - r_chars) / 20, (c_words - r_words) / 4
    signed = (chars, words, math.log(c_chars / r_chars), math.log(c_words / r_words))
    unsigned = (1.0, (c_chars + r_chars) / 40, (c_words + r_words) / 8, abs(chars), abs(words))
    return {
        ("tilt", i, j): round(10 * left * right) for i, left in enumerate(signed) for j, right in enumerate(unsigned)
    }


def choose(pairs: Sequence[Open], rng: Random) -> list[Candidate]:
    """One candidate for each right answer."""
    table = [[cells(family, chosen, option) for option in options] for family, chosen, options in pairs]
    picked = [rng.randrange(len(row)) for row in table]
    total: Counter[Cell] = Counter({("fault", fault): -round(share * len(pairs)) for fault, share in SHARES.items()})
    for row, index in zip(table, picked, strict=True):
        total.update(row[index])
    for _ in range(_SWEEPS * len(pairs)):
        place = rng.randrange(len(pairs))
        other = rng.randrange(len(table[place]))
        old, new = table[place][picked[place]], table[place][other]
        if other != picked[place] and _change(total, old, new) <= 0:
            total.subtract(old)
            total.update(new)
            picked[place] = other
    return [pair.options[index] for pair, index in zip(pairs, picked, strict=True)]


def _change(total: Counter[Cell], old: Counter[Cell], new: Counter[Cell]) -> int:
    """By how much the weighted sum of squares grows when `new` replaces `old`."""
    grown = 0
    for cell in old.keys() | new.keys():
        step = new[cell] - old[cell]
        grown += _WEIGHTS[str(cell[0])] * step * (2 * total[cell] + step)
    return grown
