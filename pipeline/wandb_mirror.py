"""Weights & Biases as a mirror of `metrics.jsonl` while a stage runs: it may fail in any way without stopping a run.

It may also never answer: everything goes through a thread of its own, which training does not wait for; the start and
the end of a stage wait, for so long and no longer. Behind `tracking.Tracker`; `wandb_push` makes the same runs
afterwards. Layer 2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artefact import Artefact
from pipeline.console import Console
from pipeline.recipe.schema import WandbSettings
from pipeline.redaction import redacted_in
from pipeline.wandb_artefacts import log_lineage, stage_lineage, summary_of
from pipeline.wandb_runs import (
    by_step,
    has_key,
    init_seconds,
    mode,
    open_run,
    require_library,
    run_options,
    tables,
    within,
)
from pipeline.wandb_sender import Sender

FINISH_SECONDS = 120.0
"""How long the end of a stage waits for W&B where `SECONDS` does not say: for metrics, artefacts and the end each."""
SECONDS = "TRIVET_WANDB_SECONDS"
"""Environment variable."""
_PATIENCE = 1.5
"""The library is waited for longer than it waits itself, since it can say why nobody answers."""


class WandbMirror:
    """Copies metrics to Weights & Biases: one group per run, one job type per stage, an id that survives resuming.

    Online it follows live. Offline runs of one id overwrite each other when they are synced, so an offline mirror
    writes once, at the end, from `metrics.jsonl`.
    """

    def __init__(self, settings: WandbSettings, run_dir: Path, run_name: str, stage: str, key: str, console: Console):
        self._console = console
        self._sender: Sender | None = None
        """None before a connection and after the first failure."""
        self._run: Any = None
        """Belongs to the sender's thread until that has nothing left to do."""
        self._reached = -1
        """The last step that was given to the sender."""
        self._tables: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._made: tuple[Artefact, Sequence[Artefact]] | None = None
        self._weights = settings.log_weights
        self._offline = mode() == "offline"
        self._options = run_options(settings, run_dir, run_name, stage, key)

    def start(self, config: Mapping[str, Any]) -> None:
        """Connect, unless W&B is switched off, not logged in, or unreachable: then say so and go on without."""
        self._options["config"] = redacted_in(dict(config))
        if mode() == "disabled":
            return
        if not self._offline and not has_key():
            self._console.say(
                "W&B: no API key on this machine, so this run is tracked in metrics.jsonl only; `wandb login` or "
                "WANDB_MODE=offline turns it on"
            )
            return
        if not self._offline:
            self._guarded(self._connect)

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Mirror freshly written lines, when online; returns at once."""
        self._follow(lines)

    def rewound(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Mirror what an earlier attempt has logged and W&B never got, when online; the new lines come behind it."""
        self._follow([line for line in lines if line["step"] > self._reached])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep a table until the end of the run, when it is sent whole."""
        self._tables[name] = rows

    def made(self, made: Artefact, parents: Sequence[Artefact]) -> None:
        """Keep what the stage made, and from what, until the end of the run."""
        self._made = (made, parents)

    def finish(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """End the W&B run; an offline one is written here, whole."""
        if self._offline and "config" in self._options:
            self._guarded(self._connect)
            self._put(lambda: self._send(lines))
        last = max((line["step"] for line in lines), default=0)
        self._put(lambda: self._send_end(last))
        if (sender := self._sender) is not None:
            self._guarded(lambda: sender.wait(_finish_seconds()))
            sender.close()
        if self._sender is not None and self._made is not None:
            self._send_lineage(*self._made)
        if self._sender is not None:
            self._guarded(lambda: within(_finish_seconds(), self._run.finish))
            self._sender = None

    def _connect(self) -> None:
        # Not in the sender's thread: stages import the library too, and two threads in one import can block each other.
        require_library()
        self._sender = Sender()
        self._sender.put(self._open)
        self._sender.wait(_PATIENCE * init_seconds())

    def _open(self) -> None:
        self._run = open_run(self._options, offline=self._offline, live=not self._offline)

    def _send(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """What W&B holds of an earlier attempt is not sent again: it would drop it anyway."""
        for step, values in by_step(lines):
            if step >= self._run.starting_step:
                self._run.log(values, step=step)

    def _send_end(self, last: int) -> None:
        """Tables with the last step, which they belong to, and headline figures."""
        if found := tables(self._options["job_type"], self._tables):
            self._run.log(found, step=last)
        if self._made is not None and (figures := summary_of(self._made[0].manifest)):
            self._run.summary.update(figures)

    def _send_lineage(self, made: Artefact, parents: Sequence[Artefact]) -> None:
        """Not guarded like the rest: metrics that arrived are worth a run that ends well."""
        run, folder = self._run, Path(self._options["dir"])
        try:
            found = stage_lineage(made, parents, self._options["group"], weights=self._weights)
            within(_finish_seconds(), lambda: log_lineage(run, found, folder, offline=self._offline))
        except Exception as error:
            self._console.say(
                f"W&B did not take the artefacts of stage {self._options['job_type']} ({type(error).__name__}: "
                f"{error}); its metrics are there, and `trivet push` tries again"
            )

    def _follow(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if lines and not self._offline:
            self._reached = max(self._reached, *(line["step"] for line in lines))
            self._put(lambda: self._send(lines))

    def _put(self, action: Callable[[], object]) -> None:
        if (sender := self._sender) is not None:
            self._guarded(lambda: sender.put(action))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._console.say(
                f"W&B failed ({type(error).__name__}: {error}); the run goes on, tracked in metrics.jsonl"
            )
            self._sender = None
            self._offline = False


def _finish_seconds() -> float:
    return float(os.environ.get(SECONDS) or FINISH_SECONDS)
