"""What several families share: names, and questions whose answer is a number, a word or a list."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from data_prep.samples import phrases
from data_prep.samples.tasks import Language, Task, near, numeral

NAMES = ("Ravi", "Mia", "Tom", "Elena", "Sam", "Nora", "Ben", "Aisha", "Leo", "Clara", "Omar", "Julia")
NAMES_ZH = ("小明", "小红", "小刚", "小丽", "小华", "小芳", "小强", "小雨")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEEKDAYS_ZH = tuple(f"星期{day}" for day in "一二三四五六日")

BRIEF = {
    "en": ("Reply with the number only.", "Give only the number.", "Just the number, please.", "Answer with a number."),
    "zh": ("只回答数字。", "请只写出数字。", "直接给出数字。"),
}
ONE_WORD = {
    "en": ("Answer with one word.", "Reply with one word only.", "One word, please."),
    "zh": ("只用一个词回答。", "请只回答一个词。"),
}
SENTENCE = {
    "en": ("Answer in a full sentence.", "Reply with one complete sentence.", "Use a full sentence."),
    "zh": ("请用一句完整的话回答。", "用完整的句子回答。"),
}

SHOWN = {
    "en": (
        "Show the calculation, then answer.",
        "Give the calculation and the answer.",
        "Write down the calculation too.",
    ),
    "zh": ("请写出算式再回答。", "写出算式和答案。"),
}


def brief_bound(language: Language) -> dict[str, int]:
    """The length a bare answer may have: a short phrase around it is forgiven, an explanation is not."""
    return {"max_words": 8} if language == "en" else {"max_chars": 14}


def sentence_bound(language: Language, answer: str) -> dict[str, Any]:
    """The length of an answer in one full sentence."""
    if language == "en":
        return {"min_words": 4, "max_words": max(16, len(answer.split()) + 4), "language": "en"}
    return {"min_chars": 5, "max_chars": max(24, len(answer) + 8), "language": "zh"}


def numeric(
    rng: Random,
    language: Language,
    *,
    question: str,
    value: float,
    given: Sequence[float],
    sentence: str,
    working: str,
    foreign: str,
    key: str,
    calculation: str = "",
    so: str = "",
) -> Task:
    """A question for a number: for the number alone, for a full sentence, or for the calculation with it.

    `sentence`, `foreign` and `calculation` hold `{}` where the number goes; `foreign` is the sentence in the other
    language, `working` the long-winded way to the same result, `so` what follows the calculation if not the sentence.
    """
    right, wrong, off = numeral(value), numeral(near(rng, value)), numeral(near(rng, value))
    if wrong == off or float(off.replace(",", "")) in given:
        off = numeral(value + 7)
    check: dict[str, Any] = {"number": value} | ({"given": list(given)} if given else {})
    doubt = [phrases.hedge(rng, language, right, off)]
    form = rng.choice(("brief", "sentence", "shown") if calculation else ("brief", "sentence"))
    if form == "brief":
        return Task(
            prompt=_joined(language, question, rng.choice(BRIEF[language])),
            answer=right,
            check=check | brief_bound(language),
            faults={"wrong_fact": [wrong], "ignored_format": [working], "needless_doubt": doubt},
            key=key,
        )
    if form == "shown":
        end = so or sentence.replace("There are", "there are")
        told = f"{calculation}, so {end}" if language == "en" else f"{calculation}\uff0c所以{end}"
        check["regex"] = "="
    else:
        told = sentence
    return Task(
        prompt=_joined(language, question, rng.choice((SHOWN if form == "shown" else SENTENCE)[language])),
        answer=told.format(right, right),
        check=check | sentence_bound(language, told),
        faults={
            "wrong_fact": [told.format(wrong, wrong)],
            "ignored_format": [right, sentence.format(right)] if form == "shown" else [right],
            "wrong_language": [foreign.format(right)],
            "needless_doubt": doubt,
        },
        key=key,
    )


def _joined(language: Language, *parts: str) -> str:
    return (" " if language == "en" else "").join(parts)


def listing(items: Sequence[str], language: Language, *, as_bullets: bool) -> str:
    """Items on one line or as bullets."""
    if as_bullets:
        return "\n".join(f"- {item}" for item in items)
    return ("、" if language == "zh" else ", ").join(items)


def list_task(
    rng: Random,
    language: Language,
    *,
    question: str,
    context: str,
    items: Sequence[str],
    wrong: Sequence[Sequence[str]],
    prose: str,
    foreign: str,
    key: str,
) -> Task:
    """A question for a list, wanted either on one line or as bullets; `prose` is the same told at length."""
    bullets = rng.random() < 0.35
    form = {
        ("en", False): ("Separate them with commas.", "Give only the list, with commas.", "Write them on one line."),
        ("en", True): ("Put each on its own line with a dash.", "Use a bullet list.", "Give a bulleted list."),
        ("zh", False): ("用顿号隔开。", "只写出结果，用顿号分隔。"),
        ("zh", True): ("每行一个，前面加短横线。", "请用项目符号列出。"),
    }[language, bullets]
    check: dict[str, Any] = {"bullets" if bullets else "items": list(items)}
    wrong_form = [prose, listing(items, language, as_bullets=False)] if bullets else [prose]
    return Task(
        prompt=_joined(language, question, rng.choice(form)),
        context=context,
        answer=listing(items, language, as_bullets=bullets),
        check=check,
        faults={
            "wrong_fact": [listing(other, language, as_bullets=bullets) for other in wrong],
            "ignored_format": wrong_form,
            "wrong_language": [foreign],
        },
        key=key,
    )
