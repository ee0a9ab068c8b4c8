"""Questions of one or two turns in MT-bench's form: JSON Lines of `question_id`, `category`, `turns`, `reference`.

Zheng et al. 2023, Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena (arXiv 2306.05685). Light: read at planning.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable import sha256_json
from pipeline.errors import DataError

MOST_TURNS = 2
_FORM = '{"question_id": 81, "category": "writing", "turns": ["first question", "second question"]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a user asks, and asks next."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]
    """A good answer to each turn; empty where the file has none."""


def read_questions(path: Path) -> list[Question]:
    """Read a file of questions.

    Raises:
        DataError: no such file, no question in it, or a line that is none; the sentence names it.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"evaluation.judge.questions: {path} cannot be read ({error}); expected JSON Lines like {_FORM}"
        ) from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    found = [_question(line, f"{path}:{number}") for number, line in lines]
    if not found:
        raise DataError(f"evaluation.judge.questions: {path} holds no question; expected JSON Lines like {_FORM}")
    seen: dict[str, int] = {}
    for (number, _), question in zip(lines, found, strict=True):
        if question.id in seen:
            raise DataError(
                f"{path}:{number}: question_id {question.id} stands in line {seen[question.id]} too; give each its own"
            )
        seen[question.id] = number
    return found


def questions_fingerprint(path: Path) -> str:
    """Hash of what is asked, wherever the file lies.

    Raises:
        DataError: as `read_questions`.
    """
    return sha256_json([[q.id, q.category, list(q.turns), list(q.references)] for q in read_questions(path)])


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON; expected one question per line, like {_FORM}") from error
    if not isinstance(row, dict) or not isinstance(row.get("question_id"), (int, str)):
        raise DataError(f"{where}: has no question_id; expected {_FORM}")
    turns = _texts(row.get("turns"))
    if turns is None or not 1 <= len(turns) <= MOST_TURNS or not all(turn.strip() for turn in turns):
        raise DataError(f"{where}: turns must be one or two texts, none of them empty; expected {_FORM}")
    references = _texts(row.get("reference") or [])
    if references is None or len(references) > len(turns):
        raise DataError(
            f"{where}: reference must be texts, no more than there are turns; leave it out where there is none"
        )
    return Question(
        id=str(row["question_id"]),
        category=str(row.get("category") or "all"),
        turns=turns,
        references=(*references, *[""] * (len(turns) - len(references))),
    )


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(one, str) for one in value) else None
