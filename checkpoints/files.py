"""What the readers of safetensors and of pickled files share: named weights that are views of one mapped file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..ir.errors import CheckpointError, nearest
from ..ir.weights import Location

if TYPE_CHECKING:
    import numpy as np

MAX_RANK = 64  # NumPy's
DAMAGED = "\n  the file is truncated or corrupt: download it or save it again"


class Entry(NamedTuple):
    """Where one weight lies: its elements start at byte `start` of the file, or of the compressed `member` of it, `strides` bytes apart."""

    dtype: str  # ours, or the file's own name of a dtype that we lack
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    member: str | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of all elements."""
        return prod(self.shape) * self.itemsize

    @property
    def dense(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        usual = c_strides(self.shape, self.itemsize)
        return all(n == 1 or s == u for n, s, u in zip(self.shape, self.strides, usual, strict=True)) or 0 in self.shape


class WeightFile:
    """The weights of one file, by name, of which nothing but the directory is read until an array is asked for. Implements `Weights`."""

    big_endian = False

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.entries: dict[str, Entry] = {}
        self._mapped: np.ndarray | None = None
        self._stamp = _stamp(os.stat(self._readable()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Our dtype and the shape as stored; CheckpointError where the dtype is one that we lack."""
        entry = self._supported(key)
        return entry.dtype, entry.shape

    def array(self, key: str) -> np.ndarray:
        """The weight as stored: a read-only view of the mapped file, or a fresh array where the bytes are compressed or in another byte order."""
        import numpy as np

        from ..ir.types import NUMPY_DTYPES

        entry = self._supported(key)
        dtype = NUMPY_DTYPES[entry.dtype]
        if 0 in entry.shape:
            return np.empty(entry.shape, dtype)
        raw = self._map() if entry.member is None else self._inflate(entry.member)
        array = np.ndarray(entry.shape, dtype, buffer=raw, offset=entry.start, strides=entry.strides)
        if self.big_endian and entry.itemsize > 1:
            array = array.view(f"u{entry.itemsize}").byteswap().view(dtype)
        return array

    def location(self, key: str) -> Location | None:
        """Where the bytes lie in the real file behind any links; None where they are compressed, strided or in another byte order."""
        entry = self._supported(key)
        if entry.member is not None or not entry.dense or (self.big_endian and entry.itemsize > 1):
            return None
        return Location(os.path.realpath(self.path), entry.start, entry.nbytes)

    def error(self, message: str, hint: str = "") -> CheckpointError:
        """A CheckpointError about this file."""
        return CheckpointError(f"{self.path}: {message}{hint}")

    def check_unchanged(self) -> None:
        """CheckpointError where this is another file by now, in which the offsets of the first one mean nothing."""
        if not self.path.exists() or _stamp(os.stat(self.path)) != self._stamp:
            raise self.error("was changed since it was opened", "\n  load the model again")

    def check_shape(self, key: str, shape: Any, itemsize: int) -> None:
        """CheckpointError unless the shape is one that an array can have."""
        if not isinstance(shape, list | tuple) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
            raise self.error(f"weight {brief(key)} has shape {brief(shape)}, expected a list of sizes that are not negative", DAMAGED)
        if len(shape) > MAX_RANK:
            raise self.error(f"weight {brief(key)} has {len(shape)} dimensions, expected at most {MAX_RANK}", DAMAGED)
        if prod(n for n in shape if n) * itemsize >= 2**63:
            raise self.error(f"weight {brief(key)} has shape {brief(shape)}, which is more than an array can hold", DAMAGED)

    def _readable(self) -> Path:
        if self.path.exists() and not self.path.is_file():  # to open a pipe would wait for ever
            raise self.error("is not a plain file, expected weights")
        try:
            with open(self.path, "rb") as file:
                start = file.read(64)
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror}") from error
        if start.startswith(b"version https://git-lfs"):
            raise self.error("is a Git LFS pointer, expected the weights themselves", "\n  run `git lfs pull` in its folder")
        if not start:
            raise self.error("is empty, expected weights", DAMAGED)
        return self.path

    def _supported(self, key: str) -> Entry:
        from ..ir.types import NUMPY_DTYPES

        entry = self.entries.get(key)
        if entry is None:
            raise self.error(f"no weight {brief(key)}{suggestion(key, self.entries)}")
        if entry.dtype not in NUMPY_DTYPES:
            raise self.error(f"weight {brief(key)} has dtype {entry.dtype}, which is not supported; supported: {', '.join(NUMPY_DTYPES)}")
        return entry

    def _map(self) -> np.ndarray:
        import numpy as np

        if self._mapped is None:
            try:
                mapped = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
            except (OSError, ValueError) as error:
                raise self.error(f"cannot be mapped: {error}") from error
            self.check_unchanged()
            self._mapped = mapped
        return self._mapped

    def _inflate(self, member: str) -> np.ndarray:
        """The bytes of a compressed member."""
        raise self.error(f"member {member} is compressed, expected plain bytes")


def read_json(path: Path, what: str, kind: type = dict) -> Any:
    """The object (or list) in a JSON file; CheckpointError saying where it is wrong."""
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected {what}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: holds {brief(value)}, expected {'an object' if kind is dict else 'a list'} ({what})")
    return value


def c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The byte strides of C order."""
    strides = []
    for size in reversed(shape):
        strides.append(itemsize)
        itemsize *= size
    return tuple(reversed(strides))


def suggestion(key: str, keys: Iterable[str]) -> str:
    """`nearest`, but never a list of a thousand weights."""
    text = nearest(key, keys) if len(key) < 1000 else ""
    return text if len(text) < 400 else ""


def brief(value: Any) -> str:
    """A value from a file as an error quotes it; never long, and never by `repr` of what may contain itself a million times over."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if callable(value):
        return "a function"
    if isinstance(value, list | tuple | dict):
        if isinstance(value, dict) or len(value) > 8 or any(isinstance(v, list | tuple | dict) for v in value):
            return f"a {type(value).__name__} of {len(value)}"
        left, right = "()" if isinstance(value, tuple) else "[]"
        return left + ", ".join(map(brief, value)) + right
    if isinstance(value, str | bytes) and len(value) > 200:
        return repr(value[:200]) + "..."
    return repr(value)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
