"""One stage against its peer: same model, rows, adapter, batch, length and precision, in turns, on this machine.

    python -m benchmarks.compare --stage dpo [--data FILE] [--json OUT] [--adapter-layers top-10]
    python -m benchmarks.compare --stage ppo --trl PYTHON_WITH_TRL_1_12

Each side runs in a process of its own, one after the other, so many rounds. The first step of a run, which warms
caches up, is left out. Printed are medians over rounds of each round's ratio, peak memory, tokens that went through the
layers and how many were no padding, the counted matrix products as a share of this machine's measured peak, and both
loss curves, to show that the same thing was trained. The peer is TRL's own trainer in this environment; of PPO, the
last one that TRL had, in an environment of its own, and a row is an episode: sampled, scored and learnt from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.meter import machine, matmul_peak  # noqa: E402
from benchmarks.rows import write_prompts, write_rows  # noqa: E402
from pipeline.models.source import identify, materialise  # noqa: E402
from pipeline.runtime import resolve_precision  # noqa: E402

SIDES = ("ours", "peer")


def main() -> None:
    """Measure, print, and write the figures where asked."""
    options = _options()
    bf16 = resolve_precision(options.precision) == "bf16"
    print(machine(), flush=True)
    base = materialise(identify(options.base, None))
    settings = {
        "batch_size": options.batch_size, "accumulation": options.accumulation, "steps": options.steps + 1,
        "max_length": options.max_length, "bf16": bf16, "peer_dtype": options.peer_dtype,
        "adapter_layers": options.adapter_layers, "peer_layers": options.peer_layers, "answer": options.answer,
        "ppo_epochs": options.ppo_epochs, "passes": options.passes, "value_trunk": options.value_trunk,
        "samples_per_prompt": options.samples_per_prompt, "advantage_estimator": options.advantage_estimator,
    }  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(options, settings, base, Path(folder))
        for round_ in range(options.rounds):
            # In turns, and not always the same one first.
            for name in sorted(SIDES, reverse=round_ % 2 == 1):
                found[name].append(_run(commands[name]))
                print(f"round {round_ + 1}  {name}  {_rate(found[name][-1]):.3f} rows/s", flush=True)
    report = _report(options.stage, settings, found, matmul_peak(bf16))
    print(_text(report))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


def _commands(options: argparse.Namespace, settings: dict[str, Any], base: Path, folder: Path) -> dict[str, list[str]]:
    """How each side is started, on the rows that are written here."""
    per_step = options.batch_size * options.accumulation
    rows, count = folder / "rows.jsonl", settings["steps"] * per_step // options.passes
    if options.stage == "ppo":
        write_prompts(options.data, base, count, options.prompt, rows, options.samples_per_prompt)
        programs = {"ours": [sys.executable, "-m", "benchmarks.side_ours_ppo"]}
        programs["peer"] = [options.trl, "-m", "benchmarks.side_trl_ppo"]
    else:
        write_rows(options.stage, options.data, count, rows)
        programs = {"ours": [sys.executable, "-m", "benchmarks.side_ours", options.stage]}
        programs["peer"] = [sys.executable, "-m", "benchmarks.side_trl", options.stage]
    return {name: [*program, str(base), str(rows), json.dumps(settings)] for name, program in programs.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", required=True, choices=("sft", "reward", "dpo", "ppo"))
    parser.add_argument("--data", help="file of demonstrations or pairs (default: the bundled sample)")
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="timed optimiser steps, or rollouts of PPO, in each run")
    parser.add_argument("--passes", type=int, default=1, help="over the rows, within these steps and the first one")
    parser.add_argument("--batch-size", type=int, default=4, help="rows, or pairs, per forward pass")
    parser.add_argument("--accumulation", type=int, help="forward passes per step (default: 1; PPO 2)")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--peer-dtype", default="float32", choices=("float32", "bfloat16"), help="of TRL's base")
    parser.add_argument("--adapter-layers", default="all", metavar="LAYERS", help="all, or top-N, on our side")
    parser.add_argument("--peer-layers", default="all", metavar="LAYERS", help="the same on the peer's side")
    parser.add_argument("--trl", metavar="PYTHON", help="of an environment with trl 1.12, for PPO")
    parser.add_argument("--prompt", type=int, default=128, help="most tokens of a prompt of PPO")
    parser.add_argument("--answer", type=int, default=48, help="most tokens of an answer of PPO")
    parser.add_argument("--ppo-epochs", type=int, default=4, help="passes over each rollout")
    parser.add_argument(
        "--value-trunk", choices=("own", "policy"), default="own", help="of PPO on our side; the peer's is a model"
    )
    parser.add_argument(
        "--samples-per-prompt", type=int, default=1, help="answers to each prompt of PPO, on both sides"
    )
    parser.add_argument(
        "--advantage-estimator", choices=("gae", "rloo"), default="gae", help="of PPO on our side; the peer's is gae"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    if options.stage == "ppo" and options.trl is None:
        parser.error("--stage ppo needs --trl: the Python of an environment with trl 1.12")
    if (options.steps + 1) % options.passes or (options.stage == "ppo" and options.passes > 1):
        parser.error(f"--passes {options.passes} must divide --steps and the untimed first one; PPO has one pass")
    options.accumulation = options.accumulation or (2 if options.stage == "ppo" else 1)
    _require_possible(parser, options)
    return options


def _require_possible(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    samples, rloo = options.samples_per_prompt, options.advantage_estimator == "rloo"
    if (options.batch_size * options.accumulation) % samples:
        parser.error(f"--samples-per-prompt {samples} must divide the answers of a rollout")
    if rloo and samples == 1:
        parser.error("--advantage-estimator rloo compares a prompt's answers: --samples-per-prompt 2 or more")
    if rloo and options.value_trunk == "policy":
        parser.error("--advantage-estimator rloo has no value model for --value-trunk")
    if options.stage != "ppo" and (rloo or samples > 1):
        parser.error("--samples-per-prompt and --advantage-estimator are of --stage ppo")


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _rate(run: dict[str, Any]) -> float:
    timed = run["seconds"][1:]
    return float(run["rows_per_step"] * len(timed) / sum(timed))


def _flops_rate(run: dict[str, Any]) -> float:
    """Counted floating-point operations per second."""
    return float(sum(run["flops_by_step"][1:]) / sum(run["seconds"][1:]))


def _report(
    stage: str, settings: dict[str, Any], found: dict[str, list[dict[str, Any]]], peak: float
) -> dict[str, Any]:
    pairs = list(zip(found["ours"], found["peer"], strict=True))
    return {
        "stage": stage,
        "settings": settings,
        "machine": machine(),
        "throughput_ratio": statistics.median(_rate(ours) / _rate(peer) for ours, peer in pairs),
        "throughput_ratios": [_rate(ours) / _rate(peer) for ours, peer in pairs],
        "memory_ratio": statistics.median(ours["peak_gib"] / peer["peak_gib"] for ours, peer in pairs),
        "matmul_peak_flops": peak,
        **{
            name: {
                "rows_per_second": statistics.median(map(_rate, runs)),
                "peak_gib": statistics.median(run["peak_gib"] for run in runs),
                "flops_share": statistics.median(_flops_rate(run) for run in runs) / peak,
                **{key: runs[0][key] for key in ("tokens_computed", "tokens_real", "head_rows", "losses")},
            }
            for name, runs in found.items()
        },
    }


def _text(report: dict[str, Any]) -> str:
    lines = [""]
    for name in SIDES:
        side = report[name]
        losses = " ".join(f"{loss:.3f}" for loss in side["losses"])
        lines.append(
            f"{name:<5} {side['rows_per_second']:.3f} rows/s  {side['peak_gib']:.2f} GiB  "
            f"{side['flops_share']:.0%} of the matrix-product peak\n"
            f"      {side['tokens_computed']} tokens through the layers, {side['tokens_real']} of them no padding; "
            f"logits of {side['head_rows']}\n      losses {losses}"
        )
    spread = ", ".join(f"{ratio:.2f}" for ratio in report["throughput_ratios"])
    lines.append(
        f"throughput {report['throughput_ratio']:.2f} x the peer's ({spread}), memory {report['memory_ratio']:.2f} x"
    )
    lines.append(f"matrix products on this machine: {report['matmul_peak_flops'] / 1e9:.0f} GFLOP/s at best")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
