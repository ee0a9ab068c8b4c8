"""The rules that look at one row: what each of them finds and lets pass, in English, Chinese and other scripts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from data_prep.cleaning import content, shape
from data_prep.cleaning.cleaner import judged
from data_prep.cleaning.dropped import DROPPED_ROWS, Dropped, Finding, write_dropped
from data_prep.cleaning.harm import harmful
from data_prep.cleaning.language import language
from data_prep.cleaning.personal import masked, personal_data, secrets
from data_prep.cleaning.quality import quality
from data_prep.cleaning.repair import repaired
from data_prep.cleaning.rules import first_finding
from data_prep.cleaning.texts import is_dense, units, word_count
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt
from pipeline.recipe.cleaning_settings import CleanSettings, HarmSettings

ORIGIN = Origin(source="x.jsonl", row=7)


def row(answer: str, question: str = "Why?") -> Demonstration:
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Demonstration(messages=messages, origin=ORIGIN)


def pair(chosen: str, rejected: str = "no") -> PreferencePair:
    return PreferencePair(
        prompt=(Message(role="user", content="Why?"),), chosen=chosen, rejected=rejected, origin=ORIGIN
    )


def rule_of(record: Any, **settings: Any) -> str | None:
    found = first_finding(record, CleanSettings.model_validate(settings))
    return found and found.rule


ZH = "春天的雨水落在石桥上，孩子们在屋檐下听着雨声，谁也不愿意先回家。"
CASES = [
    ({"empty_answers": "drop"}, ["<nooutput>", "...", "\u200b", "N/A"], ["4", "👍", "-1", "是", "none", "x"]),
    (
        {"url_answers": "drop"},
        ["https://a.org/b", "See: www.a.org"],
        ["See https://a.org for more.", "a.org is a site"],
    ),
    (
        {"refusals": "drop"},
        [
            "I'm sorry, but I can't help with that.",
            "As an AI language model, I have no feelings.",
            "抱歉，我无法回答这个问题。",
        ],
        [
            "I can't tell from the note; the street is not mentioned.",
            "He could not help it.",
            "Sorry seems hard to say.",
        ],
    ),
    (
        {"placeholders": "drop"},
        ["Dear {{name}},", "Dear [Your Name],", "on [insert date here]", "尊敬的[姓名]：", "Hi <insert name>"],
        [
            "a[name] = 1",
            "[name](https://a.org)",
            "Use `{{name}}` there.",
            "```\n{{ user.name }}\n```",
            "f(x) = {x}",
            "[1, 2]",
        ],
    ),
    (
        {"profanity": "answers"},
        ["what the fuck", "SHITTY day", "真他妈的"],
        ["Scunthorpe", "a shiitake", "assess the class", "成人教育"],
    ),
    ({"duplicate_lines": 0.3}, ["one two three\n" * 4], ["x}\nx}\nx}\nx}", "a b c d e\nf g h i j\nk l m n o", "x"]),
    ({"repetition": 0.3}, ["and so we go home again " * 8, "我们觉得这样做很好，" * 8], [ZH, "no no no", "ha " * 20]),
    (
        {"special_characters": 0.3},
        ["■□▓▒░◆◇●○§¤¬¦†‡■□▓▒░"],
        [ZH, "नमस्ते दुनिया, यह एक वाक्य है।", "👍", "a + b = c; x = [1, 2]"],
    ),
    (
        {"max_word_length": 12},
        ["abcdefghijklmnopqrstuvwxyz" * 3],
        [ZH * 3, "short words in a row and then some more of them"],
    ),
    ({"min_words": 4}, ["two words", "四个汉字"], ["now four words here", "这里一共有八个汉字"]),
    ({"max_characters": 5}, ["123456"], ["12345 "]),
    (
        {"truncated": "drop"},
        [
            "It takes years. The best advice is to start early and keep notes of the",
            "书上的介绍并不完整，有些细节还写错了。老师傅常说，手要稳，心要静，事情才能",
            "Here:\n\n```python\nprint(1)",
            "The committee met on Tuesday and decided after a long debate to",
        ],
        [
            "Lisbon",
            "- red\n- green\n- blue",
            "print(x)",
            ZH,
            "apples, olives, flour",
            "It is 4",
            "# A title of some length here",
            "The evening folds its paper light\nAbove the town and the quiet night\nNobody knows the way",
        ],
    ),
    (
        {"languages": ["en", "zh"]},
        ["Der alte Hafen liegt still im Morgenlicht am Ufer."],
        [ZH, "It is a fine day today.", "Lisbon", "3.14"],
    ),
]


@pytest.mark.parametrize(("settings", "bad", "good"), CASES, ids=[next(iter(case[0])) for case in CASES])
def test_a_rule_finds_what_it_is_named_for(settings, bad, good) -> None:
    name = next(iter(settings))
    for text in bad:
        assert rule_of(row(text), **settings) == name, text
        assert rule_of(row(text), empty_answers="keep") is None, "found although its rule is off"
        assert rule_of(pair(good[0], rejected=text), **settings) in (None, "languages"), "a rejected answer may be bad"
        assert rule_of(pair(text), **settings) == name
    for text in good:
        assert rule_of(row(text), **settings) is None, text


def test_chinese_is_counted_by_character() -> None:
    assert units("我爱Python 3") == ["我", "爱", "python", "3"]
    assert (word_count("我爱北京"), word_count("I love Beijing"), word_count("हिन्दी भाषा")) == (2, 3, 2)
    assert is_dense("我用Python") and not is_dense("Python 的 advantages are many")
    assert shape.mean_word_length(ZH * 3) is None


def test_broken_unicode_is_repaired_and_sound_text_left_alone() -> None:
    assert repaired("dÃ©jÃ\xa0 vu â€” cafÃ©") == "déjà vu — café"
    assert repaired("a\x00b\x1b[31mred") == "abred"
    for text in ("“quotes” ﬁne", "全角！？（标点）", "&lt;b&gt; in HTML", "tab\tand\nline", "é", "e\u0301"):
        assert repaired(text) == text


PERSONAL = {
    "write to jane.miller@gmail.com.": "write to <EMAIL>.",
    "请拨打13912345678联系": "请拨打<PHONE>联系",
    "call +1 650-253-0000 now": "call <PHONE> now",
    "card 4111 1111 1111 1111 ok": "card <CARD> ok",
    "IBAN DE89 3704 0044 0532 0130 00, thanks": "IBAN <IBAN>, thanks",
    "身份证11010519491231002X。": "身份证<ID>。",
}
SECRETS = {
    "key AKIAQWERTYUIOPASDFGH end": "key <SECRET> end",
    "postgres://admin:hunter2hunter2@db.net/x": "postgres://admin:<SECRET>@db.net/x",
    "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nok": "<SECRET>\nok",
    f"ghp_{'a1B2' * 9}": "<SECRET>",
}
HARMLESS = (
    "user@example.com",
    "see 4111 1111 1111 1112",
    "born 1990-05-17",
    "9508735610",
    "3.14159265358979",
    "call 911",
    "the key to success",
    "AKIA is a prefix",
    "11010519491231002",
    "2, 4, 6, 8, 10, 12, 14",
    "call 555-1234",
    "https://a.org/path:80/x@y",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
)


@pytest.mark.parametrize(("text", "expected"), [*PERSONAL.items(), *SECRETS.items()])
def test_personal_data_and_secrets_are_masked(text, expected) -> None:
    assert masked(text, personal_data if text in PERSONAL else secrets)[0] == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_personal_data_stays(text) -> None:
    assert masked(text, personal_data) == (text, []) and masked(text, secrets) == (text, [])


def test_masks_reach_every_text_and_drops_name_no_secret(tmp_path) -> None:
    secret = "AKIAQWERTYUIOPASDFGH"
    record = PreferencePair(
        prompt=(Message(role="user", content=f"my key is {secret}"),),
        chosen="ok",
        rejected=f"use {secret}",
        origin=ORIGIN,
    )
    result = judged(CleanSettings(secrets="mask"), True, record)
    assert secret not in str(result.record) and result.masks == ("SECRET", "SECRET") and result.finding is None
    found = first_finding(record, CleanSettings(secrets="drop"))
    assert found is not None and found.rule == "secrets"
    assert write_dropped(tmp_path, [Dropped(record, found), Dropped(record, Finding("repetition", 0.5))]) == 2
    first, second = map(json.loads, (tmp_path / DROPPED_ROWS).read_text().splitlines())
    assert secret not in json.dumps(first) and (first["source"], first["row"]) == ("x.jsonl", 7)
    assert (second["rule"], second["score"], second["record"]["chosen"]) == ("repetition", 0.5, "ok")


def test_quality_shows_its_parts() -> None:
    good, cut, loop = (
        quality(row("It rains often in spring.")),
        quality(row(CASES[11][1][0])),
        quality(row("and so on " * 30)),
    )
    assert good.score == 1.0
    assert cut.completeness < 1 == cut.variety == cut.substance and loop.variety < 0.3
    assert 0 <= loop.score <= cut.score < good.score
    assert quality(row("...")).score == 0
    assert rule_of(row("and so on " * 30), min_quality=0.5) == "min_quality"


def test_a_prompt_without_an_answer_is_judged_by_itself() -> None:
    prompt = Prompt(messages=(Message(role="user", content="Hello {{name}}, what the fuck?"),), origin=ORIGIN)
    assert rule_of(prompt, placeholders="drop") == "placeholders"
    assert rule_of(prompt, profanity="answers") is None and rule_of(prompt, profanity="anywhere") == "profanity"


def test_languages_are_told_with_a_probability() -> None:
    for text, code in (
        (ZH, "zh"),
        ("It is a very fine day for a walk.", "en"),
        ("東京は日本の首都です。今日はいい天気です。", "ja"),
    ):
        found = language(text)
        assert found is not None and found[0] == code and found[1] > 0.8
    assert language("Lisbon") is None


def test_a_classifier_can_be_plugged_in() -> None:
    records = [row("a bad thing"), row("a good thing"), row("fine", question="a bad question")]

    def classify(texts):
        return [0.9 if "bad" in text else 0.1 for text in texts]

    settings = HarmSettings(model="mine")
    assert [each.record for each in harmful(records, settings, classify)] == [records[0]]
    anywhere = harmful(records, settings.model_copy(update={"where": "anywhere"}), classify)
    assert [each.record for each in anywhere] == [records[0], records[2]]
    assert harmful(records, settings.model_copy(update={"threshold": 0.95}), classify) == []


def test_the_word_lists_are_there() -> None:
    """Their package is found by name; an empty list would find nothing, silently."""
    assert content.profanities("bullshit") == ["bullshit"] and content.profanities("他妈的")
