"""What each source gives, in which order, and which stage trains on which prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_prep import build
from data_prep.mixture import shuffled
from data_prep.records import Message
from data_prep.split import part_position, position_of, prompt_hash, shares_of
from pipeline.errors import DataError
from pipeline.recipe import load_recipe, loads_recipe
from pipeline.recipe.lineage import split_part

ROOT = Path(__file__).parents[2]


def write(path: Path, numbers: range, text: str = "say") -> str:
    path.write_text("".join(json.dumps({"instruction": f"{text} {n}", "output": f"{n}"}) + "\n" for n in numbers))
    return str(path)


def sft_data(*sources: dict[str, Any], **more: Any) -> Any:
    data = {"sft": {"sources": list(sources), "eval_fraction": 0, **more}}
    text = json.dumps({"name": "a", "data": data, "stages": {"sft": {}}})
    return loads_recipe(text).recipe.data


def answers(found: Any) -> list[str]:
    return [record.messages[-1].content for record in found.train]


# The bundled samples' rows, in their order, as they were before any of the settings here existed.
BEFORE = {
    ("alpaca_dpo", "demonstrations", "train"): (200, "6dbe4735187065a2"),
    ("alpaca_dpo", "demonstrations", "held_out"): (96, "6832655751d6b007"),
    ("alpaca_dpo", "preference_pairs", "train"): (120, "0702c3054972bfbf"),
    ("alpaca_dpo", "preference_pairs", "held_out"): (160, "4b5f8893b6442354"),
    ("alpaca_dpo", "prompts", "train"): (120, "d30e25a8affce789"),
    ("alpaca_dpo", "prompts", "held_out"): (160, "3a5fa784344a1246"),
    ("alpaca_ppo", "preference_pairs", "train"): (400, "3109597eefef0adf"),
    ("alpaca_ppo", "prompts", "train"): (400, "a88953c139d64a3a"),
}


def digest(records: Any) -> str:
    rows = []
    for record in records:
        turns = record.prompt if hasattr(record, "prompt") else record.messages
        row = [record.origin.source, record.origin.row, *([m.role, m.content] for m in turns)]
        rows.append(row + ([record.chosen, record.rejected] if hasattr(record, "chosen") else []))
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("recipe", "kind", "part"), BEFORE)
def test_the_bundled_recipes_have_the_rows_they_always_had(recipe: str, kind: str, part: str) -> None:
    loaded = load_recipe(ROOT / "recipes" / f"{recipe}.yaml").recipe
    records = getattr(getattr(build, kind)(loaded.data, loaded.seed), part)
    assert (len(records), digest(records)) == BEFORE[recipe, kind, part]
    assert digest(records[::-1]) != digest(records), "the order counts"


# limit, count, weight, shuffle


def test_a_count_is_exact_and_a_limit_a_cap(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", range(100))
    assert len(answers(build.demonstrations(sft_data({"path": path, "count": 40}), 1))) == 40
    assert len(answers(build.demonstrations(sft_data({"path": path, "limit": 400}), 1))) == 100
    with pytest.raises(DataError, match=r"a\.jsonl: count asks for 101 training rows and there are 100"):
        build.demonstrations(sft_data({"path": path, "count": 101}), 1)


def test_a_count_holds_where_sources_overlap(tmp_path: Path) -> None:
    """Rows 50 to 99 are in both; a limit would lose those that the other source has as duplicates."""
    one, other = write(tmp_path / "a.jsonl", range(100)), write(tmp_path / "b.jsonl", range(50, 150))
    found = build.demonstrations(sft_data({"path": one}, {"path": other, "count": 50}), 1)
    assert len(found.train) == 150 and found.report["sources"][1]["train"] == 50
    assert len(build.demonstrations(sft_data({"path": one}, {"path": other, "limit": 50}), 1).train) < 150
    both = build.demonstrations(sft_data({"path": one, "count": 70}, {"path": other, "count": 50}), 1)
    assert [source["train"] for source in both.report["sources"]] == [70, 50]
    with pytest.raises(DataError, match=r"b\.jsonl: count asks for 51 training rows and there are 50 that no other"):
        build.demonstrations(sft_data({"path": one}, {"path": other, "count": 51}), 1)


def test_a_draw_depends_on_the_seed_and_not_on_the_files_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", range(100))
    first = answers(build.demonstrations(sft_data({"path": path, "count": 30}), 1))
    other = answers(build.demonstrations(sft_data({"path": path, "count": 30}), 2))
    (tmp_path / "a.jsonl").write_text("".join(reversed((tmp_path / "a.jsonl").read_text().splitlines(keepends=True))))
    assert answers(build.demonstrations(sft_data({"path": path, "count": 30}), 1)) == first != other


def test_shuffling_mixes_the_sources_by_the_seed(tmp_path: Path) -> None:
    sources = [{"path": write(tmp_path / "a.jsonl", range(50))}, {"path": write(tmp_path / "b.jsonl", range(50, 100))}]
    plain = answers(build.demonstrations(sft_data(*sources), 1))
    mixed = answers(build.demonstrations(sft_data(*sources, shuffle=True), 1))
    assert plain == [str(n) for n in range(100)]
    assert sorted(mixed) == sorted(plain) and mixed != plain
    assert 15 < sum(int(text) < 50 for text in mixed[:50]) < 35
    assert mixed == answers(build.demonstrations(sft_data(*sources, shuffle=True), 1))
    assert mixed != answers(build.demonstrations(sft_data(*sources, shuffle=True), 2))
    records = build.demonstrations(sft_data(*sources), 1).train
    assert shuffled(records, 3) == shuffled(records[::-1], 3)


def test_the_report_adds_up_source_by_source(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", range(100)), write(tmp_path / "b.jsonl", range(50, 150))
    with open(other, "a") as file:
        file.write('{"instruction": "x", "output": ""}\nnot json\n')
    settings = {"eval_fraction": 0.2, "eval_limit": 10}
    data = sft_data({"path": one, "weight": 1}, {"path": other, "weight": 2, "on_bad_row": "quarantine"}, **settings)
    found = build.demonstrations(data, 1)
    first, second = found.report["sources"]
    for source in (first, second):
        left_out = sum(source["dropped"].values()) + sum(source["quarantined"].values())
        assert source["rows_read"] == source["kept"] + left_out
    assert (second["rows_read"], second["quarantined"]) == (102, {"empty_answer": 1, "broken_json": 1})
    assert [bad.reason for bad in found.quarantined] == ["empty_answer", "broken_json"]
    assert first["train"] + second["train"] == len(found.train)
    assert first["held_out"] + second["held_out"] == len(found.held_out) == 10
    records = first["records"] + second["records"]
    assert records == len(found.train) + len(found.held_out) + sum(found.report["dropped"].values()) + _held_twice(
        found
    )


def _held_twice(found: Any) -> int:
    """Held-out rows that both files have: one of each stays, and the other is counted nowhere."""
    total = sum(source["records"] for source in found.report["sources"])
    return total - len(found.train) - len(found.held_out) - sum(found.report["dropped"].values())


def test_label_noise_is_reported(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{n}",
            "response1": "a",
            "response2": "b",
            "annotator1": 1,
            "annotator2": 1,
            "annotator3": n % 2,
        }
        for n in range(10)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"preference": {"sources": [{"path": str(tmp_path / "a.jsonl")}], "eval_fraction": 0}}
    recipe = loads_recipe(json.dumps({"name": "a", "data": data, "stages": {"reward": {}}})).recipe
    assert build.preference_pairs(recipe.data, 1).report["label_noise"] == {"pairs": 10, "mean": round(0.5 / 6, 4)}


# One data set for several stages


@settings(max_examples=500, deadline=None)
@given(
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    texts=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=20, unique=True),
)
def test_no_prompt_is_in_two_parts(parts: list[int], texts: list[str]) -> None:
    assume(sum(parts) <= 100)
    shares = shares_of({f"stage{at}": part / 100 for at, part in enumerate(parts)})
    for text in texts:
        digest = prompt_hash((Message(role="user", content=text),))
        holders = [name for name, share in shares.items() if share.holds(digest)]
        assert len(holders) <= 1
        # Whatever is asked later in the conversation, and however it is spelled, the prompt stays where it is.
        respelled = prompt_hash((Message(role="user", content=f" {text} "), Message(role="assistant", content="x")))
        assert [name for name, share in shares.items() if share.holds(respelled)] == holders
        if sum(parts) == 100:
            assert len(holders) == 1, "a whole division leaves no prompt out"


def test_parts_are_as_large_as_they_should_be_and_independent_of_what_is_held_out() -> None:
    digests = [prompt_hash((Message(role="user", content=f"{n}"),)) for n in range(4000)]
    shares = shares_of({"sft": 0.2, "reward": 0.4, "ppo": 0.4})
    counts = {name: sum(share.holds(digest) for digest in digests) for name, share in shares.items()}
    assert counts["sft"] == pytest.approx(800, rel=0.1) and counts["ppo"] == pytest.approx(1600, rel=0.1)
    held = [digest for digest in digests if position_of(digest) < 0.1]
    assert sum(part_position(digest) < 0.2 for digest in held) == pytest.approx(0.2 * len(held), rel=0.2)


SPLIT_RECIPE = """
name: a
data:
  sft: {sources: [{path: FILE}], eval_fraction: 0.1}
  preference: {sources: [{path: FILE}], eval_fraction: 0.1}
  split: {sft: 0.2, reward: 0.3, ppo_long: 0.25, ppo: 0.25}
stages:
  sft: {}
  reward: {}
  ppo: {}
  ppo_long: {kind: ppo}
  ppo_again: {kind: ppo}
  dpo: {}
"""


def test_one_file_is_divided_among_stages_that_read_it_as_different_things(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(600)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = loads_recipe(SPLIT_RECIPE.replace("FILE", str(path))).recipe
    read = {"sft": build.demonstrations, "reward": build.preference_pairs, "dpo": build.preference_pairs}
    trained, evaluated = {}, set()
    for name in recipe.stages:
        found = read.get(name, build.prompts)(recipe.data, recipe.seed, split_part(recipe, name))
        trained[name] = set(build.prompt_hashes(found.train))
        evaluated |= set(build.prompt_hashes(found.held_out))
        assert len(found.train) + found.report["dropped"].get("other_stages_part", 0) == 600 - len(found.held_out)
    assert trained["ppo"] == trained["ppo_again"], "both go by their kind"
    parts = [trained[name] for name in ("sft", "reward", "ppo_long", "ppo")]
    assert all(50 < len(part) < 200 for part in parts)
    assert len(set.union(*parts)) == sum(map(len, parts)) == len(trained["dpo"]), "dpo is not named and takes all"
    assert not evaluated & trained["dpo"]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("{sft: 0.5, rewrd: 0.5}", "data.split.rewrd: is neither a stage of this recipe nor the kind of one; did you"),
        ("{sft: 0.6, reward: 0.5}", "data.split: the parts add up to 1.1, expected at most 1"),
        ("{sft: 0}", "data.split"),
        ("{sft: much}", "data.split"),
    ],
)  # fmt: skip
def test_a_division_that_makes_no_sense_is_refused(split: str, said: str) -> None:
    from pipeline.errors import RecipeError

    text = SPLIT_RECIPE.replace("{sft: 0.2, reward: 0.3, ppo_long: 0.25, ppo: 0.25}", split)
    with pytest.raises(RecipeError) as caught:
        loads_recipe(text, "a.yaml")
    assert said in str(caught.value) and str(caught.value).startswith("a.yaml:6: ")


@pytest.mark.parametrize("other", ["limit", "weight"])
def test_a_count_stands_alone(other: str) -> None:
    from pipeline.errors import RecipeError

    with pytest.raises(RecipeError, match=f"count: says exactly how many rows to take, so {other} has no say"):
        sft_data({"path": "a", "count": 3, other: 2})


def test_a_count_that_cleaning_among_sources_breaks_is_said(tmp_path: Path) -> None:
    question = "Explain in one sentence why the bread rises in a hot oven"
    paths = []
    for name, answer in (("a", "Yeast makes gas, the dough holds it."), ("b", "Yeast makes gas; the dough holds it!")):
        row = {"instruction": question, "output": answer, "split": "train"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        paths.append(str(tmp_path / f"{name}.jsonl"))
    sources = [{"path": paths[0]}, {"path": paths[1], "count": 1}]
    assert len(build.demonstrations(sft_data(*sources), 1).train) == 2
    with pytest.raises(DataError, match=r"b\.jsonl: count asks for 1 training rows and 0 are left"):
        build.demonstrations(sft_data(*sources, clean={"near_duplicates": {}}), 1)
