"""One stage in a fresh process: `python -P -m pipeline.worker`, with its assignment as JSON on standard input.

Every stage so gets clean memory and its own engine settings, and cannot take an earlier stage down. The worker opens
and checks its parents, runs the stage, and (first rank) seals the artefact. It tells the supervisor how it ended
through its exit code and one sentence through a pipe; a traceback goes to the log, which is where its output lands.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from pipeline import artefact, faults, peak_memory
from pipeline.artefact import Artefact, BaseModelEntry, Manifest, MemoryEntry, ParentEntry
from pipeline.assignment import MOST_WORDS, Assignment
from pipeline.console import Console, inherited_console, terminal_console
from pipeline.context import Stage, StageContext, StageResult
from pipeline.durable import full_disk
from pipeline.errors import TrivetError
from pipeline.locks import WORK_LOCK, clear, work_on
from pipeline.out_of_memory import gpu_memory, out_of_memory, phase
from pipeline.recipe.engines import NO_ENGINE, stage_engine
from pipeline.recipe.schema import Recipe
from pipeline.redaction import guard_streams, redacted
from pipeline.run_dir import require_own_folder
from pipeline.runtime import (
    PARENT,
    Ranks,
    StopRequest,
    barrier,
    code_state,
    gather_lists,
    library_versions,
    resolve_precision,
    seed_everything,
)
from pipeline.tracking import SilentTracker, Tracker
from pipeline.wandb_mirror import WandbMirror

_STAGES = {
    "sft": "pipeline.stages.sft",
    "reward": "pipeline.stages.reward",
    "ppo": "pipeline.stages.ppo",
    "dpo": "pipeline.stages.dpo",
    "evaluation": "evaluation.run",
}
_KINDS = {"reward": "reward_model", "evaluation": "evaluation"}
"""What a stage of each kind leaves, where that is not a policy."""
_PREDECESSOR_SECONDS = 60.0
"""How long to wait for a worker of a killed run to be gone."""


def main() -> None:
    """Run the assignment and exit with its code."""
    # A supervisor that is killed outright must not leave workers behind that hold the GPU and the lock.
    die_with_parent(int(os.environ.get(PARENT, 0)))
    guard_streams()
    assignment = Assignment.from_json(sys.stdin.read())
    stop = StopRequest()
    stop.listen()
    code, sentence = 0, ""
    try:
        faults.arm()
        _run(assignment, stop, inherited_console(assignment.console, f"{assignment.stage}: "))
    except TrivetError as error:
        traceback.print_exc()
        code, sentence = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, sentence = 1, "interrupted"
    except BaseException as error:
        traceback.print_exc()
        full = full_disk(error, Path(assignment.folder))
        code, sentence = (full.exit_code, str(full)) if full else (1, _explained(error, assignment))
    if assignment.exit_descriptor is not None:
        last_words = {"code": code, "sentence": redacted(sentence)[:MOST_WORDS]}
        os.write(assignment.exit_descriptor, json.dumps(last_words).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    # Other ranks may hang in a collective; a normal interpreter exit would wait for them.
    os._exit(code)


def _explained(error: BaseException, assignment: Assignment) -> str:
    """One sentence for an error that nobody foresaw, or for the one that everybody meets."""
    if type(error).__name__ == "OutOfMemoryError":
        recipe = Recipe.model_validate(assignment.recipe)
        stage = recipe.stages.get(assignment.stage)
        engine = stage_engine(stage.deepspeed, os.environ) if stage else NO_ENGINE
        world_size = Ranks.from_environment().world_size
        return out_of_memory(assignment.stage, recipe, engine, world_size, phase(error.__traceback__), gpu_memory())
    return f"{type(error).__name__}: {_first_line(error)}"


def run_here(assignment: Assignment) -> dict[str, object]:
    """Run a stage inside this process, for debugging and tests: errors propagate with their traceback."""
    _run(assignment, StopRequest(), terminal_console(f"{assignment.stage}: "))
    return {"rank": 0, "code": 0, "sentence": ""}


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies, and check that it has not died already.

    Args:
        parent: its process id where it is known: it may have died while this process was starting.
    """
    parent = parent or os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run(assignment: Assignment, stop: StopRequest, console: Console) -> None:
    ranks = Ranks.from_environment()
    folder = Path(assignment.folder)
    require_own_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with work_on(folder, _PREDECESSOR_SECONDS) if ranks.is_first else nullcontext():
        faults.reach("stage.begun", folder)
        _run_alone(assignment, stop, console, ranks, folder)


def _run_alone(assignment: Assignment, stop: StopRequest, console: Console, ranks: Ranks, folder: Path) -> None:
    """Run the stage as the only one at work on its folder."""
    # The supervisor withdrew what is to be made anew, so a seal can only be another run's that was faster.
    made_meanwhile = ranks.is_first and artefact.is_sealed(folder)
    if ranks.is_first and not made_meanwhile:
        # Half-written results of an interrupted attempt go; its checkpoints and metrics stay.
        clear(folder, keep={"metrics.jsonl", *artefact.WORKING_NAMES})
    started = time.time()
    peak_memory.begin()
    recipe = Recipe.model_validate(assignment.recipe)
    _start_peers(ranks, recipe)
    if any(gather_lists([made_meanwhile])):
        console.say("made by another run in the meantime")
        return
    _require_one_precision(recipe, assignment.stage)
    parents = {role: artefact.open_artefact(Path(path)) for role, path in assignment.parents.items()}
    tracker = _tracker(assignment, recipe, ranks, console, folder)
    context = StageContext(
        recipe=recipe,
        stage=assignment.stage,
        folder=folder,
        parents=parents,
        base=assignment.base,
        base_folder=Path(assignment.base_folder),
        ranks=ranks,
        stop=stop,
        console=console,
        tracker=tracker,
        reward_function=assignment.reward_function,
    )
    if recipe.model.quantization != "none":
        from pipeline.models.quantised import SLOW_ON_A_CPU, is_slow

        if is_slow():
            console.say(SLOW_ON_A_CPU)
    seed_everything(recipe.seed)
    stage: Stage = importlib.import_module(_STAGES[assignment.kind]).run
    result = stage(context)
    faults.reach("stage.finished", folder)
    barrier()
    memory = _memory(gather_lists([peak_memory.peak()]))
    if ranks.is_first:
        manifest = _manifest(assignment, context, result, parents, time.time() - started, memory)
        made = artefact.completed(context.folder, manifest)
        tracker.made(made, tuple(parents.values()))
        tracker.finish()
        artefact.write_seal(made)
        faults.reach("stage.sealed", folder)
        for name in artefact.WORKING_NAMES - {WORK_LOCK}:
            shutil.rmtree(folder / name, ignore_errors=True)
    barrier()


def _start_peers(ranks: Ranks, recipe: Recipe) -> None:
    """Join the other ranks' workers at this stage's own rendezvous; whoever hangs is waited for so long."""
    if ranks.world_size == 1:
        return
    import torch
    from accelerate import PartialState

    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    patience = {} if recipe.rank_timeout is None else {"timeout": timedelta(seconds=recipe.rank_timeout)}
    PartialState(cpu=not torch.cuda.is_available(), **patience)


def _require_one_precision(recipe: Recipe, stage: str) -> None:
    """Refuse ranks on hardware of several kinds, some of which would compute in bf16 and others in float32."""
    settings = recipe.stages.get(stage)
    if settings is None or settings.precision != "auto":
        return
    found = gather_lists([resolve_precision("auto")])
    if len(set(found)) > 1:
        told = "; ".join(
            f"{precision} on rank{'s' * (found.count(precision) > 1)} "
            + ", ".join(str(rank) for rank, each in enumerate(found) if each == precision)
            for precision in sorted(set(found))
        )
        raise TrivetError(
            f"stage {stage}: precision auto goes by the hardware, and the ranks' differs ({told}); write "
            f"`stages.{stage}.precision: fp32`, or launch on machines of one kind"
        )


def _tracker(assignment: Assignment, recipe: Recipe, ranks: Ranks, console: Console, folder: Path) -> Tracker:
    if not ranks.is_first:
        return SilentTracker()
    mirror = None
    if recipe.tracking.wandb is not None:
        mirror = WandbMirror(
            recipe.tracking.wandb,
            Path(assignment.run_dir),
            recipe.name,
            assignment.stage,
            assignment.key,
            console,
        )
        mirror.start(recipe.model_dump(mode="json", by_alias=True))
    return Tracker(folder / "metrics.jsonl", assignment.stage, mirror)


def _memory(peaks: Sequence[peak_memory.Peak]) -> MemoryEntry:
    """Of all ranks the one that took most."""
    on_gpus = [peak.gpu for peak in peaks if peak.gpu is not None]
    process_gib = max(peak.process for peak in peaks) / peak_memory.GIB
    gpu_gib = round(max(on_gpus) / peak_memory.GIB, 3) if on_gpus else None
    return MemoryEntry(process_gib=round(process_gib, 3), gpu_gib=gpu_gib)


def _manifest(
    assignment: Assignment, context: StageContext, result: StageResult, parents: dict[str, Artefact], seconds: float,
    memory: MemoryEntry,
) -> Manifest:  # fmt: skip
    return Manifest(
        kind=cast(Any, _KINDS.get(assignment.kind, "policy")),
        stage=assignment.stage,
        stage_kind=assignment.kind,
        key=assignment.key,
        algorithm_version=assignment.algorithm_version,
        settings=assignment.settings,
        parents=tuple(
            ParentEntry(role=role, stage=parent.manifest.stage, key=parent.manifest.key)
            for role, parent in parents.items()
        ),
        base=BaseModelEntry(
            name=context.base.name, revision=context.base.revision, fingerprint=context.base.fingerprint
        ),
        tokenizer=result.tokenizer,
        form=result.form,
        seed=context.recipe.seed,
        world_size=context.ranks.world_size,
        precision=result.precision,
        device=result.device,
        code=code_state(),
        libraries=library_versions(),
        data=result.data,
        metrics=result.metrics,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        memory=memory,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no message"


if __name__ == "__main__":
    main()
