"""Convolutions, pooling and resizing over trailing spatial axes: [batch channels *spatial]."""

from __future__ import annotations

import itertools

import numpy as np

from ..op import op
from ..signature import expects
from ..types import KINDS
from .elementwise import cast, floor, maximum, minimum
from .index import take
from .leaves import iota, size
from .shape import same_dtype


def _spatial(x, **attrs):
    n = x.rank - 2
    expects(n >= 1 and x.dtype in KINDS["float"], f"x is {x}, expected float[batch channels *spatial]")
    for name, value in attrs.items():
        expects(len(value) == n, f"{name}={value} has {len(value)} entries, expected one for each of {n} spatial axes")
    return n


def _out_size(d, kernel, stride, padding, dilation=1):
    rest = d + padding[0] + padding[1] - dilation * (kernel - 1) - 1
    expects(not isinstance(rest, int) or rest >= 0, f"a spatial size of {d} with padding {padding} is too small for a kernel of {kernel}")
    return rest // stride + 1


def _conv_rule(x, weight, bias=None, *, stride, padding, dilation, groups):
    n = _spatial(x, stride=stride, padding=padding, dilation=dilation)
    same_dtype(x, weight=weight, bias=bias)
    expects(weight.rank == n + 2, f"weight is {weight}, expected rank {n + 2}")
    expects(weight.shape[0] % groups == 0, f"weight is {weight}, expected first size to divide into {groups} groups")
    expects(weight.shape[1] * groups == x.shape[1], f"x has {x.shape[1]} channels, expected {weight.shape[1]} x {groups} groups")
    expects(bias is None or bias.shape == (weight.shape[0],), f"bias is {bias}, expected [{weight.shape[0]}]")
    sizes = map(_out_size, x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return x.with_shape(x.shape[0], weight.shape[0], *sizes)


def _windows(x, kernel, stride, padding, dilation, fill=0.0):
    """[batch channels *out *kernel] view of padded x."""
    x = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=fill)
    span = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, span, axis=tuple(range(2, x.ndim)))
    n = len(kernel)
    return views[(slice(None),) * 2 + tuple(slice(None, None, s) for s in stride) + tuple(slice(None, None, d) for d in dilation)[:n]]


@op(_conv_rule)
def conv(x, weight, bias=None, *, stride, padding, dilation, groups=1):
    """Cross-correlation of x [batch in *spatial] with weight [out in/groups *kernel]; padding is (low, high) per axis."""
    n = x.ndim - 2
    views = _windows(x, weight.shape[2:], stride, padding, dilation)
    out = []
    for part, w in zip(np.split(views, groups, 1), np.split(weight, groups, 0), strict=True):
        axes = (1, *range(2 + n, 2 + 2 * n))
        out.append(np.moveaxis(np.tensordot(part, w, (axes, tuple(range(1, n + 2)))), -1, 1))
    y = np.concatenate(out, 1)
    return y if bias is None else y + bias.reshape(-1, *(1,) * n)


def _conv_transpose_rule(x, weight, bias=None, *, stride, padding, output_padding, dilation, groups):
    n = _spatial(x, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
    same_dtype(x, weight=weight, bias=bias)
    expects(weight.rank == n + 2 and weight.shape[0] == x.shape[1], f"weight is {weight}, expected [{x.shape[1]} out/groups *kernel]")
    expects(x.shape[1] % groups == 0, f"x has {x.shape[1]} channels, expected them to divide into {groups} groups")
    channels = weight.shape[1] * groups
    expects(bias is None or bias.shape == (channels,), f"bias is {bias}, expected [{channels}]")
    rows = zip(x.shape[2:], weight.shape[2:], stride, padding, output_padding, dilation, strict=True)
    return x.with_shape(x.shape[0], channels, *[(d - 1) * s - lo - hi + l * (k - 1) + o + 1 for d, k, s, (lo, hi), o, l in rows])


@op(_conv_transpose_rule)
def conv_transpose(x, weight, bias=None, *, stride, padding, output_padding, dilation, groups=1):
    """The gradient of `conv` as a layer: x [batch in *spatial], weight [in out/groups *kernel], padding taken off the result."""
    n = x.ndim - 2
    full = [(d - 1) * s + l * (k - 1) + 1 + o for d, k, s, o, l in zip(x.shape[2:], weight.shape[2:], stride, output_padding, dilation, strict=True)]
    y = np.zeros((x.shape[0], weight.shape[1] * groups, *full), x.dtype)
    for at in itertools.product(*map(range, weight.shape[2:])):
        spots = tuple(slice(a * l, a * l + (d - 1) * s + 1, s) for a, l, d, s in zip(at, dilation, x.shape[2:], stride, strict=True))
        w = weight[(slice(None), slice(None), *at)]
        parts = [np.einsum("bi...,io->bo...", p, q) for p, q in zip(np.split(x, groups, 1), np.split(w, groups, 0), strict=True)]
        y[(slice(None), slice(None), *spots)] += np.concatenate(parts, 1)
    y = y[(slice(None), slice(None), *[slice(lo, f - hi) for f, (lo, hi) in zip(full, padding, strict=True)])]
    return y if bias is None else y + bias.reshape(-1, *(1,) * n)


def _pool_rule(x, *, kernel, stride, padding, **_):
    _spatial(x, kernel=kernel, stride=stride, padding=padding)
    return x.with_shape(*x.shape[:2], *map(_out_size, x.shape[2:], kernel, stride, padding))


@op(_pool_rule)
def max_pool(x, *, kernel, stride, padding):
    """The largest of each window; what lies outside never wins."""
    views = _windows(x, kernel, stride, padding, (1,) * len(kernel), -np.inf)
    return views.max(tuple(range(-len(kernel), 0)))


@op(_pool_rule)
def average_pool(x, *, kernel, stride, padding, count_padding=True):
    """The mean of each window; `count_padding` says whether zeros outside are counted."""
    axes = tuple(range(-len(kernel), 0))
    one = (1,) * len(kernel)
    total = _windows(x, kernel, stride, padding, one).sum(axes)
    if count_padding:
        return total / x.dtype.type(np.prod(kernel))
    return total / _windows(np.ones_like(x), kernel, stride, padding, one).sum(axes)


def _resize_rule(x, *, sizes, mode, align_corners):
    _spatial(x, sizes=sizes)
    expects(mode in ("nearest", "linear", "cubic"), f"mode={mode!r}, expected 'nearest', 'linear' or 'cubic'")
    return x.with_shape(*x.shape[:2], *sizes)


def _taps(mode, t):
    """Weights of the 1, 2 or 4 neighbours at distance t in [0, 1) past the second (cubic: a = -0.75)."""
    if mode == "nearest":
        return {0: None}
    if mode == "linear":
        return {0: 1.0 - t, 1: t}
    a = -0.75
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1.0
    far = lambda d: ((d - 5.0) * d + 8.0) * d * a - 4.0 * a
    return {-1: far(t + 1.0), 0: near(t), 1: near(1.0 - t), 2: far(2.0 - t)}


def _source(i, old, new, gaps, mode, align_corners):
    """Where result i lies in the operand; `gaps` is new - 1, but at least 1."""
    if mode == "nearest":
        return i * old / new  # in this order, so that a whole number comes out whole in any precision
    return i * ((old - 1.0) / gaps) if align_corners else (i + 0.5) * (old / new) - 0.5


@op(_resize_rule)
def resize(x, *, sizes, mode="nearest", align_corners=False):
    """Spatial axes resampled to `sizes`, with half-pixel centres or aligned corners; the edge repeats outside."""
    for axis, new in enumerate(sizes, 2):
        old = x.shape[axis]
        if old == new:
            continue
        at = _source(np.arange(new, dtype=np.float64), float(old), float(new), max(new - 1.0, 1.0), mode, align_corners)
        at = np.maximum(at, 0) if mode == "linear" else at
        base = np.floor(at)
        wide = (-1,) + (1,) * (x.ndim - 1 - axis)
        terms = []
        for k, w in _taps(mode, at - base).items():
            part = np.take(x, np.clip(base + k, 0, old - 1).astype(np.int64), axis)
            terms.append(part if w is None else part * w.astype(x.dtype).reshape(wide))
        x = sum(terms[1:], terms[0])
    return x


@resize.decompose
def _(x, *, sizes, mode, align_corners):
    for axis, new in enumerate(sizes, 2):
        old = x.shape[axis]
        if old == new:
            continue
        number = lambda d: size(value=d, dtype="f32")
        gaps = maximum(number(new) - 1.0, 1.0)
        at = _source(cast(iota(size=new), dtype="f32"), number(old), number(new), gaps, mode, align_corners)
        at = maximum(at, 0.0) if mode == "linear" else at
        base = floor(at)
        terms = []
        for k, w in _taps(mode, at - base).items():
            spot = minimum(maximum(base + float(k), 0.0), number(old) - 1.0)
            part = take(x, cast(spot, dtype="i64"), axis=axis)
            terms.append(part if w is None else part * w[(slice(None),) + (None,) * (x.rank - 1 - axis)])
        x = sum(terms[1:], terms[0])
    return x
