"""Linear layers that read one value become one linear layer."""

from __future__ import annotations

from itertools import accumulate, pairwise, takewhile
from typing import Any

from .. import ops
from ..graph import Graph, Node, Param, Value, current

_OUTPUTS = {ops.linear: 0, ops.affine: 1}  # the axis of the weight along which outputs lie


def merge_linears(graph: Graph) -> Graph:
    """Products of one value with several weights become slices of its product with all of them, side by side: queries, keys and values.

    The weights are put side by side in the graph, which a runtime does once, when it loads them. Weights that something else reads as well stay as
    they are: they would be held twice.
    """
    groups, slices = _groups(graph), dict[Node, list[Value]]()

    def rule(node: Node, operands: tuple[Value | None, ...]) -> Any:
        if node not in groups:
            return None
        group = groups[node]
        if group[0] not in slices:
            slices[group[0]] = _merged(group, operands[0])
        return slices[group[0]][group.index(node)]

    return graph.rebuild(rule)


def _groups(graph: Graph) -> dict[Node, list[Node]]:
    """Each node that can be merged, and all those that become one with it, in order."""
    readers, alike = graph.readers(), dict[Any, list[Node]]()
    for node in graph.live():
        if node.op in _OUTPUTS and all(v is None or (isinstance(v, Param) and len(readers[v]) == 1) for v in node.inputs[1:]):
            x, weight, bias = node.inputs
            alike.setdefault((node.op, x, weight.type.dtype, bias is None), []).append(node)  # type: ignore[union-attr]
    return {node: nodes for nodes in alike.values() if len(nodes) > 1 for node in nodes}


def _merged(group: list[Node], x: Value | None) -> list[Value]:
    """The results of a group of nodes that read x."""
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*(n.path.split(".") for n in group), strict=False))
    current().path = ".".join(names[0] for names in shared) or group[0].path
    op, weights, biases = group[0].op, [n.inputs[1] for n in group], [n.inputs[2] for n in group]
    y = op(x, ops.concat(*weights, axis=_OUTPUTS[op]), None if biases[0] is None else ops.concat(*biases, axis=0))
    ends = accumulate((n.type.shape[-1] for n in group), initial=0)
    return [ops.slice_(y, axis=y.rank - 1, start=start, stop=stop) for start, stop in pairwise(ends)]
