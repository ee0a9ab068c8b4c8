"""The light process that a launch starts on every rank: it decides what must run and starts one worker per stage.

The first rank reads, decides, publishes and speaks; the others follow. It holds the run directory's lock, keeps the
ledger, links finished artefacts into the run directory, and writes results and report. It never imports torch itself,
except to reach other ranks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import artefact
from pipeline.assignment import Assignment
from pipeline.console import Console
from pipeline.durable import clear_debris, full_disk_named, write_text_atomically
from pipeline.errors import PreemptedError, RecipeError, TrivetError
from pipeline.faults import reach
from pipeline.ledger import Ledger, previous_keys
from pipeline.locks import WORK_LOCK, clear, hold, tidy, work_on
from pipeline.models.source import BaseIdentity, identify, ready_folder
from pipeline.peers import Peers, free_port
from pipeline.plan import ALGORITHM_VERSIONS, Decision, Node, decide, make_nodes
from pipeline.preflight import check_base, check_data
from pipeline.processes import StageFailed, prepare_base, run_worker
from pipeline.recipe import LoadedRecipe
from pipeline.results import headline, write_results
from pipeline.reward_function import RewardFunction
from pipeline.run_dir import require_run_dir
from pipeline.runtime import Ranks, library_versions
from pipeline.stopping import FLAG

_FOLLOWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line says besides the recipe."""

    only: str | None = None
    until: str | None = None
    force: tuple[str, ...] = ()
    store: str | None = None
    reuse: bool = True
    in_process: bool = False
    reward_function: RewardFunction | None = None


class Supervisor:
    """Runs a recipe on this rank, together with the other ranks' supervisors."""

    def __init__(self, loaded: LoadedRecipe, options: RunOptions, ranks: Ranks, console: Console):
        self._loaded = loaded
        self._recipe = loaded.recipe
        self._options = options
        self._ranks = ranks
        self._console = console
        self._folder = loaded.output_dir.absolute()
        self._peers: Peers

    @property
    def loaded(self) -> LoadedRecipe:
        """The recipe that this runs."""
        return self._loaded

    def run(self) -> None:
        """Bring every node to its sealed artefact, or raise what stopped it."""
        self._require_stage_names()
        self._peers = Peers(self._ranks)
        try:
            if self._ranks.is_first:
                self._lead_all()
            else:
                self._follow()
        finally:
            self._peers.close()

    def _lead_all(self) -> None:
        try:
            self._make_folders()
            with hold(self._folder):
                # What an earlier run said of its end is not true of this one, however this one ends.
                (self._folder / "exit.json").unlink(missing_ok=True)
                clear_debris(self._folder)
                self._lead()
        except TrivetError as error:
            self._release_followers(error)
            raise
        except BaseException as error:
            self._release_followers(StageFailed(1, f"{type(error).__name__}: {error}"))
            raise

    def plan(self) -> list[Decision]:
        """What a run would do now, without doing it."""
        self._require_stage_names()
        base = identify(self._recipe.model.base, self._recipe.model.revision)
        return self._decide(make_nodes(self._recipe, base, self._store(), self._options.reward_function))

    def _lead(self) -> None:
        base = identify(self._recipe.model.base, self._recipe.model.revision)
        revision = f" at {base.revision[:12]}" if base.revision else ""
        self._console.say(f"base model {base.name}{revision} ({base.fingerprint[:12]})")
        nodes = make_nodes(self._recipe, base, self._store(), self._options.reward_function)
        decisions = self._decide(nodes)
        write_text_atomically(self._folder / "recipe.yaml", self._loaded.resolved_yaml())
        ledger = Ledger(self._folder, self._recipe.name, sys.argv, library_versions())
        ledger.plan(decisions)
        self._withdraw(decisions)
        # An earlier run's figures must not stand beside this one's ledger, however this one ends.
        write_results(self._folder, self._recipe.name, nodes, ledger)
        try:
            check_data(self._recipe, [decision.node.name for decision in decisions if decision.action == "run"])
            self._walk(decisions, base, ledger)
            self._peers.agree({"do": "end"})
            ledger.finish()
        except BaseException as error:
            stopped = isinstance(error, (PreemptedError, KeyboardInterrupt))
            ledger.stop("interrupted" if stopped else "failed", str(error))
            raise
        finally:
            write_results(self._folder, self._recipe.name, nodes, ledger)
        self._close()

    def _walk(self, decisions: Sequence[Decision], base: BaseIdentity, ledger: Ledger) -> None:
        nodes = [decision.node for decision in decisions]
        base_folder: Path | None = None
        for decision in decisions:
            if decision.action == "leave":
                if artefact.is_sealed(decision.node.folder):
                    self._link(decision.node)
                continue
            if decision.action == "skip":
                self._skip(decision, ledger)
                continue
            if base_folder is None:
                base_folder = self._prepare_base(base)
                check_base(self._recipe, [each.node.name for each in decisions if each.action == "run"], base_folder)
            self._make(decision, nodes, base, base_folder, ledger)
            write_results(self._folder, self._recipe.name, nodes, ledger)

    def _make_folders(self) -> None:
        require_run_dir(self._folder)
        try:
            with full_disk_named(self._folder):
                (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RecipeError(
                f"output_dir: {self._folder} cannot be a folder, as {error.filename} is a file; choose another"
            ) from error

    def _decide(self, nodes: list[Node]) -> list[Decision]:
        names = [node.name for node in nodes]
        for option in filter(None, (self._options.only, self._options.until, *self._options.force)):
            if option not in names:
                raise RecipeError(f"no stage {option!r} in this recipe; there are {', '.join(names)}")
        wanted, option = names, ""
        if self._options.only is not None:
            wanted, option = [self._options.only], f"--only {self._options.only}"
            by_name = {node.name: node for node in nodes}
            for parent in by_name[self._options.only].parents.values():
                if not artefact.is_sealed(by_name[parent].folder):
                    raise RecipeError(
                        f"{option} needs stage {parent}, which is not finished; run it first with --until {parent}"
                    )
        elif self._options.until is not None:
            wanted, option = names[: names.index(self._options.until) + 1], f"--until {self._options.until}"
        for forced in self._options.force:
            if forced not in wanted:
                raise RecipeError(f"--force {forced} asks for a stage that {option} leaves out; drop one of the two")
        return [
            decision if decision.node.name in wanted else Decision(decision.node, "leave", f"left out by {option}")
            for decision in decide(nodes, previous_keys(self._folder), self._options.force)
        ]

    def _skip(self, decision: Decision, ledger: Ledger) -> None:
        node = decision.node
        sealed = artefact.open_artefact(node.folder, node.key)
        tidy(node.folder)
        self._link(node)
        ledger.update(node.name, status="skipped", seconds=sealed.manifest.seconds)
        self._console.say(f"{node.name}: {decision.reason}, taken from {_shown(node.folder)}")

    def _prepare_base(self, base: BaseIdentity) -> Path:
        """Have every machine hold the base model before any worker asks for it."""
        if ready_folder(base) is None:
            self._console.say(f"fetching {base.name} (once; it is cached for later runs)")
        self._peers.agree({"do": "prepare", "base": asdict(base)})
        folder = prepare_base(base, self._log)
        self._peers.agree({"do": "prepared"})
        return folder

    def _make(
        self, decision: Decision, nodes: Sequence[Node], base: BaseIdentity, base_folder: Path, ledger: Ledger
    ) -> None:
        node = decision.node
        if FLAG.asked:
            self._peers.ask_to_stop()
        if self._peers.asked_to_stop():
            raise PreemptedError(f"asked to stop before {node.name}; run the same command again to go on from there")
        by_name = {other.name: other for other in nodes}
        self._console.say(f"{node.name}: starts ({decision.reason})")
        ledger.update(node.name, status="running")
        started = time.monotonic()
        assignment = Assignment(
            stage=node.name,
            kind=node.kind,
            key=node.key,
            algorithm_version=ALGORITHM_VERSIONS[node.kind],
            settings=node.settings,
            recipe=self._recipe.model_dump(mode="json", by_alias=True),
            folder=str(node.folder),
            run_dir=str(self._folder),
            parents={role: str(by_name[name].folder) for role, name in node.parents.items()},
            base=base,
            base_folder=str(base_folder),
            reward_function=self._options.reward_function,
        )
        port = free_port()
        order = {"do": "run", "assignment": assignment.to_json(), "port": port}
        self._peers.agree(order)
        reach("stage.ordered")
        outcome = self._work(assignment, port)
        if outcome["code"]:
            stopped = outcome["code"] == PreemptedError.exit_code
            ledger.update(node.name, status="interrupted" if stopped else "failed", reason=outcome["sentence"])
            where = f" on rank {outcome['rank']}" if self._ranks.world_size > 1 else ""
            log = f" (details in {_shown(self._folder / 'logs')})" if outcome["code"] == 1 else ""
            raise StageFailed(outcome["code"], f"{node.name}{where}: {outcome['sentence']}{log}")
        sealed = artefact.open_artefact(node.folder, node.key)
        self._link(node)
        reach("stage.linked")
        ledger.update(node.name, status="done", seconds=round(time.monotonic() - started, 1))
        self._console.say(
            f"{node.name}: done in {sealed.manifest.seconds:.0f} s, {headline(node.kind, sealed.manifest.metrics)}"
        )

    def _work(self, assignment: Assignment, port: int) -> dict[str, Any]:
        if self._options.in_process:
            from pipeline.worker import run_here

            return run_here(assignment)
        return run_worker(assignment, self._ranks, self._peers, port, self._log)

    @property
    def _log(self) -> Path:
        """This rank's log file, which receives everything that libraries print."""
        log = self._folder / "logs" / f"rank{self._ranks.rank}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.is_symlink():
            # A run directory that somebody sent could lead our lines into any file.
            log.unlink()
        return log

    def _follow(self) -> None:
        """Every rank but the first: do as told until the end."""
        while True:
            order = self._peers.agree(None)
            if order["do"] == "end":
                return
            if order["do"] == "fail":
                raise StageFailed(order["code"], "")
            if order["do"] == "prepare" and self._ranks.local_rank == 0:
                prepare_base(BaseIdentity(**order["base"]), self._log)
            if order["do"] == "run":
                outcome = self._work(Assignment.from_json(order["assignment"]), order["port"])
                if outcome["code"]:
                    self._peers.leave()
                    # A launcher ends all ranks as soon as one has failed, and the first has yet to say why.
                    time.sleep(_FOLLOWER_SECONDS)
                    raise StageFailed(outcome["code"], "")

    def _release_followers(self, error: TrivetError) -> None:
        """Let the other ranks end too; after a failed worker they have ended by themselves."""
        if not isinstance(error, StageFailed):
            self._peers.give_up({"do": "fail", "code": error.exit_code})

    def _store(self) -> Path:
        if self._options.store is not None:
            return Path(self._options.store).expanduser().absolute()
        return (self._folder if not self._options.reuse else self._folder.parent) / ".store"

    def _withdraw(self, decisions: Sequence[Decision]) -> None:
        """Take back what is to be made anew: all of a forced stage, the seal of what stands on it."""
        for decision in decisions:
            folder = decision.node.folder
            if decision.action != "run" or not folder.is_dir():
                continue
            forced = decision.node.name in self._options.force
            if forced or artefact.is_sealed(folder):
                with work_on(folder, patience=0.0):
                    artefact.unseal(folder)
                    if forced:
                        clear(folder, keep={WORK_LOCK})

    def _link(self, node: Node) -> None:
        """Let the run directory point to the artefact, relatively, so that both can be moved together."""
        link = self._folder / node.name
        target = os.path.relpath(node.folder, self._folder)
        if link.is_symlink() and os.readlink(link) == target:
            return
        aside = self._folder / f".{node.name}.link.tmp"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target, target_is_directory=True)
        os.replace(aside, link)

    def _require_stage_names(self) -> None:
        reserved = {"logs", "evaluation", "base"}
        for name in self._recipe.stages:
            if name in reserved:
                raise RecipeError(f"stages.{name}: this name is taken by the run directory; choose another")

    def _close(self) -> None:
        from evaluation.report.page import write_report
        from evaluation.report.terminal import print_summary

        reach("report.begun", self._folder)
        write_report(self._folder)
        reach("report.written")
        print_summary(self._folder)


def _shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
