"""Factors and shifts beside a linear layer or a convolution become part of its weights."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..graph import Graph, Node, Value, current
from ..op import Op
from ..sizes import Dim
from ..types import KINDS

LAYERS = {ops.linear: 0, ops.affine: 1, ops.conv: 0, ops.conv_transpose: 1}  # the axis of the weight on which the channels lie that a layer gives
FACTORS, SHIFTS = (ops.mul, ops.div), (ops.add, ops.sub)
OPAQUE = (ops.round_, ops.floor, ops.ceil, ops.round_blocks, ops.round_range, ops.dequantize, ops.loop, ops.while_loop)

Step = tuple[Op, Value]  # what is done to each channel, and the operand: a vector, or a number for all


def fold_scales(graph: Graph) -> Graph:
    """What multiplies or shifts each channel of a linear layer or convolution is done to its weight and bias, which a runtime does once, at load.

    After a layer these are batch normalisation by given statistics, and factors, divisors, summands and subtrahends for each channel or for all;
    before it, factors and divisors. They are folded where the layer's result (or the product before it) has no other reader, and where they, the
    weight and the bias depend on float parameters and constants alone. Left as they are: a weight matrix that something else reads too (the
    embedding that is tied to T5's head), as it would be held twice; weights that are rounded or dequantised, as integers would no longer be whole;
    and graphs for training, whose weights change with every step.
    """
    return graph if graph.training else graph.rebuild(_Folding(graph))


class _Folding:
    """The rule of the rebuild. What it decides by are values of the graph before it, what it builds with are those of the new one."""

    def __init__(self, graph: Graph):
        self.fixed: set[Value] = {p for p in graph.params() if p.type.dtype in KINDS["float"]}
        self.readers = graph.readers()
        self.open: set[Value] = set()  # what has become the result of a layer whose weights may take in more
        for node in graph.live():
            known = all(v is None or v in self.fixed for v in node.inputs)
            if known and node.op not in OPAQUE and not any(map(_symbolic, node.attrs.values())):
                self.fixed.update(node.outputs)

    def __call__(self, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        if node.op in LAYERS:
            if not self._may_change(node):
                return None
            self.open.add(node.outputs[0])
            x, steps = self._before(node, operands[0])  # type: ignore[arg-type]
            return _layer(node, (x, *operands[1:]), steps, []) if steps else None
        at = next((i for i, v in enumerate(node.inputs) if v in self.open and len(self.readers[v]) == 1), None)  # type: ignore[index]
        if at is None or (steps := self._after(node, operands, at)) is None:
            return None
        self.open.add(node.outputs[0])
        layer = operands[at].node  # type: ignore[union-attr]
        return _layer(layer, layer.inputs, [], steps)  # type: ignore[union-attr]

    def _may_change(self, layer: Node) -> bool:
        """Whether the weights are known at load, the result is not, and no matrix that the weight is made of is read from elsewhere."""
        if not all(v is None or v in self.fixed for v in layer.inputs[1:]) or layer.outputs[0] in self.fixed:
            return False
        inside, matrices, found = {layer}, [], [layer.inputs[1]]
        while found:
            v = found.pop()
            if v is None:
                continue
            if sum(d != 1 for d in v.shape) > 1:
                matrices.append(v)
            if v.node is not None and v.node not in inside:
                inside.add(v.node)
                found += v.node.inputs
        return all(reader in inside for v in matrices for reader in self.readers[v])

    def _before(self, layer: Node, x: Value) -> tuple[Value, list[Step]]:
        """What is left of a layer's operand `x` when factors are taken off, and these."""
        old, steps = layer.inputs[0], []
        while len(self.readers[old]) == 1 and old.node is not None and old.node.op in FACTORS:  # type: ignore[index, union-attr]
            inner = old.node  # type: ignore[union-attr]
            at = next((i for i in (0, 1) if inner.inputs[1 - i] in self.fixed and inner.inputs[i] not in self.fixed), None)
            if x.node is None or x.node.op is not inner.op or at is None or not _is_step(inner, at, _channel_axis(layer)):
                break  # the product has become part of the layer before it, or is none by channel
            steps.append((inner.op, _vector(x.node.inputs[1 - at])))  # type: ignore[arg-type]
            old, x = inner.inputs[at], x.node.inputs[at]  # type: ignore[assignment]
        return x, steps

    def _after(self, node: Node, operands: tuple[Any, ...], at: int) -> list[Step] | None:
        """What a node does to the channels of the layer that is its operand `at`; None where that is not all that it does."""
        if not all(v in self.fixed for i, v in enumerate(node.inputs) if i != at):
            return None
        axis = _channel_axis(operands[at].node)
        if node.op is ops.batch_norm and axis == 1:
            _, scale, shift, mean, variance = operands
            return [(ops.sub, mean), (ops.mul, scale / ops.sqrt(variance + node.attrs["eps"])), (ops.add, shift)]
        if node.op in FACTORS + SHIFTS and _is_step(node, at, axis):
            return [(node.op, _vector(operands[1 - at]))]
        return None


def _symbolic(x: Any) -> bool:
    return any(map(_symbolic, x)) if isinstance(x, tuple) else isinstance(x, Dim)


def _channel_axis(layer: Node) -> int:
    """The axis of a layer's operand and of its result on which channels lie."""
    return 1 if layer.op in (ops.conv, ops.conv_transpose) else layer.outputs[0].rank - 1


def _is_step(node: Node, at: int, axis: int) -> bool:
    """Whether an operation on elements treats alike what its operand `at` has beside `axis`, and nothing is repeated."""
    x, other = node.inputs[at], node.inputs[1 - at]
    if x.type != node.type or (at == 1 and node.op in (ops.div, ops.sub)):  # type: ignore[union-attr]
        return False
    return all(d == 1 or i == axis for i, d in enumerate(other.shape, x.rank - other.rank))  # type: ignore[union-attr]


def _vector(v: Value) -> Value:
    """v, of which one axis at most is longer than 1, as a vector or a number."""
    return ops.view(v, tuple(d for d in v.shape if d != 1))


def _layer(layer: Node, operands: tuple[Any, ...], before: list[Step], after: list[Step]) -> Value:
    """A layer on these operands that does besides what is done before or after it."""
    x, weight, bias = operands
    own, groups = LAYERS[layer.op], layer.attrs.get("groups", 1)
    for op, v in before:
        weight = op(weight, _along(v, weight, 1 - own, groups))
    for op, v in after:
        if op in FACTORS:
            weight = op(weight, _along(v, weight, own, groups))
            bias = None if bias is None else op(bias, v)
        elif bias is None:
            v = v if v.rank else ops.broadcast_to(v, shape=(layer.outputs[0].shape[_channel_axis(layer)],))
            bias = v if op is ops.add else ops.negative(v)
        else:
            bias = op(bias, v)
    current().path = layer.path
    return layer.op(x, weight, bias, **layer.attrs)


def _along(v: Value, weight: Value, axis: int, groups: int) -> Value:
    """A vector of channels in the shape of the weight that has them on this axis; axis 1 of a convolution's weight counts those of one group."""
    if v.rank == 0:
        return v
    rest = (1,) * (weight.rank - 1 - axis)
    if axis == 0 or groups == 1:
        return ops.view(v, (*v.shape, *rest))
    rows = ops.repeat(ops.view(v, (groups, weight.shape[1])), weight.shape[0] // groups, axis=0)
    return ops.view(rows, (*rows.shape, *rest))
