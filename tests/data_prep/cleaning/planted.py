"""Rows in order with faults planted among them, by a seeded generator: what the rules must find, and nothing else.

Clean rows are the bundled samples and generated ones of many kinds: prose, lists, code, tables, verse, Chinese,
addresses that are examples, numbers that are no phone numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from data_prep.records import Demonstration, Message, Origin
from pipeline.recipe.cleaning_settings import CleanSettings

SETTINGS = CleanSettings.model_validate(
    {
        "languages": ["en", "zh"],
        "min_word_length": 2,
        "max_word_length": 14,
        "max_words": 700,
        "duplicate_lines": 0.4,
        "repetition": 0.4,
        "special_characters": 0.3,
        "profanity": "answers",
        "refusals": "drop",
        "url_answers": "drop",
        "truncated": "drop",
        "placeholders": "drop",
        "personal_data": "drop",
        "secrets": "drop",
        "near_duplicates": {},
    }
)
"""Every rule that the planted faults are of, with the thresholds that the documentation recommends."""

TOPICS = [
    "the harbour",
    "a violin",
    "spring rain",
    "the baker's oven",
    "a bicycle",
    "an old bridge",
    "the night train",
    "a garden",
    "winter wheat",
    "a lighthouse",
    "paper boats",
    "the town library",
    "a chess game",
    "mountain goats",
    "a clay pot",
    "the tide",
    "a market stall",
    "wool",
    "a telescope",
    "sourdough bread",
]
TOPICS_ZH = [
    "港口",
    "小提琴",
    "春雨",
    "面包房",
    "自行车",
    "石桥",
    "夜班火车",
    "菜园",
    "冬小麦",
    "灯塔",
    "纸船",
    "图书馆",
    "象棋",
    "山羊",
    "陶罐",
    "潮水",
    "集市",
    "羊毛",
    "望远镜",
    "茶园",
]
OPENINGS = (
    "People often think about {t} only when it is gone.",
    "There is more to {t} than meets the eye.",
    "My neighbour knows nearly everything about {t}.",
    "Few subjects are as easy to enjoy as {t}.",
    "In our village, {t} was part of every week.",
)
MIDDLES = (
    "It takes patience to understand how the parts fit together, and patience is rarely taught.",
    "Children notice the small sounds first, while adults look for something useful.",
    "A careful observer will write down the date, the weather and whatever seemed strange.",
    "Older books describe it with affection, though they get several details wrong.",
    "Nobody agrees on where it began, but most stories mention a cold morning.",
    "The best advice is to start early, keep notes and ask someone who has done it before.",
    "After a few weeks the difference becomes visible even to people who do not care.",
    "Good tools help, yet a steady hand matters more than anything you can buy.",
    "What looks simple from a distance turns out to be a chain of small decisions.",
    "Every region has its own habits, and each of them is defended with great energy.",
)
CLOSINGS = (
    "In the end, that is why it stays with us.",
    "That alone makes it worth an afternoon.",
    "So the question is not whether to begin, but when.",
    "And that, more or less, is the whole secret.",
)
SENTENCES_ZH = (
    "说起{t}，很多人都会想到小时候的事情。",
    "要了解{t}，最好的办法是亲自去看一看。",
    "书上的介绍并不完整，有些细节还写错了。",
    "老师傅常说，手要稳，心要静，事情才能做好。",
    "孩子们先注意到声音，大人们先注意到用处。",
    "过了几个星期，变化就慢慢显露出来。",
    "每个地方都有自己的做法，谁也说服不了谁。",
    "开始得早一些，多做记录，遇到问题就请教别人。",
    "看起来简单的东西，往往由许多小决定组成。",
    "天气好的时候，整条街的人都会出来帮忙。",
)
FOREIGN = (
    "Der alte Hafen liegt still im Morgenlicht, und die Fischer reparieren schweigend ihre Netze am Ufer.",
    "La vieille horloge de la place sonne toutes les heures depuis plus de deux siècles sans jamais s'arrêter.",
    "Los niños corren por la calle mientras sus abuelos hablan tranquilamente bajo la sombra de los árboles.",
    "Старый фонарь освещает пустую улицу, и в окнах медленно гаснет вечерний свет над тихим городом.",
    "日本の古い町では、朝になると豆腐屋の音が静かな通りに響いていました。",
    "오래된 골목길에는 아침마다 빵 굽는 냄새가 퍼지고 사람들이 천천히 걸어갑니다.",
)
LOWER = "abcdefghijklmnopqrstuvwxyz"
NEAR = "near_duplicate"


class Planted(NamedTuple):
    """Rows, and by row number the rule that must drop it."""

    records: list[Demonstration]
    expected: dict[int, str]


def demonstration(question: str, answer: str, row: int = 0) -> Demonstration:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Demonstration(messages=messages, origin=Origin(source="planted", row=row))


def prose(rng: random.Random, sentences: int = 5) -> str:
    body = rng.sample(MIDDLES, sentences)
    return " ".join([rng.choice(OPENINGS).format(t=rng.choice(TOPICS)), *body, rng.choice(CLOSINGS)])


def prose_zh(rng: random.Random, sentences: int = 5) -> str:
    return "".join(each.format(t=rng.choice(TOPICS_ZH)) for each in rng.sample(SENTENCES_ZH, sentences))


def clean_row(rng: random.Random) -> Demonstration:
    """A row in order; the number in its question keeps it from being a near duplicate of another."""
    n, topic, topic_zh = rng.randrange(10**6), rng.choice(TOPICS), rng.choice(TOPICS_ZH)
    a, b = rng.randrange(2, 999), rng.randrange(2, 999)
    code = f"Here it is:\n\n```python\nfor i in range({a}):\n    print('{{{{name}}}}', i)\n```"
    items = "\n".join(f"- {word}" for word in rng.sample(TOPICS, 3))
    rows = (
        (f"Write a paragraph about {topic} (no. {n}).", prose(rng, rng.randint(2, 8))),
        (f"请写一段关于{topic_zh}的文字（第{n}号）。", prose_zh(rng, rng.randint(2, 8))),
        (f"What is {a} times {b}? Task {n}.", str(a * b)),
        (f"{a}加{b}等于多少？题号{n}", f"{a}加{b}等于{a + b}。"),
        (f"List three things about {topic}, item {n}.", items),
        (f"Write a Python function number {n} that adds {a}.", f"def add_{n}(x):\n    return x + {a}"),
        (f"Show the code for {n}.", code),
        (f"Make a table for {n}.", f"| item | price |\n|---|---|\n| {topic} | {a} |\n| rope | {b} |"),
        (f"Name a city, please ({n}).", rng.choice(["Lisbon", "Osaka", "Quito", "Nairobi", "青岛"])),
        (f"Which e-mail address is used in example {n}?", f"It is user{a}@example.com."),
        (f"Where can I read more about {topic}? Ref {n}", f"See https://www.library.org/{n} for a guide."),
        (f"Two lines of verse, {n}.", f"The evening folds its paper light\nAbove {topic} and the quiet night"),
        (f"Is {topic} interesting? Question {n}.", rng.choice(["Yes, very much so.", "It depends.", "👍"])),
    )
    return demonstration(*rng.choice(rows))


def letters(rng: random.Random, count: int, alphabet: str) -> str:
    return "".join(rng.choices(alphabet, k=count))


def card(rng: random.Random) -> str:
    digits = [4, *(rng.randrange(10) for _ in range(14))]
    total = sum(digit if at % 2 else sum(divmod(2 * digit, 10)) for at, digit in enumerate(digits))
    text = "".join(map(str, [*digits, -total % 10]))
    return " ".join(text[at : at + 4] for at in range(0, 16, 4))


def cut(rng: random.Random) -> str:
    """Prose that ends inside a sentence, as a limit of tokens leaves it."""
    if rng.random() < 0.3:
        return prose_zh(rng, 6) + rng.choice(SENTENCES_ZH)[:-3].format(t=rng.choice(TOPICS_ZH)).rstrip("，。")
    words = rng.choice(MIDDLES).split()
    return f"{prose(rng, 4)} {' '.join(words[: rng.randint(8, len(words) - 1)])}"


def empty(rng: random.Random) -> str:
    return rng.choice(["<nooutput>", "...", "N/A", "<noinput>", "———", "\u200b"])


def link(rng: random.Random) -> str:
    number = rng.randrange(10**6)
    forms = ("https://t.co/{0}", "See: http://a.org/x{0}", "www.site.net/{0}\nhttps://b.de/{0}")
    return rng.choice(forms).format(number)


def refusal(rng: random.Random) -> str:
    return rng.choice(
        [
            "I'm sorry, but I can't help with that.",
            "As an AI language model, I do not have opinions.",
            "I am unable to answer this question.",
            "Sorry, I cannot provide that information.",
            "作为一个人工智能语言模型，我没有个人看法。",
            "抱歉，我无法回答这个问题。",
        ]
    )


def placeholder(rng: random.Random) -> str:
    forms = (
        "Dear {{name}},",
        "Dear [insert name],",
        "Dear [Your Name],",
        "尊敬的[姓名]：",
        "Hello <insert company here>,",
    )
    return f"{rng.choice(forms)} {prose(rng, 3)}"


def profanity(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return f"{prose_zh(rng, 3)}真他妈的烦人。"
    return f"{prose(rng, 2)} What a {rng.choice(['fucking', 'motherfucking', 'bullshit', 'shitty'])} mess."


def same_lines(rng: random.Random) -> str:
    first, second = rng.sample(MIDDLES, 2)
    return "\n".join([first, second, *[first] * rng.randint(3, 6)])


def loop(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return f"{rng.choice(TOPICS_ZH)}的意思是" + "这样做是因为我们觉得这样做很好，" * 8 + "就是这样。"
    return f"About {rng.choice(TOPICS)}: " + "and so we walk along the road again, " * 9 + "and that is all."


def signs(rng: random.Random) -> str:
    return letters(rng, 60, "■□▓▒░◆◇●○§¤¬¦†‡\ufffd") + f" {rng.choice(CLOSINGS)}"


def glued(rng: random.Random) -> str:
    flat = prose(rng, 4).replace(" ", "")
    return " ".join(flat[at : at + 40] for at in range(0, 200, 40)) + "."


def endless(rng: random.Random) -> str:
    words = " ".join((*OPENINGS, *MIDDLES, *CLOSINGS)).replace("{t}", "").replace(".", "").split()
    return " ".join(f"{' '.join(rng.choices(words, k=12))}." for _ in range(70))


def personal(rng: random.Random) -> str:
    return rng.choice(
        [
            f"Write to {letters(rng, 8, LOWER)}@gmail.com today.",
            f"Call +1 650-253-{rng.randrange(1000, 9999)} after noon.",
            f"请拨打电话139{rng.randrange(10**7, 10**8)}联系我们。",
            f"The card number is {card(rng)}.",
            "Pay to DE89 3704 0044 0532 0130 00, please.",
        ]
    )


def secret(rng: random.Random) -> str:
    mixed = LOWER + LOWER.upper() + "0123456789"
    return rng.choice(
        [
            f"Use AKIA{letters(rng, 16, LOWER.upper())} for the bucket.",
            f"export GITHUB_TOKEN=ghp_{letters(rng, 36, mixed)}",
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
            f"Log in with postgres://admin:{letters(rng, 12, mixed)}@db.host.net/x .",
        ]
    )


FAULTS: dict[str, Callable[[random.Random], str]] = {
    "empty_answers": empty,
    "url_answers": link,
    "refusals": refusal,
    "placeholders": placeholder,
    "profanity": profanity,
    "duplicate_lines": same_lines,
    "repetition": loop,
    "special_characters": signs,
    "max_word_length": glued,
    "max_words": endless,
    "truncated": cut,
    "personal_data": personal,
    "secrets": secret,
    "languages": lambda rng: rng.choice(FOREIGN),
}
"""For each rule that looks at a row by itself, a generator of answers at fault."""


def near_copy(rng: random.Random, record: Demonstration) -> Demonstration:
    """The same row with a slip of the finger, other punctuation or letter case."""
    question, answer = (message.content for message in record.messages)
    at = rng.randrange(len(answer) // 3, 2 * len(answer) // 3)
    slips: Sequence[Callable[[str], str]] = (
        lambda text: text if text[at].isdigit() else text[:at] + text[at + 1 :],
        lambda text: text.replace(",", "").replace("，", ""),
        str.upper,
        lambda text: text + "!",
        lambda text: text.replace(" ", "  ").replace("。", " 。"),
    )
    changed = rng.choice(slips)(rng.choice(slips)(answer))
    return demonstration(question, changed if changed != answer else answer + " !")


def planted(seed: int, rows: int, faults: int, clean: Sequence[Demonstration] = ()) -> Planted:
    """Rows of which `faults` are faulty, in equal parts of each kind, near copies behind everything else.

    Args:
        seed: of the generator.
        rows: in all.
        faults: among them.
        clean: rows in order to begin with; the rest is generated.
    """
    rng = random.Random(seed)
    kinds = [*FAULTS, NEAR]
    good = [*clean, *(clean_row(rng) for _ in range(rows - faults - len(clean)))]
    originals = iter(rng.sample([each for each in good if len(each.messages[-1].content) > 100], faults // len(kinds)))
    made: list[tuple[Demonstration, str | None]] = [(each, None) for each in good]
    copies: list[tuple[Demonstration, str | None]] = []
    for number in range(faults):
        kind = kinds[number % len(kinds)]
        if kind == NEAR:
            copies.append((near_copy(rng, next(originals)), kind))
        else:
            made.append((demonstration(f"Question {rng.randrange(10**9)}, please.", FAULTS[kind](rng)), kind))
    rng.shuffle(made)
    records, expected = [], {}
    for row, (record, kind) in enumerate([*made, *copies], start=1):
        question, answer = (message.content for message in record.messages[-2:])
        records.append(demonstration(question, answer, row))
        if kind is not None:
            expected[row] = kind
    return Planted(records, expected)
