"""Inputs made up for a graph, at chosen sizes and with padding: what verification runs a model on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.graph import Graph, Value
from ..ir.sizes import Dim, bind
from ..ir.types import KINDS, NUMPY_DTYPES, Type

SMALL, PADDED = "batch 1", "padded batch"
_FIRST = {"height": 37, "width": 41, "past": 3}  # sizes that want to start above others
_BATCHES = ("batch", "text_batch", "image_batch")


@dataclass(frozen=True)
class Sample:
    """Arrays by input name, the sizes that they have, and for each size that is padded how much of it each row uses: `live["seq"]` is i64[batch]."""

    name: str
    arrays: dict[str, np.ndarray]
    live: dict[str, np.ndarray]
    sizes: dict[str, int]

    def mask(self, type: Type) -> np.ndarray | bool:
        """Which elements of an output of that type are live: True for all, or a bool array that broadcasts to it."""
        mask: np.ndarray | bool = True
        for axis, d in enumerate(type.shape[1:], 1):
            if isinstance(d, Dim) and len(d.names()) == 1 and (name := next(iter(d.names()))) in self.live:
                count = np.asarray(d.bind(self.live))
                count = count.repeat(max(1, bind(type.shape[0], self.sizes) // len(count)))  # several sequences for each row, as batch * choices
                size = int(d.bind({name: self.sizes[name]}))
                wide = (len(count), *(1,) * (axis - 1), size, *(1,) * (type.rank - axis - 1))
                mask = mask & (np.arange(size) < count[:, None]).reshape(wide)
        return mask


def make_samples(graph: Graph, config: Any = None, seed: int = 0) -> list[Sample]:
    """Two samples: one row at small sizes, and several rows of which the last is padded, at larger ones."""
    return [make_sample(graph, SMALL, 1, 1.0, config, seed), make_sample(graph, PADDED, 3, 1.6, config, seed + 1)]


def make_sample(graph: Graph, name: str, batch: int, scale: float, config: Any = None, seed: int = 0) -> Sample:
    """A sample of `batch` rows; other sizes are distinct, grow with `scale`, and satisfy the graph's bounds and limits."""
    generator = np.random.default_rng(seed)
    sizes = _sizes(graph, batch, scale)
    masks = [v for v in graph.inputs if _is_mask(v)]
    live = {}
    for v in masks:
        rows, d = v.shape[0], v.shape[-1]
        if isinstance(d, Dim) and d.name and batch > 1:
            live[d.name] = _live(bind(rows, sizes), sizes[d.name], graph.bounds.get(d.name, 1))
    draw = _Draw(graph, sizes, live, config, generator)
    return Sample(name, {v.name: draw(v) for v in graph.inputs}, live, sizes)


def given_sample(graph: Graph, name: str, arrays: Mapping[str, np.ndarray]) -> Sample:
    """A sample of given arrays, one for each input; where a mask has its zeros at the end of rows, they are padding."""
    live, sizes = {}, {}
    for v in graph.inputs:
        sizes |= {d.name: n for d, n in zip(v.shape, arrays[v.name].shape, strict=False) if isinstance(d, Dim) and d.name}
        if _is_mask(v) and v.rank == 2 and isinstance(d := v.shape[1], Dim) and d.name and np.all(np.diff(arrays[v.name].astype(np.int8)) <= 0):
            live[d.name] = arrays[v.name].astype(np.int64).sum(-1)
    return Sample(name, dict(arrays), live, sizes)


def _is_mask(v: Value) -> bool:
    return v.name.endswith("attention_mask") and v.rank > 1


def _sizes(graph: Graph, batch: int, scale: float) -> dict[str, int]:
    names = sorted(set().union(*(v.type.names() for v in graph.inputs)) if graph.inputs else set())
    sizes = {n: batch + (n != "batch") * (batch > 1) * i if n in _BATCHES else int(_FIRST.get(n, 6 + i) * scale) for i, n in enumerate(names)}
    sizes["batch"] = batch
    for n, least in graph.bounds.items():
        sizes[n] = max(int(least * 3 * scale), sizes.get(n, 0))
    for _ in range(12):
        wrong = {n for d, (most, _) in graph.limits.items() if d.names() <= set(sizes) and d.bind(sizes) > most for n in d.names()}
        if not wrong:
            break
        for n in wrong:  # an upper limit on a sequence, or a lower one on an image that stands as window - height
            sizes[n] = max(1, sizes[n] // 2) if n not in ("height", "width") else int(sizes[n] * 1.5)
    return sizes


def _live(rows: int, size: int, least: int) -> np.ndarray:
    full = np.full(rows, size, np.int64)
    full[-1] = max(least, size * 2 // 3)
    return full


class _Draw:
    """Draws an array for each input: ids within the tables they look up, masks, places, noise."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], live: Mapping[str, np.ndarray], config: Any, generator: np.random.Generator):
        self.sizes, self.live, self.config, self.generator = sizes, live, config, generator
        self.rows = _table_rows(graph)

    def __call__(self, v: Value) -> np.ndarray:
        shape = bind(v.shape, self.sizes)
        dtype = NUMPY_DTYPES[v.type.dtype]
        if _is_mask(v):
            return np.broadcast_to(np.arange(shape[-1]) < self._counts(v, shape), shape).astype(dtype)
        if v.type.dtype in KINDS["int"]:
            most = self.rows.get(v, 2)
            ids = self.generator.integers(min(5, most - 1), most, shape).astype(dtype)
            return self._padded(v, ids)
        if v.type.dtype == "bool":
            return self.generator.random(shape) < 0.4
        noise = self.generator.standard_normal(shape).astype(np.float32)
        return self._padded(v, noise).astype(dtype)

    def _counts(self, v: Value, shape: tuple[int, ...]) -> np.ndarray:
        """How much of the last axis each row uses, to be compared with places on it."""
        d = v.shape[-1]
        known = isinstance(d, Dim) and d.names() <= set(self.live)
        counts = np.asarray(d.bind(self.live)) if known else np.full(shape[0], shape[-1])
        return counts.reshape(-1, *(1,) * (v.rank - 1))

    def _padded(self, v: Value, array: np.ndarray) -> np.ndarray:
        """The array with padding in the dead part of a row."""
        for axis, d in enumerate(v.shape[1:], 1):
            name = d.name if isinstance(d, Dim) else None
            if name is not None and name in self.live and len(live := self.live[name]) == len(array):
                places = np.arange(array.shape[axis]).reshape(-1, *(1,) * (v.rank - axis - 1))
                dead = places >= live.reshape(-1, *(1,) * (v.rank - 1))
                pad = getattr(self.config, "pad_token_id", None) or 0
                return np.where(dead, array.dtype.type(pad if array.dtype.kind in "iu" else 0), array)
        return array


def _table_rows(graph: Graph) -> dict[Value, int]:
    """For each integer input the rows of the smallest table that it looks up, directly or after a change of shape."""
    rows: dict[Value, int] = {}
    source: dict[Value, Value] = {v: v for v in graph.inputs}
    for node in graph.live():
        table = node.inputs[0] if node.inputs else None
        if node.op is ops.take and table is not None and node.inputs[1] in source:
            v, size = source[node.inputs[1]], table.shape[node.attrs["axis"]]
            rows |= {v: min(size, rows.get(v, size))} if isinstance(size, int) else {}
        elif node.op in (ops.reshape, ops.cast, ops.slice_, ops.broadcast_to) and table in source:
            source[node.outputs[0]] = source[table]
    return rows
