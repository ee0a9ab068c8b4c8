"""A sweep over DPO's beta: the reference asked in every step, against once for all runs (`precompute_reference`).

    python -m benchmarks.kept_reference [--betas 0.05 0.1 0.2] [--set KEY=VALUE] [--json FILE]

Runs of `recipes/alpaca_dpo.yaml` up to DPO, few pairs held out, with one SFT stage for all. Printed are the seconds of
the DPO stages, loading included. By count, a step is three passes (the policy forward and backward, the reference
forward), so that N runs cost 3 N passes one way and 1 + 2 N the other, where each goes over the pairs once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.meter import machine
from pipeline.runtime import ROOT

RECIPE = ROOT / "recipes" / "alpaca_dpo.yaml"
ARMS = ("every step", "once")


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the recipe")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    print(machine(), flush=True)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        for number, beta in enumerate(options.betas):
            # In turns, and not always the same one first.
            for arm in sorted(ARMS, reverse=number % 2 == 1):
                changes = [f"stages.dpo.beta={beta}", f"stages.dpo.precompute_reference={arm == 'once'}", *options.set]
                seconds[arm].append(_run(Path(name), arm, beta, changes))
                print(f"beta {beta:g}, reference asked {arm}: {seconds[arm][-1]:.1f} s", flush=True)
    ratio = sum(seconds["every step"]) / sum(seconds["once"])
    runs = len(options.betas)
    print(f"{ratio:.2f} times as fast; by count of passes {3 * runs / (1 + 2 * runs):.2f}, loading left out")
    if options.json:
        report = {"machine": machine(), "betas": options.betas, "seconds": seconds, "ratio": ratio}
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _run(folder: Path, arm: str, beta: float, changes: list[str]) -> float:
    """Seconds of the DPO stage of one run."""
    out = folder / f"{arm.split()[0]}-{beta:g}"
    settings = [part for change in ("data.preference.eval_limit=8", *changes) for part in ("--set", change)]
    command = [
        sys.executable,
        str(ROOT / "pipeline" / "run.py"),
        str(RECIPE),
        "--output-dir",
        str(out),
        "--until",
        "dpo",
    ]
    # A cache of its own: nothing that an earlier measurement left may be found.
    done = subprocess.run(
        [*command, "--store", str(folder / "store"), *settings],
        cwd=ROOT, env=os.environ | {"TRIVET_CACHE": str(folder / "cache")}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr[-3000:]}")
    return float(json.loads((out / "results.json").read_text())["stages"]["dpo"]["seconds"])


if __name__ == "__main__":
    main()
