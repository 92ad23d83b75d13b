"""Half precision: graphs whose float32 is float16 or bfloat16, weights that are rounded when they are written, and what such rounding costs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..ir import ops
from ..ir.errors import TargetError, UsageError, nearest
from ..ir.graph import Graph, Node, Param, Value, current
from ..ir.reference import Feed, ReferenceTable, read
from ..ir.sizes import Dim
from ..ir.table import run, with_bodies
from ..ir.types import NUMPY_DTYPES, Type
from ..ir.weights import Location, Weights

FLOATS = ("f32", "f16", "bf16")
_REPEATED = (ops.loop, ops.while_loop)


def checked_float(dtype: str) -> str:
    """The name of a float that ONNX files are written in; UsageError for another."""
    if dtype not in FLOATS:
        raise UsageError(f"dtype {dtype!r} is no float that files are written in{nearest(str(dtype), FLOATS)}")
    return dtype


def largest(float: str) -> float:
    """The largest finite number of that dtype."""
    return np.float64(ml_dtypes.finfo(NUMPY_DTYPES[float]).max).item()


def spacing(float: str) -> float:
    """From 1 to the next number of that dtype."""
    return np.float64(ml_dtypes.finfo(NUMPY_DTYPES[float]).eps).item()


def smallest(float: str) -> float:
    """The smallest number above 0 of that dtype."""
    return np.float64(ml_dtypes.finfo(NUMPY_DTYPES[float]).smallest_subnormal).item()


def fitted(x: Any, float: str) -> np.ndarray:
    """Constants within the range of a float: finite ones are at most the largest number, and those that are not 0 at least the smallest above it.

    So what stands for "never" in a mask stays finite, and what keeps a divisor from being 0 still does.
    """
    x = np.asarray(x, np.float64)
    most, least = largest(float), smallest(float)
    clipped = np.where(np.isfinite(x), np.clip(x, -most, most), x)
    return np.where((clipped != 0) & (np.abs(clipped) < least), np.copysign(least, clipped), clipped)


# ---- graphs -------------------------------------------------------------------------------------


def in_float(graphs: Mapping[str, Graph], weights: Weights, float: str) -> tuple[dict[str, Graph], HalfWeights]:
    """Graphs whose f32 is that half float, and the weights that they read, which they share. A graph's own f64 stays.

    Numbers that depend on no float input and no parameter (positions, angles, masks) are computed in f32 and rounded where they meet others: a
    half float counts to 2048 or 256 only. Constants are brought into the float's range. Optimise graphs first, so that constants are
    folded before they are rounded.
    """
    change = _InFloat(float)
    changed = {stem: change(graph) for stem, graph in graphs.items()}
    return changed, HalfWeights(weights, [v.key for v in change.leaves if isinstance(v, Param)], float)


def exact_values(graph: Graph) -> set[Value]:
    """The values that depend on no float input and on no float parameter, in the bodies of loops too; what loops give is not among them."""
    found: set[Value] = set()
    for node in graph.live():
        if node.op in _REPEATED:
            found.update(*(exact_values(a) for a in node.attrs.values() if isinstance(a, Graph)))
        elif all(v is None or (v in found if v.node else v.type.dtype != "f32") for v in node.inputs):
            found.update(node.outputs)
    return found


class _InFloat:
    """The change of graphs; `leaves` are inputs and parameters, and what has taken their place."""

    def __init__(self, float: str):
        self.float = float
        self.leaves: dict[Value, Value] = {}

    def __call__(self, graph: Graph) -> Graph:
        exact = exact_values(graph)

        def rule(node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...]:
            kept = node.outputs[0] in exact
            operands = tuple(v if v is None or kept else self._rounded(v) for v in operands)
            return current().emit(node.op, operands, {k: self._attribute(k, a, node.attrs, kept) for k, a in node.attrs.items()})

        changed = graph.rebuild(rule)
        changed.inputs = [self._rounded(v) for v in graph.inputs]
        with changed.tracing():
            changed.outputs = {k: self._rounded(v) for k, v in changed.outputs.items()}
        return changed

    def _rounded(self, v: Value) -> Value:
        """v in the half float; what was computed in f32 is cast, or made in it where its node makes any dtype."""
        if v.type.dtype != "f32":
            return v
        if v.node is None:
            return self.leaves.setdefault(v, self._leaf(v))
        attrs = v.node.attrs
        if attrs.get("dtype") == "f32":
            attrs = {k: self._attribute(k, a, attrs, False) for k, a in attrs.items()}
            return current().emit(v.node.op, v.node.inputs, attrs)[0]
        return ops.cast(v, dtype=self.float)

    def _leaf(self, v: Value) -> Value:
        if not isinstance(v, Param):
            return Value(Type(self.float, v.shape), v.name)
        made = Param(*v.shape, dtype=self.float, init=v.init, trainable=v.trainable)
        made.name, made.key, made.tied = v.name, v.key, v.tied
        return made

    def _attribute(self, name: str, x: Any, attrs: Mapping[str, Any], kept: bool) -> Any:
        if isinstance(x, Graph):
            return self(x)
        if name == "dtype":
            return self.float if x == "f32" and not kept else x
        return _fitted_value(x, self.float) if name == "value" and attrs.get("dtype") == "f32" else x


def within_range(graph: Graph) -> Graph:
    """The graph with constants of half floats brought into their range: decompositions make some for float32."""

    def rule(node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        if node.op not in (ops.constant, ops.literal) or node.type.dtype not in FLOATS[1:]:
            return None
        return node.op(value=_fitted_value(node.attrs["value"], node.type.dtype), dtype=node.type.dtype)

    half = any(node.type.dtype in FLOATS[1:] for node in graph.live())
    return with_bodies(graph.rebuild(rule), within_range) if half else graph


def _fitted_value(x: Any, float: str) -> Any:
    """The attribute of a constant, of a literal or of a size, which stays, within the range of a float."""
    if isinstance(x, ops.Literal):
        return ops.Literal(fitted(x.array, float).astype(np.float32))
    return x if isinstance(x, Dim) else fitted(x, float).item()


# ---- weights ------------------------------------------------------------------------------------


class HalfWeights:
    """Weights of which those named are in a half float, each rounded when it is read.

    They are referred to where they lie only if all that are named are stored in that float already: an artifact that referred to the
    checkpoint for what is left of it would keep all of it.
    """

    def __init__(self, source: Weights, keys: Collection[str], float: str):
        self.source, self.keys, self.float = source, frozenset(keys), float
        self.stored = all(source.spec(k)[0] == float for k in self.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __contains__(self, key: object) -> bool:
        return key in self.source

    def __len__(self) -> int:
        return len(self.source)

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape as they are written."""
        dtype, shape = self.source.spec(key)
        return (self.float if key in self.keys else dtype), shape

    def array(self, key: str) -> np.ndarray:
        """The weight as it is written. TargetError for a number that the float cannot hold."""
        weight = read(self.source, key)
        if key not in self.keys or weight.dtype == NUMPY_DTYPES[self.float]:
            return weight
        with np.errstate(over="ignore", under="ignore"):
            made = weight.astype(NUMPY_DTYPES[self.float])
        if lost := _overflow(weight, made):
            raise TargetError(f"weight {key!r} has {lost:.3g}, {self.float} holds {largest(self.float):.3g} at most\n  choose dtype 'bf16' or 'f32'")
        return made

    def location(self, key: str) -> Location | None:
        """Where the bytes lie, if all weights are of that float already."""
        return self.source.location(key) if self.stored else None


def _overflow(x: np.ndarray, rounded: np.ndarray) -> float:
    """The first finite number of x that is infinite when it is rounded; 0 for none."""
    lost = np.isinf(rounded) & np.isfinite(x)
    return x[lost][0].item() if lost.any() else 0.0


# ---- what rounding costs ------------------------------------------------------------------------


def rounded_run(graph: Graph, inputs: Mapping[str, Any], weights: Weights, float: str) -> tuple[dict[str, np.ndarray], str]:
    """The outputs of a graph in f32 when its inputs, its weights and what each op makes are rounded to a half float, and the first overflow's layer.

    It is a model of half precision that shares nothing with `in_float` but the range of constants and which values stay exact: kernels
    add up in float32 and round what they store.
    """
    table = _Rounding(float, graph)
    feed = _RoundedFeed({v: inputs[v.name] for v in graph.inputs if v.name in inputs}, weights, table.round)
    with np.errstate(all="ignore"):
        return {k: table.round(x) for k, x in run(graph, table, feed).items()}, table.overflow


class _Rounding(ReferenceTable):
    """NumPy's float32, each result rounded."""

    def __init__(self, float: str, graph: Graph):
        super().__init__("f32")
        self.half, self.overflow = float, ""
        self.exact = exact_values(graph)

    def round(self, x: Any) -> np.ndarray:
        """x with float32 rounded."""
        x = np.asarray(x)
        return x.astype(NUMPY_DTYPES[self.half]).astype(np.float32) if x.dtype == np.float32 else x

    def apply(self, node: Node, operands: Any, attrs: Mapping[str, Any]) -> Any:
        """The op's result; what depends on no float is left exact until it meets others."""
        kept = node.outputs[0] in self.exact
        if not kept:
            operands = [self.round(x) if v in self.exact else x for v, x in zip(node.inputs, operands, strict=True)]
        made = super().apply(node, operands, attrs)
        if kept:
            constant = node.op in (ops.constant, ops.literal) and node.type.dtype == "f32"
            return fitted(made, self.half).astype(np.float32) if constant else made
        return tuple(self._result(node, x) for x in made) if len(node.outputs) > 1 else self._result(node, made)

    def _result(self, node: Node, x: Any) -> np.ndarray:
        rounded = self.round(x)
        if not self.overflow and _overflow(np.asarray(x), rounded):
            self.overflow = f"{node.path or 'the model'} ({node.op.name})"
        return rounded


class _RoundedFeed(Feed):
    """Inputs and parameters, rounded."""

    def __init__(self, inputs: Mapping[Value, Any], weights: Weights, round: Callable[[Any], np.ndarray]):
        super().__init__(inputs, weights, "f32")
        self.update({v: round(x) for v, x in self.items()})
        self.round = round

    def __missing__(self, param: Value) -> np.ndarray:
        return self.round(super().__missing__(param))
