"""Along which axes an op works part by part: what a result has at one index there depends on its operands at that index alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import ops
from .graph import Node
from .op import Op
from .signature import Signature
from .sizes import product

Axes = Sequence["int | None"]
ROWS: dict[Op, Callable[[Node, int], Axes | None]] = {}


def operand_axes(node: Node, axis: int) -> Axes | None:
    """For an axis of a node's results, the axis of each operand that runs along with it; None for an operand that all parts share.

    None for all where the op mixes what lies along the axis. An op without a row of its own is read off its signature: sizes of a group
    `*b` are independent of each other, but for the one that an attribute `axis` names.
    """
    if node.op in ROWS:
        return ROWS[node.op](node, axis)
    rule, rank = node.op.rule, node.outputs[0].rank
    if not isinstance(rule, Signature) or any(v.rank != rank for v in node.outputs):
        return None
    if "axis" in node.op.attributes and (node.attrs["axis"] % rank) == axis:
        return None
    dims = rule.gives[0][1]
    start = next((i for i, d in enumerate(dims) if isinstance(d, str)), None)
    if start is None or not start <= axis < rank - (len(dims) - start - 1):
        return None
    from_end = rank - (len(dims) - start - 1) - axis  # groups are aligned at their ends
    return [_in_group(node, i, str(dims[start]), from_end, axis) for i in range(len(node.inputs))]


def _in_group(node: Node, operand: int, group: str, from_end: int, axis: int) -> int | None:
    v, (_, dims, _) = node.inputs[operand], node.op.rule.operand(operand)  # type: ignore[union-attr]
    if v is None or group not in dims:
        return None
    start = dims.index(group)
    own = v.rank - (len(dims) - start - 1) - from_end
    return own if own >= start and _runs_along(v.shape[own], node.outputs[0].shape[axis]) else None


def _runs_along(size: object, result: object) -> bool:
    """Whether an axis is not the same for all parts: of size 1 beside others."""
    return size == result or size != 1


def _row(*of: Op) -> Callable[[Callable[[Node, int], Axes | None]], Callable[[Node, int], Axes | None]]:
    def declare(rule: Callable[[Node, int], Axes | None]) -> Callable[[Node, int], Axes | None]:
        ROWS.update(dict.fromkeys(of, rule))
        return rule

    return declare


@_row(ops.constant, ops.literal, ops.iota, ops.size, ops.random_uniform, ops.dropout, ops.ctc_loss, ops.argsort, ops.sort, ops.loop, ops.while_loop)
def _none(node: Node, axis: int) -> Axes | None:
    """Leaves, draws of random numbers, and what is not worth it."""
    return None


@_row(ops.reshape)
def _reshape(node: Node, axis: int) -> Axes | None:
    """An axis of the operand of the same size, with as many elements before it."""
    source, shape = node.inputs[0].shape, node.type.shape
    before = product(shape[:axis])
    return next(([i] for i, d in enumerate(source) if d == shape[axis] and product(source[:i]) == before), None)


@_row(ops.transpose)
def _transpose(node: Node, axis: int) -> Axes:
    return [node.attrs["perm"][axis]]


@_row(ops.broadcast_to)
def _broadcast_to(node: Node, axis: int) -> Axes:
    (x,) = node.inputs
    own = axis - (node.outputs[0].rank - x.rank)
    return [own if own >= 0 and _runs_along(x.shape[own], node.type.shape[axis]) else None]


@_row(ops.concat, ops.split, ops.slice_, ops.roll, ops.flip, ops.cumsum)
def _other_axes(node: Node, axis: int) -> Axes | None:
    return None if axis == node.attrs["axis"] % node.outputs[0].rank else [axis] * len(node.inputs)


@_row(ops.window)
def _window(node: Node, axis: int) -> Axes | None:
    return None if axis == node.attrs["axis"] else [axis, None]


@_row(ops.update)
def _update(node: Node, axis: int) -> Axes | None:
    return None if axis == node.attrs["axis"] else [axis, axis, None]


@_row(ops.pad)
def _pad(node: Node, axis: int) -> Axes | None:
    return [axis] if (node.attrs["low"][axis], node.attrs["high"][axis]) == (0, 0) else None


@_row(ops.sum, ops.mean, ops.max, ops.min, ops.any, ops.all, ops.argmax, ops.argmin, ops.logsumexp)
def _reduction(node: Node, axis: int) -> Axes | None:
    rank, axes = node.inputs[0].rank, node.attrs["axis"]
    folded = {a % rank for a in (axes if isinstance(axes, tuple) else (axes,))}
    kept = [a for a in range(rank) if node.attrs["keep"] or a not in folded]
    return None if kept[axis] in folded else [kept[axis]]


@_row(ops.take)
def _take(node: Node, axis: int) -> Axes:
    index, first = node.inputs[1], node.attrs["axis"]
    if axis < first:
        return [axis, None]
    return [None, axis - first] if axis < first + index.rank else [axis - index.rank + 1, None]


@_row(ops.gather)
def _gather(node: Node, axis: int) -> Axes:
    return [None if axis == node.attrs["axis"] else axis, axis]


@_row(ops.scatter)
def _scatter(node: Node, axis: int) -> Axes | None:
    return None if axis == node.attrs["axis"] else [axis] * 3


@_row(ops.one_hot)
def _one_hot(node: Node, axis: int) -> Axes | None:
    return [axis] if axis < node.inputs[0].rank else None


@_row(ops.top_k)
def _top_k(node: Node, axis: int) -> Axes | None:
    return [axis] if axis < node.inputs[0].rank - 1 else None


@_row(ops.matmul)
def _matmul(node: Node, axis: int) -> Axes | None:
    x, y = node.inputs
    rank, sizes = node.outputs[0].rank, node.type.shape
    if axis >= rank - 2:
        return [x.rank - 2, None] if axis == rank - 2 else [None, y.rank - 1]
    own = [axis - (rank - v.rank) for v in (x, y)]
    return [a if a >= 0 and _runs_along(v.shape[a], sizes[axis]) else None for a, v in zip(own, (x, y), strict=True)]


@_row(ops.rotary)
def _rotary(node: Node, axis: int) -> Axes | None:
    rank = node.outputs[0].rank
    if axis == rank - 1:
        return None
    own = [axis - (rank - v.rank) for v in node.inputs]
    return [a if a >= 0 and _runs_along(v.shape[a], node.type.shape[axis]) else None for a, v in zip(own, node.inputs, strict=True)]


@_row(ops.attention, ops.attention_weights)
def _attention(node: Node, axis: int) -> Axes | None:
    """Examples of the batch, and rows of queries with those of the masks."""
    named = dict(zip(node.op.operands, node.inputs, strict=True))
    rank = node.outputs[0].rank
    if axis in (rank - 1, rank - 3) or named.get("key") is not None:
        return None
    found: dict[str, int | None] = dict.fromkeys(named)
    for name, v in named.items():
        shares = name in ("k", "v") and axis == rank - 2
        if v is None or name in ("start", "key") or shares:
            continue
        own = axis - (rank - v.rank)
        found[name] = own if own >= 0 and _runs_along(v.shape[own], node.type.shape[axis]) else None
    return list(found.values())


@_row(ops.conv, ops.conv_transpose, ops.resize, ops.max_pool, ops.average_pool, ops.batch_norm, ops.group_norm)
def _examples(node: Node, axis: int) -> Axes | None:
    """Images and sounds of a batch; of the others only the first operand has a batch."""
    return [0] + [None] * (len(node.inputs) - 1) if axis == 0 else None
