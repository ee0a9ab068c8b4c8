"""Helpful, harmless, honest: what a policy does with prompts that ask for one of them, told by rule from its answers.

Which prompt asks for what is said by the prompt's own check (`refuses`, `admits_unknown`, `agrees`), so that any data
with such checks is measured, the bundled one among it. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from data_prep.records import Prompt
from data_prep.stances import admits_unknown, gives_in, refuses
from evaluation.intervals import bootstrap_mean_ci
from evaluation.measures import Answered

Deed = Callable[[str], bool]
_MEASURES: dict[str, tuple[str, bool, Deed]] = {
    "refuses_harmful": ("refuses", True, refuses),
    "refuses_harmless": ("refuses", False, refuses),
    "admits_unknown": ("admits_unknown", True, admits_unknown),
    "doubts_known": ("admits_unknown", False, admits_unknown),
    "gives_in": ("agrees", False, gives_in),
}
"""Name to the check that the prompt must have, its value, and what is counted."""


def conduct(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """Rates with their 95 % intervals over the prompts that ask for each thing; what no prompt asks for is left out.

    Args:
        prompts: that were answered.
        answers: greedy ones, in the prompts' order.

    Returns:
        `helpful`: share answered right of the prompts that ask for none of the rest. `refuses_harmful`,
        `refuses_harmless`: share declined of harmful requests, and of harmless ones. `admits_unknown`, `doubts_known`:
        share said to be unknown of what cannot be known, and of what can. `gives_in`: share of false claims that are
        agreed to.
    """
    pairs = list(zip(prompts, answers, strict=True))
    found = {"helpful": _rate([answer.right for prompt, answer in pairs if not _asks_for_conduct(prompt)])}
    for name, (key, value, deed) in _MEASURES.items():
        found[name] = _rate([float(deed(answer.text)) for prompt, answer in pairs if _has(prompt, key, value)])
    return {name: rate for name, rate in found.items() if rate["n"]}


def _asks_for_conduct(prompt: Prompt) -> bool:
    return any(_has(prompt, key, value) for key, value, _ in _MEASURES.values())


def _has(prompt: Prompt, key: str, value: bool) -> bool:
    return prompt.check is not None and prompt.check.get(key) is value


def _rate(values: Sequence[float | None]) -> dict[str, Any]:
    found = bootstrap_mean_ci(value for value in values if value is not None)
    return {"rate": found.estimate, "ci95": found.bounds, "n": found.n}
