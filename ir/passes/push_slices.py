"""What nobody reads is never computed: slices move up to where their operands are made."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..axes import operand_axes
from ..graph import Graph, Node, Value
from ..sizes import Size

Part = dict[int, tuple[Size, Size]]  # by axis, what is read of a value: from, to


def push_slices(graph: Graph) -> Graph:
    """Each value is made in the part that all its readers look at: a classifier on the first position needs no others of the last block.

    One sweep from the outputs collects what is read, one from the inputs builds it.
    """
    nodes = graph.live()
    wanted = _wanted(graph, nodes)
    if not any(wanted.values()):
        return graph
    new = Graph(like=graph)
    made: dict[Value, tuple[Value, Part]] = {}

    def part_of(v: Any, part: Part) -> Value:
        x, has = made.get(v, (v, {}))
        for axis, (start, stop) in part.items():
            if axis not in has:
                x = ops.slice_(x, axis=axis, start=start, stop=stop)
        return x

    with new.tracing():
        for node in nodes:
            new.path = node.path
            part = _served(node, wanted)
            if _is_plain_slice(node):
                results: Any = part_of(node.inputs[0], _through(node, part))
            else:
                parts = _operand_parts(node, part)
                operands = tuple(v if v is None else part_of(v, p) for v, p in zip(node.inputs, parts, strict=True))
                results = _rebuilt(node, operands, part)
            results = results if isinstance(results, tuple) else (results,)
            made.update({v: (x, part) for v, x in zip(node.outputs, results, strict=True)})
    new.path = ""
    new.outputs = {k: made[v][0] if v in made else v for k, v in graph.outputs.items()}
    new.taps = {k: made[v][0] for k, v in graph.taps.items() if v in made and not made[v][1]}
    return new


def _wanted(graph: Graph, nodes: list[Node]) -> dict[Value, Part]:
    """What is read of each value: on each axis the part that all readers agree on, else all of it."""
    wanted: dict[Value, Part] = {v: {} for v in graph.outputs.values()}

    def want(v: Value, part: Part) -> None:
        before = wanted.get(v)
        wanted[v] = part if before is None else {a: p for a, p in part.items() if before.get(a) == p}

    for node in reversed(nodes):
        part = _served(node, wanted)
        parts = [_through(node, part)] if _is_plain_slice(node) else _operand_parts(node, part)
        for v, p in zip(node.inputs, parts, strict=True):
            if v is not None:
                want(v, p)
    return wanted


def _is_plain_slice(node: Node) -> bool:
    return node.op is ops.slice_ and node.attrs["step"] == 1


def _through(node: Node, part: Part) -> Part:
    """What is read of a slice's operand where `part` is read of the slice."""
    axis, start, stop = (node.attrs[k] for k in ("axis", "start", "stop"))
    inner = part.get(axis)
    return {**part, axis: (start, stop) if inner is None else (start + inner[0], start + inner[1])}


def _served(node: Node, wanted: dict[Value, Part]) -> Part:
    """The part in which a node's results are made: what is read of all of them, on axes along which the op works part by part."""
    parts = [wanted[v] for v in node.outputs if v in wanted]
    shared = {a: p for a, p in parts[0].items() if all(other.get(a) == p for other in parts)}
    return {a: p for a, p in shared.items() if _is_plain_slice(node) or operand_axes(node, a) is not None}


def _operand_parts(node: Node, part: Part) -> list[Part]:
    parts: list[Part] = [{} for _ in node.inputs]
    for axis, bounds in part.items():
        for i, own in enumerate(operand_axes(node, axis) or ()):
            if own is not None:
                parts[i][own] = bounds
    return parts


def _rebuilt(node: Node, operands: tuple[Value | None, ...], part: Part) -> Any:
    """The node on parts of its operands, with sizes and places in it adapted."""
    attrs = node.attrs
    if "shape" in attrs:
        attrs = {**attrs, "shape": tuple(part[i][1] - part[i][0] if i in part else d for i, d in enumerate(attrs["shape"]))}
    if attrs.get("causal") and (rows := node.outputs[0].rank - 2) in part:
        named = dict(zip(node.op.operands, operands, strict=True))
        q, k, start = node.inputs[0].shape[-2], node.inputs[1].shape[-2], named["start"]
        if start is not None or part[rows][1] != q:  # without a start the last row sees all keys
            named["start"] = (k - q + part[rows][0]) if start is None else start + part[rows][0]
        operands = tuple(named.values())
    return node.op(*operands, **attrs)
