"""The stage as a whole: what it leaves, that an interruption changes nothing of it, and when it refuses to go on."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import artefact, reward_function, worker
from pipeline.assignment import Assignment
from pipeline.checkpoint import newest_complete
from pipeline.console import Console
from pipeline.context import TRAIN_PROMPTS, StageContext, StageResult
from pipeline.errors import DataError, PreemptedError, RecipeError, TrivetError
from pipeline.models.roles import Roles
from pipeline.runtime import ROOT
from pipeline.stages import ppo
from pipeline.stages.ppo_setup import Bench
from pipeline.stages.ppo_state import Keeper
from pipeline.stages.ppo_update import Learner
from pipeline.tracking import read_metrics
from tests.rollouts.ppo_parts import (
    LORA,
    StopAfter,
    lively_base,
    sealed_tensors,
    stage_context,
    trained_policy,
    trained_reward,
)

TIMES = ("time/", "tok_per_s", "mem/")


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


@pytest.fixture
def start(tmp_path, llama):
    """Makes contexts: of one name, one folder."""

    def started(name: str = "stage", adapter: Any = LORA, **settings: Any) -> StageContext:
        return stage_context(tmp_path / name / "ppo", llama, adapter, **settings)

    return started


def lines(context: StageContext, split: str = "train") -> dict[int, dict[str, Any]]:
    """Figures by step, without clocks; each of them must be there once."""
    found: dict[int, dict[str, Any]] = {}
    for line in read_metrics(context.folder / "metrics.jsonl"):
        if line["split"] == split and not line["name"].startswith(TIMES):
            assert line["name"] not in found.setdefault(line["step"], {}), f"{line['name']} twice at {line['step']}"
            found[line["step"]][line["name"]] = line["value"]
    return found


def samples(context: StageContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.folder / ppo.SAMPLES).read_text().splitlines()]


def said(context: StageContext) -> str:
    return (context.folder.parent / "said.txt").read_text()


# What it leaves


@pytest.fixture(scope="module")
def done(tmp_path_factory, llama) -> tuple[StageContext, StageResult]:
    """An uninterrupted run, only to be read."""
    context = stage_context(tmp_path_factory.mktemp("done") / "ppo", llama, **RESUMED)
    return context, ppo.run(context)


RESUMED: dict[str, Any] = {"kl_target": 0.5, "kl_horizon": 20, "value_warmup": 1, "log_every": 1, "warmup_ratio": 0.3}
"""Settings with as much state as there is."""


def test_every_rollout_is_on_record_once(done):
    """Its figures are finite; those of measurements stand at the rollouts after which they were made."""
    context, result = done
    train, held_out = lines(context), lines(context, "eval")
    assert list(train) == [1, 2, 3, 4] and list(held_out) == [0, 2, 4]
    assert len({frozenset(each) for each in list(train.values())[1:]}) == 1
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for each in train.values() for v in each.values())
    assert [each["episodes"] for each in train.values()] == [8, 16, 24, 32]
    assert [each["opt_steps"] for each in train.values()] == [4, 8, 12, 16]
    figures = {"score", "kl_seq", "objective", "eos_rate", "len_mean", "rule_accuracy", "repeat_ngram"}
    assert set(held_out[0]) == figures
    for name in (
        "objective/score", "objective/score_std", "objective/score_used", "objective/kl_seq", "objective/kl_token",
        "objective/kl_k3_seq", "objective/kl_reward", "objective/rlhf_reward", "objective/sqrt_kl", "policy/loss",
        "policy/entropy", "policy/clipfrac_high", "policy/clipfrac_low", "policy/clipfrac_dual", "policy/approx_kl_k2",
        "policy/approx_kl_k3", "policy/ratio_mean", "policy/ratio_var", "policy/ratio_max",
        "policy/ratio_first_minibatch_maxdev", "policy/grad_norm", "value/loss",
        "value/clipfrac", "value/explained_var", "value/mean", "value/grad_norm",
        "returns/mean", "returns/std", "adv/mean", "adv/std", "response/len_mean", "response/len_p95",
        "response/eos_rate", "response/truncated_rate", "response/repeat_ngram", "prompt/len_mean", "kl_ctl/beta",
        "rollout/logp_diff_mean", "rollout/logp_diff_max", "rollout/ess", "lr/policy", "lr/value",
    ):  # fmt: skip
        assert name in train[2], name
    told = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
    assert [name for name in train[2] if f"`{name}`" not in told] == []
    assert {"time/rollout", "time/score", "time/train", "tok_per_s"} <= {
        line["name"] for line in read_metrics(context.folder / "metrics.jsonl") if line["step"] == 4
    }
    assert result.metrics["measured"] == [{"rollout": step, **held_out[step]} for step in (0, 2, 4)]


def test_figures_hang_together(done):
    context, result = done
    for step, each in lines(context).items():
        assert each["policy/ratio_first_minibatch_maxdev"] == 0.0
        assert each["objective/kl_reward"] == pytest.approx(-each["kl_ctl/beta"] * each["objective/kl_seq"], abs=1e-9)
        expected = each["objective/score_used"] + each["objective/kl_reward"]
        assert each["objective/rlhf_reward"] == pytest.approx(expected)
        assert each["response/truncated_rate"] == pytest.approx(1 - each["response/eos_rate"])
        tokens = each["response/len_mean"]
        assert each["objective/kl_token"] == pytest.approx(each["objective/kl_seq"] / tokens)
        assert (each["objective/kl_seq"] == 0.0) == (step <= 2), "the first rollout trained the value model alone"
    assert result.metrics["ratio_first_minibatch_maxdev"] == 0.0
    assert result.metrics["rollouts"] == 4 and result.metrics["episodes"] == 32 and result.metrics["steps"] == 16
    assert result.metrics["eval_n"] == 4 and result.metrics["stopped"] is None
    assert result.metrics["measured"][0]["kl_seq"] == 0.0


def test_the_coefficient_adapts(done):
    """Below the target it falls, by the rule and with what the rollout showed."""
    context, result = done
    train = lines(context)
    for step in (1, 2, 3):
        error = min(max(train[step]["objective/kl_seq"] / 0.5 - 1, -0.2), 0.2)
        assert train[step + 1]["kl_ctl/beta"] == pytest.approx(train[step]["kl_ctl/beta"] * (1 + error * 8 / 20))
    assert train[1]["kl_ctl/beta"] == 0.05 > train[2]["kl_ctl/beta"]
    assert result.metrics["kl_coef"] != train[4]["kl_ctl/beta"]


def test_samples_of_every_rollout_are_kept(done):
    context, _ = done
    found = samples(context)
    assert [each["rollout"] for each in found] == [rollout for rollout in (1, 2, 3, 4) for _ in range(4)]
    for each in found:
        assert each["prompt"][-1]["content"].startswith("Say") and each["tokens"] <= 5
        assert each["score"] == each["score_used"] and math.isfinite(each["kl"])
        assert abs(each["score"] + len(each["response"]) / 10) <= 0.01


def test_what_is_handed_on(done):
    context, result = done
    assert result.form == "adapter" and (context.folder / "adapter" / "tokenizer.json").is_file()
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in sealed_tensors(context.folder))
    assert len((context.folder / TRAIN_PROMPTS).read_text().split()) == 8
    assert result.data["prompts"]["train_rows"] == 8 and result.data["prompts"]["eval_rows"] == 4


def test_prompts_come_round_pass_after_pass():
    """Eight prompts in rollouts of three: each of them once before any comes again, in another order every time."""
    rows: Any = list("abcdefgh")
    found = [each for rollout in range(16) for each in ppo._picked(rows, rollout, 3, 0)]
    passes = [found[start : start + 8] for start in range(0, 48, 8)]
    assert all(sorted(each) == rows for each in passes) and len({tuple(each) for each in passes}) > 4
    assert ppo._picked(rows, 3, 3, 0) == found[9:12]
    assert len(ppo._picked(rows, 0, 40, 1)) == 40


# An interruption changes nothing


def compare(one: StageContext, other: StageContext, first: StageResult, second: StageResult) -> None:
    a, b = sealed_tensors(one.folder), sealed_tensors(other.folder)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    for split in ("train", "eval"):
        assert lines(one, split) == lines(other, split)
    assert samples(one) == samples(other)
    assert first.metrics == second.metrics


def gone_on(start: Any, adapter: Any, rollouts: int, **settings: Any) -> StageContext:
    """An uninterrupted run, which one that stopped in the middle and went on was found equal to."""
    whole = start("whole", adapter, **settings)
    result = ppo.run(whole)
    with pytest.raises(PreemptedError):
        ppo.run(start("parts", adapter, stop=StopAfter(rollouts), **settings))
    context = start("parts", adapter, **settings)
    compare(whole, context, result, ppo.run(context))
    return whole


@pytest.mark.parametrize(
    ("rollouts", "phase", "saved"),
    [(1, "learning", 1), (3, "learning", 3), (1, "sampling", 0), (3, "sampling", 2), (3, "scoring", 2)],
)
def test_stopped_and_gone_on_is_uninterrupted_bit_for_bit(done, start, rollouts, phase, saved):
    """Between rollouts, and with a rollout's answers sampled, or scored too, but not yet learnt from."""
    with pytest.raises(PreemptedError, match=rf"asked to stop; rollout {saved} of 4 is saved, run") as stopped:
        ppo.run(start(stop=StopAfter(rollouts, phase), **RESUMED))
    assert stopped.value.exit_code == 75
    context = start(**RESUMED)
    compare(done[0], context, done[1], ppo.run(context))
    assert f"going on from rollout {saved}" in said(context)


@pytest.mark.parametrize(
    ("owner", "method", "call", "saved"),
    [
        (Roles, "values", 9, 0),
        pytest.param(Keeper, "save", 1, 0, marks=pytest.mark.slow),
        (Learner, "_value_step", 13, 2),
        (Keeper, "save", 2, 2),
    ],
)
def test_broken_off_and_gone_on_is_uninterrupted_bit_for_bit(done, start, monkeypatch, owner, method, call, saved):
    """Wherever it breaks: before the first checkpoint, in the middle of a pass, between measuring and saving."""
    original, calls = getattr(owner, method), []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise OSError("the node is gone")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, failing)
    with pytest.raises(OSError, match="the node is gone"):
        ppo.run(start(**RESUMED))
    monkeypatch.undo()
    context = start(**RESUMED)
    compare(done[0], context, done[1], ppo.run(context))
    assert (f"going on from rollout {saved}" in said(context)) == bool(saved)


@pytest.mark.slow
def test_a_torn_checkpoint_is_passed_over(done, start):
    with pytest.raises(PreemptedError):
        ppo.run(start(stop=StopAfter(3), **RESUMED))
    context = start(**RESUMED)
    (context.checkpoints / "checkpoint-3" / "policy.safetensors").write_bytes(b"")
    with (context.folder / "work" / ppo.SAMPLES).open("a") as stream:
        stream.write('{"rollout": 4, "pro')
    compare(done[0], context, done[1], ppo.run(context))
    assert "checkpoint-3 was not complete when the run ended; it is left out" in said(context)


def test_finished_but_not_sealed(done, start):
    """Killed between the last checkpoint and the seal: nothing is trained again."""
    context = start(**RESUMED)
    first = ppo.run(context)
    before = lines(context)
    again = start(**RESUMED)
    compare(done[0], again, first, ppo.run(again))
    assert lines(again) == before and "going on from rollout 4" in said(again)


def test_only_the_newest_checkpoint_stays(done):
    found, passed_over = newest_complete(done[0].checkpoints)
    assert found is not None and found.name == "checkpoint-4" and passed_over == []
    assert [path.name for path in done[0].checkpoints.iterdir()] == ["checkpoint-4"]


@pytest.mark.parametrize("adapter", ["none", pytest.param({"r": 4, "type": "dora"}, marks=pytest.mark.slow)])
def test_other_forms_resume_too(start, adapter):
    """Full models with gradient checkpointing and demonstrations mixed in; DoRA."""
    settings: dict[str, Any] = {"ptx_coef": 0.1, "gradient_checkpointing": True, "episodes": 16, "learning_rate": 1e-3}
    whole = gone_on(start, adapter, 1, **settings)
    assert "policy/ptx_loss" in lines(whole)[1]


@pytest.mark.parametrize("adapter", [LORA, pytest.param("none", marks=pytest.mark.slow)])
def test_with_shared_layers_it_goes_on_bit_for_bit_too(start, adapter):
    settings: dict[str, Any] = {"value_trunk": "policy", "value_coef": 0.5, "learning_rate": 1e-3, "episodes": 24}
    whole = gone_on(start, adapter, 2, **settings)
    other = start("other", adapter, **{**settings, "value_coef": 5.0})
    ppo.run(other)
    assert lines(other)[1] != lines(whole)[1] or lines(other)[2] != lines(whole)[2], "the weight has an effect"
    assert all(each["policy/ratio_first_minibatch_maxdev"] == 0.0 for each in lines(whole).values())


RLOO: dict[str, Any] = {"advantage_estimator": "rloo", "samples_per_prompt": 2, "episodes": 24, "learning_rate": 1e-3}


@pytest.mark.parametrize("adapter", [LORA, pytest.param("none", marks=pytest.mark.slow)])
def test_without_a_value_model_it_goes_on_bit_for_bit_too(start, adapter):
    whole = gone_on(start, adapter, 2, **RLOO)
    for each in lines(whole).values():
        assert each["policy/ratio_first_minibatch_maxdev"] == 0.0
        assert not {"value/loss", "value/grad_norm", "value/clipfrac", "lr/value"} & set(each)
        assert math.isfinite(each["value/explained_var"]) and each["adv/std"] > 0
    found, _ = newest_complete(whole.checkpoints)
    assert found is not None
    assert (found / "policy.safetensors").is_file() and not (found / "value.safetensors").exists()


@pytest.mark.parametrize("estimator", ["gae", "rloo"])
def test_a_prompts_answers_are_drawn_apart_and_trained_on_together(start, monkeypatch, estimator):
    """Three answers to each of four prompts; the next rollout has the next four, and noise differs in a group."""
    asked: list[list[Any]] = []
    answer = Bench.answer

    def answered(bench: Bench, prompts: Any, *rest: Any, **more: Any) -> Any:
        found = answer(bench, prompts, *rest, **more)
        if "stop" in more:
            asked.append([(ids, episode.answer.ids) for (_, ids), episode in zip(prompts, found, strict=True)])
        return found

    layouts: list[Any] = []
    lay_out = ppo.lay_out
    monkeypatch.setattr(Bench, "answer", answered)
    monkeypatch.setattr(ppo, "lay_out", lambda *given: layouts.append(lay_out(*given)) or layouts[-1])
    context = start(
        episodes=24, rollout_batch_size=12, samples_per_prompt=3, advantage_estimator=estimator, minibatches=2,
        per_device_batch_size=3, temperature=1.5,
    )  # fmt: skip
    ppo.run(context)
    assert len(asked) == len(layouts) == 2
    passes = [rows for layout in layouts for minibatch in layout for rows in minibatch]
    assert len(passes) == 8 and all(len({row // 3 for row in rows}) == 1 for rows in passes)
    for layout, each in zip(layouts, asked, strict=True):
        assert all(len({tuple(each[row][0]) for row in rows}) == 1 for minibatch in layout for rows in minibatch)
    prompts = [[ids for ids, _ in rollout] for rollout in asked]
    for each in prompts:
        groups = [each[first : first + 3] for first in range(0, 12, 3)]
        assert all(ids == group[0] for group in groups for ids in group)
        assert len({tuple(group[0]) for group in groups}) == 4
    assert {tuple(ids) for ids in prompts[0]}.isdisjoint({tuple(ids) for ids in prompts[1]})
    answers = [[tuple(ids) for _, ids in rollout[first : first + 3]] for rollout in asked for first in range(0, 12, 3)]
    assert sum(len(set(group)) > 1 for group in answers) >= 6
    shown = [(line["rollout"], tuple(map(str, line["prompt"]))) for line in samples(context)]
    assert len(shown) == len(set(shown)) == 8, "of each rollout one answer to each of four prompts"
    for each in lines(context).values():
        assert 0 < each["objective/score_std_prompt"] < each["objective/score_std"] * 1.5
    assert "`objective/score_std_prompt`" in (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")


def test_another_seed_is_another_run(done, start):
    context = start(**RESUMED, seed=1, stop=StopAfter(1))
    with pytest.raises(PreemptedError):
        ppo.run(context)
    assert lines(context)[1]["objective/score"] != lines(done[0])[1]["objective/score"]


# Which policy is handed on


def test_the_best_on_held_out_prompts_is_handed_on(start):
    """The one from before the first step if nothing was better, bit for bit; the last where that is asked for."""
    worse = {"learning_rate": 0.03, "kl_coef": 5.0}
    chosen = ppo.run(kept := start("kept", **worse))
    final = ppo.run(last := start("last", select="last", **worse))
    assert chosen.metrics["selected_rollout"] == 0 and final.metrics["selected_rollout"] == 4
    assert chosen.metrics["score_gain"] == 0.0 == chosen.metrics["kl_to_reference"]
    assert final.metrics["kl_to_reference"] > 0.05
    assert not any(t.any() for name, t in sealed_tensors(kept.folder).items() if "lora_B" in name)
    assert any(t.any() for name, t in sealed_tensors(last.folder).items() if "lora_B" in name)
    assert lines(kept) == lines(last)


@pytest.mark.slow
def test_training_helps_where_it_can(start):
    """Shorter answers score higher; most of a gain comes within a few rollouts of a high rate."""
    context = start(episodes=160, rollout_batch_size=16, learning_rate=0.02, kl_coef=0.001, eval_every=5)
    result = ppo.run(context)
    assert result.metrics["selected_rollout"] > 0 and result.metrics["score_gain"] > 0
    scores = [each["objective/score"] for each in lines(context).values()]
    assert sum(scores[-3:]) > sum(scores[:3])


def test_without_held_out_prompts_the_last_is_handed_on(start, tmp_path):
    context = start()
    rows = [json.loads(line) | {"split": "train"} for line in (tmp_path / "stage/rows.jsonl").read_text().splitlines()]
    (tmp_path / "stage" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = ppo.run(context)
    assert result.metrics["score_gain"] is None and result.metrics["selected_rollout"] == 4
    assert lines(context, "eval") == {} and result.metrics["measured"] == []
    assert any(t.any() for name, t in sealed_tensors(context.folder).items() if "lora_B" in name)


# The budget


def test_over_the_budget_training_ends_and_the_best_within_is_kept(start):
    context = start(learning_rate=0.03, kl_max=0.2, eval_every=1)
    result = ppo.run(context)
    kept = result.metrics["selected_rollout"]
    sentence = result.metrics["stopped"]
    assert f"over kl_max 0.2: training ends, the policy after rollout {kept} is kept" in sentence
    assert sentence in said(context)
    assert result.metrics["rollouts"] < 4 and result.metrics["kl_to_reference"] <= 0.2
    over = [each["rollout"] for each in result.metrics["measured"] if each["kl_seq"] > 0.2]
    assert kept not in over
    assert list(lines(context)) == list(range(1, result.metrics["rollouts"] + 1))


def test_within_the_budget_nothing_happens(start):
    assert ppo.run(start(kl_max=50.0, episodes=8)).metrics["stopped"] is None


def test_a_budget_needs_held_out_prompts(start, tmp_path):
    """Without them nothing says which policy lies within it."""
    context = start(kl_max=1.0)
    rows = [json.loads(line) | {"split": "train"} for line in (tmp_path / "stage/rows.jsonl").read_text().splitlines()]
    (tmp_path / "stage" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"stages\.ppo\.kl_max: .* held-out prompts.*eval_fraction"):
        ppo.run(context)


# When it gives up

SHORT: dict[str, Any] = {"episodes": 24, "rollout_batch_size": 4, "minibatches": 1, "save_every": 1, "eval_every": 9}
"""Six small rollouts."""


def test_a_policy_that_broke_down_is_a_sentence(start, monkeypatch):
    """By an absurd learning rate; the checkpoint from before stays. A lower bound, as answers here are short."""
    monkeypatch.setattr(ppo, "EXPLODED", 1.0)
    context = start(learning_rate=0.3, kl_coef=0.0, save_every=1)
    with pytest.raises(TrivetError, match=r"nats per token away from the reference: the policy has broken") as raised:
        ppo.run(context)
    assert raised.value.exit_code == 1
    assert "kl_max" in str(raised.value) and "learning_rate" in str(raised.value)
    found, _ = newest_complete(context.checkpoints)
    assert found is not None and found.name == f"checkpoint-{max(lines(context))}"


def test_a_policy_that_never_ends_is_a_sentence(start):
    endless = {**SHORT, "max_new_tokens": 2, "learning_rate": 1e-6}
    with pytest.raises(TrivetError, match=r"in 5 rollouts no answer ended by itself within 2 tokens.*max_new_tokens"):
        ppo.run(start("penalised", missing_eos_penalty=1.0, **endless))
    context = start("free", missing_eos_penalty=0, **endless)
    ppo.run(context)
    assert said(context).count("ended by itself within 2 tokens") == 1


def test_nothing_but_empty_answers_is_a_sentence(start, monkeypatch):
    monkeypatch.setattr("data_prep.chat.ChatFormatter.response_text", lambda self, ids: "")
    context = start(**SHORT)
    with pytest.raises(TrivetError, match=r"in 5 rollouts every answer was empty.*reward gives for an empty answer"):
        ppo.run(context)
    assert list(lines(context)) == [1, 2, 3, 4]


def test_patience_survives_a_resume(start, monkeypatch):
    monkeypatch.setattr("data_prep.chat.ChatFormatter.response_text", lambda self, ids: "")
    with pytest.raises(PreemptedError):
        ppo.run(start(stop=StopAfter(3), **SHORT))
    context = start(**SHORT)
    with pytest.raises(TrivetError, match="every answer was empty"):
        ppo.run(context)
    assert list(lines(context)) == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_is_a_sentence(start, monkeypatch):
    monkeypatch.setattr("pipeline.rollouts.collect.whiten", lambda x, mask, moments: x * math.nan)
    context = start()
    with pytest.raises(TrivetError, match="the policy's loss became nan at optimiser step 1") as caught:
        ppo.run(context)
    said = str(caught.value)
    assert "(rollout 1, minibatch " in said and "no checkpoint is complete yet" in said
    assert "answers to the prompts of rows " in said and "rows.jsonl:" in said
    assert newest_complete(context.checkpoints)[0] is None


def test_a_failing_reward_is_a_sentence(start, tmp_path):
    """Its file is part of the stage's key, so that it must not change either."""
    context = start()
    (tmp_path / "stage" / "mine.py").write_text("def shorter(prompts, answers):\n    return 1 / 0\n")
    with pytest.raises(RecipeError, match="changed while the run was going on"):
        ppo.run(context)
    given = reward_function.find(f"{tmp_path}/stage/mine.py:shorter")
    with pytest.raises(TrivetError, match="the function raised ZeroDivisionError"):
        ppo.run(dataclasses.replace(context, reward_function=given))


def test_the_gate_comes_before_anything_is_loaded(start, llama, tmp_path, monkeypatch):
    parents = {"reward_1": trained_reward(tmp_path / "reward", llama, LORA)}
    monkeypatch.setattr(ppo, "make_roles", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(TrivetError, match="reward model reward was measured on no held-out pairs"):
        ppo.run(start(parents=parents, rewards=[{"from": "reward"}]))


def test_half_precision_is_refused(start):
    with pytest.raises(RecipeError, match=r"stages\.ppo\.precision: PPO computes in bf16 or fp32") as raised:
        ppo.run(start(precision="fp16"))
    assert raised.value.exit_code == 2


def test_no_prompt_with_a_rule_is_a_sentence(start, tmp_path):
    context = start(rewards=[{"from": "rules"}])
    rows = [json.loads(line) for line in (tmp_path / "stage" / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        del row["check"]
    (tmp_path / "stage" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"stage ppo: no prompt is left to train on \(.*no_rule 12") as raised:
        ppo.run(context)
    assert raised.value.exit_code == 65


# With everything


def test_on_earlier_stages_with_several_rewards(start, llama, tmp_path):
    """An SFT policy, a reward model, rules and a function: each score is on record, and the reference is SFT's."""
    parents = {
        "policy": trained_policy(tmp_path / "sft", llama, LORA),
        "reward_1": trained_reward(tmp_path / "reward", llama, LORA),
    }
    parents["reward_1"].manifest.metrics.update(eval_accuracy=0.9, eval_accuracy_ci95=[0.8, 0.95], eval_n=40)
    rewards = [{"from": "reward"}, {"from": "rules", "weight": 0.5}, {"from": "function", "weight": 2.0}]
    context = start(parents=parents, rewards=rewards, overlong_buffer=2, score_clip=3.0, missing_eos_penalty=0.1)
    result = ppo.run(context)
    for each in lines(context).values():
        parts = [each[f"objective/score_{name}"] for name in ("reward", "rules", "function")]
        assert each["objective/score"] == pytest.approx(parts[0] + 0.5 * parts[1] + 2.0 * parts[2])
        assert each["objective/score_used"] < each["objective/score"]
    assert lines(context)[1]["objective/kl_seq"] == 0.0
    for each in samples(context):
        assert set(each) >= {"score_reward", "score_rules", "score_function"}
    assert result.metrics["ratio_first_minibatch_maxdev"] == 0.0


def test_through_the_worker(tmp_path, llama, done):
    """Sealed, with the same weights, and nothing left of the work; stopped at first as a signal does it."""
    context = stage_context(tmp_path / "made" / "ppo", llama, **RESUMED)
    assignment = Assignment(
        stage="ppo", kind="ppo", key="0" * 64, algorithm_version=1, settings={},
        recipe=context.recipe.model_dump(mode="json", by_alias=True), folder=str(tmp_path / "store" / "ppo-0"),
        run_dir=str(tmp_path), parents={}, base=context.base, base_folder=str(llama),
        reward_function=context.reward_function,
    )  # fmt: skip
    with pytest.raises(PreemptedError):
        worker._run(assignment, StopAfter(2), Console(None))
    worker.run_here(assignment)
    found = artefact.open_artefact(tmp_path / "store" / "ppo-0")
    assert found.manifest.kind == "policy" and found.manifest.form == "adapter"
    assert found.manifest.metrics == done[1].metrics
    names = {path.name for path in found.path.iterdir() if path.name != ".lock"}
    assert names == {"adapter", "manifest.json", "metrics.jsonl", ppo.HELD_OUT, ppo.SAMPLES, TRAIN_PROMPTS}
    a, b = sealed_tensors(found.path), sealed_tensors(done[0].folder)
    assert all(torch.equal(a[name], b[name]) for name in b)
