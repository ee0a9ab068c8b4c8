"""Peak memory of PPO on one shared base against SFT with the same adapter, batch and length.

    python benchmarks/ppo_memory.py [--base builtin:smollm2-135m-instruct] [--rounds 2] [--trl PYTHON]

Stages run as a user runs them, in their own processes, on made-up rows of one length. Printed is the largest resident
set of any process of each run, in host memory, the rounds interleaved. `--trl` names the Python of an environment with
trl 1.12, the last release with a PPOTrainer, to measure that beside them: with separate policy, reward and value
models, as it has no other way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("apple", "river", "seven", "stone", "cloud", "garden", "paper", "window", "silver", "morning", "table")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=4, help="rows per forward pass")
    parser.add_argument("--prompt", type=int, default=96, help="words of each prompt")
    parser.add_argument("--answer", type=int, default=48, help="words of each answer, and tokens that PPO samples")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--trl", help="Python of an environment with trl 1.12")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl", "peft")))
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(Path(folder), options)
        for round_ in range(options.rounds):
            for name, command in commands.items():
                peaks.setdefault(name, []).append(_peak(command, Path(folder)))
                print(f"round {round_ + 1}  {name:<8} {peaks[name][-1]:.3f} GiB", flush=True)
    for name, found in peaks.items():
        ratio = statistics.median(found) / statistics.median(peaks["sft"])
        print(f"{name:<8} median {statistics.median(found):.3f} GiB, {ratio:.2f} x sft")


def _commands(folder: Path, options: argparse.Namespace) -> dict[str, list[str]]:
    recipe = _recipe(folder, options)
    run = [sys.executable, str(ROOT / "pipeline" / "run.py"), str(recipe), "--store", str(folder / "store")]
    prepare = [*run, "--output-dir", str(folder / "run"), "--until", "reward"]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    again = [*run, "--output-dir", str(folder / "run")]
    commands = {
        "sft": [*again, "--only", "sft", "--force", "sft"],
        "reward": [*again, "--only", "reward", "--force", "reward"],
        "ppo": [*again, "--only", "ppo", "--force", "ppo"],
    }
    if options.trl:
        commands["trl 1.12"] = _trl(folder, options)
    return commands


def _trl(folder: Path, options: argparse.Namespace) -> list[str]:
    """The peer on the same prompts, in batches of the same size."""
    from pipeline.models.load import load_tokenizer
    from pipeline.models.source import identify, materialise
    from pipeline.runtime import resolve_precision

    base = materialise(identify(options.base, None))
    tokenizer = load_tokenizer(base, "auto")
    texts = [_row(index, options)[0]["prompt"] for index in range(4 * options.rows)]
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps([tokenizer(text)["input_ids"] for text in texts]))
    settings = {
        "batch_size": options.rows, "accumulation": 2, "steps": 2, "ppo_epochs": 2, "answer": options.answer,
        "bf16": resolve_precision("auto") == "bf16", "peer_dtype": "float32", "peer_layers": "all",
    }  # fmt: skip
    module = [options.trl, "-m", "benchmarks.side_trl_ppo"]
    return ["env", f"PYTHONPATH={ROOT}", *module, str(base), str(prompts), json.dumps(settings)]


def _recipe(folder: Path, options: argparse.Namespace) -> Path:
    """Rows of one length, and so few steps that only their size matters."""
    rows = [_row(index, options) for index in range(64)]
    (folder / "demonstrations.jsonl").write_text("".join(json.dumps(row[0]) + "\n" for row in rows))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row[1]) + "\n" for row in rows))
    longest = 4 * (options.prompt + options.answer)
    recipe = {
        "name": "memory",
        "model": {"base": options.base},
        "data": {
            "sft": {"sources": [{"path": str(folder / "demonstrations.jsonl")}], "max_length": longest},
            "preference": {"sources": [{"path": str(folder / "pairs.jsonl")}], "max_length": longest},
        },
        "stages": {
            "sft": {"max_steps": 3, "global_batch_size": options.rows, "per_device_batch_size": options.rows},
            "reward": {"max_steps": 3, "global_batch_size": options.rows, "per_device_batch_size": options.rows},
            "ppo": {
                "episodes": 4 * options.rows, "rollout_batch_size": 2 * options.rows, "missing_eos_penalty": 0.0,
                "per_device_batch_size": options.rows, "generation_batch_size": 2 * options.rows,
                "max_new_tokens": options.answer, "eval_prompts": 2 * options.rows, "gate": {"min_accuracy": 0.0},
            },
        },
        "evaluation": {"tasks": []},
    }  # fmt: skip
    path = folder / "memory.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def _row(index: int, options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    def words(start: int, count: int) -> str:
        return " ".join(WORDS[(index * 7 + start + i * (1 + index % 5)) % len(WORDS)] for i in range(count))

    prompt, good, bad = f"{index} {words(0, options.prompt)}", words(3, options.answer), words(5, options.answer)
    return {"prompt": prompt, "completion": good}, {"prompt": prompt, "chosen": good, "rejected": bad}


def _peak(command: list[str], folder: Path) -> float:
    """Largest resident set of the command's processes, measured in a process of its own (the figure never falls)."""
    probe = (
        "import resource, subprocess, sys; "
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    out = subprocess.run(
        [sys.executable, "-c", probe, *command], check=True, capture_output=True, text=True, cwd=folder
    )
    code, kib = out.stdout.split()
    if code != "0":
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{out.stderr[-3000:]}")
    return int(kib) / 2**20


if __name__ == "__main__":
    main()
