"""Questions about a short note that does, or does not, hold the answer."""

from __future__ import annotations

from random import Random

from data_prep.samples import phrases
from data_prep.samples.families.common import NAMES, NAMES_ZH, WEEKDAYS, WEEKDAYS_ZH
from data_prep.samples.tasks import Family, Task, Template

_JOBS = ("dentist", "plumber", "piano teacher", "lawyer", "optician", "vet")
_MISSING = (  # what is asked about, inventions, the same in a full sentence
    ("phone number", ("555 0142", "555 0178", "555 0199"), "The phone number of {w} is {v}."),
    ("email address", ("info@mail.com", "desk@post.net", "hello@web.org"), "The email address of {w} is {v}."),
    ("age", ("34", "47", "52"), "According to the note, {w} is {v} years old."),
    ("street", ("Mill Road", "Park Lane", "High Street"), "The note says that {w} lives on {v}."),
    ("birthday", ("3 May", "12 June", "9 March"), "The birthday of {w} is on {v}."),
)
_MISSING_ZH = (
    ("电话号码", ("5550142", "5550178")),
    ("年龄", ("三十四岁", "四十七岁")),
    ("生日", ("五月三日", "六月十二日")),
    ("住址", ("中山路十号", "和平街八号")),
)
_UNKNOWN = (
    "The note does not say what the {x} is.",
    "I don't know, because the note does not mention the {x}.",
    "The {x} is not given in the note, so I can't say.",
    "That is not stated: the note does not include the {x}.",
    "I can't tell from the note; the {x} is not mentioned.",
    "I don't know the {x}.",
)
_UNKNOWN_ZH = ("便条里没有提到{x}。", "我不知道，便条没有写{x}。", "从便条上无法得知{x}。", "我不知道{x}。")
_ASKED = (
    "What is the {x} of {w}?",
    "Going by the note, what is the {x} of {w}?",
    "Read the note. What is the {x} of {w}?",
)


def _note(rng: Random) -> tuple[str, str, str, int]:
    """A note about an appointment, and who, which weekday and hour it names."""
    who, job, day, hour = rng.choice(NAMES), rng.choice(_JOBS), rng.randrange(7), rng.randint(8, 18)
    return f"Note: see {who}, the {job}, on {WEEKDAYS[day]} at {hour}:00.", who, WEEKDAYS[day], hour


def _missing(rng: Random) -> Task:
    note, who, _, _ = _note(rng)
    what, inventions, sentence = rng.choice(_MISSING)
    made_up, other = rng.sample(inventions, 2)
    return Task(
        prompt=rng.choice(_ASKED).format(x=what, w=who),
        context=note,
        answer=rng.choice(_UNKNOWN).format(x=what),
        check={"admits_unknown": True, "contains_none": list(inventions), "max_words": 24, "language": "en"},
        faults={
            "invented_fact": [
                made_up,
                sentence.format(w=who, v=made_up),
                f"It is {other}, as the note for {who} shows.",
            ],
            "wrong_language": [f"{who}的资料是{made_up}。"],
            "ignored_format": [note],
        },
        key=note,
    )


def _present(rng: Random) -> Task:
    """The same notes, with a question that they do answer."""
    note, who, day, hour = _note(rng)
    on_day = rng.random() < 0.5
    right = day if on_day else f"{hour}:00"
    what, wrong = ("day", WEEKDAYS[(WEEKDAYS.index(day) + 2) % 7]) if on_day else ("time", f"{hour + 2}:00")
    full = rng.choice(("The appointment with {w} is {p} {v}.", "According to the note it is {p} {v}."))
    preposition = "on" if on_day else "at"
    doubts = [text.format(x=f"{what} of the appointment") for text in rng.sample(_UNKNOWN, 3)]
    bound = {"max_words": 14, "admits_unknown": False}
    return Task(
        prompt=rng.choice(
            (f"On which day is the appointment with {who}?",)
            if on_day
            else (f"At what time is the appointment with {who}?",)
        ),
        context=note,
        answer=full.format(w=who, p=preposition, v=right),
        check={"contains_all": [right if on_day else [right, f"{hour} o'clock"]], "contains_none": [wrong]} | bound,
        faults={
            "needless_doubt": doubts,
            "wrong_fact": [full.format(w=who, p=preposition, v=wrong)],
        },
        key=note,
    )


def _missing_zh(rng: Random) -> Task:
    who, day = rng.choice(NAMES_ZH), rng.choice(WEEKDAYS_ZH)
    what, inventions = rng.choice(_MISSING_ZH)
    made_up = rng.choice(inventions)
    note = f"便条：{day}和{who}见面。"
    return Task(
        prompt=f"{who}的{what}是什么？",
        context=note,
        answer=rng.choice(_UNKNOWN_ZH).format(x=what),
        check={"admits_unknown": True, "contains_none": list(inventions), "max_chars": 40, "language": "zh"},
        faults={
            "invented_fact": [f"{made_up}。", f"{who}的{what}是{made_up}。"],
            "wrong_language": [f"It is {rng.choice(('the one on the card', 'easy to guess'))}."],
        },
        key=note + what,
    )


def _present_zh(rng: Random) -> Task:
    who, index = rng.choice(NAMES_ZH), rng.randrange(7)
    day, wrong = WEEKDAYS_ZH[index], WEEKDAYS_ZH[(index + 1) % 7]
    note = f"便条：{day}和{who}见面。"
    return Task(
        prompt=f"和{who}见面是星期几？",
        context=note,
        answer=f"和{who}见面是{day}。",
        check={"contains_all": [[day, day.replace("星期", "周")]], "contains_none": [wrong], "admits_unknown": False}
        | {"max_chars": 20},
        faults={
            "needless_doubt": [text.format(x="日期") for text in _UNKNOWN_ZH],
            "wrong_fact": [f"和{who}见面是{wrong}。"],
            "wrong_language": [f"The meeting is on {WEEKDAYS[index]}."],
        },
        key=note,
    )


def _list_missing(rng: Random) -> Task:
    """Held out: a price list that lacks the thing asked for."""
    (a, x), (b, y) = rng.sample((("tea", 3), ("juice", 4), ("soup", 6), ("cake", 5), ("toast", 2)), 2)
    wanted = rng.choice(("coffee", "salad", "pie", "milk"))
    note = f"Menu: {a} {x} euros, {b} {y} euros."
    price = rng.choice((7, 8, 9))
    answers = (
        f"The menu does not say what {wanted} costs.",
        f"I don't know; {wanted} is not mentioned on the menu.",
        f"The price of {wanted} is not given.",
    )
    return Task(
        prompt=rng.choice((f"How much does {wanted} cost?", f"What is the price of {wanted}?")),
        context=note,
        answer=rng.choice(answers),
        check={"admits_unknown": True, "regex": r"^\D*$", "max_words": 24, "language": "en"},
        faults={
            "invented_fact": [f"{price} euros.", f"On this menu, {wanted} costs {price} euros."],
            "wrong_language": [f"价格是{price}欧元。"],
            "needless_doubt": [phrases.hedge(rng, "en", f"{price} euros", f"{price + 1} euros")],
        },
        key=note + wanted,
    )


FAMILY = Family(
    name="unknown",
    over_refused={"en": "questions about notes", "zh": "阅读便条"},
    templates=(
        Template(id="unknown.missing", language="en", draw=_missing, rows=18),
        Template(id="unknown.present", language="en", draw=_present, rows=14),
        Template(id="unknown.menu", language="en", draw=_list_missing, rows=7, held_out=True),
        Template(id="unknown.missing_zh", language="zh", draw=_missing_zh, rows=6),
        Template(id="unknown.present_zh", language="zh", draw=_present_zh, rows=5),
    ),
)
