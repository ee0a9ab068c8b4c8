"""Why rows fell out, in words."""

from data_prep.reasons import drop_told, is_on_purpose, left_out_told


def test_only_what_nobody_asked_for_is_said_to_be_left_out():
    report = {
        "sources": [{"dropped": {"empty_answer": 2, "tie": 5}}, {"dropped": {"empty_answer": 1}}],
        "dropped": {"over_limit": 100, "refusals": 7, "answer_too_long": 36},
    }
    assert left_out_told(report) == (
        "; 39 left out: the answer alone does not fit in max_length (36), an answer is empty (3)"
    )
    assert left_out_told({"sources": [], "dropped": {"over_limit": 100, "duplicate": 0}}) == ""


def test_a_reason_that_is_new_is_told_as_it_is_written():
    assert drop_told("quite_new") == "quite new" and not is_on_purpose("quite_new")
