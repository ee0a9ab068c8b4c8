"""Secrets that lie around while a run goes on: none is in anything that is printed, logged, recorded or submitted."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.console import Console
from pipeline.ledger import Ledger
from pipeline.redaction import MASK, guard_streams, holds_secret, redacted, redacted_in
from pipeline.runtime import ROOT

VARIABLES = {
    "HF_TOKEN": "hf_" + "Canary1" * 5,
    "HUGGING_FACE_HUB_TOKEN": "canary-2-of-a-hub",
    "WANDB_API_KEY": "3" * 10 + "canary" + "0" * 24,
    "OPENAI_API_KEY": "sk-proj-canary-4-abcdefghijkl",
    "TRIVET_JUDGE_KEY": "canary5judge",
    "AWS_SECRET_ACCESS_KEY": "canary6/with+signs=",
    "DATABASE_PASSWORD": "canary 7 with blanks",
    "GITHUB_TOKEN": "ghp_" + "Canary8" * 5,
}
"""What a machine's environment may hold."""
ELSEWHERE = {
    "password in an address": ("https://user:canary-9@host/v1", "canary-9"),
    "token in an address": ("https://host/rows.jsonl?token=canary10&x=1", "canary10"),
    "token in a row": ("hf_" + "Canary11" * 4, "Canary11"),
    "key in a row": ("-----BEGIN PRIVATE KEY-----\ncanary12", "canary12"),
    "header": ("Authorization: Bearer canary13canary13", "canary13"),
}
"""A text and the secret in it."""
BASE = """\
name: demo
model: {base: builtin:tiny-llama, adapter: {type: lora, r: 4, alpha: 8}}
data:
  sft: {sources: [{path: rows.jsonl}]}
stages:
  sft: {learning_rate: 1.0e-2}
"""
GOOD_ROW = '{"instruction": "a", "output": "b"}\n'


@pytest.fixture
def planted(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return list(VARIABLES.values())


@pytest.fixture
def here(tmp_path, monkeypatch, planted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "listen", lambda ranks: None)
    (tmp_path / "recipe.yaml").write_text(BASE)
    (tmp_path / "rows.jsonl").write_text(GOOD_ROW * 30)
    return tmp_path


def written(folder: Path) -> str:
    """Everything below a folder, as text."""
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def typed(capsys, *arguments: str) -> str:
    """What a command says, and what it leaves in `runs`."""
    with pytest.raises(SystemExit):
        cli.main(arguments)
    captured = capsys.readouterr()
    return captured.out + captured.err + written(Path("runs"))


@pytest.mark.parametrize("name", VARIABLES)
def test_values_of_the_environment_are_taken_out(planted, name):
    secret = VARIABLES[name]
    assert redacted(f"asked with {secret}, refused") == f"asked with {MASK}, refused"
    assert holds_secret(secret)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_forms_of_secrets_are_taken_out(name):
    text, secret = ELSEWHERE[name]
    assert secret not in redacted(f"before {text} behind") and MASK in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "num_tokens 4096, pad_token <pad>, tokenizer.json, TOKENIZERS_PARALLELISM=false",
        "runs/.store/sft-6f5c0a9e41d2b7c8 (key 6f5c0a9e41d2b7c8), commit 048b573e9d8f7c6b5a4e3d2c1b0a9f8e7d6c5b4a",
        "https://host:8000/v1, user@example.com, git@github.com:owner/name.git, 12:30:00",
        "stages.sft.learning_rate: expected a number above 0, found 'hf_7b'",
        "the risk-averse task-specific ask-me-anything-you-want-to-know",
    ],
)
def test_what_is_no_secret_stays(text, monkeypatch):
    monkeypatch.setenv("PUBLIC_KEY", "public")
    monkeypatch.setenv("SSH_KEY", "/etc/hostname")
    assert redacted(text + " public /etc/hostname") == text + " public /etc/hostname"


def test_the_longer_of_two_secrets_goes_first(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "canary-1")
    monkeypatch.setenv("B_TOKEN", "canary-1-and-more")
    assert redacted("x canary-1-and-more y canary-1") == f"x {MASK} y {MASK}"


def test_plain_data_is_redacted_whole(planted):
    secret = VARIABLES["HF_TOKEN"]
    found = redacted_in({"command": ["run", f"--set=x={secret}"], "n": 1, "deep": {"a": (secret, None)}})
    assert found == {"command": ["run", f"--set=x={MASK}"], "n": 1, "deep": {"a": [MASK, None]}}


def test_a_guarded_stream_lets_none_through(planted, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    guard_streams()
    guard_streams()
    print(VARIABLES["WANDB_API_KEY"], "and", VARIABLES["DATABASE_PASSWORD"], file=sys.stderr)
    sys.stderr.writelines(["a", VARIABLES["HF_TOKEN"]])
    assert stream.getvalue() == f"{MASK} and {MASK}\na{MASK}"
    assert not sys.stderr.isatty()


def test_the_console_lets_none_through(planted):
    stream = io.StringIO()
    console = Console(stream)
    console.say(f"W&B failed ({VARIABLES['WANDB_API_KEY']})")
    console.progress("step", 2, 2, VARIABLES["HF_TOKEN"])
    assert "anary" not in stream.getvalue() and stream.getvalue().count(MASK) == 2


def test_the_ledger_keeps_none(planted, tmp_path):
    ledger = Ledger(tmp_path, "demo", ["run", "r.yaml", "--set", f"x={VARIABLES['OPENAI_API_KEY']}"], {})
    ledger.plan([])
    ledger.stop("failed", f"refused {VARIABLES['HF_TOKEN']}")
    assert "canary" not in (tmp_path / "run.json").read_text().lower()


SAID = {
    "in a key of its own": ("hub_token={}", "no secrets in a recipe"),
    "in trainer_args": ("stages.sft.trainer_args.hub_token={}", "no secrets in a recipe"),
    "for a model": ("model.base={}", "holds a password or token"),
    "in a path": ("data.sft.sources.0.path=https://user:{}@host/rows.jsonl", "holds a password or token"),
    "in a name": ("name={}", ""),
    "for a number": ("seed={}", "expected a whole number"),
    "in a list": ("model.adapter.target_modules=[{}]", "holds a password or token"),
    "for a judge": ("evaluation.judge={{url: 'http://u:{}@host', model: m}}", "holds a password or token"),
    "for tracking": ("tracking.wandb.entity={}", "holds a password or token"),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("variable", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY"])
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(here, capsys, name, variable):
    change, said = SAID[name]
    found = typed(capsys, "run", "recipe.yaml", "--set", change.format(VARIABLES[variable]))
    assert said in found and VARIABLES[variable] not in found, found
    assert not (here / "runs" / "demo" / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["token in a row", "password in an address"])
def test_a_row_that_cannot_be_read_is_told_without_its_secret(here, capsys, name):
    text, secret = ELSEWHERE[name]
    (here / "rows.jsonl").write_text(f'{{"instruction": "a", "output": "{text}" oh\n')
    found = typed(capsys, "run", "recipe.yaml")
    assert "rows.jsonl:1" in found and secret not in found, found
    assert json.loads((here / "runs" / "demo" / "exit.json").read_text())["code"] == 65


def test_a_traceback_holds_none(here, capsys, monkeypatch):
    from pipeline.supervisor import Supervisor

    def broken(self):
        raise ValueError(f"cannot connect with {os.environ['DATABASE_PASSWORD']}")

    monkeypatch.setattr(Supervisor, "run", broken)
    found = typed(capsys, "run", "recipe.yaml")
    assert "Traceback" in found and f"cannot connect with {MASK}" in found and "canary" not in found.lower()


def test_a_job_script_with_one_is_refused(here, capsys):
    arguments = ["submit", "recipe.yaml", "--dry-run", "--site", "site.yaml"]
    sites = {
        "environment: {HF_TOKEN: something}": "no secrets",
        f"environment: {{OTHER: '{VARIABLES['AWS_SECRET_ACCESS_KEY']}'}}": "would hold a password or token",
        f"setup: ['export X={VARIABLES['HF_TOKEN']}']": "would hold a password or token",
        f"container: [apptainer, '--env=X={VARIABLES['GITHUB_TOKEN']}']": "would hold a password or token",
    }
    for text, said in sites.items():
        (here / "site.yaml").write_text(text + "\n")
        found = typed(capsys, *arguments)
        assert said in found and "anary" not in found, found
    (here / "site.yaml").write_text("environment: {NCCL_DEBUG: WARN}\n")
    assert "export NCCL_DEBUG=WARN" in typed(capsys, *arguments), "the control"


def test_every_shipped_recipe_is_free_of_them():
    from pipeline.recipe import load_recipe

    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        load_recipe(path)
