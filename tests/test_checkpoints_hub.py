"""Folders and hub ids, without any network."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from checkpoint_files import tree

from interlingua.checkpoints import hub, resolve
from interlingua.ir.errors import InterlinguaError, UsageError

# ---- the hub


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A repository `files` that `snapshot_download` gives by pattern; the calls are kept."""
    import fnmatch

    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    repository: dict[str, bytes] = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "1_Pooling/config.json": b"{}",
        "onnx/model.onnx": b"x",
        "code.py": b"x",
    }
    calls: list[dict] = []
    folder = tmp_path / "cache" / ("a" * 40)

    def snapshot_download(repo_id, *, revision, allow_patterns, token, cache_dir, local_files_only):
        calls.append({"id": repo_id, "revision": revision, "token": token, "offline": local_files_only})
        for name, content in repository.items():
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return repository, calls, folder


def test_a_folder_is_taken_as_it_is(tmp_path, fake_hub):
    (tmp_path / "bert-base").mkdir()
    assert resolve("bert-base") == Path("bert-base")
    assert resolve(tmp_path) == tmp_path
    assert not fake_hub[1]


def test_only_what_is_needed_is_downloaded(fake_hub):
    repository, calls, folder = fake_hub
    repository |= {"model.safetensors": b"x", "pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "model.fp16.safetensors": b"x"}
    assert resolve("org/name", revision="v1", token="secret") == folder
    assert set(tree(folder)) == {"config.json", "tokenizer.json", "1_Pooling/config.json", "model.safetensors"}
    assert calls == [{"id": "org/name", "revision": "v1", "token": "secret", "offline": False}]


def test_pickles_are_downloaded_where_there_is_nothing_else_and_from_the_same_commit(fake_hub):
    repository, calls, folder = fake_hub
    repository |= {"pytorch_model.bin": b"x", "tf_model.h5": b"x"}
    resolve("name")
    assert {"pytorch_model.bin"} == set(tree(folder)) - {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert [call["revision"] for call in calls] == [None, "a" * 40]


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_are_downloaded_by_the_names_in_the_index(fake_hub, index):
    repository, _, folder = fake_hub
    repository |= {index: json.dumps({"weight_map": {"a": "one", "b": "two", "c": "two"}}).encode(), "one": b"1", "two": b"2", "three": b"3"}
    resolve("org/name")
    assert {index, "one", "two"} == set(tree(folder)) - {"config.json", "tokenizer.json", "1_Pooling/config.json"}


@pytest.mark.parametrize(("offline", "environment", "expected"), [(True, "", True), (None, "1", True), (None, "", False), (False, "1", False)])
def test_offline_is_honoured(fake_hub, monkeypatch, offline, environment, expected):
    repository, calls, _ = fake_hub
    repository["model.safetensors"] = b"x"
    monkeypatch.setenv("HF_HUB_OFFLINE", environment)
    resolve("org/name", offline=offline)
    assert [call["offline"] for call in calls] == [expected]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./models/bert-bsae", r"does not exist, expected a folder or a Hugging Face id; did you mean 'bert-base'\? \(in .*models\)"),
        ("modles/bert-base/deep", r"did you mean 'models'\?"),
        ("/nowhere/at/all", "does not exist"),
        ("models/bert-base/model.safetensors", "is a file, expected a folder or a Hugging Face id\n  its folder is .*bert-base"),
        ("models/none.safetensors", "does not exist"),
        ("a--b", "does not exist"),
        ("", "is an empty text"),
    ],
)
def test_paths_that_do_not_exist_are_never_asked_for(tmp_path, fake_hub, name, message):
    (tmp_path / "models" / "bert-base").mkdir(parents=True)
    (tmp_path / "models" / "bert-base" / "model.safetensors").touch()
    with pytest.raises(UsageError, match=message):
        resolve(name)
    assert not fake_hub[1]


def _hub_error(name: str) -> Exception:
    """An error of huggingface_hub, whose constructor asks for a response in some versions."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = kind.__new__(kind)
    error.args = ("what the hub said\nand more",)
    return error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "'org/name' is gated\n  accept its terms at https://huggingface.co/org/name and pass a token"),
        ("RepositoryNotFoundError", "'org/name' is neither a folder nor a public id on the hub"),
        ("RevisionNotFoundError", "'org/name' has no revision 'v9'"),
        ("LocalEntryNotFoundError", "the hub cannot be reached\n  go online"),
        ("OfflineModeIsEnabled", "the hub cannot be reached\n  go online"),
        ("HFValidationError", "neither a folder nor a Hugging Face id"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(fake_hub, monkeypatch, name, message):
    def failing(*_, **__):
        raise _hub_error(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    with pytest.raises(UsageError, match=message):
        resolve("org/name", revision="v9")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "could not be downloaded: No space left on device"),
        (RuntimeError("odd\nlong story"), 2, "could not be downloaded: RuntimeError: odd\n  try again"),
    ],
)
def test_other_failures_of_a_download(fake_hub, monkeypatch, error, kind, message):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", failing)
    with pytest.raises(InterlinguaError, match=message) as caught:
        resolve("org/name")
    assert caught.value.exit_code == kind


def test_ids_and_paths_are_told_apart():
    assert all(map(hub._looks_like_id, ["gpt2", "bert-base-uncased", "org/name.v1_2", "google/t5-v1_1-small", "0xA/x"]))
    assert not any(map(hub._looks_like_id, ["./x", "/x", "../x/y", "a/b/c", "~x", "a\\b", "x/", "x.onnx", "a--b", "a..b", ".x", "x" * 97]))
