"""Recipes from somebody who means harm: each ends in a sentence, runs nothing, writes nothing where it should not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.runtime import ROOT

BASE = """\
name: demo
model: {base: builtin:tiny-llama, adapter: {type: lora, r: 4, alpha: 8}}
data:
  sft: {sources: [{path: builtin:alpaca_sample, limit: 64}]}
  preference: {sources: [{path: builtin:preference_sample, limit: 48}]}
stages:
  sft: {learning_rate: 1.0e-2}
  dpo: {beta: 0.1}
"""
NAME, SFT = "name: demo", "{learning_rate: 1.0e-2}"
SOURCE, MODEL = "builtin:alpaca_sample", "builtin:tiny-llama"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: *c"
PICKLE = "cposix\nsystem\n(S'touch pwned'\ntR."

# What is replaced, what by, and words of the sentence; {here} is the folder that the recipe lies in.
HOSTILE = {
    "name goes up": (NAME, "name: ../../demo", "a name of letters"),
    "name is a path": (NAME, "name: /etc/cron.d/demo", "a name of letters"),
    "name for a shell": (NAME, "name: '$(touch pwned)'", "a name of letters"),
    "name with a line break": (NAME, 'name: "demo\\n#SBATCH --uid=0"', "a name of letters"),
    "name that reads the environment": (NAME, "name: ${oc.env:HOME}", "a name of letters"),
    "run in the root": (NAME, f"{NAME}\noutput_dir: /", "is the root of the file system"),
    "run at home": (NAME, f"{NAME}\noutput_dir: '~'", "is the home folder"),
    "run among keys": (NAME, f"{NAME}\noutput_dir: ~/.ssh", "hidden folder at home"),
    "run in the system": (NAME, f"{NAME}\noutput_dir: /etc/trivet", "belongs to the system"),
    "run goes up": (NAME, f"{NAME}\noutput_dir: ../../out", "leads out of the folder"),
    "run over code": (NAME, f"{NAME}\noutput_dir: {ROOT}/pipeline/stages", "holds this program's code"),
    "run over other files": (NAME, f"{NAME}\noutput_dir: '{{here}}/mine'", "holds other files (thesis.txt)"),
    "run through a link": (NAME, f"{NAME}\noutput_dir: '{{here}}/link'", "holds other files (thesis.txt)"),
    "run through a link to the system": (NAME, f"{NAME}\noutput_dir: '{{here}}/etc'", "(which is /etc) belongs to the"),
    "run in a file": (NAME, f"{NAME}\noutput_dir: '{{here}}/mine/thesis.txt'", "is a file"),
    "run in an address": (NAME, f"{NAME}\noutput_dir: 'http://u:pw@host/x'", "holds a password or token"),
    "object of a library": (NAME, "name: !!python/object/apply:os.system ['touch pwned']", "tags are not allowed"),
    "object of a class": (NAME, "name: !!python/object/new:os.system [touch pwned]", "tags are not allowed"),
    "module": (NAME, "name: !!python/module:os", "tags are not allowed"),
    "tag of one's own": (NAME, "name: !include /etc/passwd", "tags are not allowed"),
    "anchor bomb": (NAME, BOMB, "anchors and aliases"),
    "merge": (NAME, f"<<: {{x: 1}}\n{NAME}", "merge keys"),
    "depth bomb": (NAME, f"name: {'[' * 3000}{']' * 3000}", "nested deeper"),
    "number of 6000 digits": (NAME, f"{NAME}\nseed: 1{'0' * 6000}", "seed"),
    "number of 6000 hex digits": (NAME, f"{NAME}\nseed: 0x{'f' * 6000}", "seed"),
    "number for a batch": (SFT, f"{{global_batch_size: 1{'0' * 400}}}", "global_batch_size"),
    "number that is infinite": (SFT, "{learning_rate: 1e999}", "learning_rate"),
    "stage that is a path": ("  dpo:", "  /etc/x: {kind: dpo}\n  dpo:", "a stage's name"),
    "stage that goes up": ("  dpo:", "  ../../x: {kind: dpo}\n  dpo:", "a stage's name"),
    "stage that is a folder of the run": ("  dpo:", "  logs: {kind: dpo}\n  dpo:", "the folder of log files"),
    "start at a path": ("beta: 0.1", "policy: /tmp/evil", "a stage's name"),
    "model at an address": (MODEL, "http://evil.example/model", "does not exist"),
    "model at a file address": (MODEL, "file:///etc", "does not exist"),
    "model with a password": (MODEL, "https://u:hunter2@evil.example/model", "holds a password or token"),
    "model's own code": (NAME, f"{NAME}\ntrust_remote_code: true", "never runs code"),
    "model's own code, in a stage": (SFT, "{trainer_args: {trust_remote_code: true}}", "never runs code"),
    "trainer that writes elsewhere": (SFT, "{trainer_args: {output_dir: /etc}}", "use `output_dir`"),
    "trainer that publishes": (SFT, "{trainer_args: {push_to_hub: true}}", "its own folder only"),
    "trainer with a token": (SFT, "{trainer_args: {hub_token: hunter2}}", "no secrets in a recipe"),
    "data at an address": (SOURCE, "http://evil.example/rows.jsonl", "no such file or folder"),
    "data that never ends": (SOURCE, "/dev/zero", "/dev/zero"),
    "data that never comes": (SOURCE, "'{here}/pipe.jsonl'", "pipe.jsonl"),
    "data that is the system's": (SOURCE, "/etc/passwd", "/etc/passwd"),
    "data that is a pickle": (SOURCE, "'{here}/rows.pkl'", "rows.pkl"),
    "data with a zero byte": (SOURCE, '"rows\\0.jsonl"', "not text"),
    "sample that goes up": (SOURCE, "builtin:../../../etc/passwd", "builtin:"),
    "template that is the system's": ("data:", "data:\n  chat_template: /etc/passwd", "a .jinja file"),
    "engine that is the system's": (SFT, "{deepspeed: /etc/passwd}", "a .json file"),
    "engine that goes up": (SFT, "{deepspeed: ../../../etc/passwd}", "a .json file"),
    "judge that is a file": (
        NAME,
        f"{NAME}\nevaluation: {{judge: {{url: 'file:///etc/passwd', model: m}}}}",
        "http://",
    ),
    "judge with a password": (
        NAME,
        f"{NAME}\nevaluation: {{judge: {{url: 'https://u:hunter2@evil.example/v1', model: m}}}}",
        "holds a password or token",
    ),
    "modules by a pattern": ("r: 4", "r: 4, target_modules: '(a+)+$'", "target_modules"),
    "reward that is code": ("  dpo:", "  ppo: {rewards: [{from: 'os:system'}]}\n  dpo:", "os:system"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with files that are nobody's business, and a home of its own."""
    for name in ("work", "work/mine", "home", "home/.ssh"):
        (tmp_path / name).mkdir()
    work = tmp_path / "work"
    (work / "mine" / "thesis.txt").write_text("years of work")
    (work / "link").symlink_to(work / "mine")
    (work / "etc").symlink_to("/etc")
    (work / "rows.pkl").write_text(PICKLE)
    os.mkfifo(work / "pipe.jsonl")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # Signals of the process that tests run in stay its own.
    monkeypatch.setattr(cli, "listen", lambda ranks: None)
    return work


def everything(folder: Path) -> dict[str, object]:
    """Names and contents below a folder, those of runs aside."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(("work/runs", "work/recipe.yaml")):
            found[name] = path.read_bytes() if path.is_file() else path.is_symlink() and os.readlink(path)
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_it_ends_in_a_sentence_and_nothing_is_touched(name, here, capsys, network_attempts):
    old, new, said = HOSTILE[name]
    assert BASE.count(old) == 1
    (here / "recipe.yaml").write_text(BASE.replace(old, new.replace("{here}", str(here))))
    before = everything(here.parent)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "recipe.yaml"])
    captured = capsys.readouterr()
    assert ended.value.code in (2, 65, 69), captured.err
    assert said in captured.err, captured.err
    assert "Traceback" not in captured.err + captured.out and "hunter2" not in captured.err + captured.out
    assert len(captured.err.splitlines()) <= 2 and len(captured.err) < 1500, captured.err
    assert everything(here.parent) == before
    assert not list(here.rglob("pwned")) and not list(here.rglob("*.safetensors"))
    assert not network_attempts


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 50


def test_the_recipe_without_anything_hostile_gets_past_all_this(here, monkeypatch, capsys):
    """The control: what is refused above is refused for what is hostile in it."""
    from pipeline.supervisor import Supervisor

    def begun(self, decisions, base, ledger):
        raise KeyboardInterrupt

    monkeypatch.setattr(Supervisor, "_walk", begun)
    (here / "recipe.yaml").write_text(BASE)
    with pytest.raises(SystemExit):
        cli.main(["run", "recipe.yaml"])
    assert "interrupted" in capsys.readouterr().err
    assert (here / "runs" / "demo" / "run.json").is_file()


def test_the_watch_sees_a_file_that_is_written_elsewhere(here):
    before = everything(here.parent)
    (here / "pwned").write_text("")
    assert everything(here.parent) != before
