"""Weekdays and calendar dates."""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from random import Random

from data_prep.samples import phrases
from data_prep.samples.families.common import ONE_WORD, WEEKDAYS, WEEKDAYS_ZH, brief_bound, numeric
from data_prep.samples.tasks import Family, Task, Template


def english_date(day: date) -> str:
    """5 March 2024."""
    return f"{day.day} {day:%B} {day.year}"


def chinese_date(day: date) -> str:
    """2024年3月5日."""
    return f"{day.year}年{day.month}月{day.day}日"


def _some_day(rng: Random) -> date:
    return date(2024, 1, 1) + timedelta(days=rng.randrange(3 * 365))


def _weekday(rng: Random) -> Task:
    start, ahead = rng.randrange(7), rng.randint(2, 20)
    right, wrong = (start + ahead) % 7, (start + ahead + rng.choice((1, 2, -1))) % 7
    one_word = rng.random() < 0.5
    asked = rng.choice(
        (
            f"Today is {WEEKDAYS[start]}. Which day of the week is it in {ahead} days?",
            f"If it is {WEEKDAYS[start]} today, what weekday comes {ahead} days later?",
        )
    )
    sentence = f"In {ahead} days it will be {{}}."
    faults = {
        "wrong_fact": [WEEKDAYS[wrong] if one_word else sentence.format(WEEKDAYS[wrong])],
        "needless_doubt": [phrases.hedge(rng, "en", WEEKDAYS[right], WEEKDAYS[wrong])],
        "wrong_language": [WEEKDAYS_ZH[right] if one_word else f"{ahead}天后是{WEEKDAYS_ZH[right]}。"],
        "ignored_format": [
            f"Counting forward one day at a time, all the way through {ahead} days, you land on a {WEEKDAYS[right]}."
            if one_word
            else WEEKDAYS[right]
        ],
    }
    bound = brief_bound("en") if one_word else {"min_words": 4, "max_words": 14}
    return Task(
        prompt=f"{asked} {rng.choice(ONE_WORD['en']) if one_word else 'Answer in a full sentence.'}",
        answer=WEEKDAYS[right] if one_word else sentence.format(WEEKDAYS[right]),
        check={"label": WEEKDAYS[right], "labels": list(WEEKDAYS)} | bound,
        faults=faults,
        key=f"{start}+{ahead}",
    )


def _weekday_zh(rng: Random) -> Task:
    start, ahead = rng.randrange(7), rng.randint(2, 12)
    right, wrong = (start + ahead) % 7, (start + ahead + rng.choice((1, 2, -1))) % 7
    alias = [WEEKDAYS_ZH[right], WEEKDAYS_ZH[right].replace("星期", "周")]
    alias += ["星期天", "周天"] if right == 6 else []
    asked = (
        f"今天是{WEEKDAYS_ZH[start]}，{ahead}天后是星期几？",
        f"如果今天是{WEEKDAYS_ZH[start]}，再过{ahead}天是星期几？",
    )
    return Task(
        prompt=rng.choice(asked),
        answer=f"{ahead}天后是{WEEKDAYS_ZH[right]}。",
        check={"one_of": alias, "max_chars": 18},
        faults={
            "wrong_fact": [f"{ahead}天后是{WEEKDAYS_ZH[wrong]}。"],
            "needless_doubt": [phrases.hedge(rng, "zh", WEEKDAYS_ZH[right], WEEKDAYS_ZH[wrong])],
            "wrong_language": [f"In {ahead} days it will be {WEEKDAYS[right]}."],
        },
        key=f"{start}+{ahead}",
    )


def _later(rng: Random) -> Task:
    start, ahead = _some_day(rng), rng.randint(3, 25)
    right = start + timedelta(days=ahead)
    wrong = right + timedelta(days=rng.choice((1, -1, 2, 10)))
    iso = rng.random() < 0.4
    form = "Use the form YYYY-MM-DD." if iso else "Give day, month and year."
    shown = str if iso else english_date
    asked = rng.choice(("What is the date {n} days after {d}?", "Which date comes {n} days after {d}?"))
    check = {"date": str(right), "given": [str(start)], "max_words": 14}
    prose = f"Start from {english_date(start)} and count forward, day after day, until you reach {english_date(right)}."
    return Task(
        prompt=f"{asked.format(n=ahead, d=english_date(start))} {form}",
        answer=shown(right),
        check=check | ({"regex": r"\d{4}-\d\d-\d\d"} if iso else {"language": "en"}),
        faults={
            "wrong_fact": [shown(wrong)],
            "ignored_format": [prose, english_date(right)] if iso else [prose],
            "wrong_language": [f"是{chinese_date(right)}。"],
            "needless_doubt": [phrases.hedge(rng, "en", english_date(right), english_date(wrong))],
        },
        key=f"{start}+{ahead}",
    )


def _later_zh(rng: Random) -> Task:
    start, ahead = _some_day(rng), rng.randint(3, 20)
    right = start + timedelta(days=ahead)
    wrong = right + timedelta(days=rng.choice((1, -1, 2)))
    return Task(
        prompt=f"{chinese_date(start)}之后{ahead}天是哪一天？",
        answer=f"是{chinese_date(right)}。",
        check={"date": str(right), "given": [str(start)], "language": "zh", "max_chars": 26},
        faults={
            "wrong_fact": [f"是{chinese_date(wrong)}。"],
            "needless_doubt": [phrases.hedge(rng, "zh", chinese_date(right), chinese_date(wrong))],
            "wrong_language": [f"It is {english_date(right)}."],
        },
        key=f"{start}+{ahead}",
    )


def _between(rng: Random) -> Task:
    start = _some_day(rng)
    start = start.replace(day=min(start.day, 15))
    apart = rng.randint(3, 13)
    end = start + timedelta(days=apart)
    return numeric(
        rng,
        "en",
        question=f"How many days are there from {start.day} {start:%B} to {end.day} {end:%B}?",
        value=apart,
        given=[start.day, end.day],
        sentence=f"There are {{}} days from {start.day} {start:%B} to {end.day} {end:%B}.",
        working=f"Going through the calendar day by day between {start.day} and {end.day} comes out at {apart}.",
        foreign=f"从{start.month}月{start.day}日到{end.month}月{end.day}日有{{}}天。",
        key=f"{start.day}-{end.day}",
    )


def _month_length(rng: Random) -> Task:
    year, month = rng.randint(2019, 2031), rng.randint(1, 12)
    days = calendar.monthrange(year, month)[1]
    name = calendar.month_name[month]
    return numeric(
        rng,
        "en",
        question=f"How many days does {name} {year} have?",
        value=days,
        given=[year],
        sentence=f"{name} {year} has {{}} days.",
        working=f"Months differ in length and leap years matter, but for {name} {year} we count {days} days.",
        foreign=f"{year}年{month}月有{{}}天。",
        key=f"{year}-{month}",
    )


FAMILY = Family(
    name="dates",
    over_refused={"en": "questions about the calendar", "zh": "推算日期"},
    templates=(
        Template(id="dates.weekday", language="en", draw=_weekday, rows=14),
        Template(id="dates.later", language="en", draw=_later, rows=12),
        Template(id="dates.between", language="en", draw=_between, rows=6),
        Template(id="dates.month_length", language="en", draw=_month_length, rows=6, held_out=True),
        Template(id="dates.weekday_zh", language="zh", draw=_weekday_zh, rows=5),
        Template(id="dates.later_zh", language="zh", draw=_later_zh, rows=4),
    ),
)
