"""Attention and rotary positions as single ops."""

from __future__ import annotations

import numpy as np

from ..op import op
from ..signature import Signature, broadcast, expects
from ..sizes import Size
from .elementwise import and_, cast, less_equal, negative, where
from .leaves import dropout as drop, iota
from .linear import matmul
from .reduce import any as any_, softmax
from .shape import concat, repeat, same_dtype, slice_, transpose, view

LOWEST = -3.4028234663852886e38  # the least finite float32: a masked score, so that a row without any key stays finite


def causal_mask(rows: Size, keys: Size, start=None):
    """bool[rows keys]: row i sees keys up to start + i; without start the last row sees all."""
    first = keys - rows if start is None else start if start.type.dtype == "i64" else cast(start, dtype="i64")
    return less_equal(iota(size=keys)[None, :], (iota(size=rows) + first)[:, None])


def _reference_scores(q, k, mask, bias, start, scale, causal):
    k = np.repeat(k, q.shape[-3] // k.shape[-3], -3)
    scores = q.dtype.type(scale) * (q @ k.swapaxes(-1, -2))
    if bias is not None:
        scores = scores + bias
    rows, keys = scores.shape[-2:]
    if causal:
        seen = np.arange(keys) <= np.arange(rows)[:, None] + (keys - rows if start is None else start)
        mask = seen if mask is None else mask & seen
    if mask is None:
        return softmax.reference(scores)
    weights = softmax.reference(np.where(mask, scores, scores.dtype.type(LOWEST)))
    return np.where(mask.any(-1, keepdims=True), weights, weights.dtype.type(0))


_OPERANDS = "[*b heads q d], [*b kv_heads k d], "
_MASKS = "bool[*b heads|1 q|1 k]?, [*b heads|1 q|1 k]?, int[]?"


class _Grouped(Signature):
    """A signature whose key heads divide the query heads, and in which dropout has a key."""

    def __call__(self, names, types, attrs):
        made = super().__call__(names, types, attrs)
        heads, kv_heads = types[0].shape[-3], types[1].shape[-3]
        fits = heads % kv_heads == 0  # type: ignore[operator]
        expects(fits, f"q has {heads} heads, expected a multiple of the {kv_heads} of k")
        expects(not attrs.get("dropout") or types[names.index("key")] is not None, "key is missing, expected u32[2] to draw dropout from")
        return made


@op(_Grouped(f"{_OPERANDS}{_MASKS} -> [*b heads q k]"))
def attention_weights(q, k, mask=None, bias=None, start=None, *, scale, causal=False):
    """softmax(scale q k^T + bias, where mask): what `attention` weighs values by; zeros in a row that sees no key."""
    return _reference_scores(q, k, mask, bias, start, scale, causal)


@attention_weights.decompose
def _(q, k, mask, bias, start, *, scale, causal):
    heads, kv_heads = q.shape[-3], k.shape[-3]
    if heads != kv_heads:
        k = repeat(k, heads // kv_heads, -3)
    n = k.rank - 2
    scores = matmul(q * scale, transpose(k, perm=(*range(n), n + 1, n)))
    if causal:
        seen = causal_mask(q.shape[-2], k.shape[-2], start)
        mask = seen if mask is None else and_(mask, seen)
    if bias is not None:
        scores = scores + bias
    if mask is None:
        return softmax(scores)
    return where(any_(mask, axis=-1, keep=True), softmax(where(mask, scores, LOWEST)), 0.0)


@op(_Grouped(f"{_OPERANDS}[*b kv_heads k v], {_MASKS}, u32[2]? -> [*b heads q v]"))
def attention(q, k, v, mask=None, bias=None, start=None, key=None, *, scale, causal=False, dropout=0.0, site=0):
    """softmax(scale q k^T + bias, where mask) v (https://arxiv.org/abs/1706.03762).

    A causal row i sees keys up to start + i, by default so that the last row sees all. Fewer key heads than query heads are shared by
    groups. A row that sees no key gives zeros. `dropout` with a random key drops weights.
    """
    weights = _reference_scores(q, k, mask, bias, start, scale, causal)
    if dropout:
        weights = drop.reference(weights, key, rate=dropout, site=site)
    return weights @ np.repeat(v, q.shape[-3] // v.shape[-3], -3)


@attention.decompose
def _(q, k, v, mask, bias, start, key, *, scale, causal, dropout, site):
    heads, kv_heads = q.shape[-3], k.shape[-3]
    weights = attention_weights(q, k, mask, bias, start, scale=scale, causal=causal)
    if dropout:
        weights = drop(weights, key, rate=dropout, site=site)
    return matmul(weights, v if heads == kv_heads else repeat(v, heads // kv_heads, -3))


def _rotary_rule(x, cos, sin, *, interleaved):
    expects(x.rank >= 2 and x.shape[-1] % 2 == 0, f"x is {x}, expected an even last size")
    half = x.with_axis(-1, x.shape[-1] // 2)
    expects(cos.shape == sin.shape and cos.shape[-1] == half.shape[-1], f"cos is {cos} and sin {sin}, expected [... {half.shape[-1]}]")
    expects(broadcast(half.shape, cos.shape) == half.shape, f"cos is {cos}, expected to broadcast to {half}")
    same_dtype(x, cos=cos, sin=sin)
    return x


@op(_rotary_rule)
def rotary(x, cos, sin, *, interleaved=False):
    """Pairs of the last axis turned by angles given as cos and sin [... n/2]; a pair is (i, i + n/2), or (2i, 2i + 1) if interleaved
    (https://arxiv.org/abs/2104.09864)."""
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else np.split(x, 2, -1)
    left, right = a * cos - b * sin, a * sin + b * cos
    return np.stack((left, right), -1).reshape(x.shape) if interleaved else np.concatenate((left, right), -1)


@rotary.decompose
def _(x, cos, sin, *, interleaved):
    n, axis = x.shape[-1], x.rank - 1
    if not interleaved:
        a, b = slice_(x, axis=axis, start=0, stop=n // 2), slice_(x, axis=axis, start=n // 2, stop=n)
        return concat(a * cos + negative(b) * sin, a * sin + b * cos, axis=axis)
    pairs = view(x, (*x.shape[:-1], n // 2, 2))
    a, b = pairs[..., 0:1], pairs[..., 1:2]
    cos, sin = cos[..., None], sin[..., None]
    return view(concat(a * cos - b * sin, a * sin + b * cos, axis=x.rank), x.shape)
