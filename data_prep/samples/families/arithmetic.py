"""Sums, small word problems and percentages."""

from __future__ import annotations

from random import Random

from data_prep.samples.families.common import NAMES, NAMES_ZH, numeric
from data_prep.samples.tasks import Family, Task, Template, numeral

_THINGS = ("marbles", "stickers", "coins", "shells", "postcards", "buttons", "pencils", "badges")
_THINGS_ZH = (("个苹果", "apples"), ("本书", "books"), ("支铅笔", "pencils"), ("张邮票", "stamps"), ("颗糖", "sweets"))


def _operation(rng: Random) -> tuple[int, int, str, str, str, int]:
    """Two numbers, the operation's sign and its name in English and Chinese, and the result."""
    sign = rng.choice("+-×÷")
    if sign == "+":
        a, b = rng.randint(12, 89), rng.randint(12, 89)
        return a, b, sign, "plus", "加", a + b
    if sign == "-":
        a, b = rng.randint(50, 99), rng.randint(11, 48)
        return a, b, sign, "minus", "减", a - b
    a, b = rng.randint(3, 12), rng.randint(3, 12)
    return (a, b, sign, "times", "乘以", a * b) if sign == "×" else (a * b, b, sign, "divided by", "除以", a)


def _expression(rng: Random) -> Task:
    a, b, sign, name, name_zh, value = _operation(rng)
    asked = rng.choice((f"What is {a} {sign} {b}?", f"Work out {a} {name} {b}.", f"How much is {a} {name} {b}?"))
    return numeric(
        rng,
        "en",
        question=asked,
        value=value,
        given=[a, b],
        sentence=f"{a} {name} {b} is {{}}.",
        working=f"To work this out, we take the number {a} and then look at {b}, and in the end we arrive at {value}.",
        foreign=f"{a}{name_zh}{b}等于{{}}。",
        key=f"{a}{sign}{b}",
        calculation=f"{a} {sign} {b} = {{}}",
        so="the answer is {}.",
    )


def _expression_zh(rng: Random) -> Task:
    a, b, sign, name, name_zh, value = _operation(rng)
    return numeric(
        rng,
        "zh",
        question=rng.choice((f"{a}{name_zh}{b}等于多少？", f"请计算 {a} {sign} {b}。", f"{a}{name_zh}{b}是几？")),
        value=value,
        given=[a, b],
        sentence=f"{a}{name_zh}{b}等于{{}}。",
        working=f"要算出结果，我们先看{a}，再看{b}，一步一步算下来得到{value}。",
        foreign=f"{a} {name} {b} is {{}}.",
        key=f"{a}{sign}{b}",
        calculation=f"{a} {sign} {b} = {{}}",
        so="答案是{}。",
    )


def _change(rng: Random) -> Task:
    who, things = rng.choice(NAMES), rng.choice(_THINGS)
    a, b = rng.randint(25, 80), rng.randint(6, 24)
    more = rng.random() < 0.5
    value = a + b if more else a - b
    event = rng.choice(("finds {b} more", "buys {b} more") if more else ("gives away {b}", "loses {b}")).format(b=b)
    return numeric(
        rng,
        "en",
        question=f"{who} has {a} {things} and {event}. How many {things} does {who} have now?",
        value=value,
        given=[a, b],
        sentence=f"{who} now has {{}} {things}.",
        working=f"{who} starts out with {a} {things}, then {event}, so counting it all up step by step leaves {value}.",
        foreign=f"{who}现在有{{}}个。",
        key=f"{a}{'+' if more else '-'}{b}",
        calculation=f"{a} {'+' if more else '-'} {b} = {{}}",
    )


def _change_zh(rng: Random) -> Task:
    who, (things, english) = rng.choice(NAMES_ZH), rng.choice(_THINGS_ZH)
    a, b = rng.randint(20, 60), rng.randint(5, 19)
    return numeric(
        rng,
        "zh",
        question=f"{who}有{a}{things}，送给朋友{b}{things[0]}，还剩多少{things}？",
        value=a - b,
        given=[a, b],
        sentence=f"{who}还剩{{}}{things}。",
        working=f"{who}原来有{a}{things}，后来送出去{b}{things[0]}，这样一步步算下来是{a - b}。",
        foreign=f"There are {{}} {english} left.",
        key=f"{a}-{b}",
        calculation=f"{a} - {b} = {{}}",
    )


def _shopping(rng: Random) -> Task:
    what = rng.choice(("notebook", "sandwich", "ticket", "candle", "mug", "plant", "poster"))
    price, count = rng.randint(3, 15), rng.randint(3, 9)
    return numeric(
        rng,
        "en",
        question=f"One {what} costs {price} dollars. How many dollars do {count} of them cost?",
        value=price * count,
        given=[price, count],
        sentence=f"{count} of them cost {{}} dollars.",
        working=f"Each {what} is {price} dollars, and since there are {count} of them you pay {price * count} dollars.",
        foreign="一共要{}美元。",
        key=f"{price}×{count}",
        calculation=f"{count} × {price} = {{}}",
    )


def _percent(rng: Random) -> Task:
    share, whole = rng.choice((5, 10, 20, 25, 50)), rng.choice(range(40, 400, 20))
    value = share * whole / 100
    return numeric(
        rng,
        "en",
        question=rng.choice((f"What is {share}% of {whole}?", f"How much is {share} percent of {whole}?")),
        value=int(value) if value == int(value) else value,
        given=[share, whole],
        sentence=f"{share}% of {whole} is {{}}.",
        working=f"A percentage is a part of a hundred, so with {share} out of each hundred of {whole} "
        f"we end up at {numeral(value)}.",
        foreign=f"{whole}的{share}%是{{}}。",
        key=f"{share}%{whole}",
    )


FAMILY = Family(
    name="arithmetic",
    over_refused={"en": "sums like this", "zh": "做计算"},
    templates=(
        Template(id="arithmetic.expression", language="en", draw=_expression, rows=14),
        Template(id="arithmetic.change", language="en", draw=_change, rows=12),
        Template(id="arithmetic.shopping", language="en", draw=_shopping, rows=8),
        Template(id="arithmetic.percent", language="en", draw=_percent, rows=6, held_out=True),
        Template(id="arithmetic.expression_zh", language="zh", draw=_expression_zh, rows=6),
        Template(id="arithmetic.change_zh", language="zh", draw=_change_zh, rows=5),
    ),
)
