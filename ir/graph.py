"""Values, nodes and graphs: what a trace builds, a pass rewrites and a table runs."""

from __future__ import annotations

import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import InterlinguaError, ShapeError
from .types import Type

if TYPE_CHECKING:
    from .op import Op


class Value:
    """A tensor in a graph: a type, a name, and the node that makes it (None for inputs and parameters)."""

    __slots__ = ("name", "node", "type")

    def __init__(self, type: Type, name: str = "", node: Node | None = None):
        self.type, self.name, self.node = type, name, node

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes of its axes."""
        return self.type.shape

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.type.shape)

    def __bool__(self) -> bool:
        raise InterlinguaError(f"{self!r} has no truth value while a graph is traced; use ops.where, or decide on a static fact")

    def __iter__(self) -> Iterator[Any]:
        raise InterlinguaError(f"{self!r} cannot be iterated while a graph is traced; use ops.split")

    def __repr__(self) -> str:
        return f"{self.name}: {self.type}"

    if TYPE_CHECKING:  # `ir/ops` binds the operators, which are ops

        def _operator(self, other: Any) -> Value: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = _operator
        __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __and__ = __rand__ = __or__ = __ror__ = __xor__ = _operator
        __lt__ = __le__ = __gt__ = __ge__ = __getitem__ = _operator

        def __neg__(self) -> Value: ...

        def __invert__(self) -> Value: ...


class Param(Value):
    """A leaf of a model. `name` is its place in the layer tree, `key` its name in the checkpoint; both are set before tracing.

    One that stands in several places (a tied weight) has the keys of the others in `tied`, under which a checkpoint may hold it too.
    `init` names how a new one is drawn ("fan_in", "normal", "zeros" or "ones"), or is the array itself: a buffer that a checkpoint need not
    hold. Integer and statistic buffers are not trainable.
    """

    __slots__ = ("init", "key", "tied", "trainable")

    def __init__(self, *shape: int, dtype: str = "f32", init: Any = "fan_in", trainable: bool = True):
        super().__init__(Type(dtype, shape))
        self.key, self.init, self.trainable = "", init, trainable and dtype in ("f32", "f16", "bf16", "f64")
        self.tied: tuple[str, ...] = ()


class Node:
    """One application of an op."""

    __slots__ = ("attrs", "inputs", "op", "outputs", "path")

    def __init__(self, op: Op, inputs: tuple[Value | None, ...], attrs: dict[str, Any], path: str):
        self.op, self.inputs, self.attrs, self.path = op, inputs, attrs, path
        self.outputs: tuple[Value, ...] = ()

    @property
    def type(self) -> Type:
        """The type of the first result."""
        return self.outputs[0].type

    def types(self) -> list[Type | None]:
        """The operands' types."""
        return [None if v is None else v.type for v in self.inputs]


class _Current(threading.local):
    graph: Graph | None = None


_current = _Current()


def current() -> Graph:
    """The graph being traced; an error outside of a trace."""
    if _current.graph is None:
        raise InterlinguaError("an op was called outside of a trace; ops build graphs: call them inside Layer.forward or `with Graph():`")
    return _current.graph


class Graph:
    """Nodes in order, named inputs and named outputs.

    Equal nodes are merged as they are emitted. `taps` remembers what each layer returned, `bounds` the least value of a named size, `limits`
    the most of a size and why, `ignored` the names of inputs that may be given and that nothing reads, `training` whether dropout and batch
    statistics are wanted, `cache` how keys and values of earlier calls are kept while tracing.
    """

    def __init__(self, like: Graph | None = None):
        self.nodes: list[Node] = []
        self.inputs: list[Value] = list(like.inputs) if like else []
        self.outputs: dict[str, Value] = {}
        self.taps: dict[str, Value] = {}
        self.bounds: dict[str, int] = dict(like.bounds) if like else {}
        self.limits: dict[Any, tuple[int, str]] = dict(like.limits) if like else {}
        self.ignored: frozenset[str] = like.ignored if like else frozenset()
        self.training = like.training if like else False
        self.cache: Any = like.cache if like else None
        self.collected: dict[str, list[Value]] = {}
        self.path = ""
        self.sites = 0
        self._seen: dict[Any, Node] = {}

    @contextmanager
    def tracing(self) -> Iterator[Graph]:
        """Makes this the graph that ops write to."""
        outer, _current.graph = _current.graph, self
        try:
            yield self
        finally:
            _current.graph = outer

    def input(self, name: str, type: Type | str) -> Value:
        """A new named input; `f32[batch samples>=400]` gives a size its least value."""
        if isinstance(type, str):
            for size, least in re.findall(r"(\w+)>=(\d+)", type):
                self.bounds[size] = int(least)
            type = Type.parse(re.sub(r">=\d+", "", type))
        self.inputs.append(Value(type, name))
        return self.inputs[-1]

    def limit(self, size: Any, most: int, why: str) -> None:
        """Declares that a size is at most that: checked now where it is a number, and else when inputs come."""
        if not isinstance(size, int):
            self.limits.setdefault(size, (most, why))
        elif size > most:
            raise ShapeError(f"a size is {size}, expected at most {most}: {why}\n  in: {self.path}")

    def random_key(self) -> Value:
        """The input that randomness is drawn from, declared on first use."""
        found = next((v for v in self.inputs if v.name == "random_key"), None)
        return self.input("random_key", Type("u32", (2,))) if found is None else found

    def random_site(self) -> int:
        """A number that no other draw of this graph has."""
        self.sites += 1
        return self.sites - 1

    def emit(self, op: Op, inputs: tuple[Value | None, ...], attrs: dict[str, Any]) -> tuple[Value, ...]:
        """The results of `op`, from an equal node where there is one; ShapeError with operands and place where types do not fit."""
        key = (op, inputs, tuple(attrs.items()))
        if (seen := self._seen.get(key)) is not None:
            return seen.outputs
        node = Node(op, inputs, attrs, self.path)
        try:
            types = op.infer(node.types(), attrs)
        except ShapeError as e:
            raise type(e)(describe(op, e, inputs, self.path)) from None
        name = f"%{len(self.nodes)}"
        node.outputs = tuple(Value(t, f"{name}.{i}" if i else name, node) for i, t in enumerate(types))
        self.nodes.append(node)
        self._seen[key] = node
        return node.outputs

    def live(self) -> list[Node]:
        """The nodes that some output needs, in order."""
        need: set[Value | None] = set(self.outputs.values())
        found = []
        for node in reversed(self.nodes):
            if not need.isdisjoint(node.outputs):
                need.update(node.inputs)
                found.append(node)
        return found[::-1]

    def readers(self) -> Mapping[Value, list[Node | None]]:
        """The live nodes that read each value, once for each operand that it is, and None for each output of the graph that it is."""
        found: dict[Value, list[Node | None]] = defaultdict(list)
        for node in self.live():
            for v in node.inputs:
                if v is not None:
                    found[v].append(node)
        for v in self.outputs.values():
            found[v].append(None)
        return found

    def leaves(self) -> list[Value]:
        """Inputs and parameters that some output needs, in order of first use."""
        used = [v for n in self.live() for v in n.inputs if v is not None and v.node is None]
        return list(dict.fromkeys(used + [v for v in self.outputs.values() if v.node is None]))

    def params(self) -> list[Param]:
        """The parameters that some output needs, in order of first use."""
        return [v for v in self.leaves() if isinstance(v, Param)]

    def pruned(self) -> Graph:
        """This graph without inputs that nobody reads and nodes that nobody needs."""
        used = set(self.leaves())
        graph = self.rebuild(lambda node, operands: None)
        graph.inputs = [v for v in self.inputs if v in used]
        return graph

    def rebuild(self, rule: Callable[[Node, tuple[Value | None, ...]], Any]) -> Graph:
        """This graph with each live node replaced by `rule(node, operands)`: a Value, a tuple of them, or None to keep it."""
        graph = Graph(like=self)
        new: dict[Any, Any] = {}
        with graph.tracing():
            for node in self.live():
                graph.path = node.path
                operands = tuple(new.get(v, v) for v in node.inputs)
                made = rule(node, operands)
                made = graph.emit(node.op, operands, node.attrs) if made is None else made if isinstance(made, tuple) else (made,)
                new.update(zip(node.outputs, made, strict=True))
        graph.path = ""
        graph.outputs = {k: new.get(v, v) for k, v in self.outputs.items()}
        graph.taps = {k: new[v] for k, v in self.taps.items() if v in new}
        return graph

    def with_outputs(self, outputs: dict[str, Value]) -> Graph:
        """The same nodes with other outputs, dead code removed."""
        graph = Graph(like=self)
        graph.nodes, graph.outputs, graph.taps = self.nodes, dict(outputs), self.taps
        return graph.rebuild(lambda node, operands: None)

    def __str__(self) -> str:
        from .text import print_graph

        return print_graph(self)


def describe(op: Op, error: Exception, inputs: Iterable[Value | None], path: str) -> str:
    """The text of a type error: what is wrong, the operands, the layer and the line of model code."""
    names = list(op.operands)
    rows = [f"  {names[min(i, len(names) - 1)]}: {v.type}  {v.name}" for i, v in enumerate(inputs) if v is not None]
    place = " ".join(filter(None, [path, _caller()]))
    return "\n".join([f"{op.name}: {error}", *rows, *([f"  in: {place}"] if place else [])])


def _caller() -> str:
    """The innermost frame outside of `ir/`, as `(models/bert.py:41)`."""
    own = __file__.replace("\\", "/").rsplit("/", 1)[0]
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if not file.startswith(own):
            return f"({'/'.join(file.split('/')[-2:])}:{frame.f_lineno})"
        frame = frame.f_back
    return ""
