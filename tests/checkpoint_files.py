"""Checkpoint files for the tests: good ones by the writer under test, hostile ones byte by byte, as no library would write them."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from interlingua.checkpoints import Checkpoint, save

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def numpy_weights() -> dict[str, np.ndarray]:
    """One weight of every dtype, with odd byte counts, no elements and no dimensions among them."""
    rng = np.random.default_rng(0)
    kinds = [np.dtype(ml_dtypes.bfloat16) if d == "bfloat16" else np.dtype(d) for d in [*DTYPES, "uint32"]]
    weights = {f"a.{d.name}": rng.integers(0, 255, (3, 5)).astype(d) for d in kinds}
    return weights | {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32), "odd": np.array([True, False, True])}


def torch_weights() -> dict:
    """The same from PyTorch, with tied weights and with views of other strides."""
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


def torch_bits(tensor) -> bytes:
    import torch

    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def bits(array: np.ndarray) -> bytes:
    return np.asarray(array, order="C").tobytes()


def write(folder: Path, weights: dict, config: dict | None = None, **options) -> Checkpoint:
    save(folder, config or {"model_type": "tiny"}, weights, **options)
    return Checkpoint(folder)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- safetensors, by its header


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def weight(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
    }


# ---- pickles, opcode by opcode


def value(python: object) -> bytes:
    """The opcodes of a plain value."""
    return pickle.dumps(python, protocol=2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def storage(key: object = "0", numel: object = 4, kind: bytes = name("torch", "FloatStorage"), tail: tuple = ()) -> bytes:
    return b"(" + value("storage") + kind + value(key) + value("cpu") + value(numel) + b"".join(map(value, tail)) + b"tQ"


HOOKS = call(name("collections", "OrderedDict"))


def tensor(size: object = (4,), stride: object = (1,), offset: object = 0, data: bytes | None = None, extra: bytes = b"") -> bytes:
    function = name("torch._utils", "_rebuild_tensor_v2")
    return call(function, data if data is not None else storage(), value(offset), value(size), value(stride), value(False), HOOKS, extra)


def state(**tensors: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(value(key) + content for key, content in tensors.items()) + b"u."


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for member, content in {"w/data.pkl": program, "w/data/0": bytes(16), "w/version": b"3\n", **(members or {})}.items():
            file.writestr(member, content)
    return path


def legacy(
    path: Path, program: bytes, keys: object = None, tail: bytes = struct.pack("<q", 4) + bytes(16), magic: object = 0x1950A86A20F9469CFC6C
) -> Path:
    """A file as before PyTorch 1.6, which lists the storages that its program speaks of."""
    keys = (["0"] if b"Storage" in program else []) if keys is None else keys
    path.write_bytes(b"".join(pickle.dumps(v, 2) for v in (magic, 1001, {"little_endian": True})) + program + pickle.dumps(keys, 2) + tail)
    return path


def plain(path: Path, program: bytes) -> Path:
    path.write_bytes(program)
    return path


Container = Callable[[Path, bytes], Path]
# the two forms that torch.save writes
containers = pytest.mark.parametrize("container", [archive, legacy], ids=["zip", "legacy"])
