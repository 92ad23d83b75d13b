"""Ops that move elements without changing them, and the sugar over them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..graph import Value
from ..op import op
from ..signature import expects
from ..sizes import Dim, Size, ceil_divide, product
from ..types import KINDS


def same_dtype(x, **others):
    """ShapeError unless the operands that are given have the dtype of x."""
    for name, y in others.items():
        expects(y is None or y.dtype == x.dtype, f"{name} is {y}, expected {x.dtype}")


def has_axis(x, axis):
    """ShapeError unless axis counts to one of x's from the left."""
    expects(0 <= axis < x.rank, f"axis={axis} is none of {x}")


def _reshape_rule(x, *, shape):
    expects(product(x.shape) == product(shape), f"{x} has not the size of [{' '.join(map(str, shape))}]")
    return x.with_shape(*shape)


@op(_reshape_rule)
def reshape(x, *, shape):
    """The same elements, in the same order, in another shape."""
    return x.reshape(shape)


def _transpose_rule(x, *, perm):
    expects(sorted(perm) == list(range(x.rank)), f"perm={perm} does not order the axes of {x}")
    return x.with_shape(*[x.shape[p] for p in perm])


@op(_transpose_rule)
def transpose(x, *, perm):
    """Result axis i is operand axis perm[i]."""
    return np.transpose(x, perm)


def _broadcast_rule(x, *, shape):
    tail = shape[len(shape) - x.rank :]
    fits = len(shape) >= x.rank and all(a == b or a == 1 for a, b in zip(x.shape, tail, strict=True))
    expects(fits, f"{x} does not broadcast to [{' '.join(map(str, shape))}]")
    return x.with_shape(*shape)


@op(_broadcast_rule)
def broadcast_to(x, *, shape):
    """x repeated along axes of size 1 and along new leading axes."""
    return np.broadcast_to(x, shape)


def _concat_rule(*xs, axis):
    expects(len(xs) > 0, "no operands")
    first = xs[0]
    has_axis(first, axis)
    same_dtype(first, **{f"operand {i}": x for i, x in enumerate(xs)})
    for i, x in enumerate(xs):
        same = x.rank == first.rank and all(a == b for j, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if j != axis)
        expects(same, f"operand {i} is {x}, expected the sizes of {first} but on axis {axis}")
    total: Any = 0
    for x in xs:
        total = x.shape[axis] + total
    return first.with_axis(axis, total)


@op(_concat_rule)
def concat(*xs, axis):
    """Joined along axis."""
    return np.concatenate(xs, axis)


def _split_rule(x, *, axis, sizes):
    has_axis(x, axis)
    expects(len(sizes) > 1, f"parts {sizes}, expected two or more")
    total: Any = 0
    for s in sizes:
        total = s + total
    expects(total == x.shape[axis], f"parts {sizes} do not make up axis {axis} of {x}")
    return [x.with_axis(axis, s) for s in sizes]


@op(_split_rule)
def split(x, *, axis, sizes):
    """Parts of those sizes along axis."""
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def _slice_rule(x, *, axis, start, stop, step):
    has_axis(x, axis)
    expects(not isinstance(start, int) or start >= 0, f"start={start} counts from the left, expected at least 0")
    expects(step > 0, f"step={step}, expected at least 1")
    length = stop - start
    expects(not isinstance(length, int) or length >= 0, f"start={start} lies behind stop={stop}")
    whole = isinstance(x.shape[axis], int) and isinstance(stop, int)
    expects(not whole or stop <= x.shape[axis], f"stop={stop} lies beyond axis {axis} of {x}")
    return x.with_axis(axis, ceil_divide(length, step))


@op(_slice_rule)
def slice_(x, *, axis, start, stop, step=1):
    """x[start:stop:step] along axis; both ends count from the left."""
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _start(x, start, axis, length):
    has_axis(x, axis)
    expects(start.dtype in KINDS["int"] and start.rank == 0, f"start is {start}, expected an integer without axes")
    fits = not isinstance(length, int) or not isinstance(x.shape[axis], int) or length <= x.shape[axis]
    expects(fits, f"length={length} exceeds axis {axis} of {x}")


def _window_rule(x, start, *, axis, length):
    _start(x, start, axis, length)
    return x.with_axis(axis, length)


@op(_window_rule)
def window(x, start, *, axis, length):
    """`length` elements along axis from a computed start."""
    return x[(slice(None),) * axis + (slice(int(start), int(start) + length),)]


def _update_rule(x, new, start, *, axis):
    same_dtype(x, new=new)
    same = x.rank == new.rank and all(a == b for i, (a, b) in enumerate(zip(x.shape, new.shape, strict=True)) if i != axis)
    expects(same, f"new is {new}, expected the sizes of {x} but on axis {axis}")
    _start(x, start, axis, new.shape[axis])
    return x


@op(_update_rule)
def update(x, new, start, *, axis):
    """x with `new` written along axis from a computed start."""
    x = x.copy()
    x[(slice(None),) * axis + (slice(int(start), int(start) + new.shape[axis]),)] = new
    return x


def _pad_rule(x, *, low, high, mode, value):
    expects(len(low) == len(high) == x.rank, f"low={low} and high={high} must name each axis of {x}")
    expects(mode in ("constant", "reflect", "edge"), f"mode={mode!r}, expected 'constant', 'reflect' or 'edge'")
    for axis, (d, a, b) in enumerate(zip(x.shape, low, high, strict=True)):
        inside = mode != "reflect" or not isinstance(d, int) or all(not isinstance(p, int) or p < d for p in (a, b))
        expects(inside, f"axis {axis} of {x} is too short to be mirrored {a} and {b} beyond its ends")
    return x.with_shape(*[d + a + b for d, a, b in zip(x.shape, low, high, strict=True)])


@op(_pad_rule)
def pad(x, *, low, high, mode="constant", value=0.0):
    """x with low[i] elements before and high[i] after axis i: a value, a mirror image, or the edge repeated."""
    width = tuple(zip(low, high, strict=True))
    return np.pad(x, width, constant_values=x.dtype.type(value)) if mode == "constant" else np.pad(x, width, mode)  # type: ignore[arg-type]


@op("[*b] -> [*b]")
def flip(x, *, axis):
    """Reversed along axis."""
    return np.flip(x, axis)


def _roll_rule(x, *, axis, shift):
    has_axis(x, axis)
    d = x.shape[axis]
    fits = not isinstance(shift, int) or (shift >= 0 and (not isinstance(d, int) or shift <= d))
    expects(fits, f"shift={shift}, expected 0 to {d}")
    return x


@op(_roll_rule)
def roll(x, *, axis, shift):
    """Moved by `shift` (0 to the size) along axis; what falls off the end comes in at the start."""
    return np.roll(x, shift, axis)


@roll.decompose
def _(x, *, axis, shift):
    d = x.shape[axis]
    return concat(slice_(x, axis=axis, start=d - shift, stop=d), slice_(x, axis=axis, start=0, stop=d - shift), axis=axis)


def view(x: Value, shape: tuple[Size, ...]) -> Value:
    """x in that shape; x itself where it has it."""
    return x if x.shape == tuple(shape) else reshape(x, shape=tuple(shape))


def squeeze(x: Value, axis: int | tuple[int, ...]) -> Value:
    """x without axes of size 1."""
    gone = {a % x.rank for a in (axis if isinstance(axis, tuple) else (axis,))}
    return view(x, tuple(d for i, d in enumerate(x.shape) if i not in gone))


def expand_dims(x: Value, *axes: int) -> Value:
    """x with axes of size 1 at those places of the result."""
    rank, sizes = x.rank + len(axes), iter(x.shape)
    new = {a % rank for a in axes}
    return view(x, tuple(1 if i in new else next(sizes) for i in range(rank)))


def stack(*xs: Value, axis: int = 0) -> Value:
    """Values of one type, along a new axis."""
    return concat(*[expand_dims(x, axis) for x in xs], axis=axis)


def repeat(x: Value, count: int, axis: int) -> Value:
    """Each element `count` times in a row along axis."""
    axis %= x.rank
    wide = (*x.shape[: axis + 1], count, *x.shape[axis + 1 :])
    return reshape(broadcast_to(expand_dims(x, axis + 1), shape=wide), shape=x.type.with_axis(axis, x.shape[axis] * count).shape)


def index(x: Value, at: Any) -> Value:
    """x[...] with numbers, slices, None and Ellipsis; negative numbers count from the end."""
    at = at if isinstance(at, tuple) else (at,)
    missing = x.rank - sum(a is not None and a is not Ellipsis for a in at)
    expects(missing >= 0, f"index {at} has too many entries for {x.type}")
    fill = (slice(None),) * missing
    spot = next((i for i, a in enumerate(at) if a is Ellipsis), None)
    at = at + fill if spot is None else at[:spot] + fill + at[spot + 1 :]
    shape: list[Size] = []
    axis = 0
    for a in at:
        if a is None:
            shape.append(1)
            continue
        size = x.shape[axis]
        start, stop, step = _bounds(a, size)
        if (start, stop, step) != (0, size, 1):
            x = slice_(x, axis=axis, start=start, stop=stop, step=step)
        if isinstance(a, slice):
            shape.append(x.shape[axis])
        axis += 1
    return view(x, tuple(shape))


def _bounds(a: Any, size: Size) -> tuple[Size, Size, int]:
    if isinstance(a, slice):
        step = 1 if a.step is None else a.step
        expects(isinstance(step, int) and step > 0, f"step {step} must be positive; use ops.flip")
        stop = size if a.stop is None else _from_left(a.stop, size)
        stop = min(stop, size) if isinstance(stop, int) and isinstance(size, int) else stop
        return (0 if a.start is None else _from_left(a.start, size)), stop, step
    expects(isinstance(a, (int, Dim)), f"index {a!r} is neither a number nor a slice; use ops.take or ops.gather")
    at = _from_left(a, size)
    return at, at + 1, 1


def _from_left(i: Size, size: Size) -> Size:
    return size + i if isinstance(i, int) and i < 0 else i


def rearrange(x: Value, pattern: str, **sizes: Size) -> Value:
    """`batch seq (heads head) -> batch heads seq head`: split, reorder and join axes (https://openreview.net/forum?id=oapKSVM2bcj)."""
    sides = pattern.split("->")
    expects(len(sides) == 2, f"rearrange: {pattern!r} has no '->'")
    left, right = ([t[1:-1].split() if t[0] == "(" else [t] for t in re.findall(r"\([^)]*\)|\S+", side)] for side in sides)
    expects(len(left) == x.rank, f"rearrange: {pattern!r} wants rank {len(left)}, got {x.type}")
    for group, d in zip(left, x.shape, strict=True):
        unknown = [n for n in group if n not in sizes]
        expects(len(unknown) <= 1, f"rearrange: give all but one of {unknown}")
        known = product(sizes[n] for n in group if n in sizes)
        for n in unknown:
            sizes[n] = d // known
        expects(product(sizes[n] for n in group) == d, f"rearrange: {' '.join(group)} does not make up {d}")
    flat, order = ([n for group in side for n in group] for side in (left, right))
    expects(sorted(flat) == sorted(order), f"rearrange: the sides of {pattern!r} differ")
    x = view(x, tuple(sizes[n] for n in flat))
    if flat != order:
        x = transpose(x, perm=tuple(flat.index(n) for n in order))
    return view(x, tuple(product(sizes[n] for n in g) for g in right))
