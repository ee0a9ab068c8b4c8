"""Pulling fields out of a sentence into JSON, and the way back: a record told as a sentence."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from data_prep.samples.families.common import NAMES, NAMES_ZH, WEEKDAYS, WEEKDAYS_ZH
from data_prep.samples.tasks import Family, Task, Template

CITIES = (("Oslo", "奥斯陆"), ("Lisbon", "里斯本"), ("Prague", "布拉格"), ("Vienna", "维也纳"), ("Dublin", "都柏林"))
CITIES_ZH = ("北京", "上海", "成都", "杭州", "西安")
_GOODS = (
    ("chair", "椅子"),
    ("lamp", "台灯"),
    ("desk", "书桌"),
    ("teapot", "茶壶"),
    ("blanket", "毯子"),
    ("clock", "时钟"),
)
_EVENTS = (("chess club", "象棋社"), ("yoga class", "瑜伽课"), ("book group", "读书会"), ("choir practice", "合唱排练"))
_FIELDS_ASKED = (
    "Extract {k} as JSON.",
    "Return a JSON object with the keys {k}.",
    "Turn this into JSON with the keys {k}.",
    "Give {k} as a JSON object.",
)


def _dumps(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)


def _keys(record: dict[str, Any]) -> str:
    *first, last = record
    return f"{', '.join(first)} and {last}"


def _json_task(
    rng: Random, source: str, record: dict[str, Any], wrong: dict[str, Any], extra: dict[str, Any], prose: str, zh: str
) -> Task:
    """Text to JSON in English. `prose` and `zh` tell the same record in words."""
    answer = _dumps(record)
    lines = "\n".join(f"{key} is {value}" for key, value in record.items())
    return Task(
        prompt=rng.choice(_FIELDS_ASKED).format(k=_keys(record)),
        context=source,
        answer=answer,
        check={"json": record},
        faults={
            "wrong_fact": [_dumps(record | wrong)],
            "invented_fact": [_dumps(record | extra)],
            "ignored_format": [prose, lines, ", ".join(str(value) for value in record.values())],
            "wrong_language": [zh],
        },
        key=answer,
    )


def _person(rng: Random) -> Task:
    name, age, (city, city_zh) = rng.choice(NAMES), rng.randint(19, 68), rng.choice(CITIES)
    job = rng.choice(("nurse", "baker", "teacher", "driver"))
    source = rng.choice(
        (
            f"{name} is {age} years old and works as a {job} in {city}.",
            f"Our new {job} is called {name}, aged {age}, from {city}.",
        )
    )
    return _json_task(
        rng,
        source,
        {"name": name, "age": age, "city": city},
        rng.choice(({"age": age + 2}, {"city": rng.choice([c for c, _ in CITIES if c != city])})),
        {"email": f"{name.lower()}@mail.com"},
        f"The person in the text is {name}, whose age is {age}, living in {city}.",
        f"姓名是{name}，年龄{age}岁，城市是{city_zh}。",
    )


def _order(rng: Random) -> Task:
    (item, item_zh), count, price = rng.choice(_GOODS), rng.randint(2, 9), rng.randint(8, 60)
    source = rng.choice(
        (
            f"Please send {count} {item}s at {price} euros each.",
            f"I would like to order {count} {item}s, {price} euros apiece.",
        )
    )
    return _json_task(
        rng,
        source,
        {"item": item, "quantity": count, "price": price},
        rng.choice(({"quantity": count + 1}, {"price": price + 5})),
        {"discount": 10},
        f"The customer wants {count} pieces of the {item} and pays {price} euros for each.",
        f"商品是{item_zh}，数量{count}，单价{price}欧元。",
    )


def _event(rng: Random) -> Task:
    (what, what_zh), day, hour = rng.choice(_EVENTS), rng.randrange(7), rng.randint(8, 20)
    source = f"The {what} meets on {WEEKDAYS[day]} at {hour}:00."
    return _json_task(
        rng,
        source,
        {"event": what, "day": WEEKDAYS[day], "time": f"{hour}:00"},
        {"day": WEEKDAYS[(day + 1) % 7]},
        {"room": "B12"},
        f"On {WEEKDAYS[day]} there is the {what}, and it begins at {hour}:00.",
        f"活动是{what_zh}，{WEEKDAYS_ZH[day]}，{hour}点。",
    )


def _person_zh(rng: Random) -> Task:
    name, age, city = rng.choice(NAMES_ZH), rng.randint(18, 60), rng.choice(CITIES_ZH)
    record = {"姓名": name, "年龄": age, "城市": city}
    return Task(
        prompt=rng.choice(("提取姓名、年龄、城市，写成JSON。", "用JSON给出姓名、年龄和城市。")),
        context=f"{name}今年{age}岁，住在{city}。",
        answer=_dumps(record),
        check={"json": record},
        faults={
            "wrong_fact": [_dumps(record | {"年龄": age + 3})],
            "invented_fact": [_dumps(record | {"职业": "医生"})],
            "ignored_format": [f"文中提到的是{name}，{age}岁，在{city}。", f"{name}、{age}、{city}"],
            "wrong_language": [f"The name is {name}, the age is {age}, the city is {city}."],
        },
        key=_dumps(record),
    )


def _told(rng: Random) -> Task:
    """The way back, so that JSON is not always the right form."""
    name, age, (city, city_zh) = rng.choice(NAMES), rng.randint(19, 68), rng.choice(CITIES)
    record = {"name": name, "age": age, "city": city}
    asked = ("Write this record as one sentence, not as JSON.", "Tell this record in one plain sentence.")
    sentences = (f"{name} is {age} years old and lives in {city}.", f"{name}, aged {age}, lives in {city}.")
    return Task(
        prompt=rng.choice(asked),
        context=_dumps(record),
        answer=rng.choice(sentences),
        check={"contains_all": [name, str(age), city], "contains_none": ["{", '"', "age:"], "max_sentences": 1}
        | {"grounded": _dumps(record), "max_words": 18, "language": "en"},
        faults={
            "wrong_fact": [f"{name} is {age + 4} years old and lives in {city}."],
            "invented_fact": [f"{name} is {age} years old and lives in {city} with {rng.choice((2, 3))} brothers."],
            "ignored_format": [_dumps(record), f"name: {name}\nage: {age}\ncity: {city}"],
            "wrong_language": [f"{name}今年{age}岁，住在{city_zh}。"],
        },
        key=_dumps(record),
    )


FAMILY = Family(
    name="extraction",
    over_refused={"en": "handling such data", "zh": "处理这些信息"},
    templates=(
        Template(id="extraction.person", language="en", draw=_person, rows=12),
        Template(id="extraction.order", language="en", draw=_order, rows=12),
        Template(id="extraction.event", language="en", draw=_event, rows=6, held_out=True),
        Template(id="extraction.told", language="en", draw=_told, rows=12),
        Template(id="extraction.person_zh", language="zh", draw=_person_zh, rows=9),
    ),
)
