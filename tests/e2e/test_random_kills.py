"""Kills by the dozen, at every named point and at moments by chance: no help needed, not a bit of the result different.

SFT, reward model and then DPO or PPO, on the tiny model. Runs are forked from a warm parent, so that a kill costs what
it loses and not the start of two processes. `TRIVET_KILLS=200 pytest -n 0 -m slow tests/e2e/test_random_kills.py` kills
two hundred times, every tenth time a run that was started as users start it; a hundred forked ones by default, which is
enough for every point and for moments besides. `TRIVET_KILLS_SEED` draws others.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.faults import POINTS
from pipeline.runtime import ROOT
from tests.e2e.oracle import account, debris, differences

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("TRIVET_KILLS", "100"))
LAUNCHED_EVERY = 10 if "TRIVET_KILLS" in os.environ else 0
SEED = int(os.environ.get("TRIVET_KILLS_SEED", "0"))
PER_RUN = 10
"""Kills that are meant for one run."""


def recipe_of(kind: str, folder: Path) -> Path:
    """SFT, reward model and the kind of policy optimisation, small."""
    if kind == "ppo":
        return ROOT / "recipes" / "tiny_ppo.yaml"
    text = (ROOT / "recipes" / "tiny_dpo.yaml").read_text()
    reward = "  reward: {learning_rate: 1.0e-2, global_batch_size: 8, precision: fp32, log_every: 2, save_every: 2}\n"
    path = folder / "tiny_reward_dpo.yaml"
    path.write_text(text.replace("  dpo:", reward + "  dpo:"))
    return path


@dataclass(frozen=True)
class Kill:
    """One that is to come."""

    kind: str
    """`point`, or whom to kill: `worker` or `supervisor`."""
    what: object
    """The fault, or after how many seconds."""
    place: float
    """Where in a run about, from 0 to 1."""


@dataclass
class Through:
    """An uninterrupted run: what every other must come to, where it passed, and how long it took."""

    run: object
    account: dict
    passed: list[str]
    """Points, in order."""
    often: dict[str, int]
    """How often a process of it came by a point, at most: each counts for itself."""
    seconds: float
    stages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module", params=["dpo", "ppo"])
def through(request, tmp_path_factory, run_in, warm):
    folder = tmp_path_factory.mktemp(f"through-{request.param}")
    notes = folder / "passed.txt"
    run = run_in(folder / "runs" / "run", recipe=recipe_of(request.param, folder))
    run.warm, run.faults = warm, f"*:note={notes}"
    run.go(launcher="forked")  # fills the caches
    shutil.rmtree(folder / "runs")
    notes.unlink()
    started = time.monotonic()
    run.go(launcher="forked")
    seconds = time.monotonic() - started
    noted = [tuple(line.split()) for line in notes.read_text().splitlines()]
    often: dict[str, int] = {}
    for (name, _), count in Counter(noted).items():
        often[name] = max(count, often.get(name, 0))
    found = Through(run, account(run.folder), [name for name, _ in noted], often, seconds)
    found.stages = list(run.statuses())
    run.faults = ""
    return found


def planned(through: Through, number: int, draw: random.Random) -> list[Kill]:
    """Every point once; of the others two thirds at moments by chance, and one at points at their first few times."""
    first = {name: through.passed.index(name) / len(through.passed) for name in dict.fromkeys(through.passed)}
    names = sorted(first)
    kills = [Kill("point", f"{name}:kill", first[name]) for name in draw.sample(names, len(names))][:number]
    while len(kills) < number:
        if draw.random() < 1 / 3:
            name = draw.choice(names)
            kills.append(Kill("point", f"{name}:kill@{draw.randint(1, min(3, through.often[name]))}", first[name]))
        else:
            moment = draw.uniform(0.0, 0.3)
            kills.append(Kill(draw.choice(("worker", "supervisor")), moment * through.seconds, moment))
    draw.shuffle(kills)
    return kills


class Chain:
    """One run that is killed again and again; it may begin with its first stages finished."""

    def __init__(self, through: Through, name: str, make, kept: int):
        self.run = make(name, through.run.recipe)
        self.run.warm = through.run.warm
        self.kills = 0
        if kept:
            self.begin_after(through, kept)

    def begin_after(self, through: Through, kept: int) -> None:
        """With the artefacts of the first stages, as another run with the same store would leave them."""
        store = self.run.folder.parent / ".store"
        for entry in through.run.json("run.json")["stages"][:kept]:
            name = Path(entry["artefact"]).name
            if not (store / name).exists():
                shutil.copytree(Path(entry["artefact"]), store / name)

    def attempt(self, kind: str, what, launcher: str) -> bool:
        """Whether the run was killed; if it was not, it is over and done."""
        run = self.run
        run.faults = what if kind == "point" else ""
        process = run.start(launcher)
        run.faults = ""
        if kind != "point":
            # A process that was started afresh begins with seconds of imports.
            delay = what if launcher == "forked" else what + 4.0
            deadline = time.monotonic() + delay
            while process.poll() is None and (time.monotonic() < deadline or not self.kill(kind, process)):
                time.sleep(0.002)
        code = process.wait(300)
        where = f"{kind} {what} ({launcher})\n{run.said()[-2000:]}\n{run.log()[-3000:]}"
        assert run.left_behind() == {}, f"left behind after {where}"
        if code == 0:
            return False
        assert code in (-signal.SIGKILL, 1), where
        assert "Traceback" not in run.said(), where
        assert code != 1 or "was killed by SIGKILL" in run.said(), where
        self.kills += 1
        return True

    def kill(self, kind: str, process) -> bool:
        pids = [process.pid] if kind == "supervisor" else self.run.pids("worker")
        for pid in pids[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        return bool(pids)

    def finish(self, through: Through) -> None:
        """No help needed, and nothing different."""
        said = self.run.go(launcher="forked")
        assert "in use by" not in said
        found = differences(account(self.run.folder), through.account)
        assert not found, f"after {self.kills} kills:\n" + "\n".join(found)
        assert debris(self.run.folder) == []


def test_any_number_of_kills_and_not_a_bit_of_difference(through, new_run, capsys):
    draw = random.Random(f"{SEED} {through.stages}")
    plan = planned(through, KILLS // 2, draw)
    done: Counter[str] = Counter()
    points: set[str] = set()
    again: list[Kill] = []
    chains = missed = 0
    while plan or again:
        # What did not come by is tried in a run from the very beginning, where every point does. A run's kills come in
        # the order of their places in it, so that it gets ahead between them.
        kept = 0 if again else draw.choice((0, 0, *range(1, len(through.stages))))
        batch = sorted([*again, *plan[: PER_RUN - len(again)]], key=lambda kill: kill.place)
        plan, again = plan[PER_RUN - len(again) :] if len(again) < PER_RUN else plan, []
        chain = Chain(through, f"chain{chains}", new_run, kept)
        chains += 1
        over = False
        for kill in batch:
            launched = LAUNCHED_EVERY and sum(done.values()) % LAUNCHED_EVERY == 0
            if over:
                again.append(kill)
            elif chain.attempt(kill.kind, kill.what, "python" if launched else "forked"):
                done[f"{'launched' if launched else 'forked'}, {kill.kind}"] += 1
                points |= {str(kill.what).partition(":")[0]} if kill.kind == "point" else set()
            else:
                over, missed = True, missed + 1
                again.append(kill if kill.kind == "point" else Kill(kill.kind, kill.what / 2, kill.place / 2))
                assert missed < 2 * KILLS, f"{kill} never comes"
        chain.finish(through)
        shutil.rmtree(chain.run.folder.parent)
    told = (
        f"{sum(done.values())} kills in {chains} runs of {', '.join(through.stages)}: {dict(sorted(done.items()))}, "
        f"at {len(points)} points"
    )
    with capsys.disabled():
        print(f"\n{told}")
    assert sum(done.values()) == KILLS // 2
    if KILLS >= 100:
        assert points == set(through.passed)
        assert all(any(key.endswith(kind) for key in done) for kind in ("worker", "supervisor")), "none came by chance"


def test_a_chain_passes_the_points_that_are_documented(through):
    """None is left out by accident; those of PPO are passed by its chain alone."""
    ppo = {name for name in POINTS if name.startswith("rollout.")}
    expected = set(POINTS) if "ppo" in through.stages else set(POINTS) - ppo
    assert set(through.passed) == expected


def test_the_forked_run_is_the_launched_one(through, new_run):
    run = new_run("launched", through.run.recipe)
    run.go()
    assert differences(account(run.folder), through.account) == []


def test_another_seed_would_be_noticed(through, new_run):
    run = new_run("other", through.run.recipe, ("--until", "sft", "--set", "seed=18"))
    run.warm = through.run.warm
    run.go(launcher="forked")
    assert run.weights("sft") != through.run.weights("sft")
