"""What a text says on its face: numbers, dates, list items, language, a refusal. The eyes of `data_prep.checks`.

All of it works on the surface, in English and Chinese. Layer 1, stdlib only.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import date
from typing import Any

_CJK = "\u3400-\u9fff"
_QUOTES = "\"'`*“”‘’「」『』"
_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october"]
_MONTHS += ["november", "december"]
_MONTH = "|".join(f"{name}|{name[:3]}" for name in _MONTHS)
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD_NUMBERS = {word: n for n, word in enumerate(_ONES + _TEENS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_WORD_NUMBER = rf"\b(?:(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_ONES[1:])}))?|{'|'.join(_ONES + _TEENS)})\b"
_HAN_DIGITS = {char: n for n, char in enumerate("零一二三四五六七八九")} | {"两": 2}

_OPTIONS = re.compile(
    r"\b(?:or|either|maybe|perhaps|possibl[ey]|might|could|unless|hard to say|not (?:really )?sure)\b|"
    r"[/、]|或|也许|可能|很难说"
)
_NEGATION = re.compile(
    r"(?:\b(?:not|never|no|isn't|wasn't|aren't|rather than|instead of)(?:\s+(?:a|an|the|really|quite|very|on))*\s*"
    r"|不是|并非|而非|不算|不|非)$"
)


def plain(text: str) -> str:
    """Casefolded, full-width signs made half-width, curly apostrophes straight, spaces collapsed."""
    folded = unicodedata.normalize("NFKC", text).replace("’", "'").replace("‘", "'").casefold()
    return " ".join(folded.split())


def normal(text: str) -> str:
    """Casefolded, spaces collapsed, without surrounding quotes or markup and without the final punctuation."""
    return plain(text).strip(_QUOTES + " ").rstrip(".!。;, ").strip(_QUOTES + " ")


def length(text: str) -> int:
    """Words; where the text is Chinese, two characters make about one."""
    han = len(re.findall(f"[{_CJK}]", text))
    return len(re.sub(f"[{_CJK}]", " ", text).split()) + (han + 1) // 2


def _phrase(text: str) -> re.Pattern[str]:
    flat = plain(text)
    before = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", flat) else ""
    after = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", flat) else ""
    return re.compile(before + re.escape(flat) + after)


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase is there as whole words, whatever its case."""
    return _phrase(phrase).search(plain(text)) is not None


def states(text: str, phrase: str) -> bool:
    """Whether the phrase is there and no negation stands before it."""
    flat = plain(text)
    return any(not _NEGATION.search(flat[: hit.start()]) for hit in _phrase(phrase).finditer(flat))


def lists_options(text: str) -> bool:
    """Whether the text offers several answers, or one that it does not commit itself to."""
    flat = plain(text)
    return _OPTIONS.search(flat) is not None or len(re.findall(r"[,;]", flat)) > 1


def _han_number(text: str) -> int:
    tens, ten, ones = text.rpartition("十")
    return (_HAN_DIGITS.get(tens, 1) * 10 if ten else 0) + (_HAN_DIGITS.get(ones, 0) if ones else 0)


def _spelled_numbers(flat: str) -> list[float]:
    words = [re.split("[ -]", hit) for hit in re.findall(_WORD_NUMBER, flat)]
    han = re.findall("[零一二两三四五六七八九]?十?[零一二两三四五六七八九]?", flat)
    return [float(sum(_WORD_NUMBERS[word] for word in hit)) for hit in words] or [
        float(_han_number(h)) for h in han if h
    ]


def numbers(text: str) -> list[float]:
    """The numbers a text states, in order: what follows the last "=", negated ones ("not 41") left out.

    Spelled-out numbers count only where there are no digits: "one" and "一" are too common otherwise.
    """
    flat = plain(text).replace("−", "-").rpartition("=")[2]
    found = []
    for hit in re.finditer(r"(?<![a-z0-9.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\d.a-z])-?\d+(?:\.\d+)?", flat):
        if not _NEGATION.search(flat[: hit.start()]):
            found.append(float(hit.group().replace(",", "")))
    return found if re.search(r"\d", flat) else _spelled_numbers(flat)


def is_iso_date(text: str) -> bool:
    """Whether the text is a calendar date like 2024-03-05."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return len(text) == 10


def iso_date(text: str) -> tuple[int, int, int]:
    """The year, month and day of an ISO date."""
    day = date.fromisoformat(text)
    return day.year, day.month, day.day


def dates(text: str, default_year: int) -> list[tuple[int, int, int]]:
    """The dates a text states as (year, month, day), in order, in English, Chinese or ISO spelling."""
    flat = plain(text)
    spellings = (
        r"(?P<y>\d{4})[-/](?P<m>\d{1,2})[-/](?P<d>\d{1,2})",
        rf"(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m>{_MONTH})\b\.?,?(?: (?P<y>\d{{4}}))?",
        rf"\b(?P<m>{_MONTH})\.? (?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b,?(?: (?P<y>\d{{4}}))?",
        r"(?:(?P<y>\d{4}) ?年 ?)?(?P<m>\d{1,2}) ?月 ?(?P<d>\d{1,2}) ?[日号]",
    )
    hits = sorted((hit for spelling in spellings for hit in re.finditer(spelling, flat)), key=lambda hit: hit.start())
    return [(int(hit["y"] or default_year), _month(hit["m"]), int(hit["d"])) for hit in hits]


def _month(text: str) -> int:
    return int(text) if text.isdigit() else [name[:3] for name in _MONTHS].index(text[:3]) + 1


def unfenced(text: str) -> str:
    """The content of a single code fence, or the text as it is."""
    hit = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", text, flags=re.DOTALL)
    return hit.group(1) if hit else text


def same_json(left: Any, right: Any) -> bool:
    """Equality up to what no reader would call a mistake: letter case and spaces of texts, 12 for "12"."""
    if isinstance(left, dict) and isinstance(right, dict):
        folded = {plain(key): value for key, value in left.items()}
        return folded.keys() == {plain(key) for key in right} and all(
            same_json(folded[plain(key)], value) for key, value in right.items()
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left is right
    if isinstance(left, dict | list) or isinstance(right, dict | list):
        return False
    return normal(str(left)) == normal(str(right)) or left == right


_MARKER = re.compile(r"^\s*(?:[-*•·]|\d{1,2}[.)、])\s+")


def list_items(text: str, count: int) -> list[str]:
    """The items of a list written on one line or one to a line, a lead-in such as "Sorted:" left out."""
    text = unicodedata.normalize("NFKC", text)
    lead, colon, rest = text.strip().partition(":")
    body = rest if colon and rest.strip() and "," not in lead else text
    lines = [_MARKER.sub("", line) for line in body.strip().strip("[]").splitlines()]
    parts = [part for line in lines for part in re.split(r"[,;、<>→|]|->|\band\b|和", line)]
    if count > 1 and len(parts) == 1:
        parts = body.split()
    return [normal(part.strip().strip("[]")) for part in parts if normal(part)]


def bullet_items(text: str) -> list[str]:
    """The items of a bullet or numbered list; empty when any line has no marker."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return [normal(_MARKER.sub("", line)) for line in lines] if all(_MARKER.match(line) for line in lines) else []


def sentence_count(text: str) -> int:
    """Sentences by their end marks; a text without any is one."""
    parts = re.split(rf"[.!?]+(?=\s|$|[{_CJK}])|。+|\n+", unicodedata.normalize("NFKC", text))
    return max(1, len([part for part in parts if part.strip(_QUOTES + " ")]))


def language(text: str) -> str:
    """`zh` or `en`, whichever most of the text is in, one Chinese character counting as a word; else `other`."""
    han, latin = len(re.findall(f"[{_CJK}]", text)), len(re.findall(r"[A-Za-z]+", text))
    if han + latin == 0:
        return "other"
    share = han / (han + latin)
    return "zh" if share >= 0.6 else "en" if share <= 0.2 else "other"


def letter_case(text: str) -> str:
    """`upper`, `lower` or `mixed`."""
    return "upper" if text.isupper() else "lower" if text.islower() else "mixed"


def claims(text: str, skip_initial: bool = False) -> set[str]:
    """What a text commits itself to: its numbers and its capitalised words (not those that open a sentence)."""
    flat = " ".join(text.split())
    named = {hit for hit in re.findall(r"\b[A-Z][\w-]*", flat) if hit not in {"I"}}
    if skip_initial:
        initial = set(re.findall(r"(?:^|[.!?:] |\")([A-Z][\w-]*)", flat))
        named -= {word for word in initial if len(re.findall(rf"\b{word}\b", flat)) == 1}
    return {word.casefold() for word in named} | {f"{n:g}" for n in numbers(text) if re.search(r"\d", text)}
