"""`trivet sweep RECIPE --over KEY=V1,V2`: a run for each value, one after the other, and their comparison.

Every run goes the way of `trivet run`, in a run directory of its own beside one store, so that stages which do not
depend on the keys are made once. All recipes are read before the first run begins. Layer 5.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import comparing, faults
from pipeline.console import Console, terminal_console
from pipeline.durable import read_json
from pipeline.errors import PreemptedError, RecipeError, TrivetError
from pipeline.starting import ending_of, forget_exit_file, listen, planned, record_exit, record_run, supervisor_of
from pipeline.stopping import FLAG

if TYPE_CHECKING:
    from pipeline.plan import Decision
    from pipeline.runtime import Ranks
    from pipeline.supervisor import Supervisor


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One run of a sweep, checked and ready."""

    folder: Path
    """As a person types it from here."""
    changes: tuple[str, ...]
    """What tells it from the others, as `key=value`."""
    supervisor: Supervisor
    decisions: Sequence[Decision]
    """What it would do now."""


@dataclass(slots=True)
class Outcome:
    """How far a sweep has come."""

    done: list[Path] = field(default_factory=list)
    failed: dict[Path, tuple[int, str]] = field(default_factory=dict)
    """Code and sentence of each run that failed, or was not begun as what it needs had failed."""
    broken: dict[str, Path] = field(default_factory=dict)
    """Key of each stage that failed, and in which run."""


class SweepFailed(TrivetError):
    """Some runs of a sweep failed; carries their code where it is one, else 1."""

    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.exit_code = code


def register(parser: argparse.ArgumentParser) -> None:
    """Add what `trivet sweep` takes besides the recipe."""
    parser.add_argument(
        "--over", metavar="KEY=V1,V2,...", action="append", required=True,
        help="a run for each value of a key; repeated, for each combination",
    )  # fmt: skip
    parser.add_argument("--plan", action="store_true", help="show what each run would do and why, then stop")
    comparing.add_files(parser)
    parser.set_defaults(action=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from pipeline.processes import launched_by_a_launcher
    from pipeline.runtime import Ranks
    from pipeline.worker import die_with_parent

    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        raise RecipeError(
            f"sweep: was started as {ranks.world_size} processes, and runs each run in one; for several, queue the "
            "runs by `trivet submit --array-over`, or start each by `accelerate launch pipeline/run.py` with --set"
        )
    comparing.require_places(options)
    if launched_by_a_launcher():
        die_with_parent()
    console = terminal_console()
    elements = _elements(options, ranks, console)
    if options.plan:
        _show_plan(elements)
        return 0
    if warning := faults.arm():
        print(warning, file=sys.stderr)
    listen(ranks)
    forget_exit_file()
    outcome = _walk(elements, console)
    _compare(outcome, options)
    if outcome.failed:
        raise _failure(outcome, options)
    record_exit(0, "")
    return 0


def _elements(options: argparse.Namespace, ranks: Ranks, console: Console) -> list[Element]:
    """All runs, none of which has begun: a mistake in the last one's recipe or data costs nothing."""
    from pipeline.combinations import changes_of, run_dir_of, stem_of
    from pipeline.preflight import check_data
    from pipeline.run_dir import require_run_dir

    changes = changes_of(options.over, "--over")
    stem = stem_of(options.recipe, options.overrides, changes, options.output_dir)
    found = []
    for index, each in enumerate(changes):
        folder = run_dir_of(stem, index)
        own = {**vars(options), "overrides": [*options.overrides, *each], "output_dir": folder}
        supervisor = supervisor_of(argparse.Namespace(**own), ranks, console)
        require_run_dir(Path(folder).absolute())
        decisions = supervisor.plan()
        to_make = [decision.node.name for decision in decisions if decision.action == "run"]
        check_data(supervisor.loaded.recipe, to_make)
        found.append(Element(folder=Path(folder), changes=each, supervisor=supervisor, decisions=decisions))
    return found


def _walk(elements: Sequence[Element], console: Console) -> Outcome:
    """Run one after the other; what fails is said and left behind, a request to stop ends all."""
    outcome = Outcome()
    for at, element in enumerate(elements):
        if FLAG.asked:
            raise PreemptedError(
                f"asked to stop before {element.folder}; run the same command again to go on from there"
            )
        console.say(f"run {at + 1} of {len(elements)}: {element.folder}  {'  '.join(element.changes)}")
        if _is_finished(element):
            console.say("finished earlier")
            outcome.done.append(element.folder)
        elif (broken := _broken(element, outcome)) is not None:
            stage, where = broken
            code, _ = outcome.failed[where]
            _note(element, outcome, (code, f"not begun: it needs the stage {stage} that failed in {where}"))
        else:
            _go(element, outcome)
    return outcome


def _go(element: Element, outcome: Outcome) -> None:
    try:
        element.supervisor.run()
        code, sentence = 0, ""
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        code, sentence = ending_of(error, element.folder)
        record_run(element.folder, code, sentence)
        if isinstance(error, KeyboardInterrupt) or code == PreemptedError.exit_code:
            raise
        outcome.broken.update(dict.fromkeys(_failed_keys(element.folder), element.folder))
        _note(element, outcome, (code, sentence))
        return
    record_run(element.folder, code, sentence)
    outcome.done.append(element.folder)


def _note(element: Element, outcome: Outcome, ending: tuple[int, str]) -> None:
    outcome.failed[element.folder] = ending
    print(f"{element.folder}: {ending[1]}", file=sys.stderr)


def _is_finished(element: Element) -> bool:
    """Whether this very run came to its end here: its last mark is a success, of this recipe and these stages."""
    from pipeline.ledger import previous_keys

    if any(decision.action != "skip" for decision in element.decisions):
        return False
    try:
        ended = read_json(element.folder / "exit.json")["code"] == 0
        same = (element.folder / "recipe.yaml").read_text(encoding="utf-8") == element.supervisor.loaded.resolved_yaml()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    keys = {decision.node.name: decision.node.key for decision in element.decisions}
    return ended and same and previous_keys(element.folder) == keys


def _broken(element: Element, outcome: Outcome) -> tuple[str, Path] | None:
    """A stage that an earlier run of this sweep failed to make, which this one would try in just the same way."""
    nodes = (decision.node for decision in element.decisions)
    return next(((node.name, outcome.broken[node.key]) for node in nodes if node.key in outcome.broken), None)


def _failed_keys(folder: Path) -> list[str]:
    from pipeline.ledger import LEDGER

    try:
        rows = read_json(folder / LEDGER)["stages"]
        return [str(row["key"]) for row in rows if row["status"] == "failed"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _compare(outcome: Outcome, options: argparse.Namespace) -> None:
    """Show the runs that are done side by side, where there are several."""
    from evaluation.comparison import compare_runs

    if len(outcome.done) < 2:
        return
    print()
    try:
        comparing.show(compare_runs(outcome.done), options)
    except TrivetError as error:
        # The runs are done all the same: values that change what is measured, or on what, cannot stand side by side.
        if options.html or options.csv:
            raise
        print(f"no comparison: {error}")
        return
    print(f"again: {shlex.join(['trivet', 'compare', *map(str, outcome.done)])}")


def _failure(outcome: Outcome, options: argparse.Namespace) -> SweepFailed:
    codes = {code for code, _ in outcome.failed.values()}
    whole = len(outcome.done) + len(outcome.failed)
    folders = ", ".join(map(str, outcome.failed))
    sentence = f"{len(outcome.failed)} of {whole} runs are not done: {folders}; why is said above; mend it, and "
    return SweepFailed(codes.pop() if len(codes) == 1 else 1, f"{sentence}`{_again(options)}` goes on with them alone")


def _again(options: argparse.Namespace) -> str:
    words = ["trivet", "sweep", options.recipe]
    for flag, values in (
        ("--over", options.over), ("--set", options.overrides), ("--reward", [options.reward]),
        ("--output-dir", [options.output_dir]), ("--store", [options.store]), ("--html", [options.html]),
        ("--csv", [options.csv]),
    ):  # fmt: skip
        words += [word for value in values if value for word in (flag, value)]
    return shlex.join(words)


def _show_plan(elements: Sequence[Element]) -> None:
    made: dict[str, Path] = {}
    for element in elements:
        print(f"{os.fspath(element.folder)}  {'  '.join(element.changes)}")
        for decision in element.decisions:
            node = decision.node
            if decision.action == "run" and node.key in made:
                print(f"  {node.name:<14} is taken over from {made[node.key]}  ({node.key[:16]})")
                continue
            if decision.action == "run":
                made[node.key] = element.folder
            print(f"  {planned(decision)}")
