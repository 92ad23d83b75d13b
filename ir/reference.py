"""The meaning of a graph: its run in NumPy, in float64 unless asked otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .graph import Graph, Node, Param, Value
from .op import OPS
from .table import Table, run
from .types import KINDS, NUMPY_DTYPES
from .weights import Weights


class ReferenceTable(Table):
    """Each op's own NumPy body; `f32` in the graph means the float of this run."""

    def __init__(self, float: str = "f64"):
        from . import ops  # noqa: F401  declares them

        super().__init__(f"numpy {float}", {op: op.reference for op in OPS.values()})
        self.float = float

    def apply(self, node: Node, operands: Any, attrs: Mapping[str, Any]) -> Any:
        """The op's NumPy result."""
        if attrs.get("dtype") == "f32":
            attrs = {**attrs, "dtype": self.float}
        return self.rules[node.op](*operands, **attrs)


class Feed(dict):
    """Inputs by value and parameters on demand: each is widened when it is read and dropped when it was used."""

    def __init__(self, inputs: Mapping[Value, Any], weights: Weights | None, float: str):
        super().__init__({v: widen(x, float) for v, x in inputs.items()})
        self.weights, self.float = weights, float

    def __missing__(self, param: Value) -> np.ndarray:
        if not isinstance(param, Param) or self.weights is None:
            raise KeyError(f"nothing is fed for {param!r}")
        return widen(read(self.weights, param.key), self.float)


def read(weights: Weights, key: str) -> np.ndarray:
    """A weight as stored, read from its file and not mapped: the pages of a map would stay counted with the process until the end of the run."""
    place = weights.location(key)
    if place is None:
        return weights.array(key)
    dtype, shape = weights.spec(key)
    with open(place.file, "rb") as file:
        file.seek(place.offset)
        data = file.read(place.length)
    return np.frombuffer(data, NUMPY_DTYPES[dtype]).reshape(shape)


def widen(x: Any, float: str) -> np.ndarray:
    """x with float numbers in the dtype of the run, others as they are."""
    x = np.asarray(x)
    return x.astype(NUMPY_DTYPES[float], copy=False) if x.dtype in _FLOATS else x


_FLOATS = frozenset(NUMPY_DTYPES[d] for d in KINDS["float"])


def reference(
    graph: Graph,
    inputs: Mapping[str, Any],
    weights: Weights | None = None,
    *,
    float: str = "f64",
    observe: Callable[[Node, tuple[Any, ...]], None] | None = None,
) -> dict[str, np.ndarray]:
    """The outputs of `graph` for inputs by name, computed in NumPy with all floats in `float`."""
    feed = Feed({v: inputs[v.name] for v in graph.inputs if v.name in inputs}, weights, float)
    with np.errstate(all="ignore"):
        return run(graph, ReferenceTable(float), feed, observe=observe)
