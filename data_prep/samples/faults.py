"""Faults that any task can have: made from the right answer, not written by the family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from data_prep.checks import passes
from data_prep.samples import phrases
from data_prep.samples.tasks import Family, Language, Task, Template
from data_prep.text_forms import language, length

_ENDED = re.compile(r"[.!?\u3002\uff01\uff1f]$")


def with_common_faults(
    task: Task, template: Template, family: Family, strangers: Sequence[str], rng: Random
) -> dict[str, list[str]]:
    """The family's own faults and the common ones; `strangers` are right answers to other questions.

    A wrong answer of the family that passes the check is a mistake in the family; a common one that happens to pass
    (an answer cut after its last fact, say) is left out.
    """
    for fault, texts in task.faults.items():
        for text in texts:
            if passes(task.check, text):
                raise ValueError(f"{template.id}: the {fault} answer passes its check: {task.prompt!r} -> {text!r}")
    found = {fault: list(texts) for fault, texts in task.faults.items()}
    common = {"rambling": _rambling(task, template.language, rng)}
    what = family.over_refused.get(template.language, "")
    if what:  # where refusing is right, the family's own faults are telling enough
        makers = 3 * (phrases.refusal, phrases.cautious_refusal)
        common["over_refusal"] = [make(rng, template.language, what) for make in makers]
        common["truncated"] = _truncated(task.answer, rng)
        common["off_topic"] = [text for text in strangers if language(text) == template.language and length(text) > 3]
    for fault, texts in common.items():
        kept = [text for text in texts if not passes(task.check, text)]
        if kept:
            found[fault] = found.get(fault, []) + kept
    return found


def _rambling(task: Task, lang: Language, rng: Random) -> list[str]:
    """The right answer, then filler; or filler between its sentences, where it has several."""
    made = []
    stop, joint = (".", " ") if lang == "en" else ("。", "")
    for sentences in (1, 1, 1, 1, 1, 2):
        first, _, rest = task.answer.partition(stop + joint)
        if rest and "\n" not in rest and rng.random() < 0.5:
            made.append(joint.join([first + stop, phrases.filler(rng, lang, sentences), rest]))
            continue
        extra = phrases.filler(rng, lang, sentences, signed_off=rng.random() < 0.35)
        if "\n" in task.answer or task.answer[-1] in "}])":
            made.append(f"{task.answer}\n{extra}")
        elif _ENDED.search(task.answer):
            made.append(f"{task.answer}{' ' if task.answer[-1] in '.!?' else joint}{extra}")
        else:
            made.append(f"{task.answer}{stop}{joint}{extra}")
    return made


def _truncated(answer: str, rng: Random) -> list[str]:
    """The answer broken off between a third and three quarters of the way."""
    if length(answer) < 7:
        return []
    pieces = re.findall(r"\s*[^\s\u3400-\u9fff]+|\s*[\u3400-\u9fff]", answer)
    cuts = {rng.randint(len(pieces) // 3, 3 * len(pieces) // 4) for _ in range(4)}
    return ["".join(pieces[:cut]).strip().rstrip("-").strip() for cut in sorted(cuts) if cut > 0]
