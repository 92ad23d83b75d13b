"""What is known before the first input comes is computed once, and what changes nothing is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..graph import Graph, Node, Value
from ..op import Op
from ..reference import ReferenceTable
from ..sizes import Dim, is_static, static_product
from ..types import KINDS

MOST = 1 << 16  # elements of a folded array: a table of positions, but no mask over thousands of keys

Known = dict[Value, np.ndarray]
Rewrite = Callable[[Node, tuple[Any, ...], Known], "Value | None"]
REWRITES: dict[Op, list[Rewrite]] = {}


def fold_constants(graph: Graph, most: int = MOST) -> Graph:
    """Nodes whose operands are all known are replaced by their results, up to `most` elements; nodes that change nothing by their operand.

    Floats are folded in float64, so that the reference gives the same numbers before and after.
    """
    known: Known = {}
    table = ReferenceTable("f64")

    def rule(node: Node, operands: tuple[Value | None, ...]) -> Any:
        for rewrite in REWRITES.get(node.op, ()):
            made = rewrite(node, operands, known)
            if made is not None and made.type == node.type:
                return made
        if not _foldable(node, operands, known, most):
            return None
        with np.errstate(all="ignore"):
            results = table.apply(node, [v if v is None else known[v] for v in operands], node.attrs)
        results = results if isinstance(results, tuple) else (results,)
        values = tuple(_written(node, i, operands, np.asarray(x)) for i, x in enumerate(results))
        known.update(zip(values, map(np.asarray, results), strict=True))
        return values

    return graph.rebuild(rule)


def _foldable(node: Node, operands: tuple[Value | None, ...], known: Known, most: int) -> bool:
    if node.op in (ops.loop, ops.while_loop) or "site" in node.op.attributes:
        return False
    if any(v is not None and v not in known for v in operands) or any(map(_symbolic, node.attrs.values())):
        return False
    return all(is_static(v.shape) and static_product(v.shape) <= most for v in node.outputs)


def _symbolic(x: Any) -> bool:
    return any(map(_symbolic, x)) if isinstance(x, tuple) else isinstance(x, Dim)


def _written(node: Node, i: int, operands: tuple[Value | None, ...], array: np.ndarray) -> Value:
    """The result as a constant or a literal; what is shorter as it is stays."""
    dtype = node.outputs[i].type.dtype
    if node.op in (ops.constant, ops.literal, ops.iota, ops.broadcast_to):
        made = node.op(*operands, **node.attrs)
        return made[i] if isinstance(made, tuple) else made
    return ops.literal(value=ops.Literal(array), dtype=dtype) if array.ndim else ops.constant(value=array.item(), dtype=dtype)


# ---- what changes nothing -----------------------------------------------------------------------
# A rewrite gives the value that a node can be replaced by, or None. It is used where types agree too: x + 0 may broadcast.


def rewrite(*ops_: Op) -> Callable[[Rewrite], Rewrite]:
    """Declares a rewrite for these ops (used as a decorator)."""

    def declare(rule: Rewrite) -> Rewrite:
        for op in ops_:
            REWRITES.setdefault(op, []).append(rule)
        return rule

    return declare


def _is(v: Value, number: float, known: Known) -> bool:
    """Whether all elements of v are known to be that number."""
    return v in known and known[v].size > 0 and bool(np.all(known[v] == number))


def _neutral_right(number: float) -> Rewrite:
    return lambda node, xs, known: xs[0] if _is(xs[1], number, known) else None


def _neutral_left(number: float) -> Rewrite:
    return lambda node, xs, known: xs[1] if _is(xs[0], number, known) else None


for _number, _ops in {0: (ops.add, ops.sub, ops.or_, ops.xor), 1: (ops.mul, ops.div, ops.and_, ops.power, ops.floor_divide)}.items():
    rewrite(*_ops)(_neutral_right(_number))
for _number, _ops in {0: (ops.add, ops.or_, ops.xor), 1: (ops.mul, ops.and_)}.items():
    rewrite(*_ops)(_neutral_left(_number))


@rewrite(ops.where)
def _chosen(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    return xs[1] if _is(xs[0], 1, known) else xs[2] if _is(xs[0], 0, known) else None


@rewrite(ops.reshape, ops.broadcast_to, ops.cast, ops.pad)
def _same_type(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    return xs[0] if xs[0].type == node.type else None


@rewrite(ops.slice_, ops.concat)
def _whole(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    return xs[0] if len(xs) == 1 and node.attrs.get("step", 1) == 1 else None


@rewrite(ops.roll)
def _no_shift(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    return xs[0] if node.attrs["shift"] == 0 else None


@rewrite(ops.dropout)
def _no_dropout(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    return xs[0] if node.attrs["rate"] == 0 else None


@rewrite(ops.reshape)
def _reshaped_twice(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    inner = _made_by(xs[0], ops.reshape)
    return ops.view(inner.inputs[0], node.type.shape) if inner else None


@rewrite(ops.transpose)
def _transposed_twice(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    perm, x = node.attrs["perm"], xs[0]
    if inner := _made_by(x, ops.transpose):
        perm, x = tuple(inner.attrs["perm"][p] for p in perm), inner.inputs[0]
    if perm == tuple(range(x.rank)):
        return x
    return ops.transpose(x, perm=perm) if inner else None


@rewrite(ops.negative, ops.not_)
def _undone(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    inner = _made_by(xs[0], node.op)
    return inner.inputs[0] if inner else None


@rewrite(ops.cast)
def _cast_twice(node: Node, xs: tuple[Any, ...], known: Known) -> Value | None:
    """Through a wider integer: bool or int to i64 and on."""
    inner = _made_by(xs[0], ops.cast)
    if not inner or xs[0].type.dtype != "i64" or inner.inputs[0].type.dtype not in KINDS["int"] | KINDS["bool"]:
        return None
    return ops.cast(inner.inputs[0], dtype=node.attrs["dtype"])


def _made_by(v: Value, op: Op) -> Any:
    return v.node if v.node is not None and v.node.op is op else None
