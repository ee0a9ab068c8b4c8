"""Cleaning on its way from a recipe to the rows a stage is given: order, accounts, caching, worker processes, keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep import build, cache, data_sets, workers
from data_prep.chat import ChatFormatter
from data_prep.clean import drop_duplicates
from data_prep.cleaning import Cleaner
from data_prep.cleaning.dropped import Dropped, Finding, by_rule_and_source
from data_prep.prompt_rows import encode_prompts
from data_prep.records import Message, Origin, Prompt
from pipeline.models.load import load_tokenizer
from pipeline.models.source import identify
from pipeline.plan import make_nodes
from pipeline.recipe import loads_recipe
from pipeline.recipe.cleaning_settings import PairCleanSettings

DIRTY = Path(__file__).parents[2] / "data" / "dirty_pairs.jsonl"
TEXT = """
name: x
model: {base: "builtin:tiny-llama"}
data:
  sft: {sources: [{path: SFT}]}
  preference: {sources: [{path: PAIRS}]}
stages: {sft: {}, dpo: {}}
"""


def recipe_of(*overrides: str, sft: str = "builtin:alpaca_sample", pairs: str = "builtin:preference_sample"):
    return loads_recipe(TEXT.replace("SFT", sft).replace("PAIRS", pairs), overrides=overrides).recipe


def rows(data_set) -> tuple:
    return data_set.train, data_set.held_out


def test_by_default_the_bundled_samples_stay_as_they_are(monkeypatch) -> None:
    """The same rows in the same order as without any cleaning."""
    data = recipe_of().data
    made = [rows(load(data, 17)) for load in (build.demonstrations, build.preference_pairs, build.prompts)]
    monkeypatch.setattr(Cleaner, "rows", lambda self, parts: parts)
    monkeypatch.setattr(Cleaner, "among", lambda self, records, held_out: list(records))
    assert made == [rows(load(data, 17)) for load in (build.demonstrations, build.preference_pairs, build.prompts)]
    assert [len(train) for train, _ in made] == [576, 573, 573]


def test_a_rule_drops_training_rows_only_and_each_is_accounted_for() -> None:
    plain = build.preference_pairs(recipe_of(pairs=str(DIRTY)).data, 17)
    strict = build.preference_pairs(
        recipe_of(
            "data.preference.clean={refusals: drop, truncated: drop, secrets: drop, label_conflicts: drop, "
            "near_duplicates: {of: prompts}, min_words: 2}",
            pairs=str(DIRTY),
        ).data,
        17,
    )
    assert rows(strict)[1] == rows(plain)[1] and len(strict.held_out) == 1
    counts = strict.report["dropped"]
    expected = {"empty_answers": 1, "refusals": 1, "truncated": 1, "secrets": 1, "label_conflicts": 2, "min_words": 1}
    assert {rule: counts[rule] for rule in expected} == expected
    assert counts["near_held_out_prompt"] == 1 and counts["near_duplicate"] >= 1
    read = strict.report["sources"][0]["rows_read"]
    assert read == len(strict.train) + len(strict.held_out) + sum(counts.values())
    lines = [each.line() for each in strict.dropped]
    text = DIRTY.read_text(encoding="utf-8").splitlines()
    assert len(lines) == sum(counts.values()) and {line["source"] for line in lines} == {str(DIRTY)}
    for line in lines:
        if "record" in line:
            assert json.loads(text[line["row"] - 1])["rejected"] == line["record"]["rejected"]


def test_the_report_has_every_dropped_row_by_rule_and_source(tmp_path, tiny_folder) -> None:
    """Of both steps, cleaning and tokenising; files of a folder count for the folder."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = [
        {"instruction": f"Say {n}.", "output": "As an AI language model, I cannot.", "split": "train"} for n in (1, 2)
    ]
    rows += [{"instruction": "Say it.", "output": "word " * 200, "split": "train"}] * 2
    for name, part in (("a", rows[:1]), ("b", rows[1:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    sources = f"data.sft.sources=[{{path: {folder}/}}, {{path: builtin:alpaca_sample}}]"
    data = recipe_of(sources, "data.sft.clean={refusals: drop, max_tokens: 40}").data
    formatter = ChatFormatter(load_tokenizer(tiny_folder, "auto"))
    train, _, report = build.encode_demonstrations(data, formatter, 17)
    told = report["cleaning"]["dropped"]
    assert told["refusals"][f"{folder}/"] == 2 and told["duplicate"][f"{folder}/"] == 1
    assert told["max_tokens"][f"{folder}/"] == 1 and told["max_tokens"]["builtin:alpaca_sample"] > 10
    assert list(told) == sorted(told, key=lambda rule: -sum(told[rule].values()))
    assert sum(sum(counts.values()) for counts in told.values()) == len(train.dropped)
    assert all(sum(told[rule].values()) == report["dropped"][rule] for rule in told if rule != "duplicate")


def test_prompts_have_that_account_too(tiny_folder) -> None:
    data = recipe_of("data.preference.clean.near_duplicates={of: prompts}").data
    formatter = ChatFormatter(load_tokenizer(tiny_folder, "auto"))
    train, _, report = encode_prompts(data, formatter, 17, with_rule=False, held_out=5)
    [counts] = [report["cleaning"]["dropped"][rule] for rule in ("near_duplicate",)]
    assert counts == {"builtin:preference_sample": report["dropped"]["near_duplicate"]}
    assert len(train.dropped) == sum(map(sum, (one.values() for one in report["cleaning"]["dropped"].values())))


def test_a_file_belongs_to_the_nearest_source_above_it() -> None:
    def dropped(source: str) -> Dropped:
        prompt = Prompt(messages=(Message(role="user", content="a"),), origin=Origin(source=source, row=1))
        return Dropped(prompt, Finding("truncated"))

    paths = ["in", "in/deep", "in.jsonl"]
    found = by_rule_and_source(map(dropped, ["in/a.json", "in/deep/b.json", "in/deep/c.json", "in.jsonl", "x"]), paths)
    assert found == {"truncated": {"in/deep": 2, "in": 1, "in.jsonl": 1, "x": 1}}


def test_exact_duplicates_are_in_the_account_too(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "say", "output": "it", "split": "train"}\n' * 3)
    found = build.demonstrations(recipe_of(sft=str(path)).data, 17)
    assert found.report["dropped"] == {"duplicate": 2}
    assert [(each.finding.rule, each.record.origin.row) for each in found.dropped] == [
        ("duplicate", 2),
        ("duplicate", 3),
    ]


def test_answers_of_another_length_in_tokens_are_dropped_when_tokenised(tiny_folder) -> None:
    formatter = ChatFormatter(load_tokenizer(tiny_folder, "auto"))
    wanted = recipe_of("data.sft.clean={min_tokens: 10, max_tokens: 40}").data
    train, _, report = build.encode_demonstrations(wanted, formatter, 17)
    assert all(10 <= sum(row.response_mask) <= 40 for row in train.rows)
    gone = [each for each in train.dropped if each.finding.rule in ("min_tokens", "max_tokens")]
    assert len(gone) == report["dropped"]["min_tokens"] + report["dropped"]["max_tokens"] > 10


def test_a_mixture_is_cleaned_across_its_sources(tmp_path) -> None:
    question = "Explain in one sentence why the bread rises in a hot oven"
    for name, answer in (
        ("a", "Yeast makes gas, and the dough holds it."),
        ("b", "Yeast makes gas; and the dough holds it!"),
    ):
        row = {"instruction": question, "output": answer, "split": "train"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sources = f"data.sft.sources=[{{path: {tmp_path}/a.jsonl}}, {{path: {tmp_path}/b.jsonl}}]"
    assert len(build.demonstrations(recipe_of(sources).data, 17).train) == 2
    found = build.demonstrations(recipe_of(sources, "data.sft.clean.near_duplicates={}").data, 17)
    assert len(found.train) == 1 and found.report["dropped"] == {"near_duplicate": 1}


def test_what_one_source_holds_out_by_name_no_other_trains_on(tmp_path) -> None:
    for split in ("train", "eval"):
        row = {"instruction": "Why is the sea salty?", "output": f"Because ({split}).", "split": split}
        other = {"instruction": f"Why is it {split}?", "output": "So.", "split": "train"}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
    sources = f"data.sft.sources=[{{path: {tmp_path}/train.jsonl}}, {{path: {tmp_path}/eval.jsonl}}]"
    found = build.demonstrations(recipe_of(sources).data, 17)
    assert [record.messages[0].content for record in found.train] == ["Why is it train?", "Why is it eval?"]
    assert found.report["dropped"] == {"prompt_is_held_out": 1} and len(found.held_out) == 1


def test_prompts_are_cleaned_by_the_rules_that_concern_them() -> None:
    data = recipe_of("data.preference.clean={min_words: 50, near_duplicates: {of: prompts}}").data
    found = build.prompts(data, 17)
    assert isinstance(found.train[0], Prompt) and "min_words" not in found.report["dropped"]
    assert found.report["dropped"]["near_duplicate"] > 0


@pytest.fixture
def cached(tmp_path, monkeypatch, tiny_folder):
    """Caching for a small set, in a folder of its own; returns (encode, folder, times that the source was read)."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_BYTES", 1)
    reads = []
    for name in ("read_demonstrations", "read_pairs"):
        original = getattr(data_sets, name)
        monkeypatch.setattr(data_sets, name, lambda spec, original=original: reads.append(spec) or original(spec))
    source = tmp_path / "pairs.jsonl"
    source.write_text(DIRTY.read_text(encoding="utf-8"), encoding="utf-8")

    def encode(*overrides: str, template: str = "auto", of: str = "pairs"):
        data = recipe_of(*overrides, sft=str(source), pairs=str(source)).data
        formatter = ChatFormatter(load_tokenizer(tiny_folder, template))
        return (build.encode_pairs if of == "pairs" else build.encode_demonstrations)(data, formatter, 17)

    return encode, source, reads


@pytest.mark.parametrize("of", ["pairs", "demonstrations"])
def test_a_cached_set_is_the_same_and_is_not_read_again(cached, of) -> None:
    encode, _, reads = cached
    first = encode(of=of)
    assert len(reads) == 1
    second = encode(of=of)
    assert len(reads) == 1 and second == first and second[0].dropped and second[0].rows


def test_whatever_changes_is_noticed(cached, tmp_path, monkeypatch) -> None:
    encode, source, reads = cached
    encode()
    template = tmp_path / "mine.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    changes = [
        lambda: encode(template=str(template)),
        lambda: (template.write_text(template.read_text().replace(": ", ":> ")), encode(template=str(template))),
        lambda: encode("data.preference.clean.min_words=3"),
        lambda: encode("data.preference.max_length=200"),
        lambda: encode(f"data.decontaminate={{against: [{DIRTY.parent}/evaluation_sets/gsm8k]}}"),
        lambda: (source.write_text(source.read_text().replace("honey", "jam")), encode()),
        lambda: (monkeypatch.setattr(cache, "_code", lambda: "other code"), encode()),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        assert len(reads) == number, f"change {number - 1} was not noticed"
    encode()
    assert len(reads) == len(changes) + 1, "what did not change is not read again"


def test_a_damaged_entry_is_made_anew(cached, tmp_path) -> None:
    encode, _, reads = cached
    first = encode()
    entry = next((tmp_path / "cache" / "data").glob("*.arrow"))
    for damage in (entry.read_bytes()[:-200], b"", entry.read_bytes()[:50] + b"x" * 500):
        entry.write_bytes(damage)
        assert encode() == first
    assert len(reads) == 4


def test_small_sets_are_not_kept(tmp_path, monkeypatch, tiny_folder) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    build.encode_pairs(recipe_of(pairs=str(DIRTY)).data, ChatFormatter(load_tokenizer(tiny_folder, "auto")), 17)
    assert not (tmp_path / "data").exists()


def _length(text: str) -> int:
    return len(text)


def test_workers_give_what_one_process_gives(monkeypatch) -> None:
    texts = ["x" * (number % 7) for number in range(1203)]
    monkeypatch.setenv("TRIVET_DATA_WORKERS", "2")
    assert workers.mapped(len, texts, worth=1000) == [len(text) for text in texts]
    monkeypatch.setenv("TRIVET_DATA_WORKERS", "1")
    assert workers.mapped(_length, texts, worth=1) == [len(text) for text in texts]


def keys(*overrides: str) -> dict[str, str]:
    recipe = recipe_of(*overrides)
    return {node.name: node.key for node in make_nodes(recipe, identify(recipe.model.base, None), Path("store"))}


def test_evaluation_retrains_nothing_and_evaluation_sets_do(tmp_path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "how many geese are left in the field at noon?"}\n')
    against = f"data.decontaminate={{against: [{path}]}}"
    plain, kept_apart, measured = keys(), keys(against), keys(against, "evaluation.tasks=[rules]")
    assert kept_apart["sft"] != plain["sft"] and kept_apart["dpo"] != plain["dpo"]
    assert measured["sft"] == kept_apart["sft"] and measured["evaluation"] != kept_apart["evaluation"]
    moved = tmp_path / "moved.jsonl"
    path.rename(moved)
    assert keys(f"data.decontaminate={{against: [{moved}]}}")["sft"] == kept_apart["sft"]
    moved.write_text('{"question": "how many ducks are left in the field at noon?"}\n')
    assert keys(f"data.decontaminate={{against: [{moved}]}}")["sft"] != kept_apart["sft"]


def test_one_data_sets_rules_leave_the_other_alone() -> None:
    plain, other = keys(), keys("data.preference.clean.truncated=drop")
    assert plain["sft"] == other["sft"] and plain["dpo"] != other["dpo"]


def test_a_named_classifier_is_loaded_and_asked(tmp_path, tiny_folder) -> None:
    """A random one: what counts is that its probabilities of the label decide."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from data_prep.cleaning.harm import load_classifier
    from pipeline.errors import RecipeError, SourceUnreachableError
    from pipeline.recipe.cleaning_settings import HarmSettings

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=2, id2label={0: "fine", 1: "bad"}, label2id={"fine": 0, "bad": 1}
    )
    model.config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    load_tokenizer(tiny_folder, "auto").save_pretrained(tmp_path)
    texts = ["a good day", "什么", "x" * 50]
    bad, fine = (load_classifier(HarmSettings(model=str(tmp_path), label=label))(texts) for label in ("bad", "fine"))
    assert [round(sum(both), 5) for both in zip(bad, fine, strict=True)] == [1.0] * 3
    assert load_classifier(HarmSettings(model=str(tmp_path)))(texts) == pytest.approx(bad, rel=1e-4)
    with pytest.raises(RecipeError, match="has no label 'evil'; it has fine, bad"):
        load_classifier(HarmSettings(model=str(tmp_path), label="evil"))
    with pytest.raises(SourceUnreachableError, match="cannot be loaded"):
        load_classifier(HarmSettings(model=str(tmp_path / "absent")))


def test_reports_say_what_was_changed_and_how_long_answers_are() -> None:
    data = recipe_of("data.preference.clean.personal_data=mask", pairs=str(DIRTY)).data
    report = build.preference_pairs(data, 17).report["cleaning"]
    assert report["changed"] == {"masked_email": 1, "repaired": 1}
    assert 0.5 < report["length_bias"]["chosen_longer"] <= 1 and report["label_conflicts"] == 2
    assert "cleaning" not in build.demonstrations(recipe_of().data, 17).report


def test_settings_of_pairs_are_not_offered_for_demonstrations() -> None:
    from pipeline.errors import RecipeError

    with pytest.raises(RecipeError, match="label_conflicts"):
        recipe_of("data.sft.clean.label_conflicts=drop")
    assert isinstance(recipe_of().data.preference.clean, PairCleanSettings)
    assert drop_duplicates([]).records == []
