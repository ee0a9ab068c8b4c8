"""A full GPU ends in a sentence: stage, phase, peak, and edits that the recipe takes as they are."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from pipeline import cli, worker
from pipeline import out_of_memory as module
from pipeline.out_of_memory import Memory, out_of_memory, phase
from pipeline.recipe import loads_recipe
from pipeline.recipe.engines import stage_engine
from pipeline.runtime import ROOT

TEXT = (ROOT / "recipes" / "tiny_ppo.yaml").read_text().replace("global_batch_size: 8", "global_batch_size: 24")
GIB = 1 << 30


def sentence(stage, *overrides, world_size=1, deepspeed="none", environment=None):
    recipe = loads_recipe(TEXT, "r.yaml", overrides).recipe
    engine = stage_engine(deepspeed, environment or {})
    memory = Memory(23 * GIB, 24 * GIB)
    return out_of_memory(stage, recipe, engine, world_size, "a training step", memory, environment or {})


def edits(text):
    return re.findall(r"--set (\S+?)(?:;|$)", text)


def test_it_names_stage_phase_peak_and_what_to_type():
    assert sentence("sft", world_size=2) == (
        "out of GPU memory in stage sft, during a training step: its peak was 23.0 of 24.0 GiB. Try, in this order: "
        "(1) --set stages.sft.per_device_batch_size=2; (2) --set stages.sft.gradient_checkpointing=true; "
        "(3) --set stages.sft.deepspeed=zero2"
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", "evaluation"])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("stages.sft.per_device_batch_size=3", "stages.reward.gradient_checkpointing=true"),
        ("stages.sft.per_device_batch_size=1", "stages.sft.gradient_checkpointing=true", "evaluation.batch_size=1"),
        ("model.adapter=none",),
        ("model.quantization=nf4",),
        ("stages.sft.tokens_per_device=512", "stages.reward.tokens_per_device=1", "stages.ppo.tokens_per_device=64"),
    ],
)
def test_three_edits_that_pass_the_plan_and_change_something(
    stage, world_size, overrides, tmp_path, monkeypatch, capsys
):
    """Typed as the sentence says, behind what was typed before."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world_size)}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "r.yaml").write_text(TEXT)
    tries = edits(sentence(stage, *overrides, world_size=world_size))
    assert len(tries) == 3 == len(set(tries))
    plans = [planned(capsys, *overrides)] + [planned(capsys, *overrides, edit) for edit in tries]
    assert all(code == 0 for code, _ in plans), plans
    before = loads_recipe(TEXT, "r.yaml", overrides).recipe
    assert all(loads_recipe(TEXT, "r.yaml", [*overrides, edit]).recipe != before for edit in tries)


def test_passes_that_are_bounded_in_tokens_become_smaller_in_tokens():
    first, *others = edits(sentence("sft", "stages.sft.tokens_per_device=512"))
    assert first == "stages.sft.tokens_per_device=256" and not any("batch_size" in each for each in others)


def planned(capsys, *overrides):
    typed = [part for each in overrides for part in ("--set", each)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "r.yaml", "--plan", *typed])
    captured = capsys.readouterr()
    return ended.value.code, captured.out + captured.err


def test_an_edit_that_would_be_refused_does_not_pass_the_plan(tmp_path, monkeypatch, capsys):
    """The control."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(TEXT)
    code, said = planned(capsys, "stages.sft.deepspeed=zero3", "model.quantization=nf4")
    assert code == 2 and "cannot spread a base in nf4" in said
    assert "model.quantization=nf4" not in sentence("reward", "stages.sft.deepspeed=zero3", world_size=2)


def test_what_is_on_already_is_not_proposed():
    found = edits(sentence("sft", "stages.sft.deepspeed=zero3", world_size=2, deepspeed="zero3"))
    assert not [edit for edit in found if edit.endswith(("zero2", "zero3"))]
    small = ("generation_batch_size=1", "per_device_batch_size=1", "gradient_checkpointing=true")
    for engine, offered in (("zero3", True), ("zero3_offload_cpu", False)):
        overrides = [f"stages.ppo.{each}" for each in (*small, f"deepspeed={engine}")]
        found = edits(sentence("ppo", *overrides, world_size=2, deepspeed=engine))
        assert ("stages.ppo.deepspeed=zero3_offload_cpu" in found) == offered
    launched = {"ACCELERATE_USE_DEEPSPEED": "true"}
    found = edits(sentence("sft", world_size=2, deepspeed="inherit", environment=launched))
    assert not [edit for edit in found if "deepspeed" in edit], "it would clash with the launch"


def raised(name, inner="builtins"):
    """An allocation that failed under a function of the module `name`, which called one of `inner`."""
    space = {"__name__": inner, "torch": torch}
    exec("def allocate():\n    raise torch.OutOfMemoryError('CUDA out of memory')", space)
    outer = {"__name__": name, "allocate": space["allocate"]}
    exec("def work():\n    allocate()", outer)
    try:
        outer["work"]()
    except torch.OutOfMemoryError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "inner", "said"),
    [
        ("pipeline.models.load", "transformers.modeling_utils", "loading a model"),
        ("pipeline.stages.offline", "transformers.trainer", "a training step"),
        ("pipeline.stages.offline", "torch.optim.adamw", "the optimiser's step"),
        ("pipeline.stages.sft", "evaluation.likelihood", "scoring held-out rows"),
        ("evaluation.run", "pipeline.rollouts.generate", "sampling answers"),
        ("elsewhere", "torch.nn", "its work"),
    ],
)
def test_the_phase_is_read_off_the_modules(name, inner, said):
    assert phase(raised(name, inner).__traceback__) == said


def test_the_phases_modules_exist():
    from importlib.util import find_spec

    assert all(find_spec(name) for name in module._PHASES)


def test_the_worker_says_it_and_only_then():
    recipe = loads_recipe(TEXT, "r.yaml", ()).recipe.model_dump(mode="json", by_alias=True)
    assignment = SimpleNamespace(stage="reward", recipe=recipe)
    said = worker._explained(raised("pipeline.stages.offline"), assignment)
    assert said.startswith("out of GPU memory in stage reward, during a training step") and "(3) --set" in said
    assert worker._explained(ValueError("x\ny"), assignment) == "ValueError: x"
