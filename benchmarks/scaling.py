"""How the cost of a pass, of sampling and of PPO's learning grows with its work: length, batch, samples, passes, size.

    python -m benchmarks.scaling [--what length batch samples epochs size] [--adapter-layers top-10] [--json FILE]

Printed beside each time are the tokens that went through the layers and the counted matrix products, each also as a
multiple of the first point's, and the products as a share of this machine's measured peak. Where time grows faster than
work, something is done twice, or the hardware is used worse. Attention, which grows with the square of the length, is
not among the counted products. Sizes are random models in millions of parameters; where one does not fit, `--most`
leaves it and larger ones out.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.meter import Measured, count_streaming_head, count_work, machine, matmul_peak, synchronise
from benchmarks.ppo_parts import ALONE, four_roles, scored_rollout
from benchmarks.shapes import write_shape
from pipeline.batches import response_batch
from pipeline.models.roles import POLICY, Roles
from pipeline.models.source import identify, materialise
from pipeline.recipe.stage_settings import PpoSettings
from pipeline.rollouts.answers import Answer, Sampling
from pipeline.rollouts.generate import Generator
from pipeline.runtime import resolve_precision
from pipeline.stages.ppo_update import Learner

POINTS = {
    "length": (128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 2, 4, 8, 16),
    "samples": (1, 2, 4, 8, 16),
    "epochs": (1, 2, 4),
    "size": (135, 360, 1000, 7000),
}
SIZES = {135: "135m", 360: "360m", 1000: "1b", 7000: "7b"}
PROMPT, ANSWER, ROWS = 96, 32, 4
"""Tokens, and rows where they are not what changes."""


class Bench(NamedTuple):
    """What all points share."""

    model: Any
    roles: Roles
    precision: str
    draw: random.Random

    def ids(self, count: int) -> list[int]:
        """Random tokens."""
        size = self.model.config.get_text_config().vocab_size
        return [self.draw.randrange(3, size) for _ in range(count)]

    def learn_from(self, rows: int, prompt: int, answer: int) -> None:
        """The policy forward and backward over so many answers to prompts of their own."""
        asked, given = ([self.ids(length) for _ in range(rows)] for length in (prompt, answer))
        scores = self.roles.logps(POLICY, response_batch(asked, given, 0), 1.0)
        self.roles.backward(scores.logps_BR.sum())

    def sample(self, count: int) -> None:
        """So many answers to one prompt, none of which ends early."""
        with self.roles.sampling() as model:
            generator = Generator(model, 0, (), count, self.precision, ALONE)
            generator.answers([self.ids(PROMPT)] * count, Sampling(ANSWER, 1.0))

    def ppo(self, epochs: int) -> None:
        """A rollout of given answers: scored, and learnt from in so many passes."""
        settings = PpoSettings(
            epochs=epochs, rollout_batch_size=ROWS, per_device_batch_size=ROWS, max_new_tokens=ANSWER, episodes=ROWS
        )
        prompts = [self.ids(PROMPT) for _ in range(ROWS)]
        answers = [Answer(self.ids(ANSWER), True) for _ in range(ROWS)]
        minibatches = scored_rollout(self.roles, prompts, answers, settings, 0, 0)
        Learner(self.roles, settings, 1, ALONE, None, 0).learn(minibatches, 0, value_only=False)


def main() -> None:
    """Measure, print, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=tuple(POINTS), default=tuple(POINTS))
    parser.add_argument("--base", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--adapter-layers", default="all", metavar="LAYERS", help="all, or top-N")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a point; the median counts")
    parser.add_argument("--most", type=int, help="leave out points beyond this")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")
    options = parser.parse_args()
    print(machine(), flush=True)
    precision = resolve_precision(options.precision)
    peak = matmul_peak(precision == "bf16")
    measured = Measured()
    count_streaming_head(measured)
    found = {}
    for what in options.what:
        found[what] = _curve(what, _benches(what, precision, measured, options), measured, options, peak)
    if options.json:
        report = {"machine": machine(), "matmul_peak_flops": peak, "curves": found}
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _benches(what: str, precision: str, measured: Measured, options: argparse.Namespace) -> Callable[[int], Bench]:
    """What a point stands on: a model for all, or one of the point's own size."""

    def bench(base: Path) -> Bench:
        model, roles = four_roles(base, options.adapter_layers, precision)
        count_work(model, measured)
        return Bench(model, roles, precision, random.Random(0))

    def of_size(size: int) -> Bench:
        with tempfile.TemporaryDirectory() as folder:
            write_shape(SIZES[size], Path(folder))
            return bench(Path(folder))

    if what == "size":
        return of_size
    shared = bench(materialise(identify(options.base, None)))
    return lambda value: shared


def _curve(
    what: str, bench_of: Callable[[int], Bench], measured: Measured, options: argparse.Namespace, peak: float
) -> list[dict[str, Any]]:
    """One table: a line for each point."""
    print(f"\n{what:<8} {'seconds':>9} {'x':>7} {'tokens':>8} {'x':>7} {'GFLOP':>9} {'x':>7} {'of peak':>8}")
    found: list[dict[str, Any]] = []
    for value in POINTS[what]:
        if options.most is not None and value > options.most:
            continue
        row = {what: value, **_point(_run(what, value, bench_of(value)), measured, options.repeats)}
        found.append(row)
        first = found[0]
        times = {key: row[key] / first[key] for key in ("seconds", "tokens", "flops")}
        print(
            f"{value:<8} {row['seconds']:>9.3f} {times['seconds']:>7.2f} {row['tokens']:>8} {times['tokens']:>7.2f} "
            f"{row['flops'] / 1e9:>9.1f} {times['flops']:>7.2f} {row['flops'] / row['seconds'] / peak:>8.0%}",
            flush=True,
        )
    return found


def _run(what: str, value: int, bench: Bench) -> Callable[[], None]:
    match what:
        case "length":
            return lambda: bench.learn_from(1, value // 2, value - value // 2)
        case "batch":
            return lambda: bench.learn_from(value, PROMPT, ANSWER)
        case "samples":
            return lambda: bench.sample(value)
        case "size":
            return lambda: bench.learn_from(ROWS, PROMPT, ANSWER)
    return lambda: bench.ppo(value)


def _point(run: Callable[[], None], measured: Measured, repeats: int) -> dict[str, Any]:
    """Median seconds, and the work of one run, which is the same each time."""
    run()
    before, seconds = (measured.tokens_computed, measured.flops), []
    for _ in range(repeats):
        synchronise()
        start = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "tokens": (measured.tokens_computed - before[0]) // repeats,
        "flops": (measured.flops - before[1]) / repeats,
    }


if __name__ == "__main__":
    main()
