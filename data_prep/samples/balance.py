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
_SWEEPS = 150
_WEIGHTS = {
    "characters": 1.0,
    "words": 1.0,
    "longer": 0.5,
    "language": 2.0,
    "opening": 1.0,
    "first": 1.5,
    "fault": 5.0,
    "spread": 2.0,
    "mean": 0.03,
}

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
        found.update(dict(_signed("longer", kind, "", (c > r) - (c < r))))
        found["mean", kind, "difference"] = round((c - r) * (1 if kind == "words" else 0.2))
        found["mean", kind, "log"] = round(10 * math.log(c / r))
        found["mean", kind, "square"] = round(3 * (math.log(c) ** 2 - math.log(r) ** 2))
    left_language, right_language = tokens.language(chosen), tokens.language(candidate.text)
    order = (left_language > right_language) - (left_language < right_language)
    found.update(dict(_signed("language", left_language, right_language, order)))
    for side, text in ((1, chosen), (-1, candidate.text)):
        for place, token in enumerate(tokens.opening(text, 3)):
            found["first" if place == 0 else "opening", place, tokens.masked(token)] += side
    return Counter({cell: count for cell, count in found.items() if count})


class Open(NamedTuple):
    """A right answer and the wrong ones to choose from."""

    family: str
    chosen: str
    options: Sequence[Candidate]


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


def _change(total: Counter[Cell], old: Counter[Cell], new: Counter[Cell]) -> float:
    """By how much the weighted sum of squares grows when `new` replaces `old`."""
    grown = 0.0
    for cell in old.keys() | new.keys():
        step = new[cell] - old[cell]
        grown += _WEIGHTS[str(cell[0])] * step * (2 * total[cell] + step)
    return grown
