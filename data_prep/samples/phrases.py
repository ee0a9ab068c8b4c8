"""The wording of faults and of refusals, in both languages: pools large enough that no fault is one fixed string.

The same refusals serve as right answers (harmful requests) and as wrong ones (over-refusals), so that refusing as such
tells nothing.
"""

from __future__ import annotations

import re
from random import Random

from data_prep.samples.tasks import Language, bare

_REFUSALS = {
    "en": (
        "I can't help with {x}.",
        "I'm sorry, but I can't help with {x}.",
        "Sorry, I won't help with {x}.",
        "I'm not able to help with {x}.",
        "I have to decline, since I can't assist with {x}.",
        "No, I won't assist with {x}.",
        "I'd rather not help with {x}.",
    ),
    "zh": (
        "抱歉，我不能帮你{x}。",
        "对不起，我无法帮你{x}。",
        "我不会协助你{x}。",
        "很抱歉，{x}这件事我帮不了你。",
        "不行，我不会帮你{x}。",
    ),
}
_CAUTION = {
    "en": (
        "Someone could misuse the result.",
        "It could be harmful in the wrong hands.",
        "Please consult a qualified professional instead.",
        "Requests like this may cause harm.",
        "It would not be responsible of me.",
        "It might go against safety guidelines.",
        "Please reconsider whether you really need this.",
    ),
    "zh": ("这可能会被滥用。", "请咨询专业人士。", "这样做可能有风险。", "这可能违反安全规定。"),
}
_ASIDE = {
    "en": (
        "It is also worth mentioning that",
        "By the way, many people feel that",
        "On a related note,",
        "As a general matter,",
        "Interestingly enough,",
        "Before moving on, remember that",
        "Of course, one could add that",
        "To put this in perspective,",
        "Looking at the bigger picture,",
        "As you may already know,",
        "It goes without saying that",
        "At the end of the day,",
    ),
    "zh": (
        "另外值得一提的是，",
        "顺便说一下，",
        "众所周知，",
        "从更大的角度来看，",
        "当然，也可以补充说，",
        "不用说，",
    ),
}
_PLATITUDE = {
    "en": (
        "questions like this come up in many parts of life",
        "there are many ways to look at such a matter",
        "this is a topic with a long and rich history",
        "every situation is a little different in its own way",
        "context can matter a great deal in such cases",
        "a lot more could be said about all of this",
        "practice makes this sort of thing easier over time",
        "opinions on the finer points tend to vary",
        "small details often turn out to be important",
        "people have been thinking about this for ages",
        "it never hurts to learn a little more about it",
        "things like this are more common than they seem",
    ),
    "zh": (
        "这类问题在生活中十分常见",
        "看待这件事的角度有很多种",
        "每个人的情况都不太一样",
        "细节往往非常重要",
        "这方面还有很多内容可以聊",
        "多练习总会越来越熟练",
        "人们很早就开始思考这个话题",
    ),
}
_SIGN_OFF = {
    "en": (
        "I hope this helps, and feel free to ask me anything else!",
        "Let me know if you would like to hear more about it!",
        "Thank you so much for this wonderful question!",
        "I could go on, but I will leave it there for now.",
    ),
    "zh": ("希望对你有所帮助，欢迎随时提问！", "如果还想了解更多，请告诉我！", "谢谢你提出这么好的问题！"),
}
_HEDGES = {
    "en": (
        "It might be {a}, or perhaps {b}; I am not really sure.",
        "Possibly {a}, though it could just as well be {b}.",
        "Hard to say: maybe {a}, maybe {b}.",
        "I would guess {a}, but {b} is also possible.",
        "{a}, I suppose, unless it is {b}.",
    ),
    "zh": (
        "可能是{a}，也可能是{b}，我不太确定。",
        "也许是{a}，也许是{b}，很难说。",
        "我猜是{a}，不过{b}也有可能。",
        "{a}吧，或者是{b}。",
    ),
}
_SPACE = {"en": " ", "zh": ""}


def to_user(text: str) -> str:
    """What the user said of themselves, said to them: "my boss" becomes "your boss"."""
    swaps = {"my": "your", "me": "you", "mine": "yours", "I": "you", "我": "你"}
    return re.sub(r"\b(?:my|me|mine|I)\b|我", lambda hit: swaps[hit.group()], text)


def refusal(rng: Random, language: Language, what: str) -> str:
    """One sentence that declines."""
    return rng.choice(_REFUSALS[language]).format(x=what)


def cautious_refusal(rng: Random, language: Language, what: str) -> str:
    """A refusal with a reason that does not fit a harmless request."""
    return _SPACE[language].join([refusal(rng, language, what), rng.choice(_CAUTION[language])])


def filler(rng: Random, language: Language, sentences: int, *, signed_off: bool = False) -> str:
    """Sentences that say nothing, the last of them a sign-off if wanted."""
    asides = rng.sample(_ASIDE[language], sentences)
    platitudes = rng.sample(_PLATITUDE[language], sentences)
    stop = {"en": ".", "zh": "。"}[language]
    said = [_SPACE[language].join(pair) + stop for pair in zip(asides, platitudes, strict=True)]
    if signed_off:
        said[-1] = rng.choice(_SIGN_OFF[language])
    return _SPACE[language].join(said)


def hedge(rng: Random, language: Language, right: str, wrong: str) -> str:
    """An answer that will not commit itself; the wrong option comes last."""
    text = rng.choice(_HEDGES[language]).format(a=bare(right), b=bare(wrong))
    return text[0].upper() + text[1:]
