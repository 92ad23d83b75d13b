"""Type rules in one line: `[*b n k], [*b k m], [m]? -> [*b n m]`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import MissingOperandError, ShapeError
from .sizes import Size, compile_size
from .types import KINDS, NUMPY_DTYPES, Type

_OPERAND = re.compile(r"(\w*)\[([^\]]*)\](\?|\.\.\.)?")


def expects(ok: bool, why: str) -> None:
    """Raise `ShapeError(why)` unless `ok`."""
    if not ok:
        raise ShapeError(why)


def broadcast(*shapes: Sequence[Size]) -> tuple[Size, ...]:
    """The common shape of operands that broadcast as NumPy's do; sizes must be identical or 1."""
    rank, out = max(map(len, shapes)), ()
    for shape in shapes:
        padded = (1,) * (rank - len(shape)) + tuple(shape)
        out = tuple(map(_meet, out, padded)) if out else padded
    return out


def _meet(a: Size, b: Size) -> Size:
    if a == b or b == 1:
        return a
    expects(a == 1, f"{a} does not broadcast with {b}")
    return b


class Signature:
    """The type rule of an op, parsed from its notation.

    A name is one size; `*b` a broadcasting group of leading sizes; `n|1` is n or 1; a trailing `?` marks an optional operand and `...` a
    repeated one; a prefix is a dtype (`i64`) or a kind (`int`, `float`, `bool`, `any`). Operands without a prefix share one dtype, which is
    also that of results without one. Result sizes are expressions over the names and the op's attributes.
    """

    def __init__(self, text: str):
        self.text = text
        wants, gives = text.split("->")
        self.wants = [(kind, dims.split(), flag) for kind, dims, flag in _OPERAND.findall(wants)]
        self.gives = [(kind, [d if d[0] == "*" else compile_size(d) for d in dims.split()]) for kind, dims, _ in _OPERAND.findall(gives)]

    def operand(self, index: int) -> tuple[str, list[str], str]:
        """(kind, dims, flag) of the operand at that place."""
        return self.wants[min(index, len(self.wants) - 1)]

    def __call__(self, names: Sequence[str], types: Sequence[Type | None], attrs: Mapping[str, Any]) -> list[Type]:
        """Result types for operand types; raises ShapeError naming the operand that does not fit."""
        sizes: dict[str, Size] = {}
        groups: dict[str, tuple[Size, ...]] = {}
        dtype: str | None = None
        first: dict[str, str] = {}
        for i, type in enumerate(types):
            kind, dims, flag = self.operand(i)
            name = names[min(i, len(names) - 1)]
            if type is None:
                if flag != "?":
                    raise MissingOperandError(f"{name} is missing")
                continue
            if kind in ("", "float", "int"):
                dtype = dtype or type.dtype
            allowed = KINDS.get(kind) or frozenset({kind or dtype})
            expects(type.dtype in allowed, f"{name} is {type.dtype}, expected {kind or dtype}")
            shared = first.setdefault(kind, type.dtype)
            expects(type.dtype == shared, f"{name} is {type.dtype}, expected {shared}")
            _match(name, dims, type.shape, sizes, groups)
        known = {**attrs, **sizes}

        def shape(dims: list[Any]) -> tuple[Size, ...]:
            return tuple(s for d in dims for s in (groups.get(d, ()) if isinstance(d, str) else (d(known),)))

        return [Type(self._dtype(kind, dtype, attrs), shape(dims)) for kind, dims in self.gives]

    @staticmethod
    def _dtype(kind: str, dtype: str | None, attrs: Mapping[str, Any]) -> str:
        if kind in NUMPY_DTYPES:
            return kind
        if kind == "dtype":
            return attrs["dtype"]
        return dtype or "f32"


def _match(name: str, dims: list[str], shape: tuple[Size, ...], sizes: dict[str, Size], groups: dict[str, tuple[Size, ...]]) -> None:
    star = next((i for i, d in enumerate(dims) if d[0] == "*"), None)
    fixed = len(dims) - (star is not None)
    fits = len(shape) == fixed or (star is not None and len(shape) >= fixed)
    expects(fits, f"{name} has rank {len(shape)}, expected [{' '.join(dims)}]")
    if star is not None:
        extra = len(shape) - fixed
        groups[dims[star]] = broadcast(groups.get(dims[star], ()), shape[star : star + extra])
        dims, shape = dims[:star] + dims[star + 1 :], shape[:star] + shape[star + extra :]
    for dim, got in zip(dims, shape, strict=True):
        dim, *one = dim.split("|")
        if one and got == 1:
            continue
        want = int(dim) if dim.isdigit() else sizes.setdefault(dim, got)
        expects(want == got, f"{name} has {dim}={got}, expected {want}")
