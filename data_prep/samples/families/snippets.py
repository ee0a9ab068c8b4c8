"""Short Python: what does it print, and which line does this."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from data_prep.samples import phrases
from data_prep.samples.families.common import brief_bound
from data_prep.samples.families.sorting import WORDS
from data_prep.samples.tasks import Family, Task, Template

_ASKED = (
    "What does this Python code print? Output only.",
    "Give the output of this Python code, nothing else.",
    "What is printed? Reply with the output only.",
)


def _output_task(rng: Random, source: str, right: str, wrong: str) -> Task:
    """The output is asked for bare, or in a sentence."""
    sentence = rng.random() < 0.35
    told = "The code prints {}."
    working = (
        f"The line runs from the inside to the outside, and once everything has been evaluated it shows {right} there."
    )
    tour = f"Python reads the code from top to bottom and then calls print on the value, namely {right}."
    bound: dict[str, Any] = {"min_words": 3, "max_words": 12, "language": "en"} if sentence else brief_bound("en")
    return Task(
        prompt="What does this Python code print? Answer in a short sentence." if sentence else rng.choice(_ASKED),
        context=source,
        answer=told.format(right) if sentence else right,
        check={"one_of": [right]} | ({"regex": re.escape(right)} if right.isupper() else {}) | bound,
        faults={
            "wrong_fact": [told.format(wrong) if sentence else wrong],
            "ignored_format": [right] if sentence else [working, tour],
            "needless_doubt": [phrases.hedge(rng, "en", right, wrong)],
        }
        | ({"wrong_language": [f"这段代码会打印出{right}。"]} if sentence else {}),
        key=source,
    )


def _text(rng: Random) -> Task:
    word = rng.choice(WORDS)
    call, right, wrong = rng.choice(
        (
            (f"len('{word}')", str(len(word)), str(len(word) + rng.choice((1, -1)))),
            (f"'{word}'.upper()", word.upper(), word.capitalize() + "s"),
            (f"'{word}'[0]", word[0], word[1]),
            (f"'{word}'[-1]", word[-1], word[-2] if word[-2] != word[-1] else "x"),
            (f"'{word}'[::-1]", word[::-1], word[::-1][1:]),
        )
    )
    return _output_task(rng, f"print({call})", right, wrong)


def _numbers(rng: Random) -> Task:
    a, b = rng.randint(3, 9), rng.randint(2, 6)
    values = rng.sample(range(2, 40), 4)
    call, value = rng.choice(
        (
            (f"sum(range({a}))", sum(range(a))),
            (f"max({values})", max(values)),
            (f"sorted({values})[0]", min(values)),
            (f"len({values})", 4),
            (f"{a * b + 1} % {a}", 1),
            (f"{a * 7} // {b}", a * 7 // b),
            (f"{a} ** 2", a**2),
            (f"abs({b - a - 9})", a + 9 - b),
        )
    )
    return _output_task(rng, f"print({call})", str(value), str(value + rng.choice((1, 2, 3))))


def _loop(rng: Random) -> Task:
    stop, step = rng.randint(3, 7), rng.choice((2, 3, 5))
    source = f"total = 0\nfor n in range({stop}):\n    total += {step}\nprint(total)"
    return _output_task(rng, source, str(stop * step), str((stop + rng.choice((1, -1))) * step))


_LINES = (
    ("reverses the list {v}", "{v}.reverse()", r"reverse\(|\[::-1\]|reversed\("),
    ("prints the length of the list {v}", "print(len({v}))", r"print\(\s*len\("),
    ("sorts the list {v} in place", "{v}.sort()", r"\.sort\("),
    ("adds 5 to the end of the list {v}", "{v}.append(5)", r"\.append\(\s*5\s*\)"),
    ("prints the largest number in {v}", "print(max({v}))", r"print\(\s*max\("),
    ("prints the sum of the list {v}", "print(sum({v}))", r"print\(\s*sum\("),
)


def _line(rng: Random) -> Task:
    name = rng.choice(("values", "scores", "prices", "items", "ages", "points"))
    what, line, pattern = rng.choice(_LINES)
    code, asked = line.format(v=name), what.format(v=name)
    other = rng.choice([text for _, text, _ in _LINES if text != line]).format(v=name)
    return Task(
        prompt=rng.choice(
            (f"Write one line of Python that {asked}. Code only.", f"Code only: a Python line that {asked}.")
        ),
        answer=code,
        check={"regex": pattern, "contains_all": [name], "max_words": 6},
        faults={
            "wrong_fact": [other],
            "ignored_format": [
                f"You would take {name} and call a built-in tool on it, which is easy to do in Python.",
                "One line is enough for that.",
            ],
            "wrong_language": [f"只要对{name}调用一个内置方法就可以了。"],
        },
        key=code,
    )


FAMILY = Family(
    name="code",
    over_refused={"en": "questions about code"},
    templates=(
        Template(id="code.text", language="en", draw=_text, rows=14),
        Template(id="code.numbers", language="en", draw=_numbers, rows=13),
        Template(id="code.line", language="en", draw=_line, rows=9),
        Template(id="code.loop", language="en", draw=_loop, rows=6, held_out=True),
    ),
)
