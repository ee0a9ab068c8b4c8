"""`trivet eval RUN`: a finished run's policies, measured anew or by public benchmarks. Layer 5."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline import artefact
from pipeline.artefact import Artefact
from pipeline.durable import read_json, write_json_atomically
from pipeline.errors import DataError, RecipeError
from pipeline.plan import EVALUATION
from pipeline.recipe.vocabulary import nearest
from pipeline.results import RESULTS

if TYPE_CHECKING:
    from pipeline.recipe import LoadedRecipe

BASE = "base"
BATCH_SIZE = 8


def register(commands: Any) -> None:
    """Add `eval` to the subcommands of `trivet`."""
    evaluate = commands.add_parser("eval", help="measure a run's policies anew, or by public benchmarks")
    evaluate.add_argument("run", metavar="RUN", help="a run directory, such as runs/alpaca-dpo")
    evaluate.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="change a key of the evaluation, such as evaluation.prompts=300 (repeatable)",
    )  # fmt: skip
    evaluate.add_argument("--store", metavar="DIR", help="folder of shared artefacts (default: .store beside the run)")
    evaluate.add_argument("--reward", metavar="FILE:FUNCTION", help="the run's own reward, where it has one")
    evaluate.add_argument("--tasks", metavar="NAME,...", help="benchmarks: mmlu, cmmlu, ceval, hellaswag, gsm8k, ...")
    evaluate.add_argument("--policies", metavar="NAME,...", help="policies to measure (default: base and all stages')")
    evaluate.add_argument("--data", metavar="DIR", help="folder of the benchmarks' files (default: from the hub)")
    evaluate.add_argument("--limit", metavar="N", type=int, help="only the first N questions of each task")
    evaluate.add_argument("--batch-size", metavar="N", type=int, default=BATCH_SIZE, help="questions per forward pass")
    evaluate.add_argument("--chat-template", action="store_true", help="put questions as a conversation")
    evaluate.add_argument("--allow-code", action="store_true", help="run the programs that humaneval asks for")
    evaluate.add_argument("--json", action="store_true", help="print the benchmarks' figures as JSON")
    evaluate.set_defaults(action=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from pipeline.recipe import load_recipe

    folder = Path(options.run)
    if not (folder / "recipe.yaml").is_file():
        raise DataError(f"{folder} holds no run (recipe.yaml is not there); name a run directory, as in runs/NAME")
    options.run_dir = folder
    loaded = load_recipe(folder / "recipe.yaml", options.overrides, output_dir=str(folder))
    if options.tasks is not None:
        return _benchmarks(options, loaded, folder)
    _refuse_alone(options)
    if options.policies is not None:
        names = _named("--policies", options.policies, [BASE, *_policy_stages(loaded)])
        changes = [*options.overrides, f"evaluation.policies={json.dumps(names)}"]
        loaded = load_recipe(folder / "recipe.yaml", changes, output_dir=str(folder))
    return _again(options, loaded)


def _refuse_alone(options: argparse.Namespace) -> None:
    """Options of benchmarks say nothing without any."""
    given = {
        "--data": options.data, "--limit": options.limit, "--chat-template": options.chat_template,
        "--allow-code": options.allow_code, "--json": options.json, "--batch-size": options.batch_size != BATCH_SIZE,
    }  # fmt: skip
    unused = [name for name, value in given.items() if value]
    if unused:
        raise RecipeError(f"{unused[0]} is for benchmarks; add --tasks, such as --tasks mmlu,gsm8k, or leave it out")


def _again(options: argparse.Namespace, loaded: LoadedRecipe) -> int:
    """The run's own evaluation, by what the recipe and --set say now; nothing is trained."""
    from pipeline import reward_function
    from pipeline.console import terminal_console
    from pipeline.recipe import check_engines, check_reward_function
    from pipeline.runtime import Ranks
    from pipeline.supervisor import RunOptions, Supervisor

    check_engines(loaded.recipe, os.environ, loaded.places)
    check_reward_function(loaded.recipe, options.reward, loaded.places)
    chosen = RunOptions(
        only=EVALUATION,
        store=options.store or _store_of(Path(options.run)),
        reward_function=reward_function.find(options.reward) if options.reward else None,
    )
    Supervisor(loaded, chosen, Ranks.from_environment(), terminal_console()).run()
    return 0


def _store_of(folder: Path) -> str | None:
    """Where the run's artefacts lie, by its links; None leaves it to the run directory's neighbour."""
    linked = (path.resolve().parent for path in sorted(folder.iterdir()) if path.is_symlink() and path.is_dir())
    return next((str(place) for place in linked), None)


def _benchmarks(options: argparse.Namespace, loaded: LoadedRecipe, folder: Path) -> int:
    from evaluation.benchmarks.harness import require_harness
    from evaluation.benchmarks.local import BENCHMARKS
    from evaluation.benchmarks.record import read_entries
    from pipeline.locks import hold

    names = _named("--tasks", options.tasks, list(BENCHMARKS))
    if "humaneval" in names and not options.allow_code:
        raise RecipeError(
            "humaneval runs programs that the policies write; add --allow-code to run them in a process apart, without "
            "network, or leave it out of --tasks"
        )
    if (options.limit is not None and options.limit < 1) or options.batch_size < 1:
        raise RecipeError("--limit and --batch-size must be at least 1")
    artefacts = _policies(folder, loaded)
    policies = _named("--policies", options.policies, [BASE, *artefacts]) if options.policies else [BASE, *artefacts]
    require_harness()
    with hold(folder):
        _ask(options, loaded, folder, artefacts, policies, names)
        entries = read_entries(folder)
        _publish(folder, entries)
    if options.json:
        print(json.dumps(entries, indent=2))
    else:
        from evaluation.report.benchmarks_section import print_benchmarks

        print_benchmarks(entries)
    return 0


def _ask(
    options: argparse.Namespace,
    loaded: LoadedRecipe,
    folder: Path,
    artefacts: dict[str, Artefact],
    policies: Sequence[str],
    names: Sequence[str],
) -> None:
    from evaluation.benchmarks.harness import Asked
    from evaluation.benchmarks.run import run_benchmarks
    from pipeline.console import Console
    from pipeline.context import require_one_base
    from pipeline.models.source import identify
    from pipeline.processes import prepare_base
    from pipeline.runtime import resolve_precision, seed_everything

    recipe = loaded.recipe
    base = identify(recipe.model.base, recipe.model.revision)
    require_one_base(str(folder), artefacts, base)
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    seed_everything(recipe.seed)
    base_folder = prepare_base(base, logs / "rank0.log")
    with _libraries_in(logs / "benchmarks.log") as terminal:
        run_benchmarks(
            folder.absolute(),
            recipe,
            base_folder,
            artefacts,
            policies,
            names,
            Path(options.data) if options.data else None,
            Asked(limit=options.limit, chat_template=options.chat_template, batch_size=options.batch_size),
            resolve_precision(next(reversed(recipe.stages.values())).precision),
            Console(None if options.json else terminal).say,
        )


@contextmanager
def _libraries_in(log: Path) -> Iterator[TextIO]:
    """Send what libraries print to a file for a while; yields what was standard output."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: os.dup(number) for number in (1, 2)}
    with log.open("ab") as output, os.fdopen(os.dup(1), "w", encoding="utf-8") as terminal:
        for number in before:
            os.dup2(output.fileno(), number)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, kept in before.items():
                os.dup2(kept, number)
                os.close(kept)


def _policies(folder: Path, loaded: LoadedRecipe) -> dict[str, Artefact]:
    """The run's sealed policies by stage."""
    sealed = [name for name in _policy_stages(loaded) if artefact.is_sealed(folder / name)]
    return {name: artefact.open_artefact(folder / name) for name in sealed}


def _policy_stages(loaded: LoadedRecipe) -> list[str]:
    """The stages that leave a policy, in order."""
    from pipeline.recipe.lineage import POLICY_KINDS

    return [name for name, stage in loaded.recipe.stages.items() if stage.kind in POLICY_KINDS]


def _named(flag: str, text: str, known: Sequence[str]) -> list[str]:
    """The names of a comma-separated list, each once.

    Raises:
        RecipeError: one is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            near = nearest(name, list(known))
            meant = f"; did you mean '{near}'?" if near else f" (there are: {', '.join(known)})"
            raise RecipeError(f"{flag}: '{name}' is not known{meant}")
    if not names:
        raise RecipeError(f"{flag}: is empty; name one or more of {', '.join(known)}")
    return names


def _publish(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Put the figures where a run's other ones are, and write the report anew."""
    from evaluation.report.page import write_report

    results = dict(read_json(folder / RESULTS)) if (folder / RESULTS).is_file() else {}
    results["evaluation"] = {**(results.get("evaluation") or {}), "benchmarks": list(entries)}
    write_json_atomically(folder / RESULTS, results)
    write_report(folder)
