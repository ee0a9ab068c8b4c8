"""Near duplicates, contradictions among pairs, and prompts that must not cross from held out into training."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.cleaning import Cleaner, near, pairs
from data_prep.cleaning.near import NearIndex, similarity, sketches
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from data_prep.split import Split, prompt_hash, prompt_messages, split_records
from pipeline.recipe.cleaning_settings import CleanSettings, NearDuplicateSettings, PairCleanSettings


def demonstration(question: str, answer: str, row: int = 1) -> Demonstration:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Demonstration(messages=messages, origin=Origin(source="x", row=row))


def pair(question: str, chosen: str, rejected: str, row: int = 1) -> PreferencePair:
    prompt = (Message(role="user", content=question),)
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, origin=Origin(source="x", row=row))


LONG = "Write a short note about why the old bridge over the river is closed in winter"
LONG_ZH = "请写一段话，说明河上的老桥为什么在冬天关闭，以及什么时候重新开放"


@pytest.mark.parametrize(
    ("one", "other", "near_enough"),
    [
        (LONG, LONG.upper() + "!!", True),
        (LONG, LONG.replace("bridge", "brige"), True),
        (LONG, LONG + " of every year", True),
        (LONG_ZH, LONG_ZH.replace("，", " ") + "。", True),
        (LONG_ZH, LONG_ZH.replace("老桥", "旧桥"), True),
        (LONG, LONG.replace("old bridge", "new museum").replace("river", "harbour"), False),
        (LONG_ZH, LONG_ZH.replace("河上的老桥", "山里的寺庙").replace("冬天", "夏季"), False),
        (f"{LONG} 13", f"{LONG} 14", False),
        ("What is the capital of France?", "What is the capital of Spain?", False),
        ("法国的首都是哪里？", "英国的首都是哪里？", False),
        ("yes", "no", False),
        ("", "", True),
    ],
)
def test_what_is_nearly_the_same(one, other, near_enough) -> None:
    assert (similarity(one, other) >= 0.8) is near_enough
    assert similarity(one, other) == similarity(other, one)


def dropped(records, clean, held_out=()):
    cleaner = Cleaner(clean)
    kept = cleaner.among(records, list(held_out))
    return kept, {each.record.origin.row: each.finding for each in cleaner.dropped}


def test_rows_need_both_prompt_and_answer_to_be_near() -> None:
    rows = [
        demonstration(LONG, LONG_ZH, 1),
        demonstration(LONG + "!", LONG_ZH + "。", 2),
        demonstration(LONG, "No.", 3),
    ]
    kept, gone = dropped(rows, CleanSettings(near_duplicates=NearDuplicateSettings()))
    assert (
        [each.origin.row for each in kept] == [1, 3] and gone[2].rule == "near_duplicate" and "row 1" in gone[2].detail
    )
    kept, _ = dropped(rows, CleanSettings(near_duplicates=NearDuplicateSettings(of="prompts")))
    assert [each.origin.row for each in kept] == [1]


def test_pairs_are_compared_with_both_answers() -> None:
    rows = [
        pair(LONG, "It is icy.", "It is shut.", 1),
        pair(LONG + "?", "It is icy!", "It is shut!", 2),
        pair(LONG, "It is icy.", "Who knows", 3),
    ]
    kept, _ = dropped(rows, PairCleanSettings(near_duplicates=NearDuplicateSettings()))
    assert [each.origin.row for each in kept] == [1, 3]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_the_index_finds_what_comparing_all_finds(seed) -> None:
    """Every text against every other, the slow and obvious way."""
    rng = random.Random(seed)
    texts = _texts(rng, 25)
    index, kept = NearIndex(0.7), []
    for each, sketch in zip(texts, sketches([(text,) for text in texts]), strict=True):
        expected = any(similarity(each, other) >= 0.7 for other in kept)
        assert (index.find((each,), sketch) is not None) is expected
        if not expected:
            index.add((each,), sketch)
            kept.append(each)


def _texts(rng: random.Random, count: int) -> list[str]:
    """Sentences of few words, and copies of some of them with a slip."""
    words = [
        "the",
        "old",
        "bridge",
        "over",
        "a",
        "river",
        "is",
        "closed",
        "in",
        "winter",
        "and",
        "nobody",
        "knows",
        "why",
        "河",
        "上",
        "的",
        "老",
        "桥",
        "7",
        "12",
    ]
    found = [" ".join(rng.choices(words, k=rng.randint(4, 14))) for _ in range(count // 2)]
    for _ in range(count - len(found)):
        text = rng.choice(found)
        at = rng.randrange(len(text))
        found.append(rng.choice([text[:at] + text[at + 1 :], text + "!", text.upper(), f"{text} {rng.choice(words)}"]))
    rng.shuffle(found)
    return found


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9), st.sampled_from(["demonstrations", "pairs", "prompts"]), st.booleans())
def test_no_prompt_crosses_from_held_out_into_training(seed, kind, near_too) -> None:
    rng = random.Random(seed)
    records = [_record(kind, text, rng, row) for row, text in enumerate(_texts(rng, 14), start=1)]
    clean = PairCleanSettings(near_duplicates=NearDuplicateSettings(threshold=0.7) if near_too else None)
    cleaner = Cleaner(clean)
    parts = cleaner.rows(split_records(records, 0.3, 0.5))
    held_out = [*parts.eval, *parts.held_elsewhere]
    train = cleaner.among(parts.train, held_out)
    evaluated = {prompt_hash(prompt_messages(record)) for record in held_out}
    assert not evaluated & {prompt_hash(prompt_messages(record)) for record in train}
    if near_too:
        for record in train:
            assert all(similarity(near.opening(record), near.opening(other)) < 0.7 for other in held_out)
    # No row is lost, and none is held out or trained on twice.
    accounted = [*train, *held_out, *(each.record for each in cleaner.dropped), *parts.forbidden]
    assert sorted(each.origin.row for each in accounted) == [record.origin.row for record in records]


def test_without_being_asked_near_prompts_do_cross() -> None:
    """The control of the property above."""
    eval_row, train_row = demonstration(LONG, "a", 1), demonstration(LONG + "!", "b", 2)
    assert dropped([train_row], CleanSettings(), [eval_row])[0] == [train_row]
    kept, gone = dropped([train_row], CleanSettings(near_duplicates=NearDuplicateSettings()), [eval_row])
    assert kept == [] and gone[2].rule == "near_held_out_prompt"
    within = NearDuplicateSettings(held_out=False)
    assert dropped([train_row], CleanSettings(near_duplicates=within), [eval_row])[0] == [train_row]


def _record(kind: str, text: str, rng: random.Random, row: int) -> Demonstration | PreferencePair | Prompt:
    if kind == "demonstrations":
        return demonstration(text, str(rng.random()), row)
    if kind == "pairs":
        return pair(text, str(rng.random()), str(rng.random()), row)
    return Prompt(messages=(Message(role="user", content=text),), origin=Origin(source="x", row=row))


def test_masking_makes_no_prompt_cross() -> None:
    """Two prompts that differ in a phone number are one prompt once it is masked."""
    parts = Split(
        train=[demonstration("Call +1 650-253-0000 now", "a", 2)],
        eval=[demonstration("Call +1 650-253-0001 now", "b", 1)],
    )
    assert Cleaner(CleanSettings()).rows(parts).train == parts.train
    cleaner = Cleaner(CleanSettings(personal_data="mask"))
    found = cleaner.rows(parts)
    assert cleaner.among(found.train, found.eval) == [] and cleaner.dropped[0].finding.rule == "prompt_is_held_out"
    assert found.eval[0].messages[0].content == "Call <PHONE> now"


def test_contradictions_and_near_equal_answers() -> None:
    rows = [
        pair("Tea or coffee?", "tea", "coffee", 1),
        pair("tea or  coffee?", "coffee", "tea", 2),
        pair("Tea or coffee?", "tea", "water", 3),
        pair("Or?", LONG, LONG + ".", 4),
        pair("Or?", f"{LONG} 5", f"{LONG} 6", 5),
    ]
    assert [each.record.origin.row for each in pairs.conflicts(rows)] == [1, 2]
    kept, gone = dropped(rows, PairCleanSettings(label_conflicts="drop", near_equal_pairs=0.9))
    assert [each.origin.row for each in kept] == [3, 5] and gone[4].rule == "near_equal_pairs"
    assert Cleaner(PairCleanSettings()).report(rows)["label_conflicts"] == 2


def test_length_bias_is_measured_by_hand() -> None:
    """Longer, shorter, equal: one and a half of three; 3, 1 and 2 words against 1, 2 and 2."""
    rows = [pair("a", "x y z", "x"), pair("b", "x", "x y"), pair("c", "x y", "y x")]
    assert pairs.length_bias(rows) == {"chosen_longer": 0.5, "chosen_words": 2.0, "rejected_words": 1.7}
