"""SFT, then DPO from it, as a user runs them: one command here, two of LLaMA-Factory 0.9.5, on the same rows.

    python -m benchmarks.chain --llama-factory PYTHON_WITH_LLAMAFACTORY [--steps 20] [--rounds 3] [--json FILE]

Same base model, adapter, batch, length, learning rate and number of steps. Printed are seconds from start to end, the
training seconds that each program reports of its stages, and the largest resident set of any of its processes. No
evaluation and no held-out rows on either side. The peer's DPO is held to the base model with its adapter off, ours to
the SFT policy, as it has no other way without a second model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.meter import machine, run_measured
from benchmarks.rows import read_rows, write_rows
from pipeline.models.source import identify, materialise
from pipeline.runtime import resolve_precision

ROOT = Path(__file__).resolve().parent.parent
RATE, LENGTH = 1.0e-4, 512


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-factory", required=True, metavar="PYTHON", help="of an environment with it")
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of each stage")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    print(machine(), flush=True)
    base = materialise(identify(options.base, None))
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, options.steps * options.batch_size)
        for round_ in range(options.rounds):
            for side in sorted(found, reverse=round_ % 2 == 1):
                run = _ours if side == "ours" else _peer
                found[side].append(run(folder / f"{side}-{round_}", folder, base, options))
                print(f"round {round_ + 1}  {side}  {_line(found[side][-1])}", flush=True)
    ratios = [peer["seconds"] / ours["seconds"] for ours, peer in zip(found["ours"], found["peer"], strict=True)]
    print(f"{statistics.median(ratios):.2f} times as fast ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    if options.json:
        report = {"machine": machine(), "ratios": ratios, **found}
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def write_data(folder: Path, count: int) -> None:
    """Rows of the bundled samples, of one question each, in the form that both programs read."""
    for stage, name in (("sft", "demonstrations"), ("dpo", "pairs")):
        # As many more as may have several turns.
        write_rows(stage, None, count + count // 2, folder / "rows.jsonl")
        rows = [row for row in read_rows(folder / "rows.jsonl") if [turn["role"] for turn in row["prompt"]] == ["user"]]
        if len(rows) < count:
            raise SystemExit(f"the sample has {len(rows)} rows of one question, asked for {count}; lower --steps")
        made = [{"instruction": row["prompt"][0]["content"], "input": "", **_answers(row)} for row in rows[:count]]
        (folder / f"{name}.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"}
    sets = {
        "demonstrations": {"file_name": "demonstrations.json"},
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns},
    }
    (folder / "dataset_info.json").write_text(json.dumps(sets))


def _answers(row: dict[str, Any]) -> dict[str, str]:
    if "completion" in row:
        return {"output": row["completion"][0]["content"]}
    return {name: row[name][0]["content"] for name in ("chosen", "rejected")}


def _ours(out: Path, folder: Path, base: Path, options: argparse.Namespace) -> dict[str, float]:
    batch = {"global_batch_size": options.batch_size, "per_device_batch_size": options.batch_size}
    stage = {"learning_rate": RATE, "max_steps": options.steps, **batch}
    rows = {"max_length": LENGTH, "eval_fraction": 0}
    recipe = {
        "name": "chain",
        "model": {"base": str(base), "adapter": {"type": "lora", "r": 16, "alpha": 32}},
        "data": {
            "sft": {"sources": [{"path": str(folder / "demonstrations.json")}], **rows},
            "preference": {"sources": [{"path": str(folder / "pairs.json")}], **rows},
        },
        "stages": {"sft": stage, "dpo": {**stage, "beta": 0.1}},
        "evaluation": {"tasks": []},
    }
    out.mkdir()
    (out / "chain.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run = [sys.executable, str(ROOT / "pipeline" / "run.py"), str(out / "chain.yaml"), "--output-dir", str(out / "run")]
    seconds, gib = run_measured([[*run, "--store", str(out / "store")]])
    stages = json.loads((out / "run" / "results.json").read_text())["stages"]
    return {"seconds": seconds, "peak_gib": gib, **{name: stages[name]["seconds"] for name in ("sft", "dpo")}}


def _peer(out: Path, folder: Path, base: Path, options: argparse.Namespace) -> dict[str, float]:
    out.mkdir()
    common = {
        "model_name_or_path": str(base), "do_train": True, "finetuning_type": "lora", "lora_rank": 16,
        "lora_alpha": 32, "lora_target": "all", "dataset_dir": str(folder), "template": "chatml",
        "cutoff_len": LENGTH, "overwrite_cache": True, "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": 1, "learning_rate": RATE, "lr_scheduler_type": "cosine",
        "max_steps": options.steps, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "bf16": resolve_precision("auto") == "bf16", "use_cpu": not _has_gpu(), "dataloader_num_workers": 0,
    }  # fmt: skip
    own = {
        "sft": {"stage": "sft", "dataset": "demonstrations"},
        "dpo": {
            "stage": "dpo", "dataset": "pairs", "pref_beta": 0.1, "pref_loss": "sigmoid",
            "adapter_name_or_path": str(out / "sft"),
        },
    }  # fmt: skip
    commands = []
    for name, settings in own.items():
        file = out / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**common, **settings, "output_dir": str(out / name)}))
        commands.append([options.llama_factory, "-m", "llamafactory.cli", "train", str(file)])
    seconds, gib = run_measured(commands)
    reports = {name: json.loads((out / name / "train_results.json").read_text()) for name in own}
    return {"seconds": seconds, "peak_gib": gib, **{name: found["train_runtime"] for name, found in reports.items()}}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _line(run: dict[str, float]) -> str:
    return f"{run['seconds']:.0f} s (sft {run['sft']:.0f}, dpo {run['dpo']:.0f})  {run['peak_gib']:.2f} GiB"


if __name__ == "__main__":
    main()
