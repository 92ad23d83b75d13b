"""Biases that cost nothing where they are read, and something where they are made."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..graph import Graph, Node, Value, current


def separate_biases(graph: Graph) -> Graph:
    """The bias of a linear layer that gelu alone reads is added to the product by an addition of its own.

    onnxruntime adds it on all threads, in the kernel that computes gelu. As a part of the product, one thread writes it into the result first, while
    the others wait. In a transformer half of all biases stand before a gelu.
    """
    readers = graph.readers()

    def rule(node: Node, operands: tuple[Any, ...]) -> Value | None:
        if node.op is not ops.gelu or (layer := node.inputs[0].node) is None or layer.op not in (ops.linear, ops.affine):  # type: ignore[union-attr]
            return None
        x, weight, bias = operands[0].node.inputs
        if bias is None or len(readers[node.inputs[0]]) != 1:  # type: ignore[index]
            return None
        current().path = layer.path
        y = layer.op(x, weight) + bias
        current().path = node.path
        return ops.gelu(y, **node.attrs)

    return graph.rebuild(rule)
