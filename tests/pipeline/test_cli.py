"""The command as a person types it: codes, one sentence, no traceback, what it writes and what it must not import."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

from pipeline import cli
from pipeline.recipe import recipe_json_schema
from pipeline.runtime import ROOT

RECIPE = """\
name: cli-test
model:
  base: builtin:tiny-llama
  adapter: {type: lora, r: 4, alpha: 8}
data:
  sft:        {sources: [{path: DATA/sft.jsonl}]}
  preference: {sources: [{path: DATA/pairs.jsonl}]}
stages:
  sft: {learning_rate: 1.0e-2, global_batch_size: 8, max_steps: 1, precision: fp32}
  dpo: {learning_rate: 1.0e-2, global_batch_size: 8, max_steps: 1, precision: fp32}
evaluation: {tasks: []}
"""


@pytest.fixture
def here(tmp_path):
    """A working directory with a recipe and its data."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": f"say {n}", "output": f"{n}"} for n in range(40)]
    (data / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(40)]
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("DATA", str(data)))
    return tmp_path


class Done:
    """How a command ended: its code, what it printed, and the outcome it left for job scripts."""

    def __init__(self, process, exit_file):
        self.code = process.returncode
        self.out, self.err = process.stdout, process.stderr
        self.left = json.loads(exit_file.read_text()) if exit_file.is_file() else None
        assert "Traceback" not in self.err + self.out, self.err


def environment(here, **more) -> dict[str, str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "PYTHON", "TRIVET_EXIT"))
    }
    return {
        **inherited, "TRIVET_EXIT_FILE": str(here / "outcome.json"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120", **more,
    }  # fmt: skip


def run(here, *arguments, **more) -> Done:
    """`python pipeline/run.py ARGUMENTS` from the working directory `here`."""
    command = [sys.executable, str(ROOT / "pipeline" / "run.py"), *arguments]
    process = subprocess.run(
        command, cwd=here, env=environment(here, **more), capture_output=True, text=True, timeout=300
    )
    return Done(process, here / "outcome.json")


def trivet(here, *arguments, **more) -> Done:
    """The console command `trivet ARGUMENTS`, as its entry point calls it."""
    command = [sys.executable, "-P", "-c", "from pipeline.cli import main; main()", *arguments]
    more = {"PYTHONPATH": str(ROOT), **more}
    process = subprocess.run(
        command, cwd=here, env=environment(here, **more), capture_output=True, text=True, timeout=300
    )
    return Done(process, here / "outcome.json")


def edit(here, *changes):
    text = (here / "recipe.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (here / "recipe.yaml").write_text(text)


@pytest.fixture
def inside(here, monkeypatch, capsys):
    """Runs a command inside this process, which is faster; gives its code, what it complained of, and the outcome."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.chdir(here)
    monkeypatch.setenv("TRIVET_EXIT_FILE", str(here / "outcome.json"))

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        return ended.value.code, said.err, json.loads((here / "outcome.json").read_text())

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_three_typos_are_three_lines_with_their_places(here):
    edit(here, ("learning_rate", "learnin_rate"), ("r: 4", "rr: 4"), ("tasks", "task"))
    done = run(here, "recipe.yaml")
    assert done.code == 2 and done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 3
    expected = [
        (4, "model.adapter.rr", "r"),
        (9, "stages.sft.learnin_rate", "learning_rate"),
        (11, "evaluation.task", "tasks"),
    ]
    for line, (number, wrong, right) in zip(lines, expected, strict=True):
        assert line.startswith(f"recipe.yaml:{number}: {wrong}: ") and f"did you mean '{right}'?" in line
    assert done.left == {"code": 2, "sentence": done.err.rstrip("\n")}
    assert not (here / "runs").exists()


@pytest.mark.parametrize("command", [run, trivet])
def test_a_recipe_that_is_not_there(here, command):
    done = command(here, *([] if command is run else ["run"]), "recipee.yaml")
    assert done.code == 2
    assert "recipee.yaml: no such file" in done.err and "recipe.yaml" in done.err.replace("recipee", "")
    assert done.left["code"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "stages.dpo.betta=0.2"], "did you mean 'beta'?"),
        (["--set", "stages.dpo.beta"], "stages.dpo.beta"),
        (["--set", "stages.dpo.beta=no"], "beta"),
        (["--set", "stages.dpo.beta=[1"], "beta"),
        (["--set", "=1"], "--set"),
        (["--only", "dpoo"], "no stage 'dpoo' in this recipe; there are sft, dpo"),
        (["--only", "dpo"], "--only dpo needs stage sft, which is not finished"),
        (["--until", "ppo"], "no stage 'ppo'"),
        (["--force", "ppo"], "no stage 'ppo'"),
        (["--only", "sft", "--until", "dpo"], "not allowed with argument"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--set", "stages.sft.global_batch_size=10"], "global_batch_size 10 is not a multiple of"),
        (["--set", "stages.sft.global_batch_size=2"], "per_device_batch_size"),
        (["--set", "model.quantization=nf4", "--set", "model.adapter=none"], "quantization"),
        (["--reward", "mine.py:f"], "--reward mine.py:f: no ppo stage of this recipe asks for a function"),
        (["--output-dir", "recipe.yaml"], "is a file"),
        (["--output-dir", "recipe.yaml/deeper"], "is a file"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_sentence_and_code_2(here, inside, arguments, said):
    code, err, left = inside("run", "recipe.yaml", *arguments)
    assert (code, left["code"]) == (2, 2)
    assert said in err and said in left["sentence"]


def test_a_reward_of_ones_own_is_found_before_anything_runs(here, inside):
    edit(here, ("  dpo: {", "  ppo: {rewards: [{from: function}]}\n  dpo: {"))
    (here / "mine.py").write_text("raise SystemExit('was run')\n\ndef f(prompts, answers): ...\n")
    code, err, _ = inside("plan", "recipe.yaml")
    assert code == 2
    assert err == "recipe.yaml:10: stages.ppo.rewards: asks for a function; add `--reward file.py:function`\n"
    for given, said in (("mine.py", "expected file.py:function"), ("other.py:f", "other.py does not exist")):
        code, err, _ = inside("plan", "recipe.yaml", "--reward", given)
        assert code == 2 and err.startswith(f"--reward {given}: ") and said in err
    assert inside("plan", "recipe.yaml", "--reward", "mine.py:f")[:2] == (0, "")


def test_batches_are_checked_for_the_processes_there_are(here):
    """8 rows a step, 4 a pass: two processes do one pass each; for three there is no exact split."""
    assert run(here, "recipe.yaml", "--plan", WORLD_SIZE="2", RANK="0").code == 0
    done = run(here, "recipe.yaml", WORLD_SIZE="3", RANK="0")
    assert done.code == 2
    assert "recipe.yaml:9: stages.sft" in done.err and "8" in done.err and "4 x 3 processes = 12" in done.err
    other = run(here, "recipe.yaml", WORLD_SIZE="3", RANK="1")
    assert other.code == 2 and other.err == "", "one process speaks for all"


def test_an_unknown_builtin_model(here):
    edit(here, ("builtin:tiny-llama", "builtin:tiny-lama"))
    done = run(here, "recipe.yaml")
    assert (done.code, done.left["code"]) == (69, 69)
    assert "builtin:tiny-llama" in done.err


def test_a_hub_model_that_is_not_cached_offline(here):
    edit(here, ("builtin:tiny-llama", "nobody-at-all/no-such-model"))
    done = run(here, "recipe.yaml", HF_HOME=str(here / "hf"))
    assert done.code == 69 and "hf download nobody-at-all/no-such-model" in done.err


def test_a_data_file_that_is_missing(here):
    (here / "data" / "pairs.jsonl").rename(here / "data" / "pair.jsonl")
    done = run(here, "recipe.yaml")
    assert (done.code, done.left["code"]) == (65, 65)
    assert "no such file" in done.err and "did you mean" in done.err
    exit_file = here / "runs" / "cli-test" / "exit.json"
    assert json.loads(exit_file.read_text()) == done.left


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_busy_run_directory(here, command):
    """Held by this very process; planning needs no lock."""
    from pipeline.locks import hold

    folder = here / "runs" / "cli-test"
    folder.mkdir(parents=True)
    (folder / "exit.json").write_text("the holder's")
    with hold(folder):
        done = trivet(here, command, "recipe.yaml")
    if command == "plan":
        assert done.code == 0 and done.err == ""
        return
    assert (done.code, done.left["code"]) == (73, 73)
    assert f"process {os.getpid()} on" in done.err and "--output-dir" in done.err
    assert (folder / "exit.json").read_text() == "the holder's"


def test_an_old_outcome_is_gone_when_a_new_run_begins(here):
    """A job script must not take yesterday's success for today's, should today's run be killed outright."""
    (here / "outcome.json").write_text('{"code": 0, "sentence": ""}')
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv.pop(1))\n"
        "from pipeline import supervisor\n"
        "def killed(*a, **k): os._exit(137)\n"
        "supervisor.identify = killed\n"
        "from pipeline.cli import main; main()"
    )
    folder = here / "runs" / "cli-test"
    folder.mkdir(parents=True)
    (folder / "exit.json").write_text('{"code": 0, "sentence": ""}')
    command = [sys.executable, "-c", code, str(ROOT), "run", "recipe.yaml"]
    assert subprocess.run(command, cwd=here, env=environment(here), timeout=300).returncode == 137
    assert not (here / "outcome.json").exists()
    assert not (folder / "exit.json").exists()


# What it says --------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_and_why_and_touches_nothing(here):
    before = sorted(here.rglob("*"))
    done = run(here, "recipe.yaml", "--plan")
    assert done.code == 0 and done.err == ""
    assert [line.split()[:3] for line in done.out.splitlines()] == [["sft", "will", "run"], ["dpo", "will", "run"]]
    assert all("not made yet" in line for line in done.out.splitlines())
    rows = json.loads(trivet(here, "plan", "recipe.yaml", "--json").out)
    assert [(row["stage"], row["kind"], row["action"], row["reason"]) for row in rows] == [
        ("sft", "sft", "run", "not made yet"), ("dpo", "dpo", "run", "not made yet"),
    ]  # fmt: skip
    assert sorted(here.rglob("*")) == before
    spread = trivet(here, "plan", "recipe.yaml", "--set", "stages.dpo.deepspeed=zero2").out.splitlines()
    assert [", under DeepSpeed ZeRO-2  (" in row for row in spread] == [False, True]
    rows = json.loads(trivet(here, "plan", "recipe.yaml", "--set", "stages.dpo.deepspeed=zero2", "--json").out)
    assert [row["engine"] for row in rows] == ["", "DeepSpeed ZeRO-2"]
    rows = run(here, "recipe.yaml", "--plan", "--until", "sft").out.splitlines()
    assert "left out by --until sft" in rows[1]


def test_the_schema_is_json_and_the_loaders_own(here):
    done = trivet(here, "schema")
    assert done.code == 0 and done.err == ""
    assert json.loads(done.out) == recipe_json_schema()


def test_a_reader_that_stops_early_sees_no_traceback(here):
    command = f"{sys.executable} -P -c 'from pipeline.cli import main; main()' schema | head -c 10"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=here, capture_output=True, text=True, env=environment(here, PYTHONPATH=str(ROOT)), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, "", 10)


FLAGS = {
    "": {"-h", "--help"},
    "run": {
        "-h", "--help", "recipe", "--set", "--reward", "--output-dir", "--store", "--only", "--until", "--force",
        "--no-reuse", "--plan", "--in-process",
    },
    "plan": {"-h", "--help", "recipe", "--set", "--reward", "--output-dir", "--store", "--json"},
    "submit": {
        "-h", "--help", "recipe", "--set", "--reward", "--output-dir", "--store", "--nodes", "--gpus-per-node",
        "--cpus-per-task", "--mem", "--time", "--partition", "--account", "--qos", "--site", "--one-job",
        "--array-over", "--dry-run", "--json",
    },
    "sweep": {
        "-h", "--help", "recipe", "--set", "--reward", "--output-dir", "--store", "--over", "--plan", "--html", "--csv",
    },
    "status": {"-h", "--help", "run", "--json"},
    "push": {
        "-h", "--help", "runs", "--to", "--project", "--entity", "--workspace", "--output-dir", "--json",
    },
    "eval": {
        "-h", "--help", "run", "--set", "--store", "--reward", "--tasks", "--policies", "--data", "--limit",
        "--batch-size", "--chat-template", "--allow-code", "--json",
    },
    "compare": {"-h", "--help", "runs", "--html", "--csv", "--votes", "--json"},
    "data": {"-h", "--help"},
    "data convert": {
        "-h", "--help", "files", "--output", "--format", "--as", "--map", "--limit", "--quarantine", "--json",
    },
    "data pipeline": {
        "-h", "--help", "recipe", "--set", "--output", "--data", "--tasks", "--workers", "--slurm", "--time",
        "--memory", "--json",
    },
    "schema": {"-h", "--help"},
    "data inspect": {
        "-h", "--help", "recipe", "--set", "--stage", "--row", "--rows", "--ids", "--html", "--json",
    },
    "data report": {"-h", "--help", "recipe", "--set", "--stage", "--html", "--json"},
}  # fmt: skip


def flags(parser) -> set[str]:
    found = set()
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            found.update(action.option_strings or [action.dest])
    return found


def test_the_command_line_is_frozen():
    """Scripts and notebooks depend on it: a flag that comes or goes is a decision, and is written down here."""
    parser = cli._parser()
    assert dict(commands(parser)) == FLAGS


def commands(parser, name=""):
    """Every command with its flags, those inside others behind their names."""
    yield name, flags(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner, below in action.choices.items():
                yield from commands(below, f"{name} {inner}".strip())


def test_every_flag_explains_itself(here):
    for command, names in FLAGS.items():
        done = trivet(here, *command.split(), "--help")
        assert done.code == 0
        assert all(name in done.out for name in names if name.startswith("--"))
    assert trivet(here).code == 2
    assert trivet(here, "runn", "recipe.yaml").code == 2


# Where it runs -------------------------------------------------------------------------------------------------------

HOSTILE = (
    "import pathlib; pathlib.Path(__file__ + '.was_imported').touch()\nraise SystemExit('hostile module imported')\n"
)


def hostile_folder(folder):
    """Modules that a working directory may hold by accident (or not), named like what we import."""
    for name in (
        "torch",
        "queue",
        "yaml",
        "json",
        "pydantic",
        "filelock",
        "pipeline",
        "data_prep",
        "trl",
        "random",
        "rich",
    ):
        (folder / f"{name}.py").write_text(HOSTILE)
    (folder / "transformers").mkdir()
    (folder / "transformers" / "__init__.py").write_text(HOSTILE)


def test_nothing_in_the_working_directory_is_imported(here):
    hostile_folder(here)
    assert run(here, "recipe.yaml", "--plan").code == 0
    assert trivet(here, "plan", "recipe.yaml").code == 0
    assert list(here.glob("*.was_imported")) == []


def test_a_whole_run_imports_nothing_from_the_working_directory_either(here):
    """Its workers too; and success is recorded where a job script looks."""
    hostile_folder(here)
    done = run(here, "recipe.yaml", "--until", "sft")
    assert done.code == 0, done.err
    assert list(here.glob("**/*.was_imported")) == []
    assert done.left == {"code": 0, "sentence": ""}
    assert json.loads((here / "runs" / "cli-test" / "exit.json").read_text()) == done.left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said", "status"),
    [
        (b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": \n', "pairs.jsonl:2", "failed"),
        (b"", "pairs.jsonl: the file is empty", "pending"),
        ('{"prompt": "ä", "chosen": "b", "rejected": "c"}\n'.encode("latin-1"), "pairs.jsonl", "pending"),
    ],
    ids=["broken line", "empty", "latin-1"],
)
def test_bad_data_is_65_with_its_place_wherever_it_is_found(here, content, said, status):
    """In a stage, which has failed then, or at the first row, before any stage begins."""
    (here / "data" / "pairs.jsonl").write_bytes(content)
    edit(here, ("  sft: {learning_rate: 1.0e-2, global_batch_size: 8, max_steps: 1, precision: fp32}\n", ""))
    done = run(here, "recipe.yaml")
    assert (done.code, done.left["code"]) == (65, 65)
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    folder = here / "runs" / "cli-test"
    entry = json.loads((folder / "run.json").read_text())["stages"][0]
    assert entry["status"] == status and (said in entry["reason"]) == (status == "failed")
    assert said in json.loads((folder / "exit.json").read_text())["sentence"]


def test_an_outcome_that_cannot_be_written_changes_no_code(here):
    done = run(here, "recipe.yaml", "--only", "dpoo", TRIVET_EXIT_FILE=str(here / "no" / "such" / "folder"))
    assert done.code == 2 and "could not write" in done.err


def test_a_device_as_exit_file_is_left_in_place(here):
    link = here / "link"
    link.symlink_to(os.devnull)
    done = run(here, "recipe.yaml", "--only", "dpoo", TRIVET_EXIT_FILE=str(link))
    assert done.code == 2 and link.is_symlink()
