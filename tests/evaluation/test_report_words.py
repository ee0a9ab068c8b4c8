"""The words: claims no stronger than their intervals, and a closing table that fits 80 columns without colour."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console
from synthetic_ppo import RESULTS as PPO_RESULTS
from synthetic_ppo import write_ppo_run
from synthetic_run import RESULTS, write, write_run

from evaluation.report import print_summary, write_report
from evaluation.report.load import load_run
from evaluation.report.words import state, told
from pipeline.locks import hold


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "demo"
    write_run(run)
    return run


def printed(run_dir, width=80):
    stream = StringIO()
    print_summary(run_dir, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("failed", "Stage dpo failed: not made yet"),
        ("interrupted", "Stage dpo was interrupted: not made yet"),
        ("running", "Stage dpo was killed; the run's command goes on from there."),
        ("pending", "dpo still"),
    ],
)
def test_a_run_that_is_not_through_says_where_it_stands(run_dir, status, said):
    ledger = json.loads((run_dir / "run.json").read_text())
    ledger["stages"][1]["status"] = status
    write(run_dir / "run.json", ledger)
    assert said in state(load_run(run_dir)).text
    assert said in " ".join(printed(run_dir).split())


def test_a_run_that_is_held_is_still_going(run_dir):
    """Its processes live on this machine, or it is on another one."""
    ledger = json.loads((run_dir / "run.json").read_text())
    ledger["stages"][1]["status"] = "running"
    write(run_dir / "run.json", ledger)
    with hold(run_dir):
        assert state(load_run(run_dir)).text == "The run is still going: dpo is running."
    write(run_dir / ".holder.json", {"pid": 0, "host": "another"})
    assert state(load_run(run_dir)).text == "The run is still going: dpo is running."


@pytest.mark.parametrize(
    ("difference", "ci95", "tone", "said"),
    [
        (-0.05, [-0.09, -0.01], "worse", "sft answers 5 points fewer of 151 held-out prompts right than base [1, 9]."),
        (
            0.02,
            [0.003, 0.037],
            "better",
            "answers 2.0 points more of 151 held-out prompts right than base [0.3, 3.7].",
        ),
        (0.01, [0.0, 0.02], "none", "no difference shown in held-out prompts answered right (+1 points [0, 2]"),
        (0.0, [0.0, 0.0], "none", "no difference shown in held-out prompts answered right (0 points [0, 0]"),
        (
            0.01,
            None,
            "unsure",
            "1 point more of 151 held-out prompts right than base (uncertainty not measured).",
        ),
    ],
)
def test_words_claim_what_the_interval_allows_and_no_more(run_dir, difference, ci95, tone, said):
    results = copy.deepcopy(RESULTS)
    row = {"metric": "rule_accuracy", "from": "base", "to": "sft", "difference": difference, "ci95": ci95, "n": 151}
    results["evaluation"]["comparisons"] = [row]
    write(run_dir / "results.json", results)
    (finding,) = map(told, load_run(run_dir).comparisons)
    assert finding.tone == tone
    assert said in finding.text


def test_the_closing_table_fits_eighty_columns_without_colour(run_dir):
    lines = printed(run_dir).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "21.3 ±6.6" in text and "1.23 ±0.22" in text
    assert "No difference is shown between sft and dpo in right answers (+3 points [-3, 8], n = 151)" in text
    assert "- sft against base: better in right answers (+31 points [24, 38], n = 151)." in text


def test_many_measures_are_spread_over_tables_none_cut(run_dir):
    results = copy.deepcopy(RESULTS)
    for row in results["evaluation"]["policies"].values():
        row.update({f"measure_number_{i}": 1000.5 + i for i in range(9)})
    write(run_dir / "results.json", results)
    text = printed(run_dir)
    assert all(f"{1000.5 + i:,.0f}" in text for i in range(9))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("policy") > 1


def test_the_closing_words_say_where_to_read_on(run_dir, monkeypatch):
    write_report(run_dir)
    monkeypatch.chdir(run_dir.parent)
    text = printed(run_dir)
    assert "demo/report.html" in text and "demo/results.json" in text


def test_names_with_brackets_are_no_markup_and_a_narrow_encoding_is_enough(run_dir):
    (run_dir / "results.json").write_text(json.dumps(RESULTS).replace('"sft"', '"[red]sft"'))
    assert "[red]sft" in printed(run_dir)
    script = (
        f"import pathlib; from evaluation.report import print_summary; print_summary(pathlib.Path({str(run_dir)!r}))"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert b"21.3 +-6.6" in done.stdout


@pytest.mark.parametrize("name", ["run.json", "results.json", "evaluation/answers.jsonl", "sft/metrics.jsonl"])
def test_half_written_files_do_not_stop_the_closing_words(run_dir, name):
    whole = (run_dir / name).read_text()
    for length in range(0, len(whole), len(whole) // 5):
        (run_dir / name).write_text(whole[:length])
        assert "demo" in printed(run_dir)
    (run_dir / name).unlink()
    assert "demo" in printed(run_dir)


def test_an_empty_directory_is_said_to_be_empty(tmp_path):
    assert "Nothing has been recorded" in printed(tmp_path)


def test_without_comparisons_the_stages_speak_for_themselves(run_dir):
    write(run_dir / "results.json", {"stages": RESULTS["stages"]})
    text = " ".join(printed(run_dir).split())
    assert "sft: Held-out loss 1.20 nats per token (before training 2.31) over 180 held-out rows." in text


def test_a_run_that_had_nothing_to_do_says_so(run_dir):
    text = (run_dir / "run.json").read_text()
    (run_dir / "run.json").write_text(text.replace('"done"', '"skipped"'))
    assert state(load_run(run_dir)).text == "All 3 stages are taken over from earlier; nothing had to be run."


@pytest.fixture
def ppo_dir(tmp_path):
    run = tmp_path / "all"
    write_ppo_run(run)
    return run


def test_reward_model_and_ppo_speak_below_the_verdict(ppo_dir):
    lines = printed(ppo_dir).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    told = [
        "ppo is better than dpo in score (+0.43 [0.22, 0.65], n = 48); ppo stands 3.37 nats of KL from sft, dpo 1.23.",
        "- ppo against sft: better in score (+0.82 [0.61, 1.04], n = 48); no difference shown in right answers (+4 "
        "points [-2, 10], n = 151).",
        "- Nothing was shown to be worse in 2 comparisons.",
        "reward: Prefers the better answer in 74.4 % of 160 held-out pairs [67.3, 80.9], before training 48.1 %; "
        "calibration error 0.06.",
        "ppo: Score 0.12 → 0.95 on 64 held-out prompts, a gain of 0.83 [0.60, 1.06], at 3.14 nats from sft; kept the "
        "policy after rollout 9 of 12.",
    ]
    places = [text.index(sentence) for sentence in told]
    assert places == sorted(places)
    assert "All 3 comparisons are in the report." in text
    assert "sft: Held-out loss" not in text and "dpo: Prefers" not in text, "the verdict speaks for these"
    assert "-0.82 ±0.29" in text and "0.94 ±0.21" in text


def test_the_score_column_is_there_only_when_scored(run_dir, ppo_dir):
    assert " score" in printed(ppo_dir) and " score" not in printed(run_dir)


def test_an_arrow_needs_no_unicode(ppo_dir):
    script = (
        f"import pathlib; from evaluation.report import print_summary; print_summary(pathlib.Path({str(ppo_dir)!r}))"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert b"Score 0.12 -> 0.95" in done.stdout


@pytest.mark.parametrize(
    ("difference", "ci95", "tone", "said"),
    [
        (-0.3, [-0.51, -0.12], "worse", "ppo scores 0.30 lower than sft by the reward model on 48"),
        (0.02, [-0.1, 0.14], "none", "no difference shown in score from the reward model (+0.02 [-0.10, 0.14] over 48"),
    ],
)
def test_a_score_is_only_called_higher_where_it_is(ppo_dir, difference, ci95, tone, said):
    results = copy.deepcopy(PPO_RESULTS)
    row = {"metric": "score", "from": "sft", "to": "ppo", "difference": difference, "ci95": ci95, "n": 48}
    results["evaluation"]["comparisons"] = [row]
    write(ppo_dir / "results.json", results)
    (finding,) = map(told, load_run(ppo_dir).comparisons)
    assert finding.tone == tone and said in finding.text
