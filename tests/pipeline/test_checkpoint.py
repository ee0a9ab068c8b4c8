"""The commit protocol: at whatever point a save or a clean-up dies, resuming finds a whole checkpoint or none."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil

import pytest

from pipeline import checkpoint
from pipeline.checkpoint import (
    MARKER,
    all_checkpoints,
    commit,
    is_complete,
    keep_only,
    made_by,
    newest_complete,
    step_of,
)
from pipeline.durable import read_json
from pipeline.errors import DiskError


class Killed(BaseException):
    """Stands for SIGKILL."""


def written(folder, step, content=b"weights"):
    """A checkpoint as the trainer's own writer leaves it."""
    path = folder / f"checkpoint-{step}"
    (path / "global_step").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content * 100)
    (path / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (path / "global_step" / "rng_state_1.pth").write_bytes(b"rng of the second rank")
    return path


def committed(folder, step):
    path = written(folder, step)
    commit(path)
    return path


def test_a_checkpoint_counts_once_it_is_committed(tmp_path):
    path = written(tmp_path, 4)
    assert not is_complete(path)
    assert newest_complete(tmp_path) == (None, [path])
    commit(path)
    assert is_complete(path)
    assert newest_complete(tmp_path) == (path, [])
    assert read_json(path / MARKER)["step"] == 4
    assert set(read_json(path / MARKER)["files"]) == {
        "model.safetensors", "trainer_state.json", "global_step/rng_state_1.pth",
    }  # fmt: skip


def test_a_checkpoint_knows_what_made_it(tmp_path):
    path = written(tmp_path, 4)
    commit(path, {"ranks": 2, "engine": "DeepSpeed ZeRO-2"})
    assert is_complete(path) and made_by(path) == {"ranks": 2, "engine": "DeepSpeed ZeRO-2"}
    assert made_by(committed(tmp_path, 6)) == {}


def test_nothing_is_no_checkpoint(tmp_path):
    assert newest_complete(tmp_path) == (None, [])
    assert newest_complete(tmp_path / "nowhere") == (None, [])
    keep_only(tmp_path / "nowhere", None)


def test_newest_is_by_step_whatever_the_clock_says(tmp_path):
    """Steps 9, 10 and 100 also sort differently as text."""
    paths = [committed(tmp_path, step) for step in (9, 100, 10, 2)]
    for order in itertools.permutations(range(4)):
        for path, age in zip(paths, order, strict=True):
            os.utime(path, (1e9 + age, 1e9 + age))
            os.utime(path / MARKER, (1e9 - age, 1e9 - age))
        assert newest_complete(tmp_path) == (tmp_path / "checkpoint-100", [])


def test_incomplete_ones_are_passed_over_newest_first(tmp_path):
    committed(tmp_path, 2)
    good = committed(tmp_path, 4)
    torn, half = written(tmp_path, 6), written(tmp_path, 8)
    (half / "model.safetensors").unlink()
    assert newest_complete(tmp_path) == (good, [half, torn])


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "global_step/rng_state_1.pth"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "delete", "folder"])
def test_damage_of_any_kind_to_any_file_is_passed_over(tmp_path, name, damage):
    good, bad = committed(tmp_path, 2), committed(tmp_path, 4)
    path = bad / name
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "grow":
        path.write_bytes(content + b"\0")
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    assert newest_complete(tmp_path) == (good, [bad])


def test_a_damaged_marker_is_never_a_crash(tmp_path):
    """Each byte of the marker flipped in turn: complete only where the JSON still says the same."""
    path = committed(tmp_path, 4)
    content = (path / MARKER).read_bytes()
    meaning = read_json(path / MARKER)
    complete = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 4
        (path / MARKER).write_bytes(flipped)
        if is_complete(path):
            assert read_json(path / MARKER) == meaning
            complete += 1
    assert complete < len(content) // 4
    for text in ("", "{}", "[]", "null", '{"step": 4, "files": []}', '{"step": 4, "files": {"model.safetensors": 1}}'):
        (path / MARKER).write_text(text)
        assert not is_complete(path)


def test_a_marker_copied_from_another_checkpoint_does_not_count(tmp_path):
    """Equal files, other step: a copied folder would resume at the wrong step."""
    shutil.copytree(committed(tmp_path, 4), tmp_path / "checkpoint-6")
    assert newest_complete(tmp_path) == (tmp_path / "checkpoint-4", [tmp_path / "checkpoint-6"])


def test_only_folders_named_like_a_checkpoint_count(tmp_path):
    committed(tmp_path, 2)
    for name in ("checkpoint-", "checkpoint-x", "checkpoint-3.tmp", "tmp-checkpoint-3", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-2"]
    with pytest.raises(ValueError, match="not named like a checkpoint"):
        step_of(tmp_path / "runs")


def test_keep_only_leaves_one_and_nothing_else(tmp_path):
    kept = [committed(tmp_path, step) for step in (2, 4, 6)][1]
    written(tmp_path, 8)
    (tmp_path / "notes.txt").write_text("not ours to delete")
    keep_only(tmp_path, kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "notes.txt"]
    assert is_complete(kept)
    keep_only(tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_marker_goes_before_any_file_does(tmp_path, monkeypatch):
    old, new = committed(tmp_path, 2), committed(tmp_path, 4)

    def killed(path, **kwargs):
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        keep_only(tmp_path, new)
    assert not (old / MARKER).exists()
    assert (old / "model.safetensors").exists()


class FaultyDisk:
    """Kills at the n-th call that changes or flushes the disk, before or after it took place."""

    CALLS = ("fsync", "replace", "unlink", "rmdir")

    def __init__(self, monkeypatch, at: int, after: bool):
        self.count = 0
        self.at = at
        self.after = after
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, original):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.at and not self.after:
                raise Killed
            result = original(*args, **kwargs)
            if self.count == self.at:
                raise Killed
            return result

        return call


def save(folder, step):
    """What a trainer does at a save: write, commit, drop the older ones."""
    path = written(folder, step)
    commit(path)
    keep_only(folder, path)


def count_of_calls(folder, monkeypatch) -> int:
    with monkeypatch.context() as patch:
        disk = FaultyDisk(patch, -1, False)
        save(folder, 4)
    return disk.count


def test_killed_at_every_point_of_a_save_something_whole_is_left(tmp_path, monkeypatch):
    committed(tmp_path / "count", 2)
    points = count_of_calls(tmp_path / "count", monkeypatch)
    assert points > 12
    resumed = set()
    for at, after in itertools.product(range(1, points + 1), (False, True)):
        folder = tmp_path / f"{at}-{after}"
        old = committed(folder, 2)
        with monkeypatch.context() as patch:
            FaultyDisk(patch, at, after)
            with pytest.raises(Killed):
                save(folder, 4)
        found, passed_over = newest_complete(folder)
        assert found is not None, f"nothing to resume from after call {at}"
        assert found.name in ("checkpoint-2", "checkpoint-4")
        resumed.add(found.name)
        if found == old:
            assert [path.name for path in passed_over] == ["checkpoint-4"]
        keep_only(folder, found)
        assert [path.name for path in folder.iterdir()] == [found.name]
        # The interrupted save is repeated over the debris without help.
        if found == old:
            save(folder, 4)
        assert newest_complete(folder)[0] == folder / "checkpoint-4"
    assert resumed == {"checkpoint-2", "checkpoint-4"}, "both sides of the commit point were met"


def test_every_file_and_folder_is_flushed_before_the_marker_stands(tmp_path, monkeypatch):
    path = written(tmp_path, 2)
    flushed = set()
    fsync = os.fsync

    def seen(handle):
        if not (path / MARKER).exists():
            flushed.add(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", seen)
    commit(path)
    inside = {str(found) for found in path.rglob("*") if found.name != MARKER}
    assert inside | {str(path), str(tmp_path)} <= flushed


def test_a_full_disk_while_committing_leaves_the_last_one_standing(tmp_path, monkeypatch):
    good, new = committed(tmp_path, 2), written(tmp_path, 4)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=str(new)):
        commit(new)
    monkeypatch.undo()
    assert newest_complete(tmp_path) == (good, [])
    assert not new.exists(), "what cannot be completed must not fill the disk"


def fill(folder) -> None:
    """Use up every last byte of a disk."""
    with (folder / "filler").open("ab", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * 1024)
        except OSError as error:
            assert error.errno == errno.ENOSPC


def test_a_checkpoint_that_will_not_fit_is_not_begun(small_disk):
    """By what is expected where there is none yet, by the size of the one before where there is."""
    new = small_disk / "checkpoint-4"
    with pytest.raises(DiskError, match=r"3\.0 MB needed"), checkpoint.being_written(new, 3_000_000):
        raise AssertionError("it was begun")
    with checkpoint.being_written(new, 1_000):
        written(small_disk, 4, content=b"w" * 10_500)
    commit(new)
    with (
        pytest.raises(DiskError, match=r"1\.1 MB needed"),
        checkpoint.being_written(small_disk / "checkpoint-6", 1_000),
    ):
        raise AssertionError("it was begun")
    # Another process's part is not looked at: the first one's is on the disk already.
    with checkpoint.being_written(small_disk / "checkpoint-6"):
        pass
    assert newest_complete(small_disk) == (new, [])


def test_before_a_stage_trains_the_disk_is_looked_at(small_disk):
    folder = small_disk / "sft" / "checkpoints"
    assert checkpoint.will_fit(folder, 500_000) == ""
    said = checkpoint.will_fit(folder, 1_500_000)
    assert str(folder) in said and "first checkpoint of about 1.5 MB fits" in said and "output_dir" in said
    with pytest.raises(DiskError, match=r"3\.0 MB needed"):
        checkpoint.will_fit(folder, 3_000_000)
    folder.mkdir(parents=True)
    committed(folder, 2)
    assert checkpoint.will_fit(folder, 3_000_000) == "", "what is there says how large they are"


def test_a_really_full_disk_at_any_point_keeps_the_last_good_one(small_disk):
    """Ten saves that run into the end of a 2 MB disk; room is made, and the same save goes through."""
    draw = random.Random(0)
    good = committed(small_disk, 2)
    for attempt in range(10):
        with pytest.raises(DiskError, match="MB free"), checkpoint.full_disk_named(small_disk):
            if attempt % 2:
                (small_disk / "filler").write_bytes(b"x" * draw.randrange(1_500_000, 2_000_000))
            path = written(small_disk, 4, content=b"w" * 4000)
            fill(small_disk)
            commit(path)
        found, passed_over = newest_complete(small_disk)
        # Half of its files are for the trainer to remove; a whole one that lacks its marker is gone.
        assert found == good and set(passed_over) <= {small_disk / "checkpoint-4"}
        (small_disk / "filler").unlink()
        keep_only(small_disk, good)
    save(small_disk, 4)
    assert newest_complete(small_disk) == (small_disk / "checkpoint-4", [])
