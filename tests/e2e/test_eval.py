"""`trivet eval` on a finished tiny run as a user types it: its own evaluation anew, and a public benchmark."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
SHORT = (
    "data.sft.sources.0.limit=8", "data.preference.sources.0.limit=8", "stages.sft.max_steps=2",
    "stages.dpo.max_steps=2", "stages.dpo.learning_rate=0.05", "evaluation.prompts=5", "evaluation.kl_prompts=3",
)  # fmt: skip
ROWS = [
    {"context": f"A man has {n}.", "endings": [str(n), "no", "a", "b"], "activity_label": "Counting", "label": 0}
    for n in range(6)
]


@pytest.fixture(scope="module")
def run(run_in, tmp_path_factory):
    """SFT, DPO and evaluation, two steps each."""
    made = run_in(
        tmp_path_factory.mktemp("eval") / "runs" / "tiny",
        options=tuple(part for one in SHORT for part in ("--set", one)),
    )
    made.go("--in-process")
    return made


def command(run, *arguments, code=0):
    """`trivet eval RUN ARGUMENTS`; what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from pipeline.cli import main; main()", "eval", str(run.folder), *arguments],
        cwd=run.folder.parent, env={**run.environment(), "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True, text=True, timeout=420, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_finished_run_is_evaluated_anew_and_nothing_is_trained(run):
    first = run.json("results.json")
    sealed = {stage: (run.folder / stage / "manifest.json").read_bytes() for stage in ("sft", "dpo")}
    assert list(first["evaluation"]["policies"]) == ["base", "sft", "dpo"]
    fewer = ("--set", "evaluation.prompts=3")
    command(run, *fewer, "--policies", "dpo")
    found = run.json("results.json")["evaluation"]
    assert list(found["policies"]) == ["sft", "dpo"], "what was asked for, and the reference beside it"
    lines = [json.loads(line) for line in (run.folder / "evaluation" / "answers.jsonl").read_text().splitlines()]
    assert sorted((line["prompt_id"], line["policy"]) for line in lines) == [
        (at, name) for at in range(3) for name in ("dpo", "sft")
    ]
    assert {row["rule_n"] for row in found["policies"].values()} == {3}
    kept = [found["policies"]["dpo"][name] for name in ("kl_to_reference", "perplexity")]
    assert kept == [first["evaluation"]["policies"]["dpo"][name] for name in ("kl_to_reference", "perplexity")]
    assert kept[0] != 0, "and the figures can tell the policies apart"
    page = (run.folder / "report.html").read_text()
    assert "evaluation.prompts=3" in page or "prompts: 3" in page
    for stage, manifest in sealed.items():
        assert (run.folder / stage / "manifest.json").read_bytes() == manifest
    said = command(run, "--set", "evaluation.prompts=5", "--set", "evaluation.policies=[]")
    assert "evaluation: " in said and "taken from" in said, "what was measured before is there again"
    again = run.json("results.json")["evaluation"]
    assert (
        again["policies"] == first["evaluation"]["policies"]
        and again["comparisons"] == first["evaluation"]["comparisons"]
    )


def test_a_benchmark_is_asked_through_the_command(run, tmp_path):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "hellaswag"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = ("--tasks", "hellaswag", "--data", str(tmp_path))
    refused = command(run, *asked, "--set", "data.chat_template=plain", code=1)
    assert "its sft was made with another tokenizer or chat template" in refused
    said = command(run, *asked, "--policies", "base,dpo")
    assert "HellaSwag, dpo: done in" in said and "sft" not in said
    entries = run.json("results.json")["evaluation"]["benchmarks"]
    assert [(one["benchmark"], one["policy"]) for one in entries] == [("hellaswag", "base"), ("hellaswag", "dpo")]
    values = [json.loads(line) for line in (run.folder / "benchmarks" / "questions.jsonl").read_text().splitlines()]
    for entry in entries:
        own = [line["value"] for line in values if line["policy"] == entry["policy"]]
        figure = entry["figures"]["acc_norm"]
        assert len(own) == figure["n"] == 6 and figure["value"] == pytest.approx(sum(own) / 6)
    assert "against_base" in entries[1]["figures"]["acc_norm"]
    assert "HellaSwag" in (run.folder / "report.html").read_text()
