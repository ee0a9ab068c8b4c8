"""A reward model that DPO watches: what it measures, that it changes nothing, which policy is kept, where it ends."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.overoptimisation import Turn
from pipeline import checkpoint
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import DataError, PreemptedError, RecipeError
from pipeline.models.source import identify
from pipeline.plan import make_nodes
from pipeline.recipe import loads_recipe
from pipeline.recipe.engines import check_engines
from pipeline.recipe.lineage import heldout_reward, reward_sources
from pipeline.recipe.schema import Recipe
from pipeline.runtime import StopRequest, seed_everything
from pipeline.stages import dpo, dpo_watch
from pipeline.stages.dpo_watch import FIGURES, Look, turn_so_far
from pipeline.stages.held_out_rows import HELD_OUT
from pipeline.tracking import Tracker
from tests.evaluation.test_overoptimisation import clean
from tests.rollouts.ppo_parts import ALONE, BASE, LORA, lively_base, sealed_tensors, trained_reward

WATCH = {"watch": "judge", "eval_every": 2, "eval_prompts": 4, "max_new_tokens": 5}
STEPS = 6


@pytest.fixture(scope="module")
def llama(tiny_folder, tmp_path_factory) -> Path:
    return lively_base(tmp_path_factory.mktemp("llama"), tiny_folder)


@pytest.fixture(scope="module")
def judges(llama, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("judges")
    return {
        str(adapter): trained_reward(folder / str(index), llama, adapter)
        for index, adapter in enumerate([LORA, "none"])
    }


def write_pairs(path: Path, held_out: bool = True) -> None:
    """Pairs whose prompts are answered too; every third one is held out."""
    draw = random.Random(0)
    words = lambda: " ".join(draw.choice("abcdefgh") * draw.randint(1, 4) for _ in range(draw.randint(1, 4)))  # noqa: E731
    rows = [
        {
            "prompt": f"Say {n}.", "chosen": words(), "rejected": words() + "!", "check": {"max_chars": 6},
            "split": "eval" if held_out and n % 3 == 2 else "train",
        }
        for n in range(24)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def start(tmp_path, llama, judges):
    def started(
        name: str, adapter: Any = LORA, stop: Any = None, held_out: bool = True, **settings: Any
    ) -> StageContext:
        folder, rows = tmp_path / name / "dpo", tmp_path / f"rows-{held_out}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        write_pairs(rows, held_out)
        data = {"sources": [{"path": str(rows)}], **({} if held_out else {"eval_fraction": 0})}
        recipe = Recipe.model_validate({
            "name": "x",
            "model": {"base": BASE, "adapter": adapter},
            "data": {"preference": data},
            "stages": {
                "judge": {"kind": "reward"},
                "dpo": {
                    "kind": "dpo", "max_steps": STEPS, "global_batch_size": 4, "per_device_batch_size": 2,
                    "learning_rate": 2e-2, "precision": "fp32", "save_every": 2, "log_every": 1, **settings,
                },
            },
        })  # fmt: skip
        watching = recipe.stages["dpo"].watch is not None
        seed_everything(0)
        return StageContext(
            recipe=recipe, stage="dpo", folder=folder, parents={"watched": judges[str(adapter)]} if watching else {},
            base=identify(BASE, None), base_folder=llama, ranks=ALONE, stop=stop or StopRequest(),
            console=Console((folder.parent / "said.txt").open("a")), tracker=Tracker(folder / "metrics.jsonl", "dpo"),
        )  # fmt: skip

    return started


def said(context: StageContext) -> str:
    return (context.folder.parent / "said.txt").read_text()


def rows(context: StageContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.folder / HELD_OUT).read_text().splitlines()]


def logged(context: StageContext) -> list[tuple[int, str, str, float]]:
    lines = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [(row["step"], row["split"], row["name"], row["value"]) for row in lines if row["name"] not in timed]


class StopAtStep(StopRequest):
    """A request to stop that comes at a step."""

    def __init__(self, step: int):
        super().__init__()
        self._left = step

    def agreed(self) -> bool:
        self._left -= 1
        return self._left <= 0


def planted(monkeypatch, *scores: float) -> None:
    """Let measurements score so, in order, whatever the answers are."""
    found = iter(scores)
    monkeypatch.setattr(dpo_watch.RewardScorer, "score", lambda self, rows, progress=None: [next(found)] * len(rows))


@pytest.mark.parametrize("adapter", [LORA, "none"], ids=["lora", "full"])
def test_it_measures_the_policy_and_changes_nothing(start, adapter):
    """Bit for bit the weights of a run that does not watch; means are those of the rows, prompt by prompt."""
    watching = start("watching", adapter, **WATCH)
    found = dpo.run(watching).metrics
    alone = start("alone", adapter)
    plain = dpo.run(alone).metrics
    one, other = sealed_tensors(watching.folder), sealed_tensors(alone.folder)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert {name: found[name] for name in plain} == plain
    assert [row["step"] for row in found["measured"]] == [0, 2, 4, 6] and found["selected_step"] == STEPS
    for row in found["measured"]:
        mine = [each for each in rows(watching) if each["step"] == row["step"]]
        assert [each["prompt_id"] for each in mine] == [0, 1, 2, 3]
        means = {"score_heldout": "score_heldout", "kl": "kl_seq", "tokens": "len_mean", "eos": "eos_rate"}
        for figure, mean in means.items():
            assert row[mean] == pytest.approx(sum(each[figure] for each in mine) / 4)
        assert set(row) == {"step", *FIGURES}
    first, last = found["measured"][0], found["measured"][-1]
    assert first["kl_seq"] == 0 and last["kl_seq"] != 0, "it starts from its reference"
    assert last["score_heldout"] != first["score_heldout"]
    gain = found["score_heldout_gain"]
    assert gain == pytest.approx(last["score_heldout"] - first["score_heldout"])
    assert found["score_heldout_gain_ci95"][0] <= gain <= found["score_heldout_gain_ci95"][1]
    assert "measured" not in plain and not (alone.folder / HELD_OUT).exists()


def test_its_answers_are_the_policys_own(start, monkeypatch):
    """Their likelihood is what the model in training gives them, and the reference's stays what it was."""
    asked: list[list[Any]] = []
    score = dpo_watch.RewardScorer.score

    def remember(self: Any, sequences: Any, progress: Any = None) -> Any:
        asked.append(sequences)
        return score(self, sequences, progress)

    monkeypatch.setattr(dpo_watch.RewardScorer, "score", remember)
    dpo.run(start("a", **WATCH))
    assert len(asked) == 4 and all(len(each) == 4 for each in asked)
    assert asked[0] != asked[-1], "a policy that has moved answers otherwise"


@pytest.mark.parametrize("engine", ["streams", "trl"])
def test_an_interruption_leaves_the_same(start, engine):
    whole = start("whole", engine=engine, select="heldout", **WATCH)
    expected = dpo.run(whole).metrics
    # At a measured step, and at one between two of them.
    for number, at in enumerate((4, 5)):
        cut = f"cut{number}"
        with pytest.raises(PreemptedError):
            dpo.run(start(cut, engine=engine, select="heldout", stop=StopAtStep(at), **WATCH))
        again = start(cut, engine=engine, select="heldout", **WATCH)
        assert dpo.run(again).metrics == expected
        assert rows(again) == rows(whole)
        held_out = [line for line in logged(again) if line[1] == "eval"]
        assert held_out == [line for line in logged(whole) if line[1] == "eval"]
        assert len({line[:3] for line in held_out}) == len(held_out), "each figure of a step once"
        one, other = sealed_tensors(again.folder), sealed_tensors(whole.folder)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_without_a_checkpoint_begins_its_rows_again(start, monkeypatch):
    """Killed before the first save, after the first measurement."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "commit", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dpo.run(start("cut", **WATCH))
    # A context seeds everything, so each is made just before its run.
    again = start("cut", **WATCH)
    found = dpo.run(again).metrics
    whole = start("whole", **WATCH)
    assert found == dpo.run(whole).metrics
    assert rows(again) == rows(whole)
    assert logged(again) == logged(whole)


def test_the_best_measured_is_handed_on(start, monkeypatch):
    """The policy after step 2, to the bit; without `select` the last."""
    planted(monkeypatch, 0.0, 2.0, 1.0, 1.5)
    kept: dict[int, list[torch.Tensor]] = {}
    measure = dpo_watch.Watch._measure

    def remember(self: Any, step: int) -> Look:
        kept[step] = [each.detach().clone() for each in self._trained]
        return measure(self, step)

    monkeypatch.setattr(dpo_watch.Watch, "_measure", remember)
    context = start("best", select="heldout", **WATCH)
    found = dpo.run(context).metrics
    assert (found["selected_step"], found["score_heldout"], found["steps"]) == (2, 2.0, STEPS)

    def same(folder: Path, step: int) -> bool:
        sealed = sealed_tensors(folder)
        return all(any(torch.equal(each, other) for other in sealed.values()) for each in kept[step])

    assert same(context.folder, 2) and not same(context.folder, STEPS)
    planted(monkeypatch, 0.0, 2.0, 1.0, 1.5)
    last = start("last", **WATCH)
    assert dpo.run(last).metrics["selected_step"] == STEPS
    assert same(last.folder, STEPS) and not same(last.folder, 2)


def test_no_better_policy_keeps_the_start(start, monkeypatch):
    planted(monkeypatch, 3.0, 2.0, 1.0, 0.0)
    found = dpo.run(start("start", select="heldout", **WATCH)).metrics
    assert found["selected_step"] == 0 and found["score_heldout_gain"] == 0
    assert found["eval_margin"] == 0 and found["eval_accuracy"] == 0.5, "measured of what is handed on"


@pytest.mark.parametrize("ends", [True, False])
def test_a_turn_is_said_and_ends_training_where_asked(start, monkeypatch, ends):
    turn = Turn(step=1.6, kl=2.0, best=0.9, last=0.4)
    monkeypatch.setattr(dpo_watch, "turn_so_far", lambda looks, logged: turn if len(looks) == 3 else None)
    context = start("turned", stop_at_turn=ends, **WATCH)
    found = dpo.run(context).metrics
    assert found["turned"] == {"step": 1.6, "kl": 2.0, "best": 0.9, "last": 0.4}
    assert found["steps"] == (4 if ends else STEPS) and bool(found["stopped"]) == ends
    told = "the preference margin still rises, but the score by judge turned near step 2 and fell from 0.90 to 0.40"
    assert said(context).count(f"step 4: {told}") == 1 and ("training ends" in said(context)) == ends
    if ends:
        # The stage was killed before it was sealed: its last checkpoint is of before the end.
        again = start("turned", stop_at_turn=ends, **WATCH)
        assert dpo.run(again).metrics == found and rows(again) == rows(context)


def test_the_turn_is_looked_for_in_what_was_logged():
    """The planted experiment of the watch itself, as a DPO stage logs it."""
    steps, training, held_out, kl = clean(12, 20)
    looks = [
        Look(
            step=int(step), scores=[score], divergences=[far], tokens=[1], ends=[True], repeat_ngram=0.0,
            rule_accuracy=None,
        )
        for step, score, far in zip(steps, held_out, kl, strict=True)
    ]  # fmt: skip
    margins = [{"step": step, "rewards/margins": value} for step, value in zip(steps, training, strict=True)]
    found = turn_so_far(looks, [{"step": 1, "loss": 0.5}, *margins])
    assert found is not None and found.step == pytest.approx(12, abs=0.5)
    flat = [{**row, "rewards/margins": 1.0} for row in margins]
    assert turn_so_far(looks, flat) is None, "what is trained does not rise"
    assert turn_so_far(looks, []) is None


def test_a_judge_that_knows_no_better_is_named(start):
    context = start("blind", **WATCH)
    dpo.run(context)
    assert "judge was measured on no held-out pairs: nothing says that its scores mean much" in said(context)


def test_without_held_out_prompts_it_refuses(start):
    with pytest.raises(
        DataError, match=r"stages\.dpo\.watch: answers to held-out prompts are scored, and there are none"
    ):
        dpo.run(start("none", held_out=False, **WATCH))


def test_answers_must_fit_into_the_context(start):
    with pytest.raises(RecipeError, match="more than the model's context"):
        dpo.run(start("long", **{**WATCH, "max_new_tokens": 100_000}))


RECIPE = """
name: x
model: {base: "builtin:tiny-llama"}
data: {preference: {sources: [{path: builtin:preference_sample, limit: 8}], eval_limit: 6}}
stages:
  judge: {kind: reward}
  dpo: {}
"""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["stages.dpo.watch=juge"], "there is no stage 'juge'; did you mean 'judge'?"),
        (["stages.dpo.watch=later", "stages.later={kind: reward}"], "stage 'later' runs later; move it up"),
        (["stages.dpo.select=heldout"], "stages.dpo.select=heldout: heldout goes by the score of `watch`"),
        (["stages.dpo.stop_at_turn=true"], "has no effect without watch; name an earlier reward stage there"),
        (["stages.dpo.eval_every=3"], "has no effect without watch; name an earlier reward stage there"),
        (["stages.dpo.max_new_tokens=3"], "has no effect without watch; name an earlier reward stage there"),
    ],
)
def test_mistakes_are_named(changes, sentence):
    with pytest.raises(RecipeError) as caught:
        loads_recipe(RECIPE, overrides=changes)
    assert sentence in str(caught.value)


def test_engines_that_leave_no_rank_the_policy_are_refused():
    watching = loads_recipe(RECIPE, overrides=["stages.dpo.watch=judge", "stages.dpo.deepspeed=zero3"]).recipe
    with pytest.raises(RecipeError, match=r"ZeRO-3 spreads it; use zero2, or write `stages\.dpo\.watch: null`"):
        check_engines(watching, {})
    whole = loads_recipe(RECIPE, overrides=["stages.dpo.watch=judge", "stages.dpo.deepspeed=zero2"]).recipe
    assert check_engines(whole, {})["dpo"].zero_stage == 2


def test_keys_of_stages_that_do_not_watch_stay(tmp_path):
    """Artefacts from before there was a watch are taken over."""

    def node(*changes: str) -> Any:
        recipe = loads_recipe(RECIPE, overrides=list(changes)).recipe
        return next(node for node in make_nodes(recipe, identify(BASE, None), tmp_path) if node.name == "dpo")

    own = {"watch", "eval_every", "eval_prompts", "max_new_tokens", "select", "stop_at_turn"}
    assert not own & set(node().settings["stage"]) and "prompts" not in node().settings
    watching = node("stages.dpo.watch=judge")
    assert watching.parents == {"watched": "judge"} and watching.key != node().key
    assert watching.settings["prompts"]["from"] == "preference"
    assert node("stages.dpo.watch=judge", "stages.dpo.eval_every=3").key != watching.key


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        ("{judge: {kind: reward}, dpo: {watch: judge}}", "judge"),
        ("{reward: {}, judge: {kind: reward, seed: 3}, dpo: {watch: judge}, ppo: {}}", "judge"),
        ("{reward: {}, dpo: {watch: reward}, ppo: {}}", None),
        ("{reward: {}, judge: {kind: reward, seed: 3}, dpo: {watch: judge}, ppo: {reward_model: judge}}", None),
        ("{reward: {}, judge: {kind: reward, seed: 3}, dpo: {watch: reward}, ppo: {watch: judge}}", "judge"),
    ],
)
def test_what_dpo_watches_judges_unless_ppo_is_trained_against_it(stages, kept):
    recipe = loads_recipe(RECIPE, overrides=[f"stages={stages}"]).recipe
    assert heldout_reward(recipe) == kept
    if "ppo" in recipe.stages:
        (source,) = reward_sources(recipe, "ppo")
        assert source.from_ == ("judge" if "reward_model: judge" in stages else "reward")
