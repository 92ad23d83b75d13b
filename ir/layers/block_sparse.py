"""Attention of blocks to neighbouring, first, last and random blocks (https://arxiv.org/abs/2007.14062)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .. import ops
from ..graph import Value, current
from ..layer import collect
from ..sizes import Size, ceil_divide, maximum, minimum
from .attention import Attention, heads_last
from .banded import Keys, attend_jointly, blocks_of, neighbours


class Layout(NamedTuple):
    """How a sequence is laid out: to what length it is padded, how many of its blocks attend sparsely, and how many rows may attend to all.

    A graph with a symbolic length cannot branch: it attends both ways, fully among the first `full` tokens alone, which are all there are where
    a sequence is too short for blocks; `sparse`, bool[], says which of the two holds. A length that is known needs only one. `shown` is the
    length of hidden states and attentions, as the reference pads them.
    """

    padded: Size
    blocks: Size
    full: Size
    sparse: Value | None
    shown: Size


def layout_of(length: Size, size: int, random: int) -> Layout:
    """The layout of a length in blocks of a size; all attend to all up to (5 + 2 random) blocks."""
    most = (5 + 2 * random) * size
    whole = ceil_divide(length, size) * size
    if isinstance(length, int):
        return Layout(length, 0, length, None, length) if length <= most else Layout(whole, whole // size, 0, None, whole)
    blocks = maximum(ceil_divide(length, size), max(4, random))
    shown = length + minimum(1, maximum(0, length - most)) * (whole - length)
    return Layout(blocks * size, blocks, minimum(blocks * size, most), ops.size(value=length) > most, shown)


class SparseAttention(Attention):
    """Attention of blocks to those beside them, the first, the last, and random ones; the first and last attend to all.

    Outside of training, random blocks are all the first, as the reference has it; in training they are drawn among those not seen otherwise.
    """

    def __init__(self, n: int, heads: int, size: int, random: int, **options: Any):
        super().__init__(n, heads, **options)
        self.size, self.random = size, random

    def forward(self, x: Value, live: Value, layout: Layout) -> Value:
        """x [batch seq n], live bool[batch seq] -> [batch seq n]."""
        q, k, v = self.project(x)
        if layout.blocks != 0:
            y, weights = self._sparsely(q, k, v, live, layout.blocks)
        if layout.full != 0:
            full, end = layout.full, x.shape[1]
            rows, keys, seen = q[:, :, :full], k[:, :, :full], live[:, None, None, :full]
            near, near_weights = (
                ops.attention(rows, keys, v[:, :, :full], seen, scale=self.scale),
                ops.attention_weights(rows, keys, seen, scale=self.scale),
            )
            if layout.sparse is None:
                y, weights = near, near_weights
            else:
                y = ops.concat(ops.where(layout.sparse, y[:, :, :full], near), ops.slice_(y, axis=2, start=full, stop=end), axis=2)
                weights = ops.where(layout.sparse, weights, ops.pad(near_weights, low=(0,) * 4, high=(0, 0, end - full, end - full)))
        collect("attentions", weights[:, :, : layout.shown, : layout.shown])
        return self.out_dropout(self.out(heads_last(y)))

    def _sparsely(self, q: Value, k: Value, v: Value, live: Value, blocks: Size) -> tuple[Value, Value]:
        """[batch heads seq head], and weights [batch heads seq seq]; zeros in rows of padding."""
        size, seen = self.size, live[:, None, None, :]
        last = (blocks - 1) * size
        ends = ops.concat(q[:, :, :size], ops.slice_(q, axis=2, start=last, stop=last + size), axis=2)
        y, whole = ops.attention(ends, k, v, seen, scale=self.scale), ops.attention_weights(ends, k, seen, scale=self.scale)
        drawn = self._drawn(blocks) if current().training and self.random else None
        between = blocks_of(ops.slice_(q, axis=2, start=size, stop=last), size)
        inner, weights = attend_jointly(between, self._parts(k, v, live, blocks, drawn), scale=self.scale)
        inner = ops.view(inner, (*inner.shape[:2], last - size, inner.shape[4]))
        y = ops.where(live[:, None, :, None], ops.concat(y[:, :, :size], inner, y[:, :, size:], axis=2), 0.0)
        return y, ops.concat(whole[:, :, :size], self._dense(weights, blocks, drawn), whole[:, :, size:], axis=2)

    def _parts(self, k: Value, v: Value, live: Value, blocks: Size, drawn: Value | None) -> list[Keys]:
        """First, neighbouring and last blocks, and random ones in training. What is random counts as so many more first blocks otherwise."""
        size, rows = self.size, blocks - 2
        k_blocks, v_blocks = blocks_of(k, size), blocks_of(v, size)
        seen = blocks_of(ops.cast(live, dtype="i64"), size, 1)
        # the second row's neighbour before is the first block, and the last but one's neighbour after is the last: each is seen once
        row, column = ops.iota(size=rows)[:, None], ops.iota(size=3 * size)[None, :]
        twice = (ops.equal(row, 0) & (column < size)) | (ops.equal(row, ops.size(value=rows - 1)) & (column >= 2 * size))
        near = (neighbours(seen, 1) > 0) & ~twice

        def end_block(start: Size, bias: float = 0.0) -> Keys:
            keys, values = (ops.slice_(y, axis=2, start=start, stop=start + size) for y in (k, v))
            return Keys(keys, values, ops.slice_(live, axis=1, start=start, stop=start + size)[:, None, None, None, :], bias)

        parts = [
            end_block(0, math.log(1 + self.random) if drawn is None else 0.0),
            Keys(neighbours(k_blocks), neighbours(v_blocks), near[:, None, :, None, :]),
            end_block((blocks - 1) * size),
        ]
        if drawn is not None:
            keys, values = (self._chosen(y, drawn) for y in (k_blocks, v_blocks))
            mask = self._chosen(ops.broadcast_to(seen[:, None, :, :, None], shape=(*k_blocks.shape[:4], 1)), drawn)
            parts.append(Keys(keys, values, (mask[..., 0] > 0)[:, :, :, None, :]))
        return parts

    def _drawn(self, blocks: Size) -> Value:
        """i64[heads rows random]: other blocks than a row sees anyway, none of them twice."""
        rows, graph = blocks - 2, current()
        noise = ops.random_uniform(graph.random_key(), shape=(self.heads, rows, blocks), site=graph.random_site())
        row, block = ops.iota(size=rows)[:, None] + 1, ops.iota(size=blocks)[None, :]
        known = ops.equal(block, 0) | ops.equal(block, ops.size(value=blocks - 1)) | ((block >= row - 1) & (block <= row + 1))
        return ops.top_k(ops.where(known, -1.0, noise), k=self.random)[1]

    def _chosen(self, x: Value, drawn: Value) -> Value:
        """x [batch heads blocks size n] at the drawn blocks -> [batch heads rows random*size n]."""
        rows, (batch, heads, _, size, n) = drawn.shape[1], x.shape
        index = ops.view(drawn, (1, heads, rows * self.random, 1, 1))
        picked = ops.gather(x, ops.broadcast_to(index, shape=(batch, heads, rows * self.random, size, n)), axis=2)
        return ops.view(picked, (batch, heads, rows, self.random * size, n))

    def _dense(self, weights: list[Value], blocks: Size, drawn: Value | None) -> Value:
        """Weights of the rows between as [batch heads rows seq]; of the copies of a block that one row sees, the weight of one."""
        weights = [weights[0] / (1.0 + self.random if drawn is None else 1.0), *weights[1:]]
        row = ops.broadcast_to(ops.iota(size=blocks - 2)[None, :, None], shape=(self.heads, blocks - 2, 1))
        sources = [row * 0, row, row + 1, row + 2, row * 0 + ops.size(value=blocks - 1), *([] if drawn is None else [drawn])]
        place = ops.one_hot(ops.concat(*sources, axis=2), size=blocks)
        each = ops.rearrange(ops.concat(*weights, axis=4), "batch heads rows q (source k) -> batch heads rows (q k) source", k=self.size)
        return ops.rearrange(each @ place, "batch heads rows (q k) blocks -> batch heads (rows q) (blocks k)", k=self.size)
