"""Layers on matrices: [batch seq n] becomes [batch*seq n] once, and stays so for as long as rows do not meet."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..errors import ShapeError
from ..graph import Graph, Node, Value
from ..signature import Signature
from ..sizes import Size, product
from ..types import Type


def flatten(graph: Graph) -> Graph:
    """Linear layers work on matrices; reshapes sink below whatever treats each row by itself, meet, and cancel.

    Which ops do is read off their signatures: those whose operands are `[*b]` or `[*b n]`, and those with an `axis`, where it is the last.
    """
    return graph.rebuild(_on_rows)


def _on_rows(node: Node, operands: tuple[Value | None, ...]) -> Any:
    if node.op is ops.reshape:
        return _view(operands[0], node.attrs["shape"])
    which = _row_operands(node)
    if not which:
        return None
    lead = node.inputs[which[0]].shape[:-1]
    if len(lead) < 2 or not (_multiplies(node) or any(_is_flat(operands[i], lead) for i in which)):
        return None
    rows = product(lead)
    flat = [None if v is None else _flat_type(v.type, rows) if i in which else v.type for i, v in enumerate(operands)]
    attrs = {k: _last_axis(a) if k == "axis" else a for k, a in node.attrs.items()}
    wanted = [Type(v.type.dtype, (rows, *v.shape[len(lead) :])) for v in node.outputs]
    if any(v.shape[: len(lead)] != lead for v in node.outputs) or not _gives(node, flat, attrs, wanted):
        return None
    made = node.op(*[_view(v, flat[i].shape) if i in which else v for i, v in enumerate(operands)], **attrs)
    made = made if isinstance(made, tuple) else (made,)
    return tuple(ops.view(y, v.shape) for y, v in zip(made, node.outputs, strict=True))


def _gives(node: Node, types: list[Type | None], attrs: dict[str, Any], wanted: list[Type]) -> bool:
    try:
        return node.op.infer(types, attrs) == wanted
    except ShapeError:
        return False


def _row_operands(node: Node) -> list[int]:
    """The operands that are rows of one shape; none where some operand is neither that nor the same for all rows."""
    full = [i for i, v in enumerate(node.inputs) if v is not None and v.rank > 1]
    if not full or not all(v.rank for v in node.outputs):
        return []
    if "axis" in node.op.attributes:
        axis = node.attrs["axis"]
        axis = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
        first = node.inputs[0]
        if isinstance(axis, tuple) or first is None or axis % first.rank != first.rank - 1:
            return []
        return [i for i in full if node.inputs[i].shape[:-1] == first.shape[:-1]]
    if not isinstance(node.op.rule, Signature) or not _by_row(node.op.rule):
        return []
    grouped = [i for i in full if node.op.rule.operand(i)[1][:1] and node.op.rule.operand(i)[1][0][0] == "*"]
    return grouped if len({node.inputs[i].shape[:-1] for i in grouped}) == 1 else []


def _by_row(rule: Signature) -> bool:
    """Whether what has leading sizes has one further size at most, so that the leading ones are just a number of rows."""
    wants = all(len(dims) <= 2 for _, dims, _ in rule.wants if dims and dims[0][0] == "*")
    return wants and all(dims and isinstance(dims[0], str) and len(dims) <= 2 for _, dims in rule.gives)


def _multiplies(node: Node) -> bool:
    """Whether rows are multiplied by a matrix, which is what flattening is for."""
    return node.op in (ops.linear, ops.affine)


def _is_flat(v: Value | None, lead: tuple[Size, ...]) -> bool:
    """Whether v was a matrix of as many rows before it was reshaped."""
    return v is not None and v.node is not None and v.node.op is ops.reshape and v.node.inputs[0].shape == (product(lead), v.shape[-1])


def _flat_type(type: Type, rows: Size) -> Type:
    return Type(type.dtype, (rows, type.shape[-1]))


def _last_axis(axis: Any) -> Any:
    return (1,) if isinstance(axis, tuple) else 1


def _view(x: Any, shape: tuple[Size, ...]) -> Value:
    """x in that shape, from before it was reshaped last."""
    while x.node is not None and x.node.op is ops.reshape:
        x = x.node.inputs[0]
    return ops.view(x, shape)
