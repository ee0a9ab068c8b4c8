"""Held-out prompts of one data set and training rows of the other: nothing near crosses where that is asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import data_sets
from data_prep.cleaning.near import similarity
from data_prep.cleaning.texts import opening
from data_prep.readers import ReadResult
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt, Record
from data_prep.split import split_records
from pipeline.errors import RecipeError
from pipeline.models.source import identify
from pipeline.plan import make_nodes
from pipeline.recipe import loads_recipe
from pipeline.recipe.schema import DataSettings

FRACTIONS = {"sft": 0.2, "preference": 0.35}
THRESHOLD = 0.7
WORDS = (
    "the", "old", "bridge", "over", "a", "river", "is", "closed", "in", "winter", "and", "nobody", "knows", "why", "河",
    "上", "的", "老", "桥", "7", "12",
)  # fmt: skip


def texts(rng: random.Random, count: int) -> list[str]:
    """Sentences, and copies of some of them with a slip."""
    found = [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(count // 2)]
    while len(found) < count:
        text = rng.choice(found)
        at = rng.randrange(len(text))
        found.append(rng.choice([text, text[:at] + text[at + 1 :], text + "!", text.upper(), f"{text} winter"]))
    rng.shuffle(found)
    return found


def rows(seed: int) -> dict[str, list[Any]]:
    """Demonstrations and pairs that ask much the same."""
    rng = random.Random(seed)
    asked = texts(rng, 20)
    origins = [Origin(source="x", row=row, split=rng.choice([None, None, "train", "eval"])) for row in range(1, 21)]
    turns = [(Message(role="user", content=text),) for text in asked]
    return {
        "sft": [
            Demonstration(messages=(*turn, Message(role="assistant", content=f"so {rng.random()}")), origin=origin)
            for turn, origin in zip(turns[:10], origins, strict=False)
        ],
        "preference": [
            PreferencePair(prompt=turn, chosen=f"good {rng.random()}", rejected="bad", origin=origin)
            for turn, origin in zip(turns[10:], origins[10:], strict=True)
        ],
    }


@contextmanager
def reading(found: dict[str, list[Any]]) -> Iterator[None]:
    """Readers that give these records instead of files."""

    def result(records: list[Any]) -> ReadResult[Any]:
        return ReadResult(
            records=records, rows_read=len(records), rows_kept=len(records), dropped={}, format="given", why="given"
        )

    def as_prompts(spec: Any) -> ReadResult[Any]:
        return result([Prompt(messages=pair.prompt, origin=pair.origin) for pair in found[spec.path]])

    with (
        mock.patch.object(data_sets, "read_demonstrations", lambda spec: result(found[spec.path])),
        mock.patch.object(data_sets, "read_pairs", lambda spec: result(found[spec.path])),
        mock.patch.object(data_sets, "read_prompts", as_prompts),
    ):
        yield


def recipe_data(**near: Any) -> DataSettings:
    block = {"threshold": THRESHOLD, **near}
    return DataSettings.model_validate(
        {
            name: {"sources": [{"path": name}], "eval_fraction": fraction, "clean": {"near_duplicates": block}}
            for name, fraction in FRACTIONS.items()
        }
    )


def held_out(found: dict[str, list[Any]]) -> list[Record]:
    most = max(FRACTIONS.values())
    parts = [split_records(found[name], fraction, most) for name, fraction in FRACTIONS.items()]
    return [record for part in parts for record in (*part.eval, *part.held_elsewhere)]


def crossings(seed: int, **near: Any) -> int:
    """Training rows of any stage that come near what any stage is judged by, found by comparing all with all."""
    found, data = rows(seed), recipe_data(**near)
    with reading(found):
        sets = (data_sets.demonstrations(data, 17), data_sets.preference_pairs(data, 17), data_sets.prompts(data, 17))
    judged_by = [opening(record) for record in held_out(found)]
    trained = [opening(record) for one in sets for record in one.train]
    return sum(any(similarity(text, other) >= THRESHOLD for other in judged_by) for text in trained)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9))
def test_no_near_prompt_crosses_from_one_set_to_the_other(seed: int) -> None:
    assert crossings(seed, other_set=True) == 0


def test_without_being_asked_they_do() -> None:
    """The control of the property above: the rows that it draws would cross."""
    assert sum(crossings(seed) > 0 for seed in range(30)) > 10


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    question = "Explain in one sentence why the bread rises in a hot oven"
    said = {
        "sft": [
            {"instruction": f"{question}!", "output": "Yeast makes gas.", "split": "train"},
            {"instruction": "Name a bird of the sea.", "output": "The albatross.", "split": "train"},
        ],
        "preference": [
            {"prompt": question, "chosen": "Yeast makes gas.", "rejected": "No idea.", "split": "eval"},
            {"prompt": "Name a tree.", "chosen": "The oak.", "rejected": "Er.", "split": "train"},
        ],
    }
    paths = {name: tmp_path / f"{name}.jsonl" for name in said}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in said[name]))
    return paths


def recipe(files: dict[str, Path], *overrides: str) -> Any:
    text = """
name: x
model: {base: "builtin:tiny-llama"}
data:
  sft: {sources: [{path: SFT}]}
  preference: {sources: [{path: PAIRS}]}
stages: {sft: {}, dpo: {}}
"""
    named = text.replace("SFT", str(files["sft"])).replace("PAIRS", str(files["preference"]))
    return loads_recipe(named, overrides=overrides).recipe


def test_from_files_with_its_account_and_its_key(files: dict[str, Path]) -> None:
    asked = "data.sft.clean.near_duplicates={other_set: true}"

    def keys(*overrides: str) -> dict[str, str]:
        one = recipe(files, *overrides)
        return {node.name: node.key for node in make_nodes(one, identify(one.model.base, None), Path("store"))}

    found = data_sets.demonstrations(recipe(files, asked).data, 17)
    assert [record.messages[0].content for record in found.train] == ["Name a bird of the sea."]
    assert found.report["dropped"] == {"near_held_out_prompt": 1}
    assert str(files["preference"]) in found.dropped[0].finding.detail
    before = keys(asked), keys("data.sft.clean.near_duplicates={}")
    files["preference"].write_text(files["preference"].read_text().replace("bread", "cake"))
    after = keys(asked), keys("data.sft.clean.near_duplicates={}")
    assert after[0]["sft"] != before[0]["sft"], "what the other set holds out decides"
    assert after[1]["sft"] == before[1]["sft"], "and plays no part where nobody asked"


def test_where_it_could_have_no_effect_it_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"other_set: has no effect, as held_out is false"):
        recipe(files, "data.sft.clean.near_duplicates={other_set: true, held_out: false}")
    alone = "{sft: {sources: [{path: builtin:alpaca_sample}], clean: {near_duplicates: {other_set: true}}}}"
    with pytest.raises(RecipeError, match=r"other_set: has no effect, as there is only one data set"):
        loads_recipe(f"name: x\ndata: {alone}\nstages: {{sft: {{}}}}\n")
