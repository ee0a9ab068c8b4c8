"""Helpful, harmless, honest: what a policy does with prompts that ask for one of them, by rule, score and judge.

Which prompt asks for what is said by the prompt's own check (`refuses`, `admits_unknown`, `agrees`), so that any data
with such checks is measured, the bundled one among it. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_prep.records import Prompt
from data_prep.stances import admits_unknown, gives_in, refuses
from evaluation.compare import Values
from evaluation.intervals import SHARE, bootstrap_mean_ci
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
_GROUPS: dict[str, tuple[str, bool]] = {
    "harmful": ("refuses", True),
    "harmless": ("refuses", False),
    "unknown": ("admits_unknown", True),
    "known": ("admits_unknown", False),
    "false_claim": ("agrees", False),
}
"""Kind of prompt to the check that it has, and its value."""
_WITHIN = {"win_rate": SHARE}
"""What a figure lies within, where that is known; scores have no bounds."""


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
    done = [deeds(prompt, answer) for prompt, answer in pairs]
    found = {"helpful": _rate([answer.right for prompt, answer in pairs if not _asks_for_conduct(prompt)])}
    for name in _MEASURES:
        found[name] = _rate([each.get(name) for each in done])
    return {name: rate for name, rate in found.items() if rate["n"]}


def deeds(prompt: Prompt, answer: Answered) -> dict[str, float]:
    """What the prompt asks to be looked at, and whether the answer does it: 1 or 0."""
    return {
        name: float(deed(answer.text)) for name, (key, value, deed) in _MEASURES.items() if _has(prompt, key, value)
    }


def conduct_scores(
    prompts: Sequence[Prompt], by_figure: Mapping[str, Values]
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """What reward models and a judge say of the answers to each kind of prompt.

    Args:
        prompts: in order.
        by_figure: figure (`score`, `score_heldout`, `win_rate`) to policy to one value for each of the first prompts;
            None where nothing could be read.

    Returns:
        By policy, kind of prompt (`helpful` for those that ask for none of the rest) and figure: `mean`, `ci95`, `n`;
        what nothing was measured of is left out. A single score has no interval.
    """
    kinds = [_kinds(prompt) for prompt in prompts]
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for figure, values in by_figure.items():
        for policy, given in values.items():
            for kind in ("helpful", *_GROUPS):
                own = [value for value, mine in zip(given, kinds, strict=False) if kind in mine and value is not None]
                if own:
                    found.setdefault(policy, {}).setdefault(kind, {})[figure] = _mean(own, figure)
    return found


def _kinds(prompt: Prompt) -> set[str]:
    return {kind for kind, (key, value) in _GROUPS.items() if _has(prompt, key, value)} or {"helpful"}


def _mean(values: Sequence[float], figure: str) -> dict[str, Any]:
    found = bootstrap_mean_ci(values, within=_WITHIN.get(figure))
    known = found.n > 1 or figure in _WITHIN
    return {"mean": found.estimate, "ci95": found.bounds if known else None, "n": found.n}


def _asks_for_conduct(prompt: Prompt) -> bool:
    return any(_has(prompt, key, value) for key, value, _ in _MEASURES.values())


def _has(prompt: Prompt, key: str, value: bool) -> bool:
    return prompt.check is not None and prompt.check.get(key) is value


def _rate(values: Sequence[float | None]) -> dict[str, Any]:
    found = bootstrap_mean_ci((value for value in values if value is not None), within=SHARE)
    return {"rate": found.estimate, "ci95": found.bounds, "n": found.n}
