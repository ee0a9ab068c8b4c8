"""The page: every figure from the files, safe with hostile answers, honest when files are torn or missing."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import pytest
from seen import Visible, leaves, page
from synthetic_run import KEYS, RESULTS, write, write_lines, write_run

from evaluation.report import write_report
from evaluation.report.charts import nice_ticks, thin
from evaluation.report.load import load_run
from evaluation.report.samples_section import samples
from pipeline.errors import DataError

NAN = float("nan")


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "demo"
    write_run(run)
    return run


NUMBERS = [path for path, value in leaves(RESULTS) if isinstance(value, float | int) and path[-1] != "seconds"]


def test_the_verdict_comes_first_and_in_words(run_dir):
    text = Visible(page(run_dir)).text
    lead = (
        "No difference is shown between sft and dpo in right answers (+3 points [-3, 8], n = 151); dpo stands 1.23 "
        "nats of KL from sft."
    )
    claim = "sft against base: better in right answers (+31 points [24, 38], n = 151)."
    worse = "Nothing was shown to be worse than where it started, in 2 comparisons that could show a loss."
    places = [text.index(part) for part in (lead, claim, worse, "Policies side by side")]
    assert places == sorted(places)
    assert "KL to the reference , nats per response – ◆ +1.23 [1.01, 1.46] n = 151" in text, "the rest is a table"
    assert "Prefers the chosen answer in 80.6 % [74.3, 86.1] over 207 held-out pairs, before training 50.0 %." in text


def test_each_policy_has_its_own_figures(run_dir):
    text = Visible(page(run_dir)).text
    assert "21.3 [14.7, 27.9] n = 151 52.3 [44.3, 60.3] n = 151 54.9 [46.9, 62.9] n = 151" in text
    assert "KL to the reference , nats per response – – 1.23 [1.01, 1.46]" in text
    assert "Novelty – – 0.371" in text, "a measure that is new to the report is shown all the same"
    assert "Score from" not in text, "a column that nobody measured is left out"
    assert "arithmetic 25 % 3 of 12 58 % 7 of 12" in text


def test_no_figure_comes_from_anywhere_but_the_files(run_dir):
    """Each number that a reader sees is one of the files' numbers as text, in percent or rounded, or a stated count."""
    files = [json.loads((run_dir / name).read_text()) for name in ("results.json", "run.json", "sft/manifest.json")]
    files += [json.loads(line) for line in (run_dir / "evaluation/answers.jsonl").read_text().splitlines()]
    values = [value for file in files for _, value in leaves(file)] + [1.5 / 5]
    figures = [abs(v) for v in values if isinstance(v, float | int) and not isinstance(v, bool)]
    known = {f"{scale * v:,.{digits}f}" for v in figures for scale in (1, 100) for digits in range(4)}
    known |= {
        number for v in [*values, (run_dir / "recipe.yaml").read_text()] for number in re.findall(r"[\d.,]*\d", str(v))
    }
    shares = {"25", "58", "0", "53"}
    counts = {"95", "12", "1", "2", "3"}  # "95 % intervals", prompts shown, further comparisons, stages, reused, `p95`
    minutes = {"1", "01", "06", "12.5"}  # 61.2 s, 4000 s; the sum of the stages that were run: 4012.5 s
    shown = set(re.findall(r"\d[\d.,]*\d|\d", Visible(page(run_dir)).text))
    assert shown - known - shares - counts - minutes == set()


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


def test_a_script_in_an_answer_is_text(run_dir):
    html = page(run_dir)
    seen = Visible(html)
    assert "<script>alert('stored')</script>" in seen.text, "the reader sees what the model wrote"
    assert "script" not in seen.tags and "img" not in seen.tags
    assert not [attribute for attribute in seen.attributes if attribute[1].startswith("on")]
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("run.json", "dpo"),
        ("run.json", "sealed already"),
        ("run.json", "trivet run demo.yaml --set seed=18"),
        ("run.json", "torch"),
        ("results.json", "base"),
        ("results.json", "dates"),
        ("results.json", "novelty"),
        ("results.json", "dpo"),
        ("sft/manifest.json", "builtin:alpaca_sample"),
        ("sft/manifest.json", "empty_answer"),
        ("dpo/manifest.json", "policy"),
        ("evaluation/answers.jsonl", "arithmetic"),
        ("sft/metrics.jsonl", "learning_rate"),
        ("sft/metrics.jsonl", "eval"),
        ("recipe.yaml", "demo"),
    ],
)
def test_no_word_of_any_file_becomes_markup(run_dir, name, word):
    text = (run_dir / name).read_text()
    hostile = '"><script>x</script><i class="'
    written = hostile if name.endswith("yaml") else json.dumps(hostile)[1:-1]
    (run_dir / name).write_text(text.replace(word, written))
    assert written in (run_dir / name).read_text()
    seen = Visible(page(run_dir))
    assert "script" not in seen.tags and "i" not in seen.tags
    assert "<script>x</script>" in seen.text


def test_control_characters_and_lone_surrogates_do_not_break_the_page(run_dir):
    write_lines(
        run_dir / "evaluation/answers.jsonl", [{"prompt_id": 0, "policy": "sft", "response": "a\x00b\ud800c\x1b[31m"}]
    )
    assert "a\ufffdb\ufffdc\ufffd[31m" in page(run_dir)


def test_the_page_reaches_for_nothing_outside(run_dir):
    html = page(run_dir)
    links = [
        value for _, name, value in Visible(html).attributes if name in ("href", "src", "srcset", "data", "action")
    ]
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"https?://|url\(|@import|//cdn", html)


def test_the_same_files_give_the_same_page(run_dir, monkeypatch):
    first = page(run_dir)
    monkeypatch.chdir(run_dir)
    assert page(run_dir) == first
    assert sorted(p.name for p in run_dir.iterdir() if "report" in p.name) == ["report.html"], (
        "no temporary file is left"
    )


def test_curves_name_their_axes_and_lines(run_dir):
    html = page(run_dir)
    assert html.count('<svg class="chart" ') == 4
    assert 'aria-label="Loss of sft: train from 1.50 to 0.300; held-out from 1.50 to 0.300"' in html
    assert "loss, nats per token" in html and "optimiser step" in html


@pytest.mark.parametrize("gone", ["recipe.yaml", "run.json", "results.json", "sft/manifest.json", "dpo/metrics.jsonl"])
def test_a_missing_file_is_named_and_the_rest_is_shown(run_dir, gone):
    (run_dir / gone).unlink()
    text = Visible(page(run_dir)).text
    assert f"{gone} is not there" in text
    assert "question 0" in text


@pytest.mark.parametrize("name", ["run.json", "results.json", "sft/manifest.json"])
def test_every_torn_beginning_of_a_file_still_gives_a_page(run_dir, name):
    whole = (run_dir / name).read_text()
    for length in range(0, len(whole), max(1, len(whole) // 12)):
        (run_dir / name).write_text(whole[:length])
        assert f"{name} is not complete JSON" in Visible(page(run_dir)).text


@pytest.mark.parametrize("junk", [None, [], "text", 7, NAN, {"a": [1]}])
def test_values_of_the_wrong_type_count_as_not_measured(run_dir, junk):
    results = json.loads(json.dumps(RESULTS))
    for path in [
        ("stages",),
        ("evaluation", "policies", "sft"),
        ("evaluation", "families"),
        ("evaluation", "comparisons"),
    ]:
        holder = results
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = junk
    write(run_dir / "results.json", results)
    assert "21.3" in page(run_dir)


def test_a_torn_last_line_is_a_run_still_writing_but_one_before_it_is_noted(run_dir):
    path = run_dir / "sft" / "metrics.jsonl"
    lines = path.read_text()
    path.write_text(lines + '{"stage": "sft", "st')
    assert load_run(run_dir).gaps == ()
    path.write_text('{"stage": "sft", "st\n' + lines)
    assert load_run(run_dir).gaps == ("sft/metrics.jsonl: 1 unreadable line left out",)


def test_values_that_are_not_finite_are_counted_not_drawn(run_dir):
    lines = [
        {"step": 1, "split": "train", "name": "loss", "value": 2.0},
        {"step": 2, "name": "loss", "value": NAN},
    ]
    write_lines(run_dir / "sft" / "metrics.jsonl", lines)
    assert "1 value was not a finite number." in Visible(page(run_dir)).text


def test_an_empty_directory_says_so_and_a_missing_one_is_an_error(tmp_path):
    assert "Nothing has been recorded" in Visible(page(tmp_path)).text
    with pytest.raises(DataError, match="no such run directory"):
        write_report(tmp_path / "absent")


def test_samples_come_from_every_family_in_the_order_of_the_file(run_dir):
    chosen = samples(load_run(run_dir), limit=5)
    assert [(s.family, s.prompt_id) for s in chosen] == [
        ("arithmetic", "0"), ("arithmetic", "2"), ("arithmetic", "4"), ("dates", "1"), ("dates", "3"),
    ]  # fmt: skip
    assert [given.answer.policy for given in chosen[0].answers] == ["base", "sft", "dpo"]


def test_a_parent_that_is_not_this_runs_is_pointed_out(run_dir):
    assert "not the sft of this run" not in page(run_dir)
    path = run_dir / "dpo" / "manifest.json"
    path.write_text(path.read_text().replace(KEYS["sft"], "0" * 64))
    assert "not the sft of this run" in page(run_dir)


def test_neither_torch_nor_numpy_is_imported():
    code = "import sys, evaluation.report; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ticks_enclose_the_data_and_thinning_keeps_every_spike():
    ticks = nice_ticks(0.13, 2.4, 4)
    assert ticks[0] <= 0.13 and ticks[-1] >= 2.4 and 3 <= len(ticks) <= 7
    points = [(float(i), 100.0 if i == 7777 else 0.0) for i in range(20_000)]
    kept = thin(points)
    assert len(kept) <= 1200 and (7777.0, 100.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
