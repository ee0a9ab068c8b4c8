"""How often a reward model scores a policy's answer above the reference's to the same prompt. Pure functions.

A mean score can rise by a few answers that fool the model; a win counts every prompt alike. Answers that score alike
are ties and count one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.intervals import SHARE, bootstrap_mean_ci

NO_FAMILY = "none named"
LENGTHS = ("longer", "equal", "shorter")
"""The policy's answer beside the reference's, in tokens."""


def score_wins(
    scores: Mapping[str, Sequence[float]],
    tokens: Mapping[str, Sequence[int]],
    families: Sequence[str | None],
    reference: str,
) -> dict[str, dict[str, Any]]:
    """Win rates of every policy but the reference, over all prompts, by family and by length of the answer.

    Args:
        scores: by policy, prompt by prompt.
        tokens: of the same answers.
        families: of the prompts.
        reference: the policy that the others are held against.

    Returns:
        By policy `win_rate`, `ci95`, `ties`, `n`, and the same under `by_family` and `by_length` for each label.
    """
    found = {}
    for name, given in scores.items():
        if name == reference:
            continue
        values = [_share(b, a) for a, b in zip(scores[reference], given, strict=True)]
        lengths = [_length(b, a) for a, b in zip(tokens[reference], tokens[name], strict=True)]
        found[name] = {
            **_rate(values),
            "by_family": _by([family or NO_FAMILY for family in families], values),
            "by_length": _by(lengths, values, LENGTHS),
        }
    return found


def _share(mine: float, other: float) -> float:
    return 0.5 if mine == other else float(mine > other)


def _length(mine: int, other: int) -> str:
    return "equal" if mine == other else "longer" if mine > other else "shorter"


def _by(labels: Sequence[str], values: Sequence[float], order: Sequence[str] | None = None) -> dict[str, Any]:
    groups: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(label, []).append(value)
    return {label: _rate(groups[label]) for label in order or sorted(groups) if label in groups}


def _rate(values: Sequence[float]) -> dict[str, Any]:
    found = bootstrap_mean_ci(values, within=SHARE)
    ties = sum(value == 0.5 for value in values)
    return {"win_rate": found.estimate, "ci95": found.bounds, "ties": ties, "n": found.n}
