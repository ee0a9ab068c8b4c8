"""Saying the same thing in a given form: capitals, bullets, politely, in the past, in the passive."""

from __future__ import annotations

from random import Random

from data_prep.samples import phrases
from data_prep.samples.families.common import NAMES, listing
from data_prep.samples.tasks import Family, Task, Template

_PLAIN = (
    ("the library opens at nine on weekdays", "图书馆工作日九点开门"),
    ("fresh bread is sold at the corner shop", "街角的店卖新鲜面包"),
    ("the last bus leaves at half past ten", "末班车十点半开"),
    ("please keep the garden gate closed", "请把花园的门关好"),
    ("our neighbours have two small dogs", "我们的邻居有两只小狗"),
    ("the museum is closed on public holidays", "博物馆节假日不开放"),
    ("dinner is ready in the kitchen", "晚饭在厨房做好了"),
    ("the train to the coast was late again", "去海边的火车又晚点了"),
    ("all tickets for the show are sold out", "演出的票全部卖完了"),
    ("the blue door leads to the cellar", "蓝色的门通往地下室"),
)
_ORDERS = (
    ("Close the window.", "close the window", "请您关一下窗户好吗？"),
    ("Send me the report.", "send me the report", "请您把报告发给我好吗？"),
    ("Turn the music down.", "turn the music down", "请您把音乐调小一点好吗？"),
    ("Wait outside.", "wait outside", "请您在外面等一下好吗？"),
    ("Give me your address.", "give me your address", "请您告诉我您的地址好吗？"),
    ("Call me back today.", "call me back today", "请您今天给我回个电话好吗？"),
    ("Fix this error.", "fix this error", "请您改正这个错误好吗？"),
    ("Move your car.", "move your car", "请您把车挪一下好吗？"),
    ("Speak more slowly.", "speak more slowly", "请您说得慢一点好吗？"),
    ("Bring the keys tomorrow.", "bring the keys tomorrow", "请您明天把钥匙带来好吗？"),
)
_ORDERS_ZH = (
    ("把窗户关上。", "关", "Could you please close the window?"),
    ("把报告发给我。", "报告", "Could you please send me the report?"),
    ("小点声。", "小", "Could you please be a bit quieter?"),
    ("在外面等。", "等", "Could you please wait outside?"),
    ("把车挪走。", "车", "Could you please move your car?"),
    ("明天带钥匙来。", "钥匙", "Could you please bring the keys tomorrow?"),
    ("今天给我回电话。", "电话", "Could you please call me back today?"),
    ("把地址告诉我。", "地址", "Could you please tell me the address?"),
    ("帮我拿水。", "水", "Could you please bring me some water?"),
)
_COURTEOUS = ("Could you please {}?", "Would you mind if I asked you to {}?", "Would you please {}?")
_VERBS = (  # present, past, object, past participle, Chinese
    ("paints", "painted", "the fence", "painted", "漆了篱笆"),
    ("writes", "wrote", "a long letter", "written", "写了一封长信"),
    ("repairs", "repaired", "the old radio", "repaired", "修好了旧收音机"),
    ("bakes", "baked", "a lemon cake", "baked", "烤了柠檬蛋糕"),
    ("cleans", "cleaned", "the kitchen", "cleaned", "打扫了厨房"),
    ("draws", "drew", "a small map", "drawn", "画了一张小地图"),
    ("plants", "planted", "three trees", "planted", "种了三棵树"),
    ("feeds", "fed", "the horses", "fed", "喂了马"),
)
_PLURAL = {"three trees", "the horses"}


def _form_task(
    prompt: str, source: str, answer: str, check: dict[str, object], slips: list[str], foreign: str, key: str
) -> Task:
    """A rewrite. `slips` are answers that do not take the form asked for, the source itself among them."""
    return Task(
        prompt=prompt,
        context=source,
        answer=answer,
        check=check,
        faults={"ignored_format": [source, *slips], "wrong_language": [foreign]},
        key=key,
    )


def _capitals(rng: Random) -> Task:
    text, zh = rng.choice(_PLAIN)
    who = rng.choice(NAMES)
    source = f"{who} says that {text}."
    asked = ("Rewrite in capital letters.", "Put this sentence in upper case.", "Write it all in uppercase.")
    about = f"Capital letters make the text look louder, so here {who} would be shouting that {text}."
    return _form_task(
        rng.choice(asked),
        source,
        source.upper(),
        {"exact": source, "case": "upper"},
        [source.title(), about],
        f"{who}说{zh}。",
        text,
    )


def _polite(rng: Random) -> Task:
    source, request, zh = rng.choice(_ORDERS)
    asked = (
        "Make this request to {w} more polite.",
        "Rewrite this politely, for {w}.",
        "Say this to {w} in a friendlier, more polite way.",
        "Turn this order into a polite question to {w}.",
    )
    who = rng.choice(("a colleague", "a stranger", "a guest", "a neighbour"))
    rude = (f"{source[:-1]} right now!", f"I told you to {request} already, so hurry up and do it.")
    words = [word for word in request.split() if len(word) > 3]
    return _form_task(
        rng.choice(asked).format(w=who),
        source,
        rng.choice(_COURTEOUS).format(request),
        {"regex": r"(?i)\b(please|could you|would you|would you mind|kindly)\b", "contains_all": words}
        | {"max_words": 16, "max_sentences": 1, "contains_none": ["already", "right now"]},
        list(rude),
        zh,
        source,
    )


def _polite_zh(rng: Random) -> Task:
    source, word, english = rng.choice(_ORDERS_ZH)
    plain = source.removesuffix("。")
    return _form_task(
        rng.choice(("把这句话说得更礼貌一些。", "请改写成礼貌的请求。", "换成客气的说法。")),
        source,
        rng.choice(("麻烦您{}好吗？", "请您{}好吗？", "您能{}吗？谢谢！")).format(plain),
        {"regex": "请|麻烦|您|谢谢|可以", "contains_all": [word], "max_chars": 20, "contains_none": ["快点"]},
        [f"快点{plain}！", f"{plain}，快点，别让我再说一遍！"],
        english,
        source,
    )


def _past(rng: Random) -> Task:
    (verb, past, thing, _, zh), who = rng.choice(_VERBS), rng.choice(NAMES)
    when = rng.choice(("in the morning", "on Sunday", "with a friend", "for the school"))
    return _form_task(
        rng.choice(
            ("Put this sentence in the past tense.", "Rewrite in the simple past.", "Change it to the past tense.")
        ),
        f"{who} {verb} {thing} {when}.",
        f"{who} {past} {thing} {when}.",
        {"exact": f"{who} {past} {thing} {when}."},
        [
            f"{who} will {verb.rstrip('s')} {thing} {when}.",
            f"To do so, think of when {who} {verb} {thing} and change it.",
        ],
        f"{who}{zh}。",
        f"{who} {verb} {when}",
    )


def _passive(rng: Random) -> Task:
    (_, past, thing, participle, zh), who = rng.choice(_VERBS), rng.choice(NAMES)
    auxiliary = "were" if thing in _PLURAL else "was"
    answer = f"{thing[0].upper()}{thing[1:]} {auxiliary} {participle} by {who}."
    task = _form_task(
        rng.choice(("Rewrite in the passive voice.", "Turn this into a passive sentence.")),
        f"{who} {past} {thing}.",
        answer,
        {"exact": answer},
        [f"It was {who} who {past} {thing}.", f"{who} has {participle} {thing}."],
        f"{who}{zh}。",
        f"{who} {thing}",
    )
    return task


def _bullets(rng: Random) -> Task:
    things = rng.sample(("tea", "rice", "soap", "apples", "batteries", "cheese", "flour", "paper", "olives", "salt"), 3)
    who = rng.choice(NAMES)
    source = f"{who} needs {things[0]}, {things[1]} and {things[2]}."
    inline = rng.random() < 0.4
    asked = "Give the items on one line with commas, no bullets." if inline else "List the items as bullets."
    return Task(
        prompt=asked,
        context=source,
        answer=listing(things, "en", as_bullets=not inline),
        check={"items" if inline else "bullets": things} | ({"regex": r"^[^\n]*$"} if inline else {}),
        faults={
            "ignored_format": [
                listing(things, "en", as_bullets=inline),
                f"What {who} needs is {' and '.join(things)}, it seems.",
            ],
            "invented_fact": [listing([*things, rng.choice(("butter", "a new kettle"))], "en", as_bullets=not inline)],
            "needless_doubt": [phrases.hedge(rng, "en", things[0], things[1])],
        },
        key=",".join(things),
    )


FAMILY = Family(
    name="rewriting",
    over_refused={"en": "rewriting texts", "zh": "改写句子"},
    templates=(
        Template(id="rewriting.capitals", language="en", draw=_capitals, rows=10),
        Template(id="rewriting.polite", language="en", draw=_polite, rows=12),
        Template(id="rewriting.past", language="en", draw=_past, rows=9),
        Template(id="rewriting.bullets", language="en", draw=_bullets, rows=10),
        Template(id="rewriting.passive", language="en", draw=_passive, rows=6, held_out=True),
        Template(id="rewriting.polite_zh", language="zh", draw=_polite_zh, rows=9),
    ),
)
