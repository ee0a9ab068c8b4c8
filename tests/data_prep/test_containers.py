"""Files, folders, hub data sets and bundled samples -> raw rows; and what a bad file is answered with."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.readers import containers, hub
from data_prep.readers.containers import read_raw
from pipeline.errors import DataError, SourceUnreachableError

ROWS = [{"instruction": "Grüße auf 中文", "output": "你好"}, {"instruction": "b", "output": "line\nbreak"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'instruction,output\nGrüße auf 中文,你好\nb,"line\nbreak"\nc,d\n'


def _parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def _rows(path: Path) -> list[tuple[int, dict]]:
    return [(raw.row, raw.fields) for raw in read_raw(str(path))]


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("a.json", json.dumps(ROWS).encode(), [1, 2]),
        ("a.json", json.dumps({"version": "1.0", "data": ROWS}).encode(), [1, 2]),
        ("a.JSON", json.dumps(ROWS, indent=2).encode(), [1, 2]),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), [1, 2]),
        ("published_lines.json", LINES.encode(), [1, 2]),
        ("a.jsonl", LINES.encode(), [1, 2]),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.encode(), [1, 2]),
        ("a.jsonl", LINES.encode().replace(b"\n", b"\r\n\r\n"), [1, 3]),
        ("a.jsonl", LINES.rstrip("\n").encode(), [1, 2]),
        ("a.ndjson", LINES.encode(), [1, 2]),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), [1, 2]),
        ("a.csv", CSV.encode(), [2, 3, 5]),
        ("a.csv", b"\xef\xbb\xbf" + CSV.encode(), [2, 3, 5]),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0), [2, 3, 5]),
        ("a.tsv", CSV.replace(",", "\t").encode(), [2, 3, 5]),
    ],
)
def test_every_container_gives_the_same_rows(tmp_path: Path, name: str, content: bytes, numbers: list[int]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    read = _rows(path)
    assert [number for number, _ in read] == numbers
    assert [fields for _, fields in read][:2] == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet")
    assert _rows(tmp_path / "a.parquet") == [(1, ROWS[0]), (2, ROWS[1])]


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    row = {"text": "one\u2028two\u2029three\x85four"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(2 * (json.dumps(row, ensure_ascii=False) + "\n"), encoding="utf-8")
    assert _rows(tmp_path / "a.jsonl") == [(1, row)]
    assert _rows(tmp_path / "b.json") == [(1, row), (2, row)]


@pytest.mark.parametrize(("name", "good"), [("a.jsonl", '{"a": "1"}\n'), ("a.csv", "a\n1\n")])
def test_lines_are_read_one_by_one(tmp_path: Path, name: str, good: str) -> None:
    (tmp_path / name).write_bytes(good.encode() + b'"\xff\n')
    rows = read_raw(str(tmp_path / name))
    assert next(rows).fields == {"a": "1"}
    with pytest.raises(DataError):
        next(rows)


def test_a_long_cell_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1," + "x" * 300_000 + "\n")
    assert len(_rows(tmp_path / "a.csv")[0][1]["b"]) == 300_000


def test_a_folder_is_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("d.jsonl", "b.jsonl", "c.jsonl", "e.jsonl"):
        (tmp_path / name).write_text('{"n": 2}\n')
    (tmp_path / "a.json").write_text('[{"n": 1}]')
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.json").write_text("not even JSON")
    read = list(read_raw(f"{tmp_path}/"))
    assert [Path(raw.source).name for raw in read] == ["a.json", "b.jsonl", "c.jsonl", "d.jsonl", "e.jsonl"]
    assert [(raw.row, raw.fields["n"]) for raw in read] == [(1, 1), (1, 2), (1, 2), (1, 2), (1, 2)]
    assert read[0].source == f"{tmp_path}/a.json"


def _file(name: str, content: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    return build


def _folder(names: list[str]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")
        return folder

    return build


BAD: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "missing": (lambda f: _folder(["alpaca_data.json"])(f) / "alpaca_dta.json", ["no such file", "alpaca_data.json?"]),
    "missing, nothing near": (lambda f: _folder(["zz.json"])(f) / "qqq.csv", ["no such file", "holds zz.json"]),
    "missing folder": (lambda f: f / "no" / "a.json", ["no such file", "does not exist either"]),
    "empty": (_file("a.json", b""), ["a.json: the file is empty"]),
    "empty gzip": (_file("a.jsonl.gz", gzip.compress(b"")), ["the file is empty"]),
    "white space only": (_file("a.json", b" \n "), ["white space"]),
    "no rows": (_file("a.json", b"[]"), ["holds no rows"]),
    "no rows, lines": (_file("a.jsonl", b"\n\n"), ["holds no rows"]),
    "no rows, csv": (_file("a.csv", b"a,b\n"), ["holds no rows"]),
    "broken array": (_file("a.json", b'[\n {"a": 1},\n {"a" 2}\n]'), ["a.json:3:", "line 3 column 7", "correct"]),
    "cut array": (_file("a.json", b'[\n {"a": 1},\n {"a": 2},\n'), ["line 4 column 1", "ends too early"]),
    "cut string": (_file("a.json", b'[\n {"a": "xy'), ["a.json:2:", "ends too early"]),
    "deep nesting": (_file("a.json", b"[" * 200_000), ["nested too deeply"]),
    "no list": (_file("a.json", b'{"a": 1}'), ["single list", "no list"]),
    "two lists": (_file("a.json", b'{"a": [], "b": []}'), ["2 lists (a, b)"]),
    "no object": (_file("a.json", b'[{"a": 1}, 7]'), ["row 2", "found a number"]),
    "broken line": (_file("a.jsonl", b'{"a": 1}\n\n{"a": \n'), ["a.jsonl:3:", "one whole object"]),
    "list in a line": (_file("a.jsonl", b'{"a": 1}\n[1]\n'), ["a.jsonl:2:", "found a list"]),
    "array named jsonl": (_file("a.jsonl", b'[{"a": 1}]'), ["a.jsonl:1:", "end in .json"]),
    "pretty named jsonl": (_file("a.jsonl", b'{\n "a": 1\n}'), ["a.jsonl:1:", "end in .json"]),
    "lines named json": (_file("a.json", b'{"a": 1}\n{"a" 2}\n'), ["a.json:2:"]),
    "cut gzip": (_file("a.jsonl.gz", gzip.compress(LINES.encode() * 3)[:-12]), ["cut off after line", "fetch"]),
    "no gzip": (_file("a.jsonl.gz", LINES.encode()), ["is not gzip"]),
    "damaged gzip": (
        _file("a.jsonl.gz", gzip.compress(LINES.encode())[:10] + b"\xff\xff\xff\xff" * 9),
        ["a.jsonl.gz", "fetch"],
    ),
    "gzip undeclared": (_file("a.jsonl", gzip.compress(LINES.encode())), ["rename it to a.jsonl.gz"]),
    "latin-1": (
        _file("a.jsonl", b'{"a": 1}\n{"a": "caf\xe9 cr\xe8me"}\n'),
        ["a.jsonl:2:", "0xe9 at column 11 (offset 19", "iconv"],
    ),
    "latin-1 after a byte-order mark": (
        _file("a.jsonl", b'\xef\xbb\xbf{"a": "caf\xe9"}'),
        ["0xe9 at column 11 (offset 13"],
    ),
    "latin-1 is not Chinese": (_file("a.jsonl", '{"a": "décision"}'.encode("latin-1")), ["-f ENCODING"]),
    "broken UTF-8 is not Chinese": (
        _file("a.jsonl", '{"a": "由讨究"}'.encode().replace(b"\xa8\xe7", b"\xe7")),
        ["-f ENCODING"],
    ),
    "gb18030": (_file("a.jsonl", '{"a": "请解释一下"}'.encode("gb18030")), ["GB18030", "iconv -f GB18030 -t UTF-8"]),
    "gb18030 array": (_file("a.json", '[\n{"a": "请解释一下"}]'.encode("gb18030")), ["a.json:2:", "-f GB18030"]),
    "gb18030 gzip": (
        _file("a.jsonl.gz", gzip.compress('{"a": "请解释"}'.encode("gb18030"))),
        ["gunzip -c", "iconv -f GB18030"],
    ),
    "utf-16": (_file("a.json", json.dumps(ROWS).encode("utf-16")), ["UTF-16, expected UTF-8", "-f UTF-16 "]),
    "utf-16 unmarked": (_file("a.csv", CSV.encode("utf-16-le")), ["iconv -f UTF-16LE"]),
    "lfs pointer": (_file("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid x"), ["git lfs pull"]),
    "web page": (_file("a.json", b"<!DOCTYPE html><html></html>"), ["web page"]),
    "ragged": (_file("a.csv", b'a,b\n1,"x\ny"\n1,2,3\n'), ["a.csv:4:", "3 cells, expected 2 (a, b)"]),
    "short row": (_file("a.tsv", b"a\tb\n1\n"), ["a.tsv:2:", "1 cells, expected 2"]),
    "open quote": (_file("a.csv", b'a,b\n1,2\n3,"x\n4,5\n'), ["a.csv:3:", "quote"]),
    "double column": (_file("a.csv", b"a,a\n1,2\n"), ["a.csv:1:", "every column once"]),
    "semicolons": (_file("a.csv", b"a;b\n1;2\n"), ["a.csv:1:", "semicolon"]),
    "unknown suffix": (_file("a.doc", b"words"), ["'.doc'", ".jsonl"]),
    "not parquet": (_file("a.parquet", b"PAR1 no"), ["a.parquet", "Parquet"]),
    "folder without data": (_folder(["README.md"]), ["no data file"]),
    "data one level down": (_folder(["train/a.json", "test/a.json"]), ["subfolders (test, train)"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_that_names_place_and_remedy(tmp_path: Path, case: str) -> None:
    build, expected = BAD[case]
    path = build(tmp_path)
    with pytest.raises(DataError) as caught:
        list(read_raw(str(path)))
    message = str(caught.value)
    assert caught.value.exit_code == 65
    assert str(path) in message and "\n" not in message
    assert [part for part in expected if part not in message] == [], message


def test_a_cut_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: not readable as Parquet after row 0 .*fetch the file again"):
        list(read_raw(str(path)))


def test_bundled_samples_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alpaca_sample.json").write_text('[{"n": 1}]')
    (tmp_path / "preference_sample.jsonl").write_text('{"n": 2}\n')
    monkeypatch.setattr(containers, "SAMPLES", tmp_path)
    assert list(read_raw("builtin:preference_sample")) == [("builtin:preference_sample", 1, {"n": 2})]
    with pytest.raises(DataError, match=r"builtin:alpaca: .*there are alpaca_sample, preference_sample"):
        read_raw("builtin:alpaca")


# Hub data sets. No test here reaches a network: either the library's call is replaced, or it works on a cache.


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    import datasets

    made: list[tuple] = []

    def load_dataset(name: str, config: str | None = None, **options: object) -> list[dict]:
        made.append((name, config, options))
        return [{"n": 1}, {"n": 2}]

    monkeypatch.setattr(hub, "_online", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return made


@pytest.mark.parametrize("path", ["hub:owner/name#main_config", "owner/name#main_config"])
def test_hub_ids_with_and_without_prefix(calls: list[tuple], path: str) -> None:
    rows = list(read_raw(path, revision="abc", split="test"))
    assert rows == [(path, 1, {"n": 1}), (path, 2, {"n": 2})]
    assert calls == [("owner/name", "main_config", {"split": "test", "revision": "abc"})]


def test_a_local_path_comes_before_a_hub_id(
    calls: list[tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    (tmp_path / "owner/name/a.jsonl").write_text('{"n": 3}\n')
    assert list(read_raw("owner/name")) == [("owner/name/a.jsonl", 1, {"n": 3})]
    with pytest.raises(DataError, match=r"no such file.*did you mean owner/name.*hub:owner/nam$"):
        read_raw("owner/nam")
    assert calls == []


@pytest.mark.parametrize("path", ["owner/name.jsonl", "/owner/name", "./owner/name", "one/two/three"])
def test_what_is_no_hub_id_is_a_missing_file(calls: list[tuple], path: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_raw(path)
    assert calls == []


def test_a_bad_hub_id_is_refused() -> None:
    with pytest.raises(DataError, match="expected hub:owner/name"):
        read_raw("hub:name")


def _failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import datasets

    def load_dataset(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    return tmp_path


def test_not_found_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    monkeypatch.setattr(hub, "_online", lambda: True)
    _failing(monkeypatch, DatasetNotFoundError("Dataset 'o/n' doesn't exist"))
    with pytest.raises(SourceUnreachableError, match=r"not found on the hub.*`hf download o/n --repo-type dataset`"):
        list(read_raw("o/n"))


def test_no_network_and_no_cache(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *a: (_ for _ in ()).throw(OSError("no such name")))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(SourceUnreachableError) as caught:
        list(read_raw("o/n", revision="v1"))
    message = str(caught.value)
    assert caught.value.exit_code == 69
    assert "not in the cache of this machine at revision v1, and there is no network" in message
    assert "`hf download o/n --repo-type dataset --revision v1`" in message


def test_the_hub_does_not_answer(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_online", lambda: True)
    _failing(monkeypatch, ConnectionError("503 from the hub"))
    with pytest.raises(SourceUnreachableError, match=r"not in the cache.*did not answer.*503 from the hub"):
        list(read_raw("o/n"))


def test_a_split_that_does_not_exist_is_bad_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_online", lambda: True)
    _failing(monkeypatch, ValueError("Unknown split \"tset\". Should be one of ['test']."))
    with pytest.raises(DataError, match=r"split 'tset'.*Should be one of \['test'\]"):
        list(read_raw("o/n", split="tset"))


def test_what_hf_download_left_is_read_without_a_network(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    repository = empty_caches / "hub/datasets--o--n"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (repository / "refs").mkdir()
    (repository / "refs/v1").write_text("a" * 40)
    assert [raw.fields for raw in read_raw("o/n", revision="v1")] == [{"n": 1}, {"n": 2}]
    # The library would serve another version from its own cache; a pinned revision must not come from there.
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: [{"n": "of another version"}])
    with pytest.raises(SourceUnreachableError, match="at revision v2, and offline mode is on"):
        list(read_raw("o/n", revision="v2"))
