"""`trivet data convert`: what it writes, that reading it gives the same records, and what it answers to bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.convert import choose_purpose, convert, fields_of
from data_prep.readers import SourceSpec, read_demonstrations, read_pairs, read_prompts
from data_prep.records import Demonstration, Message, Origin, PreferencePair, Prompt, ToolCall
from pipeline import cli

ORIGIN = Origin(source="", row=0)
READ = {"demonstrations": read_demonstrations, "pairs": read_pairs, "prompts": read_prompts}

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
calls = st.builds(
    ToolCall,
    name=st.sampled_from(["f", "g_2", "天气"]),
    arguments=st.dictionaries(texts, st.one_of(st.integers(), texts, st.booleans(), st.none()), max_size=3).map(
        lambda value: json.dumps(value, ensure_ascii=False)
    ),
    id=st.sampled_from(["", "call_1"]),
)
user = st.builds(lambda text: (Message(role="user", content=text),), texts)
answer = st.builds(lambda text: Message(role="assistant", content=text), texts)
called = st.builds(
    lambda text, some, told: (
        Message(role="assistant", content=text, tool_calls=tuple(some)),
        *(Message(role="tool", content=told, call_id=call.id) for call in some),
    ),
    st.one_of(st.just(""), texts), st.lists(calls, min_size=1, max_size=2), texts,
)  # fmt: skip
offered = st.lists(
    st.sampled_from(["f", "g"]).map('{{"type": "function", "function": {{"name": "{}"}}}}'.format),
    max_size=2, unique=True,
)  # fmt: skip
origins = st.builds(
    replace, st.just(ORIGIN), split=st.sampled_from([None, "train", "eval"]), family=st.sampled_from([None, "sums"])
)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[Message, ...]:
    system = draw(st.one_of(st.just(()), texts.map(lambda text: (Message(role="system", content=text),))))
    earlier = draw(st.lists(st.tuples(user, answer), max_size=1))
    turns = [*system, *(turn for asked, said in earlier for turn in (*asked, said)), *draw(user)]
    turns += draw(st.one_of(st.just(()), called))
    return (replace(turns[0], tools=tuple(draw(offered))), *turns[1:])


demonstrations = st.one_of(
    st.builds(lambda p, a, o: Demonstration(messages=(*p, a), origin=o), prompts(), answer, origins),
    st.builds(
        lambda p, c, o: Demonstration(messages=(*p, replace(c[0], call_id="")), origin=o), prompts(), called, origins
    ),
)
pairs = st.builds(
    PreferencePair,
    prompt=prompts(),
    chosen=texts.map(lambda text: f"good {text}"),
    rejected=texts.map(lambda text: f"bad {text}"),
    chosen_calls=st.lists(calls, max_size=1).map(tuple),
    origin=origins,
    margin=st.one_of(st.none(), st.floats(-5, 5)),
    fault=st.sampled_from([None, "wrong sum"]),
    label_noise=st.sampled_from([None, 0.25]),
    group=st.sampled_from([None, "g1"]),
)
asked = st.builds(
    Prompt,
    messages=prompts(),
    origin=origins,
    check=st.sampled_from([None, {"number": 3}, {"one_of": ["a", "b"]}]),
    reference=st.one_of(st.none(), texts),
)
KINDS = {"demonstrations": demonstrations, "pairs": pairs, "prompts": asked}


def same(record: Any) -> Any:
    """A record without the place it was read from."""
    return replace(record, origin=replace(record.origin, source="", row=0))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_reads_as_the_same_records(
    tmp_path_factory, kind: str, suffix: str, data: st.DataObject
) -> None:
    records = data.draw(st.lists(KINDS[kind], min_size=1, max_size=4))
    folder = tmp_path_factory.mktemp("round")
    lines = folder / "in.jsonl"
    lines.write_text("".join(json.dumps(fields_of(record)) + "\n" for record in records))
    form = {"demonstrations": "messages", "pairs": "preference", "prompts": "prompt_completion"}[kind]
    output = folder / f"out{suffix}"
    [done] = convert([SourceSpec(path=str(lines), format=form)], output, purpose=kind)
    assert (done.rows_read, done.rows_kept, done.written) == (len(records),) * 3
    for path in (lines, output):
        result = READ[kind](SourceSpec(path=str(path)))
        assert result.format == form, "recognised by itself"
        assert [same(record) for record in result.records] == records


def test_the_rows_are_trls_own_formats(tmp_path: Path) -> None:
    tool = '{"type": "function", "function": {"name": "f"}}'
    call = ToolCall(name="f", arguments='{"x": 1}')
    ask = Message(role="user", content="a", tools=(tool,))
    called_turn = Message(role="assistant", content="", tool_calls=(call,))
    assert fields_of(Demonstration(messages=(ask, called_turn), origin=ORIGIN)) == {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "",
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
        ],
        "tools": f"[{tool}]",
    }  # fmt: skip
    pair = PreferencePair(prompt=(Message(role="user", content="a"),), chosen="b", rejected="c", origin=ORIGIN)
    assert fields_of(pair) == {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }
    assert fields_of(Demonstration(messages=(Message(role="assistant", content="x"),), origin=ORIGIN)) == {"text": "x"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_are_written_while_others_are_still_to_be_read(tmp_path: Path, suffix: str) -> None:
    """A row is not kept: with 5,000 rows of 10 kB, memory grows by far less than their 50 MB."""
    import tracemalloc

    path = tmp_path / "big.jsonl"
    row = json.dumps({"instruction": "a", "output": "x" * 10_000}) + "\n"
    path.write_text(row * 5000)
    tracemalloc.start()
    convert([SourceSpec(path=str(path))], tmp_path / f"out{suffix}", purpose="demonstrations")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25_000_000
    assert len(read_demonstrations(SourceSpec(path=str(tmp_path / f"out{suffix}"))).records) == 5000


def test_what_a_source_is_best_converted_to(tmp_path: Path) -> None:
    def purpose(row: dict[str, Any]) -> str:
        (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
        return choose_purpose(SourceSpec(path=str(tmp_path / "a.jsonl")))

    assert purpose({"prompt": "a", "chosen": "b", "rejected": "c"}) == "pairs"
    assert purpose({"instruction": "a", "output": "b"}) == "demonstrations"
    assert purpose({"prompt": "a", "completion": "b", "label": True}) == "demonstrations"
    assert purpose({"turns": ["a", "b"]}) == "prompts"


# The command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRIVET_EXIT_FILE", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["data", "convert", *arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_the_command_says_what_it_recognised_and_what_became_of_the_rows(command: Any, tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "b"}, {"question": "a", "answer": ""}, {"question": "c", "answer": "d"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    mapping = ["--map", "instruction=question", "--map", "output=answer"]
    code, out, _ = command("in.jsonl", *mapping, "--output", "out.jsonl", "--quarantine", "bad.jsonl")
    assert code == 0
    assert out == (
        "in.jsonl: alpaca (the first row has the fields instruction, output); 4 rows read, 2 kept, 2 set aside "
        "(broken_json 1, empty_answer 1)\n2 demonstrations in out.jsonl\n"
    )
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert [json.loads(line)["row"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == [2, 4]
    code, out, _ = command("in.jsonl", *mapping, "--output", "out.jsonl", "--limit", "1", "--json", "--as", "prompts")
    assert json.loads(out)["sources"][0]["written"] == 1 and json.loads(out)["as"] == "prompts"
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "prompt": [{"role": "user", "content": "a"}],
        "reference": "b",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.jsonl", "--output", "o.jsonl"], 65, "missing.jsonl: no such file"),
        (["in.jsonl", "--output", "o.txt"], 65, "o.txt: expected a name that ends in .jsonl or .parquet"),
        (["in.jsonl", "--output", "no/such/o.jsonl"], 74, "o.jsonl: cannot be written"),
        (["in.jsonl", "--output", "o.jsonl", "--quarantine", "no/such/b.jsonl"], 74, "b.jsonl: cannot be written"),
        (["plain.txt", "rows.jsonl", "--output", "o.parquet"], 65, "plain text and others conversations"),
        (["rows.jsonl", "plain.txt", "--output", "o.jsonl"], 65, "plain text and others conversations"),
        (["in.jsonl", "--output", "o.jsonl", "--format", "alpca"], 2, "did you mean 'alpaca'"),
        (["in.jsonl", "--output", "o.jsonl", "--map", "output"], 2, "--map output: expected FIELD=THEIRS"),
        (["in.jsonl", "--output", "o.jsonl", "--map", "output=anser"], 65, "did you mean 'answer'?"),
        (["in.jsonl", "--output", "o.jsonl", "--limit", "0"], 2, "expected a whole number of at least 1, found '0'"),
        (["in.jsonl", "--output", "o.jsonl"], 65, "fit no known format"),
        (["in.jsonl"], 2, "--output"),
        (["broken.jsonl", "--output", "o.jsonl"], 65, "broken.jsonl:2: not valid JSON"),
    ],
)
def test_mistakes_are_sentences_and_leave_no_file(command: Any, tmp_path: Path, arguments, code, said) -> None:
    (tmp_path / "in.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "broken.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction\n')
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "plain.txt").write_text("a line\n")
    before = sorted(tmp_path.rglob("*"))
    ended, _, err = command(*arguments)
    assert ended == code and said in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
