"""Rows that repeat evaluation texts are found; what a set's form or ordinary words share is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.cleaning.contamination import Decontaminator, EvaluationTexts, evaluation_fingerprints
from data_prep.cleaning.evaluation_sets import KNOWN, EvaluationSet, resolve
from data_prep.records import Demonstration, Message, Origin
from pipeline.errors import DataError, SourceUnreachableError
from pipeline.recipe.cleaning_settings import DecontaminateSettings

QUESTION = (
    "A farmer keeps eleven geese in a field by the river and sells two of them every market day until only three are "
    "left, how many market days does that take?"
)
QUESTION_ZH = "河边的农夫养了十一只鹅，每逢集市卖掉两只，直到只剩下三只为止，请问一共需要多少个集市日才能卖完？"


@pytest.fixture(autouse=True)
def _no_hub_cache(monkeypatch, tmp_path):
    """What another program has downloaded on this machine plays no part."""
    import huggingface_hub

    def absent(*args, **kwargs):
        raise OSError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def row(text: str, answer: str = "Four.") -> Demonstration:
    messages = (Message(role="user", content=text), Message(role="assistant", content=answer))
    return Demonstration(messages=messages, origin=Origin(source="x", row=1))


def settings(path: Path, **more) -> DecontaminateSettings:
    return DecontaminateSettings(against=(str(path),), **more)


def is_found(text: str, path: Path, **more) -> bool:
    kept, _ = Decontaminator(settings(path, **more)).split([row(text)])
    return not kept


def test_long_texts_are_recognised_by_a_run_of_words(tmp_path) -> None:
    path = write(tmp_path / "test.jsonl", [{"question": QUESTION}, {"question": QUESTION_ZH}])
    assert is_found(f"Please solve: {QUESTION.upper()}", path)
    assert is_found(" ".join(QUESTION.split()[3:18]), path)
    assert is_found(f"请回答：{QUESTION_ZH[:20]}", path)
    assert not is_found(" ".join(QUESTION.split()[:12]), path)
    assert is_found(" ".join(QUESTION.split()[:12]), path, ngram=12)
    assert not is_found(
        "A farmer keeps geese and sells some of them at the market when the river is high in spring.", path
    )
    assert not is_found(QUESTION_ZH[:8], path)
    assert Decontaminator(settings(path)).split([row("Solve.", answer=QUESTION)])[0] == []


def test_short_texts_are_recognised_whole(tmp_path) -> None:
    path = write(tmp_path / "test.jsonl", [{"question": "What is the capital of France?"}, {"question": "What is it?"}])
    assert is_found("Tell me: what is the capital of France", path)
    assert not is_found("What is the capital of Spain?", path) and not is_found("What is it?", path)


def test_the_form_of_a_set_is_no_evidence(tmp_path) -> None:
    form = "Choose the best answer to the following question and give only the letter of the option"
    path = write(tmp_path / "test.jsonl", [{"question": f"{form}: {n} geese {n}"} for n in range(6)])
    assert not is_found(form, path)
    assert is_found(form, write(tmp_path / "few.jsonl", [{"question": f"{form}: geese"}]))


def test_known_sets_are_taken_from_a_folder(tmp_path) -> None:
    write(tmp_path / "gsm8k" / "test.jsonl", [{"question": QUESTION, "answer": "4", "id": QUESTION_ZH}])
    write(tmp_path / "gsm8k" / "train.jsonl", [{"question": "How many eggs does a hen lay in a week of summer?"}])
    asked = DecontaminateSettings(against=("standard",), folder=str(tmp_path))
    found, absent = resolve(asked)
    assert [each.name for each in found] == ["gsm8k"] and set(absent) == set(KNOWN) - {"gsm8k"}
    decontaminator = Decontaminator(asked)
    kept, dropped = decontaminator.split(
        [row(QUESTION), row("How many eggs does a hen lay in a week of summer?"), row(QUESTION_ZH)]
    )
    assert len(kept) == 2 and dropped[0].finding.detail.startswith("gsm8k test.jsonl row 1: ")
    report = decontaminator.report()
    assert report["sets"] == {"gsm8k": {"texts": 1, "rows_dropped": 1}} and "mmlu" in report["not_on_this_machine"]


def test_what_is_missing_is_said_with_the_way_to_get_it(tmp_path) -> None:
    with pytest.raises(SourceUnreachableError, match="hf download openai/gsm8k --repo-type dataset"):
        resolve(DecontaminateSettings(against=("gsm8k",)))
    with pytest.raises(DataError, match="gsmk8 is neither a file nor a known set; known are standard, gsm8k"):
        resolve(DecontaminateSettings(against=("gsmk8",)))
    with pytest.raises(DataError, match="no such file or folder"):
        resolve(DecontaminateSettings(against=(str(tmp_path / "absent.jsonl"),)))
    with pytest.raises(DataError, match="is no folder"):
        resolve(DecontaminateSettings(folder=str(tmp_path / "absent")))


def test_content_counts_and_not_the_place(tmp_path) -> None:
    one = write(tmp_path / "a" / "test.jsonl", [{"question": QUESTION}])
    same = write(tmp_path / "b" / "other.jsonl", [{"question": QUESTION}])
    assert evaluation_fingerprints(settings(one)) == evaluation_fingerprints(settings(same))
    before = evaluation_fingerprints(settings(one))
    write(one, [{"question": QUESTION_ZH}])
    assert evaluation_fingerprints(settings(one)) != before
    assert is_found(QUESTION_ZH, one) and not is_found(QUESTION, one), (
        "what was read before is not used for a changed file"
    )


def test_tables_with_a_nameless_column_are_read(tmp_path) -> None:
    path = tmp_path / "cmmlu" / "test" / "x.csv"
    path.parent.mkdir(parents=True)
    path.write_text(f",Question,A,B,C,D,Answer\n0,{QUESTION_ZH},1,2,3,4,D\n", encoding="utf-8-sig")
    found, _ = resolve(DecontaminateSettings(against=("cmmlu",), folder=str(tmp_path)))
    assert [text for _, text in found[0].texts()] == [QUESTION_ZH]


def test_files_without_a_header_line_are_read_whole(tmp_path) -> None:
    path = tmp_path / "mmlu" / "test" / "x_test.csv"
    path.parent.mkdir(parents=True)
    path.write_text(f'"{QUESTION}",1,2,3,4,D\n"{QUESTION_ZH}",1,2,3,4,A\n', encoding="utf-8")
    found, _ = resolve(DecontaminateSettings(against=("mmlu",), folder=str(tmp_path)))
    assert EvaluationTexts(found, 13).counts == {"mmlu": 2}


def test_a_set_of_ones_own_is_read_by_its_fields(tmp_path) -> None:
    path = write(tmp_path / "own.jsonl", [{"turns": [QUESTION, QUESTION_ZH], "id": "a b c d e f g h i j k l m n"}])
    own = EvaluationSet(str(path), (path,), None)
    assert [text for _, text in own.texts()] == [QUESTION, QUESTION_ZH]
    odd = write(tmp_path / "odd.jsonl", [{"stem": QUESTION, "n": 4}])
    assert [text for _, text in EvaluationSet("odd", (odd,), None).texts()] == [QUESTION]
