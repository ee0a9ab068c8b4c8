"""What an answer says, as far as its wording shows it: nothing, a link, a refusal, a placeholder, an obscenity.

The word lists, English and Chinese, come from glin-profanity; refusals are recognised as in `data_prep.stances`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

from data_prep.cleaning.texts import DENSE, is_dense, units, without_code, word_count
from data_prep.stances import admits_unknown, refuses

_STUB = re.compile(r"(?i)\W*(?:no ?(?:out|in)put|n/?a|nan|deleted|removed|todo|tbd|lorem ipsum.*)\W*")
_LINK = r"(?:https?://|www\.)[^\s<>()（），。]+"
_LINKS_ONLY = re.compile(
    rf"[\s\-*\d.:<>()\[\]]*(?:(?:source|link|see|链接|参见)\s*[:：]?\s*)?(?:{_LINK}[\s,;.<>()\[\]]*)+", re.IGNORECASE
)
_ABOUT_ITSELF = re.compile(
    r"(?i)\bas an? (?:ai|artificial intelligence|large)\b[\w\s-]{0,20}(?:model|assistant)?\b[,\s]|"
    r"\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial intelligence|language model)\b|"
    r"作为(?:一个|一名|一款)?(?:人工智能|AI|大?语言模型)|我(?:只|仅)?是(?:一个|一名)?(?:人工智能|AI|语言模型)"
)
_LONGEST_STUB = 40
"""Words: a longer refusal says more than that it declines."""
_FILL_IN = (
    "your|insert|enter|add|fill|put|name|company|recipient|date|address|title|position|city|state|number|phone|email|"
    "sender|link|url|amount|product|customer|client|time|location|topic|signature"
)
_PLACEHOLDER = re.compile(
    r"\{\{\s*[\w. ]{1,40}\s*\}\}"
    rf"|(?<![\w\])])\[\s*(?:(?:{_FILL_IN})\b[^\[\]\n(='\"]{{0,40}}|[^\[\]\n(='\"]{{0,20}}\b(?:name|here)\s*)\](?!\()"
    rf"|<\s*(?:insert|enter|your|fill in)\b[^<>\n]{{0,40}}>"
    r"|[\[【（(]\s*(?:请?(?:插入|填写|填入|输入)|此处|你的|您的|姓名|公司名|日期)[^\]】）)\n]{0,20}[\]】）)]",
    re.IGNORECASE,
)
_STEM = "fuck"
"""Its compounds are more than a list can hold, and it is part of no other word."""
_ORDINARY = frozenset((Path(__file__).parent / "ordinary_words.txt").read_text(encoding="utf-8").split("\n"))
"""Entries of the lists that are ordinary, medical or legal words: they alone make no text obscene."""


def is_empty(text: str) -> float:
    """1 for an answer without a word or sign of its own."""
    return 1.0 if _STUB.fullmatch(text) or not _says_something(text) else 0.0


def is_links_only(text: str) -> float:
    """1 for an answer that is nothing but links."""
    return 1.0 if _LINKS_ONLY.fullmatch(text.strip()) else 0.0


def is_refusal_stub(text: str) -> float:
    """1 for a short answer that declines, or that talks of being a model instead of answering."""
    if word_count(text) > _LONGEST_STUB:
        return 0.0
    # "I can't tell from the note" answers a question.
    return 1.0 if _ABOUT_ITSELF.search(text) or (refuses(text) and not admits_unknown(text)) else 0.0


def placeholders(text: str) -> list[str]:
    """Placeholders outside code."""
    return [hit.group() for hit in _PLACEHOLDER.finditer(without_code(text))]


def profanities(text: str) -> list[str]:
    """Swear words and phrases, as whole words where words are divided by spaces."""
    spaced, dense = _swear_words()
    found = [word for word in units(text) if word in spaced or _STEM in word]
    flat = " ".join(units(text))
    found += [phrase for phrase in _phrases() if phrase in flat and f" {phrase} " in f" {flat} "]
    if any(is_dense(line) for line in text.splitlines()):
        found += [word for word in dense if word in text]
    return found


@cache
def _swear_words() -> tuple[frozenset[str], tuple[str, ...]]:
    """Single words, and those of Chinese."""
    entries = _entries()
    dense = [word for word in entries["chinese"] if re.fullmatch(f"[{DENSE}]{{2,}}", word)]
    # Longer ones that hold a shorter one find nothing more.
    minimal = [word for word in dense if not any(other in word for other in dense if other != word)]
    return frozenset(word for word in entries["english"] if len(units(word)) == 1), tuple(minimal)


@cache
def _phrases() -> tuple[str, ...]:
    """English entries of several words."""
    return tuple(" ".join(units(word)) for word in _entries()["english"] if len(units(word)) > 1)


@cache
def _entries() -> dict[str, list[str]]:
    from glin_profanity.data.dictionary import DictionaryLoader

    loader = DictionaryLoader()
    return {
        language: sorted({word.casefold().strip() for word in loader.get_words(language)} - _ORDINARY)
        for language in ("english", "chinese")
    }


def _says_something(text: str) -> bool:
    """Whether there is a letter, a digit, or a sign such as an emoji."""
    return any(unicodedata.category(sign)[0] in "LNS" for sign in text)
