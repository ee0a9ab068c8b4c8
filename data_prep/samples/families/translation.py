"""Everyday phrases, English to Chinese and back."""

from __future__ import annotations

from random import Random

from data_prep.samples import phrases
from data_prep.samples.tasks import Family, Task, Template, bare

# accepted English, accepted Chinese; the first of each is the one shown
_PHRASES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Thank you very much.", "Thanks a lot."), ("非常感谢。", "非常感谢你。", "多谢。")),
    (("Good morning.",), ("早上好。", "早安。")),
    (("Good night.",), ("晚安。",)),
    (("Happy birthday!",), ("生日快乐！", "祝你生日快乐！")),
    (("Happy New Year!",), ("新年快乐！",)),
    (("See you tomorrow.",), ("明天见。",)),
    (("I don't understand.", "I do not understand."), ("我不明白。", "我不懂。", "我听不懂。", "我不理解。")),
    (("Where is the station?",), ("车站在哪里？", "车站在哪儿？", "火车站在哪里？")),
    (
        ("Where is the toilet?", "Where is the bathroom?", "Where is the restroom?"),
        ("洗手间在哪里？", "厕所在哪里？", "洗手间在哪儿？"),
    ),
    (("How much is this?", "How much does this cost?", "How much is it?"), ("这个多少钱？", "多少钱？")),
    (("I like tea.", "I like to drink tea."), ("我喜欢喝茶。", "我喜欢茶。")),
    (
        ("The weather is nice today.", "Today's weather is nice.", "It is nice today."),
        ("今天天气很好。", "今天天气不错。"),
    ),
    (("Please sit down.", "Please have a seat."), ("请坐。", "请坐下。")),
    (("What is your name?", "What's your name?"), ("你叫什么名字？", "您叫什么名字？", "你的名字是什么？")),
    (("Nice to meet you.",), ("很高兴认识你。", "很高兴见到你。")),
    (("I am hungry.", "I'm hungry."), ("我饿了。", "我很饿。")),
    (("I am tired.", "I'm tired.", "I am very tired.", "I'm very tired."), ("我很累。", "我累了。")),
    (("The book is on the table.",), ("书在桌子上。", "这本书在桌子上。")),
    (("Congratulations!",), ("恭喜！", "恭喜你！", "祝贺你！")),
    (("Good luck!",), ("祝你好运！", "好运！")),
    (("Have a safe trip.", "Have a good trip.", "Bon voyage."), ("一路平安。", "一路顺风。", "旅途平安。")),
    (("No problem.",), ("没问题。",)),
    (("I am a student.", "I'm a student."), ("我是学生。", "我是一名学生。", "我是一个学生。")),
    (("My father is a doctor.", "My dad is a doctor."), ("我爸爸是医生。", "我父亲是医生。", "我的父亲是医生。")),
    (("The cat is sleeping.",), ("猫在睡觉。", "猫正在睡觉。")),
    (("Please wait a moment.", "Please wait.", "One moment, please."), ("请稍等。", "请等一下。", "请等一会儿。")),
    (("I will call you tonight.", "I'll call you tonight."), ("我今晚给你打电话。", "今晚我给你打电话。")),
    (("She speaks English.", "She can speak English."), ("她会说英语。", "她说英语。", "她讲英语。")),
    (("This dish is too spicy.", "This dish is very spicy."), ("这道菜太辣了。", "这个菜太辣了。")),
    (("The shop is closed.", "The store is closed."), ("商店关门了。", "店关门了。", "商店已经关门了。")),
    (("We are friends.", "We're friends."), ("我们是朋友。",)),
    (("What time is it now?", "What time is it?"), ("现在几点？", "现在几点了？", "几点了？")),
    (
        ("I would like a cup of coffee.", "I want a cup of coffee.", "I'd like a cup of coffee."),
        ("我想要一杯咖啡。", "我要一杯咖啡。"),
    ),
    (("It is raining outside.", "It's raining outside."), ("外面在下雨。", "外面正在下雨。", "外面下雨了。")),
    (("Get well soon.", "I hope you get well soon."), ("早日康复。", "祝你早日康复。")),
    (
        ("I lost my key.", "I have lost my key.", "I lost my keys."),
        ("我的钥匙丢了。", "我丢了钥匙。", "我把钥匙弄丢了。"),
    ),
)
_TO_ZH = (
    "Translate into Chinese: {x}",
    "How do you say this in Chinese? {x}",
    "Put this into Chinese: {x}",
    "Give the Chinese for: {x}",
)
_TO_EN = ("把这句话翻译成英语：{x}", "请译成英文：{x}", "用英语怎么说：{x}")
_BACK = ("What does this mean in English? {x}", "Translate into English: {x}", "Give the English for: {x}")


def _pick(rng: Random) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, str]]:
    (english, chinese), other = rng.sample(_PHRASES, 2)
    return english, chinese, (other[0][0], other[1][0])


def _into_chinese(rng: Random) -> Task:
    english, chinese, (_, other_zh) = _pick(rng)
    source = english[0]
    about = f"The phrase is common in daily life, and Chinese speakers have a short way of saying {source.lower()}"
    return Task(
        prompt=rng.choice(_TO_ZH).format(x=source),
        answer=chinese[0],
        check={"one_of": list(chinese), "language": "zh", "max_chars": len(chinese[0]) + 8},
        faults={
            "wrong_fact": [other_zh],
            "wrong_language": [source, f"It means {source.lower()}"],
            "ignored_format": [about],
            "needless_doubt": [phrases.hedge(rng, "zh", f"“{bare(chinese[0])}”", f"“{bare(other_zh)}”")],
        },
        key=source,
    )


def _into_english(rng: Random, asked: tuple[str, ...], language: str) -> Task:
    english, chinese, (other_en, _) = _pick(rng)
    source = chinese[0]
    about = {
        "en": f"There are different ways to read this phrase, and it is something people say when they meet: {source}",
        "zh": f"这句话在生活中很常用，英语里也有类似的说法，意思和“{bare(source)}”差不多。",
    }[language]
    return Task(
        prompt=rng.choice(asked).format(x=source),
        answer=english[0],
        check={"one_of": list(english), "language": "en", "max_words": len(english[0].split()) + 6},
        faults={
            "wrong_fact": [other_en],
            "wrong_language": [source, f"意思是{source}"],
            "ignored_format": [about],
            "needless_doubt": [phrases.hedge(rng, "en", f'"{bare(english[0])}"', f'"{bare(other_en)}"')],
        },
        key=english[0],
    )


FAMILY = Family(
    name="translation",
    over_refused={"en": "translations", "zh": "翻译"},
    templates=(
        Template(id="translation.into_chinese", language="en", draw=_into_chinese, rows=26),
        Template(
            id="translation.into_english_zh",
            language="zh",
            draw=lambda rng: _into_english(rng, _TO_EN, "zh"),
            rows=16,
        ),
        Template(
            id="translation.into_english",
            language="en",
            draw=lambda rng: _into_english(rng, _BACK, "en"),
            rows=8,
            held_out=True,
        ),
    ),
)
