"""Naming the sentiment of a review, the topic of a headline, the tone of a message."""

from __future__ import annotations

from random import Random

from data_prep.samples import phrases
from data_prep.samples.families.common import ONE_WORD, brief_bound
from data_prep.samples.tasks import Family, Language, Task, Template

_THINGS = (
    "The hotel",
    "The museum tour",
    "The dinner",
    "The concert",
    "That film",
    "The boat trip",
    "The cooking class",
)
_PRAISE = (
    "was a joy from start to finish",
    "was worth every penny",
    "made my whole week better",
    "was the best in years",
    "was far better than I had hoped",
)
_BLAME = (
    "was a complete waste of money",
    "was dull and far too expensive",
    "let me down badly",
    "was the worst in years",
    "ruined my whole day",
)
_ALSO = ("I paid by card.", "I went there on Sunday.", "My sister came along.", "It took two hours.", "")
_HEADLINES = {
    "sports": (
        "Home team wins the cup after extra time",
        "Young runner breaks the national record",
        "Coach praises goalkeeper after narrow win",
        "Tennis star reaches her third final",
        "City marathon draws record field",
    ),
    "weather": (
        "Heavy snow expected in the north tonight",
        "Warm and sunny days ahead this weekend",
        "Storm brings strong winds to the coast",
        "Fog slows morning traffic in the valley",
        "First frost of the autumn forecast",
    ),
    "science": (
        "Telescope spots a new planet near a red star",
        "Researchers map the genes of a rare orchid",
        "New battery material lasts twice as long in lab",
        "Fossil shows how early whales could walk",
        "Physicists measure tiny particle with new detector",
    ),
    "food": (
        "Chef shares her secret for crisp potatoes",
        "Ten soups to cook on a cold evening",
        "Old bakery brings back its rye bread",
        "How to make pasta dough without eggs",
        "Street market adds stalls with dumplings",
    ),
}
_SENTIMENTS_ZH = {
    "正面": ("让人非常满意", "真是太棒了", "比想象的还要好", "值得推荐给大家", "每一分钱都花得值"),
    "负面": ("让人非常失望", "实在太差了", "比想象的差得多", "完全是浪费钱", "我再也不想要第二次"),
}
_SUBJECTS_ZH = ("这家餐厅", "这款手机", "这家酒店", "这件外套", "这次旅行", "这部电影")
_MESSAGES = {
    "formal": (
        "Dear Dr Hill, I am writing to confirm our appointment.",
        "We kindly request that you submit the documents.",
        "Please accept my sincere apologies for the delay.",
        "I would be grateful for your reply at your earliest convenience.",
    ),
    "informal": (
        "Hey, wanna grab a bite later?",
        "lol that was so much fun last night!",
        "Gonna be late, save me a seat, ok?",
        "Yo, did you see the game?",
    ),
}


def _labelled(
    rng: Random, language: Language, question: str, context: str, label: str, labels: list[str], sentence: str, zh: str
) -> Task:
    """A label asked for as one word or within a sentence; `zh` names the label in the other language."""
    one_word = rng.random() < 0.6
    other = rng.choice([name for name in labels if name != label])
    en = language == "en"
    wordy = (
        f"There are several things one could notice here, and weighing all of them I lean towards {label}."
        if en
        else f"这段话可以从几个方面来看，综合考虑以后我倾向于认为是{label}的。"
    )
    form = rng.choice(ONE_WORD[language]) if one_word else ("Answer in one sentence." if en else "用一句话回答。")
    sentence_bound = {"min_words": 4, "max_words": 14} if en else {"min_chars": 5, "max_chars": 20}
    return Task(
        prompt=f"{question}{' ' if en else ''}{form}",
        context=context,
        answer=label if one_word else sentence.format(label),
        check={"label": label, "labels": labels} | (brief_bound(language) if one_word else sentence_bound),
        faults={
            "wrong_fact": [other if one_word else sentence.format(other)],
            "ignored_format": [wordy, context] if one_word else [label],
            "wrong_language": [zh],
            "needless_doubt": [phrases.hedge(rng, language, label, other)],
        },
        key=context,
    )


def _sentiment(rng: Random) -> Task:
    good = rng.random() < 0.5
    text = f"{rng.choice(_THINGS)} {rng.choice(_PRAISE if good else _BLAME)}. {rng.choice(_ALSO)}".strip()
    asked = (
        "Is this review positive or negative?",
        "Classify the sentiment as positive or negative.",
        "Decide whether the review is positive or negative.",
    )
    label, zh = ("positive", "正面") if good else ("negative", "负面")
    return _labelled(
        rng, "en", rng.choice(asked), text, label, ["positive", "negative"], "This review is {}.", f"这条评论是{zh}的。"
    )


def _topic(rng: Random) -> Task:
    label = rng.choice(list(_HEADLINES))
    zh = {"sports": "体育", "weather": "天气", "science": "科学", "food": "美食"}[label]
    asked = (
        "Which topic fits: sports, weather, science or food?",
        "Label the headline as sports, weather, science or food.",
        "Sort this headline into sports, weather, science or food.",
    )
    return _labelled(
        rng,
        "en",
        rng.choice(asked),
        rng.choice(_HEADLINES[label]),
        label,
        list(_HEADLINES),
        "The headline is about {}.",
        zh,
    )


def _tone(rng: Random) -> Task:
    label = rng.choice(list(_MESSAGES))
    zh = "正式" if label == "formal" else "非正式"
    return _labelled(
        rng,
        "en",
        rng.choice(("Is this message formal or informal?", "Is the tone formal or informal?")),
        rng.choice(_MESSAGES[label]),
        label,
        list(_MESSAGES),
        "The message is {}.",
        f"语气是{zh}的。",
    )


def _sentiment_zh(rng: Random) -> Task:
    label = rng.choice(list(_SENTIMENTS_ZH))
    text = f"{rng.choice(('我觉得', '说实话', ''))}{rng.choice(_SUBJECTS_ZH)}{rng.choice(_SENTIMENTS_ZH[label])}。"
    english = "It is positive." if label == "正面" else "It is negative."
    return _labelled(
        rng, "zh", "这条评价是正面还是负面？", text, label, list(_SENTIMENTS_ZH), "这条评价是{}的。", english
    )


FAMILY = Family(
    name="classification",
    over_refused={"en": "judging texts", "zh": "评判文字"},
    templates=(
        Template(id="classification.sentiment", language="en", draw=_sentiment, rows=16),
        Template(id="classification.topic", language="en", draw=_topic, rows=14),
        Template(id="classification.tone", language="en", draw=_tone, rows=6, held_out=True),
        Template(id="classification.sentiment_zh", language="zh", draw=_sentiment_zh, rows=10),
    ),
)
