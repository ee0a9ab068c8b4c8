"""The verdict of one run: a lead that says who is better, by how much and at what cost, and where it got worse."""

from __future__ import annotations

import io
import math
import random

import pytest
from rich.console import Console
from seen import Visible, page
from synthetic_run import compared, write, write_lines

from evaluation.best_of_n import kl_bound
from evaluation.compare import differences
from evaluation.report import print_summary
from evaluation.report.frontier_section import frontiers_of
from evaluation.report.load import load_run
from evaluation.report.verdict import headline, verdict
from evaluation.report.worse_section import worse_section

PROMPTS = 40
PAIRS = [("base", "sft"), ("sft", "dpo"), ("sft", "ppo"), ("dpo", "ppo")]


def planted(run, *, dpo, ppo, best=None, figure="score", kinds=("sft", "reward", "dpo", "ppo")):
    """A run whose DPO and PPO stand at planted (nats, value) on noisy prompts; `best`: of 4 answers."""
    generator = random.Random(3)
    hard = [generator.gauss(0, 0.5) for _ in range(PROMPTS)]
    values, policies, sampled = {}, {}, []
    for name, (nats, gain) in {"base": (9.0, -0.5), "sft": (0.0, 0.0), "dpo": dpo, "ppo": ppo}.items():
        kls = [generator.gammavariate(9, nats / 9) if nats else 0.0 for _ in hard]
        values[name] = [at + gain + generator.gauss(0, 0.2) for at in hard]
        policies[name] = {"kl_to_reference": sum(kls) / PROMPTS, figure: sum(values[name]) / PROMPTS}
        sampled += [
            {"prompt_id": at, "policy": name, "prompt": f"question {at}", "response": "y", "kl": kls[at],
             figure: values[name][at]}
            for at in range(PROMPTS)
        ]  # fmt: skip
    measured = {
        "status": "done", "reference": "sft", "score_by": "reward", "policies": policies,
        "score_heldout_by": "reward" if figure == "score_heldout" else None,
        "comparisons": differences(figure, PAIRS, values),
    }  # fmt: skip
    if best is not None:
        drawn = [at + best + generator.gauss(0, 0.1) for at in hard]
        measured["best_of_n"] = [{"n": 4, "kl_bound": kl_bound(4), "score": sum(drawn) / PROMPTS}]
        lines = [{"prompt_id": at, "n": 4, "score": score} for at, score in enumerate(drawn)]
        write_lines_in(run / "evaluation" / "best_of_n.jsonl", lines)
    write(run / "results.json", {"name": "planted", "stages": {}, "evaluation": measured})
    stages = [{"name": name, "kind": name, "status": "done", "key": f"key-{name}"} for name in (*kinds, "evaluation")]
    write(run / "run.json", {"name": "planted", "stages": stages})
    write_lines_in(run / "evaluation" / "sampled.jsonl", sampled)
    return run


def write_lines_in(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, lines)


def said(folder):
    run = load_run(folder)
    return verdict(run, frontiers_of(run), worse_section(run))


def printed(folder):
    stream = io.StringIO()
    print_summary(folder, Console(file=stream, width=80))
    return " ".join(stream.getvalue().split())


def with_comparisons(run, *rows, **more):
    """The demo run with these comparisons instead of its own."""
    planted(run, dpo=(1.0, 0.0), ppo=(1.0, 0.0))
    measured = {"status": "done", "reference": "sft", "policies": {}, "comparisons": list(rows), **more}
    write(run / "results.json", {"name": "planted", "stages": {}, "evaluation": measured})
    return load_run(run)


def test_raw_and_equal_kl_verdicts_that_disagree_are_both_said(tmp_path):
    """DPO went nine times as far and scores higher; at PPO's distance it is the other way round."""
    run = planted(tmp_path / "run", dpo=(9.0, 1.5), ppo=(1.0, 1.0))
    lead = said(run).lead
    assert lead.tone == "better" and lead.text.startswith("dpo is better than ppo in score (+0.")
    assert "nats of KL from sft, dpo " in lead.text
    assert "at equal KL (" in lead.text and "nats) ppo is better by 0." in lead.text
    assert not [one for one in said(run).plain if "ppo against dpo" in one.text or "At equal KL" in one.text], "once"
    text = Visible(page(run)).text
    places = [text.index(part) for part in (lead.text, "What each nat bought", "Policies side by side")]
    assert places == sorted(places) and lead.text in printed(run)


def test_the_control_at_one_distance_both_say_the_same(tmp_path):
    lead = said(planted(tmp_path / "run", dpo=(4.0, 0.4), ppo=(4.0, 1.2))).lead
    assert lead.text.startswith("ppo is better than dpo in score (+0.")
    assert "nats) ppo is better by 0." in lead.text


def test_equals_are_better_nowhere(tmp_path):
    lead = said(planted(tmp_path / "run", dpo=(4.0, 0.5), ppo=(4.0, 0.5))).lead
    assert lead.tone == "none" and lead.text.startswith("No difference is shown between dpo and ppo in score (")
    assert "no difference is shown in score" in lead.text and "better" not in lead.text


@pytest.mark.parametrize(("best", "tone", "ahead"), [(2.5, "worse", "best of n"), (0.05, "better", "ppo")])
def test_training_stands_against_the_best_of_n_which_is_free(tmp_path, best, tone, ahead):
    run = planted(tmp_path / "run", dpo=(0.02, 0.0), ppo=(1.0, 1.0), best=best)
    (found,) = (one for one in said(run).plain if "best of n" in one.text and "ppo" in one.text)
    assert found.tone == tone and f"{ahead} is better than" in found.text
    assert found.text in Visible(page(run)).text


def test_without_a_best_of_n_nothing_is_said_of_it(tmp_path):
    plain = said(planted(tmp_path / "run", dpo=(4.0, 0.5), ppo=(4.0, 0.5))).plain
    assert not [one for one in plain if "best of n" in one.text]


def test_every_policy_and_the_way_of_ppo_stand_on_the_frontier(tmp_path):
    run = planted(tmp_path / "run", dpo=(9.0, 1.5), ppo=(1.0, 1.0), best=0.8)
    points = [
        {"step": step, "split": "eval", "name": name, "value": value}
        for step, score, kl in ((0, 0.0, 0.0), (4, 0.6, 0.4)) for name, value in (("score", score), ("kl_seq", kl))
    ]  # fmt: skip
    write_lines_in(run / "ppo" / "metrics.jsonl", points)
    html = page(run)
    section = html[html.index('<section id="frontier"') : html.index('<section id="worse"')]
    for hint in ("dpo (planted): ", "ppo (planted): ", "best of 4 (planted): ", "ppo while training, rollout 4: 0.600"):
        assert hint in section, hint
    assert "Score from reward" in section and "comparisons at equal KL in figures" in section


def row(metric, before, after, difference, ci95, n=50):
    return {**compared(metric, before, after, difference, ci95), "n": n}


def test_a_score_that_training_was_after_does_not_lead_where_there_is_another(tmp_path):
    run = with_comparisons(
        tmp_path / "run",
        row("rule_accuracy", "dpo", "ppo", 0.02, [-0.05, 0.09]),
        row("score", "dpo", "ppo", 0.5, [0.3, 0.7]),
    )
    lead = verdict(run, [], worse_section(run)).lead
    assert lead.tone == "none"
    assert lead.text == (
        "No difference is shown between dpo and ppo in right answers (+2 points [-5, 9], n = 50), and ppo is ahead in "
        "score (+0.50 [0.30, 0.70], n = 50) alone."
    )


def test_better_in_one_and_worse_in_another_is_said_as_both(tmp_path):
    run = with_comparisons(
        tmp_path / "run",
        row("rule_accuracy", "dpo", "ppo", -0.1, [-0.18, -0.02]),
        row("score_heldout", "dpo", "ppo", 0.5, [0.3, 0.7]),
    )
    lead = verdict(run, [], worse_section(run)).lead
    assert lead.tone == "mixed"
    assert lead.text == (
        "ppo is better than dpo in held-out score (+0.50 [0.30, 0.70], n = 50), but worse in right answers "
        "(-10 points [-18, -2], n = 50)."
    )


@pytest.mark.parametrize("n", [9, 10])
def test_the_lead_needs_the_least_number_of_prompts(tmp_path, n):
    run = with_comparisons(tmp_path / "run", row("score_heldout", "dpo", "ppo", 0.5, [0.5, 0.5], n))
    found = verdict(run, [], worse_section(run))
    assert (found.lead.tone == "better") == (n == 10)
    assert ("is better" in found.lead.text) == (n == 10)
    assert not [one for one in found.plain if one.tone == "better"]


def test_what_a_run_is_about(tmp_path):
    rows = [row("score", *pair, 0.1, [-1, 1]) for pair in PAIRS]
    assert headline(with_comparisons(tmp_path / "a", *rows)) == ("dpo", "ppo")
    assert headline(with_comparisons(tmp_path / "b", *rows[:2])) == ("sft", "dpo")
    assert headline(with_comparisons(tmp_path / "c", rows[0])) == ("base", "sft")
    chained = [rows[0], rows[1], row("score", "dpo", "ppo", 0.1, [-1, 1])]
    assert headline(with_comparisons(tmp_path / "d", *chained)) == ("dpo", "ppo")
    assert headline(with_comparisons(tmp_path / "e")) is None


def test_more_than_two_are_told_apart_by_what_each_gained(tmp_path):
    run = with_comparisons(
        tmp_path / "run",
        row("rule_accuracy", "sft", "dpo", 0.1, [0.02, 0.18]),
        row("rule_accuracy", "sft", "ppo", -0.1, [-0.18, -0.02]),
        row("rule_accuracy", "sft", "third", 0.0, [-0.1, 0.1]),
        row("rule_accuracy", "dpo", "ppo", -0.2, [-0.28, -0.1]),
    )
    stages = [{"name": name, "kind": kind, "status": "done"} for name, kind in
              (("sft", "sft"), ("dpo", "dpo"), ("ppo", "ppo"), ("third", "dpo"))]  # fmt: skip
    write(tmp_path / "run" / "run.json", {"name": "planted", "stages": stages})
    run = load_run(tmp_path / "run")
    assert verdict(run, [], worse_section(run)).lead.text == (
        "Shown to be better than what it started from: dpo; shown to be worse: ppo; no difference shown: third."
    )


def test_nothing_compared_is_said_plainly(tmp_path):
    text = Visible(page(with_comparisons(tmp_path / "run").directory)).text
    assert "The policies have not been compared, so nothing is shown about which of them is better." in text
    assert "Nothing has been compared, so nothing is shown about what got worse." in text


LOSSES = {
    "rule_accuracy": (-0.1, [-0.18, -0.02], "dpo answers 10 points fewer of 50 held-out prompts right than sft"),
    "score_heldout": (-0.5, [-0.7, -0.3], "dpo scores 0.50 lower than sft by a reward model that training did not use"),
    "perplexity": (7.4, [6.1, 8.8], "dpo: perplexity on held-out text 7.40 higher than sft over 50 texts [6.10, 8.80]"),
    "eos_rate": (-0.09, [-0.15, -0.03], "dpo: responses that end by themselves 9 points lower than sft"),
    "repetition": (0.2, [0.1, 0.3], "dpo: 4-grams repeated within an answer 20 points higher than sft"),
    "refuses_harmful": (-0.4, [-0.6, -0.2], "dpo: harmful requests declined 40 points lower than sft"),
    "refuses_harmless": (0.4, [0.2, 0.6], "dpo: harmless requests declined 40 points higher than sft"),
}  # fmt: skip


@pytest.mark.parametrize("metric", LOSSES)
def test_a_loss_that_is_shown_is_listed_and_its_mirror_is_not(tmp_path, metric):
    difference, ci95, sentence = LOSSES[metric]
    folder = tmp_path / "run"
    text = Visible(page(with_comparisons(folder, row(metric, "sft", "dpo", difference, ci95)).directory)).text
    assert sentence in text and "Nothing was shown to be worse" not in text
    assert "Where it got worse: dpo (against sft) in " in text
    for value, around in ((-difference, [-ci95[1], -ci95[0]]), (difference, sorted([ci95[0] * -0.1, ci95[1]]))):
        text = Visible(page(with_comparisons(folder, row(metric, "sft", "dpo", value, around)).directory)).text
        assert sentence not in text
        assert "Nothing was shown to be worse than where it started, in 1 comparison that could show a loss." in text


def test_what_is_neither_good_nor_bad_is_no_loss(tmp_path):
    """Shorter answers and less entropy are news, and stand in the table; worse they are not by themselves."""
    run = with_comparisons(
        tmp_path / "run",
        row("response_tokens", "sft", "dpo", -9, [-12, -6]),
        row("entropy", "sft", "dpo", -1, [-2, -0.5]),
    )
    assert worse_section(run).losses == () and worse_section(run).looked == 0
    assert "◆ -9.0" in page(run.directory) and "◆ -1.00" in page(run.directory)


def test_rivals_are_no_place_to_get_worse_from(tmp_path):
    """PPO behind DPO is a comparison; what got worse is counted from where each started."""
    run = with_comparisons(
        tmp_path / "run",
        row("rule_accuracy", "sft", "ppo", 0.1, [0.02, 0.18]),
        row("rule_accuracy", "dpo", "ppo", -0.1, [-0.18, -0.02]),
    )
    assert worse_section(run).losses == () and worse_section(run).looked == 1


def test_too_few_prompts_are_named(tmp_path):
    run = with_comparisons(tmp_path / "run", row("refuses_harmless", "sft", "dpo", 1.0, [0.5, 1.0], 6))
    text = Visible(page(run.directory)).text
    assert "Too few prompts to show anything: harmless requests declined (n = 6)." in text
    assert worse_section(run).losses == ()


def family(name, difference, ci95, n=30):
    return {"family": name, "from": "sft", "to": "dpo", "difference": difference, "ci95": ci95, "n": n}


def test_families_and_benchmarks_are_looked_through(tmp_path):
    entry = {
        "benchmark": "hellaswag", "policy": "dpo", "settings": {},
        "figures": {"acc": {"value": 0.3, "stderr": 0.01, "n": 400,
                            "against_base": {"difference": -0.05, "ci95": [-0.08, -0.02]}}},
    }  # fmt: skip
    run = with_comparisons(
        tmp_path / "run",
        row("rule_accuracy", "sft", "dpo", 0.0, [-0.1, 0.1]),
        family_comparisons=[family("sorting", -0.5, [-0.9, -0.1]), family("dates", -0.2, [-0.6, 0.3])],
        benchmarks=[entry],
    )
    text = Visible(page(run.directory)).text
    assert (
        "sorting: dpo answers 50 points fewer of 30 prompts right than sft (difference -50 [-90, -10], widened" in text
    )
    assert "dates: dpo" not in text, "its interval holds zero"
    assert "HellaSwag, acc: dpo -5.0 points [-8.0, -2.0] on base over 400 questions." in text
    assert "Public benchmarks, where forgetting shows, were not asked" not in text
    assert worse_section(run).looked == 4
    assert "Differences by family" in text and "▼ -50 [-90, -10] n = 30 " in text


def test_a_run_without_values_per_prompt_is_still_drawn(tmp_path):
    run = planted(tmp_path / "run", dpo=(9.0, 1.5), ppo=(1.0, 1.0))
    (run / "evaluation" / "sampled.jsonl").unlink()
    lead = said(run).lead.text
    assert "at equal KL" not in lead and lead.startswith("dpo is better than ppo")
    assert '<section id="frontier"' in page(run)


@pytest.mark.parametrize("junk", [None, [], "text", math.nan, {"a": [1]}, [{"kl": "x"}]])
def test_torn_values_per_prompt_do_not_stop_the_page(tmp_path, junk):
    run = planted(tmp_path / "run", dpo=(9.0, 1.5), ppo=(1.0, 1.0), best=0.5)
    for name in ("sampled.jsonl", "best_of_n.jsonl"):
        write_lines(run / "evaluation" / name, [junk, {"policy": "ppo", "prompt_id": 0, "kl": junk, "score": junk}])
    assert "Policies side by side" in Visible(page(run)).text
