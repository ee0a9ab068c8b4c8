"""What stages and evaluation are given, what they return, and the checks on what was handed to them. Layer 2."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.artefact import Artefact, TokenizerEntry
from pipeline.console import Console
from pipeline.durable import read_json, write_json_atomically
from pipeline.errors import TrivetError
from pipeline.faults import reach
from pipeline.models.source import BaseIdentity
from pipeline.recipe.engines import NO_ENGINE, Engine, stage_engine
from pipeline.recipe.lineage import split_part
from pipeline.recipe.schema import Recipe
from pipeline.reward_function import RewardFunction
from pipeline.runtime import Ranks, StopRequest, barrier
from pipeline.stopping import stop_if_asked
from pipeline.tracking import Tracker

TRAIN_PROMPTS = "train_prompts.txt"
"""In an artefact: hashes of the prompts that its model, or one that it grew from, was trained on."""
HELD_OUT_PAIRS = "held_out_pairs.jsonl"
"""In a DPO artefact or reward model: each held-out pair's margin, with its family and fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageContext:
    """Everything a stage may look at besides its own settings."""

    recipe: Recipe
    stage: str
    folder: Path
    """The artefact's folder, to be filled; only the first rank writes results into it."""
    parents: Mapping[str, Artefact]
    """Opened and checked, by role."""
    base: BaseIdentity
    base_folder: Path
    ranks: Ranks
    stop: StopRequest
    console: Console
    tracker: Tracker
    reward_function: RewardFunction | None = None
    """The user's own reward, where the command line names one."""
    part: str = ""
    """Which of several trainings inside the stage this is for; the checkpoints of each lie apart."""

    @property
    def checkpoints(self) -> Path:
        """Where the stage's checkpoints lie while it runs."""
        return self.folder / "checkpoints" / self.part

    @property
    def data_part(self) -> str | None:
        """The entry of `data.split` that says which prompts this stage trains on; None where it takes all."""
        return split_part(self.recipe, self.stage)

    @property
    def aside(self) -> Path | None:
        """Where rows of the data that cannot be used are written; None on all ranks but the first."""
        return self.folder if self.ranks.is_first else None

    @property
    def work(self) -> Path:
        """Intermediate results that survive an interruption but are not part of the artefact."""
        return self.folder / "work"

    def expect_steps(self, steps: int) -> None:
        """Note how many steps there will be, for whoever looks on; every rank may call this."""
        if self.ranks.is_first:
            self.work.mkdir(parents=True, exist_ok=True)
            write_json_atomically(self.work / "steps.json", {"steps": steps})

    def progress(self, task: str) -> Callable[[int, int], None]:
        """Tells the console how far a task is, and ends it there if asked to stop: for what changes no state."""

        def tell(done: int, total: int) -> None:
            self.console.progress(task, done, total)
            stop_if_asked(f"stage {self.stage} was at its {task}")

        return tell


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What goes into the manifest besides what the worker knows itself."""

    form: Literal["adapter", "model", "none"]
    tokenizer: TokenizerEntry
    precision: str
    device: str
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


Stage = Callable[[StageContext], StageResult]


def engine_of(context: StageContext) -> Engine:
    """What spreads the stage's training over the ranks; evaluation has no engine."""
    settings = context.recipe.stages.get(context.stage)
    return NO_ENGINE if settings is None else stage_engine(settings.deepspeed, os.environ)


def once(context: StageContext, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result that an interrupted and repeated stage computes only once: kept in the stage's work folder.

    Every rank must call this; all compute or none does, as the file's presence is agreed through a barrier.
    """
    path = context.work / f"{name}.json"
    barrier()
    if path.is_file():
        return dict(read_json(path))
    value = compute()
    reach("measured")
    barrier()
    if context.ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, value)
        reach("measured.kept")
    barrier()
    return value


def require_same_tokenizer(context: StageContext, mine: TokenizerEntry) -> None:
    """`require_one_tokenizer` of a stage's parents."""
    require_one_tokenizer(f"stage {context.stage}", context.parents, mine)


def require_one_tokenizer(who: str, artefacts: Mapping[str, Artefact], mine: TokenizerEntry) -> None:
    """Refuse artefacts whose tokens mean something else here.

    Args:
        who: uses them, as the sentence is to begin.
        artefacts: by the role that they play.
        mine: the tokenizer that they are used with.

    Raises:
        TrivetError: naming both sides and what differs.
    """
    for role, found in artefacts.items():
        differing = found.manifest.tokenizer.differences(mine)
        if differing:
            theirs = {name: getattr(found.manifest.tokenizer, name) for name in differing}
            ours = {name: getattr(mine, name) for name in differing}
            raise TrivetError(
                f"{who}: its {_called(role, found)} was made with another tokenizer or chat template "
                f"({_short(theirs)}) than is used here ({_short(ours)}); give both the same data.chat_template and "
                f"model.base, or remake it with `--force {found.manifest.stage}`"
            )


def require_same_base(context: StageContext) -> None:
    """`require_one_base` of a stage's parents."""
    require_one_base(f"stage {context.stage}", context.parents, context.base)


def require_one_base(who: str, artefacts: Mapping[str, Artefact], mine: BaseIdentity) -> None:
    """Refuse artefacts whose adapter belongs to other base weights; arguments as for `require_one_tokenizer`.

    Raises:
        TrivetError: naming both sides.
    """
    for role, found in artefacts.items():
        base = found.manifest.base
        if base.fingerprint != mine.fingerprint:
            raise TrivetError(
                f"{who}: its {_called(role, found)} belongs to base {base.name} ({base.fingerprint[:12]}), used here "
                f"is {mine.name} ({mine.fingerprint[:12]}); give both the same model.base, or remake it with "
                f"`--force {found.manifest.stage}`"
            )


def _called(role: str, found: Artefact) -> str:
    """The evaluation's policies have no role but their name."""
    stage = found.manifest.stage
    return stage if role == stage else f"{role} {stage}"


def seen_prompts(parents: Mapping[str, Artefact]) -> frozenset[str]:
    """Hashes of every prompt that the given policies were trained on."""
    found: set[str] = set()
    for parent in parents.values():
        path = parent.path / TRAIN_PROMPTS
        if path.is_file():
            found.update(path.read_text(encoding="utf-8").split())
    return frozenset(found)


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:12]}" for name, value in values.items())
