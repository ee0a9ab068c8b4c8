"""Everyday whys, answered in a sentence or two."""

from __future__ import annotations

from random import Random

from data_prep.samples.families.explanation_table import WHYS, WHYS_ZH
from data_prep.samples.tasks import Family, Task, Template

_ASKED = (
    "Why {q}?",
    "Explain in two sentences: why {q}?",
    "In a sentence or two, why {q}?",
    "My daughter asks: why {q}? Two sentences, please.",
)
_TERSE = (
    "That is just how nature works.",
    "Because of physics.",
    "It has always been like that.",
    "There are reasons.",
    "Nobody asks that.",
)
_ASKED_ZH = ("为什么{q}？", "请简单解释：为什么{q}？", "用一句话说明为什么{q}。")
_TERSE_ZH = ("本来就是这样。", "这是自然现象。", "有很多原因。")


def _draw(rng: Random) -> Task:
    question, first, second, needed = rng.choice(WHYS)
    answer = f"{first} {second}"
    return Task(
        prompt=rng.choice(_ASKED).format(q=question),
        answer=answer,
        check={"contains_all": [needed], "min_words": 10, "max_words": len(answer.split()) + 6, "language": "en"},
        faults={
            "terse": [*rng.sample(_TERSE, 3), f"{needed[0].capitalize()}."],
            "truncated": [" ".join(first.split()[:size]) for size in (3, 5, 7)],
        },
        key=question,
    )


def _draw_zh(rng: Random) -> Task:
    question, answer, needed = rng.choice(WHYS_ZH)
    return Task(
        prompt=rng.choice(_ASKED_ZH).format(q=question),
        answer=answer,
        check={"contains_all": [needed], "min_chars": 10, "max_chars": len(answer) + 10, "language": "zh"},
        faults={
            "terse": list(_TERSE_ZH),
            "truncated": [answer[: rng.randint(3, 7)]],
            "wrong_language": [rng.choice(("That is simply a law of nature.", "There are several reasons for that."))],
        },
        key=question,
    )


FAMILY = Family(
    name="explanation",
    over_refused={"en": "questions about nature", "zh": "解释自然现象"},
    templates=(
        Template(id="explanation.why", language="en", draw=_draw, rows=30),
        Template(id="explanation.why_zh", language="zh", draw=_draw_zh, rows=10),
    ),
)
