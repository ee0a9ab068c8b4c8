"""Near duplicates: MinHash and locality-sensitive hashing (rensa) find candidates, an exact comparison decides.

Two texts are near duplicates when the Jaccard similarity of their sets of character n-grams, letter case, punctuation
and white space aside, reaches a threshold, and they state the same numbers: "13 + 5" and "13 + 6" ask different
things. Several texts of a row must each be near their counterparts: two prompts may differ in one word and be answered
alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from data_prep.cleaning.texts import MARKS, context, is_dense, opening, turn_text
from data_prep.records import Demonstration, PreferencePair, Record
from pipeline.stopping import stop_if_asked

if TYPE_CHECKING:
    from rensa import RMinHash

Texts = tuple[str, ...]
_SEPARATORS = re.compile(f"[^\\w{MARKS}]+|_+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_LENGTH, _DENSE_LENGTH = 5, 3
_PERMUTATIONS = 120
_SEED = 20
_MISSED = 1e-4
"""How often a pair exactly at the threshold may be missed by the hashing; pairs above it are missed far less often."""
_CHUNK = 4096


class Match(NamedTuple):
    """A near duplicate that was found: its place in the index, and how near it is."""

    place: int
    similarity: float


class NearIndex:
    """Texts to compare others with.

    Args:
        threshold: Jaccard similarity from which texts are near duplicates.
    """

    def __init__(self, threshold: float):
        from rensa import RMinHashLSH

        self._threshold = threshold
        self._lsh = RMinHashLSH(threshold, _PERMUTATIONS, _bands(threshold))
        self._texts: list[Texts] = []

    def add(self, texts: Texts, sketch: RMinHash) -> int:
        """Take texts in; returns their place."""
        place = len(self._texts)
        self._lsh.insert(place, sketch)
        self._texts.append(texts)
        return place

    def find(self, texts: Texts, sketch: RMinHash) -> Match | None:
        """The earliest near duplicate, if there is one."""
        for place in sorted(self._lsh.query(sketch)):
            similarity = nearness(texts, self._texts[place])
            if similarity >= self._threshold:
                return Match(place, similarity)
        return None


def sketches(rows: Sequence[Texts]) -> list[RMinHash]:
    """MinHash sketches of rows of texts."""
    from rensa import RMinHash

    found: list[RMinHash] = []
    for at in range(0, len(rows), _CHUNK):
        stop_if_asked("looking for near duplicates")
        sets = [_tagged(texts) for texts in rows[at : at + _CHUNK]]
        found += RMinHash.from_token_sets(sets, _PERMUTATIONS, _SEED)
    return found


def nearness(one: Texts, other: Texts) -> float:
    """The smallest similarity of corresponding texts; 0 for rows of different length."""
    if len(one) != len(other):
        return 0.0
    smallest = 1.0
    for left, right in zip(one, other, strict=True):
        smallest = min(smallest, similarity(left, right))
        if smallest == 0:
            break
    return smallest


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of two texts' character n-grams; 0 where they state different numbers."""
    if one == other:
        return 1.0
    if sorted(_NUMBER.findall(one)) != sorted(_NUMBER.findall(other)):
        return 0.0
    left, right = shingles(one), shingles(other)
    return len(left & right) / len(left | right)


def shingles(text: str) -> frozenset[str]:
    """Character n-grams: of 5, or of 3 where most is in a script without spaces; a shorter text is one by itself."""
    dense = is_dense(text)
    length = _DENSE_LENGTH if dense else _LENGTH
    folded = unicodedata.normalize("NFKC", text).casefold()
    flat = _SEPARATORS.sub("" if dense else " ", folded).strip() or text.strip()
    return frozenset(flat[at : at + length] for at in range(max(1, len(flat) - length + 1)))


def row_texts(record: Record) -> Texts:
    """What of a record is compared for `of: rows`: the turns before the answer as one text, and each answer."""
    before = "\n".join(map(turn_text, context(record)))
    if isinstance(record, PreferencePair):
        return (before, turn_text(record.chosen_turn), turn_text(record.rejected_turn))
    return (before, turn_text(record.messages[-1])) if isinstance(record, Demonstration) else (before,)


def prompt_texts(record: Record) -> Texts:
    """What of a record is compared for `of: prompts`, and with held-out prompts."""
    return (opening(record),)


def _tagged(texts: Texts) -> list[str]:
    """Shingles of all texts, told apart by text: where each is near, so is the whole."""
    if len(texts) == 1:
        return list(shingles(texts[0]))
    return [f"{number}{shingle}" for number, text in enumerate(texts) for shingle in shingles(text)]


def _bands(threshold: float) -> int:
    """Bands of the permutations: as few as miss a pair at the threshold at most so often."""
    for rows in (12, 10, 8, 6, 5, 4, 3, 2):
        if (1 - threshold**rows) ** (_PERMUTATIONS // rows) <= _MISSED:
            return _PERMUTATIONS // rows
    return _PERMUTATIONS
