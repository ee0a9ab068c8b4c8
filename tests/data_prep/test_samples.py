"""What the bundled rows promise: right by their own check, split cleanly, and not to be told apart by a shortcut."""

import json
from collections import Counter

import pytest

from data_prep.checks import passes
from data_prep.samples import DEMONSTRATIONS, PREFERENCES, generate, shortcuts
from data_prep.samples.assemble import normalised_prompt
from data_prep.samples.balance import SHARES
from data_prep.samples.families import FAMILIES
from data_prep.text_forms import language


@pytest.fixture(scope="module")
def alone():
    return json.loads(DEMONSTRATIONS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs():
    return shortcuts.read_pairs()


@pytest.fixture(scope="module")
def accuracies(pairs):
    return shortcuts.accuracies(pairs)


def alpaca_turns(row):
    asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return [*(text for turn in row.get("history", []) for text in turn), asked]


def pair_turns(row):
    return [message["content"] for message in row["prompt"]]


def rough_tokens(text):
    """An upper estimate for a small English vocabulary: 3.5 letters a token, two tokens a Chinese character."""
    han = sum("\u3000" <= char <= "\uffef" for char in text)
    return (len(text) - han) / 3.5 + 2 * han


def test_the_files_are_what_the_generator_writes():
    assert generate.main(["--check"]) == 0


def test_a_changed_file_is_noticed(tmp_path, monkeypatch, capsys):
    changed = tmp_path / PREFERENCES.name
    changed.write_text(PREFERENCES.read_text(encoding="utf-8").replace("Ravi", "Rivo"), encoding="utf-8")
    monkeypatch.setattr(generate, "contents", lambda: {changed: PREFERENCES.read_text(encoding="utf-8")})
    assert generate.main(["--check"]) == 1
    assert "preference_sample.jsonl" in capsys.readouterr().err


def test_every_demonstration_passes_its_check(alone):
    assert [row for row in alone if not passes(row["check"], row["output"])] == []


def test_chosen_passes_and_rejected_fails(pairs):
    for row in pairs:
        chosen, rejected = shortcuts.answers(row)
        assert passes(row["check"], chosen), row
        assert not passes(row["check"], rejected), row


def test_shape_of_the_rows(alone, pairs):
    for row in alone:
        assert all(len(turn) == 2 for turn in row.get("history", []))
        assert row["output"].strip() == row["output"] != ""
    for row in pairs:
        roles = [message["role"] for message in row["prompt"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        assert all(message["content"].strip() for side in ("prompt", "chosen", "rejected") for message in row[side])
    for row in [*alone, *pairs]:
        assert not any(mark in json.dumps(row["check"]) for mark in ("{x}", "{c}", "{w}"))
        assert not any(mark in text for text in _texts(row) for mark in ("{}", "{x}", "{c}", "{w}", "{o}", "{v}", "  "))


def _texts(row):
    if "output" in row:
        return [row["instruction"], row["output"]]
    return [
        message["content"].replace("    total", "")
        for side in ("prompt", "chosen", "rejected")
        for message in row[side]
    ]


def test_prompts_are_distinct_and_never_in_two_splits(alone, pairs):
    of_alone = [normalised_prompt(alpaca_turns(row)) for row in alone]
    of_pairs = [normalised_prompt(pair_turns(row)) for row in pairs]
    assert len(set(of_alone)) == len(alone)
    assert len(set(of_pairs)) == len(pairs)
    splits = {}
    for prompt, row in [*zip(of_alone, alone, strict=True), *zip(of_pairs, pairs, strict=True)]:
        splits.setdefault(prompt, set()).add(row["split"])
    assert {prompt: found for prompt, found in splits.items() if len(found) > 1} == {}


def test_splits_and_held_out_templates(alone, pairs):
    for rows in (alone, pairs):
        share = sum(row["split"] == "eval" for row in rows) / len(rows)
        assert 0.25 <= share <= 0.31
        assert sum(row["split"] == "eval" for row in rows) >= 220
    held_out = {template.id for family in FAMILIES for template in family.templates if template.held_out}
    seen = {(row["template"], row["split"]) for row in [*alone, *pairs]}
    assert held_out and {name for name, _ in seen if (name, "train") not in seen} == held_out


def test_families_languages_and_sizes(alone, pairs):
    assert len(FAMILIES) >= 14
    for rows in (alone, pairs):
        assert 760 <= len(rows) <= 840
        assert {row["family"] for row in rows} == {family.name for family in FAMILIES}
        assert 0.17 <= sum(row["language"] == "zh" for row in rows) / len(rows) <= 0.23
        in_chinese = [row for row in rows if row["language"] == "zh" and row["family"] != "translation"]
        assert all(language(_texts(row)[0]) == "zh" for row in in_chinese)


def test_faults(pairs):
    count = Counter(row["fault"] for row in pairs)
    assert set(count) == set(SHARES) and min(count.values()) >= 20
    assert count["wrong_fact"] <= 0.2 * len(pairs)
    for family in {row["family"] for row in pairs}:
        assert len({row["fault"] for row in pairs if row["family"] == family}) >= 3


def test_the_first_rows_are_a_fair_mix(alone, pairs):
    for rows in (alone, pairs):
        all_of_it, first = Counter(row["family"] for row in rows), Counter(row["family"] for row in rows[:200])
        for family, count in all_of_it.items():
            assert abs(first[family] - count * 200 / len(rows)) <= 3


def test_rows_are_short(alone, pairs):
    """Mean of at most 100 tokens in a chat template that adds about 32 of its own."""
    of_alone = [sum(map(rough_tokens, [*alpaca_turns(row), row["output"]])) for row in alone]
    assert sum(of_alone) / len(of_alone) + 32 <= 100
    for side in (0, 1):
        of_pairs = [sum(map(rough_tokens, [*pair_turns(row), shortcuts.answers(row)[side]])) for row in pairs]
        assert sum(of_pairs) / len(of_pairs) + 32 <= 100


def test_lengths_do_not_tell_the_sides_apart(accuracies):
    assert {name: value for name, value in accuracies.items() if name.startswith("lengths") and value > 0.60} == {}


def test_openings_and_language_do_not_tell_the_sides_apart(accuracies):
    others = {name: value for name, value in accuracies.items() if not name.startswith("lengths")}
    assert len(others) == 4
    assert {name: value for name, value in others.items() if value > 0.65} == {}


def test_the_shortcut_check_finds_shortcuts(pairs):
    """Negative control: pairs whose rejected side is longer, or opens with one word, are found out."""
    longer = [row | {"rejected": [{"content": shortcuts.answers(row)[0] + " and so on"}]} for row in pairs]
    found = shortcuts.accuracies(longer)
    assert min(value for name, value in found.items() if name.startswith("lengths")) > 0.9
    opened = [row | {"rejected": [{"content": "Well, " + shortcuts.answers(row)[0]}]} for row in pairs]
    assert shortcuts.accuracies(opened)["opening of 1, naive Bayes"] > 0.8


def test_words_alone_do_not_carry_refusals(pairs):
    """Refusing is right about as often as it is wrong."""
    chosen = sum(row["family"] == "refusal" for row in pairs)
    rejected = sum(row["fault"] == "over_refusal" for row in pairs)
    assert 0.5 <= chosen / rejected <= 2


def test_the_readme_counts_what_is_there(alone, pairs):
    readme = DEMONSTRATIONS.with_name("README.md").read_text(encoding="utf-8")

    def counts(rows, family):
        seen = Counter((row["language"], row["split"]) for row in rows if row["family"] == family)
        return " / ".join(str(seen[language, split]) for language in ("en", "zh") for split in ("train", "eval"))

    for family in FAMILIES:
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{family.name}` |"))
        assert line.endswith(f"| {counts(alone, family.name)} | {counts(pairs, family.name)} |")
    assert f"{len(alone)} demonstrations" in readme and f"{len(pairs)} preference pairs" in readme
