"""A whole run with secrets around it that fails and goes on, tracked by W&B offline: none is in what it leaves."""

from __future__ import annotations

import os

import pytest

from pipeline.runtime import ROOT

pytestmark = pytest.mark.slow
SECRETS = {
    "HF_TOKEN": "hf_" + "Canary1" * 5,
    "HUGGING_FACE_HUB_TOKEN": "Canary-2-of-a-hub",
    "WANDB_API_KEY": "3" * 10 + "Canary" + "0" * 24,
    "OPENAI_API_KEY": "sk-proj-Canary-4-abcdefghijkl",
    "TRIVET_JUDGE_KEY": "Canary5judge",
    "AWS_SECRET_ACCESS_KEY": "Canary6/with+signs=",
    "DATABASE_PASSWORD": "Canary 7 with blanks",
    "GITHUB_TOKEN": "ghp_" + "Canary8" * 5,
}
REWARD = """
import os, sys
def score(prompts, answers):
    print("looking with", os.environ["HF_TOKEN"])
    print("Authorization: Bearer Canary12Canary12", file=sys.stderr)
    print(os.environ["DATABASE_PASSWORD"], "or https://me:Canary9pass@host/x?token=Canary10", file=sys.stderr)
    if not os.path.exists(os.environ["SWITCH"]):
        raise ValueError(f"refused {os.environ['OPENAI_API_KEY']} at https://me:Canary11pass@host/v1")
    return [float(len(answer)) for answer in answers]
"""


def holding(folder, word: bytes) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


def test_nothing_of_them_is_left(new_run, warm, tmp_path):
    (tmp_path / "reward.py").write_text(REWARD)
    tracked = ("--set", "tracking.wandb={project: p}", "--set", "stages.ppo.rewards=[{from: function}]")
    reward = ("--reward", f"{tmp_path / 'reward.py'}:score")
    run = new_run("run", ROOT / "recipes" / "tiny_ppo.yaml", (*tracked, *reward))
    run.warm = warm
    run.variables = {**SECRETS, "WANDB_MODE": "offline", "SWITCH": str(tmp_path / "switch")}
    run.go(launcher="forked", code=1)
    assert "[secret]" in run.outcome()["sentence"] and "refused" in run.outcome()["sentence"]
    os.close(os.open(tmp_path / "switch", os.O_CREAT))
    run.go(launcher="forked")
    assert "looking with [secret]" in run.log(), "the filter was there"
    places = run.folder.parent
    assert holding(places, b"offline-run") or list(run.folder.glob("wandb/offline-run-*")), "W&B has written"
    assert holding(places, b"tiny-ppo"), "the search finds what is there"
    assert holding(places, b"Canary") == []
