"""Formats in which answers to one prompt were compared: verdicts, votes, ranks and scores.

alpaca_eval, votes, tldr: two answers and who prefers which. ranked, ultrafeedback: several answers in an order, of
which all pairs are made. The answer to imitate is the best one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from data_prep.readers.demonstrations import Raw, alpaca_prompt, field, has, row_prompt
from data_prep.readers.faults import RowFault
from data_prep.readers.files import describe
from data_prep.readers.pairs import number_of
from data_prep.readers.turns import Pair, Parsed, Turns, answer_turn, check_prompt, text_of
from data_prep.records import Message

ANNOTATOR = re.compile(r"annotator_?\d+")
RANKED_FIELDS = ("output", "responses", "answers", "completions")
POST = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
ARTICLE = "Article:\n{article}\n\nTL;DR:"
"""The prompts of the summarisation papers (arXiv 2009.01325, appendix)."""


def parse_alpaca_eval(row: Raw) -> tuple[Parsed, ...]:
    """`output_1`, `output_2` and `preference` (or `label`): 1 or 2, a number between them for how sure, 1.5 for a tie.

    A number between is the judge's probability that the second is better: it gives margin and label noise.
    """
    prompt = _asked(row)
    answers = [text_of(field(row, name), name) for name in ("output_1", "output_2")]
    name = "preference" if has(row, "preference") or not has(row, "label") else "label"
    verdict = 0.0 if row.get(name) is None else number_of(row[name], name)
    if verdict and not 1 <= verdict <= 2:
        raise RowFault("wrong_type", f"`{name}` is {verdict:g}, expected 1, 2, or a number between them")
    if verdict in (0, 1.5):
        return _tie(prompt)
    first = verdict < 1.5
    sure = None if verdict in (1, 2) else abs(2 * verdict - 3)
    return _two(prompt, answers, first=first, margin=sure, noise=None if sure is None else (1 - sure) / 2)


def parse_votes(row: Raw) -> tuple[Parsed, ...]:
    """`response1`, `response2` and each annotator's vote, `annotator1` and so on: 1, 2, or 0 for a tie.

    The majority decides. With a votes for and b against of n, the margin is (a - b) / n, and the label noise what the
    others and half of the ties make: 1 - (a + ties / 2) / n.
    """
    prompt = _asked(row)
    answers = [_even_if_number(field(row, name), name) for name in ("response1", "response2")]
    names = [name for name in row if ANNOTATOR.fullmatch(name) and row[name] not in (None, "")]
    votes = [number_of(row[name], name) for name in names]
    if not votes or set(votes) - {0.0, 1.0, 2.0}:
        found = ", ".join(f"{name} {row[name]!r:.20}" for name in names) or "none"
        raise RowFault("wrong_type", f"the annotators' votes are {found}; expected 1, 2, or 0 for a tie")
    ahead = votes.count(1) - votes.count(2)
    if ahead == 0:
        return _tie(prompt)
    margin = abs(ahead) / len(votes)
    return _two(prompt, answers, first=ahead > 0, margin=margin, noise=(1 - margin) / 2)


def parse_tldr(row: Raw) -> tuple[Parsed, ...]:
    """`info` (a post or an article), `summaries`: two of {text}, and `choice`: 0 or 1, the better one."""
    info, summaries = field(row, "info"), field(row, "summaries")
    if not isinstance(info, Mapping):
        raise RowFault("wrong_type", f"`info` is {describe(info)}, expected an object with post or article")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise RowFault("wrong_type", f"`summaries` is {describe(summaries)}, expected a list of two summaries")
    texts = [_text_in(summary, f"summaries[{at}]", ("text",)) for at, summary in enumerate(summaries)]
    choice = number_of(field(row, "choice"), "choice")
    if choice not in (0, 1):
        raise RowFault("wrong_type", f"`choice` is {choice:g}, expected 0 or 1")
    asked = _user(_summary_prompt(info))
    return _two(asked, [text.strip() for text in texts], first=choice == 0, margin=None, noise=None)


def parse_ranked(row: Raw) -> tuple[Parsed, ...]:
    """A prompt and a list of answers, best first: strings, or objects of text and `rank` (1 is best) in any order."""
    name = next((name for name in RANKED_FIELDS if isinstance(row.get(name), list)), RANKED_FIELDS[0])
    written = field(row, name)
    if not isinstance(written, list):
        raise RowFault("wrong_type", f"`{name}` is {describe(written)}, expected a list of answers, best first")
    ranks: list[float] = []
    texts: list[str] = []
    for at, answer in enumerate(written):
        ranked = isinstance(answer, Mapping) and has(answer, "rank")
        ranks.append(number_of(answer["rank"], f"{name}[{at}].rank") if ranked else float(at))
        texts.append(_text_in(answer, f"{name}[{at}]", ("text", "answer", "response", "content")))
    return _ordered(_asked(row), texts, [-rank for rank in ranks], name, with_margin=False)


def parse_ultrafeedback(row: Raw) -> tuple[Parsed, ...]:
    """`instruction` and `completions`: a list of {response, and a score}; margins are differences of scores.

    The score is `fine-grained_score`, else the mean of the annotations' ratings, else `overall_score`, which the
    publishers found wrong in places (a 1 written as 10).
    """
    written = field(row, "completions")
    if not isinstance(written, list) or not all(isinstance(each, Mapping) for each in written):
        raise RowFault("wrong_type", f"`completions` is {describe(written)}, expected a list of {{response, score}}")
    texts = [_text_in(each, f"completions[{at}]", ("response",)) for at, each in enumerate(written)]
    scores = [_score(each, f"completions[{at}]") for at, each in enumerate(written)]
    return _ordered(_asked(row), texts, scores, "completions", with_margin=True)


def _score(completion: Mapping[str, Any], name: str) -> float:
    if has(completion, "fine-grained_score"):
        return number_of(completion["fine-grained_score"], f"{name}.fine-grained_score")
    annotations = completion.get("annotations")
    if isinstance(annotations, Mapping):
        rated = [aspect.get("Rating") for aspect in annotations.values() if isinstance(aspect, Mapping)]
        numbers = [number_of(each, f"{name} Rating") for each in rated if each not in (None, "", "N/A")]
        if numbers:
            return sum(numbers) / len(numbers)
    for key in ("overall_score", "score"):
        if has(completion, key):
            return number_of(completion[key], f"{name}.{key}")
    raise RowFault("missing_field", f"`{name}` has no score (fine-grained_score, annotations or overall_score)")


def _ordered(
    prompt: Turns, texts: Sequence[str], scores: Sequence[float], name: str, *, with_margin: bool
) -> tuple[Parsed, ...]:
    """All pairs of answers with different scores, the better one chosen."""
    if not texts:
        raise RowFault("empty_answer", f"`{name}` is empty")
    by_score = sorted(range(len(texts)), key=lambda at: (-scores[at], at))
    pairs = [
        Pair(
            chosen=answer_turn(texts[better]),
            rejected=answer_turn(texts[worse]),
            margin=scores[better] - scores[worse] if with_margin else None,
        )
        for better, worse in combinations(by_score, 2)
        if scores[better] > scores[worse]
    ]
    return (Parsed(prompt=prompt, answer=answer_turn(texts[by_score[0]]), pairs=tuple(pairs)),)


def _two(
    prompt: Turns, answers: Sequence[str], *, first: bool, margin: float | None, noise: float | None
) -> tuple[Parsed, ...]:
    chosen, rejected = (answer_turn(text) for text in (answers if first else reversed(answers)))
    pair = Pair(chosen=chosen, rejected=rejected, margin=margin, label_noise=noise)
    return (Parsed(prompt=prompt, answer=chosen, pairs=(pair,)),)


def _tie(prompt: Turns) -> tuple[Parsed, ...]:
    return (Parsed(prompt=prompt, answer=None, is_tie=True),)


def _asked(row: Raw) -> Turns:
    """The prompt as any comparison writes it: `prompt`, `instruction` with `input`, or `input` alone."""
    if has(row, "prompt"):
        prompt = row_prompt(row)
        check_prompt(prompt)
        return prompt
    return alpaca_prompt(row) if has(row, "instruction") else _user(text_of(field(row, "input"), "input"))


def _even_if_number(value: object, name: str) -> str:
    """An answer that a table has turned into a truth value or a number, as in PandaLM's, is its text again."""
    return str(value) if isinstance(value, bool | int | float) else text_of(value, name)


def _user(text: str) -> Turns:
    prompt = (Message(role="user", content=text),)
    check_prompt(prompt)
    return prompt


def _summary_prompt(info: Mapping[str, Any]) -> str:
    if has(info, "article") and not has(info, "post"):
        return ARTICLE.format(article=text_of(info["article"], "info.article").strip())
    parts = {name: text_of(info.get(name), f"info.{name}").strip() for name in ("subreddit", "title", "post")}
    if not parts["post"]:
        raise RowFault("empty_prompt", "`info` has neither post nor article")
    return POST.format(**parts)


def _text_in(value: object, name: str, keys: Sequence[str]) -> str:
    """An answer written as a string, or as an object with its text under one of the keys."""
    if isinstance(value, str):
        return text_of(value, name)
    if not isinstance(value, Mapping):
        raise RowFault("wrong_type", f"`{name}` is {describe(value)}, expected an answer")
    return text_of(field(value, *keys), f"{name}.{keys[0]}")
