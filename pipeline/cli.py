"""The command line: `trivet run`, `plan`, `submit`, `status`, `data`, `compare` ... Light until there is work to do."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import comparing, data_commands, data_inspection, data_pipeline, evaluating, faults, pushing, status
from pipeline.console import Console, terminal_console
from pipeline.durable import full_disk, write_text_atomically
from pipeline.errors import BusyError, DiskError, PreemptedError, RecipeError, TrivetError
from pipeline.redaction import guard_streams, redacted
from pipeline.run_dir import is_run_dir
from pipeline.slurm import options as slurm_options

if TYPE_CHECKING:
    from pipeline.runtime import Ranks
    from pipeline.supervisor import Supervisor


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Parse, act, and exit with the code of `errors`: one sentence for a user's mistake, never a traceback."""
    options = argparse.Namespace()
    guard_streams()
    try:
        _parser().parse_args(arguments, options)
        code = options.action(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # `trivet schema | head`: whoever read has seen enough, and the interpreter must not try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except TrivetError as error:
        code = _fail(options, error.exit_code, str(error))
    except KeyboardInterrupt:
        code = _fail(options, 1, "interrupted")
    except Exception as error:
        if full := full_disk(error, Path(getattr(error, "filename", None) or getattr(options, "run_dir", None) or ".")):
            sys.exit(_fail(options, full.exit_code, str(full)))
        traceback.print_exc()
        code = _fail(options, 1, f"unexpected {type(error).__name__}: {error}")
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints end like every other user's mistake."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(f"{message}; `{self.prog} --help` lists what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="trivet", description="Three-stage alignment training from one recipe and one command.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a recipe; running it again goes on, or shows that all is done")
    _add_recipe_arguments(run)
    part = run.add_mutually_exclusive_group()
    part.add_argument("--only", metavar="STAGE", help="run this stage alone; what it needs must be finished")
    part.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument("--force", metavar="STAGE", action="append", default=[], help="make this stage anew (repeatable)")
    run.add_argument("--no-reuse", action="store_true", help="train everything anew, apart from other runs' results")
    run.add_argument("--plan", action="store_true", help="show what would run and why, then stop")
    run.add_argument("--in-process", action="store_true", help="run stages inside this process, for debugging")
    run.set_defaults(action=_run)
    plan = commands.add_parser("plan", help="show what a run would do and why")
    _add_recipe_arguments(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(action=_plan)
    submit = commands.add_parser("submit", help="run a recipe as Slurm jobs, one per stage, each after the other")
    _add_recipe_arguments(submit)
    slurm_options.register(submit)
    status.register(commands.add_parser("status", help="show how far a run is, and its Slurm jobs"))
    data = commands.add_parser("data", help="convert data, and look at what would be trained on")
    kinds = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    data_inspection.register(kinds)
    data_commands.register(kinds)
    data_pipeline.register(kinds)
    comparing.register(commands)
    evaluating.register(commands)
    pushing.register(commands)
    schema = commands.add_parser("schema", help="print the JSON Schema of recipes, for editors")
    schema.set_defaults(action=_schema)
    return parser


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, such as recipes/alpaca_dpo.yaml")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="change a key, such as stages.dpo.beta=0.2; VALUE is YAML (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--reward",
        metavar="FILE:FUNCTION",
        help="your own reward for PPO, called with prompts and answers",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="run directory (default: runs/<name>)")
    parser.add_argument("--store", metavar="DIR", help="folder of shared artefacts (default: .store beside the run)")


def _run(options: argparse.Namespace) -> int:
    from pipeline.processes import launched_by_a_launcher
    from pipeline.runtime import Ranks
    from pipeline.worker import die_with_parent

    if launched_by_a_launcher():
        # A launcher that is killed outright leaves its children alive otherwise, and they hold the lock.
        die_with_parent()
    if options.plan:
        return _plan(options)
    ranks = Ranks.from_environment()
    warning = faults.arm()
    if warning and ranks.is_first:
        print(warning, file=sys.stderr)
    _listen(ranks)
    if ranks.is_first:
        _forget_exit_file()
    _supervisor(options, ranks, terminal_console() if ranks.is_first else Console(None)).run()
    if ranks.is_first:
        _record(options, 0, "")
    return 0


def _listen(ranks: Ranks) -> None:
    """Between stages a request to stop ends the run at once: what is written here is written whole or not at all.

    The first rank ends it; the others remember, and wait for its word.
    """
    from pipeline.processes import note_request

    def stop(number: int, frame: Any) -> None:
        for other in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(other, signal.SIG_IGN)
        raise PreemptedError("asked to stop; run the same command again to go on")

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop if ranks.is_first else note_request)


def _forget_exit_file() -> None:
    """Remove an earlier run's outcome: a job script must not take it for this one's if this one is killed."""
    path = Path(os.environ.get("TRIVET_EXIT_FILE") or os.devnull)
    if path.is_file() and not path.is_symlink():
        path.unlink()


def _plan(options: argparse.Namespace) -> int:
    from pipeline.runtime import Ranks

    decisions = _supervisor(options, Ranks.from_environment(), Console(None)).plan()
    rows = [
        {"stage": d.node.name, "kind": d.node.kind, "action": d.action, "reason": d.reason, "key": d.node.key[:16]}
        for d in decisions
    ]
    if getattr(options, "json", False):
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        does = {"run": "will run", "skip": "is done ", "leave": "stays   "}[row["action"]]
        print(f"{row['stage']:<14} {does}  {row['reason']}  ({row['key']})")
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pipeline.recipe import recipe_json_schema

    print(json.dumps(recipe_json_schema(), indent=2))
    return 0


def _supervisor(options: argparse.Namespace, ranks: Ranks, console: Console) -> Supervisor:
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


def _fail(options: argparse.Namespace, code: int, sentence: str) -> int:
    """Say what went wrong, once however many processes there are."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(sentence, file=sys.stderr)
        _record(options, code, sentence)
    return code


def _record(options: argparse.Namespace, code: int, sentence: str) -> None:
    """Leave the outcome where a job script can read it: launchers turn every code into 1."""
    outcome = json.dumps({"code": code, "sentence": redacted(sentence)}) + "\n"
    folder = getattr(options, "run_dir", None)
    try:
        if place := os.environ.get("TRIVET_EXIT_FILE"):
            Path(place).write_text(outcome)
    except OSError as error:
        print(f"(could not write {place}: {error})", file=sys.stderr)
    if folder is not None and is_run_dir(folder) and code != BusyError.exit_code:
        try:
            write_text_atomically(folder / "exit.json", outcome)
        except (OSError, DiskError) as error:
            print(f"(could not write {folder / 'exit.json'}: {error})", file=sys.stderr)
