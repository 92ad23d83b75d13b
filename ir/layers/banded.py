"""Attention to what is near and to a few keys that all rows share, at a cost that grows with the length and not with its square."""

from __future__ import annotations

from typing import NamedTuple

from .. import ops
from ..graph import Value, current
from ..ops.attention import LOWEST


class Keys(NamedTuple):
    """Keys and values that blocks of rows see, where the mask says so.

    k and v are [batch heads blocks keys head], each block with its own, or [batch heads keys head], shared by all blocks; the mask
    broadcasts to [batch heads blocks rows keys]. `bias` is added to the scores.
    """

    k: Value
    v: Value
    mask: Value
    bias: float = 0.0


def blocks_of(x: Value, size: int, axis: int = 2) -> Value:
    """x with `axis`, a multiple of `size`, cut into blocks: [... length ...] -> [... blocks size ...]."""
    return ops.view(x, (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :]))


def neighbours(x: Value, axis: int = 2) -> Value:
    """Each block but the first and last joined with the one before and the one after: [... blocks size ...] -> [... blocks-2 3*size ...]."""
    count = x.shape[axis]
    return ops.concat(*(ops.slice_(x, axis=axis, start=i, stop=count - 2 + i) for i in range(3)), axis=axis + 1)


def attend_jointly(q: Value, parts: list[Keys], *, scale: float, dropout: float = 0.0) -> tuple[Value, list[Value]]:
    """Rows q [batch heads blocks rows head] with one softmax over several sets of keys -> the sums of values, shaped as q, and the weights on each.

    A row that sees no key weighs all alike.
    """
    q = q * scale
    scores = [_scores(q, part) for part in parts]
    weights = ops.softmax(ops.concat(*scores, axis=4))
    seen = ops.split(weights, axis=4, sizes=tuple(s.shape[4] for s in scores)) if len(scores) > 1 else (weights,)
    used = seen
    if (graph := current()).training and dropout:
        used = tuple(ops.dropout(w, graph.random_key(), rate=dropout, site=graph.random_site()) for w in seen)
    sums = [_product(w, part.v) for w, part in zip(used, parts, strict=True)]
    return sum(sums[1:], sums[0]), list(seen)


def _scores(q: Value, part: Keys) -> Value:
    n = part.k.rank
    scores = _product(q, ops.transpose(part.k, perm=(*range(n - 2), n - 1, n - 2)))
    return ops.where(part.mask, scores + part.bias if part.bias else scores, LOWEST)


def _product(x: Value, y: Value) -> Value:
    """x [batch heads blocks rows a] times y [batch heads blocks a b] or, shared by the blocks, [batch heads a b]."""
    if y.rank == x.rank:
        return x @ y
    flat = ops.view(x, (*x.shape[:2], x.shape[2] * x.shape[3], x.shape[4])) @ y
    return ops.view(flat, (*x.shape[:4], y.shape[3]))


def band(size: int) -> Value:
    """bool[size 3*size]: row i of a block sees `size` keys before and after itself among those of three blocks."""
    ahead = ops.iota(size=3 * size)[None, :] - ops.iota(size=size)[:, None]
    return (ahead >= 0) & (ahead <= 2 * size)


def by_distance(weights: Value) -> Value:
    """Weights on three blocks by key, [... size 3*size], as weights by distance, [... size 2*size+1], the row itself in the middle."""
    size = weights.shape[-2]
    last = weights.rank - 2
    flat = ops.view(weights, (*weights.shape[:-2], 3 * size * size))
    flat = ops.pad(flat, low=(0,) * flat.rank, high=(*(0,) * last, size))  # rows of one more than 3*size each start one key later
    return ops.view(flat, (*weights.shape[:-1], 3 * size + 1))[..., : 2 * size + 1]
