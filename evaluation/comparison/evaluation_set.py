"""On what a run's policies were measured. Figures over different prompts are never put side by side."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evaluation.comparison.load import ComparedRun
from evaluation.comparison.recipes import flat
from pipeline.errors import DataError

_SETTINGS = ("prompts", "kl_prompts", "max_new_tokens")
"""Of `evaluation`: what decides which prompts are answered, and how far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """The prompts, in order, and how they were answered."""

    prompts: tuple[str, ...]
    settings: tuple[tuple[str, object], ...]

    @property
    def digest(self) -> str:
        """Short hash of the prompts."""
        return hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()[:12]


def evaluation_set(compared: ComparedRun) -> EvaluationSet | None:
    """What the run was evaluated on; None where it was not, or left no answers."""
    greedy = [_text(answer.prompt) for answer in compared.run.answers]
    found = tuple(dict.fromkeys(greedy or [row.prompt for row in compared.sampled]))
    if not (compared.evaluated and found):
        return None
    written = flat(compared.recipe)
    settings = tuple((name, written.get(f"evaluation.{name}")) for name in _SETTINGS)
    return EvaluationSet(prompts=found, settings=settings)


def require_one_set(runs: Sequence[ComparedRun]) -> EvaluationSet | None:
    """The set on which all evaluated runs were measured; None where none was.

    Raises:
        DataError: two were measured differently; the sentence names both and says what to type.
    """
    found = [(compared, kind) for compared in runs if (kind := evaluation_set(compared))]
    for (one, first), (other, second) in pairwise(found):
        if first.settings != second.settings:
            raise DataError(_other_settings(one, first, other, second))
        if first.prompts != second.prompts:
            raise DataError(
                f"{one.label} and {other.label} were evaluated on different prompts ({len(first.prompts)}, set "
                f"{first.digest}; {len(second.prompts)}, set {second.digest}), so their figures cannot "
                f"stand side by side; {_data_hint(one, other)}"
            )
    return found[0][1] if found else None


def _other_settings(one: ComparedRun, first: EvaluationSet, other: ComparedRun, second: EvaluationSet) -> str:
    differing = [
        (name, mine, theirs)
        for (name, mine), (_, theirs) in zip(first.settings, second.settings, strict=True)
        if mine != theirs
    ]
    told = ", ".join(f"evaluation.{name} is {mine} and {theirs}" for name, mine, theirs in differing)
    changes = " ".join(f"--set evaluation.{name}={mine}" for name, mine, _ in differing if mine is not None)
    command = evaluate_again(other, changes)
    return f"{one.label} and {other.label} were not evaluated alike ({told}); evaluate the second anew: {command}"


def _data_hint(one: ComparedRun, other: ComparedRun) -> str:
    mine, theirs = flat(one.recipe), flat(other.recipe)
    keys = sorted(key for key in {*mine, *theirs} if key.startswith("data.") and mine.get(key) != theirs.get(key))
    named = ", ".join(keys[:4]) or "the contents of their files"
    folder = shlex.quote(str(other.run.directory))
    return (
        f"what differs: {named}. Make it alike and run again, which trains anew what is trained on it: `trivet run "
        f"{folder}/recipe.yaml --output-dir {folder}`"
    )


def evaluate_again(compared: ComparedRun, changes: str = "") -> str:
    """The command that evaluates a run anew and trains nothing."""
    return f"`trivet eval {shlex.quote(str(compared.run.directory))} {changes}".rstrip() + "`"


def _text(prompt: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{role}: {content}" for role, content in prompt)
