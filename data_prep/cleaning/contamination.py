"""Training rows that repeat texts of evaluation sets: found by shared runs of words.

A row is contaminated when it holds `ngram` words in a row of an evaluation text, or, of a text that is shorter, all of
it (at least six words). Runs that many texts of a set share are its form ("choose the best answer ...") and prove
nothing. Characters of scripts without spaces count as words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

from data_prep.cleaning.dropped import Dropped, Finding
from data_prep.cleaning.evaluation_sets import EvaluationSet, resolve
from data_prep.cleaning.texts import all_texts, ngrams, units
from data_prep.records import Demonstration, PreferencePair, Prompt, Record
from pipeline.recipe.cleaning_settings import DecontaminateSettings

R = TypeVar("R", Demonstration, PreferencePair, Prompt)

SHORTEST = 6
"""Fewest words of an evaluation text that can be recognised."""
_FORM = 5
"""A run of words in more texts of a set than this is the set's form."""


class EvaluationTexts:
    """Runs of words of evaluation sets.

    Args:
        sets: to keep apart from.
        ngram: words in a row that count.
    """

    def __init__(self, sets: Sequence[EvaluationSet], ngram: int):
        self._ngram = ngram
        self._where: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        for each in sets:
            self._take_in(each)
        self._lengths = sorted({run.count(" ") + 1 for run in self._where})

    def _take_in(self, each: EvaluationSet) -> None:
        runs: dict[str, str] = {}
        texts_with: Counter[str] = Counter()
        known: set[str] = set()
        for place, text in each.texts():
            words = units(text)
            flat = " ".join(words)
            if len(words) < SHORTEST or flat in known:
                continue
            known.add(flat)
            own = set(ngrams(words, min(self._ngram, len(words))))
            texts_with.update(own)
            for run in own:
                runs.setdefault(run, place)
        self.counts[each.name] = len(known)
        self._where |= {run: place for run, place in runs.items() if texts_with[run] <= _FORM}

    def finding(self, record: Record) -> Finding | None:
        """What of a record stands in an evaluation text."""
        shared: list[str] = []
        for text in all_texts(record):
            words = units(text)
            for length in self._lengths:
                shared += [run for run in ngrams(words, length) if run in self._where]
        if not shared:
            return None
        longest = max(shared, key=len)
        return Finding("contaminated", float(len(shared)), f"{self._where[longest]}: {' '.join(longest.split()[:13])}")


class Decontaminator:
    """Takes contaminated rows out, and counts them by evaluation set."""

    def __init__(self, settings: DecontaminateSettings):
        sets, self._absent = resolve(settings)
        prints = tuple((each, each.fingerprint) for each in sets)
        self._texts = _evaluation_texts(prints, settings.ngram)
        self._rows: Counter[str] = Counter()

    def split(self, records: Sequence[R]) -> tuple[list[R], list[Dropped]]:
        """The records that share nothing with an evaluation text, and the others."""
        kept: list[R] = []
        dropped: list[Dropped] = []
        for record in records:
            found = self._texts.finding(record)
            if found is None:
                kept.append(record)
            else:
                dropped.append(Dropped(record, found))
                self._rows[found.detail.split(" ", 1)[0]] += 1
        return kept, dropped

    def report(self) -> dict[str, Any]:
        """Which sets were compared with, and how many rows each of them took out."""
        sets = {name: {"texts": texts, "rows_dropped": self._rows[name]} for name, texts in self._texts.counts.items()}
        return {"sets": sets, "not_on_this_machine": self._absent}


def evaluation_fingerprints(settings: DecontaminateSettings) -> list[str]:
    """What of the evaluation sets decides which rows are dropped: their content, and not where they lie."""
    return sorted(each.fingerprint for each in resolve(settings)[0])


@lru_cache(maxsize=2)
def _evaluation_texts(prints: tuple[tuple[EvaluationSet, str], ...], ngram: int) -> EvaluationTexts:
    """Read once in a process for all data sets, and anew when a file has changed."""
    return EvaluationTexts([each for each, _ in prints], ngram)
