"""Putting a short list in order."""

from __future__ import annotations

from random import Random

from data_prep.samples.families.common import list_task
from data_prep.samples.tasks import Family, Task, Template

WORDS = (
    *("apple", "basket", "candle", "dolphin", "eagle", "forest", "garden", "hammer", "island", "jacket"),
    *("kettle", "lemon", "mountain", "needle", "orange", "pencil", "quilt", "river", "saddle", "tiger"),
    *("umbrella", "violin", "window", "yellow", "zebra", "bridge", "carpet", "dragon", "engine", "feather"),
)
NUMBERS = range(2, 99)


def swapped(rng: Random, items: list[str]) -> list[str]:
    """The list with two neighbours exchanged: nearly right, so wrong."""
    place = rng.randrange(len(items) - 1)
    return [*items[:place], items[place + 1], items[place], *items[place + 2 :]]


def _numbers(rng: Random) -> Task:
    values = rng.sample(NUMBERS, rng.choice((4, 5)))
    down = rng.random() < 0.45
    items = [str(n) for n in sorted(values, reverse=down)]
    way = "from largest to smallest" if down else "from smallest to largest"
    asked = rng.choice(("Sort these numbers {w}.", "Put the numbers in order, {w}.", "Order the following {w}."))
    return list_task(
        rng,
        "en",
        question=asked.format(w=way),
        context=", ".join(map(str, values)),
        items=items,
        wrong=[swapped(rng, items), items[::-1]],
        prose=f"Going {way}, I would begin with {items[0]}, after which the rest follow until you end at {items[-1]}.",
        foreign=f"从{'大到小' if down else '小到大'}依次是{'、'.join(items)}。",
        key=",".join(sorted(items)),
    )


def _numbers_zh(rng: Random) -> Task:
    values = rng.sample(NUMBERS, 4)
    down = rng.random() < 0.5
    items = [str(n) for n in sorted(values, reverse=down)]
    way = "从大到小" if down else "从小到大"
    return list_task(
        rng,
        "zh",
        question=rng.choice((f"请把这些数字{way}排列。", f"将下列数字{way}排序。")),
        context="、".join(map(str, values)),
        items=items,
        wrong=[swapped(rng, items)],
        prose=f"如果{way}来看，应该先写{items[0]}，然后是其他几个数，最后写{items[-1]}。",
        foreign=f"In order, the numbers you gave are {', '.join(items)}.",
        key=",".join(sorted(items)),
    )


def _alphabet(rng: Random) -> Task:
    words = rng.sample(WORDS, 4)
    items = sorted(words)
    asked = ("Sort these words alphabetically.", "Put the words in alphabetical order.", "Order from A to Z.")
    return list_task(
        rng,
        "en",
        question=rng.choice(asked),
        context=", ".join(words),
        items=items,
        wrong=[swapped(rng, items)],
        prose=f"In the alphabet {items[0]} comes before the others, and the very last one would be {items[-1]}.",
        foreign=f"按字母顺序依次是{'、'.join(items)}。",
        key=",".join(items),
    )


def _by_length(rng: Random) -> Task:
    lengths = {len(word): word for word in rng.sample(WORDS, len(WORDS))}
    words = rng.sample(sorted(lengths.values()), 4)
    items = sorted(words, key=len)
    return list_task(
        rng,
        "en",
        question="Sort these words by length, shortest first.",
        context=", ".join(words),
        items=items,
        wrong=[swapped(rng, items)],
        prose=f"If we compare how long they are, {items[0]} is the shortest of all and {items[-1]} is the longest.",
        foreign=f"按长度从短到长依次是{'、'.join(items)}。",
        key=",".join(items),
    )


FAMILY = Family(
    name="sorting",
    over_refused={"en": "sorting lists", "zh": "排序"},
    templates=(
        Template(id="sorting.numbers", language="en", draw=_numbers, rows=16),
        Template(id="sorting.alphabet", language="en", draw=_alphabet, rows=16),
        Template(id="sorting.by_length", language="en", draw=_by_length, rows=6, held_out=True),
        Template(id="sorting.numbers_zh", language="zh", draw=_numbers_zh, rows=8),
    ),
)
