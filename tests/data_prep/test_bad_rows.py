"""Corruption of every kind at five places of a file: reported where it is, no good row lost, all rows accounted for."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.readers import ReadResult, SourceSpec, read_demonstrations, read_pairs, write_quarantine
from pipeline.errors import DataError

ROWS = 300
POSITIONS = (1, 2, ROWS // 2, ROWS - 1, ROWS)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def line(*turns: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"messages": [*turns], **fields}, ensure_ascii=False).encode() + b"\n"


def good(number: int) -> bytes:
    return line(turn("user", f"第{number}个问题？"), turn("assistant", f"答案{number}"))


USER, ASSISTANT = turn("user", "Grüße auf 中文"), turn("assistant", "你好")
WHOLE = line(USER, ASSISTANT)
TEXT = WHOLE.decode()
COLON = TEXT.index('"role": "assistant"') + len('"role" ')
MEGABYTE = "中" * 350_000
BAD: dict[str, tuple[bytes, str, int | None, str]] = {
    # content, reason, column, what `fail` does with one such row that is not the first
    "cut UTF-8": (WHOLE.replace("文".encode(), "文".encode()[:2]), "not_utf8", TEXT.index("文") + 1, "stops"),
    "a GB18030 line": (
        WHOLE.decode().replace("Grüße auf", "请问").encode("gb18030"),
        "not_utf8",
        TEXT.index("Grüße") + 1,
        "stops",
    ),
    "broken JSON": (WHOLE.replace(b'"role": "assistant"', b'"role" "assistant"'), "broken_json", COLON + 1, "stops"),
    "half a line": (WHOLE[:35] + b"\n", "broken_json", TEXT.index('"content"') + 1, "stops"),
    "two rows on a line": (WHOLE.rstrip() + WHOLE, "broken_json", len(TEXT), "stops"),
    "no object": (b'["a", "b"]\n', "not_an_object", None, "stops"),
    "nested without end": (b'{"messages": ' + b"[" * 200_000 + b"\n", "broken_json", None, "stops"),
    "wrong type": (line(USER, turn("assistant", 7)), "wrong_type", None, "drops"),
    "nested surprise": (line(USER, turn("assistant", {"text": {"en": "x"}})), "wrong_type", None, "drops"),
    "missing field": (line(USER, {"role": "assistant"}), "missing_field", None, "drops"),
    "null field": (line(USER, turn("assistant", None)), "empty_answer", None, "drops"),
    "roles out of order": (line(USER, ASSISTANT, turn("system", "x"), ASSISTANT), "roles_out_of_order", None, "drops"),
    "two users in a row": (line(USER, USER, ASSISTANT), "roles_out_of_order", None, "drops"),
    "an assistant first": (line(ASSISTANT, USER, ASSISTANT), "roles_out_of_order", None, "drops"),
    "empty turns": (line(USER, turn("assistant", " "), USER, ASSISTANT), "empty_answer", None, "drops"),
    "no turns": (line(), "empty_prompt", None, "drops"),
    "a megabyte, broken": (line(turn("user", MEGABYTE))[:-5] + b"\n", "broken_json", None, "stops"),
}
CONTENT = ("empty_answer", "empty_prompt")
SOUND: dict[str, bytes] = {
    "a byte-order mark": b"\xef\xbb\xbf" + good(0),
    "a carriage return": good(0).replace(b"\n", b"\r\n"),
    "a megabyte": line(turn("user", MEGABYTE), ASSISTANT),
    "a blank line before": b"  \n" + good(0),
    "line separators inside": line(turn("user", "a\u2028b\u0085c"), ASSISTANT),
}


def file_with(folder: Path, content: bytes, position: int) -> Path:
    path = folder / "rows.jsonl"
    lines = [good(number) for number in range(1, ROWS + 1)]
    lines[position - 1] = content
    path.write_bytes(b"".join(lines))
    return path


def read(path: Path, policy: str = "quarantine") -> ReadResult[Any]:
    return read_demonstrations(SourceSpec(path=str(path), on_bad_row=policy))


def account(result: ReadResult[Any]) -> tuple[int, int, int, int]:
    return result.rows_read, result.rows_kept, sum(result.dropped.values()), len(result.quarantined)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_set_aside_and_every_good_one_kept(tmp_path: Path, kind: str, position: int) -> None:
    content, reason, column, _ = BAD[kind]
    path = file_with(tmp_path, content, position)
    result = read(path)
    assert account(result) == (ROWS, ROWS - 1, 0, 1)
    assert [record.origin.row for record in result.records] == [n for n in range(1, ROWS + 1) if n != position]
    [bad] = result.quarantined
    assert (bad.source, bad.row, bad.reason) == (str(path), position, reason)
    assert len(bad.detail) < 400
    if column is not None:
        assert bad.column == column
    assert result.examples == [(position, reason)]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", BAD)
def test_by_default_a_bad_row_stops_the_run_or_is_counted(tmp_path: Path, kind: str, position: int) -> None:
    content, reason, column, behaviour = BAD[kind]
    path = file_with(tmp_path, content, position)
    if behaviour == "stops" or (position == 1 and reason not in CONTENT):
        with pytest.raises(DataError) as caught:
            read(path, "fail")
        message = str(caught.value)
        assert message.startswith((f"{path}:{position}: ", f"{path}: row {position} "))
        assert len(message) < 600 and "\n" not in message
        if column is not None:
            assert f"at column {column}" in message
        return
    result = read(path, "fail")
    assert account(result) == (ROWS, ROWS - 1, 1, 0)
    assert result.examples == [(position, reason)]


@pytest.mark.parametrize("policy", ["fail", "quarantine"])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("kind", SOUND)
def test_what_only_looks_odd_is_kept(tmp_path: Path, kind: str, position: int, policy: str) -> None:
    result = read(file_with(tmp_path, SOUND[kind], position), policy)
    assert account(result) == (ROWS, ROWS, 0, 0)


@pytest.mark.parametrize("policy", ["fail", "quarantine"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.99])
def test_a_truncated_gzip_file_is_refused_whatever_the_policy(tmp_path: Path, share: float, policy: str) -> None:
    """Nobody can count the rows that are missing from it."""
    path = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(b"".join(good(number) for number in range(ROWS)))
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: the gzip stream is cut off after line \d+"):
        read(path, policy)
    path.write_bytes(whole)
    assert account(read(path, policy)) == (ROWS, ROWS, 0, 0)


@pytest.mark.parametrize("policy", ["fail", "quarantine"])
@pytest.mark.parametrize(("encoding", "said"), [("gb18030", "GB18030"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16")])
def test_a_file_in_another_encoding_is_named_whatever_the_policy(tmp_path: Path, encoding, said, policy) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(good(number) for number in range(ROWS)).decode().encode(encoding))
    with pytest.raises(DataError, match=f"{said}.*iconv -f"):
        read(path, policy)


def test_a_file_with_more_bad_rows_than_good_ones_is_another_kind_of_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good(1) * 10 + b"{\n" * 10)
    assert account(read(path)) == (20, 10, 0, 10)
    path.write_bytes(good(1) * 10 + b"{\n" * 11)
    with pytest.raises(DataError, match=rf"11 of 21 rows are bad, .*{path}:11:2: not valid JSON"):
        read(path)
    path.write_bytes(b"{\n" * 3)
    with pytest.raises(DataError, match=rf"{path}:1: not valid JSON.*another kind of file"):
        read(path)


def test_rows_before_the_first_of_a_known_format_are_set_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 3 + b"".join(good(number) for number in range(20)))
    result = read(path)
    assert account(result) == (23, 20, 0, 3) and result.format == "messages"
    assert [bad.row for bad in result.quarantined] == [1, 2, 3]
    path.write_bytes(b'{"a": 1}\n' * 120 + b"".join(good(number) for number in range(200)))
    with pytest.raises(DataError, match="row 100 has the fields a, which fit no known format"):
        read(path)


def test_csv_rows_of_another_width_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('instruction,output\na,b\n"c\nd",e,f\ng,h\n')
    result = read(path)
    assert account(result) == (3, 2, 0, 1)
    [bad] = result.quarantined
    assert (bad.row, bad.reason, bad.content) == (3, "wrong_cell_count", ["c\nd", "e", "f"])
    with pytest.raises(DataError, match=r"rows\.csv:3: the row has 3 cells"):
        read(path, "fail")


def test_elements_of_an_array_that_are_no_objects_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([json.loads(good(1)), 7, json.loads(good(2))]))
    assert [(bad.row, bad.content) for bad in read(path).quarantined] == [(2, 7)]


def test_rows_that_are_sound_but_of_no_use_are_not_called_bad(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 9 + [{"prompt": "a", "chosen": "b", "rejected": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = read_pairs(SourceSpec(path=str(path), on_bad_row="quarantine"))
    assert account(result) == (10, 9, 1, 0) and result.dropped == {"identical_pair": 1}


def test_the_quarantine_holds_what_it_takes_to_repair_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(good(1) + b'{"messages": [}\n' + line(USER, USER, ASSISTANT) + good(2) + good(3))
    result = read(path)
    write_quarantine(tmp_path / "quarantine.jsonl", result.quarantined)
    broken, order = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    assert {key: broken[key] for key in ("source", "row", "column", "reason", "content")} == {
        "source": str(path), "row": 2, "column": 15, "reason": "broken_json", "content": '{"messages": [}',
    }  # fmt: skip
    assert (order["row"], order["reason"]) == (3, "roles_out_of_order")
    assert "turn 2 is of user after a turn of user" in order["detail"]
    assert order["content"] == {"messages": [USER, USER, ASSISTANT]}
    write_quarantine(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()


SMALL = [kind for kind, (content, *_) in BAD.items() if len(content) < 1000]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["good", *SMALL]), min_size=1, max_size=12))
def test_any_mixture_of_rows_adds_up(tmp_path_factory, kinds: list[str]) -> None:
    kinds += ["good"] * (len(kinds) + 1)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"".join(good(at) if kind == "good" else BAD[kind][0] for at, kind in enumerate(kinds)))
    result = read(path)
    wrong = [(at, kind) for at, kind in enumerate(kinds, start=1) if kind != "good"]
    assert account(result) == (len(kinds), len(kinds) - len(wrong), 0, len(wrong))
    assert sorted((bad.row, bad.reason) for bad in result.quarantined) == [(at, BAD[kind][1]) for at, kind in wrong]
