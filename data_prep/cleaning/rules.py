"""The rules that look at one record by itself, in the order in which they are asked; the first that fires drops it.

A rule is a function of the record and the data set's `clean` settings; it returns a `Finding`, or None. Rules that are
switched off are not asked. What an answer must be like is asked of what is trained towards: every answer of a
demonstration, the chosen one of a pair.
"""

from __future__ import annotations

from collections.abc import Callable

from data_prep.cleaning import content, shape
from data_prep.cleaning.dropped import Finding
from data_prep.cleaning.language import language
from data_prep.cleaning.personal import personal_data, secrets
from data_prep.cleaning.quality import quality
from data_prep.cleaning.texts import all_texts, answers, word_count
from data_prep.records import PreferencePair, Prompt, Record
from pipeline.recipe.cleaning_settings import CleanSettings

Rule = Callable[[Record, CleanSettings], Finding | None]
_SHOWN = 60


def first_finding(record: Record, settings: CleanSettings) -> Finding | None:
    """What is wrong with a record by the first rule that fires."""
    for rule in RULES:
        if found := rule(record, settings):
            return found
    return None


def _confidential(record: Record, settings: CleanSettings) -> Finding | None:
    for name, find in (("secrets", secrets), ("personal_data", personal_data)):
        if getattr(settings, name) == "drop":
            kinds = [hit.kind for text in all_texts(record) for hit in find(text)]
            if kinds:
                return Finding(name, float(len(kinds)), ", ".join(sorted(set(kinds))))
    return None


def _by_degree(key: str, measure: Callable[[str], float]) -> Rule:
    """A rule of answers that is either on or off: whatever measures above 0 is dropped."""

    def rule(record: Record, settings: CleanSettings) -> Finding | None:
        if getattr(settings, key) == "drop":
            for text in answers(record):
                if score := measure(text):
                    return Finding(key, score, _tail(text) if key == "truncated" else _head(text))
        return None

    return rule


def _by_share(key: str, measure: Callable[[str], float]) -> Rule:
    """A rule of answers with a largest share."""

    def rule(record: Record, settings: CleanSettings) -> Finding | None:
        largest = getattr(settings, key)
        if largest is not None:
            for text in answers(record):
                if (score := measure(text)) > largest:
                    return Finding(key, round(score, 3), _head(text))
        return None

    return rule


def _by_length(least_key: str, most_key: str, measure: Callable[[str], float | None]) -> Rule:
    """A rule of answers with a smallest and a largest value."""

    def rule(record: Record, settings: CleanSettings) -> Finding | None:
        least, most = getattr(settings, least_key), getattr(settings, most_key)
        if least is None and most is None:
            return None
        for text in answers(record):
            size = measure(text)
            if size is not None and least is not None and size < least:
                return Finding(least_key, round(size, 2), _head(text))
            if size is not None and most is not None and size > most:
                return Finding(most_key, round(size, 2), _head(text))
        return None

    return rule


def _placeholders(record: Record, settings: CleanSettings) -> Finding | None:
    if settings.placeholders == "drop":
        # A prompt may well ask to fill in a template; one that is sampled from must be ready to be answered.
        for text in all_texts(record) if isinstance(record, Prompt) else answers(record):
            if found := content.placeholders(text):
                return Finding("placeholders", float(len(found)), _head(", ".join(found)))
    return None


def _profanity(record: Record, settings: CleanSettings) -> Finding | None:
    if settings.profanity != "keep":
        for text in all_texts(record) if settings.profanity == "anywhere" else answers(record):
            if found := content.profanities(text):
                return Finding("profanity", float(len(found)), _head(", ".join(found)))
    return None


def _languages(record: Record, settings: CleanSettings) -> Finding | None:
    if settings.languages:
        texts = all_texts(record) if isinstance(record, Prompt) else answers(record)
        for text in (*texts, record.rejected) if isinstance(record, PreferencePair) else texts:
            found = language(text)
            if found and found[0] not in settings.languages and found[1] >= settings.language_confidence:
                return Finding("languages", round(found[1], 3), found[0])
    return None


def _quality(record: Record, settings: CleanSettings) -> Finding | None:
    if settings.min_quality is None:
        return None
    found = quality(record)
    if found.score >= settings.min_quality:
        return None
    parts = {name: getattr(found, name) for name in found.__slots__}
    worst = [f"{name} {value:.2f}" for name, value in sorted(parts.items(), key=lambda part: part[1]) if value < 1]
    return Finding("min_quality", round(found.score, 3), ", ".join(worst))


RULES: tuple[Rule, ...] = (
    _confidential,
    _by_degree("empty_answers", content.is_empty),
    _by_degree("url_answers", content.is_links_only),
    _by_degree("refusals", content.is_refusal_stub),
    _placeholders,
    _profanity,
    _by_share("duplicate_lines", shape.duplicate_lines),
    _by_share("repetition", shape.repetition),
    _by_share("special_characters", shape.special_characters),
    _by_length("min_word_length", "max_word_length", shape.mean_word_length),
    _by_length("min_characters", "max_characters", lambda text: len(text.strip())),
    _by_length("min_words", "max_words", word_count),
    _by_degree("truncated", shape.breaks_off),
    _languages,
    _quality,
)


def _head(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…"


def _tail(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"…{flat[1 - _SHOWN :]}"
