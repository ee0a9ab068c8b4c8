"""`trivet sweep` without training: what is checked first, what a failure costs, how it stops, what runs again."""

from __future__ import annotations

import json
import signal

import pytest

from pipeline import cli, sweeping
from pipeline.combinations import changes_of
from pipeline.durable import write_json_atomically
from pipeline.errors import DataError, RecipeError
from pipeline.processes import StageFailed
from pipeline.stopping import FLAG
from pipeline.supervisor import Supervisor

RECIPE = """\
name: swept
model: {base: builtin:tiny-llama, adapter: {type: lora, r: 4, alpha: 8}}
data:
  sft:        {sources: [{path: builtin:alpaca_sample, limit: 16}]}
  preference: {sources: [{path: builtin:preference_sample, limit: 16}]}
stages:
  sft: {learning_rate: 1.0e-2, global_batch_size: 8}
  dpo: {learning_rate: 1.0e-2, global_batch_size: 8}
evaluation: {tasks: []}
"""


class Fakes:
    """What each run does instead of training, by its folder's last digit, and which were begun."""

    def __init__(self):
        self.begun: list[str] = []
        self.ends: dict[str, BaseException] = {}
        self.failed_stage = ""


@pytest.fixture
def fakes(monkeypatch):
    found = Fakes()

    def run(self):
        name = self.loaded.output_dir.name
        found.begun.append(name)
        self.loaded.output_dir.mkdir(parents=True, exist_ok=True)
        (self.loaded.output_dir / "recipe.yaml").write_text(self.loaded.resolved_yaml())
        nodes = [decision.node for decision in self.plan()]
        ended = {node.name: "failed" if node.name == found.failed_stage else "done" for node in nodes}
        stages = [{"name": node.name, "key": node.key, "status": ended[node.name]} for node in nodes]
        write_json_atomically(self.loaded.output_dir / "run.json", {"stages": stages})
        if name in found.ends:
            raise found.ends[name]

    monkeypatch.setattr(Supervisor, "run", run)
    monkeypatch.setattr(sweeping, "_compare", lambda outcome, options: print("compared", *outcome.done))
    return found


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Types `trivet sweep recipe.yaml ...` in a folder of its own; gives code, output and complaints."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIVET_EXIT_FILE", str(tmp_path / "outcome.json"))

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", "recipe.yaml", *arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out
        assert json.loads((tmp_path / "outcome.json").read_text())["code"] == ended.value.code
        return ended.value.code, said.out, said.err

    yield command
    FLAG.asked = False
    for number, handler in handlers.items():
        signal.signal(number, handler)


BETAS = ("--over", "stages.dpo.beta=0.05,0.1,0.2")


def exit_of(folder, name):
    return json.loads((folder / "runs" / name / "exit.json").read_text())


def test_a_run_for_each_combination_named_as_an_array_names_them(sweep, fakes, tmp_path):
    code, out, err = sweep("--over", "seed=1,2", "--over", "stages.dpo.beta=0.1,0.2")
    assert (code, err) == (0, "") and fakes.begun == ["swept-0", "swept-1", "swept-2", "swept-3"]
    assert "run 3 of 4: runs/swept-2  seed=2  stages.dpo.beta=0.1" in out
    assert "compared runs/swept-0 runs/swept-1 runs/swept-2 runs/swept-3" in out
    assert exit_of(tmp_path, "swept-3") == {"code": 0, "sentence": ""}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--over", "stages.dpo.beta=0.1,no"], 2, "expected a number above 0, found false"),
        (["--over", "stages.dpo.betta=0.1"], 2, "did you mean 'beta'?"),
        (["--over", "stages.dpo.beta"], 2, "--over stages.dpo.beta: expected values"),
        (["--over", "seed=1", "--over", "seed=2"], 2, "--over seed: is given twice"),
        (["--over", "seed=1,2,1"], 2, "--over: seed=1 is given twice"),
        (["--over", "stages.dpo.global_batch_size=8,9"], 2, "global_batch_size 9"),
        (["--over", "data.sft.sources=[{path: builtin:alpaca_sample}],[{path: gone.jsonl}]"], 65, "gone.jsonl"),
        ([*BETAS, "--html", "no/such/page.html"], 2, "there is no folder no/such"),
        ([], 2, "--over"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_last_value_costs_nothing(sweep, fakes, tmp_path, arguments, code, said):
    found, _, err = sweep(*arguments)
    assert found == code and said in err
    assert fakes.begun == [] and not (tmp_path / "runs").exists()


def test_what_would_run_is_shown_run_by_run(sweep, fakes, tmp_path):
    found = sweeping_plan(sweep)
    assert found == [
        ("runs/swept-0", "stages.dpo.beta=0.1"), ("sft", "will"), ("dpo", "will"),
        ("runs/swept-1", "stages.dpo.beta=0.2"), ("sft", "is"), ("dpo", "will"),
    ]  # fmt: skip
    assert fakes.begun == [] and not (tmp_path / "runs").exists()


def sweeping_plan(sweep):
    """First two words of each line. Planning is no outcome, so it leaves none."""
    from contextlib import redirect_stdout
    from io import StringIO

    out = StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "recipe.yaml", "--over", "stages.dpo.beta=0.1,0.2", "--plan"])
    assert ended.value.code == 0 and "is taken over from runs/swept-0" in out.getvalue()
    return [tuple(line.split()[:2]) for line in out.getvalue().splitlines()]


def test_one_failure_is_said_and_the_others_go_on(sweep, fakes, tmp_path):
    fakes.ends = {"swept-1": StageFailed(65, "dpo: pairs.jsonl:3 is no pair")}
    code, out, err = sweep(*BETAS)
    assert code == 65 and fakes.begun == ["swept-0", "swept-1", "swept-2"]
    first, last = err.splitlines()
    assert first == "runs/swept-1: dpo: pairs.jsonl:3 is no pair"
    assert last.startswith("1 of 3 runs are not done: runs/swept-1; ")
    assert "`trivet sweep recipe.yaml --over stages.dpo.beta=0.05,0.1,0.2` goes on" in last
    assert exit_of(tmp_path, "swept-1") == {"code": 65, "sentence": "dpo: pairs.jsonl:3 is no pair"}
    assert "compared runs/swept-0 runs/swept-2" in out


def test_different_failures_have_no_code_in_common(sweep, fakes):
    fakes.ends = {"swept-0": StageFailed(74, "disk full"), "swept-2": DataError("no rows")}
    assert sweep(*BETAS)[0] == 1


def test_a_shared_stage_that_failed_is_not_tried_again_for_every_value(sweep, fakes):
    fakes.ends, fakes.failed_stage = {"swept-0": StageFailed(1, "sft: out of memory")}, "sft"
    code, _, err = sweep(*BETAS)
    assert code == 1 and fakes.begun == ["swept-0"]
    assert "runs/swept-2: not begun: it needs the stage sft that failed in runs/swept-0" in err


def test_a_stage_of_ones_own_that_failed_holds_up_nobody(sweep, fakes):
    """The control: the same failure in the stage that every value makes anew."""
    fakes.ends, fakes.failed_stage = {"swept-0": StageFailed(1, "dpo: out of memory")}, "dpo"
    assert sweep(*BETAS)[0] == 1 and fakes.begun == ["swept-0", "swept-1", "swept-2"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StageFailed(75, "asked to stop; run the same command again to go on"), 75, "run the same command again"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_a_request_to_stop_ends_all(sweep, fakes, tmp_path, error, code, said):
    fakes.ends = {"swept-1": error}
    found, out, err = sweep(*BETAS)
    assert found == code and fakes.begun == ["swept-0", "swept-1"] and said in err
    assert exit_of(tmp_path, "swept-1")["code"] == code and "compared" not in out


def test_a_request_that_came_with_a_runs_last_words_holds_for_the_next(sweep, fakes, monkeypatch):
    def asked(element, outcome):
        FLAG.asked = True

    monkeypatch.setattr(sweeping, "_go", asked)
    code, _, err = sweep(*BETAS)
    assert code == 75 and "asked to stop before runs/swept-1" in err


def test_a_defect_of_ours_shows_itself_and_the_others_go_on(fakes, sweep, tmp_path, capsys):
    fakes.ends = {"swept-0": ZeroDivisionError("ours")}
    with pytest.raises(AssertionError, match="Traceback"):
        sweep(*BETAS)
    assert fakes.begun == ["swept-0", "swept-1", "swept-2"]
    assert exit_of(tmp_path, "swept-0") == {"code": 1, "sentence": "unexpected ZeroDivisionError: ours"}


def test_what_is_finished_is_not_run_again_and_what_changed_is(sweep, fakes, monkeypatch, tmp_path):
    assert sweep(*BETAS)[0] == 0
    whole = sweeping._elements

    def sealed(*arguments):
        """As if every stage had been sealed."""
        from dataclasses import replace

        return [replace(one, decisions=[replace(d, action="skip") for d in one.decisions]) for one in whole(*arguments)]

    monkeypatch.setattr(sweeping, "_elements", sealed)
    (tmp_path / "runs" / "swept-1" / "exit.json").write_text('{"code": 1, "sentence": "killed"}')
    fakes.begun.clear()
    code, out, _ = sweep(*BETAS)
    assert code == 0 and fakes.begun == ["swept-1"] and out.count("finished earlier") == 2
    assert "compared runs/swept-0 runs/swept-1 runs/swept-2" in out
    fakes.begun.clear()
    assert sweep("--over", "stages.dpo.beta=0.05,0.15,0.2")[0] == 0
    assert fakes.begun == ["swept-1"], "another value stands there now"


def test_several_processes_are_refused_with_what_to_type(sweep, fakes, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = sweep(*BETAS)
    assert code == 2 and "started as 2 processes" in err and "trivet submit --array-over" in err


def test_values_are_yaml_and_the_last_key_changes_fastest():
    assert changes_of(["a.b=1e-4,x", "c=[1,2],null"], "--over") == [
        ("a.b=0.0001", "c=[1, 2]"), ("a.b=0.0001", "c=null"), ("a.b=x", "c=[1, 2]"), ("a.b=x", "c=null"),
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="--over: 1001 combinations, at most 1000 are run"):
        changes_of([f"seed={','.join(map(str, range(1001)))}"], "--over")
