"""Sealed artefacts: what one stage hands to the next.

A folder is an artefact only if its `manifest.json`, written last and atomically, says so. The manifest names every
file with its hash, the parents it was made from and the settings that made it; opening an artefact checks all that,
so a half-written or damaged folder can never be used. Layer 0: knows nothing of models or torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.durable import (
    fsync_path,
    full_disk_named,
    read_json,
    sha256_file,
    sha256_json,
    write_json_atomically,
)
from pipeline.errors import TrivetError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WORKING_NAMES = frozenset({"checkpoints", "work", ".lock"})
"""Names inside an artefact's folder that belong to the work on it, not to the result."""


class DamagedArtefactError(TrivetError):
    """An artefact's folder does not hold what its manifest promises."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """One file of an artefact; `path` is relative to its folder."""

    path: str
    bytes: int
    sha256: str


class ParentEntry(_Record):
    """An artefact this one was made from, and the part it played."""

    role: str
    stage: str
    key: str


class BaseModelEntry(_Record):
    """The base model under all adapters of a run."""

    name: str
    revision: str | None
    fingerprint: str
    """Hash of its files, or of what identifies them (a hub commit)."""


class TokenizerEntry(_Record):
    """What two stages must agree on before tokens of one mean anything to the other."""

    sha256: str
    chat_template_sha256: str
    vocabulary: int
    pad_id: int
    stop_ids: tuple[int, ...]
    bos_id: int | None

    def differences(self, other: TokenizerEntry) -> list[str]:
        """Names of the fields in which two tokenizers disagree."""
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(other, name)]


class MemoryEntry(_Record):
    """The most that any rank's process took while it made an artefact (of a resumed stage, since then), in GiB."""

    process_gib: float
    gpu_gib: float | None
    """None without a GPU."""


class Manifest(_Record):
    """Everything that is to be known of an artefact."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["policy", "reward_model", "evaluation"]
    stage: str
    stage_kind: str
    key: str
    algorithm_version: int
    settings: dict[str, Any]
    parents: tuple[ParentEntry, ...]
    base: BaseModelEntry
    tokenizer: TokenizerEntry
    form: Literal["adapter", "model", "none"]
    """How weights are stored: an adapter on the base, a full model, or none (an evaluation)."""
    seed: int
    world_size: int
    precision: str
    device: str
    code: dict[str, Any]
    libraries: dict[str, str]
    data: dict[str, Any]
    metrics: dict[str, Any]
    files: tuple[FileEntry, ...] = ()
    created: str
    seconds: float
    memory: MemoryEntry | None = None
    """None where an older version made the artefact."""
    digest: str = ""
    """Hash of all the above, so that an edited manifest is noticed too."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A folder whose manifest has been read, and checked against its files."""

    path: Path
    manifest: Manifest

    @property
    def weights(self) -> Path:
        """Folder of the adapter or the full model."""
        return self.path / self.manifest.form


def completed(folder: Path, manifest: Manifest) -> Artefact:
    """What is to be sealed: every file hashed and flushed to disk, the manifest complete but not yet written.

    Args:
        folder: holds the finished files; `WORKING_NAMES` in it are left out.
        manifest: complete but for `files`, which is filled in here.

    Raises:
        DiskError: the disk is full.
    """
    with full_disk_named(folder):
        files = tuple(_entry(folder, path) for path in _result_files(folder))
        for parent in sorted({path.parent for path in _result_files(folder)}):
            fsync_path(parent)
    sealed = manifest.model_copy(update={"files": files})
    return Artefact(folder, sealed.model_copy(update={"digest": _digest(sealed)}))


def write_seal(made: Artefact) -> None:
    """Write the manifest of what `completed` gave: from here on its folder is an artefact.

    Raises:
        DiskError: the disk is full; the folder stays unsealed.
    """
    write_json_atomically(made.path / MANIFEST, made.manifest.model_dump(mode="json"))
    # Its own name too: without it a power cut would take the whole folder, and the ledger would say it was done.
    fsync_path(made.path.parent)


def seal(folder: Path, manifest: Manifest) -> Artefact:
    """Make a folder an artefact: `completed`, then `write_seal`, so that the manifest comes last."""
    made = completed(folder, manifest)
    write_seal(made)
    return made


def is_sealed(folder: Path) -> bool:
    """Whether a manifest stands in the folder (its truth is checked by `open_artefact`)."""
    return (folder / MANIFEST).is_file()


def open_artefact(folder: Path, key: str | None = None) -> Artefact:
    """Read an artefact and check every file against its manifest.

    Args:
        folder: of the artefact.
        key: that it must have, where the caller knows it.

    Raises:
        DamagedArtefactError: no manifest, an unreadable one, one of another schema, or a file that is missing or
            changed; the message says which and what to type.
    """
    remedy = f"delete the folder {folder} and run the same command again to make it anew"
    if not is_sealed(folder):
        raise DamagedArtefactError(f"{folder} holds no finished artefact (no {MANIFEST}); {remedy}")
    try:
        written = read_json(folder / MANIFEST)
        schema = written.get("schema_version") if isinstance(written, dict) else None
        if isinstance(schema, int) and schema != SCHEMA_VERSION:
            raise DamagedArtefactError(
                f"{folder} was written by another version of Trivet (schema {schema}, this one reads "
                f"{SCHEMA_VERSION}); {remedy}"
            )
        manifest = Manifest.model_validate(written)
    except ValueError as error:
        raise DamagedArtefactError(f"{folder / MANIFEST} cannot be read ({_first_line(error)}); {remedy}") from error
    if manifest.digest != _digest(manifest):
        raise DamagedArtefactError(f"{folder / MANIFEST} is not as it was sealed: it was edited or damaged; {remedy}")
    if key is not None and manifest.key != key:
        raise DamagedArtefactError(
            f"{folder} holds another artefact than its name says (key {manifest.key[:16]}, expected {key[:16]}); "
            f"{remedy}"
        )
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise DamagedArtefactError(f"{path} is missing although the artefact's manifest lists it; {remedy}")
        if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
            raise DamagedArtefactError(f"{path} is not the file that was sealed (its hash differs); {remedy}")
    return Artefact(folder, manifest)


def unseal(folder: Path) -> None:
    """Withdraw an artefact's manifest, so that it counts as unfinished."""
    (folder / MANIFEST).unlink(missing_ok=True)


def _digest(manifest: Manifest) -> str:
    # What was sealed before memory was counted had no such field.
    unsaid = {"memory"} if manifest.memory is None else set()
    return sha256_json(manifest.model_dump(mode="json", exclude={"digest", *unsaid}))


def _entry(folder: Path, path: Path) -> FileEntry:
    fsync_path(path)
    return FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256_file(path))


def _result_files(folder: Path) -> Iterator[Path]:
    """Every file of the result, in a fixed order."""
    for root, folders, names in os.walk(folder):
        inside = Path(root)
        if inside == folder:
            folders[:] = [name for name in folders if name not in WORKING_NAMES]
            names = [name for name in names if name not in WORKING_NAMES and name != MANIFEST]
        folders.sort()
        yield from (inside / name for name in sorted(names) if not name.endswith(".tmp"))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
