"""The benchmarks run, on a tiny model, and what they count is what was computed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import chain, compare, kept_reference, scaling, shapes, side_ours, side_ours_ppo
from benchmarks.meter import Measured, count_streaming_head, count_work
from benchmarks.rows import write_rows
from data_prep.readers import SourceSpec, read_demonstrations, read_pairs
from pipeline.models.forward import VocabularyHead, vocabulary_head
from pipeline.models.frozen_trunk import split_trunk
from pipeline.models.load import load_tokenizer
from pipeline.models.source import identify
from pipeline.models.stream_forward import attend_in_streams
from pipeline.streams import pack

H, V, INNER = 16, 40, 24
LAYER = 2 * H * H + 2 * H * (H // 2) + 3 * H * INNER
"""Entries of a layer's matrices: queries and output, keys and values of half the heads, the three of the MLP."""


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V, hidden_size=H, intermediate_size=INNER, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
        )
    )  # fmt: skip


@pytest.fixture
def heads_restored(monkeypatch) -> None:
    monkeypatch.setattr(VocabularyHead, "scores", VocabularyHead.scores)


def padded() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    return {"input_ids": torch.full((2, 5), 7), "attention_mask": mask}


def adapted(model: Any, layers: list[int] | None = None) -> Any:
    where = {"layers_to_transform": layers, "layers_pattern": "layers"} if layers else {}
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **where))


@pytest.mark.parametrize(("kind", "times"), [("frozen", 1), ("adapter", 2), ("trained", 3)])
def test_tokens_and_products_are_counted(model, kind, times):
    """Forward alone, with the way back to the activations, and with that to the weights; adapters do not count."""
    found = adapted(model) if kind == "adapter" else model.requires_grad_(kind == "trained")
    measured = Measured()
    count_work(found, measured)
    found(**padded())
    measured.settle()
    assert (measured.tokens_computed, measured.tokens_real, measured.head_rows) == (10, 8, 10)
    head = 2 if kind == "adapter" else times
    assert measured.flops == 2 * 10 * (3 * LAYER * times + V * H * head)
    measured.flops = 0.0
    with torch.no_grad():
        found(**padded())
    assert measured.flops == 2 * 10 * (3 * LAYER + V * H)


def test_sampling_counts_new_tokens_alone(model):
    measured = Measured()
    count_work(model, measured)
    model.generate(**padded(), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    measured.settle()
    assert (measured.tokens_computed, measured.tokens_real) == (10 + 2 * 2, 8 + 2 * 2)


def test_layers_that_are_skipped_do_not_count(model):
    """Below an adapter on the last layer the first two stand still in the second pass."""
    assert attend_in_streams(model) is None
    found = adapted(model.requires_grad_(False), [2])
    trunk = split_trunk(found).trunk
    assert trunk is not None
    measured = Measured()
    count_work(found, measured)
    packed = pack([[5, 6, 7], [8, 9]])
    below = trunk.below(packed)
    assert (measured.tokens_computed, measured.flops) == (5, 2 * 5 * 2 * LAYER)
    measured.flops = 0.0
    with torch.no_grad(), below.standing_in():
        trunk.trunk(input_ids=packed.ids_N[None])
    assert (measured.tokens_computed, measured.flops) == (5, 2 * 5 * LAYER)


def test_rows_of_a_head_that_is_not_called(model, heads_restored):
    measured = Measured()
    count_streaming_head(measured)
    head = vocabulary_head(model.requires_grad_(False))
    hidden = torch.randn(2, 4, H, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    head.scores(hidden, torch.zeros(2, 4, dtype=torch.long), mask_BR=mask)
    assert (measured.head_rows, measured.flops) == (3, 2 * 3 * V * H * 2)


@pytest.mark.parametrize(
    ("value_trunk", "estimator", "samples"), [("own", "gae", 1), ("policy", "gae", 2), ("own", "rloo", 2)]
)
def test_a_rollout_of_our_side(
    tiny_folder, tmp_path, monkeypatch, capsys, heads_restored, value_trunk, estimator, samples
):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([[1, 40 + n // samples, 41] for n in range(8)]))
    options = {
        "batch_size": 2, "accumulation": 2, "steps": 2, "ppo_epochs": 2, "answer": 4, "bf16": False,
        "adapter_layers": "top-1", "value_trunk": value_trunk, "advantage_estimator": estimator,
        "samples_per_prompt": samples,
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["x", str(tiny_folder), str(prompts), json.dumps(options)])
    side_ours_ppo.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["losses"]) == len(found["seconds"]) == len(found["flops_by_step"]) == 2
    assert found["rows_per_step"] == 4 and all(flops > 0 for flops in found["flops_by_step"])
    assert found["tokens_real"] >= found["tokens_computed"] > 0, "the frozen layer is skipped, and nothing is padded"


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_a_stage_of_our_side(tiny_folder, tmp_path, monkeypatch, capsys, heads_restored, stage):
    rows = tmp_path / "rows.jsonl"
    write_rows(stage, None, 4, rows)
    options = {
        "batch_size": 2, "accumulation": 1, "steps": 2, "max_length": 512, "bf16": False, "adapter_layers": "top-1",
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["x", stage, str(tiny_folder), str(rows), json.dumps(options)])
    side_ours.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["losses"]) == len(found["seconds"]) == 2 and found["tokens_computed"] > 0
    # A reward model has no logits, and the others have them of response tokens alone; DPO for policy and reference,
    # whose tokens go through the first layer once.
    readers = {"sft": 1, "dpo": 2, "reward": 0}[stage]
    assert (found["head_rows"] > 0) == (readers > 0)
    assert found["head_rows"] < readers * found["tokens_computed"] or not readers


def test_scaling_prints_a_line_for_each_point(tmp_path, monkeypatch, capsys, heads_restored):
    out = tmp_path / "out.json"
    what = ["batch", "samples", "epochs"]
    options = ["--base", "builtin:tiny-llama", "--precision", "fp32", "--most", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["x", *options, "--json", str(out), "--what", *what])
    monkeypatch.setattr(scaling, "matmul_peak", lambda bf16: 1e9)
    scaling.main()
    curves = json.loads(out.read_text())["curves"]
    assert {name: [row[name] for row in rows] for name, rows in curves.items()} == {name: [1, 2] for name in what}
    one, two = curves["batch"]
    assert (one["tokens"], two["tokens"]) == (scaling.PROMPT + scaling.ANSWER, 2 * (scaling.PROMPT + scaling.ANSWER))
    one, two = curves["samples"]
    assert two["tokens"] - one["tokens"] == scaling.ANSWER - 1, "a second answer to a prompt does not read it again"
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 * 4


def test_scaling_over_sizes_stands_on_a_model_of_each(tmp_path, monkeypatch, capsys, heads_restored):
    """Twice the layers, twice the products of the layers."""
    monkeypatch.setattr(shapes, "SHAPES", {"135m": (64, 128, 2, 2, 1), "360m": (64, 128, 4, 2, 1)})
    monkeypatch.setattr(scaling, "matmul_peak", lambda bf16: 1e9)
    out = tmp_path / "out.json"
    options = ["--what", "size", "--most", "360", "--precision", "fp32", "--repeats", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    scaling.main()
    small, large = json.loads(out.read_text())["curves"]["size"]
    assert small["tokens"] == large["tokens"] == scaling.ROWS * (scaling.PROMPT + scaling.ANSWER)
    of_layers = 2 * 2 * 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) * small["tokens"]
    assert large["flops"] - small["flops"] == of_layers


def test_a_shape_is_a_base_model_with_a_tokenizer(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(shapes.SHAPES, "1b", (64, 128, 2, 2, 1))
    monkeypatch.setattr(sys, "argv", ["x", "1b", str(tmp_path / "base")])
    shapes.main()
    assert "million parameters" in capsys.readouterr().out
    shapes.write_shape("1b", tmp_path / "again")
    first, again = (identify(str(tmp_path / name), None).fingerprint for name in ("base", "again"))
    assert first == again
    assert load_tokenizer(tmp_path / "base", "auto").chat_template


def test_a_comparison_is_a_median_of_ratios():
    def run(seconds: float) -> dict[str, Any]:
        return {
            "seconds": [9.0, seconds, seconds], "rows_per_step": 2, "peak_gib": seconds, "tokens_computed": 1,
            "tokens_real": 1, "head_rows": 1, "losses": [0.5], "flops_by_step": [5.0, 1e9, 1e9],
        }  # fmt: skip

    found = {"ours": [run(1.0), run(2.0), run(1.0)], "peer": [run(4.0), run(4.0), run(3.0)]}
    report = compare._report("sft", {}, found, 4e9)
    assert report["throughput_ratios"] == [4.0, 2.0, 3.0] and report["throughput_ratio"] == 3.0
    assert report["ours"]["flops_share"] == 0.25 and report["ours"]["rows_per_second"] == 2.0
    text = compare._text(report)
    assert "25% of the matrix-product peak" in text and "3.00 x the peer's (4.00, 2.00, 3.00)" in text
    assert isinstance(SimpleNamespace(**report).machine, str)


def test_a_sweep_with_a_kept_reference_runs_in_turns(tmp_path, monkeypatch, capsys):
    asked: list[tuple[str, float]] = []

    def run(folder: Any, arm: str, beta: float, changes: list[str]) -> float:
        asked.append((arm, beta))
        assert changes[:2] == [f"stages.dpo.beta={beta}", f"stages.dpo.precompute_reference={arm == 'once'}"]
        return 30.0 if arm == "every step" else 20.0

    monkeypatch.setattr(kept_reference, "_run", run)
    monkeypatch.setattr(sys, "argv", ["x", "--betas", "0.1", "0.2", "--json", str(tmp_path / "out.json")])
    kept_reference.main()
    assert asked == [("every step", 0.1), ("once", 0.1), ("once", 0.2), ("every step", 0.2)]
    assert json.loads((tmp_path / "out.json").read_text())["ratio"] == 1.5
    assert "1.50 times as fast; by count of passes 1.20" in capsys.readouterr().out


def test_both_programs_of_a_chain_get_the_same_rows(tmp_path):
    """In the form that each recognises: ours reads what was written for the peer."""
    chain.write_data(tmp_path, 12)
    sets = json.loads((tmp_path / "dataset_info.json").read_text())
    assert {name: entry["file_name"] for name, entry in sets.items()} == {
        "demonstrations": "demonstrations.json", "pairs": "pairs.json",
    }  # fmt: skip
    demonstrations = read_demonstrations(SourceSpec(path=str(tmp_path / "demonstrations.json"))).records
    pairs = read_pairs(SourceSpec(path=str(tmp_path / "pairs.json"))).records
    assert len(demonstrations) == len(pairs) == 12
    written = json.loads((tmp_path / "pairs.json").read_text())
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in written]
    assert set(written[0]) == {"input", *sets["pairs"]["columns"].values()}
    with pytest.raises(SystemExit, match="lower --steps"):
        chain.write_data(tmp_path, 100_000)
