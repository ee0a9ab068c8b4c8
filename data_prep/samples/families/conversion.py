"""Units: length, weight, time, volume, temperature."""

from __future__ import annotations

from random import Random

from data_prep.samples.families.common import numeric
from data_prep.samples.tasks import Family, Task, Template, numeral

# from, to, factor, from and to in Chinese, amounts asked for
_UNITS = (
    ("kilometres", "metres", 1000, "公里", "米", (2, 3, 4, 5, 7, 8, 9)),
    ("metres", "centimetres", 100, "米", "厘米", (3, 4, 6, 7, 8, 12, 15)),
    ("kilograms", "grams", 1000, "公斤", "克", (2, 3, 5, 6, 7, 9)),
    ("hours", "minutes", 60, "小时", "分钟", (2, 3, 4, 5, 6, 7, 8)),
    ("minutes", "seconds", 60, "分钟", "秒", (3, 4, 5, 6, 8, 9)),
    ("litres", "millilitres", 1000, "升", "毫升", (2, 3, 4, 6, 8)),
    ("weeks", "days", 7, "周", "天", (3, 4, 5, 6, 8, 9, 11)),
    ("days", "hours", 24, "天", "小时", (2, 3, 4, 5, 6)),
    ("feet", "inches", 12, "英尺", "英寸", (3, 4, 5, 6, 7, 8, 9)),
    ("years", "months", 12, "年", "个月", (2, 3, 4, 5, 6, 7)),
    ("dozen eggs", "eggs", 12, "打鸡蛋", "个鸡蛋", (2, 3, 4, 5, 6)),
)


def _down(rng: Random) -> Task:
    source, target, factor, source_zh, target_zh, amounts = rng.choice(_UNITS)
    amount = rng.choice(amounts)
    asked = (
        f"How many {target} are there in {amount} {source}?",
        f"Convert {amount} {source} to {target}.",
        f"{amount} {source} make how many {target}?",
    )
    return numeric(
        rng,
        "en",
        question=rng.choice(asked),
        value=amount * factor,
        calculation=f"{amount} × {factor} = {{}}",
        given=[amount, factor],
        sentence=f"There are {{}} {target} in {amount} {source}.",
        working=f"Units can be confusing at first, but if you go through all {amount} {source} one after another, "
        f"you get {amount * factor} {target}.",
        foreign=f"{amount}{source_zh}等于{{}}{target_zh}。",
        key=f"{amount} {source}",
    )


def _up(rng: Random) -> Task:
    source, target, factor, source_zh, target_zh, amounts = rng.choice(_UNITS[:9])
    amount = rng.choice(amounts)
    small = numeral(amount * factor)
    return numeric(
        rng,
        "en",
        question=rng.choice((f"Convert {small} {target} to {source}.", f"How many {source} are {small} {target}?")),
        value=amount,
        calculation=f"{small} ÷ {factor} = {{}}",
        given=[amount * factor, factor],
        sentence=f"{small} {target} are {{}} {source}.",
        working=f"Going from {target} to {source} means the number gets smaller, and when you do that carefully "
        f"you are left with {amount} {source}.",
        foreign=f"{small}{target_zh}等于{{}}{source_zh}。",
        key=f"{amount} {source}",
    )


def _down_zh(rng: Random) -> Task:
    source, target, factor, source_zh, target_zh, amounts = rng.choice(_UNITS)
    amount = rng.choice(amounts)
    return numeric(
        rng,
        "zh",
        question=rng.choice((f"{amount}{source_zh}等于多少{target_zh}？", f"把{amount}{source_zh}换算成{target_zh}。")),
        value=amount * factor,
        calculation=f"{amount} × {factor} = {{}}",
        given=[amount, factor],
        sentence=f"{amount}{source_zh}等于{{}}{target_zh}。",
        working=f"单位换算要看清楚两个单位的关系，{amount}{source_zh}慢慢算下来是{amount * factor}{target_zh}。",
        foreign=f"There are {{}} {target} in {amount} {source}.",
        key=f"{amount} {source}",
    )


def _temperature(rng: Random) -> Task:
    celsius = rng.choice(range(5, 65, 5))
    value = celsius * 9 // 5 + 32
    return numeric(
        rng,
        "en",
        question=f"What is {celsius} degrees Celsius in Fahrenheit?",
        value=value,
        given=[celsius],
        sentence=f"{celsius} degrees Celsius is {{}} degrees Fahrenheit.",
        working=f"Two scales are in use around the world, and after converting {celsius} from one scale to the other "
        f"you find {value}.",
        foreign=f"{celsius}摄氏度是{{}}华氏度。",
        key=f"{celsius} C",
    )


FAMILY = Family(
    name="conversion",
    over_refused={"en": "unit conversions", "zh": "换算单位"},
    templates=(
        Template(id="conversion.down", language="en", draw=_down, rows=20),
        Template(id="conversion.up", language="en", draw=_up, rows=14),
        Template(id="conversion.temperature", language="en", draw=_temperature, rows=6, held_out=True),
        Template(id="conversion.down_zh", language="zh", draw=_down_zh, rows=10),
    ),
)
