"""Benchmarks without the harness: published files as its rows, what is refused, what is kept, what the page shows."""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from seen import Visible, page
from synthetic_run import write_run

from evaluation.benchmarks import record, sandbox
from evaluation.benchmarks.local import BENCHMARKS, local_tasks
from evaluation.benchmarks.sandbox import passes_tests
from evaluation.report.benchmarks_section import TITLES, benchmark_table
from pipeline import evaluating
from pipeline.cli import main
from pipeline.errors import DataError, TrivetError

SITTING = {"context": "A man sits.", "endings": ["a", "b", "c", "d"], "label": 2, "activity_label": "Sitting"}
WHY = {"question": "Why?", "mc1_targets": {"no": 0, "yes": 1}, "mc2_targets": {"no": 0, "yes": 1, "so": 1}}
ORDERED = {"key": 1, "prompt": "p", "instruction_id_list": ["a:b", "c:d"], "kwargs": [{}, {"n": 3}]}
FILES = {
    "mmlu/test/anatomy_test.csv": '"Which, of these?",a,b,"c, d",e,C\nSecond,1,2,3,4,A\n',
    "mmlu/dev/anatomy_dev.csv": "First,w,x,y,z,D\n",
    "cmmlu/test/anatomy.csv": ",Question,A,B,C,D,Answer\n0,问,甲,乙,丙,丁,B\n",
    "cmmlu/dev/anatomy.csv": ",Question,A,B,C,D,Answer\n0,例,甲,乙,丙,丁,A\n",
    "ceval/val/law_val.csv": "id,question,A,B,C,D,answer\n0,问,甲,乙,丙,丁,D\n",
    "ceval/dev/law_dev.csv": "id,question,A,B,C,D,answer,explanation\n0,例,甲,乙,丙,丁,A,因为\n",
    "hellaswag/val.jsonl": json.dumps(SITTING),
    "gsm8k/test_500.jsonl": json.dumps({"question": "1+1?", "answer": "2\n#### 2"}),
    "gsm8k/train_2000.jsonl": json.dumps({"question": "2+2?", "answer": "4\n#### 4"}),
    "truthfulqa/mc_task_500.json": json.dumps([WHY]),
    "ifeval/input.jsonl": json.dumps(ORDERED),
    "bbh/navigate.json": json.dumps({"canary": "x", "examples": [{"input": "Left?", "target": "No"}]}),
}


@pytest.fixture
def data(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    folder = tmp_path / "data" / "human_eval"
    folder.mkdir()
    row = {name: name for name in ("task_id", "prompt", "entry_point", "canonical_solution", "test")}
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    return tmp_path / "data"


def only(name, data):
    (task,) = local_tasks(name, data)
    return task


def test_every_benchmark_has_a_reader_and_a_title(data):
    for name in BENCHMARKS:
        assert local_tasks(name, data), name
    assert {name: known.title for name, known in BENCHMARKS.items()} == TITLES


def test_rows_are_those_of_the_data_sets_that_the_harness_names(data):
    mmlu = only("mmlu", data)
    assert mmlu.task == "mmlu_anatomy" and list(mmlu.splits) == ["test", "dev"]
    assert mmlu.splits["test"][0] == {"question": "Which, of these?", "choices": ["a", "b", "c, d", "e"], "answer": 2}
    assert mmlu.splits["dev"][0]["answer"] == 3
    assert only("cmmlu", data).splits["test"][0]["Answer"] == "B"
    assert only("ceval", data).task == "ceval-valid_law"
    asked = {"question": "例", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "answer": "A"}
    assert only("ceval", data).splits["dev"][0] == asked, "without its number and explanation"
    hellaswag = only("hellaswag", data)
    (row,) = hellaswag.splits["validation"]
    assert (row["ctx_a"], row["ctx_b"], row["label"]) == ("A man sits.", "", "2")
    assert hellaswag.changes == {"training_split": None}, "there is no such file"
    assert set(only("gsm8k", data).splits) == {"test", "train"}
    mc1, mc2 = local_tasks("truthfulqa", data)
    assert mc1.splits["validation"][0]["mc1_targets"] == {"choices": ["yes", "no"], "labels": [1, 0]}, "right one first"
    assert mc2.splits["validation"][0]["mc2_targets"]["labels"] == [1, 1, 0]
    assert only("ifeval", data).splits["train"][0]["kwargs"] == [{"n": None}, {"n": 3}]
    assert only("bbh", data).task == "bbh_cot_fewshot_navigate"
    assert only("humaneval", data).splits["test"][0]["entry_point"] == "entry_point"


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("mmlu", "mmlu/test/anatomy_test.csv", "a,b\n", "row 1 has 2 cells, expected 6"),
        ("mmlu", "mmlu/test/anatomy_test.csv", "q,1,2,3,4,F\n", "MMLU"),
        ("gsm8k", "gsm8k/test_500.jsonl", '{"question": 1}', "KeyError: 'answer'"),
        ("hellaswag", "hellaswag/val.jsonl", "{", "HellaSwag"),
        ("bbh", "bbh/navigate.json", "[]", "BIG-Bench Hard"),
    ],
)
def test_a_file_that_is_not_as_published_is_one_sentence(data, name, file, text, said):
    (data / file).write_text(text)
    with pytest.raises(DataError) as refused:
        local_tasks(name, data)
    assert said in str(refused.value) and BENCHMARKS[name].wanted in str(refused.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"GSM8K: there is no folder .*gsm8k; put test\*.jsonl and train\*.jsonl there"):
        local_tasks("gsm8k", tmp_path)
    (tmp_path / "bbh").mkdir()
    with pytest.raises(DataError, match="nothing to ask"):
        local_tasks("bbh", tmp_path)


# Programs


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("import os; os._exit(96)", False),
        ("def f(:", False),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", False),
        ("x = bytearray(3 << 30)", False),
        ("open('a', 'wb').write(bytes(8 << 20))", False),
        ("import os; assert not {'USER', 'PWD', 'TRIVET_CACHE'} & set(os.environ)", True),
        ("import os; assert os.listdir('.') == []", True),
        ("open('a', 'w').write('x'); import os; os.mkdir('b'); os.rename('a', 'b/a'); os.remove('b/a')", True),
        ("import os; open(os.devnull, 'w').write('x')", True),
        ("import collections, hashlib, itertools, math, re, string, typing", True),
        ("import os; os.setuid(0)", False),
        ("import sys; assert sys.argv == ['-c']", True),
    ],
)
def test_a_program_passes_only_by_reaching_its_end(program, passed):
    assert passes_tests(program) is passed


def test_a_program_that_does_not_end_is_ended():
    assert passes_tests("while True: pass", seconds=0.5) is False


LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1) > 0
"""Whether this kernel can fence a process in."""


@pytest.mark.skipif(not LANDLOCK, reason="this kernel has no Landlock")
def test_a_program_changes_nothing_outside_of_its_folder(tmp_path):
    """The control: the same programs do, run as they are."""
    import subprocess

    victim = tmp_path / "file"
    for program in (f"open({str(victim)!r}, 'w').close()", f"import os; os.remove({str(victim)!r})"):
        victim.write_text("kept")
        assert passes_tests(program) is False and victim.read_text() == "kept"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
        assert not victim.exists() or not victim.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")
def test_root_without_a_way_to_less_rights_is_refused(monkeypatch):
    """Neither nobody can read Python, nor does the kernel fence a process in; either alone is enough."""
    monkeypatch.setattr(sandbox, "_everybody_reads", lambda file: False)
    if LANDLOCK:
        assert passes_tests("pass") is True
    monkeypatch.setattr(sandbox, "_GUARD", sandbox._GUARD.replace("444, None", "99999, None"))
    with pytest.raises(TrivetError, match="not run as root where it could write everywhere"):
        passes_tests("pass")


def test_whether_everybody_reads_a_file(tmp_path):
    assert sandbox._everybody_reads(Path("/etc/passwd")) is True
    (file := tmp_path / "closed" / "file").parent.mkdir(mode=0o700)
    file.write_text("")
    file.chmod(0o644)
    assert sandbox._everybody_reads(file) is False, "its folder is closed"


def test_a_listener_on_this_machine_cannot_be_reached():
    """The control: outside of the sandbox the same program reaches it."""
    import socket
    import subprocess

    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
        assert passes_tests(program) is False


# What is kept and shown


def entry(policy, value, benchmark="mmlu", difference=None, ci95=None, **settings):
    figure = {"value": value, "stderr": 0.02, "n": 100}
    if difference is not None:
        figure["against_base"] = {"difference": difference, "ci95": ci95, "n": 100}
    return {
        "benchmark": benchmark, "policy": policy, "key": "k", "figures": {"acc": figure}, "tasks": [],
        "settings": {"limit": None, "chat_template": False, "lm_eval": "0.4.13", **settings},
    }  # fmt: skip


def question(policy, number, value, benchmark="mmlu"):
    return {"benchmark": benchmark, "policy": policy, "task": "t", "metric": "acc", "question": number, "value": value}


def test_an_entry_takes_the_place_of_the_one_before(tmp_path):
    record.keep(tmp_path, entry("base", 0.3), [question("base", "0", 1.0)])
    record.keep(tmp_path, entry("sft", 0.2), [question("sft", "0", 0.0)])
    record.keep(tmp_path, entry("base", 0.4), [question("base", "0", 0.0), question("base", "1", 1.0)])
    kept = [(one["policy"], one["figures"]["acc"]["value"]) for one in record.read_entries(tmp_path)]
    assert kept == [("base", 0.4), ("sft", 0.2)]
    assert record.values_by_question(tmp_path, "mmlu", "base", "acc") == {("t", "0"): 0.0, ("t", "1"): 1.0}
    assert record.values_by_question(tmp_path, "mmlu", "sft", "acc") == {("t", "0"): 0.0}


def test_what_was_asked_differently_stands_in_rows_of_its_own():
    entries = [
        entry("base", 0.3),
        entry("sft", 0.2),
        entry("base", 0.5, limit=10),
        entry("sft", 0.4, chat_template=True),
    ]
    table = benchmark_table(entries, ("base", "sft"))
    assert [row.label for row in table.rows] == ["MMLU", "MMLU (first 10 of each task)", "MMLU (as a conversation)"]
    assert [[cell and cell.value for cell in row.cells] for row in table.rows] == [[0.3, 0.2], [0.5, None], [None, 0.4]]


@pytest.mark.parametrize(
    ("ci95", "tone"),
    [([-0.2, -0.01], "worse"), ([0.01, 0.2], "better"), ([-0.1, 0.1], "none"), ([0.0, 0.1], "none"), (None, "plain")],
)
def test_forgotten_is_only_said_where_it_is_shown(ci95, tone):
    table = benchmark_table([entry("base", 0.3), entry("sft", 0.2, difference=-0.1, ci95=ci95)])
    assert table.rows[0].cells[1].tone == tone and table.rows[0].cells[0].tone == "plain"


def test_the_report_shows_benchmarks_and_lives_without_them(tmp_path):
    run = tmp_path / "demo"
    write_run(run)
    assert "MMLU" not in Visible(page(run)).text and "were not asked" in Visible(page(run)).text
    results = json.loads((run / "results.json").read_text())
    results["evaluation"]["benchmarks"] = [
        entry("base", 0.3),
        entry("dpo", 0.25, difference=-0.05, ci95=[-0.08, -0.02]),
    ]
    (run / "results.json").write_text(json.dumps(results))
    text = Visible(page(run)).text
    assert "MMLU , acc, % 30.0 ± 2.0 n = 100 25.0 ± 2.0 n = 100 ▼ forgotten: -5.0 [-8.0, -2.0]" in text
    assert "lm_eval 0.4.13" in text and "were not asked" not in text


# The command


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    run = tmp_path / "demo"
    write_run(run)
    (run / "recipe.yaml").write_text(
        "name: demo\ndata: {sft: {sources: [{path: builtin:alpaca_sample}]}}\nstages: {sft: {}}\n"
    )
    monkeypatch.delenv("TRIVET_EXIT_FILE", raising=False)

    def typed(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["eval", str(run), *arguments])
        return ended.value.code, capsys.readouterr().err

    return typed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--tasks", "mmlu,gsm9k"], 2, "--tasks: 'gsm9k' is not known; did you mean 'gsm8k'?"),
        (["--tasks", ","], 2, "--tasks: is empty"),
        (["--tasks", "humaneval"], 2, "add --allow-code to run them in a process apart"),
        (["--tasks", "mmlu", "--limit", "0"], 2, "--limit and --batch-size must be at least 1"),
        (["--tasks", "mmlu", "--policies", "dpo9"], 2, "--policies: 'dpo9' is not known"),
        (["--policies", "stf"], 2, "--policies: 'stf' is not known; did you mean 'sft'?"),
        (["--limit", "5"], 2, "--limit is for benchmarks; add --tasks"),
        (["--set", "evaluation.promts=3"], 2, "did you mean 'prompts'?"),
    ],
)
def test_mistakes_are_one_sentence(command, arguments, code, said, monkeypatch):
    monkeypatch.setattr(evaluating, "_policies", lambda folder, loaded: {})
    found, err = command(*arguments)
    assert (found, said in err) == (code, True), err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_harness_is_named(command, monkeypatch):
    monkeypatch.setattr(evaluating, "_policies", lambda folder, loaded: {})
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, err = command("--tasks", "mmlu")
    assert code == TrivetError.exit_code and "pip install -e '.[eval]'" in err


def policy(stage="sft", **manifest):
    return SimpleNamespace(manifest=SimpleNamespace(stage=stage, key="k", **manifest))


def test_a_policy_of_another_base_is_not_asked(command, data, monkeypatch):
    other = policy(base=SimpleNamespace(name="another", fingerprint="f" * 64))
    monkeypatch.setattr(evaluating, "_policies", lambda folder, loaded: {"sft": other})
    monkeypatch.setattr("evaluation.benchmarks.harness.require_harness", lambda: None)
    code, err = command("--tasks", "hellaswag", "--data", str(data), "--set", "model.base=builtin:tiny-llama")
    assert code == TrivetError.exit_code and "its sft belongs to base another (ffffffffffff)" in err
    assert "used here is builtin:tiny-llama" in err and len(err.strip().splitlines()) == 1


def test_a_policy_of_another_tokenizer_is_not_asked(tmp_path, data, tiny_folder, tiny_tokenizer):
    from evaluation.benchmarks.harness import Asked
    from evaluation.benchmarks.run import run_benchmarks
    from pipeline.models.load import describe_tokenizer
    from pipeline.recipe import loads_recipe

    recipe = loads_recipe(
        "name: x\nmodel: {base: builtin:tiny-llama}\ndata: {sft: {sources: [{path: builtin:alpaca_sample}]}}\n"
        "stages: {sft: {}}\n"
    ).recipe
    own = describe_tokenizer(tiny_tokenizer)
    artefacts = {"sft": policy(tokenizer=own.model_copy(update={"sha256": "0" * 64}))}
    asked = Asked(limit=1, chat_template=False, batch_size=1)
    told = rf"its sft was made with another tokenizer .*sha256 0{{12}}\) than is used here \(sha256 {own.sha256[:12]}\)"
    with pytest.raises(TrivetError, match=told):
        run_benchmarks(tmp_path, recipe, tiny_folder, artefacts, ["sft"], ["hellaswag"], data, asked, "fp32", print)
    assert not (tmp_path / "benchmarks").exists(), "before anything is written"


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path)])
    assert ended.value.code == DataError.exit_code and "holds no run" in capsys.readouterr().err
