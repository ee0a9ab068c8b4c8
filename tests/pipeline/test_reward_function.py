"""A user's own reward: found without being run, loaded once, and every way in which it can be wrong is a sentence."""

from __future__ import annotations

import math
import re
import sys

import pytest

from pipeline import reward_function
from pipeline.errors import RecipeError, TrivetError
from pipeline.reward_function import RewardFunction, find, load
from pipeline.runtime import ROOT

PROMPTS = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
ANSWERS = ["yes", "certainly not"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory; what a test imports from it is forgotten at its end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(here, text, name="mine.py"):
    (here / name).parent.mkdir(exist_ok=True)
    (here / name).write_text(text)
    return here / name


def refused(spec) -> str:
    with pytest.raises(RecipeError) as caught:
        load(find(spec))
    return str(caught.value)


def call(function, spec="mine.py:f"):
    return reward_function.call(function, spec, PROMPTS, ANSWERS)


def wrong(function) -> str:
    with pytest.raises(TrivetError) as caught:
        call(function)
    return str(caught.value)


SHORT = "def short(prompts, answers):\n    return [-len(answer) for answer in answers]\n"


def test_by_file(here):
    path = write(here, SHORT)
    found = find("mine.py:short")
    assert (found.spec, found.file, found.name) == ("mine.py:short", str(path), "short")
    assert find(f"{path}:short").file == str(path)
    assert find(f"{path}:short").sha256 == found.sha256
    assert call(load(found)) == [-3.0, -13.0]


def test_by_module_here_or_installed(here):
    path = write(here, SHORT)
    package = write(here, SHORT.replace("-len", "len"), "pack/inner.py")
    (here / "pack" / "__init__.py").touch()
    assert find("mine:short").file == str(path)
    assert find("pack.inner:short").file == str(package)
    assert call(load(find("mine:short"))) == [-3.0, -13.0]
    assert call(load(find("pack.inner:short"))) == [3.0, 13.0]
    assert find("json.decoder:scanstring").file.endswith("decoder.py")


def test_finding_runs_nothing(here):
    write(here, "raise SystemExit('was run')\n")
    assert find("mine.py:short").sha256 == find("mine:short").sha256


def test_the_content_decides_not_the_place(here):
    first = find(f"{write(here, SHORT)}:short")
    copy = find(f"{write(here, SHORT, 'copy.py')}:short")
    other = find(f"{write(here, SHORT + '# edited')}:short")
    assert first.sha256 == copy.sha256 != other.sha256


def test_what_its_file_may_do(here):
    """Import a neighbour, define a dataclass under postponed annotations: both need the module to be a proper one."""
    write(here, "WORDS = ('yes',)\n", "words.py")
    write(
        here,
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom words import WORDS\n\n"
        "@dataclass\nclass Judge:\n    words: tuple[str, ...]\n"
        "    def __call__(self, prompts, answers):\n        return [answer in self.words for answer in answers]\n\n"
        "judge = Judge(WORDS)\n",
    )
    assert call(load(find("mine.py:judge"))) == [1.0, 0.0]


@pytest.mark.parametrize("spec", ["mine.py", "mine.py:", ":short", "mine.py:not a name", "mine.py:a.b", "", ":"])
def test_a_spec_that_is_none(here, spec):
    write(here, SHORT)
    assert refused(spec) == f"--reward {spec}: expected file.py:function or module:function"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("missing.py:f", "missing.py does not exist"),
        ("missing:f", "there is no module 'missing' here or installed; or write file.py:function"),
        ("missing.deeper:f", "there is no module 'missing.deeper'"),
        ("folder:f", "there is no module 'folder'"),
        ("folder.py:f", "folder.py does not exist"),
        ("..:f", "there is no module '..'"),
        ("sys:exit", "does not exist"),
    ],
)
def test_a_file_or_module_that_is_not_there(here, spec, said):
    (here / "folder").mkdir()
    (here / "folder.py").mkdir()
    assert said in refused(spec)
    assert refused(spec).startswith(f"--reward {spec}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", "failed with SyntaxError"),
        ("import no_such_library\n", "failed with ModuleNotFoundError: No module named 'no_such_library'"),
        ("1 / 0\n", "failed with ZeroDivisionError"),
        ("import sys; sys.exit(3)\n", "failed with SystemExit: 3"),
        ("def g(): pass\ndef _h(): pass\nx = 3\n", "has no function 'f'; it has g"),
        ("f = 3\ndef g(): pass\n", "has no function 'f'; it has g"),
        ("", "has no function 'f'; it has none"),
    ],
)
def test_a_file_that_cannot_be_used(here, text, said):
    path = write(here, text)
    assert refused("mine.py:f").startswith("--reward mine.py:f: ")
    assert str(path) in refused("mine.py:f") and said in refused("mine.py:f")


def test_a_file_that_changed_after_the_run_began(here):
    path = write(here, SHORT)
    found = find("mine.py:short")
    path.write_text(SHORT + "\n")
    with pytest.raises(RecipeError, match=r"mine.py changed while the run was going on; run the command again"):
        load(found)


def test_what_is_found_survives_the_way_to_a_worker(here):
    write(here, SHORT)
    found = find("mine.py:short")
    assert RewardFunction(spec=found.spec, file=found.file, sha256=found.sha256) == found


@pytest.mark.parametrize(
    "given",
    [[1, 0.5], (1, 0.5), iter([1, 0.5]), [True, 0.5], {1: "a", 0.5: "b"}],
    ids=lambda given: type(given).__name__,
)
def test_scores_as_any_sequence_of_numbers(given):
    scores = call(lambda prompts, answers: given)
    assert scores == [1.0, 0.5] and [type(score) for score in scores] == [float, float]


def test_scores_as_arrays():
    import numpy as np
    import torch

    for make in (np.array, torch.tensor):
        assert call(lambda prompts, answers, make=make: make([1.0, 0.5])) == [1.0, 0.5]


def test_it_is_called_with_all_prompts_and_answers():
    seen = []
    call(lambda prompts, answers: seen.append((prompts, answers)) or [0, 0])
    assert seen == [(PROMPTS, ANSWERS)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "gave None; expected a list with a number for each answer"),
        (0.5, "gave 0.5; expected a list"),
        ([1], "gave 1 scores for 2 answers"),
        ([1, 2, 3], "gave 3 scores for 2 answers"),
        ([1, math.nan], "gave nan for answer 'certainly not'; expected a finite number"),
        ([math.inf, 1], "gave inf for answer 'yes'"),
        ([1, None], "gave None for answer 'certainly not'"),
        (["1", "2"], "gave '1' for answer 'yes'"),
        ("12", "gave '1' for answer 'yes'"),
        ([1, [2]], "gave [2] for answer 'certainly not'"),
    ],
)
def test_scores_that_are_none(given, said):
    assert said in wrong(lambda prompts, answers: given)
    assert wrong(lambda prompts, answers: given).startswith("--reward mine.py:f: the function ")


def test_what_it_raises_is_named():
    assert "the function raised KeyError: 'gold'" in wrong(lambda prompts, answers: {}["gold"])
    assert "the function raised ZeroDivisionError" in wrong(lambda prompts, answers: (1 / 0 for _ in answers))
    assert "the function raised TypeError" in wrong(lambda answers: [])


def test_a_long_answer_is_cut_in_the_message():
    with pytest.raises(TrivetError) as caught:
        reward_function.call(lambda prompts, answers: [math.nan], "m.py:f", PROMPTS[:1], ["x" * 5000])
    assert len(str(caught.value)) < 300


def test_the_documented_example_is_one(here):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    spec = re.search(r"--reward (\S+)", page).group(1)
    write(here, example, spec.partition(":")[0])
    scores = reward_function.call(load(find(spec)), spec, PROMPTS, ["Please wait.", "No, no, no."])
    assert scores[0] > 0 > scores[1]
