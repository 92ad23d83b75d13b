"""Ops that read or write at computed places."""

from __future__ import annotations

import numpy as np

from ..op import op
from ..signature import expects
from ..types import KINDS, NUMPY_DTYPES, Type
from .shape import has_axis


def _integer(index):
    expects(index.dtype in KINDS["int"], f"index is {index.dtype}, expected an integer dtype")


def _take_rule(x, index, *, axis):
    _integer(index)
    has_axis(x, axis)
    return x.with_shape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@op(_take_rule)
def take(x, index, *, axis=0):
    """The slices of x along axis that the index names, in its shape. Indices lie within the axis."""
    return np.take(x, index, axis)


@op("[words n], int[*b] -> [*b n]")
def embedding(table, index, *, frozen):
    """Rows of a table. No gradient flows into the row `frozen`, which stands for padding and is not trained."""
    return np.take(table, index, 0)


@embedding.decompose
def _(table, index, *, frozen):
    from .elementwise import equal, stop_gradient, where
    from .shape import expand_dims

    rows = take(table, index)
    return where(expand_dims(equal(index, frozen), -1), stop_gradient(rows), rows)


def _gather_rule(x, index, *, axis):
    _integer(index)
    has_axis(x, axis)
    same = x.rank == index.rank and all(a == b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if i != axis)
    expects(same, f"index is {index}, expected the sizes of {x} but on axis {axis}")
    return x.with_shape(*index.shape)


@op(_gather_rule)
def gather(x, index, *, axis):
    """out[i, j, k] = x[i, index[i, j, k], k] for axis 1; other axes agree."""
    return np.take_along_axis(x, index, axis)


def _scatter_rule(x, index, new, *, axis, reduce):
    expects(reduce in ("set", "add"), f"reduce={reduce!r}, expected 'set' or 'add'")
    wanted = _gather_rule(x, index, axis=axis)
    expects(new == wanted, f"new is {new}, expected {wanted}")
    return x


@op(_scatter_rule)
def scatter(x, index, new, *, axis, reduce="set"):
    """x with x[i, index[i, j, k], k] set to new[i, j, k], or increased by it; indices to be set do not repeat."""
    x = x.copy()
    if reduce == "set":
        np.put_along_axis(x, index, new, axis)
    else:
        places = list(np.indices(index.shape, sparse=True))
        places[axis] = index
        np.add.at(x, tuple(places), new)
    return x


def _one_hot_rule(index, *, size, dtype):
    _integer(index)
    return Type(dtype, (*index.shape, size))


@op(_one_hot_rule)
def one_hot(index, *, size, dtype="f32"):
    """1 where the last axis counts to the index, else 0; an index outside gives a row of zeros."""
    return (index[..., None] == np.arange(size)).astype(NUMPY_DTYPES[dtype])


@one_hot.decompose
def _(index, *, size, dtype):
    from .elementwise import cast, equal
    from .leaves import iota
    from .shape import expand_dims

    return cast(equal(expand_dims(cast(index, dtype="i64"), -1), iota(size=size)), dtype=dtype)
