"""Small graphs, and what holds of a graph before and after a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from interlingua.ir.graph import Graph
from interlingua.ir.reference import reference


def build(make: Callable[..., Any], *types: str) -> Graph:
    """The graph of `make` on inputs x0, x1, ... with one output or several."""
    graph = Graph()
    graph.path = "layer"
    with graph.tracing():
        made = make(*[graph.input(f"x{i}", t) for i, t in enumerate(types)])
    graph.outputs = {f"y{i}": v for i, v in enumerate(made if isinstance(made, tuple) else (made,))}
    return graph


def names(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.live()]


def check(before: Graph, after: Graph, feed: dict[str, np.ndarray], weights: Any = None) -> None:
    """Equal in float64, in types, in inputs and outputs; and every node still knows its layer."""
    assert {k: v.type for k, v in after.outputs.items()} == {k: v.type for k, v in before.outputs.items()}
    assert after.inputs == before.inputs
    if all(n.path for n in before.live()):
        assert all(n.path for n in after.live())
    found, expected = reference(after, feed, weights), reference(before, feed, weights)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
