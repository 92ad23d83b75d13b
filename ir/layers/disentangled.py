"""Attention that keeps what a word is apart from where it stands (https://arxiv.org/abs/2006.03654)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ..graph import Value
from ..layer import Layer
from ..sizes import Size, minimum
from .attention import Attention, attend, heads_first, heads_last
from .basic import Dropout, Embedding, LayerNorm, Linear

KINDS = ("c2p", "p2c")  # which scores depend on the distance: those of a word for a place, and of a place for a word


def log_buckets(buckets: int, most: int) -> list[int]:
    """The bucket of each distance from 0 up, until the last one that differs: exact when near, then logarithmic; float32 as the reference's."""
    near = buckets // 2
    last = near if near < 2 else math.ceil(near * ((most - 1) / near) ** ((buckets - near) / (near - 1))) + 1
    far = np.arange(near + 1, last + 1, dtype=np.float32) / np.float32(near)
    steps = np.ceil(np.log(far) / np.log(np.float32((most - 1) / near)) * np.float32(near - 1))
    return [*range(near + 1), *(steps.astype(int) + near).tolist()]


class Distances(Layer):
    """A vector for each bucket of distances, or for each distance up to `most` where there are no buckets, perhaps normalised."""

    def __init__(self, n: int, most: int, buckets: int = 0, norm: LayerNorm | None = None):
        self.table, self.norm, self.most = Embedding(2 * (buckets if buckets > 0 else most), n), norm, most
        self.buckets = log_buckets(buckets, most) if buckets > 0 else []

    def forward(self, length: Size) -> tuple[Value, Value]:
        """-> vectors [distances n], and i64[rows keys]: which of them belongs to query and key."""
        place = ops.iota(size=length)
        distance, vectors = place[:, None] - place[None, :], self.table.weight
        if self.buckets:
            span: Size = vectors.shape[0] // 2
            last = len(self.buckets) - 1
            distance = ops.take(ops.literal(value=[*(-b for b in self.buckets[:0:-1]), *self.buckets]), _clip(distance, -last, last) + last)
        else:
            span = minimum(length, self.most)
            vectors = vectors[self.most - span : self.most + span]
        return vectors if self.norm is None else self.norm(vectors), _clip(distance + span, 0, 2 * span - 1)


def _clip(x: Value, least: Size, most: Size) -> Value:
    return ops.minimum(ops.maximum(x, least), most)


class DisentangledAttention(Attention):
    """Attention with scores of words for distances and of distances for words; projections for distances are the words' own where they are shared."""

    def __init__(self, n: int, heads: int, kinds: Sequence[str], *, placed: bool, share: bool = False, key_bias: bool = True, **options: Any):
        root = np.float32(math.sqrt(n // heads * (1 + len(kinds))))  # float32 in the reference, whatever the states are
        super().__init__(n, heads, scale=1 / float(root), **options)
        self.kinds, own = kinds if placed else (), placed and not share
        self.distance_key = Linear(n, n, key_bias) if own and "c2p" in kinds else None
        self.distance_query = Linear(n, n) if own and "p2c" in kinds else None
        self.distance_dropout = Dropout(options.get("out_dropout", 0.0))

    def by_distance(self, q: Value, k: Value, vectors: Value, index: Value) -> Value | None:
        """[batch heads rows keys] of q and k [batch heads seq head], vectors [distances n] and i64[rows keys] of them."""
        vectors, place, scores = self.distance_dropout(vectors)[None], ops.iota(size=q.shape[2]), []
        if "c2p" in self.kinds:
            scores.append(_picked(q, (self.distance_key or self.k)(vectors), place[:, None], index))
        if "p2c" in self.kinds:
            scores.append(_picked(k, (self.distance_query or self.q)(vectors), place[None, :], index))
        return sum(scores[1:], start=scores[0]) * self.scale if scores else None

    def weigh(self, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None) -> Value:
        """[batch heads rows head]: the values, weighed by scores; a row of padding takes their mean, as the reference's."""
        y = attend(q, k, v, mask, bias, scale=self.scale, dropout=self.dropout)
        return y if mask is None else ops.where(live_rows(mask), y, ops.mean(v, axis=2, keep=True))

    def forward(self, x: Value, mask: Value | None = None, distances: tuple[Value, Value] | None = None, *none: None) -> Value:
        """x [batch seq n], mask bool[batch 1 1 seq], what `Distances` gives -> [batch seq n]."""
        q, k, v = self.project(x)
        bias = None if distances is None else self.by_distance(q, k, *distances)
        return self.out_dropout(self.out(heads_last(self.weigh(q, k, v, mask, bias))))


def live_rows(mask: Value) -> Value:
    """bool[batch 1 rows 1] of the bool[batch 1 1 keys] of the same words."""
    return ops.transpose(mask, perm=(0, 1, 3, 2))


def kept(x: Value, mask: Value | None) -> Value:
    """x [batch seq n], zero where bool[batch 1 1 seq] is false."""
    return x if mask is None else ops.where(live_rows(mask)[:, 0], x, 0.0)


def _picked(x: Value, vectors: Value, place: Value, index: Value) -> Value:
    """[batch heads rows keys]: the product of the word at `place` and the vector at `index`; one gather serves all batches and heads."""
    batch, heads, length, _ = x.shape
    scores = x @ ops.rearrange(heads_first(vectors, heads), "one heads distances head -> one heads head distances")
    width = scores.shape[3]
    return ops.take(ops.view(scores, (batch, heads, length * width)), place * width + index, axis=2)
