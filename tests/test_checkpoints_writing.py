"""Saving a checkpoint, and output that appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import tree, write

from interlingua.checkpoints import Checkpoint, save, writing
from interlingua.ir.atomic import atomic_file, atomic_folder
from interlingua.ir.errors import InterlinguaError, UsageError

# ---- writing


def test_saved_files_are_readable_by_whom_new_files_are(tmp_path):
    for path in save(tmp_path / "m", {}, {"w": np.ones(3)}):
        (tmp_path / "new").touch()
        assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
    (tmp_path / "folder").mkdir()
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_strided_and_scalar_weights_are_written_as_they_read(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    weights = {"t": base.T, "s": base[:, ::2], "z": np.array(3, np.int64), "e": np.broadcast_to(np.float32(2), (2, 2))}
    checkpoint = write(tmp_path / "m", weights)
    for key, array in weights.items():
        assert checkpoint.array(key).shape == array.shape
        assert np.array_equal(checkpoint.array(key), array)


def test_existing_output_is_refused_and_overwritten_on_request(tmp_path):
    write(tmp_path / "m", {"w": np.zeros(9), "v": np.zeros(9)}, max_shard_bytes=8)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"output .*m already has .*\n  overwrite it \(--overwrite, overwrite=True\)"):
        save(tmp_path / "m", {}, {"w": np.ones(9)})
    (tmp_path / "m" / "config.json").unlink()  # the shards alone are in the way as well
    with pytest.raises(UsageError, match="already has"):
        save(tmp_path / "m", {}, {"w": np.ones(9)})
    save(tmp_path / "m", {"model_type": "tiny"}, {"w": np.ones(9)}, overwrite=True)
    assert set(tree(tmp_path / "m")) == {"config.json", "model.safetensors", "notes.txt"}, "the old shards are out of the way"
    assert Checkpoint(tmp_path / "m").array("w").sum() == 9
    write(tmp_path / "m", {"w": np.zeros(9), "v": np.zeros(9)}, max_shard_bytes=8, overwrite=True)
    assert tree(tmp_path) == before


def test_a_checkpoint_is_saved_over_itself(tmp_path):
    checkpoint = write(tmp_path / "m", {"w": np.arange(5.0), "v": np.arange(3)})
    save(tmp_path / "m", checkpoint.config, {key: checkpoint.array(key) for key in checkpoint}, overwrite=True)
    assert Checkpoint(tmp_path / "m").array("w").tolist() == [0, 1, 2, 3, 4]


def test_extra_files_are_carried(tmp_path):
    (tmp_path / "vocab.txt").write_text("words")
    save(tmp_path / "m", {}, {"w": np.ones(2)}, extra_files={"vocab.txt": tmp_path / "vocab.txt", "1_Pooling/config.json": tmp_path / "vocab.txt"})
    assert (tmp_path / "m" / "1_Pooling" / "config.json").read_text() == (tmp_path / "m" / "vocab.txt").read_text() == "words"


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, exists):
    if exists:
        write(tmp_path / "m", {"w": np.zeros(9)})
    before = tree(tmp_path)
    shards = []

    def full(path, arrays, metadata):
        shards.append(path)
        path.write_bytes(b"half")
        if len(shards) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_write_shard", full)
    with pytest.raises(InterlinguaError, match=r"output .*m: the disk is full \(No space left on device\), nothing was written") as caught:
        save(tmp_path / "m", {}, {"w": np.ones(9), "v": np.ones(9), "u": np.ones(9)}, max_shard_bytes=8, overwrite=True)
    assert caught.value.exit_code == 1
    assert len(shards) == 2
    assert tree(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["m"] if exists else [])


def test_a_real_write_that_does_not_fit_is_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(InterlinguaError, match="the disk is full"):
            save(tmp_path / "m", {}, {"w": np.ones(1 << 16)})
        with pytest.raises(InterlinguaError, match="the disk is full"), atomic_file(tmp_path / "array") as path:
            np.ones(1 << 16).tofile(path)  # NumPy's error has no errno
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ({}, {"w": np.ones(2, np.complex64)}, "weight 'w': dtype complex64 has no counterpart"),
        ({}, {"w": np.array(["a"])}, "weight 'w': dtype <U1 has no counterpart"),
        ({"a": {1, 2}}, {"w": np.ones(2)}, "config cannot be written as JSON"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, config, weights, message):
    with pytest.raises(UsageError, match=message):
        save(tmp_path / "m", config, weights)
    assert not list(tmp_path.iterdir())


# ---- atomic output


def test_atomic_folder_makes_parents_only_at_the_end(tmp_path):
    def half() -> None:
        with atomic_folder(tmp_path / "a" / "b") as staging:
            (staging / "x").write_text("1")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert tree(tmp_path) == {"a/b/x": b"1"}


def test_atomic_file_replaces_only_on_request_and_only_on_success(tmp_path):
    path = tmp_path / "x"
    with atomic_file(path) as staged:
        staged.write_text("old")
    with pytest.raises(UsageError, match="already has x"), atomic_file(path) as staged:
        pytest.fail("refused before the work")

    def interrupted() -> None:
        with atomic_file(path, overwrite=True) as staged:
            staged.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with atomic_file(path, overwrite=True) as staged:
        staged.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    def raced() -> None:
        with atomic_file(tmp_path / "x") as staged:
            staged.write_text("ours")
            (tmp_path / "x").write_text("theirs")

    with pytest.raises(UsageError, match="already has x"):
        raced()
    assert tree(tmp_path) == {"x": b"theirs"}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_failing_move_takes_the_others_back(tmp_path, monkeypatch, links):
    for name in ("a", "c", "stale"):
        (tmp_path / name).write_text("old")
    before = tree(tmp_path)
    replace = os.replace

    def failing(source, target):
        if Path(target) == tmp_path / "d":
            raise OSError(errno.EIO, "broken")
        replace(source, target)

    def no_link(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "replace", failing)
    if not links:
        monkeypatch.setattr(os, "link", no_link)

    def renew(names: str) -> None:
        with atomic_folder(tmp_path, removes=["stale", "gone"], overwrite=True) as staging:
            for name in names:
                (staging / name).write_text("new")

    with pytest.raises(OSError, match="broken"):
        renew("abcd")
    assert tree(tmp_path) == before
    renew("abc")
    assert tree(tmp_path) == dict.fromkeys("abc", b"new")


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file, expected a folder"), atomic_folder(tmp_path / "file" / "x"):
        pytest.fail("refused before the work")
    (tmp_path / "sub").mkdir()
    with pytest.raises(UsageError, match="sub is a folder, expected to write a file there"), atomic_file(tmp_path / "sub", overwrite=True):
        pytest.fail("refused before the work")
    if os.geteuid():
        (tmp_path / "sub").chmod(0o500)
        with pytest.raises(UsageError, match="cannot be written to: Permission denied"), atomic_file(tmp_path / "sub" / "x"):
            pytest.fail("refused before the work")
