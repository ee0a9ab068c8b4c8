"""A reference that is asked once says what one says that is asked in every step, and is not asked again."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.recipe.schema import ModelSettings
from pipeline.recipe.stage_settings import DpoSettings
from pipeline.runtime import Ranks
from pipeline.stages import dpo_kept_reference as module
from pipeline.stages.dpo_reference import REFERENCE
from tests.rollouts.ppo_parts import lively_base
from tests.stages.one_stage import run_stage
from tests.stages.short_runs import pairs

LORA = {"type": "lora", "r": 4, "alpha": 8}
SETTINGS: dict[str, Any] = {"max_steps": 6, "beta": 0.3, "learning_rate": 3e-3}
"""Of 12 pairs, four a step: two passes."""


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many rows the reference's adapter was asked about, call by call."""
    from peft import PeftModel

    found: list[int] = []
    switch = PeftModel.set_adapter

    def noted(self: Any, name: Any, *args: Any, **kwargs: Any) -> None:
        if name == REFERENCE:
            found.append(1)
        switch(self, name, *args, **kwargs)

    monkeypatch.setattr(PeftModel, "set_adapter", noted)
    return found


@pytest.fixture
def start(tiny_folder, tmp_path, monkeypatch) -> Any:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    base = lively_base(tmp_path / "base", tiny_folder, "llama")

    def run(name: str, adapter: Any = LORA, **settings: Any) -> dict[str, Any]:
        return run_stage(tmp_path / name, "dpo", base, adapter, **SETTINGS | settings)

    return run


@pytest.mark.parametrize("adapter", [LORA, {**LORA, "layers": "top-1"}, "none"])
@pytest.mark.parametrize(
    "loss", [{}, pytest.param({"loss_type": "rpo", "rpo_alpha": 0.5}), pytest.param({"loss_type": "ipo"})]
)
def test_losses_are_those_of_a_reference_asked_in_every_step(start, adapter, loss):
    every, once = (start(name, adapter, precompute_reference=name == "once", **loss) for name in ("every", "once"))
    for name in ("loss", "rewards/margins", "logps/chosen"):
        assert once[name] == pytest.approx(every[name], rel=1e-5, abs=2e-5), name
    # Before the first step a margin is 0 there and rounding here.
    assert once["rewards/accuracies"][1:] == every["rewards/accuracies"][1:]
    assert every["loss"][0] != pytest.approx(every["loss"][-1], abs=1e-3), "losses that could differ"
    assert once["metrics"]["eval_margin"] == pytest.approx(every["metrics"]["eval_margin"], abs=1e-4)


def test_it_is_asked_once_and_another_run_does_not_ask(start, asked):
    """Held-out pairs once in each; with a reference in every step that many times more."""
    first = start("first", precompute_reference=True)
    assert len(asked) == 2, "training pairs and held-out ones"
    assert "known from an earlier run" not in first["said"]
    asked.clear()
    again = start("again", precompute_reference=True)
    assert len(asked) == 1 and "log-probabilities of 12 pairs are known from an earlier run" in again["said"]
    assert again["loss"] == first["loss"]
    assert all(torch.equal(value, again["weights"][name]) for name, value in first["weights"].items())
    asked.clear()
    start("sweep", precompute_reference=True, beta=0.1)
    assert len(asked) == 1, "what does not concern the reference"
    asked.clear()
    start("every")
    assert len(asked) == 1 + 2 * 6


@pytest.mark.parametrize("change", [{"per_device_batch_size": 4}, {"precision": "bf16"}])
def test_what_its_last_bits_depend_on_asks_anew(start, asked, change):
    start("first", precompute_reference=True)
    asked.clear()
    start("other", precompute_reference=True, **change)
    assert len(asked) == 2


def test_a_damaged_file_is_as_good_as_none(start, asked, tmp_path):
    first = start("first", precompute_reference=True)
    (kept,) = (tmp_path / "cache" / "reference").glob("*.json")
    whole = json.loads(kept.read_text())
    damaged = [
        "", "{}", "[1]", json.dumps({**whole, "logps": whole["logps"][1:]}),
        json.dumps({**whole, "logps": [whole["logps"][0] - 1.0, *whole["logps"][1:]]}),
    ]  # fmt: skip
    for number, text in enumerate(damaged):
        kept.write_text(text)
        asked.clear()
        found = start(f"again{number}", precompute_reference=True)
        assert len(asked) == 2 and found["loss"] == first["loss"]
        assert json.loads(kept.read_text()) == whole


def test_control_a_wrong_value_is_seen_in_the_losses(start, monkeypatch):
    first = start("first", precompute_reference=True)
    monkeypatch.setattr(module, "_read", lambda path, count: [-1.0] * count)
    assert start("wrong", precompute_reference=True)["loss"] != pytest.approx(first["loss"], abs=1e-3)


def test_without_room_in_the_cache_a_run_goes_on(start, monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "reference").write_text("a file where the folder would be")
    assert len(start("first", precompute_reference=True)["loss"]) == 6


def test_old_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 3)
    for number in range(5):
        module._write(tmp_path / f"{number}.json", [float(number)])
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert module._read(tmp_path / "4.json", 1) == [4.0] and module._read(tmp_path / "4.json", 2) is None


def test_pairs_are_known_by_their_tokens():
    rows = pairs()[:3]
    kept = module.KeptReference()
    kept.fill(rows, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    copies = [type(row)(list(row.prompt_ids), list(row.chosen_ids), list(row.rejected_ids), False) for row in rows]
    assert kept.of([copies[2], copies[0]], torch.device("cpu")).tolist() == [[3.0, 6.0], [1.0, 4.0]]
    moved = type(rows[0])(rows[0].prompt_ids[:-1], [rows[0].prompt_ids[-1], *rows[0].chosen_ids], [1], False)
    with pytest.raises(KeyError):
        kept.of([moved], torch.device("cpu"))


def test_a_run_that_goes_on_keeps_to_what_it_was_told_first(tmp_path, monkeypatch):
    """Whatever has become of the cache meanwhile: its own checkpoint was computed against these values."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    context: Any = SimpleNamespace(
        work=tmp_path / "work", base=SimpleNamespace(fingerprint="f"), ranks=Ranks(0, 0, 1), stage="dpo",
        recipe=SimpleNamespace(model=ModelSettings(base="x"), stages={"dpo": DpoSettings()}),
        console=SimpleNamespace(say=lambda text: None),
    )  # fmt: skip
    rows = pairs()[:2]
    first = module.reference_of_rows(context, None, rows, 4, "fp32", lambda: [1.0, 2.0, 3.0, 4.0])
    (kept,) = (tmp_path / "cache" / "reference").glob("*.json")
    module._write(kept, [9.0, 9.0, 9.0, 9.0])
    again = module.reference_of_rows(context, None, rows, 4, "fp32", lambda: pytest.fail("it was asked"))
    assert again == first == [1.0, 2.0, 3.0, 4.0]
    context.work = tmp_path / "other"
    assert module.reference_of_rows(context, None, rows, 4, "fp32", list) == [9.0] * 4, "another run takes the cache's"
    context.work = tmp_path / "reordered"
    assert module.reference_of_rows(context, None, rows[::-1], 4, "fp32", lambda: [5.0] * 4) == [5.0] * 4
