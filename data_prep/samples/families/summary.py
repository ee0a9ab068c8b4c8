"""Given facts told in one sentence, nothing added."""

from __future__ import annotations

from random import Random

from data_prep.samples.families.common import NAMES, NAMES_ZH, WEEKDAYS, WEEKDAYS_ZH
from data_prep.samples.tasks import Family, Task, Template

_PLACES = (
    ("the town hall", "市政厅"),
    ("the old mill", "老磨坊"),
    ("the school gym", "学校体育馆"),
    ("the park", "公园"),
)
_EVENTS = (("a flea market", "跳蚤市场"), ("a poetry evening", "诗歌晚会"), ("a bicycle repair day", "自行车维修日"))
_PRODUCTS = (("kettle", "水壶"), ("tent", "帐篷"), ("keyboard", "键盘"), ("lamp", "台灯"), ("drill", "电钻"))
_ASKED = (
    "Summarise these facts in one sentence.",
    "Combine the facts into a single sentence.",
    "Write one sentence that covers these facts.",
    "Sum this up in one sentence, adding nothing.",
)


def _facts_task(
    rng: Random, facts: list[str], sentence: str, needed: list[str], changed: str, extra: str, zh: str, terse: list[str]
) -> Task:
    """`changed` gets one fact wrong, `extra` is a made-up ending (a name or a number) of the right sentence."""
    source = " ".join(facts)
    return Task(
        prompt=rng.choice(_ASKED),
        context=source,
        answer=sentence,
        check={"contains_all": needed, "max_sentences": 1, "max_words": len(sentence.split()) + 6}
        | {"grounded": source, "language": "en", "regex": r"^[^\n]*$"},
        faults={
            "wrong_fact": [changed],
            "invented_fact": [f"{sentence[:-1]}{extra}."],
            "ignored_format": ["\n".join(f"- {fact}" for fact in facts), " ".join(facts[::-1])],
            "wrong_language": [zh],
            "terse": terse,
        },
        key=source,
    )


def _event(rng: Random) -> Task:
    (what, what_zh), (place, place_zh) = rng.choice(_EVENTS), rng.choice(_PLACES)
    day, hour = rng.randrange(7), rng.randint(9, 19)
    other = WEEKDAYS[(day + 2) % 7]
    sentence = f"There is {what} at {place} on {WEEKDAYS[day]} from {hour}:00."
    made_up = (f", opened by Mayor {rng.choice(('Keller', 'Ortiz'))}", f", with about {rng.choice((200, 300))} guests")
    return _facts_task(
        rng,
        [f"There is {what}.", f"It is at {place}.", f"It starts on {WEEKDAYS[day]} at {hour}:00."],
        sentence,
        [what.split(" ", 1)[1], place.split(" ", 1)[1], WEEKDAYS[day]],
        sentence.replace(WEEKDAYS[day], other),
        rng.choice(made_up),
        f"{WEEKDAYS_ZH[day]}{hour}点在{place_zh}有{what_zh}。",
        ["An event.", f"Something on {WEEKDAYS[day]}.", f"It is at {place}."],
    )


def _product(rng: Random) -> Task:
    (what, what_zh), price, years = rng.choice(_PRODUCTS), rng.randint(20, 90), rng.randint(2, 5)
    weight = rng.choice((1, 2, 3))
    sentence = f"The {what} costs {price} euros, weighs {weight} kg and has a {years}-year guarantee."
    made_up = (
        f" and won a prize in {rng.choice((2015, 2019))}",
        " and is made in Denmark",
        " and was tested by Oxford",
    )
    return _facts_task(
        rng,
        [f"The {what} costs {price} euros.", f"It weighs {weight} kg.", f"The guarantee is {years} years."],
        sentence,
        [what, str(price), "guarantee"],
        sentence.replace(f"{price} euros", f"{price + 10} euros"),
        rng.choice(made_up),
        f"这款{what_zh}售价{price}欧元，重{weight}公斤，保修{years}年。",
        [f"A {what}.", f"It costs {price} euros.", "A product with a guarantee."],
    )


def _journey(rng: Random) -> Task:
    who, days = rng.choice(NAMES), rng.randint(3, 12)
    place, place_zh = rng.choice((("Rome", "罗马"), ("Kyoto", "京都"), ("Cairo", "开罗"), ("Lima", "利马")))
    how, how_zh = rng.choice((("train", "火车"), ("plane", "飞机"), ("ship", "轮船")))
    sentence = f"{who} travels to {place} by {how} and stays for {days} days."
    return _facts_task(
        rng,
        [f"{who} travels to {place}.", f"The journey is by {how}.", f"The stay lasts {days} days."],
        sentence,
        [who, place, how],
        sentence.replace(f"by {how}", f"by {'bus' if how != 'bus' else 'car'}"),
        rng.choice((" with Aunt Bertha", " at the Grand Hotel", " to write a book for Penguin")),
        f"{who}坐{how_zh}去{place_zh}，住{days}天。",
        [f"{who} travels.", "A journey.", f"A trip to {place}."],
    )


def _event_zh(rng: Random) -> Task:
    (_, what), (_, place), who = rng.choice(_EVENTS), rng.choice(_PLACES), rng.choice(NAMES_ZH)
    day, hour = rng.randrange(7), rng.randint(9, 19)
    sentence = f"{who}{WEEKDAYS_ZH[day]}{hour}点去{place}参加{what}。"
    english = next(e for e, z in _EVENTS if z == what)
    return Task(
        prompt=rng.choice(("用一句话概括。", "把这些信息合成一句话。", "请总结成一句话。")),
        context=f"{who}要参加{what}。地点是{place}。时间是{WEEKDAYS_ZH[day]}{hour}点。",
        answer=sentence,
        check={"contains_all": [who, what, place, str(hour)], "max_sentences": 1, "max_chars": len(sentence) + 8}
        | {"language": "zh"},
        faults={
            "wrong_fact": [sentence.replace(f"{hour}点", f"{hour + 2}点")],
            "invented_fact": [
                sentence.replace("。", f"，并在那里见到了{rng.choice(('市长', '老同学', '记者'))}和家人。")
            ],
            "ignored_format": [f"- {who}\n- {place}\n- {hour}点", f"地点：{place}。时间：{hour}点。人：{who}。"],
            "wrong_language": [f"On {WEEKDAYS[day]} at {hour}:00 there is {english}."],
            "terse": [f"{what}。"],
        },
        key=sentence,
    )


FAMILY = Family(
    name="summary",
    over_refused={"en": "summarising this", "zh": "总结这段话"},
    templates=(
        Template(id="summary.event", language="en", draw=_event, rows=16),
        Template(id="summary.product", language="en", draw=_product, rows=14),
        Template(id="summary.journey", language="en", draw=_journey, rows=7, held_out=True),
        Template(id="summary.event_zh", language="zh", draw=_event_zh, rows=9),
    ),
)
