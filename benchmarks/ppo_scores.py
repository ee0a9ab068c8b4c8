"""How good PPO's policy is after the same episodes: ours against TRL 1.12's PPOTrainer, over seeds.

    python -m benchmarks.ppo_scores --trl PYTHON_WITH_TRL_1_12 --work FOLDER [--seeds 17 18 19] [--episodes 96]

For each seed `recipes/alpaca_ppo.yaml` makes the SFT policy, the reward model and our PPO policy, as a user's run does.
TRL's trainer then starts from that SFT policy, merged, with a new adapter of the same shape, against that reward model,
merged, which its value model starts from too, on the same prompts (as many as answers, where ours gives each several)
with the same batches, passes, price of KL and temperature. It has one learning rate for adapter and whole value model,
so it is given several, and each seed's best counts. All policies then answer the same held-out prompts with the same
sampling noise. A score is the reward model's, in deviations of its reference answers, less 1 for an answer that did not
end: what both sides optimise. The last policy of either is taken. Nats are of the answers at temperature 1. What is in
FOLDER is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.meter import machine
from benchmarks.ppo_parts import ALONE
from data_prep.chat import ChatFormatter
from data_prep.prompt_rows import encode_prompts
from evaluation.intervals import paired_bootstrap_ci
from evaluation.likelihood import Scorer
from evaluation.sampled import answer_rows
from evaluation.scores import RewardScorer, attach_members
from pipeline.artefact import Artefact, open_artefact
from pipeline.context import seen_prompts
from pipeline.models import adapters
from pipeline.models.forward import trunk_of
from pipeline.models.load import load_base, load_classifier, load_tokenizer
from pipeline.models.reward_model import head_of, read_spec
from pipeline.models.source import identify, materialise
from pipeline.recipe import load_recipe
from pipeline.recipe.schema import Recipe
from pipeline.rollouts.answers import Sampling
from pipeline.rollouts.generate import Generator
from pipeline.runtime import ROOT, resolve_precision

RECIPE = ROOT / "recipes" / "alpaca_ppo.yaml"
BATCH = 8
DRAWS = 4
"""Answers to each held-out prompt."""


def main() -> None:
    """Train, measure, print, and write the figures where asked."""
    options = _options()
    print(machine(), flush=True)
    found = [_seed(seed, options) for seed in options.seeds]
    lines = [f"seed {one['seed']}: {_told(one)}" for one in found]
    better = [one["policies"]["ours"]["score"] - one["policies"][one["best_peer"]]["score"] for one in found]
    lines.append(
        f"ours - TRL's best: {', '.join(f'{each:+.2f}' for each in better)}, mean {statistics.mean(better):+.2f}"
    )
    print("\n".join(lines))
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine(), "seeds": found}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", required=True, metavar="PYTHON", help="of an environment with trl 1.12")
    parser.add_argument("--work", required=True, metavar="FOLDER", type=Path, help="for runs and models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--episodes", type=int, default=96)
    parser.add_argument("--eval-prompts", type=int, default=64)
    parser.add_argument(
        "--peer-rates", type=float, nargs="+", default=[1e-5, 1e-4], help="learning rates of TRL's side"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of the recipe")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    return parser.parse_args()


def _seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    changes = [f"seed={seed}", f"stages.ppo.episodes={options.episodes}", "stages.ppo.select=last", *options.set]
    run = options.work.absolute() / f"seed-{seed}"
    settings = [part for change in changes for part in ("--set", change)]
    _call([sys.executable, str(ROOT / "pipeline" / "run.py"), str(RECIPE), "--output-dir", str(run), *settings,
           "--until", "ppo"])  # fmt: skip
    recipe = load_recipe(RECIPE, changes).recipe
    stages = {name: open_artefact((run / name).resolve()) for name in ("sft", "reward", "ppo")}
    base = materialise(identify(recipe.model.base, None))
    formatter = ChatFormatter(load_tokenizer(base, recipe.data.chat_template))
    train, held_out, _ = encode_prompts(
        recipe.data, formatter, seed, with_rule=False, held_out=options.eval_prompts,
        seen=seen_prompts({name: stages[name] for name in ("sft", "reward")}),
    )  # fmt: skip
    prompts = run / "prompts.json"
    prompts.write_text(json.dumps([row.ids for row in train.rows]))
    whole = _whole_models(base, recipe, stages, run / "whole")
    policies = {"sft": whole / "policy", "ours": _merged(base, recipe, stages["ppo"], run / "whole" / "ours")}
    for rate in options.peer_rates:
        policies[f"trl {rate:g}"] = _peer(options.trl, recipe, seed, rate, prompts, whole)
    measured = _measure(policies, base, recipe, stages["reward"], formatter, [row.ids for row in held_out.rows])
    best = max((name for name in policies if name.startswith("trl")), key=lambda name: measured[name]["score"])
    values = {name: one.pop("values") for name, one in measured.items()}
    bounds = paired_bootstrap_ci(values[best], values["ours"])
    return {
        "seed": seed, "episodes": options.episodes, "held_out_prompts": len(held_out.rows), "best_peer": best,
        "difference": bounds.estimate, "difference_ci95": bounds.bounds, "policies": measured,
    }  # fmt: skip


def _whole_models(base: Path, recipe: Recipe, stages: dict[str, Artefact], folder: Path) -> Path:
    """SFT policy and reward model as models of their own, the head in deviations of the reference answers."""
    _merged(base, recipe, stages["sft"], folder / "policy")
    if not (folder / "reward" / "config.json").is_file():
        weights = stages["reward"].weights
        policy = adapters.attach_reward(load_base(base, recipe.model, frozen=True, precision="fp32"), weights, "reward")
        policy.set_adapter("reward")
        trunk = trunk_of(policy.merge_and_unload())
        whole: Any = load_classifier(base, recipe.model, frozen=True, precision="fp32")
        trunk_of(whole).load_state_dict(trunk.state_dict())
        whole.score.weight.data.copy_(head_of(weights).weight / read_spec(stages["reward"]).scale)
        whole.save_pretrained(folder / "reward")
    return folder


def _merged(base: Path, recipe: Recipe, policy: Artefact, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        model = load_base(base, recipe.model, frozen=True, precision="fp32")
        wrapped = adapters.attach_frozen(model, policy.weights, "policy")
        wrapped.set_adapter("policy")
        wrapped.merge_and_unload().save_pretrained(folder)
    load_tokenizer(base, recipe.data.chat_template).save_pretrained(folder)
    return folder


def _peer(python: str, recipe: Recipe, seed: int, rate: float, prompts: Path, whole: Path) -> Path:
    settings: Any = recipe.stages["ppo"]
    target = whole / f"trl-{rate:g}"
    if (target / "config.json").is_file():
        return target
    size = settings.rollout_batch_size
    asked = {
        "batch_size": BATCH, "accumulation": size // BATCH, "steps": settings.episodes // size,
        "ppo_epochs": settings.epochs, "answer": settings.max_new_tokens, "temperature": settings.temperature,
        "kl_coef": settings.kl_coef, "gae_lambda": settings.gae_lambda,
        "missing_eos_penalty": settings.missing_eos_penalty, "learning_rate": rate,
        "bf16": resolve_precision("auto") == "bf16", "peer_dtype": "float32", "peer_layers": "all", "seed": seed,
        "reward": str(whole / "reward"), "save_to": str(target),
    }  # fmt: skip
    _call([python, "-m", "benchmarks.side_trl_ppo", str(whole / "policy"), str(prompts), json.dumps(asked)])
    return target


def _measure(
    policies: dict[str, Path], base: Path, recipe: Recipe, reward: Artefact, formatter: ChatFormatter,
    prompts: list[list[int]],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Score, KL to the SFT policy, length and share of ended answers, `DRAWS` answers a prompt."""
    settings: Any = recipe.stages["ppo"]
    precision = resolve_precision(recipe.stages["ppo"].precision)
    pad = formatter.stop_ids[0]
    judge, members = attach_members(load_base(base, recipe.model, frozen=True, precision=precision), reward, "judge")
    scorer = RewardScorer(members, read_spec(reward), pad, 2 * BATCH, precision, ALONE)
    reference = load_base(policies["sft"], recipe.model, frozen=True, precision=precision)
    asked = prompts * DRAWS
    found = {}
    for name, folder in policies.items():
        model = load_base(folder, recipe.model, frozen=True, precision=precision)
        generator = Generator(model, pad, formatter.stop_ids, 32, precision, ALONE)
        answers = generator.answers(asked, Sampling(settings.max_new_tokens, settings.temperature, 0))
        rows = answer_rows(asked, [each.ids for each in answers])
        logps = [Scorer(each, pad, BATCH, precision, ALONE).score(rows) for each in (model, reference)]
        scores = scorer.score([ids for ids, _ in rows])
        used = [
            score - settings.missing_eos_penalty * (not each.stopped)
            for score, each in zip(scores, answers, strict=True)
        ]
        found[name] = {
            "score": statistics.mean(used), "score_alone": statistics.mean(scores),
            "kl": statistics.mean(own.logp - its.logp for own, its in zip(*logps, strict=True)),
            "tokens": statistics.mean(len(each.ids) for each in answers),
            "ended": statistics.mean(each.stopped for each in answers),
            "values": [statistics.mean(used[at :: len(prompts)]) for at in range(len(prompts))],
        }  # fmt: skip
    del judge
    return found


def _told(one: dict[str, Any]) -> str:
    low, high = one["difference_ci95"]
    parts = [
        f"{name} {each['score']:+.2f} at {each['kl']:.2f} nats ({each['ended']:.0%} ended, {each['tokens']:.0f} tokens)"
        for name, each in one["policies"].items()
    ]
    return f"{'; '.join(parts)}; ours - {one['best_peer']}: {one['difference']:+.2f} [{low:.2f}, {high:.2f}]"


def _call(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:300]} ended with {done.returncode}:\n{done.stdout[-3000:]}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
