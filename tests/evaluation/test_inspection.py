"""What `data inspect` and `data report` show is what the stages train on: the same ids, masks and counts."""

from __future__ import annotations

import html
import io
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from evaluation.inspection.page import inspection_page, report_page
from evaluation.inspection.report import data_reports, grouped
from evaluation.inspection.report_terminal import print_reports
from evaluation.inspection.terminal import print_inspection
from evaluation.inspection.view import as_json, inspect
from evaluation.report.data_section import figures_of
from evaluation.report.drops import drops_of
from pipeline.errors import DataError, RecipeError
from pipeline.recipe import loads_recipe

BASE = "builtin:tiny-llama"
XSS = "<script>alert('row')</script>"
RECIPE = """
name: seen
model: {base: "builtin:tiny-llama", adapter: {r: 4}}
data:
  sft: {sources: [{path: SFT}], max_length: 120, eval_fraction: 0.1}
  preference: {sources: [{path: PAIRS}], max_length: 140, eval_fraction: 0.1}
  prompts: {max_prompt_length: 60}
stages:
  sft: {max_steps: 1, precision: fp32, global_batch_size: 4}
  reward: {max_steps: 1, precision: fp32, global_batch_size: 4}
  ppo: {episodes: 8, rollout_batch_size: 4, gate: {min_accuracy: 0}, eval_prompts: 3}
  dpo: {max_steps: 1, precision: fp32, global_batch_size: 4}
"""


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    """30 demonstrations, of which one cannot be used and three are cut, and 30 pairs."""
    rows: list[dict[str, Any]] = [
        {"instruction": f"Say {n} {XSS}" if n < 5 else f"Say {n}", "output": f"{n}春节 is {n}"} for n in range(26)
    ]
    rows += [{"instruction": f"long {n} " * 30, "output": "short"} for n in range(3)]
    rows += [{"instruction": "too much", "output": "a" * 200}]
    sft, pairs = tmp_path / "sft.jsonl", tmp_path / "pairs.jsonl"
    sft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        {"prompt": f"Ask {n}", "chosen": f"well {n}", "rejected": f"bad, very {n}", "fault": "terse"} for n in range(30)
    ]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def load(*overrides: str):
        text = RECIPE.replace("SFT", str(sft)).replace("PAIRS", str(pairs))
        return loads_recipe(text, overrides=list(overrides)).recipe

    return load


def context_of(recipe, stage, folder, tiny_folder):
    from pipeline.console import Console as Quiet
    from pipeline.context import StageContext
    from pipeline.models.source import identify
    from pipeline.runtime import Ranks, StopRequest
    from pipeline.tracking import SilentTracker

    folder.mkdir()
    return StageContext(
        recipe=recipe, stage=stage, folder=folder, parents={}, base=identify(BASE, None), base_folder=tiny_folder,
        ranks=Ranks(0, 0, 1), stop=StopRequest(), console=Quiet(None), tracker=SilentTracker(),
    )  # fmt: skip


class Handed(Exception):
    """Carries what a stage hands to its trainer."""


def handed_to_the_trainer(recipe, stage, folder, tiny_folder, monkeypatch):
    """The rows that the stage's own code gives to a trainer: the library's, or that of streams."""
    from pipeline.stages import dpo, reward, reward_member, sft

    def trainer(*, train_dataset=None, rows=None, **rest):
        raise Handed([*(rows if train_dataset is None else train_dataset)])

    monkeypatch.setattr(sft, "CommittedSFTTrainer", trainer)
    monkeypatch.setattr(dpo, "CommittedDPOTrainer", trainer)
    monkeypatch.setattr(reward_member, "CommittedRewardTrainer", trainer)
    for module in (sft, dpo, reward_member):
        monkeypatch.setattr(module, "StreamTrainer", trainer)
    module = {"sft": sft, "dpo": dpo, "reward": reward}[stage]
    with pytest.raises(Handed) as handed:
        module.run(context_of(recipe, stage, folder, tiny_folder))
    return handed.value.args[0]


def shown(recipe, stage):
    """All rows of a stage as `--json` has them."""
    return as_json(inspect(recipe, stage, 1, 1000))["rows"]


# The trainer's own rows


def test_demonstrations_are_the_trainers(recipe, tmp_path, tiny_folder, monkeypatch):
    given = handed_to_the_trainer(recipe("stages.sft.engine=trl"), "sft", tmp_path / "a", tiny_folder, monkeypatch)
    streamed = handed_to_the_trainer(recipe(), "sft", tmp_path / "b", tiny_folder, monkeypatch)
    found = [row["sequences"][0] for row in shown(recipe(), "sft")]
    assert [one["ids"] for one in found] == [row["input_ids"] for row in given]
    labels = [[i if m else -100 for i, m in zip(one["ids"], one["response_mask"], strict=True)] for one in found]
    assert labels == [row["labels"] for row in given]
    assert [(one["ids"], one["response_mask"]) for one in found] == [(r.input_ids, r.response_mask) for r in streamed]
    other = [row["sequences"][0]["ids"] for row in shown(recipe("data.sft.sources.0.limit=20", "seed=3"), "sft")]
    assert other != [one["ids"] for one in found][:20], "another seed draws others: the comparison can fail"


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_pairs_are_the_trainers(recipe, stage, tmp_path, tiny_folder, monkeypatch):
    engine = f"stages.{stage}.engine=trl"
    given = handed_to_the_trainer(recipe(engine), stage, tmp_path / "a", tiny_folder, monkeypatch)
    streamed = handed_to_the_trainer(recipe(), stage, tmp_path / "b", tiny_folder, monkeypatch)
    pairs = [row if stage == "dpo" else row.pair for row in streamed]
    found = shown(recipe(), stage)
    assert [[side["ids"] for side in row["sequences"]] for row in found] == [
        [ids for ids, _ in pair.answers()] for pair in pairs
    ]
    assert len(found) == len(given) > 20
    for row, trained in zip(found, given, strict=True):
        prompt = trained.get("prompt_ids", [])
        for sequence, side in zip(row["sequences"], ("chosen", "rejected"), strict=True):
            assert sequence["name"] == side and sequence["ids"] == [*prompt, *trained[f"{side}_ids"]]
            if stage == "dpo":
                assert sequence["response_mask"] == [False] * len(prompt) + [True] * len(trained[f"{side}_ids"])


@pytest.mark.parametrize("rewards", ["[{from: reward}]", "[{from: rules}]"])
def test_prompts_are_the_policys(recipe, rewards, tmp_path, tiny_folder):
    """With rules alone prompts without one are left out, here as in the stage."""
    from data_prep.chat import ChatFormatter
    from pipeline.models.load import load_tokenizer
    from pipeline.stages.ppo_setup import make_prompts

    sources = "data.preference.sources=[{path: builtin:preference_sample, limit: 40}]"
    chosen = recipe(f"stages.ppo.rewards={rewards}", sources)
    context = context_of(chosen, "ppo", tmp_path / "run", tiny_folder)
    formatter = ChatFormatter(load_tokenizer(tiny_folder, "auto"))
    prompts = make_prompts(context, chosen.stages["ppo"], formatter, frozenset())
    found = shown(chosen, "ppo")
    assert [row["sequences"][0]["ids"] for row in found] == [ids for _, ids in prompts.train]
    assert not any(any(row["sequences"][0]["response_mask"]) for row in found)
    assert data_reports(chosen, "ppo")[0].report == prompts.report


def test_a_stage_leaves_the_report_that_was_shown(recipe, tmp_path, tiny_folder):
    from pipeline.runtime import seed_everything
    from pipeline.stages import sft

    seed_everything(17)
    result = sft.run(context_of(recipe(), "sft", tmp_path / "run", tiny_folder))
    (found,) = data_reports(recipe(), "sft")
    assert result.data["sft"] == found.report
    json.dumps(found.report, allow_nan=False)


# In words


def test_what_is_said_of_demonstrations(recipe):
    found = inspect(recipe(), "sft", 1, 3)
    said = " ".join(finding.text for finding in found.findings)
    rows = found.total
    tokens = sum(len(row.input_ids) for row in found.found.rows)
    trained = sum(sum(row.response_mask) for row in found.found.rows)
    assert f"Stage sft trains on {rows} conversations of data.sft" in said
    assert f"Of {tokens:,} tokens {trained:,} are trained ({100 * trained / tokens:.0f} %)" in said
    cut = [number for number, row in enumerate(found.found.rows, 1) if row.prompt_cut]
    assert cut and f"{len(cut)} of {rows} rows lost" in said and ", ".join(map(str, cut)) in said
    assert "1 the answer alone does not fit in max_length" in said and "row 30: answer too long" in said
    assert "Every answer ends with <|im_end|>" in said
    row = next(row for row in inspect(recipe(), "sft", cut[0], 1).rows)
    long = inspect(recipe("data.sft.max_length=4096"), "sft", 1, 1000)
    whole = next(one for one in long.rows if one.origin == row.origin)
    assert row.cut == len(whole.sequences[0].ids) - len(row.sequences[0].ids) > 0 and whole.cut == 0


def test_rows_and_stages_that_are_not_there(recipe):
    with pytest.raises(RecipeError, match=r"--row 99: stage sft trains on \d+ rows, numbered from 1"):
        inspect(recipe(), "sft", 99, 1)
    with pytest.raises(RecipeError, match="--row 0"):
        inspect(recipe(), "sft", 0, 1)
    with pytest.raises(RecipeError, match=r"--stage sftt: .*\(has: sft, reward, ppo, dpo\); did you mean 'sft'"):
        data_reports(recipe(), "sftt")
    with pytest.raises(DataError, match="no row is left to train on"):
        inspect(recipe("data.sft.max_length=3"), "sft", 1, 1)


# Page and terminal


class Page(HTMLParser):
    """Tags, and the text of the tokens by class."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.tokens: list[tuple[str, str]] = []
        self._class: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        classes = (dict(attributes).get("class") or "").split()
        if tag == "span" and classes[:1] == ["t"]:
            self._class = classes[1]
            self.tokens.append((classes[1], ""))
        elif tag == "small":
            self._class = None

    def handle_data(self, data):
        if self._class:
            self.tokens[-1] = (self._class, self.tokens[-1][1] + data)

    def handle_endtag(self, tag):
        self._class = None


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward", "ppo"])
def test_the_page_shows_every_token_and_runs_nothing(recipe, stage):
    found = inspect(recipe(), stage, 1, 4)
    text = inspection_page(found)
    page = Page(text)
    legend = 3 if stage == "ppo" else 4
    pieces = [piece for row in found.rows for sequence in row.sequences for piece in sequence.pieces]
    assert [kind for kind, _ in page.tokens[legend:]] == [piece.kind for piece in pieces]
    assert [told for _, told in page.tokens[legend:]] == [
        p.text.replace("\n", "↵\n").removesuffix("\n") for p in pieces
    ]
    assert "script" not in page.tags and "img" not in page.tags
    assert XSS not in text and "http" not in re.sub(r"http-equiv", "", text)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    if stage == "sft":
        told = html.unescape("".join(told for _, told in page.tokens))
        assert XSS in told, "hostile text is shown, as text"
        assert all(f'title="{" ".join(map(str, p.ids))}"' in text for p in pieces)


def terminal(printing, width=80, **options) -> str:
    stream = io.StringIO()
    printing(Console(file=stream, width=width, highlight=False, **options))
    return stream.getvalue()


def test_the_terminal_says_without_colour_what_is_trained(recipe):
    found = inspect(recipe(), "sft", 1, 2)
    said = terminal(lambda console: print_inspection(found, console))
    assert "\x1b" not in said and max(map(len, said.splitlines())) <= 80
    answer = next(m.content for m in found.found.records[0].messages if m.role == "assistant")
    assert re.search(rf"assistant +trained +{re.escape(answer)}<\|im_end\|>", said)
    assert re.search(r"user +<\|im_start\|>user↵", said)
    ids = terminal(lambda console: print_inspection(found, console, ids=True), width=20_000)
    for piece in found.rows[0].sequences[0].pieces:
        assert f"{piece.text.replace(' ', '␣').replace(chr(10), '↵')}[{'+'.join(map(str, piece.ids))}]" in ids


def test_a_terminal_without_unicode_gets_signs_it_has(recipe):
    found = inspect(recipe(), "sft", 1, 1)
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_inspection(found, Console(file=stream, width=80, highlight=False))
    print_reports(data_reports(recipe()), Console(file=stream, width=80, highlight=False))
    stream.flush()
    assert b"trained" in raw.getvalue() and b"####" in raw.getvalue()


# Reports


def test_one_report_for_the_stages_that_share_it(recipe):
    found = grouped(data_reports(recipe()))
    assert [(rows.data, stages) for rows, stages in found] == [
        ("sft", ("sft",)), ("preference", ("reward", "dpo")), ("preference", ("ppo",)),
    ]  # fmt: skip
    said = terminal(lambda console: print_reports(data_reports(recipe()), console))
    assert "data.preference, used by reward, dpo" in said
    assert "the longer answer is the chosen one" in said and "in 0 % of pairs" in said
    page = report_page(recipe(), data_reports(recipe()))
    assert page.count("<svg") == 2 + 3 + 1 and "<script" not in page and "going by length alone" in page


def test_rows_add_up(recipe):
    """What is read is trained on, held out, or told why not."""
    for rows in data_reports(recipe()):
        report = rows.report
        read = sum(source["rows_read"] for source in report["sources"])
        held_out_unused = report["eval_rows"]
        fallen = sum(drop.rows for drop in drops_of(report))
        assert read == report["train_rows"] + held_out_unused + fallen, rows.stage


@pytest.mark.parametrize(
    "statistics",
    [
        {}, None, [], {"tokens": 3}, {"prompt_tokens": {"histogram": {"width": 0, "counts": [1]}}},
        {"prompt_tokens": {"mean": "x", "histogram": {"width": 5, "counts": ["a", None, -1]}}},
        {"scripts": {"rows": {"Latin": "many"}}, "families": [1], "longer_answer": {"chosen": 1}},
        {"longer_answer": {"chosen": 0, "rejected": 0, "equal": 0}, "margins": {"rows": 1, "mean": None}},
    ],
)  # fmt: skip
def test_a_damaged_or_older_report_is_borne(statistics):
    figures_of({"statistics": statistics, "sources": [None, {"dropped_examples": [[1]]}], "padding": {"used": 3}})
