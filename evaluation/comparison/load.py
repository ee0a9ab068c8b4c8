"""Runs as they are compared: the report's records, with short labels, and what sampling measured prompt by prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from evaluation.report import files
from evaluation.report.load import EVALUATION, Run, Stage, load_run
from pipeline.errors import DataError, RecipeError
from pipeline.recipe.schema import Recipe

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One line of `sampled.jsonl`: a policy's sampled answer to one prompt and what was measured of it."""

    prompt_id: str
    prompt: str
    """The whole conversation, as one text."""
    policy: str
    response: str
    figures: Mapping[str, float | None]
    """`kl` in nats, `score`, and whatever else was measured; None where it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One run under the label that it has beside the others."""

    label: str
    run: Run
    recipe: Mapping[str, Any]
    """As resolved, by this version where it can; empty where it could not be read."""
    sampled: tuple[Sampled, ...]
    best_of_n: Mapping[int, Mapping[str, float | None]]
    """n to prompt id to the expected best score."""
    demonstrations: tuple[str, ...] = ()
    """The held-out demonstrations behind perplexities, each by its place and its length in tokens."""
    pairs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By policy the held-out pairs behind its preference accuracy, each by its source and its place there."""

    def stage(self, name: str) -> Stage | None:
        """A stage by its name."""
        return next((stage for stage in self.run.stages if stage.name == name), None)

    def identity(self, policy: str) -> str:
        """What the policy is, whatever run it stands in: its artefact's key, or the base model's name and print."""
        if policy == BASE:
            made = next((stage.provenance for stage in self.run.stages if stage.provenance), None)
            return f"base {made.base if made else self.label}"
        stage = self.stage(policy)
        return stage.key if stage and stage.key else f"{self.label}/{policy}"

    @property
    def score_by(self) -> str:
        """The key of the reward model behind the scores; empty for none."""
        return self.identity(self.run.score_by) if self.run.score_by else ""

    @property
    def score_heldout_by(self) -> str:
        """The key of the reward model behind the held-out scores, which no policy was trained against; or empty."""
        return self.identity(self.run.score_heldout_by) if self.run.score_heldout_by else ""

    def judge_of(self, metric: str) -> str:
        """The key of the reward model that a measure is by; empty for one that needs none."""
        return {"score": self.score_by, "score_heldout": self.score_heldout_by}.get(metric, "")

    @property
    def evaluated(self) -> bool:
        """Whether any policy of the run has figures."""
        return bool(self.run.policies)


def load_runs(directories: Sequence[Path]) -> list[ComparedRun]:
    """Read every run, in the order given.

    Raises:
        DataError: a folder does not exist or holds no run.
        RecipeError: a folder is named twice.
    """
    places = [Path(os.path.normpath(Path(directory).expanduser())) for directory in directories]
    resolved = [place.resolve() for place in places]
    for place, real in zip(places, resolved, strict=True):
        if resolved.count(real) > 1:
            raise RecipeError(f"compare: {place} is named twice; name each run once")
    labels = _labels([place.resolve() for place in places])
    return [_run(place, label) for place, label in zip(places, labels, strict=True)]


def _run(place: Path, label: str) -> ComparedRun:
    run = load_run(place)
    if not any((place / name).is_file() for name in ("run.json", "results.json", "recipe.yaml")):
        raise DataError(
            f"{place} holds no run (neither run.json nor results.json); name a run directory, as in runs/NAME"
        )
    return with_rows(run, label)


def with_rows(run: Run, label: str) -> ComparedRun:
    """A run that was read already, under a label, with what its evaluation left prompt by prompt."""
    return ComparedRun(
        label=label,
        run=run,
        recipe=_recipe(run.recipe),
        sampled=tuple(_sampled(run.directory / EVALUATION)),
        best_of_n=_best_of_n(run.directory / EVALUATION),
        demonstrations=_demonstrations(run.directory / EVALUATION),
        pairs={policy: _pairs(run.directory / policy) for policy in run.policies},
    )


def _recipe(text: str) -> Mapping[str, Any]:
    """A resolved recipe, with the defaults of keys that came after it: to say them and not to know them is the same."""
    try:
        written = files.mapping(yaml.safe_load(text))
        return Recipe.model_validate(written).model_dump(mode="json", by_alias=True)
    except yaml.YAMLError:
        return {}
    except ValidationError:
        return written


def _sampled(folder: Path) -> list[Sampled]:
    # Evaluations of older versions lack the file; what that means is said where values per prompt are asked for.
    lines = files.read_jsonl(folder / "sampled.jsonl", [], "sampled.jsonl")
    told = {"prompt_id", "policy", "prompt", "response", "tokens", "eos", "ids", "logp"}
    return [
        Sampled(
            prompt_id=files.text(line.get("prompt_id")),
            prompt=conversation(line.get("prompt")),
            policy=files.text(line.get("policy")),
            response=files.text(line.get("response")),
            figures={name: files.number(value) for name, value in line.items() if name not in told},
        )
        for line in lines
    ]


def _best_of_n(folder: Path) -> dict[int, dict[str, float | None]]:
    found: dict[int, dict[str, float | None]] = {}
    for line in files.read_jsonl(folder / "best_of_n.jsonl", [], "best_of_n.jsonl"):
        n = files.whole(line.get("n"))
        if n is not None:
            found.setdefault(n, {})[files.text(line.get("prompt_id"))] = files.number(line.get("score"))
    return found


def _demonstrations(folder: Path) -> tuple[str, ...]:
    lines = files.read_jsonl(folder / "perplexity.jsonl", [], "perplexity.jsonl")
    return tuple(dict.fromkeys(f"{line.get('row_id')}: {line.get('tokens')}" for line in lines))


def _pairs(folder: Path) -> tuple[str, ...]:
    lines = files.read_jsonl(folder / "held_out_pairs.jsonl", [], "held_out_pairs.jsonl")
    # The same file may lie in another folder in another run.
    return tuple(f"{Path(files.text(line.get('source'))).name}: {line.get('row')}" for line in lines)


def conversation(turns: object) -> str:
    """A prompt as one text that no other prompt has."""
    return "\n".join(
        f"{files.text(turn.get('role'))}: {files.text(turn.get('content'))}" for turn in files.objects(turns)
    )


def _labels(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: `s17`, or `a/s17` and `b/s17`."""
    longest = max(len(place.parts) for place in places)
    for length in range(1, longest + 1):
        labels = ["/".join(place.parts[-length:]) for place in places]
        if len(set(labels)) == len(labels):
            return labels
    return [str(place) for place in places]
