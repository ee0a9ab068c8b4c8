"""`trivet sweep` end to end on the tiny model: stopped, typed again, two values, one SFT stage, side by side."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys

import pytest

from pipeline.artefact import open_artefact
from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow


def test_two_values_share_their_sft_and_stand_on_one_path(new_run):
    runs = new_run("tiny")
    runs.folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = str(ROOT / "recipes" / "tiny_dpo.yaml")
    command = [
        sys.executable, "-P", "-c", "from pipeline.cli import main; main()", "sweep", recipe,
        "--over", "stages.dpo.beta=0.05,0.5", "--output-dir", str(runs.folder), "--csv", "values.csv",
    ]  # fmt: skip

    output = runs.folder.parent / "output.txt"

    def start():
        return subprocess.Popen(
            command, cwd=runs.folder.parent, env={**runs.environment(), "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
            stdout=output.open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    stopped = start()
    assert runs.wait_for(lambda: b"sft: starts" in output.read_bytes(), stopped), output.read_text()
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) == 75 and "run the same command again" in output.read_text()
    assert not (runs.folder.parent / "tiny-1").exists(), "a request to stop ends all"
    assert start().wait(420) == 0, output.read_text()
    said = output.read_text()
    first, second = (runs.folder.parent / f"tiny-{at}" for at in (0, 1))
    assert (first / "sft").resolve() == (second / "sft").resolve()
    assert (first / "dpo").resolve() != (second / "dpo").resolve()
    assert [open_artefact(run / "dpo").manifest.settings["stage"]["beta"] for run in (first, second)] == [0.05, 0.5]
    assert [json.loads((run / "exit.json").read_text())["code"] for run in (first, second)] == [0, 0]
    assert "sft: made by another run with the same settings and data" in said
    assert "dpo over beta" in said and "sft, where all start" in said
    assert f"again: trivet compare {first} {second}" in said
    rows = list(csv.DictReader((runs.folder.parent / "values.csv").open()))
    assert [(row["runs"], row["stages.dpo.beta"]) for row in rows if row["policy"] == "dpo"] == [
        ("tiny-0", "0.05"), ("tiny-1", "0.5"),
    ]  # fmt: skip
    ledger = (first / "run.json").read_bytes()
    assert start().wait(60) == 0 and output.read_text().count("finished earlier") == 2
    assert (first / "run.json").read_bytes() == ledger, "nothing was run again"
