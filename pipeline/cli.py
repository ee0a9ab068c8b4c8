"""The command line: `trivet run`, `plan`, `sweep`, `submit`, `compare` ... Light until there is work to do."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline import (
    comparing,
    data_commands,
    data_inspection,
    data_pipeline,
    evaluating,
    faults,
    pushing,
    status,
    sweeping,
)
from pipeline.console import Console, terminal_console
from pipeline.errors import RecipeError
from pipeline.redaction import guard_streams
from pipeline.slurm import options as slurm_options
from pipeline.starting import (
    ending_of,
    forget_exit_file,
    listen,
    planned,
    planned_engine,
    record_exit,
    record_run,
    supervisor_of,
    tells_the_end,
)


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
    except (Exception, KeyboardInterrupt) as error:
        code = _fail(options, error)
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
    sweep = commands.add_parser("sweep", help="a run for each value of recipe keys, one after the other, and compared")
    _add_recipe_arguments(sweep)
    sweeping.register(sweep)
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
    listen(ranks)
    if ranks.is_first:
        forget_exit_file()
    supervisor_of(options, ranks, terminal_console() if ranks.is_first else Console(None)).run()
    if ranks.is_first:
        _record(options, 0, "")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from pipeline.runtime import Ranks

    decisions = supervisor_of(options, Ranks.from_environment(), Console(None)).plan()
    if getattr(options, "json", False):
        rows = [
            {
                "stage": d.node.name, "kind": d.node.kind, "action": d.action, "reason": d.reason,
                "engine": planned_engine(d), "key": d.node.key[:16],
            }
            for d in decisions
        ]  # fmt: skip
        print(json.dumps(rows, indent=2))
        return 0
    for decision in decisions:
        print(planned(decision))
    return 0


def _schema(options: argparse.Namespace) -> int:
    from pipeline.recipe import recipe_json_schema

    print(json.dumps(recipe_json_schema(), indent=2))
    return 0


def _fail(options: argparse.Namespace, error: BaseException) -> int:
    """Say what went wrong, once however many processes there are."""
    folder = getattr(options, "run_dir", None)
    code, sentence = ending_of(error, folder)
    if tells_the_end(error, folder):
        print(sentence, file=sys.stderr)
        _record(options, code, sentence)
    return code


def _record(options: argparse.Namespace, code: int, sentence: str) -> None:
    record_exit(code, sentence)
    record_run(getattr(options, "run_dir", None), code, sentence)
