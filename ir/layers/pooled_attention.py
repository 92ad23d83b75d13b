"""Attention between a sequence and what it is pooled to, with sinusoids of their distances (https://arxiv.org/abs/2006.03236)."""

from __future__ import annotations

import math
from typing import NamedTuple

from .. import ops
from ..graph import Param, Value
from ..sizes import Size
from .attention import Attention, attend, heads_last
from .basic import Dropout, Linear

FIRST_KIND = 2  # the segment of the first token, which counts as every segment


class Side(NamedTuple):
    """What is known of a sequence of queries or keys: first places i64[seq], segments i64[batch seq], and which are seen, bool[batch seq]."""

    places: Value
    segments: Value
    live: Value | None


def angles(places: Value, n: int) -> tuple[Value, Value]:
    """Sines and cosines [seq n/2] of places i64[seq] at n/2 frequencies."""
    rates = ops.exp(ops.cast(ops.iota(size=n // 2), dtype="f32") * (-math.log(10000) / (n // 2)))
    turned = ops.cast(places, dtype="f32")[:, None] * rates[None, :]
    return ops.sin(turned), ops.cos(turned)


class DistanceAttention(Attention):
    """Attention with scores of distance and of equal segments, which do not hold for the first token where it stands apart."""

    def __init__(self, n: int, heads: int, head: int, *, factorized: bool, apart: bool, dropout: float, out_dropout: float):
        super().__init__(n, heads, inner=heads * head, dropout=dropout, out_dropout=out_dropout)
        self.q = Linear(n, heads * head, bias=False)
        self.r_w_bias, self.r_r_bias, self.r_s_bias = (Param(heads, head) for _ in range(3))
        self.r_kernel, self.seg_embed = Param(n, heads, head), Param(2, heads, head)
        self.factorized, self.apart, self.drop = factorized, apart, Dropout(out_dropout)

    def forward(self, x: Value, memory: Value, rows: Side, keys: Side, stride: int) -> Value:
        """x [batch seq n], memory [batch keys n], `stride` how far neighbouring keys are apart -> [batch seq n]."""
        q, (k, v) = self.query(x) * self.scale, self.keys_and_values(memory)
        by_word, by_place, by_segment = (q + (b * self.scale)[:, None, :] for b in (self.r_w_bias, self.r_r_bias, self.r_s_bias))
        extra = self._factors(by_place, rows, keys) if self.factorized else self._distances(by_place, k.shape[2], stride, x is not memory)
        extra = extra + self._segments(by_segment, rows.segments, keys.segments)
        if self.apart:
            both = (ops.iota(size=q.shape[2]) > 0)[:, None] & (ops.iota(size=k.shape[2]) > 0)[None, :]
            extra = ops.where(both, extra, 0.0)
        mask = None if keys.live is None else keys.live[:, None, None, :]
        return self.out_dropout(self.out(heads_last(attend(by_word, k, v, mask, extra, scale=1.0, dropout=self.dropout))))

    def _segments(self, q: Value, rows: Value, keys: Value) -> Value:
        """[batch heads rows keys]: one score for keys of the same segment, one for others."""
        scores, a, b = q @ ops.transpose(self.seg_embed, perm=(1, 2, 0)), rows[:, None, :, None], keys[:, None, None, :]
        return ops.where(ops.equal(a, b) | ops.equal(a, FIRST_KIND) | ops.equal(b, FIRST_KIND), scores[..., 1:2], scores[..., 0:1])

    def _distances(self, q: Value, keys: Size, stride: int, pooled: bool) -> Value:
        """[batch heads rows keys]: all distances that occur, each row of scores shifted to where it belongs."""
        batch, heads, rows, _ = q.shape
        step = 2 if pooled else 1  # rows are twice as far apart as keys where only they are pooled
        count = step * rows + keys
        start = -stride if pooled and self.apart else 0
        distance = (ops.size(value=step * rows) - ops.iota(size=count)) * stride + start
        vectors = self.drop(ops.concat(*angles(distance, self.r_kernel.shape[0]), axis=1))
        table = ops.view(vectors @ ops.view(self.r_kernel, (self.r_kernel.shape[0], self.q.weight.shape[0])), (count, *self.r_kernel.shape[1:]))
        scores = q @ ops.transpose(table, perm=(1, 2, 0))
        shifted = ops.view(scores, (batch, heads, count, rows))[:, :, step:]
        return ops.view(shifted, (batch, heads, rows, count - step))[..., :keys]

    def _factors(self, q: Value, rows: Side, keys: Side) -> Value:
        """[batch heads rows keys]: sine and cosine of a distance as products of those of both places."""
        by_channel = q @ ops.transpose(self.r_kernel, perm=(1, 2, 0))
        (sin, cos), (key_sin, key_cos) = (angles(side.places, self.r_kernel.shape[0]) for side in (rows, keys))
        first = (by_channel * _twice(self.drop(sin))) @ ops.transpose(ops.concat(key_cos, key_sin, axis=1), perm=(1, 0))
        return first + (by_channel * _twice(self.drop(cos))) @ ops.transpose(ops.concat(-key_sin, key_cos, axis=1), perm=(1, 0))


def _twice(x: Value) -> Value:
    return ops.concat(x, x, axis=1)
