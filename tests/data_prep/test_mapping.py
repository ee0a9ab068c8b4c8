"""Fields of other names: what `map` reaches, and what it says when there is nothing there."""

import json

import pytest

from data_prep.readers import SourceSpec, read_demonstrations, read_pairs
from pipeline.errors import DataError, RecipeError

ROW = {"question": "Hi?", "answers": {"best": "Yo.", "others": ["No.", "Go."]}, "a.b": "dotted", "prompt": "unused"}


@pytest.fixture
def source(tmp_path):
    def make(fields, rows=(ROW,), **settings):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceSpec(path=str(path), map=fields, **settings)

    return make


def test_fields_are_found_by_name_inside_objects_and_in_lists(source) -> None:
    [pair] = read_pairs(
        source({"prompt": "question", "chosen": "answers.best", "rejected": "answers.others.1"})
    ).records
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("Hi?", "Yo.", "Go.")
    [record] = read_demonstrations(source({"instruction": "question", "output": "a.b"})).records
    assert [m.content for m in record.messages] == ["Hi?", "dotted"]


def test_a_field_that_is_mapped_goes_by_its_new_name_alone(source) -> None:
    """Else a swap would be impossible, and what is left behind could make the format ambiguous."""
    rows = [{"prompt": "the answer", "completion": "the question"}]
    [record] = read_demonstrations(source({"prompt": "completion", "completion": "prompt"}, rows)).records
    assert [m.content for m in record.messages] == ["the question", "the answer"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"instruction": "qestion"}, "row 1 has no field `qestion` to map instruction from; did you mean 'question'?"),
        (
            {"instruction": "question", "output": "best"},
            "did you mean 'answers.best'? it has question, answers, a.b, prompt",
        ),
        ({"instruction": "question", "output": "answers.others.7"}, "row 1 has no field `answers.others.7`"),
        ({"instruction": "question", "output": "question.text"}, "no field `question.text`"),
    ],
)
def test_a_field_that_the_rows_lack_names_those_they_have(source, fields, said) -> None:
    with pytest.raises(DataError) as caught:
        read_demonstrations(source(fields))
    assert said in str(caught.value)


def test_a_field_that_no_format_knows_names_its_neighbour(source) -> None:
    with pytest.raises(
        RecipeError, match="cannot fill 'instuction', no format has such a field, did you mean 'instruction'"
    ):
        read_demonstrations(source({"instuction": "question"}))


def test_a_later_row_without_the_field_is_a_bad_row(source) -> None:
    fields = {"instruction": "question", "output": "a.b"}
    rows = [ROW] * 150 + [{"question": "Hi?"}]
    result = read_demonstrations(source(fields, rows))
    assert (result.dropped, result.rows_kept) == ({"missing_field": 1}, 150)
    with pytest.raises(DataError, match=r"there is no field `a.b` to map output from; it has question"):
        read_demonstrations(source(fields, [ROW, {"question": "Hi?"}]))


def test_without_a_mapping_the_error_shows_how_to_write_one(source) -> None:
    with pytest.raises(
        DataError, match=r"fit no known format; say which they are with `map:` \(\{instruction: question"
    ):
        read_demonstrations(source({}, [{"question": "Hi?", "answer": "Yo."}]))
