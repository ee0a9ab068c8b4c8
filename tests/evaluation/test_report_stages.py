"""The sections of reward models and PPO: every figure from the files, honest about what was not shown, safe."""

from __future__ import annotations

import copy
import json
import re

import pytest
from seen import Visible, leaves, page
from synthetic_ppo import PPO, RESULTS, REWARD, rollouts, write_ppo_run
from synthetic_run import write, write_lines

from evaluation.report.charts import Mark, Series, line_chart
from evaluation.report.curves import curves
from evaluation.report.load import load_run
from evaluation.report.ppo_section import ppo_sections
from evaluation.report.reward_section import reward_sections
from pipeline.locks import hold


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "demo"
    write_ppo_run(run)
    return run


def change(run_dir, stage, **values):
    results = copy.deepcopy(RESULTS)
    results["stages"][stage]["metrics"].update(values)
    write(run_dir / "results.json", results)


def ppo_of(run_dir):
    run = load_run(run_dir)
    (section,) = ppo_sections(run, curves(run.stages))
    return section


def reward_of(run_dir):
    (section,) = reward_sections(load_run(run_dir))
    return section


# Every figure, and none but the files'


NUMBERS = [path for path, value in leaves(RESULTS) if isinstance(value, float | int) and path[-1] != "seconds"]


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_every_figure_of_the_results_reaches_the_page(run_dir, path):
    before = page(run_dir)
    changed = copy.deepcopy(RESULTS)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] += 1
    write(run_dir / "results.json", changed)
    assert page(run_dir) != before


def test_no_figure_comes_from_anywhere_but_the_files(run_dir):
    """Each number in the two sections is one of the files' as text, in percent or rounded, or a stated count."""
    html = page(run_dir)
    start, end = html.index('<section id="reward-1"'), html.index('<section id="curves"')
    files = [RESULTS, json.loads((run_dir / "ppo/manifest.json").read_text()), rollouts()]
    lines = (run_dir / "ppo/metrics.jsonl").read_text().splitlines()
    values = [value for file in (*files, *map(json.loads, lines)) for _, value in leaves(file)]
    figures = [abs(v) for v in values if isinstance(v, float | int) and not isinstance(v, bool)]
    known = {f"{scale * v:,.{digits}f}" for v in figures for scale in (1, 100) for digits in range(4)}
    known |= {number for v in values for number in re.findall(r"[\d.,]*\d", str(v))}
    known |= {f"{v:.2e}" for v in figures}
    coin = {"0.693", "0.250", "0", "1"}  # what knows nothing, and the scale's mean 0 and deviation 1
    counts = {str(len(REWARD["reliability"])), str(len(PPO["measured"]))}
    shown = set(re.findall(r"\d[\d.,]*e-\d+|\d[\d.,]*\d|\d", Visible(html[start:end]).text))
    assert shown - known - coin - counts == set()


# Reward models


def test_a_reward_model_in_words_and_figures(run_dir):
    text = Visible(page(run_dir)).text
    told = (
        "Prefers the better answer in 74.4 % of 160 held-out pairs [67.3, 80.9], before training 48.1 %; calibration "
        "error 0.06."
    )
    assert text.count(told) == 2, "among the stages, and at the head of its section"
    for fact in (
        "held-out pairs 160, 4 of them scored alike",
        "margin, log-odds 0.92 [0.72, 1.13], before training -0.01",
        "loss, nats per pair 0.537, before training 0.704",
        "score = (raw − 1.68) / 0.207: mean 0 and deviation 1 over 256 answers (data.sft, demonstrations)",
        "members 2, accuracies 73.8, 71.9 %",
        "trained on 817 pairs in 102 steps",
        "correlation of the score 0.312",
    ):
        assert fact in text


def test_slices_stand_weakest_first_and_lengths_in_their_order(run_dir):
    (length, source), (fault,) = reward_of(run_dir).slices
    assert [row.label for row in length.rows] == [
        "the better answer is longer", "both are equally long", "the better answer is shorter",
    ]  # fmt: skip
    assert [row.label for row in fault.rows] == ["wrong fact", "needless doubt", "truncated"]
    assert [(row.label, row.n) for row in source.rows] == [("builtin:preference_sample", 130), ("pairs.jsonl", 30)]
    text = Visible(page(run_dir)).text
    assert "wrong fact 62 % 21 needless doubt 89 % 18 truncated 100 % 9" in text


@pytest.mark.parametrize(
    ("ci95", "told"),
    [
        ([0.142, 0.417], "rises: a policy can gain by this"),
        ([-0.1, 0.4], "no change shown"),
        ([0.0, 0.4], "no change shown"),
        ([-0.4, -0.1], "falls"),
        (None, "uncertainty not measured"),
    ],
)
def test_a_change_is_only_called_what_its_interval_allows(run_dir, ci95, told):
    change(run_dir, "reward", stress={"repeated": {"shift": 0.2, "ci95": ci95, "n": 5}})
    (found,) = reward_of(run_dir).changes
    assert told in found.told and found.label == "the whole answer twice"
    assert (found.tone == "worse") is (told.startswith("rises"))


def test_the_reliability_diagram_has_its_points_and_the_true_line(run_dir):
    html = page(run_dir)
    assert html.count('class="dot eval"') >= 10
    assert '<polyline class="line ideal"' in html
    assert "<title>says 51.3 %, is 47.1 % of 15 pairs</title>" in html
    assert 'aria-label="Reliability of reward: confidence that would be true from 0.500 to' in html


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ([0.44, 0.61], "Not shown to differ from chance."),
        ([0.31, 0.46], "Worse than chance."),
        ([0.52, 0.66], ""),
    ],
)
def test_accuracy_claims_no_more_than_its_interval(run_dir, around, said):
    change(run_dir, "reward", eval_accuracy=sum(around) / 2, eval_accuracy_ci95=around)
    told = reward_of(run_dir).told
    assert told.endswith(said or "calibration error 0.06.")
    assert ("chance" in told) is bool(said)


def test_without_held_out_pairs_it_says_so(run_dir):
    results = copy.deepcopy(RESULTS)
    nothing = dict.fromkeys(("eval_accuracy", "eval_accuracy_ci95", "eval_margin", "ece", "brier", "reliability"))
    scale = {"score_offset": -1.5, "score_scale": 0.3, "score_n": 9, "members": 1, "stress": {}}
    results["stages"]["reward"]["metrics"] = {"eval_n": 0, "eval_ties": 0, **nothing, **scale}
    write(run_dir / "results.json", results)
    text = Visible(page(run_dir)).text
    assert "No pairs were held out" in text and "(raw + 1.50) / 0.300" in text
    assert "Where it is right" not in text and "Is its confidence true" not in text and "fooled" not in text


def test_several_reward_models_have_a_section_each(run_dir):
    for name in ("run.json", "results.json"):
        text = (run_dir / name).read_text().replace('"reward"', '"judge_a"', 1)
        (run_dir / name).write_text(text)
    ledger = json.loads((run_dir / "run.json").read_text())
    ledger["stages"].insert(2, {"name": "reward", "kind": "reward", "status": "done"})
    ledger["stages"][1].update(name="judge_a", kind="reward")
    write(run_dir / "run.json", ledger)
    results = copy.deepcopy(RESULTS)
    results["stages"]["judge_a"] = {"metrics": {**REWARD, "eval_accuracy": 0.611}}
    write(run_dir / "results.json", results)
    html = page(run_dir)
    assert [section.title for section in reward_sections(load_run(run_dir))] == ["Reward model judge_a", "Reward model"]
    assert 'href="#reward-1"' in html and 'id="reward-2"' in html


# PPO


def test_ppo_in_words_and_figures(run_dir):
    text = Visible(page(run_dir)).text
    told = (
        "Score 0.12 → 0.95 on 64 held-out prompts, a gain of 0.83 [0.60, 1.06], at 3.14 nats from sft; kept the policy "
        "after rollout 9 of 12."
    )
    assert text.count(told) == 2
    for fact in (
        "trained 12 rollouts, 768 episodes, 24 optimiser steps",
        "KL to sft, nats per answer 3.14 [2.73, 3.58]",
        "answers that end by themselves, % 98.4, before training 95.3",
        "tokens per answer 38.3, before training 31.7",
        "rewards reward + 0.5 × rules",
        "value_learning_rate not set",
        "learning_rate 0.0005",
        "normalise_scores true",
        "9 (kept) 0.953 3.14 0.796",
    ):
        assert fact in text
    assert "Ended early" not in text


def test_without_a_value_model_its_settings_are_left_out(run_dir):
    with_one = Visible(page(run_dir)).text
    assert "value_learning_rate not set" in with_one and "gae_lambda" in with_one
    path = run_dir / "ppo" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["stage"] |= {"advantage_estimator": "rloo", "samples_per_prompt": 4}
    path.write_text(json.dumps(manifest))
    text = Visible(page(run_dir)).text
    assert "samples_per_prompt 4" in text and "advantage_estimator rloo" in text
    assert not {"value_learning_rate", "gae_lambda"} & set(text.split())


@pytest.mark.parametrize(
    ("values", "said", "claimed"),
    [
        ({"score_gain": 0.021, "score_gain_ci95": [-0.1, 0.14]}, "no gain shown (0.02 [-0.10, 0.14])", False),
        ({"score_gain": 0.0, "score_gain_ci95": [0.0, 0.0]}, "no gain shown (0 [0, 0])", False),
        ({"score_gain": -0.3, "score_gain_ci95": [-0.51, -0.12]}, "a loss of 0.30 [0.12, 0.51]", False),
        ({"score_gain": 0.002, "score_gain_ci95": [0.0009, 0.003]}, "a gain of 0.002 [0.001, 0.003]", True),
        ({"score_gain": None, "score_gain_ci95": [0.6, 1.1]}, "a gain of 0.83 [0.60, 1.10]", True),
        ({"score_gain_ci95": None}, "on 64 held-out prompts, at 3.14 nats from sft;", False),
        (
            {"selected_rollout": 0, "score": 0.121, "score_gain": 0.0, "score_gain_ci95": [0.0, 0.0]},
            "Score 0.12 on 64 held-out prompts: no policy measured was better than sft, which is kept.",
            False,
        ),
        ({"score": None}, "Trained on 768 episodes; no prompts were held out to measure it on.", False),
        ({"eval_n": None, "kl_to_reference": None, "selected_rollout": None}, "0.95 on held-out prompts, a gain", True),
    ],
)
def test_a_gain_is_only_claimed_where_it_is_shown(run_dir, values, said, claimed):
    change(run_dir, "ppo", **values)
    told = ppo_of(run_dir).told
    assert said in told and ("a gain" in told) is claimed


def test_a_spent_budget_is_said_everywhere(run_dir):
    sentence = "rollout 10 is 8.31 nats per answer away from the reference, over kl_max 8: training ends"
    change(run_dir, "ppo", stopped=sentence)
    text = Visible(page(run_dir)).text
    assert f"Ended early: {sentence}." in text
    assert text.count("Training ended early, over kl_max.") == 2


def test_the_frontier_marks_the_policy_handed_on(run_dir):
    html = str(ppo_of(run_dir).frontier)
    assert html.count("<title>after rollout") == 5 and html.count('class="ring"') == 1
    assert ">kept, rollout 9</text>" in html
    ring = re.search(r'class="ring" cx="([\d.]+)" cy="([\d.]+)"', html).groups()
    dots = re.findall(r'class="dot eval" cx="([\d.]+)" cy="([\d.]+)"', html)
    assert dots[3] == ring
    assert [float(x) for x, _ in dots] == sorted(float(x) for x, _ in dots), "a KL estimated below 0 stands at 0"
    change(run_dir, "ppo", selected_rollout=0)
    assert ">kept, the start</text>" in str(ppo_of(run_dir).frontier)
    change(run_dir, "ppo", measured=[])
    assert not ppo_of(run_dir).frontier


def test_held_out_measurements_share_the_charts_of_training(run_dir):
    run = load_run(run_dir)
    drawn = {stage.stage: stage for stage in curves(run.stages)}
    charts = {chart.title: chart for chart in drawn["ppo"].main}
    for title in ("Score", "KL to the reference", "Response length", "Responses that end by themselves"):
        assert [line.label for line in charts[title].legend] == ["train", "held-out"], title
    assert [line.label for line in charts["Tokens whose ratio is clipped"].legend] == ["from above", "from below"]
    assert {"Entropy", "Variance of the returns that the baseline explains"} <= set(charts)
    assert all(">rollout</text>" in str(chart.svg) for chart in charts.values())
    assert [chart.title for chart in drawn["ppo"].further] == ["policy/grad_norm"]
    accuracy = drawn["reward"].main[1]
    assert [line.label for line in accuracy.legend] == ["train", "held-out"]
    assert ">optimiser step</text>" in str(accuracy.svg)


def test_its_main_curves_stand_in_its_own_section_alone(run_dir):
    html = page(run_dir)
    section = html[html.index('<section id="curves"') :]
    assert "Score of ppo" not in section and "stand in the section of ppo itself" in section
    assert html.count('aria-label="Score of ppo') == 1


def test_early_and_late_answers_are_of_the_same_prompts_furthest_apart(run_dir):
    pairs = ppo_of(run_dir).samples
    assert [(early.rollout.rollout, late.rollout.rollout) for early, late in pairs] == [(1, 11)] * 4
    assert all(early.rollout.prompt == late.rollout.prompt for early, late in pairs)
    assert "21 tokens, cut off: did not end by itself" in Visible(page(run_dir)).text


def test_without_repeated_prompts_the_first_rollout_stands_beside_the_last(run_dir):
    lines = [{**line, "prompt": f"{line['rollout']}, {number}"} for number, line in enumerate(rollouts())]
    write_lines(run_dir / "ppo" / "rollouts.jsonl", lines)
    pairs = ppo_of(run_dir).samples
    assert [(early.rollout.rollout, late.rollout.rollout) for early, late in pairs] == [(1, 12)] * 4
    text = Visible(page(run_dir)).text
    assert "1, 0 sampled 1.0" in text and "12, 44 sampled 12.0" in text
    write_lines(run_dir / "ppo" / "rollouts.jsonl", lines[:4])
    assert ppo_of(run_dir).samples == (), "one rollout has no early and late"


def test_a_long_answer_is_cut_and_an_empty_one_named(run_dir):
    lines = rollouts()
    lines[0]["response"], lines[1]["response"] = "x" * 2000, ""
    write_lines(run_dir / "ppo" / "rollouts.jsonl", lines)
    text = Visible(page(run_dir)).text
    assert "1,200 more characters in rollouts.jsonl" in text and "(empty answer)" in text


def test_every_text_of_a_chart_is_escaped():
    hostile = "<script>x</script>"
    series = Series(label=hostile, style=hostile, points=((0, 1), (1, 2)), hints=(hostile, hostile))
    marks = [Mark(1, 2, hostile)]
    drawn = str(line_chart(hostile, [series], x_label=hostile, y_label=hostile, steps=False, marks=marks))
    assert "<script" not in drawn and drawn.count("&lt;script") >= 8


def test_near_values_have_ticks_that_differ():
    drawn = str(
        line_chart("x", [Series(label="l", style="train", points=((0, 5.5441), (9, 5.5463)))], x_label="", y_label="")
    )
    ticks = re.findall(r'text-anchor="end">([^<]+)<', drawn)
    assert len(set(ticks)) == len(ticks) > 3 and all("e" not in tick for tick in ticks)


# Policies


def test_policies_have_their_scores_and_the_judge_is_named(run_dir):
    text = Visible(page(run_dir)).text
    assert "Score from the reward model -0.82 [-1.11, -0.54] n = 48 0.12 [-0.09, 0.33] n = 48" in text
    assert "The score is by reward, on sampled answers" in text
    assert "ppo against sft: better in score (+0.82 [0.61, 1.04], n = 48); no difference shown in right answers" in text


def test_without_a_judge_no_score_is_shown(run_dir):
    results = copy.deepcopy(RESULTS)
    results["evaluation"]["score_by"] = None
    for row in results["evaluation"]["policies"].values():
        row.update(score=None, score_ci95=None, score_n=None)
    write(run_dir / "results.json", results)
    html = page(run_dir)
    table = Visible(html[html.index('<section id="policies"') : html.index('<section id="families"')]).text
    assert "Score from the reward model" not in table and "The score is by" not in table


# Untrusted and damaged files


def test_a_script_in_a_sampled_answer_is_text(run_dir):
    seen = Visible(page(run_dir))
    assert "<script>alert('stored')</script>" in seen.text
    assert "script" not in seen.tags and "img" not in seen.tags


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("results.json", "wrong_fact"),
        ("results.json", "longer_chosen"),
        ("results.json", "pairs.jsonl"),
        ("results.json", "flattered"),
        ("results.json", "data.sft, demonstrations"),
        ("results.json", "arithmetic"),
        ("results.json", "reward"),
        ("run.json", "ppo"),
        ("ppo/manifest.json", "best"),
        ("ppo/manifest.json", "reward_1"),
        ("ppo/manifest.json", "sft"),
        ("ppo/rollouts.jsonl", "plus"),
        ("ppo/rollouts.jsonl", "user"),
        ("ppo/metrics.jsonl", "policy/grad_norm"),
        ("ppo/metrics.jsonl", "eval"),
    ],
)
def test_no_word_of_any_file_becomes_markup(run_dir, name, word):
    hostile = json.dumps('"><script>x</script><i class="')[1:-1]
    text = (run_dir / name).read_text()
    assert word in text
    (run_dir / name).write_text(text.replace(word, hostile))
    change_stopped = json.loads((run_dir / "results.json").read_text())
    if "ppo" in change_stopped["stages"]:
        change_stopped["stages"]["ppo"]["metrics"]["stopped"] = "<i>stopped</i>"
        write(run_dir / "results.json", change_stopped)
    seen = Visible(page(run_dir))
    assert "script" not in seen.tags and "i" not in seen.tags


@pytest.mark.parametrize("junk", [None, [], "text", 7, float("nan"), {"a": [1]}, [[1]], [{"rollout": "x"}]])
def test_values_of_the_wrong_type_count_as_not_measured(run_dir, junk):
    for stage, metrics in (("reward", REWARD), ("ppo", PPO)):
        for name in metrics:
            results = copy.deepcopy(RESULTS)
            results["stages"][stage]["metrics"][name] = junk
            write(run_dir / "results.json", results)
            assert "Answers early and late" in page(run_dir), name
    write_lines(run_dir / "ppo" / "rollouts.jsonl", [{"rollout": junk}, {"rollout": 1, "prompt": junk, "score": junk}])
    assert "Reward model" in page(run_dir)


@pytest.mark.parametrize(
    "gone", ["ppo/rollouts.jsonl", "ppo/metrics.jsonl", "ppo/manifest.json", "reward/manifest.json"]
)
def test_a_missing_file_is_named_and_the_rest_is_shown(run_dir, gone):
    (run_dir / gone).unlink()
    text = Visible(page(run_dir)).text
    assert f"{gone} is not there" in text
    assert "What each nat bought while it trained" in text and "What it can be fooled by" in text


def test_a_run_in_the_middle_of_ppo_shows_what_there_is(run_dir):
    ledger = json.loads((run_dir / "run.json").read_text())
    ledger["stages"][3]["status"] = "running"
    write(run_dir / "run.json", ledger)
    results = copy.deepcopy(RESULTS)
    results["stages"]["ppo"] = {"status": "running", "metrics": {}}
    del results["evaluation"]
    write(run_dir / "results.json", results)
    (run_dir / "ppo" / "manifest.json").unlink()
    (run_dir / "ppo" / "rollouts.jsonl").unlink()
    with hold(run_dir):
        text = Visible(page(run_dir)).text
    assert "ppo is running" in text and "Rollout by rollout" in text and "bought while it trained" not in text
    assert "What each nat bought" in text, "the frontier of what it has logged so far"
    assert "How it was trained" not in text and "– rollouts" not in text
    assert "rollouts.jsonl is not there" not in text
