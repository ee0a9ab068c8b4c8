"""From file and command line to a frozen recipe, and back to text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, load_recipe, loads_recipe
from pipeline.recipe.foreign import is_secret, trainer_arg_problem
from pipeline.recipe.resolved import dump
from pipeline.recipe.schema import AdapterSettings
from pipeline.recipe.source import REPOSITORY
from pipeline.recipe.stage_settings import DPO_LOSSES, DpoSettings, SftSettings

SHORT = "name: demo\ndata: {sft: {sources: [{path: builtin:a}]}}\nstages: {sft: }\n"
LONG = """\
name: demo
data:
  sft: {sources: [{path: builtin:a}, {path: b.jsonl, limit: 5}]}
  preference: {sources: [{path: builtin:p}]}
stages:
  sft: {learning_rate: 1e-4}
  dpo_b01: {kind: dpo, beta: 0.1}
  dpo_b05: {kind: dpo, beta: 0.5, policy: sft, deepspeed: none}
"""


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        loads_recipe(text, "r.yaml", overrides)
    return str(caught.value)


def test_a_short_recipe_gets_the_documented_defaults(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SHORT)
    loaded = load_recipe(str(path))
    assert loaded.recipe.stages == {"sft": SftSettings()}
    assert loaded.recipe.seed == Recipe.model_fields["seed"].default
    assert loaded.recipe.model.adapter == AdapterSettings()
    assert (loaded.path, loaded.overrides, str(loaded.output_dir)) == (path, (), "runs/demo")


def test_stages_keep_their_order_and_take_their_kind_from_their_name():
    recipe = loads_recipe(LONG).recipe
    assert {name: stage.kind for name, stage in recipe.stages.items()} == {
        "sft": "sft", "dpo_b01": "dpo", "dpo_b05": "dpo",
    }  # fmt: skip
    assert isinstance(recipe.stages["dpo_b05"], DpoSettings)
    assert recipe.stages["sft"].learning_rate == 1e-4


def test_nothing_changes_after_loading():
    loaded = loads_recipe(LONG)
    with pytest.raises(ValidationError):
        loaded.recipe.seed = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.recipe = None


def test_blocks_left_empty_have_all_defaults_and_null_switches_off():
    text = SHORT + "model:\nevaluation: null\ntracking: {wandb: null}\n"
    assert loads_recipe(text).recipe == loads_recipe(SHORT).recipe
    assert loads_recipe(SHORT + "tracking: {wandb: {}}").recipe.tracking.wandb.project == "trivet"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("stages.dpo_b01.beta=5e-2", lambda r: r.stages["dpo_b01"].beta, 0.05),
        ("seed=3", lambda r: r.seed, 3),
        ("data.sft.sources.0.limit=20", lambda r: r.data.sft.sources[0].limit, 20),
        ("data.sft.sources.1.limit=null", lambda r: r.data.sft.sources[1].limit, None),
        ("data.sft.sources.2.path=c", lambda r: [s.path for s in r.data.sft.sources], ["builtin:a", "b.jsonl", "c"]),
        ("model.adapter.r=4", lambda r: r.model.adapter, AdapterSettings(r=4)),
        ("model.adapter=none", lambda r: r.model.adapter, "none"),
        ("tracking.wandb.project=p=q", lambda r: r.tracking.wandb.project, "p=q"),
        ("tracking.wandb={}", lambda r: r.tracking.wandb.project, "trivet"),
        ("evaluation.tasks=[]", lambda r: r.evaluation.tasks, ()),
        ("stages.extra={kind: sft}", lambda r: list(r.stages)[-1], "extra"),
        ("stages.dpo=", lambda r: r.stages["dpo"].kind, "dpo"),
        ("stages.sft.trainer_args.optim=sgd", lambda r: r.stages["sft"].trainer_args, {"optim": "sgd"}),
        (" seed = 4", lambda r: r.seed, 4),
        ("name='1e-4'", lambda r: r.name, "1e-4"),
    ],
)
def test_overrides(override, read, value):
    loaded = loads_recipe(LONG, overrides=[override])
    assert read(loaded.recipe) == value
    assert loaded.overrides == (override,)


def test_overrides_apply_in_order_and_whole_lists_can_be_built():
    text = "name: demo\nstages: {sft: }\n"
    changes = ["data.sft.sources.0.path=a", "data.sft.sources.1.path=b", "seed=1", "seed=2"]
    recipe = loads_recipe(text, overrides=changes).recipe
    assert [source.path for source in recipe.data.sft.sources] == ["a", "b"]
    assert recipe.seed == 2


def test_a_block_made_by_an_override_is_missing_keys_on_the_command_line():
    message = refused(SHORT, "data.preference.max_length=8")
    assert message == (
        "--set data.preference.max_length=8: data.preference.sources: is missing; "
        "expected a list with at least one entry"
    )


def test_an_override_that_corrects_the_file_is_enough():
    assert loads_recipe(SHORT + "seed: x\n", overrides=["seed=1"]).recipe.seed == 1


def test_output_dir_of_the_command_line_wins(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SHORT + "output_dir: a\n")
    assert load_recipe(path).recipe.output_dir == "a"
    assert load_recipe(path, ["output_dir=b"], output_dir="c").recipe.output_dir == "c"
    with pytest.raises(RecipeError, match=r"--output-dir : output_dir: is empty"):
        load_recipe(path, output_dir="")


def test_loading_imports_no_heavy_library_and_is_quick(tmp_path):
    (tmp_path / "r.yaml").write_text(LONG)
    heavy = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "numpy", "wandb", "deepspeed")
    code = (
        "import sys, time; started = time.process_time()\n"
        "import pipeline.recipe as r; r.load_recipe(sys.argv[1]); r.recipe_json_schema()\n"
        f"print([name for name in {heavy!r} if name in sys.modules], time.process_time() - started)"
    )
    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "r.yaml")],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        found, elapsed = done.stdout.rsplit(maxsplit=1)
        assert found == "[]"
        seconds.append(float(elapsed))
    assert min(seconds) < 1.0  # a quarter of a second on an idle machine


def test_a_large_recipe_loads_quickly():
    rows = "\n".join(f"    - {{path: file{i}.jsonl, limit: {i + 1}}}" for i in range(300))
    started = time.process_time()
    loads_recipe(f"name: demo\ndata:\n  sft:\n    sources:\n{rows}\nstages: {{sft: }}\n".replace("    -", "     -"))
    assert time.process_time() - started < 2


def test_every_shipped_recipe_loads_and_round_trips():
    folder = REPOSITORY / "recipes"
    if not folder.exists():
        pytest.skip("no recipes are shipped yet")
    files = sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")])
    loaded = [load_recipe(path) for path in files]
    assert len(loaded) == len(files) >= 1
    for each in loaded:
        assert loads_recipe(each.resolved_yaml()).recipe == each.recipe
    assert len({each.recipe.name for each in loaded}) == len(loaded), "two recipes would share a run directory"


def block(required: dict | None = None, **optional: st.SearchStrategy) -> st.SearchStrategy:
    """Return blocks with the required keys and some of the optional ones."""
    return st.fixed_dictionaries(required or {}, optional=optional)


def in_order(stages: dict) -> dict:
    return {name: stages[name] for name in ("sft", "dpo", "again") if name in stages}


TRICKY = [
    "1e-4",
    "1.0e4",
    "yes",
    "null",
    "~",
    "2026-01-31",
    "0x10",
    "=",
    "<<",
    "- a",
    "a: b",
    "#",
    "1_0",
    ".inf",
    "010",
]
NUMBERS = st.floats(1e-12, 1e6)
COUNTS = st.integers(1, 10**9)
WORDS = st.sampled_from(TRICKY) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NAMES = WORDS.filter(lambda word: not is_secret(word) and not trainer_arg_problem(word, "dpo"))
FREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=4,
)
PATHS = WORDS.filter(str.strip)
SOURCE = block({"path": PATHS}, split=WORDS, revision=st.none() | WORDS, limit=st.none() | COUNTS)
DATA = block({"sources": st.lists(SOURCE, min_size=1, max_size=2)}, eval_fraction=st.floats(0, 1, exclude_max=True))
STAGE = {
    "learning_rate": NUMBERS,
    "epochs": NUMBERS | COUNTS,
    "max_steps": st.none() | COUNTS,
    "trainer_args": st.dictionaries(NAMES, FREE, max_size=2),
}
LOSSES = st.sampled_from([loss for loss in DPO_LOSSES if loss != "exo_pair"])
STAGES = block(
    {"sft": block(**STAGE)},
    dpo=block(**STAGE, beta=NUMBERS, policy=st.sampled_from(["sft", "base"])),
    again=block({"kind": st.just("dpo")}, loss_type=LOSSES),
).map(in_order)
ADAPTERS = st.just("none") | block(alpha=NUMBERS | COUNTS, target_modules=st.lists(WORDS, max_size=3))
RECIPES = block(
    {
        "name": st.sampled_from(["a", "0", "1e-4", "2026-01-31", "on", "a.b-c_D"]),
        "data": block({"sft": DATA, "preference": DATA}),
        "stages": STAGES,
    },
    seed=st.integers(0, 2**31 - 1),
    output_dir=st.none() | PATHS,
    model=block(adapter=ADAPTERS, base=PATHS),
    tracking=block(wandb=st.none() | block(project=WORDS)),
)


@given(RECIPES)
@settings(max_examples=60, deadline=None)
def test_a_resolved_recipe_loads_to_an_equal_one(written):
    first = loads_recipe(dump(written))
    text = first.resolved_yaml()
    again = loads_recipe(text)
    assert again.recipe == first.recipe
    assert again.resolved_yaml() == text
    assert again.recipe.model_dump_json() == first.recipe.model_dump_json()
