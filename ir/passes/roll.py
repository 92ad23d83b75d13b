"""Repeated blocks become one `loop`: what is compiled, and how long that takes, no longer grows with the depth of a model."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

from .. import ops
from ..graph import Graph, Node, Value
from ..ops.loop import starred
from ..table import INDEX

LEAST = 3  # blocks: fewer are not worth a loop
Place = tuple[int, int]  # which node of a group, which of its results
Group = list[Node]


def roll(graph: Graph) -> Graph:
    """Runs of three or more alike blocks `stem.0, stem.1, ...`, or of pairs that alternate, as one `loop` each; all else as it is.

    Blocks are found by the layer paths of nodes. What depends on nothing of a block is computed before the loop; what differs between blocks
    (parameters, caches, sites of random draws, outputs) is one value for each iteration. For graphs before `lower`, which blurs the blocks.
    """
    for stem in _stems(graph):
        while (rolled := _rolled(graph, stem)) is not None:
            graph = rolled
    return graph


def _stems(graph: Graph) -> list[str]:
    """Paths that have numbered parts, outer ones first."""
    paths = dict.fromkeys(n.path for n in graph.live())
    found = dict.fromkeys(path[: m.start()] for path in paths for m in re.finditer(r"\.\d+(?![^.])", path))
    return sorted(found, key=lambda stem: stem.count("."))


def _rolled(graph: Graph, stem: str) -> Graph | None:
    """The graph with the first run of blocks that makes a loop; None where there is none."""
    blocks = _blocks(graph, stem)
    if len(blocks) < LEAST:
        return None
    for start in sorted(blocks):
        for period in (1, 2):
            groups = _alike(blocks, start, period)
            if len(groups) >= LEAST and (made := _Loop(graph, stem, groups).rolled()) is not None:
                return made
    return None


# ---- what is a block, and which are alike -------------------------------------------------------


def _blocks(graph: Graph, stem: str) -> dict[int, list[Node]]:
    """The nodes of each block below a stem, without those that blocks share, and those that are known before any input or parameter is."""
    live = graph.live()
    at = _numbered(live, stem)
    shared = _shared(live, at)
    blocks: dict[int, list[Node]] = {}
    varying: set[Node] = set()
    for node in live:
        if "site" in node.attrs or any(v is not None and (v.node is None or v.node in varying) for v in node.inputs):
            varying.add(node)
            if node in at and node not in shared:
                blocks.setdefault(at[node], []).append(node)
    return blocks


def _numbered(live: list[Node], stem: str) -> dict[Node, int]:
    """The number of each node's block; a node on the way from one block to a later one is of the former."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)(?![^.])")
    at = {n: int(m[1]) for n in live if (m := pattern.match(n.path))}
    reached, last = dict(at), {}
    for node in live:
        known = [reached[v.node] for v in node.inputs if v is not None and v.node in reached]
        if node not in at and known:
            reached[node] = max(known)
    for node in reversed(live):
        wanted = max(at.get(node, -1), last.get(node, -1))
        last |= {v.node: max(wanted, last.get(v.node, -1)) for v in node.inputs if v is not None and v.node}
    return at | {n: b for n, b in reached.items() if last.get(n, -1) > b}


def _shared(live: list[Node], at: dict[Node, int]) -> set[Node]:
    """What several blocks other than its own read, and what that is made of.

    Equal nodes are merged when they are traced: what blocks share lies in the first of them, and is not part of it.
    """
    readers: dict[Node, set[int]] = {}
    shared: set[Node] = set()
    for node in reversed(live):
        if node not in at:
            continue
        if len(readers.get(node, set()) - {at[node]}) > 1:
            shared.add(node)
        for v in node.inputs:
            if v is not None and v.node:
                readers.setdefault(v.node, set()).add(at[node])
                if node in shared:
                    shared.add(v.node)
    return shared


def _alike(blocks: dict[int, list[Node]], start: int, period: int) -> list[Group]:
    """Groups of `period` blocks from `start` on, as many as do the same: each with what the one before it made and what comes from outside."""
    groups: list[Group] = []
    places: dict[Value, tuple[int, Place]] = {}
    for g in count():
        numbers = range(start + g * period, start + (g + 1) * period)
        if not all(i in blocks for i in numbers):
            return groups
        group = [n for i in numbers for n in blocks[i]]
        places |= {v: (g, (j, k)) for j, n in enumerate(group) for k, v in enumerate(n.outputs)}
        if groups and not _follows(groups, group, places):
            return groups
        groups.append(group)
    return groups


def _follows(groups: list[Group], group: Group, places: dict[Value, tuple[int, Place]]) -> bool:
    """Whether a group does what those before it do, its random draws as many places further on as theirs."""
    g = len(groups)
    if g == 1:
        return _description(group, 1, places, first=True) == _description(groups[0], 0, places)
    alike = _description(group, g, places) == _description(groups[1], 1, places)
    return alike and all(c - a == g * (b - a) for a, b, c in zip(*map(_sites, (groups[0], groups[1], group)), strict=True))


def _description(group: Group, g: int, places: dict[Value, tuple[int, Place]], first: bool = False) -> list[Any]:
    """What a group does, up to the values that come from outside, and to which group it is; `first`: as if none came before it."""

    def source(v: Value | None) -> Any:
        at, place = places.get(v, (None, None))  # type: ignore[arg-type]
        return None if at is None or (first and at != g) else (g - at, place)

    attrs = lambda n: {k: a for k, a in n.attrs.items() if k != "site"}
    return [(n.op, attrs(n), n.types(), [v.type for v in n.outputs], [source(v) for v in n.inputs]) for n in group]


def _sites(group: Group) -> list[int]:
    return [n.attrs["site"] for n in group if "site" in n.attrs]


# ---- the loop of a run of groups ----------------------------------------------------------------


class _Loop:
    """One run of groups, taken apart: what is carried along, what is shared, what each group has of its own, and what others read of it."""

    def __init__(self, graph: Graph, stem: str, groups: list[Group]):
        self.graph, self.stem, self.groups = graph, stem, groups
        self.places = {v: (g, (j, k)) for g, group in enumerate(groups) for j, n in enumerate(group) for k, v in enumerate(n.outputs)}
        self.carried: dict[Place, Value] = {}  # and what it is at first
        self.shared: dict[Value, None] = {}
        self.own: dict[tuple[Value, ...], None] = {}
        self.sound = True
        for nodes in zip(*groups, strict=True):
            for values in zip(*(n.inputs for n in nodes), strict=True):
                self._sort(values)
        self.nodes = {n for group in groups for n in group}
        read = [v for n in graph.live() if n not in self.nodes for v in n.inputs] + list(graph.outputs.values())
        self.read = [v for v in dict.fromkeys(read) if v in self.places]
        self.made = list(dict.fromkeys(self.places[v][1] for v in self.read if not self._is_carried_out(v)))

    def _sort(self, values: tuple[Value | None, ...]) -> None:
        """Notes one operand, by its value in each group."""
        at, place = self.places.get(values[1], (None, None))  # type: ignore[arg-type]
        if values[0] is None or at == 1:
            return
        if at == 0:
            self.sound &= self.carried.setdefault(place, values[0]) is values[0]  # type: ignore[arg-type]
        elif len(set(values)) == 1:
            self.shared[values[0]] = None
        else:
            self.own[values] = None  # type: ignore[index]
        self.sound &= values[0] not in self.places and (at == 0 or not any(v in self.places for v in values))

    def _is_carried_out(self, v: Value) -> bool:
        g, place = self.places[v]
        return place in self.carried and g == len(self.groups) - 1

    @property
    def operands(self) -> list[Value]:
        """What the loop takes, in its order."""
        return [*self.carried.values(), *self.shared, *(v for values in self.own for v in values)]

    def rolled(self) -> Graph | None:
        """The graph with this loop; None where it would depend on itself."""
        live = [n for n in self.graph.live() if n not in self.nodes]
        after: set[Node | None] = set(self.nodes)
        for node in live:
            if any(v is not None and v.node in after for v in node.inputs):
                after.add(node)
        if not self.sound or any(v.node in after for v in self.operands):
            return None
        graph, new = Graph(like=self.graph), {}

        def emit(nodes: list[Node]) -> None:
            for n in nodes:
                graph.path = n.path
                new.update(zip(n.outputs, graph.emit(n.op, tuple(new.get(v, v) for v in n.inputs), n.attrs), strict=True))

        with graph.tracing():
            emit([n for n in live if n not in after])
            graph.path = self.stem
            attrs = {"body": self.body(), "carries": len(self.carried), "shared": len(self.shared), "count": len(self.groups)}
            results = graph.emit(ops.loop, tuple(new.get(v, v) for v in self.operands), attrs)
            new.update({v: results[self._result(v)] for v in self.read})
            emit([n for n in live if n in after])
        graph.path = ""
        graph.outputs = {k: new.get(v, v) for k, v in self.graph.outputs.items()}
        graph.taps = {k: new[v] for k, v in self.graph.taps.items() if v in new}
        return graph

    def _result(self, v: Value) -> int:
        g, place = self.places[v]
        if self._is_carried_out(v):
            return list(self.carried).index(place)
        return len(self.carried) + self.made.index(place) * len(self.groups) + g

    def body(self) -> Graph:
        """What one iteration does."""
        body, names = Graph(), _Names()
        carried = {p: body.input(names.new(f"carried.{i}"), v.type) for i, (p, v) in enumerate(self.carried.items())}
        shared = {v: body.input(names.new(v.name if v.node is None else f"shared.{i}"), v.type) for i, v in enumerate(self.shared)}
        own = {vs: body.input(names.new(_common_name(vs) or f"own.{i}"), vs[0].type) for i, vs in enumerate(self.own)}
        inner: dict[Place, Value] = {}

        def operand(values: tuple[Value | None, ...]) -> Value | None:
            if values[0] is None:
                return None
            if values[1] in self.places:
                at, place = self.places[values[1]]
                return inner[place] if at else carried[place]
            return own[values] if values in own else shared[values[0]]  # type: ignore[index]

        with body.tracing():
            for j, nodes in enumerate(zip(*self.groups, strict=True)):
                body.path = starred([n.path for n in nodes]) or self.stem
                operands = tuple(operand(values) for values in zip(*(n.inputs for n in nodes), strict=True))
                for k, v in enumerate(body.emit(nodes[0].op, operands, self._attributes(nodes))):
                    inner[j, k] = v
        body.path = ""
        body.outputs = {str(i): inner[place] for i, place in enumerate([*self.carried, *self.made])}
        return body

    @staticmethod
    def _attributes(nodes: tuple[Node, ...]) -> dict[str, Any]:
        """Those of all iterations: a site is a size over the number of the iteration, so that each draws what it drew before."""
        attrs = nodes[0].attrs
        return {**attrs, "site": attrs["site"] + INDEX * (nodes[1].attrs["site"] - attrs["site"])} if "site" in attrs else attrs


def _common_name(values: tuple[Value, ...]) -> str | None:
    return starred([v.name for v in values]) if all(v.node is None for v in values) else None


class _Names(set):
    """Names that have been given."""

    def new(self, name: str) -> str:
        """That name, or one like it that is free."""
        while name in self or not name:
            name += "'"
        self.add(name)
        return name
