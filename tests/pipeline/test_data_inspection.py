"""`trivet data inspect` and `trivet data report` as a person types them: codes, one sentence, files written."""

from __future__ import annotations

import json
import re

import pytest

from pipeline import cli

RECIPE = """\
name: looked-at
model: {base: "builtin:tiny-llama"}
data:
  sft: {sources: [{path: DATA}]}
stages:
  sft: {}
"""


@pytest.fixture
def trivet(tmp_path, tiny_folder, monkeypatch, capsys):
    """Runs a command in a folder with a recipe; gives its code, what it printed, and its complaint."""
    rows = [{"instruction": f"say {n}", "output": f"{n}"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(RECIPE.replace("DATA", "rows.jsonl"))
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code, said.out, said.err

    return command


def test_rows_as_json(trivet):
    code, out, _ = trivet("data", "inspect", "r.yaml", "--row", "2", "--rows", "3", "--json")
    found = json.loads(out)
    assert code == 0 and [row["row"] for row in found["rows"]] == [2, 3, 4]
    assert found["report"]["train_rows"] == found["train_rows"] and found["stage"] == "sft"
    _, out, _ = trivet("data", "inspect", "r.yaml", "--json", "--set", "data.chat_template=alpaca")
    other = json.loads(out)
    assert len(other["rows"]) == 3 and other["chat_template"] == "alpaca"
    assert other["rows"][1]["sequences"][0]["ids"] != found["rows"][0]["sequences"][0]["ids"]


def test_pages_and_terminal(trivet, tmp_path):
    code, out, _ = trivet("data", "inspect", "r.yaml", "--html", "rows.html")
    assert code == 0 and re.fullmatch(r"wrote rows\.html: 20 of \d+ rows of stage sft\n", out)
    assert (tmp_path / "rows.html").read_text().count('<section id="row-') == 20
    code, out, _ = trivet("data", "report", "r.yaml", "--html", "data.html")
    assert code == 0 and "<svg" in (tmp_path / "data.html").read_text()
    code, out, _ = trivet("data", "inspect", "r.yaml")
    assert code == 0 and out.count("\nrow ") == 3 and "trained" in out
    code, out, _ = trivet("data", "report", "r.yaml")
    assert code == 0 and "data.sft, used by sft" in out
    code, out, _ = trivet("data", "report", "r.yaml", "--json")
    assert json.loads(out)["sft"]["sft"]["statistics"]["tokens"]["all"] > 0
    assert not list(tmp_path.glob("runs*")), "nothing is run"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["inspect", "r.yaml", "--stage", "sftt"], 2, "did you mean 'sft'"),
        (["report", "r.yaml", "--stage", "dpo"], 2, "there is no such stage (has: sft)"),
        (["inspect", "r.yaml", "--row", "1000"], 2, "rows, numbered from 1"),
        (["inspect", "r.yaml", "--rows", "0"], 2, "--rows 0: expected at least 1"),
        (["inspect", "r.yaml", "--row", "two"], 2, "--row"),
        (["inspect", "none.yaml"], 2, "none.yaml"),
        (["inspect", "r.yaml", "--set", "data.sft.sources.0.path=gone.jsonl"], 65, "gone.jsonl"),
        (["inspect", "r.yaml", "--set", "model.base=./gone"], 69, "folder ./gone does not exist"),
        (["inspect", "r.yaml", "--html", "no/such/folder.html"], 74, "--html no/such/folder.html: cannot be written"),
        (["report", "r.yaml", "--html", "a.html", "--json"], 2, "one of the two at a time"),
        (["inspect"], 2, "recipe"),
        ([], 2, "trivet data --help"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(trivet, arguments, code, told):
    found, out, err = trivet("data", *arguments)
    assert (found, out) == (code, "") and told in err and len(err.splitlines()) == 1
