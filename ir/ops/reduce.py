"""Ops that fold an axis: sums, means, extremes, order."""

from __future__ import annotations

import numpy as np

from ..op import Op, op
from ..signature import expects
from ..types import KINDS, Type
from .elementwise import cast as _cast, exp, log, not_


def _axes(x, axis):
    axes = axis if isinstance(axis, tuple) else (axis,)
    for a in axes:
        expects(-x.rank <= a < x.rank, f"axis={a} is none of {x}")
    return {a % x.rank for a in axes}


def _reduced(dtype=None, kind="any"):
    def rule(x, *, axis, keep=False):
        expects(x.dtype in KINDS[kind], f"x is {x}, expected {kind}")
        axes = _axes(x, axis)
        shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
        return Type(dtype or x.dtype, tuple(shape))

    return rule


def _sum_rule(x, *, axis, keep=False):
    expects(x.dtype != "bool", f"x is {x}, expected numbers; cast first")
    return _reduced()(x, axis=axis, keep=keep)


def _reduction(name, function, doc, rule):
    def reference(x, *, axis, keep=False):
        return function(x, axis=axis, keepdims=keep).astype(x.dtype)  # NumPy widens sums of short integers

    reference.__name__, reference.__doc__ = name, doc
    return Op(reference, rule)


sum = _reduction("sum", np.sum, "Sum along `axis` (one or several); `keep` leaves it as size 1.", _sum_rule)
mean = _reduction("mean", np.mean, "Mean along `axis` (one or several); `keep` leaves it as size 1.", _reduced(kind="float"))
max = _reduction("max", np.max, "Largest along `axis` (one or several); `keep` leaves it as size 1.", _reduced())
min = _reduction("min", np.min, "Smallest along `axis` (one or several); `keep` leaves it as size 1.", _reduced())


@op(_reduced("bool", kind="bool"))
def any(x, *, axis, keep=False):
    """Whether some element along `axis` holds."""
    return np.any(x, axis=axis, keepdims=keep)


@any.decompose
def _(x, *, axis, keep):
    return _cast(max(_cast(x, dtype="i32"), axis=axis, keep=keep), dtype="bool")


@op(_reduced("bool", kind="bool"))
def all(x, *, axis, keep=False):
    """Whether each element along `axis` holds."""
    return np.all(x, axis=axis, keepdims=keep)


@all.decompose
def _(x, *, axis, keep):
    return not_(any(not_(x), axis=axis, keep=keep))


@op(_reduced("i64"))
def argmax(x, *, axis, keep=False):
    """Index of the largest along one axis; the first of equals."""
    return np.argmax(x, axis=axis, keepdims=keep)


@op(_reduced("i64"))
def argmin(x, *, axis, keep=False):
    """Index of the smallest along one axis; the first of equals."""
    return np.argmin(x, axis=axis, keepdims=keep)


@op("[*b] -> [*b]")
def cumsum(x, *, axis):
    """Running sum along axis, the element itself included."""
    return np.cumsum(x, axis, dtype=x.dtype)


@op(_reduced(kind="float"))
def logsumexp(x, *, axis, keep=False):
    """log(sum(exp(x))) along axis, without overflow."""
    top = np.max(x, axis=axis, keepdims=True)
    out = np.log(np.sum(np.exp(x - top), axis=axis, keepdims=True)) + top
    return out if keep else np.squeeze(out, axis)


@logsumexp.decompose
def _(x, *, axis, keep):
    from .shape import squeeze

    top = max(x, axis=axis, keep=True)
    out = log(sum(exp(x - top), axis=axis, keep=True)) + top
    return out if keep else squeeze(out, axis)


@op("float[*b] -> [*b]")
def softmax(x, *, axis=-1):
    """exp(x) / sum(exp(x)) along axis."""
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


@softmax.decompose
def _(x, *, axis):
    e = exp(x - max(x, axis=axis, keep=True))
    return e / sum(e, axis=axis, keep=True)


@op("float[*b] -> [*b]")
def log_softmax(x, *, axis=-1):
    """log(softmax(x)) along axis."""
    return x - logsumexp.reference(x, axis=axis, keep=True)


@log_softmax.decompose
def _(x, *, axis):
    return x - logsumexp(x, axis=axis, keep=True)


def _top_k_rule(x, *, k):
    expects(not isinstance(x.shape[-1], int) or x.shape[-1] >= k, f"k={k} exceeds the last size {x.shape[-1]}")
    return [x.with_axis(-1, k), Type("i64", (*x.shape[:-1], k))]


@op(_top_k_rule)
def top_k(x, *, k):
    """The k largest along the last axis in falling order and their indices; of equals the first comes first."""
    order = argsort.reference(x, axis=-1, descending=True)[..., :k]
    return np.take_along_axis(x, order, -1), order


@op("[*b] -> i64[*b]")
def argsort(x, *, axis=-1, descending=False):
    """Indices that sort along axis; equals keep their order."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    last = x.shape[axis] - 1  # sorted backwards and read backwards, as not every dtype has negatives
    return np.flip(last - np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)


@op("[*b] -> [*b]")
def sort(x, *, axis=-1, descending=False):
    """Sorted along axis."""
    out = np.sort(x, axis=axis)
    return np.flip(out, axis) if descending else out


@sort.decompose
def _(x, *, axis, descending):
    from .index import gather

    axis %= x.rank
    return gather(x, argsort(x, axis=axis, descending=descending), axis=axis)
