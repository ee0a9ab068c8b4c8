"""How a run begins and what it leaves of its end: one way for `trivet run` and for each run of `trivet sweep`.

Light until a recipe is loaded. Layer 5.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.console import Console
from pipeline.durable import full_disk, write_text_atomically
from pipeline.errors import BusyError, DiskError, PreemptedError, TrivetError
from pipeline.peers import PeerGone
from pipeline.redaction import redacted
from pipeline.run_dir import is_run_dir
from pipeline.stopping import FLAG

if TYPE_CHECKING:
    from pipeline.plan import Decision
    from pipeline.runtime import Ranks
    from pipeline.supervisor import Supervisor


_LATE_SECONDS = 2.0


def supervisor_of(options: argparse.Namespace, ranks: Ranks, console: Console) -> Supervisor:
    """The recipe that the command line names, read, checked and ready to run; its folder is noted in the options.

    Raises:
        RecipeError: the recipe, or what changes it, is wrong.
    """
    from pipeline import reward_function
    from pipeline.recipe import check_batches, check_engines, check_reward_function, load_recipe
    from pipeline.supervisor import RunOptions, Supervisor

    loaded = load_recipe(Path(options.recipe), options.overrides, output_dir=options.output_dir)
    check_batches(loaded.recipe, ranks.world_size, loaded.places)
    check_engines(loaded.recipe, os.environ, loaded.places)
    check_reward_function(loaded.recipe, options.reward, loaded.places)
    options.run_dir = loaded.output_dir
    chosen = RunOptions(
        only=getattr(options, "only", None),
        until=getattr(options, "until", None),
        force=tuple(getattr(options, "force", ())),
        store=options.store,
        reuse=not getattr(options, "no_reuse", False),
        in_process=getattr(options, "in_process", False),
        reward_function=reward_function.find(options.reward) if options.reward else None,
    )
    return Supervisor(loaded, chosen, ranks, console)


def planned(decision: Decision) -> str:
    """One line on what a run would do with a stage, and why."""
    does = {"run": "will run", "skip": "is done ", "leave": "stays   "}[decision.action]
    engine = planned_engine(decision)
    under = f", under {engine}" if engine else ""
    return f"{decision.node.name:<14} {does}  {decision.reason}{under}  ({decision.node.key[:16]})"


def planned_engine(decision: Decision) -> str:
    """What would spread a stage over the ranks if it runs; empty where nothing does."""
    from pipeline.recipe.engines import stage_engine

    engine = stage_engine(decision.node.settings.get("stage", {}).get("deepspeed", "none"), os.environ)
    return str(engine) if decision.action == "run" and engine.kind != "none" else ""


def listen(ranks: Ranks) -> None:
    """Between stages a request to stop ends the run at once: what is written here is written whole or not at all.

    The first rank ends it; the others remember, and wait for its word.
    """
    from pipeline.processes import note_request

    def stop(number: int, frame: Any) -> None:
        for other in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(other, signal.SIG_IGN)
        # Where Python can only ignore what is raised, as between a fork and its return, the flag is what remains.
        FLAG.asked = True
        raise PreemptedError("asked to stop; run the same command again to go on")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop if ranks.is_first else note_request)


def forget_exit_file() -> None:
    """Remove an earlier run's outcome: a job script must not take it for this one's if this one is killed."""
    path = Path(os.environ.get("TRIVET_EXIT_FILE") or os.devnull)
    if path.is_file() and not path.is_symlink():
        path.unlink()


def ending_of(error: BaseException, folder: Path | None) -> tuple[int, str]:
    """Exit code and sentence of what ended a run; a defect of ours shows its traceback, a person's mistake never.

    Args:
        error: what was raised.
        folder: the run directory, which a full disk is named by.
    """
    if isinstance(error, TrivetError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 1, "interrupted"
    if isinstance(error, Exception) and (
        full := full_disk(error, Path(getattr(error, "filename", None) or folder or "."))
    ):
        return full.exit_code, str(full)
    traceback.print_exception(error)
    return 1, f"unexpected {type(error).__name__}: {error}"


def tells_the_end(error: BaseException, folder: Path | None) -> bool:
    """Whether it is this rank that says how the run ended: the first, or one of each machine where that is gone.

    Args:
        error: what ended it.
        folder: the run directory.
    """
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        return True
    if not isinstance(error, PeerGone) or (rank > 1 and int(os.environ.get("LOCAL_RANK", 0))):
        return False
    # Ended in good order it has said why, and a shared disk may show it late.
    time.sleep(_LATE_SECONDS)
    told = (folder and folder / "exit.json", Path(os.environ.get("TRIVET_EXIT_FILE") or os.devnull))
    return not any(path and path.is_file() for path in told)


def record_exit(code: int, sentence: str) -> None:
    """Leave a command's outcome where a job script can read it: launchers turn every code into 1."""
    if place := os.environ.get("TRIVET_EXIT_FILE"):
        try:
            Path(place).write_text(_outcome(code, sentence))
        except OSError as error:
            print(f"(could not write {place}: {error})", file=sys.stderr)


def record_run(folder: Path | None, code: int, sentence: str) -> None:
    """Leave a run's outcome in its folder, once there is one; a folder that another process holds is left alone."""
    if folder is not None and is_run_dir(folder) and code != BusyError.exit_code:
        try:
            write_text_atomically(folder / "exit.json", _outcome(code, sentence))
        except (OSError, DiskError) as error:
            print(f"(could not write {folder / 'exit.json'}: {error})", file=sys.stderr)


def _outcome(code: int, sentence: str) -> str:
    return json.dumps({"code": code, "sentence": redacted(sentence)}) + "\n"
