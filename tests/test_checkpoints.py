"""Checkpoints written by PyTorch, safetensors and transformers are read bit by bit, and what is written here is read by them."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from interlingua.checkpoints import Checkpoint, PickledFile, SafetensorsFile, hub, resolve, save, writing
from interlingua.ir.atomic import atomic_file, atomic_folder
from interlingua.ir.errors import CheckpointError, InterlinguaError, UsageError

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def numpy_weights() -> dict[str, np.ndarray]:
    """One weight of every dtype, with odd byte counts, no elements and no dimensions among them."""
    rng = np.random.default_rng(0)
    kinds = [np.dtype(ml_dtypes.bfloat16) if d == "bfloat16" else np.dtype(d) for d in [*DTYPES, "uint32"]]
    weights = {f"a.{d.name}": rng.integers(0, 255, (3, 5)).astype(d) for d in kinds}
    return weights | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32), "odd": np.array([True, False, True])}


def torch_weights() -> dict:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    weights = {f"a.{d}": (torch.randn(3, 5) * 100).to(getattr(torch, d)) for d in DTYPES}
    return weights | {
        "scalar": torch.tensor(2.5),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "tied.one": base,
        "tied.two": base,
        "transposed": base.T,
        "strided": base[1:, ::2],
        "rows": base[2:],
        "expanded": torch.arange(3.0)[:, None].expand(3, 4),
    }


def bits(array: np.ndarray) -> bytes:
    return np.asarray(array, order="C").tobytes()


def torch_bits(tensor) -> bytes:
    import torch

    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def same_as_torch(file, weights: dict) -> None:
    assert set(file) == set(weights)
    for key, tensor in weights.items():
        array = file.array(key)
        assert array.shape == tuple(tensor.shape) == file.spec(key)[1], key
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch."), key
        assert bits(array) == torch_bits(tensor), key


def same_bytes_at_location(weights, key: str) -> None:
    place = weights.location(key)
    with open(place.file, "rb") as file:
        file.seek(place.offset)
        assert file.read(place.length) == bits(weights.array(key)), key


def write(folder: Path, weights: dict, config: dict | None = None, **options) -> Checkpoint:
    save(folder, config or {"model_type": "tiny"}, weights, **options)
    return Checkpoint(folder)


# ---- safetensors


def test_safetensors_reads_every_dtype_as_the_library_wrote_it(tmp_path):
    from safetensors.numpy import save_file

    weights = numpy_weights()
    save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file) == set(weights)
    for key, array in weights.items():
        read = file.array(key)
        assert (read.dtype, read.shape) == (array.dtype, array.shape), key
        assert bits(read) == bits(array), key
        same_bytes_at_location(file, key)
    assert file.spec("a.bfloat16") == ("bf16", (3, 5))


def test_safetensors_arrays_are_read_only_views_of_one_map(tmp_path):
    checkpoint = write(tmp_path / "m", {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)})
    a, b = checkpoint.array("a"), checkpoint.array("b")
    assert type(a) is np.ndarray
    assert a.base is b.base  # the one map
    with pytest.raises(ValueError, match="read-only"):
        a[0, 0] = 1


def test_safetensors_with_an_unpadded_header_is_read_where_it_lies(tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '[:55]
    assert len(header) % 8
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + np.array([1.5, -2], np.float32).tobytes())
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert file.array("x").tolist() == [1.5, -2]
    assert file.location("x") == (str(tmp_path / "w.safetensors"), 8 + len(header), 8)


def test_opening_reads_no_weight_and_imports_no_numpy(tmp_path):
    size = 1 << 33  # sparse: the file system has no blocks for it
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    code = (
        "import sys, interlingua.checkpoints as c\n"
        "w = c.Checkpoint(sys.argv[1]); print(len(w), 'numpy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=_environment())
    assert result.stdout.split() == ["1", "False"]
    assert Checkpoint(tmp_path).location("x") == (str(tmp_path / "model.safetensors"), 8 + len(header), size)


def test_safetensors_with_a_dtype_that_we_lack_is_readable_but_for_that_weight(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"w": torch.ones(3), "f8": torch.ones(4).to(torch.float8_e4m3fn), "c": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert file.array("w").tolist() == [1, 1, 1]
    for key, name in (("f8", "F8_E4M3"), ("c", "C64")):
        for ask in (file.array, file.spec, file.location):
            with pytest.raises(CheckpointError, match=f"weight '{key}' has dtype {name}, which is not supported; supported: f16, bf16"):
                ask(key)


def test_a_file_that_changes_under_us_is_refused(tmp_path):
    checkpoint = write(tmp_path / "m", {"a": np.zeros(4, np.float32)})
    save(tmp_path / "m", {}, {"b": np.ones(4, np.float32)}, overwrite=True)
    with pytest.raises(CheckpointError, match="was changed since it was opened"):
        checkpoint.array("a")


# ---- pickles


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_save_is_read_bit_by_bit(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    weights = torch_weights()
    torch.save(weights, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    file = PickledFile(tmp_path / "w.bin")
    same_as_torch(file, weights)
    for key in weights:
        if key in ("transposed", "strided", "expanded"):
            assert file.location(key) is None
        else:
            same_bytes_at_location(file, key)
    assert file.location("tied.one") == file.location("tied.two")
    assert not file.array("scalar").flags.writeable
    assert file.array("tied.one").base is file.array("rows").base  # the one map


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_module_state_dict_with_its_metadata_is_read(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(net.state_dict(), tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    same_as_torch(PickledFile(tmp_path / "w.bin"), net.state_dict())
    torch.save(dict(net.named_parameters()), tmp_path / "p.bin", _use_new_zipfile_serialization=zipped)  # torch.nn.Parameter objects
    same_as_torch(PickledFile(tmp_path / "p.bin"), dict(net.named_parameters()))


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict"])
def test_weights_beside_training_state_are_found(tmp_path, name):
    torch = pytest.importorskip("torch")
    weights = {"w": torch.randn(3)}
    torch.save({"epoch": 3, "best": 0.5, "names": ["x"], name: weights, "momentum": torch.zeros(9)}, tmp_path / "w.bin")
    same_as_torch(PickledFile(tmp_path / "w.bin"), weights)


def test_pickled_dtypes_outside_the_old_storages(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"u32": torch.arange(6).to(torch.uint32).reshape(2, 3).T, "ok": torch.ones(2)}
    others = {"u16": torch.ones(2, dtype=torch.uint16), "f8": torch.ones(2).to(torch.float8_e5m2), "c": torch.ones(2, dtype=torch.complex64)}
    torch.save(weights | others, tmp_path / "w.bin")
    file = PickledFile(tmp_path / "w.bin")
    for key, tensor in weights.items():
        assert bits(file.array(key)) == tensor.contiguous().numpy().tobytes()
    for key, name in (("u16", "uint16"), ("f8", "float8_e5m2"), ("c", "complex64")):
        with pytest.raises(CheckpointError, match=f"weight '{key}' has dtype {name}, which is not supported"):
            file.array(key)


def rezip(source: Path, target: Path, change=lambda name, content: content, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))


def test_deflated_members_are_read_but_have_no_location(tmp_path):
    torch = pytest.importorskip("torch")
    weights = torch_weights()
    torch.save(weights, tmp_path / "w.bin")
    rezip(tmp_path / "w.bin", tmp_path / "z.bin", compression=zipfile.ZIP_DEFLATED)
    file = PickledFile(tmp_path / "z.bin")
    same_as_torch(file, weights)
    assert file.location("tied.one") is None


def test_big_endian_storages_are_turned(tmp_path):
    torch = pytest.importorskip("torch")
    weights = {"f": torch.randn(3, 2).T, "h": torch.randn(5).to(torch.bfloat16), "b": torch.tensor([True, False]), "d": torch.randn(2).double()}
    torch.save(weights, tmp_path / "w.bin")
    widths = iter([4, 2, 1, 8])

    def turn(name: str, content: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        if "/data/" in name:
            return np.frombuffer(content, f"u{next(widths)}").byteswap().tobytes()
        return content

    rezip(tmp_path / "w.bin", tmp_path / "z.bin", turn)
    file = PickledFile(tmp_path / "z.bin")
    same_as_torch(file, weights)
    assert file.location("f") is None
    assert file.location("b") is not None


def test_reading_pickles_imports_no_torch(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    code = "import sys, interlingua.checkpoints as c; print(c.Checkpoint(sys.argv[1]).array('w').sum(), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=_environment())
    assert result.stdout.split() == ["2.0", "False"]


def _environment() -> dict[str, str]:
    """The environment of a child that imports the same package as we do."""
    import interlingua

    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(p).parent) for p in interlingua.__path__] + [p for p in sys.path if p])}


# ---- folders


def test_checkpoint_answers_as_weights_do(tmp_path):
    weights = numpy_weights()
    checkpoint = write(tmp_path / "m", weights, {"model_type": "tiny", "eps": 1e-5})
    assert checkpoint.config == {"model_type": "tiny", "eps": 1e-5}
    assert (checkpoint.format, checkpoint.folder, checkpoint.files) == ("safetensors", tmp_path / "m", [tmp_path / "m" / "model.safetensors"])
    assert len(checkpoint) == len(weights)
    assert set(checkpoint) == set(weights)
    assert "scalar" in checkpoint
    assert "nothing" not in checkpoint
    with pytest.raises(CheckpointError, match="no weight 'a.float3'; did you mean 'a.float32'"):
        checkpoint.array("a.float3")


def test_shards_are_read_as_one(tmp_path):
    weights = numpy_weights()
    checkpoint = write(tmp_path / "m", weights, max_shard_bytes=150)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert len(checkpoint.files) == len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in weights.values())
    assert not (tmp_path / "m" / "model.safetensors").exists()
    for key, array in weights.items():
        assert bits(checkpoint.array(key)) == bits(array)
        same_bytes_at_location(checkpoint, key)


def test_safetensors_is_preferred_to_pickles(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert Checkpoint(tmp_path).format == "pickle"
    save(tmp_path, {}, {"w": np.ones(2, np.float32)}, max_shard_bytes=1)
    assert Checkpoint(tmp_path).format == "safetensors"
    assert Checkpoint(tmp_path).array("w").tolist() == [1, 1]


def test_location_is_the_real_file_behind_the_links_of_a_cache(tmp_path):
    write(tmp_path / "m", {"w": np.ones(2, np.float32)})
    (tmp_path / "blob").write_bytes((tmp_path / "m" / "model.safetensors").read_bytes())
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blob")
    checkpoint = Checkpoint(tmp_path / "snapshot")
    place = checkpoint.location("w")
    assert place is not None
    assert place.file == str(tmp_path / "blob")
    same_bytes_at_location(checkpoint, "w")


@pytest.mark.parametrize(("config", "remote"), [({}, False), ({"auto_map": {"AutoModel": "code.Net"}}, True), ({"auto_map": {}}, False)])
def test_remote_code_is_seen(tmp_path, config, remote):
    assert write(tmp_path / "m", {"w": np.ones(1)}, config).has_remote_code is remote


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json: no such file, expected the configuration"),
        ('{"a": 1,\n "b": }', "config.json: not valid JSON at line 2, column 7"),
        ("[1, 2]", r"config.json: holds \[1, 2\], expected an object"),
        (b"\xff\xfe\x00", "config.json: not valid JSON"),
        ("[" * 100_000, "config.json: not valid JSON"),
    ],
)
def test_a_bad_config_is_named(tmp_path, text, message):
    checkpoint = write(tmp_path / "m", {"w": np.ones(1)})
    path = tmp_path / "m" / "config.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message):
        _ = checkpoint.config


def test_folders_without_weights_say_what_they_have(tmp_path):
    with pytest.raises(UsageError, match="nowhere: does not exist, expected a folder"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: a file, expected a folder"):
        Checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"(?s)looked for: model.safetensors, model.safetensors.index.json, pytorch_model.bin.*no file of weights"):
        Checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="found: adapter_model.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"only those of TensorFlow \(tf_model.h5\)"):
        Checkpoint(tmp_path)
    (tmp_path / "flax_model.msgpack").touch()
    (tmp_path / "tf_model.h5").unlink()
    with pytest.raises(CheckpointError, match=r"only those of Flax \(flax_model.msgpack\)"):
        Checkpoint(tmp_path)


def test_broken_shards_are_named(tmp_path):
    write(tmp_path / "m", {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}, max_shard_bytes=1)
    index = tmp_path / "m" / "model.safetensors.index.json"
    homes = json.loads(index.read_text())["weight_map"]

    def changed(**entries: str) -> None:
        index.write_text(json.dumps({"weight_map": homes | entries}))

    changed(a="model-00007-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing: model-00007-of-00003.safetensors"):
        Checkpoint(tmp_path / "m")
    changed(a=homes["b"])
    with pytest.raises(CheckpointError, match=f"missing from their shard: 'a' from {homes['b']}"):
        Checkpoint(tmp_path / "m")
    for outside in ("../m/" + homes["a"], str(tmp_path / "m" / homes["a"]), "sub/x.safetensors", "..", "", "a\\b", "C:x"):
        changed(a=outside)
        with pytest.raises(CheckpointError, match="is refused, expected the name of a file in the same folder"):
            Checkpoint(tmp_path / "m")
    for text, message in [("{}", "weight_map is None"), ('{"weight_map": {"a": 1}}', "weight_map is a dict of 1"), ('{"weight_map": {}}', "is empty")]:
        index.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(tmp_path / "m")


# ---- transformers


@pytest.fixture(scope="module")
def tiny_bert():
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' and torch's own, at import
        transformers = pytest.importorskip("transformers")
        transformers.utils.logging.set_verbosity_error()
        config = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, vocab_size=20, max_position_embeddings=10
        )
        return transformers.BertModel(config)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("size", ["1GB", "2KB"], ids=["single", "sharded"])
def test_what_transformers_writes_is_read(tmp_path, tiny_bert, dtype, safe, size):
    import copy

    import torch

    model = copy.deepcopy(tiny_bert).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.format == ("safetensors" if safe else "pickle")
    assert (len(checkpoint.files) > 1) is (size == "2KB")
    assert checkpoint.config["model_type"] == "bert"
    same_as_torch(checkpoint, model.state_dict())
    for key in checkpoint:
        same_bytes_at_location(checkpoint, key)


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("limit", [1 << 30, 2000], ids=["single", "sharded"])
def test_transformers_loads_what_is_written(tmp_path, tiny_bert, dtype, limit):
    import copy

    import torch

    source = copy.deepcopy(tiny_bert).to(getattr(torch, dtype))
    source.save_pretrained(tmp_path / "theirs")
    theirs = Checkpoint(tmp_path / "theirs")
    save(tmp_path / "ours", theirs.config, {key: theirs.array(key) for key in theirs}, max_shard_bytes=limit)
    model, info = type(source).from_pretrained(tmp_path / "ours", output_loading_info=True, dtype=getattr(torch, dtype))
    assert not any(info.values()), info
    for key, tensor in source.state_dict().items():
        assert torch_bits(model.state_dict()[key]) == torch_bits(tensor), key


# ---- writing


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    with pytest.raises(KeyError), atomic_folder(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("1")
        raise KeyError
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
    with pytest.raises(KeyboardInterrupt), atomic_file(path, overwrite=True) as staged:
        staged.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with atomic_file(path, overwrite=True) as staged:
        staged.write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(UsageError, match="already has x"), atomic_file(tmp_path / "x") as staged:
        staged.write_text("ours")
        (tmp_path / "x").write_text("theirs")
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
    with pytest.raises(OSError, match="broken"), atomic_folder(tmp_path, removes=["stale"], overwrite=True) as staging:
        for name in "abcd":
            (staging / name).write_text("new")
    assert tree(tmp_path) == before
    with atomic_folder(tmp_path, removes=["stale", "gone"], overwrite=True) as staging:
        for name in "abc":
            (staging / name).write_text("new")
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


# ---- the hub


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A repository `files` that `snapshot_download` gives by pattern; the calls are kept."""
    import fnmatch

    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    repository: dict[str, bytes] = {"config.json": b"{}", "tokenizer.json": b"{}", "1_Pooling/config.json": b"{}", "onnx/model.onnx": b"x", "code.py": b"x"}
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
