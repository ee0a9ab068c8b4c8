"""Evaluation as a whole on tiny sealed models: who is measured, by whom, on which answers, and how often."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_endpoint import endpoint
from safetensors.torch import load_file, save_file
from seen import Visible, page
from synthetic_run import write_run

from data_prep.build import prompt_hashes, prompts
from data_prep.chat import ChatFormatter
from evaluation import measuring, sampled
from evaluation import policies as policies_module
from evaluation import run as evaluation
from evaluation.chosen import NO_DEMONSTRATIONS
from evaluation.judging import endpoint as asked_endpoint
from evaluation.judging import policies as judging
from evaluation.policies import Policies
from evaluation.report.load import load_run
from pipeline.console import Console
from pipeline.context import StageContext
from pipeline.errors import SourceUnreachableError, TrivetError
from pipeline.models import adapters
from pipeline.models.forward import causal_model, trunk_of
from pipeline.models.heads import new_head, with_head
from pipeline.models.load import describe_tokenizer, load_base, load_classifier, load_tokenizer
from pipeline.models.source import identify
from pipeline.recipe.schema import AdapterSettings, ModelSettings, Recipe
from pipeline.runtime import Ranks, StopRequest
from pipeline.tracking import SilentTracker

BASE = "builtin:tiny-llama"
SETTINGS = ModelSettings(base=BASE)
SCALE = {"offset": 0.25, "scale": 0.05}
STAGES = ("sft", "reward", "dpo", "ppo")


def stir(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def classifier(folder):
    return with_head(load_classifier(folder, SETTINGS, frozen=True, precision="fp32"), new_head(48, 3))


@pytest.fixture
def parents(tmp_path, tiny_folder) -> dict[str, Any]:
    """An SFT policy, a reward model, a DPO policy, and a PPO policy that is the SFT policy unchanged."""
    tokenizer = describe_tokenizer(load_tokenizer(tiny_folder, "auto"))
    found = {}
    for number, name in enumerate(STAGES):
        folder = tmp_path / "store" / name
        torch.manual_seed(number)
        if name == "reward":
            model: Any = adapters.attach_for_scores(classifier(tiny_folder), AdapterSettings(r=4), None)
        else:
            base = load_base(tiny_folder, SETTINGS, frozen=True, precision="fp32")
            model = adapters.attach_new(base, AdapterSettings(r=4), dropout=False)
        stir(model, number)
        adapters.save(model, folder / "adapter", BASE)
        kind = "reward_model" if name == "reward" else "policy"
        manifest = SimpleNamespace(
            kind=kind, form="adapter", stage=name, tokenizer=tokenizer, base=identify(BASE, None)
        )
        found[name] = SimpleNamespace(path=folder, weights=folder / "adapter", manifest=manifest, model=model)
    shutil.copytree(found["sft"].path / "adapter", found["ppo"].path / "adapter", dirs_exist_ok=True)
    members = {**SCALE, "members": [SCALE], "aggregate": "mean", "variance_weight": 0.1, "n": 9, "source": "x"}
    (found["reward"].path / "reward_model.json").write_text(json.dumps(members))
    return found


@pytest.fixture
def context_of(tmp_path, tiny_folder, parents) -> Any:
    def make(stages=STAGES, folder="evaluation", **settings) -> StageContext:
        recipe = Recipe.model_validate({
            "name": "x",
            "model": {"base": BASE},
            "data": {"preference": {"sources": [{"path": "builtin:preference_sample", "limit": 8}], "eval_limit": 12}},
            "stages": {
                name: {"kind": name, "precision": "fp32", **({"rewards": [{"from": "rules"}]} if name == "ppo" else {})}
                for name in stages
            },
            "evaluation": {"prompts": 4, "kl_prompts": 6, "max_new_tokens": 5, "batch_size": 4, **settings},
        })  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        return StageContext(
            recipe=recipe,
            stage="evaluation",
            folder=tmp_path / folder,
            parents={name: parents[name] for name in stages},
            base=identify(BASE, None),
            base_folder=tiny_folder,
            ranks=Ranks(0, 0, 1),
            stop=StopRequest(),
            console=Console(None),
            tracker=SilentTracker(),
        )

    return make


def kept(context, name):
    return json.loads((context.work / f"{name}.json").read_text())


def sampled_rows(context):
    """Prompts and sampled answers of each policy, as an earlier attempt kept them."""
    seen = []

    def keep(prompts, answers):
        seen.append((prompts, answers))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "answer_rows", keep)
        again = measuring.Measurements(context, formatter(context), 0, "fp32", dict(context.parents))
        for name in again.policies.names:
            again._sampled(name)
    return seen


def formatter(context):
    return ChatFormatter(load_tokenizer(context.base_folder, "auto"))


@torch.no_grad()
def slow_scores(model, rows):
    """By the classifier that was saved, one row at a time, head in float64."""
    head = causal_model(model).score.weight[0].double()
    raw = [
        trunk_of(model.eval())(input_ids=torch.tensor([row])).last_hidden_state[0, -1].double() @ head for row in rows
    ]
    return [(float(score) - SCALE["offset"]) / SCALE["scale"] for score in raw]


def test_reward_models_judge_and_are_not_judged(context_of):
    context = context_of()
    metrics = evaluation.run(context).metrics
    assert list(metrics["policies"]) == ["base", "sft", "dpo", "ppo"]
    assert metrics["score_by"] == "reward" and metrics["reference"] == "sft"
    assert {row["to"] for row in metrics["comparisons"]} == {"sft", "dpo", "ppo"}
    assert set(metrics["families"]) == {"base", "sft", "dpo", "ppo"}
    lines = [json.loads(line) for line in (context.folder / "sampled.jsonl").read_text().splitlines()]
    for name, kinds in metrics["conduct_scores"].items():
        parts = [kind["score"] for kind in kinds.values()]
        total = sum(line["score"] for line in lines if line["policy"] == name)
        assert sum(part["mean"] * part["n"] for part in parts) == pytest.approx(total), "each prompt in one kind"
    assert set(metrics["conduct_scores"]) == set(metrics["policies"])
    assert len({frozenset(row) for row in metrics["policies"].values()}) == 1


def test_scores_are_those_of_the_reward_model_on_the_sampled_answers(context_of, parents):
    """Against a plain loop to 1e-3 of a deviation; the answers differ between policies, so that a mix-up would show."""
    context = context_of()
    metrics = evaluation.run(context).metrics
    means = {}
    for name, (asked, answers) in zip(metrics["policies"], sampled_rows(context), strict=True):
        expected = slow_scores(parents["reward"].model, [[*p, *a] for p, a in zip(asked, answers, strict=True)])
        assert kept(context, f"score-{name}")["scores"] == pytest.approx(expected, abs=1e-3)
        row = metrics["policies"][name]
        assert row["score"] == pytest.approx(sum(expected) / 6, abs=1e-3) and row["score_n"] == 6
        assert row["score_ci95"][0] < row["score"] < row["score_ci95"][1]
        means[name] = row["score"]
    assert means["ppo"] == means["sft"] and len(set(means.values())) == 3
    rows = {(row["from"], row["to"]): row for row in metrics["comparisons"] if row["metric"] == "score"}
    assert list(rows) == [("base", "sft"), ("sft", "dpo"), ("sft", "ppo"), ("dpo", "ppo")]
    for (before, after), row in rows.items():
        assert row["difference"] == pytest.approx(means[after] - means[before]) and row["n"] == 6


def test_a_held_out_reward_model_scores_under_a_name_of_its_own(context_of, parents):
    """Where nothing is trained against a reward model, the only one may be it: the run's own score is then nobody's."""
    context = context_of(stages=("sft", "reward", "dpo"), heldout_reward="reward")
    metrics = evaluation.run(context).metrics
    assert (metrics["score_by"], metrics["score_heldout_by"]) == (None, "reward")
    scored = {}
    for name, (asked, answers) in zip(metrics["policies"], sampled_rows(context), strict=True):
        scored[name] = slow_scores(parents["reward"].model, [[*p, *a] for p, a in zip(asked, answers, strict=True)])
        row = metrics["policies"][name]
        assert row["score"] is None and row["score_heldout"] == pytest.approx(sum(scored[name]) / 6, abs=1e-3)
    wins = metrics["score_wins"]["score_heldout"]
    assert set(metrics["score_wins"]) == {"score_heldout"} and set(wins) == {"base", "dpo"}
    above = [(b > a) + (b == a) / 2 for a, b in zip(scored["sft"], scored["dpo"], strict=True)]
    assert wins["dpo"]["win_rate"] == pytest.approx(sum(above) / 6) and wins["dpo"]["n"] == 6
    told = {row["metric"] for row in metrics["comparisons"]}
    assert {"rule_accuracy", "score_heldout"} <= told and "score" not in told


def test_a_policy_that_is_its_reference_has_no_distance_and_no_gain(context_of):
    metrics = evaluation.run(context_of()).metrics
    same = metrics["policies"]["ppo"]
    assert same["kl_to_reference"] == 0.0 and same["kl_ci95"] == [0.0, 0.0]
    assert metrics["policies"]["dpo"]["kl_to_reference"] != 0.0
    (row,) = (r for r in metrics["comparisons"] if (r["metric"], r["from"], r["to"]) == ("score", "sft", "ppo"))
    assert row["difference"] == 0.0 and row["ci95"] == [0.0, 0.0]


@torch.no_grad()
def logp(model, prompt, answer):
    """Sum over the answer's tokens, in float64, without padding or batches."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    logps = torch.log_softmax(logits, -1)
    return sum(logps[len(prompt) + at - 1, token].item() for at, token in enumerate(answer))


def test_divergence_is_that_of_the_policy_from_the_reference_on_its_own_answers(context_of, parents, tiny_folder):
    """By hand: the mean of log pi - log ref over the answers that pi gave; turned round the sign would differ."""
    context = context_of()
    metrics = evaluation.run(context).metrics
    found = Policies(parents, tiny_folder, SETTINGS, "fp32")
    for name, (asked, answers) in zip(metrics["policies"], sampled_rows(context), strict=True):
        sums = []
        for policy in (name, "sft"):
            with found.use(policy) as model:
                sums.append(sum(logp(model, p, a) for p, a in zip(asked, answers, strict=True)))
        assert metrics["policies"][name]["kl_to_reference"] == pytest.approx((sums[0] - sums[1]) / 6, abs=1e-3)
    assert abs(metrics["policies"]["dpo"]["kl_to_reference"]) > 0.02


def test_answers_are_sampled_once_for_both_measures_and_kept(context_of, monkeypatch):
    context, drawn = context_of(), []
    draw = sampled.draw
    monkeypatch.setattr(sampled, "draw", lambda *arguments: drawn.append(1) or draw(*arguments))
    first = evaluation.run(context).metrics
    assert len(drawn) == 4, "once per policy, the reference included"
    monkeypatch.setattr(measuring, "Policies", lambda *arguments: SimpleNamespace(names=[*first["policies"]]))
    assert evaluation.run(context).metrics == first, "a repeated attempt computes nothing"


def test_without_a_reward_stage_nothing_is_scored(context_of):
    metrics = evaluation.run(context_of(("sft", "dpo"))).metrics
    assert metrics["score_by"] is None
    assert all(row["score"] is row["score_ci95"] is row["score_n"] is None for row in metrics["policies"].values())
    told = {row["metric"] for row in metrics["comparisons"]}
    assert {"rule_accuracy", "eos_rate"} <= told and not told & {"score", "score_heldout"}


def test_each_task_alone(context_of):
    scores = evaluation.run(context_of(tasks=["score"], folder="one")).metrics
    assert all(row["score"] is not None and row["kl_to_reference"] is None for row in scores["policies"].values())
    told = {row["metric"] for row in scores["comparisons"]}
    assert scores["families"] == {} and scores["family_comparisons"] == [] and told == {"score", "repetition"}
    others = evaluation.run(context_of(tasks=["kl"], folder="other")).metrics
    assert others["score_by"] is None and others["policies"]["dpo"]["score"] is None
    whole = evaluation.run(context_of(folder="whole")).metrics
    assert {n: row["score"] for n, row in whole["policies"].items()} == {
        n: row["score"] for n, row in scores["policies"].items()
    }
    assert whole["policies"]["dpo"]["kl_to_reference"] == others["policies"]["dpo"]["kl_to_reference"]


def test_prompts_that_a_reward_model_was_trained_on_judge_nobody(context_of, parents):
    context = context_of()
    held_out = prompts(context.recipe.data).held_out
    before = len(measuring.Measurements(context, formatter(context), 0, "fp32", dict(context.parents))._chosen)
    seen = [prompt for prompt in held_out if prompt.check is not None][:2]
    (parents["reward"].path / "train_prompts.txt").write_text("\n".join(prompt_hashes(seen)))
    left = measuring.Measurements(context, formatter(context), 0, "fp32", dict(context.parents))._chosen
    assert not {id(p) for p in seen} & {id(p) for p, _ in left}
    assert before == 6 and len(left) <= 6


SET = {"sources": [{"path": "builtin:alpaca_sample", "limit": 8}], "eval_limit": 5}


def with_data(context, said=None, **data):
    """The same evaluation on other data; what it says goes to `said`."""
    recipe = context.recipe.model_dump(by_alias=True)
    changed = Recipe.model_validate({**recipe, "data": {**recipe["data"], **data}})
    console = Console(None) if said is None else SimpleNamespace(say=said.append, progress=lambda *told: None)
    return replace(context, recipe=changed, console=console)


def plain_rows(tmp_path, *texts):
    """Pairs whose rows do not say to which part they belong."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"sources": [{"path": str(path)}], "eval_fraction": 0.5}


def seen_by(parents, context):
    held_out = prompts(context.recipe.data).held_out
    assert held_out
    (parents["dpo"].path / "train_prompts.txt").write_text("\n".join(prompt_hashes(held_out)))
    return len(held_out)


def test_an_empty_prompt_set_is_said_and_left_for_the_report(context_of, tmp_path, parents):
    """Which filter took the last prompt, and what to change; the rest of the evaluation goes on."""
    said = []
    rows = plain_rows(tmp_path, *(f"say {n}" for n in range(12)))
    context = with_data(context_of(), said, preference={**rows, "eval_fraction": 0})
    metrics = evaluation.run(context).metrics
    (gap,) = metrics["gaps"]
    assert "data.preference holds none out (eval_fraction is 0). kl, rules, score measured nothing" in gap
    assert "hold some out with data.preference.eval_fraction" in gap and gap in said
    columns = ("score", "kl_to_reference", "rule_accuracy")
    assert all(row[name] is None for row in metrics["policies"].values() for name in columns)
    assert metrics["comparisons"] == []

    context = with_data(context_of(folder="seen"), said, preference=rows)
    count = seen_by(parents, context)
    (gap,) = evaluation.run(context).metrics["gaps"]
    assert f"all {count} that data.preference holds out were trained on by a stage of this run" in gap

    texts = plain_rows(tmp_path, *(f"say {n} <|im_end|>" for n in range(12)))
    (parents["dpo"].path / "train_prompts.txt").unlink()
    (gap,) = evaluation.run(with_data(context_of(folder="told"), said, preference=texts)).metrics["gaps"]
    assert "can be put to the model (control_token " in gap and len(said) == 3
    assert evaluation.run(context_of(folder="whole")).metrics["gaps"] == [], "the control"


def test_no_demonstrations_left_is_said_too(context_of):
    said = []
    empty = with_data(context_of(), said, sft={**SET, "eval_limit": 1})
    assert evaluation.run(empty).metrics["gaps"] == []
    path = empty.folder.parent / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "say", "output": "a"}) + "\n")
    empty = with_data(context_of(folder="none"), said, sft={"sources": [{"path": str(path)}], "eval_fraction": 0})
    (gap,) = evaluation.run(empty).metrics["gaps"]
    assert gap == NO_DEMONSTRATIONS == said[-1]


def test_a_policy_of_another_tokenizer_or_base_is_refused(context_of, parents):
    context = context_of()
    manifest = parents["dpo"].manifest
    own, manifest.tokenizer = manifest.tokenizer, manifest.tokenizer.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(TrivetError, match=r"stage evaluation: its dpo was made with another tokenizer .*sha256 000000"):
        evaluation.run(context)
    manifest.tokenizer, manifest.base = own, SimpleNamespace(name="another", fingerprint="f" * 64)
    with pytest.raises(TrivetError, match=r"stage evaluation: its dpo belongs to base another \(ffffffffffff\)"):
        evaluation.run(context)
    assert not context.work.exists(), "before anything is measured"


def poison(folder):
    """One weight of an adapter becomes no number."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("stage", "tasks", "told"),
    [
        ("reward", ["score"], "reward gives a score of nan to base's sampled answer 1 of 6, as to 5 more of them"),
        ("dpo", ["kl"], "dpo gives a log-probability of nan to dpo's sampled answer 1 of 6"),
        ("sft", ["kl"], "sft gives a log-probability of nan to base's sampled answer 1 of 6"),
        ("dpo", ["perplexity"], "dpo gives a log-probability of nan to held-out demonstration 1 of 5"),
    ],
)
def test_what_is_no_number_is_one_sentence_about_whose_it_is(context_of, parents, stage, tasks, told):
    """The model, the figure and the row; what was measured before stays, what is no number is not kept."""
    poison(parents[stage].weights)
    context = with_data(context_of(tasks=tasks), sft=SET)
    with pytest.raises(TrivetError) as refused:
        evaluation.run(context)
    said = str(refused.value)
    assert told in said and f"--force {stage}" in said and f"take {tasks[0]} out of evaluation.tasks" in said
    assert all(math.isfinite(value) for path in context.work.glob("*.json") for value in numbers(path))


def numbers(path):
    def inside(value):
        if isinstance(value, float):
            yield value
        elif isinstance(value, list | dict):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from inside(inner)

    return list(inside(json.loads(path.read_text())))


def test_named_policies_alone_are_measured_beside_their_reference(context_of):
    """The same figures as among all; a comparison only where both were measured."""
    whole = evaluation.run(context_of()).metrics
    part = evaluation.run(context_of(folder="part", policies=["dpo"])).metrics
    assert list(part["policies"]) == ["sft", "dpo"]
    assert all(part["policies"][name] == whole["policies"][name] for name in ("sft", "dpo"))
    mine = [row for row in whole["comparisons"] if (row["from"], row["to"]) == ("sft", "dpo")]
    assert part["comparisons"] == mine and {"rule_accuracy", "entropy"} <= {row["metric"] for row in mine}
    assert set(part["families"]) == set(part["conduct"]) == {"sft", "dpo"}
    based = evaluation.run(context_of(folder="based", policies=["base", "ppo"])).metrics
    assert list(based["policies"]) == ["base", "sft", "ppo"]


def test_one_base_serves_policies_and_reward_model(parents, tiny_folder):
    """Scoring leaves every policy as it was, and asking again attaches nothing twice."""
    found = Policies(parents, tiny_folder, SETTINGS, "fp32")
    ids = torch.tensor([[5, 6, 7, 8]])

    def logits():
        given = {}
        for name in found.names:
            with found.use(name) as model, torch.no_grad():
                given[name] = model(input_ids=ids).logits
        return given

    before = logits()
    members = found.members("reward")
    assert found.members("reward") is members
    after = logits()
    assert all(torch.equal(before[name], after[name]) for name in found.names)
    assert not torch.equal(before["base"], before["sft"])


def test_fully_trained_models_take_turns_in_memory(parents, tiny_folder, monkeypatch):
    loads = []
    monkeypatch.setattr(policies_module, "load_base", lambda *a, **k: loads.append("policy") or torch.nn.Linear(1, 1))
    monkeypatch.setattr(policies_module, "load_members", lambda *a: loads.append("members") or ("member",))
    for artefact in parents.values():
        artefact.manifest.form = "model"
    found = Policies(parents, tiny_folder, SETTINGS, "fp32")
    for _ in range(2):
        with found.use("sft"):
            pass
    assert found.members("reward") == found.members("reward") == ("member",)
    assert loads == ["policy", "members"]
    with found.use("sft"):
        pass
    assert loads == ["policy", "members", "policy"], "only one of them is held"


def test_best_of_n_is_the_judges_best_of_the_references_own_answers(context_of, parents):
    """By a plain loop over all subsets; the first answer is the one that every policy is measured by."""
    from itertools import combinations

    context = context_of(best_of_n=[2, 3], folder="best")
    metrics = evaluation.run(context).metrics
    assert [row["n"] for row in metrics["best_of_n"]] == [2, 3]
    further = [kept(context, f"further-{number}")["answers"] for number in (1, 2)]
    asked, first = sampled_rows(context)[1]
    assert first != further[0] != further[1]
    scores = [
        slow_scores(parents["reward"].model, [[*p, *a] for p, a in zip(asked, answers, strict=True)])
        for answers in (first, *further)
    ]
    by_prompt = list(zip(*scores, strict=True))
    for row in metrics["best_of_n"]:
        best = [[max(subset) for subset in combinations(found, row["n"])] for found in by_prompt]
        assert row["score"] == pytest.approx(sum(sum(b) / len(b) for b in best) / 6, abs=1e-3)
    lines = [json.loads(line) for line in (context.folder / "best_of_n.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and {line["prompt_id"] for line in lines} == set(range(6))
    assert evaluation.run(context_of(folder="none")).metrics["best_of_n"] == []


def test_sampled_answers_are_left_with_their_figures(context_of):
    context = context_of()
    metrics = evaluation.run(context).metrics
    lines = [json.loads(line) for line in (context.folder / "sampled.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 4 and {line["prompt_id"] for line in lines} == set(range(6))
    for name, row in metrics["policies"].items():
        mine = [line for line in lines if line["policy"] == name]
        assert sum(line["kl"] for line in mine) / 6 == pytest.approx(row["kl_to_reference"])
        assert sum(line["score"] for line in mine) / 6 == pytest.approx(row["score"])
        assert row["entropy"] > 0 and 0 < row["distinct_1"] <= 1
    greedy = [json.loads(line) for line in (context.folder / "answers.jsonl").read_text().splitlines()]
    prompts_of = [{line["prompt_id"]: line["prompt"] for line in found} for found in (greedy, lines)]
    assert all(prompts_of[1][at] == prompt for at, prompt in prompts_of[0].items()), "one place, one prompt"


def test_a_judge_compares_every_policy_with_the_reference(context_of, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    with endpoint(lambda first, second: "A" if len(first) > len(second) else "B") as (judge, url):
        judge.usage = {"prompt_tokens": 7, "completion_tokens": 1}
        context = context_of(judge={"url": url, "model": "m"}, folder="judged")
        metrics = evaluation.run(context).metrics
    assert set(metrics["judge"]["policies"]) == {"base", "dpo", "ppo"}
    assert metrics["judge"]["usage"]["asked"] == len(judge.asked) > 0 == metrics["judge"]["usage"]["cached"]
    assert metrics["judge"]["usage"]["prompt_tokens"] == 7 * len(judge.asked)
    assert metrics["policies"]["ppo"]["win_rate"] == 0.5, "its answers are the reference's"
    assert metrics["policies"]["sft"]["win_rate"] is None
    assert (context.folder / "alpaca_eval" / "annotations.json").is_file()
    rows = {(row["from"], row["to"]): row for row in metrics["comparisons"] if row["metric"] == "win_rate"}
    assert list(rows) == [("base", "sft"), ("sft", "dpo"), ("sft", "ppo"), ("dpo", "ppo")]
    won = {name: row["win_rate"] for name, row in metrics["policies"].items() if name != "sft"} | {"sft": 0.5}
    for (before, after), row in rows.items():
        assert row["difference"] == pytest.approx(won[after] - won[before])
        assert row["n"] == metrics["policies"]["dpo"]["win_rate_n"]
    monkeypatch.setattr(judging, "judge_policies", None)
    assert evaluation.run(context).metrics == metrics, "a repeated attempt asks nobody"


def test_a_judge_that_never_answers_ends_the_evaluation_in_a_sentence_and_is_waited_for_aloud(
    context_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(asked_endpoint, "_pause", lambda attempt: 0.0)
    said = io.StringIO()
    with endpoint(lambda first, second: "B") as (judge, url):
        judge.faults = ["silent"] * 50
        settings = {"url": url, "model": "m", "attempts": 3, "timeout": 0.2, "parallel": 2}
        context = replace(context_of(judge=settings, folder="silent"), console=Console(said))
        with pytest.raises(SourceUnreachableError, match=r"no reply within 0\.2 s .*run the same command again"):
            evaluation.run(context)
        told = [line for line in said.getvalue().splitlines() if line.startswith("judge ")]
        assert told == [
            f"judge {url}: no reply within 0.2 s (ReadTimeout); asking again, attempt {n} of 3" for n in (2, 3)
        ]
        judge.faults = []
        metrics = evaluation.run(context).metrics
    assert metrics["policies"]["dpo"]["win_rate"] == 0.5 and "replies (" in said.getvalue()


def test_questions_of_two_turns_are_answered_and_graded_for_every_policy(context_of, tmp_path, monkeypatch):
    """Made again after an interruption that lost one policy's answers and another's grades, it asks nothing twice."""
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "replies"))
    asked = tmp_path / "questions.jsonl"
    rows = [{"question_id": n, "category": "c", "turns": [f"say {n}", "again"]} for n in range(3)]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def grade(*shown):
        return "T" if len(shown) == 2 else str(1 + len(shown[0]) % 10)

    with endpoint(grade) as (judge, url):
        settings = {"url": url, "model": "m", "questions": str(asked), "question_tokens": 6, "attempts": 1}
        context = context_of(judge=settings, folder="graded")
        metrics = evaluation.run(context).metrics
        lines = [json.loads(line) for line in (context.folder / "questions.jsonl").read_text().splitlines()]
        figures = metrics["judge"]["questions"]
        assert set(figures) == {"base", "sft", "dpo", "ppo"} and len(lines) == 12
        for name, found in figures.items():
            own = [line["grades"] for line in lines if line["policy"] == name]
            assert found["grade"] == pytest.approx(sum(sum(pair) / 2 for pair in own) / 3)
            assert ("less_reference" in found) == (name != "sft")
        assert figures["ppo"]["less_reference"] == 0.0, "the same weights as the reference's"
        for name in ("graded-dpo", "conversations-ppo"):
            (context.work / f"{name}.json").unlink()
        judge.asked.clear()
        again = evaluation.run(context).metrics["judge"]
        usage, before = again.pop("usage"), metrics["judge"].pop("usage")
        assert again == metrics["judge"]
        assert judge.asked == [], "what was graded is in the cache"
        assert usage["asked"] + usage["cached"] == before["asked"] + before["cached"]
        assert usage["cached"] > before["cached"]


def test_what_could_not_be_measured_is_on_the_page(tmp_path):
    write_run(tmp_path / "demo")
    assert load_run(tmp_path / "demo").gaps == ()
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    results["evaluation"]["gaps"] = [NO_DEMONSTRATIONS, 3]
    (tmp_path / "demo" / "results.json").write_text(json.dumps(results))
    assert load_run(tmp_path / "demo").gaps == (NO_DEMONSTRATIONS,)
    assert f"What this report lacks {NO_DEMONSTRATIONS}" in Visible(page(tmp_path / "demo")).text
