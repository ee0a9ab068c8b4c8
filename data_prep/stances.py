"""What a text does towards its reader: decline, admit ignorance, contradict, give in. Read by `data_prep.checks`.

Recognised by the phrases people use for it, in English and Chinese. Layer 1, stdlib only.
"""

from __future__ import annotations

import re

from data_prep.text_forms import plain

_DEEDS = (
    "help|assist|support|provide|give|do|answer|offer|take|explain|tell|share|comply|fulfil|fulfill|recommend|engage|"
    "encourage|teach|show|discuss|participate|write|create|generate|process|handle"
)
_REFUSAL = (
    rf"\bi (?:really |simply )?(?:can't|cannot|can not|won't|will not)(?: \w+)? (?:{_DEEDS})\b",
    r"\bi (?:must decline|decline|would rather not|refuse)\b",
    r"\bi(?:'m| am) (?:really |simply )?(?:not able|unable|not going|not comfortable|not willing)",
    r"\bi(?:'d| would) rather not",
    r"\bi have to (?:decline|refuse)",
    r"\bnot something i (?:can|will)",
    r"\bi(?:'m| am) sorry, but",
    r"(?:不能|无法|不会|没法|不便|不可以)(?:再)?(?:帮|为你|提供|协助|教|告诉|回答|处理|支持|参与)",
    r"帮不了|做不到|恕不|拒绝",
)
_FULFILMENT = (r"\bhere(?:'s| is) how\b", r"\bstep (?:1|one)\b", r"\bfirst,", r"第一步|步骤如下|方法如下|首先")
_IGNORANCE = (
    r"\b(?:do|does|did)(?:n't| not) (?:know|say|tell|mention|state|give|include|specify)",
    r"\b(?:can't|cannot|could not|couldn't) (?:know|say|tell)",
    r"\b(?:isn't|is not|aren't|are not|wasn't|not) (?:known|given|stated|mentioned|included|specified|clear)",
    r"\bno (?:information|mention|way (?:to know|of knowing))|\bnot enough information",
    r"\bnot possible to (?:say|tell|know)",
    r"\bunknown\b|\bunclear\b",
    r"(?:没有|没|未|并未)(?:提到|提及|说明|写明|注明|给出|写|说|提)",
    r"不知道|不清楚|不确定|无法(?:得知|确定|判断|知道)",
)
_CONTRADICTION = (
    r"^(?:no|nope|not)\b",
    r"\bactually\b|\bincorrect\b|\bmistaken\b|\bthat's wrong\b|\bi have to disagree\b|\bi stand by\b",
    r"\b(?:not|isn't) (?:quite |really )?(?:right|correct|true)\b",
    r"^不|其实|并非|不正确|有误|错了",
)
_SURRENDER = (
    r"^(?:yes|yeah|right|correct|exactly|indeed|true|absolutely|of course|sure|good point|great point)\b",
    r"\byou(?:'re| are) (?:(?!not)\w+ )?(?:right|correct)\b",
    r"\bthat(?:'s| is) (?:(?!not)\w+ )?(?:right|correct|true)\b",
    r"\bi was wrong\b|\bmy mistake\b|\bas you say\b",
    r"^(?:对|是的|没错|正确|确实|当然|好的)|[你您]说得(?:很|非常)?对|是我(?:错|弄错|算错)了",
)


def _says(text: str, phrases: tuple[str, ...]) -> bool:
    flat = plain(text).lstrip("\"'“‘ ")
    return any(re.search(phrase, flat) for phrase in phrases)


def refuses(text: str) -> bool:
    """Whether the text declines the request and does not then explain how."""
    return _says(text, _REFUSAL) and not _says(text, _FULFILMENT)


def admits_unknown(text: str) -> bool:
    """Whether the text says that the answer is not known."""
    return _says(text, _IGNORANCE)


def contradicts(text: str) -> bool:
    """Whether the text tells the user that they are wrong."""
    return _says(text, _CONTRADICTION)


def gives_in(text: str) -> bool:
    """Whether the text tells the user that they are right."""
    return _says(text, _SURRENDER)
