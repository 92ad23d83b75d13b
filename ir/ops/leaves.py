"""Ops without operands: constants, literal arrays, sizes, ranges, and randomness."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..op import Op, op
from ..signature import expects
from ..types import NUMPY_DTYPES, Type, dtype_of


class Literal:
    """An array as an attribute: equal when its bytes are."""

    __slots__ = ("array", "digest")

    def __init__(self, array: np.ndarray):
        self.array = np.ascontiguousarray(array).reshape(np.shape(array))
        self.array.flags.writeable = False
        self.digest = hashlib.sha256(repr((self.array.dtype.str, self.array.shape)).encode() + self.array.tobytes()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Literal) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"literal {self.digest}"


@op(lambda *, value, dtype: Type(dtype, ()))
def constant(*, value, dtype):
    """A number."""
    return np.asarray(value, NUMPY_DTYPES[dtype])


def _literal(*, value: Any, dtype: str) -> np.ndarray:
    """An array that is part of the model's definition, such as a table of window indexes."""
    return value.array.astype(NUMPY_DTYPES[dtype])


class _LiteralOp(Op):
    def __call__(self, *operands: Any, **attrs: Any) -> Any:
        """The array as a value; float arrays become f32, integers i64."""
        value = attrs["value"]
        if not isinstance(value, Literal):
            array = np.asarray(value)
            kind = {"f": "f32", "i": "i64", "u": "i64", "b": "bool"}.get(array.dtype.kind)
            expects(kind is not None, f"literal: an array of {array.dtype} is not a tensor")
            dtype = attrs.get("dtype") or str(kind)
            value = Literal(array.astype(NUMPY_DTYPES[dtype]))
        return super().__call__(value=value, dtype=attrs.get("dtype") or dtype_of(value.array.dtype))


_literal.__name__ = "literal"
literal = _LiteralOp(_literal, lambda *, value, dtype: Type(dtype, tuple(value.array.shape)))


@op(lambda *, value, dtype: Type(dtype, ()))
def size(*, value, dtype="i64"):
    """A size of the graph as a number."""
    return np.asarray(value, NUMPY_DTYPES[dtype])


@op("-> i64[size]")
def iota(*, size):
    """0, 1, ... size - 1."""
    return np.arange(size, dtype=np.int64)


@op(lambda key, *, shape, site: Type("f32", shape))
def random_uniform(key, *, shape, site):
    """Numbers drawn evenly from [0, 1); `site` tells the draws of one key apart."""
    return np.random.default_rng([*map(int, key), site]).random(shape).astype(np.float32)


@op(lambda x, key, *, rate, site: x)
def dropout(x, key, *, rate, site):
    """x with a share `rate` of its elements zeroed and the others divided by 1 - rate (https://arxiv.org/abs/1207.0580)."""
    keep = random_uniform.reference(key, shape=x.shape, site=site) >= rate
    return np.where(keep, x / x.dtype.type(1 - rate), x.dtype.type(0))


@dropout.decompose
def _(x, key, *, rate, site):
    from .elementwise import less_equal, where

    keep = less_equal(rate, random_uniform(key, shape=x.shape, site=site))
    return where(keep, x * (1 / (1 - rate)), 0.0)
