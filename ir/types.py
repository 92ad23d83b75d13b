"""Types: a dtype and a shape, written `f32[batch seq 768]` wherever a person reads or writes one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .errors import ShapeError
from .sizes import Dim, Size, parse_size

NUMPY_DTYPES: dict[str, np.dtype] = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),
    "i64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}
_NAMES = {d: name for name, d in NUMPY_DTYPES.items()}
KINDS: dict[str, frozenset[str]] = {
    "float": frozenset({"f16", "bf16", "f32", "f64"}),
    "int": frozenset({"i8", "u8", "i16", "i32", "u32", "i64"}),
    "bool": frozenset({"bool"}),
    "any": frozenset(NUMPY_DTYPES),
}


def dtype_of(dtype: Any) -> str:
    """Our name of a NumPy dtype."""
    try:
        return _NAMES[np.dtype(dtype)]
    except (KeyError, TypeError):
        raise ShapeError(f"dtype {dtype} has no counterpart here; known: {', '.join(NUMPY_DTYPES)}") from None


@dataclass(frozen=True)
class Type:
    """A dtype and a shape of sizes, each an int or a `Dim`."""

    dtype: str
    shape: tuple[Size, ...]

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    def with_shape(self, *shape: Size) -> Type:
        """The same dtype in another shape."""
        return Type(self.dtype, shape)

    def with_axis(self, axis: int, size: Size) -> Type:
        """The same type with one size replaced."""
        axis %= self.rank
        return Type(self.dtype, (*self.shape[:axis], size, *self.shape[axis + 1 :]))

    @staticmethod
    def parse(text: str) -> Type:
        """`f32[batch seq 768]` as a Type; a size may be any expression without spaces: `f32[2*n (n+1)//2]`."""
        match = re.fullmatch(r"\s*(\w+)\[(.*)\]\s*", text)
        if not match or match[1] not in NUMPY_DTYPES:
            raise ShapeError(f"type {text!r} is not of the form f32[batch seq 768]; dtypes: {', '.join(NUMPY_DTYPES)}")
        return Type(match[1], tuple(parse_size(d) for d in match[2].split()))

    @staticmethod
    def of(array: np.ndarray) -> Type:
        """The type of an array."""
        return Type(dtype_of(array.dtype), tuple(int(d) for d in array.shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{' '.join(map(str, self.shape))}]"

    def names(self) -> set[str]:
        """The named sizes that occur anywhere in the shape."""
        return set().union(*(d.names() for d in self.shape if isinstance(d, Dim)))
