"""What rows in pieces save: SFT on long rows, each process with rows of its own, and all together on each row.

    python -m benchmarks.pieces [--lengths 1024 2048] [--processes 3] [--deepspeed zero2] [--base FOLDER] [--json FILE]

As a user runs it: torchrun, TRL's trainer on both sides, LoRA r = 16 on all linear layers, the same rows, one in a
pass, as many in a step as there are processes. Printed are the largest resident set of any process and seconds per
step; on a machine without as many GPUs the processes share its cores, so that seconds say little. SmolLM2's nine heads,
three of them for keys and values, can be dealt out to 3 or 9 processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.meter import machine, run_measured
from pipeline.runtime import ROOT
from pipeline.tracking import read_metrics

STEPS = 3
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def main() -> None:
    """Measure, print, and write the figures where asked."""
    options = _options()
    print(machine(), flush=True)
    found = []
    with tempfile.TemporaryDirectory() as name:
        for length, size in itertools.product(options.lengths, (1, options.processes)):
            found.append(_run(Path(name) / f"{length}-{size}", length, size, options))
            print(
                "{length} tokens, each row on {size} of {processes} processes: {gib:.2f} GiB in the largest, "
                "{seconds:.1f} s a step, losses {losses}".format_map(found[-1]),
                flush=True,
            )
    for whole, apart in zip(found[::2], found[1::2], strict=True):
        print(f"{whole['length']} tokens: {apart['gib'] / whole['gib']:.2f} times the memory")
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine(), "runs": found}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048], help="tokens of the rows, about")
    parser.add_argument("--processes", type=int, default=3, help="that share a row")
    parser.add_argument("--deepspeed", default="zero2")
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args()


def _run(folder: Path, length: int, size: int, options: argparse.Namespace) -> dict[str, Any]:
    folder.mkdir()
    count = options.processes * STEPS
    # A word and its blank are one token.
    rows = [
        {
            "instruction": f"Count to {at}.",
            "input": "",
            "output": " ".join(itertools.islice(itertools.cycle(WORDS), length)),
        }
        for at in range(count)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    recipe = {
        "name": "pieces",
        "model": {"base": options.base, "adapter": {"type": "lora", "r": 16, "alpha": 32}},
        "data": {
            "sft": {"sources": [{"path": str(folder / "rows.json")}], "max_length": 2 * length, "eval_fraction": 0}
        },
        "stages": {
            "sft": {
                "engine": "trl", "deepspeed": options.deepspeed, "sequence_parallel_size": size,
                "per_device_batch_size": 1, "global_batch_size": options.processes, "max_steps": STEPS, "log_every": 1,
                "precision": "fp32",
            }
        },
        "evaluation": {"tasks": []},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _, gib = run_measured(
        [
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                str(options.processes), str(ROOT / "pipeline" / "run.py"), str(folder / "recipe.yaml"),
                "--output-dir", str(folder / "run"), "--store", str(folder / "store"),
            ]
        ]
    )  # fmt: skip
    lines = [each for each in read_metrics(folder / "run" / "sft" / "metrics.jsonl") if each["split"] == "train"]
    times = [each["time"] for each in lines if each["name"] == "loss"]
    return {
        "length": length, "size": size, "processes": options.processes, "deepspeed": options.deepspeed, "gib": gib,
        "seconds": statistics.median(after - before for before, after in itertools.pairwise(times)),
        "losses": [round(each["value"], 4) for each in lines if each["name"] == "loss"],
    }  # fmt: skip


if __name__ == "__main__":
    main()
