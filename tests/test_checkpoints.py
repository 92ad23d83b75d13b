"""Checkpoints written by PyTorch, safetensors and transformers are read bit by bit, and what is written here is read by them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import bits, numpy_weights, torch_bits, torch_weights, write

from interlingua.checkpoints import Checkpoint, PickledFile, SafetensorsFile, save
from interlingua.ir.errors import CheckpointError, UsageError


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
    code = "import sys, interlingua.checkpoints as c\nw = c.Checkpoint(sys.argv[1]); print(len(w), 'numpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=_environment())
    assert result.stdout.split() == ["1", "False"]
    assert Checkpoint(tmp_path).location("x") == (str(tmp_path / "model.safetensors"), 8 + len(header), size)


def test_safetensors_with_a_dtype_that_we_lack_is_readable_but_for_that_weight(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file(
        {"w": torch.ones(3), "f8": torch.ones(4).to(torch.float8_e4m3fn), "c": torch.ones(2, dtype=torch.complex64)}, tmp_path / "w.safetensors"
    )
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
    with pytest.raises(CheckpointError, match=r"no weight 'a\.float3'; did you mean 'a\.float32'"):
        checkpoint.array("a.float3")


def test_shards_are_read_as_one(tmp_path):
    weights = numpy_weights()
    checkpoint = write(tmp_path / "m", weights, max_shard_bytes=150)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert len(checkpoint.files) == len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in weights.values())
    assert not (tmp_path / "m" / "model.safetensors").exists()
    for file in map(SafetensorsFile, checkpoint.files):
        assert len(file) == 1 or sum(weights[key].nbytes for key in file) <= 150
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
    with pytest.raises(
        CheckpointError, match=r"(?s)looked for: model.safetensors, model.safetensors.index.json, pytorch_model.bin.*no file of weights"
    ):
        Checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"found: adapter_model\.safetensors"):
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
    with pytest.raises(CheckpointError, match=r"1 of 3 shards are missing: model-00007-of-00003\.safetensors"):
        Checkpoint(tmp_path / "m")
    changed(a=homes["b"])
    with pytest.raises(CheckpointError, match=f"missing from their shard: 'a' from {homes['b']}"):
        Checkpoint(tmp_path / "m")
    for outside in ("../m/" + homes["a"], str(tmp_path / "m" / homes["a"]), "sub/x.safetensors", "..", "", "a\\b", "C:x"):
        changed(a=outside)
        with pytest.raises(CheckpointError, match="is refused, expected the name of a file in the same folder"):
            Checkpoint(tmp_path / "m")
    for text, message in [
        ("{}", "weight_map is None"),
        ('{"weight_map": {"a": 1}}', "weight_map is a dict of 1"),
        ('{"weight_map": {}}', "is empty"),
    ]:
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
