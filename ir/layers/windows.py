"""Attention in windows of a map, shifted or not (https://arxiv.org/abs/2103.14030)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..graph import Param, Value, current
from ..sizes import Size, ceil_divide, maximum, minimum
from .attention import Attention, attend
from .vision import pair

FAR = -100.0  # added to scores of tokens that only the shift brought together


def pad_to(x: Value, multiple: int | tuple[int, int], axes: tuple[int, int]) -> Value:
    """x with zeros after two axes, up to multiples of a size."""
    high: list[Size] = [0] * x.rank
    for axis, m in zip(axes, pair(multiple), strict=True):
        high[axis] = ceil_divide(x.shape[axis], m) * m - x.shape[axis]
    return x if not any(not isinstance(h, int) or h for h in high) else ops.pad(x, low=(0,) * x.rank, high=tuple(high))


class WindowAttention(Attention):
    """Attention among the tokens of each window of a map, which may be shifted by half a window before it is cut.

    `partition` cuts maps that are smaller than a window too (padding them); otherwise a map that one window covers is not shifted, and a
    smaller one is refused, as the reference refuses it. `kind` is the name under which attention weights are collected.
    """

    def __init__(self, n: int, heads: int, window: int, *, shift: int, partition: bool, kind: str, **options: Any):
        super().__init__(n, heads, **options)
        self.window, self.shift, self.partition, self.kind = window, shift, partition, kind
        self.table = Param((2 * window - 1) ** 2, heads, init="zeros")
        self.index = Param(window * window, window * window, dtype="i64", init=_distances(window))

    def bias_table(self) -> Value:
        """[heads tokens tokens]: a learnt number for each distance within a window."""
        return ops.transpose(ops.take(self.table, self.index), perm=(2, 0, 1))

    def forward(self, x: Value) -> Value:
        """[batch height width n] -> the same."""
        height, width, w = *x.shape[1:3], self.window
        shift = self._shift(height, width)
        x = pad_to(x, w, (1, 2))
        rows, columns = x.shape[1:3]
        if shift != 0:
            x = _rolled(x, rows - shift, columns - shift)
        x = ops.rearrange(x, "batch (down a) (right b) n -> batch (down right) (a b) n", a=w, b=w)
        q, k, v = (
            ops.rearrange(f(x), "batch windows seq (heads head) -> batch windows heads seq head", heads=self.heads) for f in (self.q, self.k, self.v)
        )
        bias = self.bias_table()
        if shift != 0:
            bias = bias + self._far_apart(rows, columns, shift)[:, None]
        y = attend(q, k, v, None, bias, scale=self.scale, dropout=self.dropout, kind=self.kind)
        y = self.out_dropout(self.out(ops.rearrange(y, "batch windows heads seq head -> batch windows seq (heads head)")))
        y = ops.rearrange(y, "batch (down right) (a b) n -> batch (down a) (right b) n", a=w, b=w, down=rows // w)
        return (_rolled(y, shift, shift) if shift != 0 else y)[:, :height, :width]

    def _shift(self, height: Size, width: Size) -> Size:
        """The shift; none where one window covers the map."""
        if self.partition:
            return self.shift
        least = minimum(height, width)
        current().limit(self.window - least, 0, f"each map must be at least as large as window_size={self.window}: take a larger image")
        return self.shift * minimum(1, maximum(0, least - self.window)) if self.shift else 0

    def _far_apart(self, rows: Size, columns: Size, shift: Size) -> Value:
        """[windows tokens tokens]: -100 where two tokens of a shifted window come from different sides of the map."""
        down, right = (_sides(size, self.window, shift) for size in (rows, columns))
        side = ops.broadcast_to(down[:, None] * 3 + right[None, :], shape=(rows, columns))
        side = ops.rearrange(side, "(down a) (right b) -> (down right) (a b)", a=self.window, b=self.window)
        return ops.where(ops.equal(side[:, :, None], side[:, None, :]), 0.0, FAR)


def _sides(size: Size, window: int, shift: Size) -> Value:
    """i64[size]: 0 before the last window, 1 in it, 2 in the part of it that the shift brought from the start."""
    place = ops.iota(size=size)
    return ops.cast(place >= size - window, dtype="i64") + ops.cast(place >= size - shift, dtype="i64")


def _rolled(x: Value, down: Size, right: Size) -> Value:
    return ops.roll(ops.roll(x, axis=1, shift=down), axis=2, shift=right)


def _distances(w: int):
    """Which row of the table belongs to each pair of tokens: by how far down and right they are apart."""
    row, column = (a.reshape(-1) for a in np.indices((w, w)))
    return (row[:, None] - row + w - 1) * (2 * w - 1) + column[:, None] - column + w - 1
