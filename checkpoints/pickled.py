"""`pytorch_model.bin` without PyTorch and without running what is in it.

Two containers are in use: a zip file with `data.pkl` beside one member per storage (PyTorch 1.6 and later), and five pickles followed by the storages
(before; torch/serialization.py, `_legacy_save`). In both the tensors are views of storages, so that plain bytes are mapped where they lie.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..ir.errors import CheckpointError
from .files import DAMAGED, Entry, WeightFile, brief
from .unpickle import MAX_PICKLE, UNTYPED, DType, Storage, Tensor, Unpickler

if TYPE_CHECKING:
    import zipfile

    import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts put the weights beside their own state
_MAX_RATIO = 100  # of a compressed member; deflate reaches 1032 only on what is no weight
_SLACK = 1 << 16

# key of a storage -> (its first byte, its size in bytes, its member if it is compressed)
Places = dict[str, tuple[int, int, str | None]]


class PickledFile(WeightFile):
    """The weights of one file of `torch.save`, of which only the pickle is read until an array is asked for.

    Raises CheckpointError where the file is damaged, and where it asks for anything but tensors; nothing in it is ever executed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        with open(self.path, "rb") as file:
            start = file.read(262)
            if start.startswith(b"PK\x03\x04"):
                root, storages, places = self._zipped()
            elif start[257:262] == b"ustar":
                raise self.error("is a tar archive of PyTorch 0.1, which is not supported", "\n  load and save it again with a current PyTorch")
            else:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    root, storages, places = self._legacy(data)
        for storage in storages.values():
            self._check_storage(storage, places)
        for key, tensor in self._state(root).items():
            self.entries[key] = self._entry(key, tensor, places)

    def _legacy(self, data: mmap.mmap) -> tuple[Any, dict[str, Storage], Places]:
        unpickler = Unpickler(data, self.error)
        if (magic := unpickler.load()) != _LEGACY_MAGIC:
            raise self.error(f"begins with {brief(magic)}, expected what torch.save writes: a zip file or its magic number", DAMAGED)
        if (protocol := unpickler.load()) != _LEGACY_PROTOCOL:
            raise self.error(f"has protocol {brief(protocol)}, expected {_LEGACY_PROTOCOL}", DAMAGED)
        unpickler.load()  # the sizes of C types on the machine that wrote it; storages are little-endian whatever it says
        root, keys = unpickler.load(), unpickler.load()
        if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys) or len(set(keys)) != len(keys):
            raise self.error(f"lists its storages as {brief(keys)}, expected a list of different names", DAMAGED)
        places: Places = {}
        position = unpickler.position
        for key in keys:
            storage = unpickler.storages.get(key)
            if storage is None:
                raise self.error(f"lists storage {brief(key)}, which no tensor refers to", DAMAGED)
            if position + 8 > len(data):
                raise self.error(f"ends before storage {brief(key)}", DAMAGED)
            (numel,) = struct.unpack("<q", data[position : position + 8])
            if numel != storage.numel:
                raise self.error(f"storage {brief(key)} has {numel} elements, expected {brief(storage.numel)}", DAMAGED)
            nbytes = numel * storage.dtype.itemsize
            places[key] = position + 8, min(nbytes, max(0, len(data) - position - 8)), None
            position += 8 + nbytes
        return root, unpickler.storages, places

    def _zipped(self) -> tuple[Any, dict[str, Storage], Places]:
        with self._archive() as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise self.error("has two members of the same name", DAMAGED)
            prefix = self._prefix(members)
            unpickler = Unpickler(self._member(archive, members[f"{prefix}data.pkl"], MAX_PICKLE), self.error)
            root = unpickler.load()
            self.big_endian = self._order(archive, members.get(f"{prefix}byteorder"))
            places = {key: self._place(members.get(f"{prefix}data/{key}"), key) for key in unpickler.storages}
        return root, unpickler.storages, places

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        """The zip file, whose many ways to fail become one."""
        import zipfile
        import zlib

        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except CheckpointError:
            raise
        except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, OverflowError, ValueError, LookupError) as error:
            raise self.error(f"zip archive is malformed ({type(error).__name__}: {error})", DAMAGED) from error

    def _prefix(self, members: dict[str, zipfile.ZipInfo]) -> str:
        """The folder inside the archive."""
        found = [name for name in members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
        if len(found) != 1:
            raise self.error(f"has {len(found)} members data.pkl, expected one: what torch.save writes", DAMAGED)
        prefix = found[0].removesuffix("data.pkl")
        if f"{prefix}constants.pkl" in members:
            raise self.error("is a TorchScript program, expected weights", "\n  save its state_dict() with torch.save, or better as safetensors")
        return prefix

    def _order(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> bool:
        """Whether the storages are big-endian."""
        order = self._member(archive, info, 16) if info else b"little"
        if order not in (b"little", b"big"):
            raise self.error(f"has byteorder {order!r}, expected b'little' or b'big'", DAMAGED)
        return order == b"big"

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
        """A member whole."""
        self._check_member(info)
        if info.file_size > limit:
            raise self.error(f"member {info.filename} has {info.file_size} bytes, expected at most {limit}", DAMAGED)
        with archive.open(info) as member:
            content = member.read(limit + 1)
        if len(content) != info.file_size:
            raise self.error(f"member {info.filename} has {len(content)} bytes, expected {info.file_size}", DAMAGED)
        return content

    def _check_member(self, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & 1:
            raise self.error(f"member {info.filename} is encrypted, expected plain bytes")
        if info.compress_type not in (0, 8):
            raise self.error(f"member {info.filename} is compressed by method {info.compress_type}, expected none or deflate")
        if info.compress_type == 0 and info.compress_size != info.file_size:
            raise self.error(f"member {info.filename} has {info.compress_size} bytes, expected {info.file_size}", DAMAGED)
        if info.file_size > _MAX_RATIO * info.compress_size + _SLACK:
            raise self.error(f"member {info.filename} would grow from {info.compress_size} to {info.file_size} bytes, which no weight does", DAMAGED)

    def _place(self, info: zipfile.ZipInfo | None, key: str) -> tuple[int, int, str | None]:
        if info is None:
            raise self.error(f"storage {brief(key)} has no member", DAMAGED)
        self._check_member(info)
        if info.compress_type != 0:
            return 0, info.file_size, info.filename
        with open(self.path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            if len(header) != 30 or header[:4] != b"PK\x03\x04":
                raise self.error(f"member {info.filename} has no header at byte {info.header_offset}", DAMAGED)
            name, extra = struct.unpack("<26xHH", header)
            begin = info.header_offset + 30 + name + extra
            if begin + info.file_size > os.fstat(file.fileno()).st_size:
                raise self.error(f"member {info.filename} ends at byte {begin + info.file_size}, after the end of the file", DAMAGED)
        return begin, info.file_size, None

    def _check_storage(self, storage: Storage, places: Places) -> None:
        expected = storage.numel * storage.dtype.itemsize
        found = places[storage.key][1] if storage.key in places else -1
        if found < 0:
            raise self.error(f"storage {brief(storage.key)} is missing, expected {brief(expected)} bytes", DAMAGED)
        if found < expected:
            raise self.error(f"storage {brief(storage.key)} has {found} bytes, expected {brief(expected)}", DAMAGED)

    def _state(self, root: Any) -> dict[str, Tensor]:
        """The tensors by name, at the top or one level down; other values are a training script's own."""
        for state in ([root[n] for n in _NESTED if n in root] + [root]) if isinstance(root, dict) else []:
            tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
            if odd := next((k for k in tensors if not isinstance(k, str)), None):
                raise self.error(f"has a weight named {brief(odd)}, expected a string")
            if tensors:
                return tensors
        raise self.error(f"holds {brief(root)} without weights, expected a dict from name to tensor")

    def _entry(self, key: str, tensor: Tensor, places: Places) -> Entry:
        storage, offset, size, stride = tensor[:4]
        dtype = storage.dtype if tensor.dtype is None and isinstance(storage, Storage) else tensor.dtype
        if not isinstance(storage, Storage) or not isinstance(dtype, DType) or dtype is UNTYPED:
            raise self.error(f"weight {brief(key)} is no tensor over a storage", DAMAGED)
        if tensor.metadata:
            raise self.error(f"weight {brief(key)} is marked {brief(tensor.metadata)}, expected plain numbers", "\n  save it as tensor.resolve_neg()")
        self.check_shape(key, size, dtype.itemsize)
        if type(stride) is not tuple or len(stride) != len(size) or not all(type(s) is int and 0 <= s < 2**63 for s in stride):
            raise self.error(f"weight {brief(key)} has strides {brief(stride)}, expected {len(size)} that are not negative", DAMAGED)
        if type(offset) is not int or offset < 0:
            raise self.error(f"weight {brief(key)} begins at element {brief(offset)}, expected one that is not negative", DAMAGED)
        last = 0 if 0 in size else (offset + 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))) * dtype.itemsize
        begin, _, member = places[storage.key]
        if last > storage.numel * storage.dtype.itemsize:
            raise self.error(
                f"weight {brief(key)} ends at byte {brief(last)} of storage {brief(storage.key)}, which has {storage.numel * storage.dtype.itemsize}",
                DAMAGED,
            )
        start = begin + offset * dtype.itemsize if last else begin
        return Entry(dtype.name, dtype.itemsize, tuple(size), tuple(s * dtype.itemsize for s in stride), start, member)

    def _inflate(self, member: str) -> np.ndarray:
        import numpy as np

        with self._archive() as archive:
            self.check_unchanged()
            info = archive.getinfo(member)
            return np.frombuffer(self._member(archive, info, info.file_size), np.uint8)
