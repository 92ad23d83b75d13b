"""Positions that depend on how far query and key are apart."""

from __future__ import annotations

import math

import numpy as np

from .. import ops
from ..graph import Param, Value, current
from ..layer import Layer
from ..sizes import Size
from .attention import Attention
from .basic import Embedding


def bucket(distance: int, buckets: int, most: int, both: bool) -> int:
    """The bucket of key place minus query place: exact when near, logarithmic up to `most`, in float32 as the reference's tables are."""
    offset = 0
    if both:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    share = np.log(np.float32(distance) / np.float32(exact)) / np.float32(math.log(most / exact))
    return offset + min(exact + int(share * np.float32(buckets - exact)), buckets - 1)


class Sinusoids(Embedding):
    """Fixed vectors of places: sine and cosine by turns, of wavelengths from 2 pi to 20000 pi (https://arxiv.org/abs/1706.03762)."""

    def __init__(self, rows: int, n: int):
        super().__init__(rows, n)
        angles = np.arange(rows)[:, None] / 10000 ** (np.arange(n) // 2 * 2 / n)
        self.weight = Param(rows, n, init=np.where(np.arange(n) % 2, np.cos(angles), np.sin(angles)), trainable=False)


class RelativeBias(Layer):
    """A learnt number for each head and bucket of distances, added to attention scores."""

    def __init__(self, heads: int, buckets: int, most: int, causal: bool):
        self.table, self.most, self.causal = Embedding(buckets, heads), most, causal
        self.buckets = [bucket(d, buckets, most, not causal) for d in range(-most, most + 1)]

    def forward(self, rows: Size) -> Value:
        """[1 heads rows keys] for the rows of this call, keys counting from the first one ever."""
        past = current().cache.past if self.causal else 0
        query, key = ops.iota(size=rows) + past, ops.iota(size=rows + past)
        distance = ops.minimum(ops.maximum(key[None, :] - query[:, None], -self.most), self.most)
        bias = self.table(ops.take(ops.literal(value=self.buckets), distance + self.most))
        return ops.rearrange(bias, "rows keys heads -> heads rows keys")[None]


class RelativeAttention(Attention):
    """Attention whose scores also depend on how far query and key are apart (https://arxiv.org/abs/1803.02155).

    Each distance has a vector; its product with the query (and, where `keys` is true, with the key) is added to the scores.
    """

    def __init__(self, n: int, heads: int, *, positions: int, keys: bool, **options):
        super().__init__(n, heads, **options)
        self.distance, self.keys, self.most = Embedding(2 * positions - 1, n // heads), keys, positions

    def scores(self, q: Value, k: Value) -> Value:
        """[batch heads rows keys] of q [batch heads rows head] and k [batch heads keys head]."""
        rows, columns = ops.iota(size=q.shape[2]) + current().cache.past, ops.iota(size=k.shape[2])
        vectors = self.distance(rows[:, None] - columns[None, :] + (self.most - 1))  # [rows keys head]
        by_row = ops.rearrange(q, "batch heads rows head -> rows (batch heads) head") @ ops.rearrange(vectors, "rows keys head -> rows head keys")
        total = ops.rearrange(by_row, "rows (batch heads) keys -> batch heads rows keys", heads=self.heads)
        if self.keys:
            by_key = ops.rearrange(k, "batch heads keys head -> keys (batch heads) head") @ ops.rearrange(vectors, "rows keys head -> keys head rows")
            total = total + ops.rearrange(by_key, "keys (batch heads) rows -> batch heads rows keys", heads=self.heads)
        return total * self.scale
