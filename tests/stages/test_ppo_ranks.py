"""Two processes learn what one does: the same answers, rows, advantages and parameters; and they decide together.

Both are started once and do all there is to do; what they found is compared here with one process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing

from pipeline.context import StageResult
from pipeline.errors import TrivetError
from pipeline.models.roles import POLICY, VALUE
from pipeline.rollouts.answers import Sampling, SamplingStopped
from pipeline.rollouts.generate import Generator
from pipeline.rollouts.rewards import FunctionReward
from pipeline.runtime import Ranks, StopRequest
from pipeline.stages import ppo, ppo_update
from pipeline.stages.ppo_engine import PolicyEngine
from pipeline.stages.ppo_update import Learner
from pipeline.tracking import read_metrics
from tests.rollouts.ppo_parts import (
    ALONE,
    EOS,
    PAD,
    collected,
    lively_base,
    make_parts,
    sealed_tensors,
    some_episodes,
    some_scores,
    stage_context,
)

pytestmark = pytest.mark.slow
EPISODES, SCORES = some_episodes(16), some_scores(16)
COMMON: dict[str, Any] = {
    "learning_rate": 1e-3, "max_new_tokens": 12, "per_device_batch_size": 2, "minibatches": 2, "epochs": 2,
    "entropy_coef": 0.1, "max_grad_norm": 0.5,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    **{mode: {"loss_aggregation": mode} for mode in ("token_mean", "sequence_mean", "sequence_sum", "constant")},
    "ptx": {"ptx_coef": 0.3},
    "stop": {"stop_kl": 0.1, "epochs": 8},
    "shared": {"value_trunk": "policy", "value_coef": 0.5},
    "rloo": {"advantage_estimator": "rloo", "samples_per_prompt": 4},
    "own_means": {},
}
ROWS: list[Any] = [([1, 40, 41, 50, 51, 2], [False] * 3 + [True] * 3), ([1, 60, 2], [False, True, True])] * 2
STAGE: dict[str, Any] = {"kl_target": 0.5, "kl_horizon": 20, "episodes": 24}


def work(base: Path, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Everything that the tests look at, as one of the ranks."""
    found: dict[str, Any] = {name: learnt(base, folder / name, ranks, name, case) for name, case in CASES.items()}
    parts = make_parts(folder / "answers", base, **COMMON)
    engine = PolicyEngine(parts.roles, lambda model: Generator(model, PAD, (EOS,), 3, "fp32", ranks))
    prompts = [episode.prompt_ids for episode in EPISODES][:7]
    found["answers"] = engine.answers(prompts, Sampling(12, 0.9, seed=4))
    counted: list[int] = []
    thrice = [prompt for prompt in prompts for _ in range(3)]
    found["in_groups"] = engine.answers(thrice, Sampling(12, 0.9, seed=4), lambda done, total: counted.append(total))
    found["of_this_rank"] = counted[0]
    found["stopped"] = stopped(engine, prompts, ranks)
    found["sentence"] = failing(folder / f"failing{ranks.rank}", EPISODES)
    return found


def stopped(engine: PolicyEngine, prompts: Any, ranks: Ranks) -> tuple[bool, int]:
    """Whether sampling ended early, and after how many answers of this rank; the last rank alone is asked to."""
    stop, seen = StopRequest(), [0]

    def progress(done: int, total: int) -> None:
        seen.append(done)
        stop.asked = done > 0 and ranks.rank == ranks.world_size - 1

    try:
        engine.answers(prompts, Sampling(12, 0.9, seed=4), progress, stop)
    except SamplingStopped:
        return True, seen[-1]
    return False, seen[-1]


def learnt(base: Path, folder: Path, ranks: Ranks, name: str, case: dict[str, Any]) -> dict[str, Any]:
    """One rollout's micro-batches, and what the parameters are after learning from it."""
    parts = make_parts(folder, base, members=0, **{**COMMON, **case})
    minibatches = collected(parts, EPISODES, SCORES, ranks)
    draw = (lambda step: ROWS[ranks.rank :: ranks.world_size]) if name == "ptx" else None
    taught = Learner(parts.roles, parts.settings, 4, ranks, draw, PAD)
    original = ppo_update._over_ranks
    if name == "own_means":
        ppo_update._over_ranks = lambda mine: sum(mine) * ranks.world_size
    try:
        report = taught.learn(minibatches, 0, value_only=False)
    finally:
        ppo_update._over_ranks = original
    micros = [micro for minibatch in minibatches for micro in minibatch]
    roles = parts.roles
    return {
        "rows": [[micro.rows for micro in minibatch] for minibatch in minibatches],
        "advantages": {row: micro.advantages_BR[i] for micro in micros for i, row in enumerate(micro.rows)},
        "parameters": {role: [p.detach().clone() for p in roles.trainable(role)] for role in roles.learning},
        "report": report, "means": report.means(),
    }  # fmt: skip


def failing(folder: Path, episodes: Any) -> str:
    """What is said where the user's function fails on the first rank, which alone calls it."""
    from pipeline import reward_function

    folder.mkdir(parents=True)
    (folder / "mine.py").write_text("def worth(prompts, answers):\n    raise ValueError('broken')\n")
    reward = FunctionReward(reward_function.find(f"{folder}/mine.py:worth"))
    try:
        reward.scores(episodes)
    except TrivetError as error:
        return str(error)
    return ""


def whole_stage(base: Path, folder: Path, ranks: Ranks) -> StageResult:
    return ppo.run(stage_context(folder, base, ranks=ranks, **STAGE))


def one_rank(rank: int, world: int, base: Path, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    ranks = Ranks(rank, rank, world)
    found = work(base, folder / f"of-{rank}", ranks)
    found["stage"] = whole_stage(base, folder / "stage" / "ppo", ranks).metrics
    torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tiny_folder, tmp_path_factory) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """What one process finds, what each of two finds, and the folder."""
    folder = tmp_path_factory.mktemp("ranks")
    base = lively_base(folder / "base", tiny_folder)
    multiprocessing.spawn(one_rank, (2, base, folder), nprocs=2)
    alone = work(base, folder / "alone", ALONE)
    alone["stage"] = whole_stage(base, folder / "alone-stage" / "ppo", ALONE).metrics
    return alone, [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in (0, 1)], folder


@pytest.mark.parametrize("case", [name for name in CASES if name != "own_means"])
def test_parameters_are_those_of_one_process(both, case):
    """To 1e-6, of policy and value where it has one, bit for bit the same on both ranks."""
    alone, ranks, _ = both
    assert set(alone[case]["parameters"]) == ({POLICY} if case == "rloo" else {POLICY, VALUE})
    for role in alone[case]["parameters"]:
        expected = alone[case]["parameters"][role]
        first, second = (rank[case]["parameters"][role] for rank in ranks)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert max(float((a - b).abs().max()) for a, b in zip(first, expected, strict=True)) < 1e-6
    assert ranks[0][case]["means"] == pytest.approx(alone[case]["means"], rel=1e-3, abs=1e-5)
    assert ranks[0][case]["report"].steps == ranks[1][case]["report"].steps == alone[case]["report"].steps


def test_control_means_of_ranks_would_not_be(both):
    """Each rank dividing by its own tokens, as if both had as many."""
    alone, ranks, _ = both
    pairs = zip(ranks[0]["own_means"]["parameters"][POLICY], alone["token_mean"]["parameters"][POLICY], strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 1e-5


def test_passes_end_on_both_ranks_at_once(both):
    alone, ranks, _ = both
    reports = [found["stop"]["report"] for found in (alone, *ranks)]
    assert all(report.stopped_early for report in reports)
    assert 1 < reports[0].steps < 16 and len({report.steps for report in reports}) == 1


def test_rows_are_those_of_one_process_shared_out(both):
    alone, ranks, _ = both
    for number, expected in enumerate(alone["token_mean"]["rows"]):
        dealt = [rank["token_mean"]["rows"][number] for rank in ranks]
        assert [rows for pair in zip(*dealt, strict=True) for rows in pair] == expected


def test_advantages_are_whitened_over_both(both):
    alone, ranks, _ = both
    together = {**ranks[0]["token_mean"]["advantages"], **ranks[1]["token_mean"]["advantages"]}
    assert together.keys() == alone["token_mean"]["advantages"].keys()
    for row, expected in alone["token_mean"]["advantages"].items():
        assert torch.allclose(together[row], expected, atol=1e-5)


def test_answers_are_those_of_one_process(both):
    alone, ranks, _ = both
    assert ranks[0]["answers"] == ranks[1]["answers"] == alone["answers"]
    assert len({tuple(answer.ids) for answer in alone["answers"]}) > 4


def test_a_prompts_answers_stay_on_one_rank(both):
    """Seven prompts, three answers to each: four prompts on one rank and three on the other."""
    alone, ranks, _ = both
    assert ranks[0]["in_groups"] == ranks[1]["in_groups"] == alone["in_groups"]
    assert [rank["of_this_rank"] for rank in ranks] == [12, 9] and alone["of_this_rank"] == 21
    assert any(alone["in_groups"][3 * n] != alone["in_groups"][3 * n + 1] for n in range(7))


def test_one_rank_that_is_asked_to_stop_ends_the_sampling_of_both(both):
    """Whether the others have come to their end or not."""
    alone, ranks, _ = both
    assert alone["stopped"][0] and 0 < alone["stopped"][1] < len(alone["answers"])
    assert [rank["stopped"] for rank in ranks] == [(True, 4), (True, 3)]


def test_what_fails_on_the_first_rank_is_said_on_both(both):
    _, ranks, _ = both
    assert "the function raised ValueError: broken" in ranks[0]["sentence"]
    assert ranks[1]["sentence"].split(": ", 1)[1] == ranks[0]["sentence"].split(": ", 1)[1]


def test_a_whole_stage_is_that_of_one_process(both):
    """The first rollout to the bit of rounding, later ones as near as the same answers keep them."""
    alone, ranks, folder = both
    assert ranks[0]["stage"] == ranks[1]["stage"]
    one, two = (metrics(folder / name / "ppo") for name in ("alone-stage", "stage"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    a, b = (sealed_tensors(folder / name / "ppo") for name in ("alone-stage", "stage"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4
    assert ranks[0]["stage"]["selected_rollout"] == alone["stage"]["selected_rollout"]


def metrics(folder: Path) -> dict[tuple[int, str, str], float]:
    lines = read_metrics(folder / "metrics.jsonl")
    keys = [(line["step"], line["split"], line["name"]) for line in lines]
    assert len(keys) == len(set(keys)), "one rank writes"
    skipped = ("time/", "tok_per_s")
    return {key: line["value"] for key, line in zip(keys, lines, strict=True) if not key[2].startswith(skipped)}
