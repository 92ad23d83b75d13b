"""Layers: plain classes of parameters and layers, and the trace that turns a tree of them into a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .cache import Cache, NoCache
from .errors import InterlinguaError
from .graph import Graph, Param, Value, current
from .signature import expects
from .types import Type


class Layer:
    """A part of a model: its parameters and parts are attributes, `forward` builds its graph.

    Attributes that are Params, Layers, or lists or dicts of them are found by name; that name is the layer's place in the tree.
    """

    path = ""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the layer computes, written in ops."""
        raise InterlinguaError(f"{type(self).__name__} has no forward; define what it computes")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """`forward`, with the layer's path on every node that it emits and its result remembered."""
        graph = current()
        outer, graph.path = graph.path, self.path
        try:
            result = self.forward(*inputs, **options)
        finally:
            graph.path = outer
        if self.path and isinstance(tap := result[0] if isinstance(result, tuple) and result else result, Value) and tap.node is not None:
            graph.taps[self.path] = tap
        return result


def tree(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer | Param]]:
    """(path, Layer or Param) for everything below a layer, in the order of its attributes."""
    for name, attribute in vars(layer).items():
        for path, item in _items(prefix + name, attribute):
            if isinstance(item, (Layer, Param)):
                yield path, item
            if isinstance(item, Layer):
                yield from tree(item, f"{path}.")


def _items(path: str, attribute: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(attribute, (list, tuple)):
        for i, item in enumerate(attribute):
            yield from _items(f"{path}.{i}", item)
    elif isinstance(attribute, dict):
        for key, item in attribute.items():
            yield from _items(f"{path}.{key}", item)
    else:
        yield path, attribute


def name_tree(layer: Layer, key: Callable[[str], str] = lambda name: name) -> list[Param]:
    """The parameters below a layer, each named by its first place in the tree and keyed by what `key` makes of that name."""
    params: dict[Param, None] = {}
    for path, item in tree(layer):
        if isinstance(item, Layer):
            item.path = path
        elif item not in params:
            item.name, item.key, item.tied = path, key(path), ()
            params[item] = None
        else:
            item.tied += (key(path),)
    return list(params)


def trace(
    layer: Layer,
    inputs: Mapping[str, Type | str | None],
    static: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
    cache: Cache | None = None,
) -> Graph:
    """The graph of a layer for inputs by name and static arguments; None is an input left out. Outputs are flattened to dotted names."""
    graph = Graph()
    graph.training, graph.cache = training, cache or NoCache()
    with graph.tracing():
        values = {k: None if t is None else graph.input(k, t) for k, t in inputs.items()}
        result = layer(**values, **(static or {}))
        graph.outputs = {**flatten(result if isinstance(result, dict) else {"output": result}), **graph.outputs}
    graph.path = ""
    return graph


def flatten(outputs: Any, prefix: str = "") -> dict[str, Value]:
    """Nested dicts and lists of values as one dict with dotted names; None is dropped."""
    if outputs is None:
        return {}
    if isinstance(outputs, Value):
        return {prefix: outputs}
    expects(
        isinstance(outputs, (dict, list, tuple)),
        f"output {prefix or 'of the model'} is {type(outputs).__name__}, expected values, lists or dicts of them",
    )
    items = outputs.items() if isinstance(outputs, dict) else enumerate(outputs)
    return {name: v for k, x in items for name, v in flatten(x, f"{prefix}.{k}" if prefix else str(k)).items()}


@contextmanager
def collecting() -> Iterator[dict[str, list[Value]]]:
    """Gathers what layers inside hand to `collect`, by kind and in order: attention weights and the like, which cost nothing unless asked for."""
    graph = current()
    outer, graph.collected = graph.collected, {}
    try:
        yield graph.collected
    finally:
        graph.collected = outer


def collect(kind: str, value: Value) -> None:
    """Offers a value to the innermost `collecting`, which makes it an output on demand."""
    current().collected.setdefault(kind, []).append(value)
