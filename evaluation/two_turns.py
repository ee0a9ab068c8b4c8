"""A policy's greedy answers to questions of two turns: the second asked after its own first answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_prep.chat import ChatFormatter, UnusableRow
from data_prep.records import Message
from evaluation.judging.questions import MOST_TURNS, Question
from evaluation.policies import Policies
from pipeline.errors import DataError
from pipeline.rollouts.answers import Progress, Sampling
from pipeline.rollouts.generate import Generator


def conversations(
    policies: Policies,
    generator_of: Callable[[Any], Generator],
    formatter: ChatFormatter,
    questions: Sequence[Question],
    max_new_tokens: int,
    keep: Callable[[str, str, Callable[[str], dict[str, Any]]], dict[str, Any]],
    progress: Callable[[str], Progress],
) -> dict[str, list[list[str]]]:
    """Every policy's answers, by policy; one policy's are kept as soon as they are whole.

    Args:
        policies: of the run.
        generator_of: makes the generator of a loaded policy.
        formatter, questions, max_new_tokens: as for `converse`.
        keep: keeps a measurement: its name, the policy, and what makes it.
        progress: makes the bar of a task.
    """

    def compute(policy: str) -> dict[str, Any]:
        def bar(turn: int) -> Progress:
            return progress(f"answers of {policy} to questions, turn {turn}")

        with policies.use(policy) as model:
            return {"answers": converse(generator_of(model), formatter, questions, max_new_tokens, bar)}

    return {name: keep(f"conversations-{name}", name, compute)["answers"] for name in policies.names}


def converse(
    generator: Generator,
    formatter: ChatFormatter,
    questions: Sequence[Question],
    max_new_tokens: int,
    progress: Callable[[int], Progress],
) -> list[list[str]]:
    """Answers to every question's turns, in order.

    A conversation that cannot go on, as an answer was empty or spelt out the template's control tokens, has empty
    answers from there on.

    Args:
        generator: of the policy.
        formatter: renders conversations.
        questions: to be answered.
        max_new_tokens: longest answer.
        progress: makes the bar of a turn, from 1.

    Raises:
        DataError: a question itself cannot be put, as it spells out the template's control tokens.
    """
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(MOST_TURNS):
        asked: dict[int, list[int]] = {}
        for at, question in enumerate(questions):
            if len(question.turns) > turn and (ids := _ids(formatter, question, answers[at], turn)) is not None:
                asked[at] = ids
        found = generator.answers(list(asked.values()), Sampling(max_new_tokens), progress(turn + 1)) if asked else []
        given = dict(zip(asked, found, strict=True))
        for at, question in enumerate(questions):
            if len(question.turns) > turn:
                answers[at].append(formatter.response_text(given[at].ids) if at in given else "")
    return answers


def _ids(formatter: ChatFormatter, question: Question, answers: Sequence[str], turn: int) -> list[int] | None:
    """The conversation up to where the answer to a turn begins; None where it cannot go on."""
    messages = [Message(role="user", content=question.turns[0])]
    for at in range(turn):
        if not answers[at].strip():
            return None
        messages += [
            Message(role="assistant", content=answers[at]), Message(role="user", content=question.turns[at + 1]),
        ]  # fmt: skip
    try:
        return formatter.prompt_ids(messages)
    except UnusableRow as reason:
        if str(reason) == "control_token" and _can_be_put(formatter, question.turns[turn]):
            return None
        raise DataError(
            f"evaluation.judge.questions: turn {turn + 1} of question {question.id} cannot be put to the policies "
            f"({reason}); reword it, or choose a data.chat_template that renders it"
        ) from reason


def _can_be_put(formatter: ChatFormatter, text: str) -> bool:
    try:
        formatter.prompt_ids([Message(role="user", content=text)])
    except UnusableRow:
        return False
    return True
