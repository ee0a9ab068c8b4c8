"""The harness itself on the tiny model and, where the public files are there, on the embedded one: the same figures as
its own command line gives.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from evaluation.benchmarks import harness
from evaluation.benchmarks.harness import Asked, TaskFigures
from evaluation.benchmarks.local import BENCHMARKS, LocalTask
from evaluation.benchmarks.record import read_entries
from evaluation.benchmarks.run import run_benchmarks
from evaluation.benchmarks.task_files import write_tasks
from pipeline.cli import main
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.models.builtin import materialise
from pipeline.recipe import loads_recipe
from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
DATA = Path(os.environ.get("TRIVET_REAL_DATA") or ROOT.parent / "shared" / "data")
LIMIT = 8
RECIPE = """
name: x
model: {base: "BASE"}
data: {sft: {sources: [{path: builtin:alpaca_sample}]}}
stages: {sft: {precision: fp32}}
"""
ROWS = [
    {"context": f"A man has {n}.", "endings": [str(n), "no", "a", "b"], "activity_label": "Counting", "label": 0}
    for n in range(6)
]


def ask(run_dir, base, names, data, limit=LIMIT):
    recipe = loads_recipe(RECIPE.replace("BASE", base)).recipe
    asked = Asked(limit=limit, chat_template=False, batch_size=4)
    said = []
    run_benchmarks(run_dir, recipe, materialise(base), {}, ["base"], names, data, asked, "fp32", said.append)
    return read_entries(run_dir), said


@pytest.fixture
def small(tmp_path):
    """HellaSwag of six questions."""
    folder = tmp_path / "data" / "hellaswag"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "data"


def test_a_benchmark_is_asked_kept_and_not_asked_again(tmp_path, small):
    (entry,), _ = ask(tmp_path / "run", "builtin:tiny-llama", ["hellaswag"], small, limit=None)
    figure = entry["figures"]["acc_norm"]
    assert (entry["policy"], entry["benchmark"], figure["n"]) == ("base", "hellaswag", 6)
    assert 0 <= figure["value"] <= 1 and entry["settings"]["lm_eval"] and len(entry["settings"]["data"]) == 64
    questions = (tmp_path / "run" / "benchmarks" / "questions.jsonl").read_text().splitlines()
    values = [json.loads(line)["value"] for line in questions]
    assert len(values) == 6 and sum(values) / 6 == pytest.approx(figure["value"])
    before = (tmp_path / "run" / "benchmarks" / "figures.json").read_bytes()
    _, said = ask(tmp_path / "run", "builtin:tiny-llama", ["hellaswag"], small, limit=None)
    assert said == ["HellaSwag, base: asked before"]
    assert (tmp_path / "run" / "benchmarks" / "figures.json").read_bytes() == before
    (again,), said = ask(tmp_path / "run", "builtin:tiny-llama", ["hellaswag"], small, limit=2)
    assert "asked before" not in said[0] and again["figures"]["acc_norm"]["n"] == 2


def figures(task, n, **values):
    return TaskFigures(
        task=task, version="1", few_shot=0, n=n, values=values, errors={name: 0.1 for name in values}, by_question={},
    )  # fmt: skip


def test_what_measures_different_things_is_not_averaged():
    """MC1 is a share of right choices, MC2 a probability; subjects of MMLU are one thing, by question."""
    found = harness.headline(
        "truthfulqa", [figures("truthfulqa_mc1", 4, acc=0.25), figures("truthfulqa_mc2", 4, acc=1)]
    )
    assert {name: one["value"] for name, one in found.items()} == {"mc1 acc": 0.25, "mc2 acc": 1.0}
    joined = harness.headline("mmlu", [figures("mmlu_law", 1, acc=1.0), figures("mmlu_art", 3, acc=0.0)])
    assert joined["acc"]["value"] == 0.25 and joined["acc"]["n"] == 4


def test_figures_under_other_names_are_not_lost_in_silence():
    with pytest.raises(TrivetError, match=r"BIG-Bench Hard: lm-eval gave other metrics \(exact_match\)"):
        harness.headline("bbh", [figures("bbh_cot_fewshot_navigate", 3, exact_match=0.5)])


def test_every_benchmark_here_has_figures(tmp_path):
    """All that the public files are there for but HumanEval, one question of each task."""
    names = [name for name in BENCHMARKS if name not in ("humaneval", "ifeval") and (DATA / name).is_dir()]
    if not names:
        pytest.skip("the public files are not here")
    entries, _ = ask(tmp_path, "builtin:tiny-llama", names, DATA, limit=1)
    assert [entry["benchmark"] for entry in entries] == names and all(entry["figures"] for entry in entries)


def test_programs_are_run_apart(tmp_path, tiny_model, tiny_tokenizer):
    """A model that writes nonsense passes nothing; one whose answers are the solutions passes everything."""
    row = {
        "task_id": "0", "prompt": "def one():\n", "entry_point": "one", "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }  # fmt: skip
    write_tasks(tmp_path, [LocalTask(task="humaneval", splits={"test": [row]})])
    asked = Asked(limit=None, chat_template=False, batch_size=1)
    (found,) = harness.ask(tiny_model, tiny_tokenizer, ["humaneval"], tmp_path, asked)
    assert found.values == {"pass_at_1": 0.0}
    assert harness._pass_at_1(row, ["    return 1\n"]) == {"pass_at_1": 1.0}
    assert harness._pass_at_1(row, ["    return 2\n"]) == {"pass_at_1": 0.0}


def test_a_hub_out_of_reach_is_one_sentence(tmp_path, tiny_model, tiny_tokenizer):
    asked = Asked(limit=1, chat_template=False, batch_size=1)
    with pytest.raises(SourceUnreachableError, match=r"hellaswag: the data cannot be fetched .*--data"):
        harness.ask(tiny_model, tiny_tokenizer, ["hellaswag"], None, asked)


BASE = "builtin:smollm2-135m-instruct"
TRAINED = f"""
name: x
model: {{base: "{BASE}", adapter: {{r: 4}}}}
data: {{sft: {{sources: [{{path: builtin:alpaca_sample, limit: 4}}], max_length: 192, eval_limit: 1}}}}
stages:
  sft: {{precision: fp32, max_steps: 2, global_batch_size: 2, per_device_batch_size: 2, learning_rate: 5.0e-3}}
evaluation: {{tasks: []}}
"""


@pytest.fixture(scope="module")
def run_of_sft(tmp_path_factory):
    """The run directory of two steps of SFT on the embedded model."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.yaml").write_text(TRAINED)
    script = [str(ROOT / "pipeline" / "run.py"), str(folder / "recipe.yaml"), "--output-dir", str(folder / "run")]
    done = subprocess.run(
        [sys.executable, *script, "--in-process"], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def merged(run, folder):
    """The policy as one model, by the libraries alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(materialise(BASE), dtype=torch.float32)
    PeftModel.from_pretrained(base, run / "sft" / "adapter").merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(materialise(BASE)).save_pretrained(folder)
    return folder


def their_command_line(model, tasks, run, out):
    """What the harness's own command writes of local tasks: task to its figures."""
    arguments = [
        "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
        "--tasks", ",".join(f"trivet_{task}" for task in tasks), "--limit", "4", "--batch_size", "4",
        "--include_path", str(run / "benchmarks" / "tasks"), "--output_path", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *arguments], capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = out.rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    return {task: found[f"trivet_{task}"] for task in tasks}


@pytest.mark.skipif(not DATA.is_dir(), reason="the public files are not here")
def test_figures_are_those_of_the_harness_own_command_line(tmp_path, run_of_sft):
    """Three benchmarks of three kinds through `trivet eval`, base and an adapter, values and standard errors."""
    alike = ["--data", str(DATA), "--limit", "4", "--batch-size", "4"]
    for policy, names in (("base", "hellaswag,truthfulqa,gsm8k"), ("sft", "hellaswag,truthfulqa")):
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(run_of_sft), "--policies", policy, "--tasks", names, *alike])
        assert ended.value.code == 0
    ours = {
        policy: {
            task["task"]: task
            for entry in read_entries(run_of_sft)
            if entry["policy"] == policy
            for task in entry["tasks"]
        }
        for policy in ("base", "sft")
    }
    assert (len(ours["base"]), len(ours["sft"])) == (4, 3)
    models = {"base": materialise(BASE), "sft": merged(run_of_sft, tmp_path / "merged")}
    errors = 0
    for policy, tasks in ours.items():
        theirs = their_command_line(models[policy], [*tasks], run_of_sft, tmp_path / f"theirs-{policy}")
        for name, task in tasks.items():
            for metric, value in task["values"].items():
                figure, _, given = metric.partition(",")
                # Merged weights are rounded once more.
                close = 1e-6 if policy == "base" else 1e-4
                assert theirs[name][f"{figure},{given or 'none'}"] == pytest.approx(value, abs=close), (name, metric)
                error = theirs[name].get(f"{figure}_stderr,{given or 'none'}")
                known = task["stderr"].get(metric)
                assert error in (None, "N/A") if known is None else error == pytest.approx(known, abs=close)
                errors += bool(known)
    assert errors >= 4, "several standard errors that are not 0 were compared"
    second = [ours[policy]["truthfulqa_mc2"]["values"]["acc"] for policy in ("base", "sft")]
    assert abs(second[0] - second[1]) > 1e-3, "the control: the adapter's figures are not the base's"
