"""What `trivet submit` takes on the command line. Light: everything else is imported once it is asked for."""

from __future__ import annotations

import argparse


def register(parser: argparse.ArgumentParser) -> None:
    """Add what `trivet submit` takes besides the recipe."""
    parser.add_argument("--nodes", metavar="N", type=int, help="nodes per job (default: 1)")
    parser.add_argument("--gpus-per-node", metavar="G", type=int, help="GPUs on each node, one process for each")
    parser.add_argument("--cpus-per-task", metavar="C", type=int, help="cores of each process")
    parser.add_argument("--mem", metavar="M", help="memory per node, such as 64G")
    parser.add_argument("--time", metavar="T", help="time limit of each job, such as 12:00:00")
    parser.add_argument("--partition", metavar="P", help="partition")
    parser.add_argument("--account", metavar="A", help="account to charge")
    parser.add_argument("--qos", metavar="Q", help="quality of service")
    parser.add_argument("--site", metavar="FILE", help="YAML file that says what the cluster needs (docs/slurm.md)")
    parser.add_argument("--one-job", action="store_true", help="one job for all stages instead of one for each")
    parser.add_argument(
        "--array-over", metavar="KEY=V1,V2,...", action="append", default=[],
        help="a job array with a run for each value; repeated, for each combination",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the scripts, write and submit nothing")
    parser.add_argument("--json", action="store_true", help="print what was submitted as JSON")
    parser.set_defaults(action=_submit)


def _submit(options: argparse.Namespace) -> int:
    from pipeline.slurm.submit import submit

    return submit(options)
