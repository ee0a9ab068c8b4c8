"""Rules against a table of right and wrong answers; the wrong ones include what a lazy or a sly model would say."""

import pytest

from data_prep.checks import passes, validate
from pipeline.errors import DataError

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

RIGHT = [
    ({"exact": "Good morning."}, "good  morning"),
    ({"exact": ["Thanks a lot.", "Many thanks."]}, "“Many thanks!”"),
    ({"exact": "早上好。"}, "早上好！"),
    ({"one_of": ["Paris"]}, "Paris"),
    ({"one_of": ["Paris"]}, "Sure, the answer is Paris."),
    ({"one_of": ["星期二", "周二"]}, "是星期二。"),
    ({"label": "positive", "labels": ["positive", "negative"]}, "Positive."),
    ({"label": "positive", "labels": ["positive", "negative"]}, "This review is positive."),
    ({"label": "negative", "labels": ["positive", "negative"]}, "**Negative**"),
    ({"label": "正面", "labels": ["正面", "负面"]}, "这条评价是正面的。"),
    ({"label": "Friday", "labels": WEEKDAYS}, "It will be a Friday"),
    ({"contains_all": ["Canberra", ["capital", "seat"]]}, "No, the CAPITAL is Canberra."),
    ({"contains_none": ["art"]}, "Let us start."),
    ({"number": 42}, "42"),
    ({"number": 42}, "The answer is 42."),
    ({"number": 42}, "forty-two"),
    ({"number": 42, "given": [17, 25]}, "17 plus 25 is 42."),
    ({"number": 42}, "17 + 25 = 42"),
    ({"number": 42}, "It is 42, not 41."),
    ({"number": 1200}, "That makes 1,200 metres."),
    ({"number": 7.5}, "7.50"),
    ({"number": -3}, "-3 degrees"),
    ({"number": 42}, "答案是四十二。"),
    ({"number": 12}, "一共有12个。"),
    ({"date": "2024-03-05"}, "5 March 2024"),
    ({"date": "2024-03-05"}, "It is March 5th."),
    ({"date": "2024-03-05"}, "2024-03-05"),
    ({"date": "2024-03-05"}, "是2024年3月5日。"),
    ({"date": "2025-01-02", "given": ["2024-12-28"]}, "5 days after 28 December 2024 is 2 January 2025."),
    ({"json": {"name": "Mia", "age": 34}}, '{"age": 34, "name": "Mia"}'),
    ({"json": {"name": "Mia", "age": 34}}, '```json\n{"Name": "mia", "age": "34"}\n```'),
    ({"json": [1, {"a": None}]}, '[1, {"a": null}]'),
    ({"items": ["3", "9", "12"]}, "3, 9, 12"),
    ({"items": ["3", "9", "12"]}, "[3, 9, 12]"),
    ({"items": ["3", "9", "12"]}, "Sorted: 3, 9 and 12."),
    ({"items": ["3", "9", "12"]}, "1. 3\n2. 9\n3. 12"),
    ({"items": ["3", "9", "12"]}, "3、9、12。"),
    ({"items": ["3", "9", "12"]}, "结果：3,9,12"),
    ({"items": ["3", "9", "12"]}, "3 9 12"),
    ({"items": ["apple"]}, "Apple."),
    ({"bullets": ["tea", "rice"]}, "- Tea\n- Rice"),
    ({"bullets": ["tea", "rice"]}, "* tea\n\n* rice\n"),
    ({"bullets": ["tea", "rice"]}, "1. tea\n2. rice"),
    ({"max_words": 3}, "one two three"),
    ({"min_words": 3}, "one two three"),
    ({"max_chars": 5}, "今天 很好。"),
    ({"min_chars": 5}, "今天很好。"),
    ({"max_sentences": 1}, "It costs 3.50 euros on 5 May at 10:00."),
    ({"max_sentences": 2}, "好。走吧！"),
    ({"language": "en"}, "How are you?"),
    ({"language": "zh"}, "我会用Python写代码。"),
    ({"case": "upper"}, "TEA AT 5!"),
    ({"refuses": True}, "I'm sorry, but I can't help with that."),
    ({"refuses": True}, "I won't assist with forging documents. I can help you write to your boss instead."),
    ({"refuses": True}, "抱歉，我不能帮你做这件事。"),
    ({"refuses": False}, "Run kill with the process id. If you can't find it, use ps."),
    ({"admits_unknown": True}, "The note does not say what the age is."),
    ({"admits_unknown": True}, "I don't know."),
    ({"admits_unknown": True}, "便条里没有提到电话。"),
    ({"admits_unknown": False}, "The appointment is on Friday."),
    ({"agrees": False}, "No, that is not right: the capital is Canberra."),
    ({"agrees": False}, "The capital is Canberra."),
    ({"agrees": False}, "不对，应该是堪培拉。"),
    ({"agrees": True}, "Yes, the capital is Canberra."),
    ({"agrees": True}, "没错，首都是堪培拉。"),
    ({"grounded": "Mia travels to Rome. It takes 3 days."}, "In Rome, Mia stays for 3 days."),
    ({"regex": r"\.sort\("}, "values.sort()"),
]

WRONG = [
    ({"exact": "Good morning."}, "Good morning, my friend."),
    ({"one_of": ["Paris"]}, "London"),
    ({"one_of": ["Paris"]}, "Paris or London"),
    ({"one_of": ["Paris"]}, "Paris, London, Rome, Madrid"),
    ({"one_of": ["Paris"]}, "It is not Paris."),
    ({"one_of": ["Paris"]}, "Maybe Paris, maybe London."),
    ({"one_of": ["Paris"]}, "- London\n- Paris"),
    ({"one_of": ["Paris"]}, "Parisian"),
    (
        {"one_of": ["Paris"]},
        "Paris. It is worth mentioning that many people have long had strong feelings about this city.",
    ),
    ({"label": "positive", "labels": ["positive", "negative"]}, "negative"),
    ({"label": "positive", "labels": ["positive", "negative"]}, "positive or negative"),
    ({"label": "positive", "labels": ["positive", "negative"]}, "It is not positive."),
    ({"label": "正面", "labels": ["正面", "负面"]}, "不是正面的。"),
    ({"label": "Friday", "labels": WEEKDAYS}, ", ".join(WEEKDAYS)),
    ({"contains_all": ["Canberra", ["capital", "seat"]]}, "Canberra is a city."),
    ({"contains_none": ["rumour"]}, "Spread a rumour."),
    ({"number": 42}, "41"),
    ({"number": 42}, "It is 41 or 42."),
    ({"number": 42}, ", ".join(map(str, range(30, 50)))),
    ({"number": 42}, "142"),
    ({"number": 42}, "4.2"),
    ({"number": 42}, "It is not 42."),
    ({"number": 42, "given": [17, 25]}, "17 plus 25 is 43."),
    ({"number": 42, "given": [17, 25]}, "17 and 25"),
    ({"number": 42}, "No idea."),
    ({"date": "2024-03-05"}, "6 March 2024"),
    ({"date": "2024-03-05"}, "5 March 2025"),
    ({"date": "2024-03-05"}, "5 March or 6 March 2024"),
    ({"date": "2024-03-05"}, "2024-05-03"),
    ({"json": {"name": "Mia"}}, 'Here you are: {"name": "Mia"}'),
    ({"json": {"name": "Mia"}}, "name: Mia"),
    ({"json": {"name": "Mia"}}, '{"name": "Mia", "age": 3}'),
    ({"json": {"name": "Mia"}}, '{"name": "Mi'),
    ({"json": {"ok": True}}, '{"ok": 1}'),
    ({"items": ["3", "9", "12"]}, "3, 12, 9"),
    ({"items": ["3", "9", "12"]}, "3, 9"),
    ({"items": ["3", "9", "12"]}, "3, 9, 12, 15"),
    ({"items": ["3", "9", "12"]}, "First comes 3, then 9 and the last is 12"),
    ({"items": ["3", "9", "12"]}, "3, 9, 12. There are many ways to sort."),
    ({"bullets": ["tea", "rice"]}, "tea, rice"),
    ({"bullets": ["tea", "rice"]}, "Here is the list:\n- tea\n- rice"),
    ({"max_words": 3}, "one two three four"),
    ({"min_words": 3}, "one two"),
    ({"max_chars": 4}, "今天很好。"),
    ({"min_chars": 6}, "今天很好。"),
    ({"max_sentences": 1}, "It is late. Go home."),
    ({"max_sentences": 1}, "时间不早了。回家吧。"),
    ({"language": "en"}, "你好吗？"),
    ({"language": "zh"}, "I am fine, 谢谢."),
    ({"language": "en"}, "42"),
    ({"case": "upper"}, "Tea at 5!"),
    ({"refuses": True}, "Sure, happy to help."),
    ({"refuses": True}, "I can't help with that, but here's how others do it."),
    ({"refuses": False}, "I'm not able to help with killing processes."),
    ({"refuses": False}, "很抱歉，这件事我帮不了你。"),
    ({"admits_unknown": True}, "Her number is 555 0142."),
    ({"admits_unknown": False}, "The day is not given in the note."),
    ({"agrees": False}, "Yes, you are absolutely right."),
    ({"agrees": False}, "Canberra, but you are right, it is Sydney."),
    ({"agrees": False}, "你说得对，是悉尼。"),
    ({"agrees": True}, "Actually, it is Sydney."),
    ({"agrees": True}, "不对，是悉尼。"),
    ({"grounded": "Mia travels to Rome."}, "Mia travels to Rome with Aunt Bertha."),
    ({"grounded": "Mia travels to Rome."}, "Mia travels to Rome for 3 days."),
    ({"regex": r"\.sort\("}, "sorted(values)"),
    ({"max_words": 9}, "   \n"),
]

MALFORMED = [
    ({}, "no rule"),
    ({"given": [1]}, "no rule"),
    ({"nmber": 3}, "unknown rule 'nmber'"),
    ({"number": "3"}, "number must be a number"),
    ({"number": True}, "number must be a number"),
    ({"number": 3, "given": ["2024-01-01"]}, "`given`"),
    ({"exact": "x", "given": [1]}, "`given`"),
    ({"date": "5 March"}, "date must be a date"),
    ({"one_of": "Paris"}, "one_of must be a list"),
    ({"one_of": []}, "one_of must be a list"),
    ({"contains_all": [["a"], []]}, "contains_all must be"),
    ({"label": "x"}, "go together"),
    ({"label": "x", "labels": ["y", "z"]}, "go together"),
    ({"max_words": 0}, "max_words must be a positive count"),
    ({"language": "fr"}, "language must be"),
    ({"refuses": "yes"}, "refuses must be true or false"),
    ({"regex": "("}, "regex must be a regular expression"),
    ("number", "expected an object"),
]


@pytest.mark.parametrize(("check", "response"), RIGHT)
def test_a_right_answer_passes(check, response):
    assert passes(check, response)


@pytest.mark.parametrize(("check", "response"), WRONG)
def test_a_wrong_answer_fails(check, response):
    assert not passes(check, response)


@pytest.mark.parametrize(("check", "complaint"), MALFORMED)
def test_a_malformed_check_is_named(check, complaint):
    with pytest.raises(DataError, match="check") as raised:
        validate(check)
    assert complaint in str(raised.value)
    with pytest.raises(DataError):
        passes(check, "anything")


def test_all_rules_of_a_check_must_hold():
    check = {"number": 42, "max_words": 5, "language": "en"}
    assert passes(check, "The answer is 42.")
    assert not passes(check, "The answer to your interesting question is 42.")
    assert not passes(check, "答案是42。")


def test_every_rule_is_tried_both_ways():
    from data_prep.checks import _RULES

    for table in (RIGHT, WRONG):
        assert set(_RULES) == {key for check, _ in table for key in check if key in _RULES}


def test_every_rule_is_documented():
    from data_prep import checks

    documented = {key for key in checks._SHAPES if f"`{key}`" in (checks.__doc__ or "")}
    assert documented == set(checks._SHAPES)
