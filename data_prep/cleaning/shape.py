"""Numbers that describe the outside of an answer: word length, repeated lines and phrases, unusual signs, its end."""

from __future__ import annotations

import re
import unicodedata

from data_prep.cleaning.texts import MARKS, is_dense, ngrams, units, without_code

_ORDINARY = re.compile(
    rf"""[{MARKS}\w\s.,;:!?'"()\-–—…“”‘’´%$€£¥&@/、。，；：？！（）《》〈〉「」『』【】·～~°×÷=+*#>|]"""
)
_SHORTEST_FOR_SHARES = 20
"""Characters below which a share of signs says nothing: an answer may well be one emoji."""
_SHORTEST_LINE = 8
"""Shorter lines (a bracket, a rule of a table) repeat in good answers."""
_SHORTEST_FOR_REPETITION = 30
_PHRASE, _DENSE_PHRASE = 5, 10
_LONG_ENOUGH = 40
_ENDS = re.compile(r"""[.!?…:;。！？；：～~)\]}>"'”’»」』】）》*`|]\s*\Z|\#\w+\s*\Z""")
_ITEM = re.compile(r"^\s*(?:[-*•·–—>|#]|\(?\w{1,3}[.):、)])\s?")
_HANGING = re.compile(
    r"(?:[,，、;；:\-–—(（\[{]|\b(?:a|an|the|and|or|but|of|to|in|on|at|for|with|by|from|as|than|that|which|because|if|is|are|was|"
    r"were|its|their|your|our|my|this|these|those|such|into|through|between|will|can|could|should|would|may|might|must|be|been"
    r"|not|very|more|most)|[的和与及或把被在对从向给于让使]|因为|所以|但是|如果|以及|并且|例如)\s*\Z",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?。！？]")


def mean_word_length(text: str) -> float | None:
    """Mean length of what stands between spaces; None for short texts and for scripts without spaces."""
    plain = without_code(text)
    if len(plain.strip()) < _LONG_ENOUGH or is_dense(plain):
        return None
    found = plain.split()
    return sum(map(len, found)) / len(found)


def duplicate_lines(text: str) -> float:
    """Share of the lines (of some length) that repeat an earlier one; 0 below three lines."""
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORTEST_LINE]
    return 1 - len(set(lines)) / len(lines) if len(lines) >= 3 else 0.0


def repetition(text: str) -> float:
    """Share of the phrases (five words, ten characters without spaces) that repeat an earlier one."""
    found = units(text)
    if len(found) < _SHORTEST_FOR_REPETITION:
        return 0.0
    phrases = ngrams(found, _DENSE_PHRASE if is_dense(text) else _PHRASE)
    return 1 - len(set(phrases)) / len(phrases)


def special_characters(text: str) -> float:
    """Share of the visible characters that are neither letters, digits nor common punctuation, code left out."""
    visible = "".join(without_code(text).split())
    if len(visible) < _SHORTEST_FOR_SHARES:
        return 0.0
    return len(_ORDINARY.sub("", visible)) / len(visible)


def breaks_off(text: str) -> float:
    """How surely an answer was cut: 1 inside a code block, 0.9 on a word that needs another, 0.7 in a sentence.

    Lists, headings, names and short answers end without a full stop by right, so a missing one counts only at the end
    of running text whose earlier sentences have theirs. Verse and code are left alone.
    """
    if text.count("```") % 2:
        return 1.0
    stripped = text.rstrip()
    lines = [line for line in stripped.splitlines() if line.strip()]
    if not lines or _ENDS.search(stripped) or unicodedata.category(stripped[-1])[0] == "S":
        return 0.0
    last = lines[-1]
    dense = is_dense(last)
    long_enough = len(units(last)) >= (12 if dense else 8)
    if _is_code(last) or not long_enough:
        return 0.0
    if _HANGING.search(stripped) and not (dense and len(lines) > 1 and _is_verse(lines)):
        return 0.9
    if _is_verse(lines):
        return 0.0
    body = _ITEM.sub("", last)
    inner = _SENTENCE_END.search(body[:-1])
    others = [line for line in lines[:-1] if len(units(line)) >= 6]
    ended = sum(_ENDS.search(line) is not None for line in others)
    return 0.7 if inner or (others and ended > 0.6 * len(others) and not _is_list(lines)) else 0.0


def _is_verse(lines: list[str]) -> bool:
    """Several lines, most of them without an end mark: a poem, a list, a table."""
    return len(lines) > 2 and sum(_SENTENCE_END.search(line[-2:]) is None for line in lines) > 0.6 * len(lines)


def _is_list(lines: list[str]) -> bool:
    """Items that have no full stop at their end."""
    items = [line for line in lines if _ITEM.match(line)]
    return len(items) > 1 and any(_ENDS.search(item) is None for item in items[:-1])


def _is_code(line: str) -> bool:
    return bool(re.search(r"[{}=;]|\w\(|\(\w*\)|</?\w|::|->|^\s*(?:def|class|import|return|SELECT|INSERT)\b", line))
