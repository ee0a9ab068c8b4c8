"""A disk that forgets at a power cut whatever was not flushed, and one that does not answer for a moment."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline import checkpoint, durable
from pipeline.artefact import is_sealed
from pipeline.checkpoint import commit, keep_only, newest_complete
from pipeline.durable import fsync_path, read_json, sha256_file, write_json_atomically
from pipeline.errors import DiskError
from tests.pipeline.test_checkpoint import Killed, committed, written


class Disk:
    """Watches a folder and knows what of it would be there after a power cut.

    A file's bytes are as they were at its last flush, empty without one; what a folder lists is as it was at the
    folder's last flush. What was there in the beginning is flushed.

    Args:
        root: the folder.
        monkeypatch: of the test.
        at: the power goes after so many flushes, renames and removals; -1 for never.
    """

    CALLS = ("fsync", "replace", "unlink", "rmdir")

    def __init__(self, root: Path, monkeypatch, at: int = -1):
        self.root, self.at, self.count = root, at, 0
        self.bytes: dict[int, bytes] = {}
        self.lists: dict[str, dict[str, int]] = {}
        # Held open, so that no other file gets the number of one that was removed.
        self.held: list[int] = []
        for folder, _, names in os.walk(root):
            for name in names:
                self.flushed(os.path.join(folder, name))
            self.flushed(folder)
        for call in self.CALLS:
            monkeypatch.setattr(os, call, self.wrapped(call, getattr(os, call)))

    def flushed(self, path: str) -> None:
        if os.path.isdir(path):
            self.lists[path] = {entry.name: entry.inode() for entry in os.scandir(path)}
        elif path.startswith(str(self.root)):
            self.held.append(os.open(path, os.O_RDONLY))
            self.bytes[os.fstat(self.held[-1]).st_ino] = Path(path).read_bytes()

    def wrapped(self, name, original):
        def call(*args, **kwargs):
            found = original(*args, **kwargs)
            if name == "fsync":
                self.flushed(os.readlink(f"/proc/self/fd/{args[0]}"))
            self.count += 1
            if self.count == self.at:
                raise Killed
            return found

        return call

    def left(self, copy: Path, *, names_survive: bool) -> Path:
        """What the next start finds, in another folder.

        Args:
            copy: that folder.
            names_survive: whether the disk happened to write down all names before the cut, and only bytes are missing.
        """
        self._leave(str(self.root), copy, names_survive)
        for handle in self.held:
            os.close(handle)
        self.held.clear()
        return copy

    def _leave(self, folder: str, copy: Path, names_survive: bool) -> None:
        copy.mkdir()
        now = {entry.name: entry.inode() for entry in os.scandir(folder)} if os.path.isdir(folder) else {}
        for name, number in (now if names_survive else self.lists.get(folder, {})).items():
            path = os.path.join(folder, name)
            if path in self.lists or os.path.isdir(path):
                self._leave(path, copy / name, names_survive)
            else:
                (copy / name).write_bytes(self.bytes.get(number, b""))


def save(folder: Path) -> None:
    """What a trainer does at a save."""
    path = written(folder, 4)
    commit(path)
    keep_only(folder, path)


def cuts(tmp_path, monkeypatch, act, prepare):
    """The power goes at every moment of an action, and after its end: `(folder found, whether it had ended)`."""
    at = 0
    ended = False
    while not ended:
        at += 1
        for names_survive in (False, True):
            root = tmp_path / f"{at}-{names_survive}"
            root.mkdir()
            prepare(root)
            with monkeypatch.context() as patch:
                disk = Disk(root, patch, at)
                try:
                    act(root)
                    ended = True
                except Killed:
                    pass
            yield disk.left(tmp_path / f"{at}-{names_survive}-left", names_survive=names_survive), ended
    assert at > 3


def test_a_power_cut_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    resumed = []
    for folder, ended in cuts(tmp_path, monkeypatch, save, lambda root: committed(root, 2)):
        found, _ = newest_complete(folder)
        assert found is not None, f"nothing to resume from in {folder}"
        resumed.append((found.name, ended))
    assert {name for name, ended in resumed if not ended} == {"checkpoint-2", "checkpoint-4"}
    assert {name for name, ended in resumed if ended} == {"checkpoint-4"}, "what was said to be saved is"


def test_a_save_that_does_not_flush_would_be_noticed(tmp_path, monkeypatch):
    """The control: a disk that flushes by itself would make the test above pass."""
    monkeypatch.setattr(checkpoint, "fsync_path", lambda path: None)
    found = [newest_complete(left)[0] for left, _ in cuts(tmp_path, monkeypatch, save, lambda root: committed(root, 2))]
    assert None in found


def test_a_power_cut_at_any_moment_of_a_small_write_leaves_the_old_text_or_the_new(tmp_path, monkeypatch):
    seen = []
    for folder, ended in cuts(
        tmp_path,
        monkeypatch,
        lambda root: write_json_atomically(root / "run.json", {"new": 2}),
        lambda root: (root / "run.json").write_text('{"old": 1}'),
    ):
        seen.append((read_json(folder / "run.json"), ended))
    assert {str(text) for text, _ in seen} == {"{'old': 1}", "{'new': 2}"}
    assert all(text == {"new": 2} for text, ended in seen if ended)


def test_a_sealed_artefact_is_there_after_a_power_cut(tmp_path, monkeypatch):
    """Its folder too, and not only what is in it."""
    from pipeline.artefact import completed, open_artefact, write_seal
    from tests.pipeline.test_wandb_artefacts import manifest_of

    def seal(root):
        folder = root / "sft-abc"
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "weights.safetensors").write_bytes(b"weights")
        write_seal(completed(folder, manifest_of("sft")))

    after = []
    for folder, ended in cuts(tmp_path, monkeypatch, seal, lambda root: None):
        if (folder / "sft-abc").is_dir() and is_sealed(folder / "sft-abc"):
            open_artefact(folder / "sft-abc")
            after.append(ended)
        else:
            assert not ended, "it was said to be done"
    assert after.count(True) == 2


class Flaky:
    """A disk that fails to answer so many times."""

    def __init__(self, monkeypatch, name, times, number=errno.ESTALE):
        self.left, original = times, getattr(durable, name)
        monkeypatch.setattr(durable, "_PAUSES", (0.0, 0.0))

        def read(path):
            if self.left:
                self.left -= 1
                raise OSError(number, os.strerror(number), str(path))
            return original(path)

        monkeypatch.setattr(durable, name, read)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EIO])
@pytest.mark.parametrize("name", ["_digest", "_text", "_size"])
def test_a_disk_that_answers_at_the_third_try_costs_no_checkpoint(tmp_path, monkeypatch, name, number):
    path = committed(tmp_path, 2)
    Flaky(monkeypatch, name, 2, number)
    assert newest_complete(tmp_path) == (path, [])


def test_a_disk_that_never_answers_is_named_and_nothing_is_taken_for_damaged(tmp_path, monkeypatch):
    """What is passed over is deleted afterwards: a good checkpoint would be."""
    path = committed(tmp_path, 2)
    disk = Flaky(monkeypatch, "_digest", 100)
    with pytest.raises(
        DiskError, match="could not be read, tried 3 times: Stale file handle; look at the disk"
    ) as caught:
        newest_complete(tmp_path)
    assert str(path) in str(caught.value) and disk.left == 97


def test_what_is_missing_or_damaged_is_not_tried_again(tmp_path, monkeypatch):
    path = committed(tmp_path, 2)
    disk = Flaky(monkeypatch, "_size", 100, errno.ENOENT)
    assert newest_complete(tmp_path) == (None, [path]) and disk.left == 99
    with pytest.raises(FileNotFoundError):
        sha256_file(tmp_path / "none")
    fsync_path(tmp_path)
