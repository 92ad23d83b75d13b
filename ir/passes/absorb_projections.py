"""Attention with one query reads the sequence itself: its keys and values are never made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import ops
from ..graph import Graph, Node, Value

_SWAP = (0, 2, 1, 3)  # heads and rows


def absorb_projections(graph: Graph) -> Graph:
    """What would make keys and values of the whole sequence is done to the query before, and to the result after, attention of one query row.

    (W_k x + b) q is x (W_k^T q) and a number that softmax does not see; a weighted sum of W_v x + b is W_v of the sum of x, plus b where any key is
    seen. A classifier that reads one position of the last block is left with two products of one row for two of all rows. Heads are then rows of
    one head. Done where keys and values are plain linear layers of one sequence, heads as many as the query's, and nothing else reads them.
    """
    readers = graph.readers()

    def rule(node: Node, operands: tuple[Any, ...]) -> Value | None:
        if node.op is not ops.attention or node.attrs["dropout"] or node.attrs["causal"] or not _has_one_row(*operands[:3]):
            return None
        keys, values = (_projection(v, readers) for v in node.inputs[1:3])
        if keys is None or values is None or keys.inputs[0] is not values.inputs[0]:
            return None
        return _absorbed(operands, node.attrs["scale"])

    return graph.rebuild(rule)


def _has_one_row(q: Value, k: Value, v: Value) -> bool:
    return q.rank == 4 and q.shape[2] == 1 != k.shape[2] and q.shape[1] == k.shape[1] == v.shape[1]


def _projection(v: Value | None, readers: Mapping[Value, list[Node | None]]) -> Node | None:
    """The linear layer of [batch rows size] whose outputs, in heads [batch heads rows size], v is, where nothing else reads what lies between."""
    for op, attrs in ((ops.transpose, {"perm": _SWAP}), (ops.reshape, {})):
        if v is None or v.node is None or v.node.op is not op or len(readers[v]) != 1 or not attrs.items() <= v.node.attrs.items():
            return None
        v = v.node.inputs[0]
    node = v.node  # type: ignore[union-attr]
    return node if node is not None and node.op is ops.linear and len(readers[v]) == 1 and node.inputs[0].rank == 3 else None  # type: ignore[index, union-attr]


def _absorbed(operands: tuple[Any, ...], scale: float) -> Value:
    """Attention for operands whose keys and values are projections in heads."""
    q, k, v, mask, bias, *_ = operands
    heads = q.shape[1]
    (x, to_keys, _), (_, to_values, shift) = (y.node.inputs[0].node.inputs[0].node.inputs for y in (k, v))
    in_heads = lambda weight: ops.reshape(weight, shape=(heads, weight.shape[0] // heads, weight.shape[1]))
    as_rows = lambda m: m if m is None or m.shape[1] == 1 else ops.transpose(m, perm=_SWAP)
    # with the batch as rows, each head's weight is read once
    query = ops.transpose(ops.matmul(ops.transpose(q, perm=(2, 1, 0, 3)), in_heads(to_keys)), perm=(2, 0, 1, 3))
    sequence = ops.reshape(x, shape=(x.shape[0], 1, *x.shape[1:]))
    seen = ops.transpose(ops.attention(query, sequence, sequence, as_rows(mask), as_rows(bias), scale=scale), perm=(1, 2, 0, 3))
    values = ops.transpose(ops.matmul(seen, ops.transpose(in_heads(to_values), perm=(0, 2, 1))), perm=(2, 1, 0, 3))
    if shift is None:
        return values
    shift = ops.reshape(shift, shape=(heads, 1, shift.shape[0] // heads))
    return values + (shift if mask is None else ops.where(ops.any(mask, axis=-1, keep=True), shift, 0.0))
