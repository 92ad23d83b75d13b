"""One loop, many tables: a table maps ops to what a target does for them; `lower` makes a graph fit a table; `run` is the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from .errors import InterlinguaError, TargetError
from .graph import Graph, Node, Value
from .op import OPS, Op
from .sizes import Dim, symbol

INDEX = symbol("_iteration")  # in the attributes of a loop's body: which iteration this is, from 0


def shape_of(x: Any, axis: int) -> Any:
    """The size of an axis, for arrays that say it themselves."""
    return x.shape[axis]


class Table:
    """The rules of one target.

    A rule takes operands by place and attributes by name. Rules declared with `node=True` get the node first, for static facts; with
    `when`, a rule serves only the nodes for which it holds, and others are decomposed. `size_of` reads a size off a value; None leaves
    sizes in attributes symbolic.
    """

    def __init__(
        self,
        name: str,
        rules: Mapping[Op, Callable[..., Any]] | None = None,
        *,
        size_of: Callable | None = shape_of,
        minimum: Callable = min,
        maximum: Callable = max,
    ):
        self.name, self.rules, self.size_of, self.minimum, self.maximum = name, dict(rules or {}), size_of, minimum, maximum
        self.wants_node: set[Op] = set()
        self.domain: dict[Op, Callable[[Node], bool]] = {}

    def native(self, *ops: Op, node: bool = False, when: Callable[[Node], bool] | None = None) -> Callable[[Callable], Callable]:
        """Declares a rule for ops (used as a decorator)."""

        def declare(rule: Callable) -> Callable:
            for op in ops:
                self.rules[op] = rule
                if node:
                    self.wants_node.add(op)
                if when:
                    self.domain[op] = when
            return rule

        return declare

    def covers(self, node: Node) -> bool:
        """Whether a rule serves this node."""
        return node.op in self.rules and (node.op not in self.domain or self.domain[node.op](node))

    def apply(self, node: Node, operands: Iterable[Any], attrs: Mapping[str, Any]) -> Any:
        """The results of one node."""
        rule = self.rules[node.op]
        return rule(node, *operands, **attrs) if node.op in self.wants_node else rule(*operands, **attrs)


def lower(graph: Graph, table: Table) -> Graph:
    """`graph` in ops that `table` covers: what it lacks is decomposed, until nothing is; TargetError names what cannot be."""
    for _ in range(len(OPS)):  # no chain of decompositions is longer
        foreign = [n for n in graph.live() if not table.covers(n)]
        if not foreign:
            return with_bodies(graph, lambda body: lower(body, table))
        if stuck := [n for n in foreign if n.op.decomposition is None]:
            rows = "".join(f"\n  {n.op.name} in {n.path or 'the model'}: {', '.join(str(t) for t in n.types())}" for n in stuck[:5])
            raise TargetError(
                f"{table.name} cannot express {', '.join(sorted({n.op.name for n in stuck}))}{rows}\n"
                "  choose another target, or leave out the outputs that need it (outputs=[...])"
            )
        graph = graph.rebuild(lambda n, xs: None if table.covers(n) else n.op.decomposition(*xs, **n.attrs))  # type: ignore[misc]
    names = ", ".join(sorted({n.op.name for n in graph.live() if not table.covers(n)}))
    raise InterlinguaError(f"{table.name}: decomposing {names} never ends, expected a decomposition into simpler ops")


def with_bodies(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """`graph` with the bodies of its loops changed."""
    inner = {n: {k: change(a) for k, a in n.attrs.items() if isinstance(a, Graph)} for n in graph.live()}
    return graph.rebuild(lambda n, xs: n.op(*xs, **{**n.attrs, **inner[n]}) if inner[n] else None) if any(inner.values()) else graph


class Sizes(dict):
    """Values of symbolic sizes, read from whichever value carries them and computed only where none does."""

    def __init__(self, table: Table):
        self.table = table
        self.carriers: dict[Dim, tuple[Any, int]] = {}

    def learn(self, value: Value, x: Any) -> None:
        """Remembers the sizes that a value shows."""
        for axis, d in enumerate(value.shape):
            if isinstance(d, Dim) and d not in self.carriers:
                self.carriers[d] = (x, axis)

    def __missing__(self, key: Any) -> Any:
        d = symbol(key) if isinstance(key, str) else key
        if d in self.carriers:
            found = self.table.size_of(*self.carriers[d])  # type: ignore[misc]
        elif d.name:
            raise InterlinguaError(f"size {d} is carried by no value of the graph")
        else:
            found = d.bind(self, self.table.minimum, self.table.maximum)
        self[key] = found
        return found

    def bind(self, x: Any) -> Any:
        """`x` with every size in it replaced by its value, and a graph by a function of its inputs and of `index`, the iteration."""
        if isinstance(x, Dim):
            return self[x]
        if isinstance(x, Graph):
            return partial(self._run_body, x)
        return tuple(map(self.bind, x)) if isinstance(x, tuple) else x

    def _run_body(self, body: Graph, *operands: Any, index: Any) -> tuple[Any, ...]:
        inner = Sizes(self.table)
        inner.carriers.update(self.carriers)
        inner.update({INDEX: index, INDEX.name: index})
        return tuple(run(body, self.table, dict(zip(body.inputs, operands, strict=True)), sizes=inner).values())


def last_uses(nodes: list[Node], keep: Iterable[Value]) -> dict[int, list[Value]]:
    """For each node, by its place, the values that nobody reads after it."""
    keep, last = set(keep), {}
    for i, node in enumerate(nodes):
        for v in (*node.inputs, *node.outputs):
            if v is not None and v.node is not None:
                last[v] = i
    dead: dict[int, list[Value]] = {}
    for v, i in last.items():
        if v not in keep:
            dead.setdefault(i, []).append(v)
    return dead


def run(
    graph: Graph,
    table: Table,
    feed: Mapping[Value, Any],
    *,
    observe: Callable[[Node, tuple[Any, ...]], None] | None = None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """The outputs of `graph` by the rules of `table`; `feed` gives inputs and parameters and is asked for each when it is read.

    A value is dropped after its last use, so that memory holds what is still needed and no more. `sizes` are those known beforehand.
    """
    sizes = Sizes(table) if sizes is None else sizes
    for v in graph.inputs:
        if v in feed:
            sizes.learn(v, feed[v])
    env: dict[Value, Any] = {}
    nodes = graph.live()
    dead = last_uses(nodes, graph.outputs.values())
    for i, node in enumerate(nodes):
        operands = [None if v is None else env[v] if v in env else feed[v] for v in node.inputs]
        attrs = node.attrs if table.size_of is None else {k: sizes.bind(a) for k, a in node.attrs.items()}
        made = table.apply(node, operands, attrs)
        results = tuple(made[j] for j in range(len(node.outputs))) if len(node.outputs) > 1 else (made,)
        for v, x in zip(node.outputs, results, strict=True):
            env[v] = x
            sizes.learn(v, x)
        if observe:
            observe(node, results)
        for v in dead.get(i, ()):
            del env[v]
    return {k: env[v] if v in env else feed[v] for k, v in graph.outputs.items()}
