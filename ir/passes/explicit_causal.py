"""Causality that targets understand alike."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..graph import Graph, Node, Value


def explicit_causal(graph: Graph) -> Graph:
    """Causal attention with a mask, a bias, a start, or other rows than keys as attention with one mask.

    What targets call causal differs as soon as rows are not keys, and some refuse it beside a mask. The masks of layers that look alike are
    one value. A single row without a start sees all keys and needs no mask; equal rows and keys without mask, bias and start stay causal.
    """
    return graph.rebuild(_explicit)


def _explicit(node: Node, operands: tuple[Value | None, ...]) -> Any:
    if not node.attrs.get("causal"):
        return None
    named = dict(zip(node.op.operands, operands, strict=True))
    q, k, mask, bias, start = (named[name] for name in ("q", "k", "mask", "bias", "start"))
    rows, keys = q.shape[-2], k.shape[-2]
    if rows == keys and mask is None and bias is None and start is None and rows != 1:
        return None
    if start is not None or rows != 1:
        seen = ops.causal_mask(rows, keys, start)[(None,) * (q.rank - 2)]
        named["mask"] = seen if mask is None else ops.and_(mask, seen)
    return node.op(*(named | {"start": None}).values(), **(node.attrs | {"causal": False}))
