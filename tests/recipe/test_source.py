"""Reading YAML: what is a number, where each key stands, and what never gets through."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RecipeError
from pipeline.recipe.source import MAX_BYTES, parse_source, read_source

TEXT = """\
# a comment
name: demo

data:
  sft: {sources: [{path: a}, {path: b, limit: 3}]}
  preference:
    sources:
      - path: >
          folded
        limit: 7
"""


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_source(text, "r.yaml")
    return str(caught.value)


def unreadable(path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_source(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-4", 1e-4), ("1E5", 1e5), ("1.0e4", 1e4), ("2.0e-4", 2e-4), ("-3e+2", -300.0), (".5e1", 5.0),
        ("1_0e1", 100.0), ("1.", 1.0), ("17", 17), ("1_000", 1000), ("0x10", 16), ("'1e-4'", "1e-4"), ("e4", "e4"),
        ("1e", "1e"), ("1e4x", "1e4x"), ("1-4", "1-4"), ("yes", True), ("off", False), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_scalars(written, value):
    data = parse_source(f"k: {written}", "r.yaml").data
    assert data == {"k": value}
    assert type(data["k"]) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_spelling_of_a_float_is_read_as_that_float(number):
    for written in (repr(number), f"{number:.17e}", f"{number:.17g}"):
        assert parse_source(f"k: {written}", "r.yaml").data["k"] == number


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text("ab: #-'\"\n{}[],&*!?|>%@`"), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)), max_leaves=8,
))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_yaml_dumps_is_read_as_safe_load_reads_it(value):
    text = yaml.safe_dump({"k": value}).replace("&id", "id")
    assert parse_source(text, "r.yaml").data == yaml.safe_load(text)


def test_lines_of_keys_and_values():
    places = parse_source(TEXT, "r.yaml").places
    lines = {path: (mark.key_line, mark.value_line) for path, mark in places.marks.items()}
    assert lines[("name",)] == (2, 2)
    assert lines[("data", "sft", "sources", 1, "limit")] == (5, 5)
    assert lines[("data", "preference")] == (6, 7)
    assert lines[("data", "preference", "sources", 0)] == (8, 8)
    assert lines[("data", "preference", "sources", 0, "limit")] == (10, 10)
    assert places.text(("data", "sft", "sources", 1, "limit")) == "3"
    assert places.find(("data", "preference", "sources", 0, "weight")) == "r.yaml:8"


def test_duplicate_keys_name_both_lines_at_every_level():
    source = parse_source("a: 1\nb:\n  c: 1\n  d: [{x: 1, x: 2}]\n  c: 2\na: 3\n", "r.yaml")
    told = [source.places.sentence(problem) for problem in source.problems]
    assert told == [
        "r.yaml:4: b.d.0.x: this key was already given on the same line",
        "r.yaml:5: b.c: this key was already given on line 3",
        "r.yaml:6: a: this key was already given on line 1",
    ]


@pytest.mark.parametrize(
    "text", ["a: !!python/object/apply:os.system [ls]", "a: !!str 1", "a: ! b", "!!map {a: 1}", "a: !include b.yaml"]
)
def test_tags_are_refused(text):
    assert "tags are not allowed" in refused(text)


def test_a_laughing_file_is_refused_at_its_first_anchor():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    assert refused("\n".join(lines)).startswith("r.yaml:1:5: anchors and aliases")
    assert "anchors and aliases" in refused("a: *b")


def test_deep_nesting_is_refused_quickly():
    started = time.process_time()
    assert "nested deeper than" in refused("[" * 100_000)
    assert "nested deeper than" in refused("".join("\n" + " " * i + "a:" for i in range(100)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a: [1,\nb: 2", ["r.yaml:2:", "line 1"]),
        ("a: 'x", ["r.yaml:1:6", "quoted scalar"]),
        ("a:\n\t- b", ["r.yaml:2:1", "spaces, not tabs"]),
        ("a: b: c", ["r.yaml:1:5", "quote a value"]),
        ("a: 1\n b: 2", ["r.yaml:2:"]),
        ("a: 1\nb\n", ["r.yaml:", "key: value"]),
        ("a: \x07", ["r.yaml:1: ", "#x0007"]),
    ],
)
def test_a_syntax_error_has_line_and_column(text, fragments):
    message = refused(text)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize("written", ["0x_", "0b_", "2026-13-45", '"\\ud800"', '"a\\0b"', "=", "1" * 5000])
def test_a_scalar_that_cannot_be_one_is_a_problem_and_no_crash(written):
    source = parse_source(f"a: {written}", "r.yaml")
    assert [problem.path for problem in source.problems] == [("a",)]


@pytest.mark.parametrize("key", ["1", "null", "yes", "[a]", "{a: 1}", "2026-01-01", "<<"])
def test_keys_are_text(key):
    problems = parse_source(f"x:\n  ? {key}\n  : 1\n", "r.yaml").problems
    assert len(problems) == 1
    assert (problems[0].path, problems[0].line) == (("x",), 2)


def test_files_that_are_no_recipe(tmp_path):
    cases = {
        "empty.yaml": (b"", "is empty"),
        "comment.yaml": (b"# nothing\n", "is empty"),
        "list.yaml": (b"\n- a\n", "list.yaml:2: a recipe is a block of `key: value` lines, found a list"),
        "word.yaml": (b"hello", "found a single value"),
        "latin.yaml": ("name: x\nbase: caf\u00e9".encode("latin-1"), "latin.yaml:2: not UTF-8 text (byte 0xe9)"),
        "utf16.yaml": ("name: x".encode("utf-16"), "utf16.yaml:1: not UTF-8"),
        "large.yaml": (b"#" * (MAX_BYTES + 1), "larger than 1 MB"),
    }
    for name, (raw, fragment) in cases.items():
        (tmp_path / name).write_bytes(raw)
        assert fragment in unreadable(tmp_path / name), name


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes("\ufeffname: x\r\nseed: 1\r\n".encode())
    source = read_source(path)
    assert source.data == {"name": "x", "seed": 1}
    assert source.places.find(("seed",)) == f"{path}:2"


def test_a_missing_file_suggests_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "alpaca_dpo.yaml").write_text("name: x")
    monkeypatch.chdir(tmp_path)
    assert "near names: recipes/alpaca_dpo.yaml" in unreadable("recipes/alpaca_dop.yaml")
    assert "did you mean recipes/alpaca_dpo.yaml?" in unreadable("recipes/alpaca_dpo")
    for name in ("alpaca_dpo", "alpaca_dpo.yaml"):
        assert f"{name}: no such file; did you mean recipes/alpaca_dpo.yaml?" == unreadable(name)
    assert "the folder recepes does not exist" in unreadable("recepes/alpaca_dpo.yaml")
    assert unreadable("recipes").endswith("is a folder, a recipe is one file; in it: alpaca_dpo.yaml")
    assert "no such file" in unreadable("zzzzzz.yaml")


def test_special_files_and_impossible_names(tmp_path):
    assert "is not a regular file" in unreadable("/dev/null")
    assert "cannot be read" in unreadable("x" * 5000)
    assert "is not a file name" in unreadable("a\0b")
    assert "cannot be read" in unreadable(tmp_path / ("y" * 300 + ".yaml"))
