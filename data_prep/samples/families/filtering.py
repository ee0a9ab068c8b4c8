"""Keeping the items of a list that meet a condition."""

from __future__ import annotations

from random import Random

from data_prep.samples.families.common import list_task
from data_prep.samples.families.sorting import WORDS
from data_prep.samples.tasks import Family, Task, Template


def _kept(rng: Random, values: list[int], kept: list[int]) -> list[list[str]]:
    """Wrong selections: one item too few, one too many, one exchanged."""
    out, dropped = rng.choice([n for n in values if n not in kept]), rng.choice(kept)
    more = [n for n in values if n in kept or n == out]
    return [[str(n) for n in chosen] for chosen in (kept[:-1], more, [n for n in more if n != dropped])]


def _parity(rng: Random) -> Task:
    even = [rng.choice(range(2, 98, 2)) for _ in range(3)]
    odd = [rng.choice(range(3, 99, 2)) for _ in range(2)]
    values = list(dict.fromkeys(rng.sample(even + odd, 5)))
    name, rest = rng.choice((("even", 0), ("odd", 1)))
    kept = [n for n in values if n % 2 == rest]
    if len(kept) < 2:
        return _parity(rng)
    asked = rng.choice(("Keep only the {k} numbers, in the same order.", "List the {k} numbers in the order given."))
    return list_task(
        rng,
        "en",
        question=asked.format(k=name),
        context=", ".join(map(str, values)),
        items=[str(n) for n in kept],
        wrong=_kept(rng, values, kept),
        prose=f"Looking through the list, quite a few of them are {name}, for example {kept[0]}, while others are not.",
        foreign=f"其中{'偶数' if rest == 0 else '奇数'}有{'、'.join(map(str, kept))}。",
        key=f"{values}",
    )


def _threshold(rng: Random) -> tuple[list[int], int, list[int]]:
    limit = rng.choice(range(30, 75, 5))
    above, below = rng.sample(range(limit + 1, limit + 25), 3), rng.sample(range(4, limit), 2)
    values = rng.sample(above + below, 5)
    return values, limit, [n for n in values if n > limit]


def _above(rng: Random) -> Task:
    values, limit, kept = _threshold(rng)
    asked = rng.choice(("Which of these numbers are greater than {x}?", "Pick out the numbers above {x}."))
    return list_task(
        rng,
        "en",
        question=f"{asked.format(x=limit)} Keep their order.",
        context=", ".join(map(str, values)),
        items=[str(n) for n in kept],
        wrong=_kept(rng, values, kept),
        prose=f"There are several numbers in your list that lie above {limit}, and one of them is clearly {kept[0]}.",
        foreign=f"大于{limit}的数有{'、'.join(map(str, kept))}。",
        key=f"{values}",
    )


def _above_zh(rng: Random) -> Task:
    values, limit, kept = _threshold(rng)
    return list_task(
        rng,
        "zh",
        question=rng.choice((f"按原来的顺序挑出大于{limit}的数。", f"下面哪些数大于{limit}？保持原来的顺序。")),
        context="、".join(map(str, values)),
        items=[str(n) for n in kept],
        wrong=_kept(rng, values, kept),
        prose=f"这几个数里有一些比{limit}大，比如{kept[0]}就是，另外几个则没有那么大。",
        foreign=f"The numbers above {limit} are {', '.join(map(str, kept))} in that order.",
        key=f"{values}",
    )


def _initial(rng: Random) -> Task:
    vowels = [word for word in WORDS if word[0] in "aeiou"]
    others = [word for word in WORDS if word[0] not in "aeiou"]
    kept_words, out = rng.sample(vowels, rng.choice((2, 3))), rng.sample(others, 2)
    words = rng.sample(kept_words + out, len(kept_words) + 2)
    kept = [word for word in words if word in kept_words]
    return list_task(
        rng,
        "en",
        question=rng.choice(("List the words that start with a vowel.", "Keep only words beginning with a vowel.")),
        context=", ".join(words),
        items=kept,
        wrong=[kept[:-1], [word for word in words if word in kept or word == out[0]], [*kept[:-1], out[0]]],
        prose=f"Vowels are a, e, i, o and u, so a word like {kept[0]} would certainly count, unlike {out[0]}.",
        foreign=f"以元音开头的单词有{'、'.join(kept)}。",
        key=",".join(sorted(words)),
    )


def _long_words(rng: Random) -> Task:
    long, short = [w for w in WORDS if len(w) > 6], [w for w in WORDS if len(w) < 6]
    kept_words, out = rng.sample(long, 2), rng.sample(short, 3)
    words = rng.sample(kept_words + out, 5)
    kept = [word for word in words if word in kept_words]
    return list_task(
        rng,
        "en",
        question="List the words with more than six letters, in the order given.",
        context=", ".join(words),
        items=kept,
        wrong=[[w for w in words if w in kept or w == out[0]], kept[:1], [kept[0], out[0]]],
        prose=f"Counting the letters of every single word takes a moment, but {kept[0]} for one is rather long.",
        foreign=f"超过六个字母的单词是{'、'.join(kept)}。",
        key=",".join(sorted(words)),
    )


FAMILY = Family(
    name="filtering",
    over_refused={"en": "filtering lists", "zh": "筛选数字"},
    templates=(
        Template(id="filtering.parity", language="en", draw=_parity, rows=12),
        Template(id="filtering.above", language="en", draw=_above, rows=12),
        Template(id="filtering.initial", language="en", draw=_initial, rows=10),
        Template(id="filtering.long_words", language="en", draw=_long_words, rows=6, held_out=True),
        Template(id="filtering.above_zh", language="zh", draw=_above_zh, rows=8),
    ),
)
