"""A stage's sealed artefact in Weights & Biases, and what it was made from: data, SFT, reward model, policy.

W&B knows an artefact by name and content. Names come from keys and the content from manifests, without what differs
between two makings of the same thing, so a stage that is resumed, pushed again or shared by runs is there once, and
whoever used it points at it. Layer 2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefact import Artefact, FileEntry, Manifest
from pipeline.durable import sha256_json, write_text_atomically
from pipeline.redaction import redacted_in

TYPES = {"sft": "sft", "reward": "reward-model", "dpo": "policy", "ppo": "policy", "evaluation": "evaluation"}
"""Kind of stage to what W&B calls the type of its artefact."""
EVALUATION = "evaluation"
_OF_THE_MAKING = {"created", "seconds", "memory", "digest"}
"""Fields of a manifest that a second making of the same artefact would write differently."""
_BESIDE_WEIGHTS = "reward_model.json"
"""What belongs to a reward model's weights but stands outside their folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedArtefact:
    """One artefact as W&B is told of it."""

    name: str
    """`dpo-ce7ea0bf0cb5c839`: unlike a run's name, the same wherever the artefact is used."""
    type: str
    content: Mapping[str, Any]
    """What its one small file holds."""
    metadata: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    files: tuple[tuple[str, Path], ...] = ()
    """Weights, where they are wanted: name inside the artefact, and where the file lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What a stage made, and what it made it from."""

    made: TrackedArtefact
    used: tuple[TrackedArtefact, ...]


def stage_lineage(made: Artefact, parents: Sequence[Artefact], run_name: str, *, weights: bool) -> Lineage:
    """The artefact of a stage with its parents and its data.

    Args:
        made: complete, sealed or about to be.
        parents: what it was made from; one that plays two parts counts once.
        run_name: becomes an alias, with the stage's name.
        weights: add adapters or models, not only manifests.
    """
    own = _of_stage(made, weights, (f"{run_name}.{made.manifest.stage}",))
    distinct = {parent.manifest.key: parent for parent in parents}
    used = [*_data(made.manifest), *(_of_stage(parent, weights) for parent in distinct.values())]
    return Lineage(made=own, used=tuple(used))


def summary_of(manifest: Manifest) -> dict[str, float]:
    """A stage's headline figures under the names they have in W&B."""
    figures = manifest.metrics.get("policies") or {} if manifest.stage_kind == EVALUATION else manifest.metrics
    return {f"{manifest.stage}/{name}": value for name, value in flat(figures).items()}


def flat(figures: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Finite numbers by their path: `ppo/rule_accuracy`."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{before}{name}"] = value
    return found


def log_lineage(run: Any, lineage: Lineage, folder: Path, *, offline: bool) -> None:
    """Declare what a run used, then what it made.

    Args:
        run: of W&B, open.
        lineage: of the stage.
        folder: the run directory; what is sent lies below its `wandb` until it has been.
        offline: as the run was opened.
    """
    for used in lineage.used:
        artifact = _artifact(used, folder)
        if offline:
            # `use_artifact` refuses, since it waits for an answer; this is the part of it that does not.
            run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
        else:
            run.use_artifact(artifact)
    run.log_artifact(_artifact(lineage.made, folder), aliases=list(lineage.made.aliases))


def _artifact(tracked: TrackedArtefact, folder: Path) -> Any:
    import wandb

    artifact = wandb.Artifact(tracked.name, type=tracked.type, metadata=dict(tracked.metadata))
    written = folder / "wandb" / "artefacts" / f"{tracked.name}.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(written, json.dumps(tracked.content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    for name, place in (("manifest.json", written), *tracked.files):
        # Sealed files do not change, so W&B need not copy them first.
        artifact.add_file(str(place.resolve()), name=name, policy="immutable", skip_cache=True)
    return artifact


def _of_stage(found: Artefact, weights: bool, aliases: tuple[str, ...] = ()) -> TrackedArtefact:
    manifest = found.manifest
    return TrackedArtefact(
        name=f"{manifest.stage_kind}-{manifest.key[:16]}",
        type=TYPES.get(manifest.stage_kind, manifest.kind),
        content=redacted_in(
            {
                **manifest.model_dump(mode="json", exclude=_OF_THE_MAKING),
                "files": [entry.model_dump() for entry in _weights(manifest)],
            }
        ),
        metadata={
            "stage": manifest.stage,
            "key": manifest.key,
            "base": redacted_in(manifest.base.name),
            "seed": manifest.seed,
            "form": manifest.form,
            "figures": summary_of(manifest),
        },
        aliases=aliases,
        files=tuple((entry.path, found.path / entry.path) for entry in _weights(manifest)) if weights else (),
    )


def _weights(manifest: Manifest) -> Iterable[FileEntry]:
    """The files that hold what was learned; others, such as metrics with their times, are no part of what it is."""
    for entry in manifest.files:
        if entry.path.startswith(f"{manifest.form}/") or entry.path == _BESIDE_WEIGHTS:
            yield entry


def _data(manifest: Manifest) -> Iterable[TrackedArtefact]:
    """The data sets of a stage: how their rows are chosen, and hashes of the files they come from; no row."""
    for which, settings in sorted((manifest.settings.get("data") or {}).items()):
        content = {"data": which, **redacted_in(settings)}
        yield TrackedArtefact(
            name=f"data-{which}-{sha256_json(content)[:16]}", type="data", content=content, metadata={"data": which}
        )
