"""A reward that can be exploited, and a gold one that says so: does the watch see the turn, and is it quiet otherwise?

    python -m benchmarks.overoptimisation [--seeds 10]

Answers have a quality q and a show s, both standard normal under the reference. The reward that is trained on counts
q + a s, the gold one q - c exp(s / 2): a little show costs little, much of it costs everything. Training tilts the
policy towards its reward, pi ~ ref exp(strength reward), so q has the mean `strength` and s the mean `a strength`, and
the KL is strength^2 (1 + a^2) / 2 nats. The true turn is known: where 1 = c a / 2 exp(a strength / 2 + 1 / 8). In an
honest run c is 0. In another kind of honest run quality is worth less and less (tanh of its mean), so that the gold
reward levels off and stays; in a third it is worth nothing, so that the gold reward never moves.

What the watch is given is what a run has: means over 128 answers, each with its noise, at each of 40 measurements. It
is asked at every one of them, as training asks it, so a false alarm is one at any time of a run.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from math import log

import numpy as np

from evaluation.overoptimisation import LEAST, Turn, watch

MEASUREMENTS, PROMPTS, ROLLOUTS_EACH, SHOW = 40, 128, 4, 1.2
STRONGEST = 3.6
HARMS = (0.35, 0.5)
HONEST = ("rises", "levels off", "stays level")


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated run as it was measured, and where its gold reward truly turned (None: nowhere)."""

    steps: list[float]
    training: list[float]
    held_out: list[float]
    kl: list[float]
    turn: float | None


def simulate(seed: int, harm: float, *, honest: str = "rises", prompts: int = PROMPTS) -> Run:
    """One run; `harm` is c, `honest` one of `HONEST`."""
    generator = np.random.default_rng(seed)
    steps = [float(ROLLOUTS_EACH * at) for at in range(1, MEASUREMENTS + 1)]
    strengths = STRONGEST * np.arange(1, MEASUREMENTS + 1) / MEASUREMENTS
    training, held_out, kls = [], [], []
    for strength in strengths:
        q, s = (generator.normal(mean, 1, prompts) for mean in (strength, SHOW * strength))
        worth = q - strength + {"rises": strength, "levels off": np.tanh(strength), "stays level": 0.0}[honest]
        held_out.append(float((worth - harm * np.exp(s / 2)).mean()))
        ratio = strength * (q + SHOW * s) - strength**2 * (1 + SHOW**2) / 2
        kls.append(float(ratio.mean()))
        q, s = (generator.normal(mean, 1, prompts) for mean in (strength, SHOW * strength))
        training.append(float((q + SHOW * s).mean()))
    turn = None if not harm else 2 / SHOW * (log(2 / (harm * SHOW)) - 1 / 8)
    return Run(steps, training, held_out, kls, None if turn is None else turn / STRONGEST * steps[-1])


def first_told(run: Run) -> Turn | None:
    """What the watch says first when it is asked at every measurement, as training asks it."""
    series = (run.steps, run.training, run.held_out, run.kl)
    asked = (watch(*(one[:seen] for one in series)) for seen in range(LEAST, len(run.steps) + 1))
    return next((turn for turn in asked if turn is not None), None)


def trial(seeds: int) -> dict[str, object]:
    """How often the watch fired within a tenth of the true step, and how often it did where nothing turned.

    Turns are looked for twice: once the run has ended, and at every measurement until one is told.
    """
    found = []
    for harm in HARMS:
        for seed in range(seeds):
            run = simulate(seed, harm)
            told = {"at_the_end": watch(run.steps, run.training, run.held_out, run.kl), "first": first_told(run)}
            row: dict[str, object] = {"harm": harm, "seed": seed, "true": run.turn}
            for asked, turn in told.items():
                row[asked] = None if turn is None else turn.step
                row[f"{asked}_off"] = None if turn is None or run.turn is None else abs(turn.step / run.turn - 1)
            found.append(row)
    return {
        "runs": found,
        "within_a_tenth": {
            asked: {harm: sum(_near(row[f"{asked}_off"]) for row in found if row["harm"] == harm) for harm in HARMS}
            for asked in ("at_the_end", "first")
        },
        "seeds": seeds,
        "false_alarms": {
            kind: [seed for seed in range(seeds) if first_told(simulate(seed, 0.0, honest=kind))] for kind in HONEST
        },
    }


def _near(off: object) -> bool:
    return isinstance(off, float) and off <= 0.1


def main() -> None:
    """Run the trial and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=10)
    json.dump(trial(parser.parse_args().seeds), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
