"""`trivet data pipeline`: the rules that ask of one row, over many files and machines, by datatrove. Layer 5.

`register` adds the command; what it does is in `data_prep.distributed`, which is imported when it is called.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RecipeError, SourceUnreachableError
from pipeline.slurm.scheduler import is_there

if TYPE_CHECKING:
    from pipeline.recipe.schema import DataSettings


def register(commands: Any) -> None:
    """Add `pipeline` to the subcommands of `trivet data`."""
    parser = commands.add_parser("pipeline", help="clean files row by row, in many processes or on a Slurm cluster")
    parser.add_argument("recipe", help="a YAML file; its sources and `clean` rules are what counts")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the rows go; named again, it goes on")
    parser.add_argument(
        "--data", choices=("sft", "preference"), help="which data set (default: the only one of the recipe)"
    )
    parser.add_argument(
        "--tasks", type=_positive, metavar="N", help="how many tasks share the files (default: a file each)"
    )
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="tasks at a time (default: 1; with --slurm, all)"
    )
    parser.add_argument("--slurm", metavar="PARTITION", help="submit the tasks as an array to this partition")
    parser.add_argument(
        "--time", default="24:00:00", metavar="TIME", help="limit of a task on Slurm (default: 24:00:00)"
    )
    parser.add_argument("--memory", type=_positive, default=4, metavar="GB", help="of a task on Slurm (default: 4)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides",
        help="change a key of the recipe; VALUE is YAML (repeatable)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the account as JSON")
    parser.set_defaults(action=_pipeline)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def _pipeline(options: argparse.Namespace) -> int:
    from data_prep.distributed.job import account_of, begin, job_of
    from pipeline.recipe import load_recipe

    try:
        from data_prep.distributed import executors
    except ImportError as error:
        raise RecipeError(f"trivet data pipeline needs datatrove ({error}); pip install 'trivet[datatrove]'") from None
    data = load_recipe(Path(options.recipe), options.overrides).recipe.data
    name = _chosen(options.data, data)
    job = job_of(data, name)
    output = Path(options.output)
    tasks = min(options.tasks or len(job.files), len(job.files))
    begin(job, output, tasks)
    if options.slurm:
        executor = executors.slurm_executor(
            job, output, tasks, options.workers or -1, partition=options.slurm, time=options.time, memory=options.memory
        )
        _submit(executor, output)
        print(f"submitted {tasks} tasks; once they are done, the same command without --slurm adds up their accounts")
        return 0
    executors.local_executor(job, output, tasks, options.workers or 1).run()
    account = account_of(output)
    if options.json:
        print(json.dumps(account, ensure_ascii=False, indent=2))
    else:
        _print(account, name, [f"{output}/rows/{source}" for source in sorted({file.source for file in job.files})])
    return 0


def _submit(executor: Any, output: Path) -> None:
    """Hand the array to Slurm; sbatch has said on the terminal what it did not like.

    Raises:
        SourceUnreachableError: there is no Slurm.
        RecipeError: it was refused.
    """
    if not is_there():
        raise SourceUnreachableError(
            "sbatch is not on this machine's PATH; submit from a login node of the cluster, or leave --slurm out to "
            "clean on this machine"
        )
    try:
        executor.run()
    except subprocess.CalledProcessError as error:
        raise RecipeError(
            f"sbatch refused {output}/log/launch_script.slurm (code {error.returncode}, its words are above); correct "
            "--slurm PARTITION, --time or --memory, and run the same command again"
        ) from error


def _chosen(name: str | None, data: DataSettings) -> str:
    present = [each for each in ("sft", "preference") if getattr(data, each) is not None]
    if name is None and len(present) > 1:
        raise RecipeError("--data: the recipe has two data sets; say which, --data sft or --data preference")
    if name is not None and name not in present:
        raise RecipeError(f"--data {name}: the recipe has no data.{name}")
    return name or present[0]


def _print(account: dict[str, Any], name: str, folders: list[str]) -> None:
    """The account in words, and what to write in a recipe that goes on from here."""
    left_out = (("dropped", account["dropped"]), ("set aside", account["quarantined"]))
    told = [f"{account['rows_read']:,} rows read", f"{account['kept']:,} kept"]
    told += [f"{sum(counts.values()):,} {what} ({_listed(counts)})" for what, counts in left_out if counts]
    print(", ".join(told))
    gone = f"; {_listed(account['cleaned'])}" if account["cleaned"] else ""
    print(f"{account['records']:,} records: {account['train']:,} to train on, {account['held_out']:,} held out{gone}")
    sources = ", ".join(f"{{path: {folder}}}" for folder in folders)
    print(f"to go on with them: --set data.{name}.sources='[{sources}]'")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))
