"""The tape that ONNX rules write on: nodes, constants and arithmetic on sizes, each distinct one written once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from ..ir.graph import Node, Value
from ..ir.sizes import Dim, Size
from ..ir.table import INDEX, Sizes, Table
from ..ir.types import NUMPY_DTYPES, Type

DATA_TYPES: dict[str, int] = {
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
    "f32": TensorProto.FLOAT,
    "f64": TensorProto.DOUBLE,
    "i8": TensorProto.INT8,
    "u8": TensorProto.UINT8,
    "i16": TensorProto.INT16,
    "i32": TensorProto.INT32,
    "u32": TensorProto.UINT32,
    "i64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class Tape:
    """ONNX nodes as they are written. A value is its name; calling the tape with an op type and operands writes a node, or finds an equal one.

    `path` is the layer that is being written, `bounds` the least value of named sizes (1 where none is given). What a loop's body computes from
    nothing of its own is written outside of it.
    """

    def __init__(self, opset: int, bounds: Mapping[str, int] | None = None, reserved: Sequence[str] = ()):
        self.opset, self.path = opset, ""
        self.bounds = {"past": 0, **(bounds or {})}
        self.nodes: list[NodeProto] = []
        self._bodies: list[list[NodeProto]] = []  # those of the loops that are being written, the innermost last
        self._depth: dict[str, int] = {}  # of names that stand in a body: how many loops are around them
        self.constants: list[TensorProto] = []
        self.sizes = Sizes(Table("sizes", size_of=self._size_of, minimum=_Length.minimum, maximum=_Length.maximum))
        self._names = dict.fromkeys(reserved, 1)
        self._written: dict[Any, Any] = {}
        self._transposed: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._reshaped: dict[str, tuple[str, tuple[Size, ...]]] = {}

    def __call__(self, kind: str, *operands: str | None, outputs: int = 1, **attrs: Any) -> Any:
        """The name of the result of a node, or a tuple of names; attributes that are None are left out."""
        key = (kind, operands, outputs, tuple(attrs.items()))
        if key not in self._written:
            name = self.unique(f"{self.path}/{kind}" if self.path else kind)
            results = (name, *(f"{name}:{i}" for i in range(1, outputs)))
            used = [x or "" for x in operands]
            while used and not used[-1]:
                used.pop()
            node = helper.make_node(kind, used, results, name, **{k: v for k, v in attrs.items() if v is not None})
            if self.path:
                node.metadata_props.add(key="layer", value=self.path)
            depth = max((self._depth.get(x, 0) for x in used), default=0)
            self._append(node, depth)
            self._written[key] = name if outputs == 1 else results
        return self._written[key]

    def _append(self, node: NodeProto, depth: int) -> None:
        [self.nodes, *self._bodies][depth].append(node)
        self._depth.update(dict.fromkeys(node.output, depth) if depth else {})

    def loop(
        self,
        most: int,
        again: str,
        carried: Sequence[str],
        types: Sequence[Type],
        body: Callable[[str, Sequence[str]], Sequence[str]],
    ) -> list[str]:
        """The names of what a Loop carries at its end; `body(index, carried)` writes an iteration and gives the names of again and what it carries.

        Names of values outside may be read inside.
        """
        depth, sizes, path = len(self._bodies) + 1, self.sizes, self.path
        index, before, *inside = (self.unique(f"loop{depth}.{k}") for k in ("index", "again", *map(str, range(len(carried)))))
        self._depth.update(dict.fromkeys((index, before, *inside), depth))
        self._bodies.append([])
        self.sizes = Sizes(sizes.table)
        self.sizes.carriers.update(sizes.carriers)
        try:
            made = [self._own("Identity", name, depth) for name in body(index, inside)]
            nodes = _live(self._bodies[-1], made)
        finally:
            self._bodies.pop()
            self.sizes, self.path = sizes, path
        plain = [Type("bool", ()), *types]
        inputs = [_typed(n, t) for n, t in zip((index, before, *inside), (Type("i64", ()), *plain), strict=True)]
        graph = helper.make_graph(nodes, self.unique("body"), inputs, [_typed(n, t) for n, t in zip(made, plain, strict=True)])
        name = self.unique(f"{self.path}/Loop" if self.path else "Loop")
        results = [f"{name}:{i}" for i in range(len(carried))]
        node = helper.make_node("Loop", [self.constant(most), again, *carried], results, name, body=graph)
        self._append(node, depth - 1)
        return results

    def _own(self, kind: str, x: str, depth: int) -> str:
        """A node of this body by itself: its result is an output of the body, which can be of no other place and of one name only."""
        name = self.unique(kind)
        self._append(helper.make_node(kind, [x], [name], name), depth)
        return name

    def unique(self, name: str) -> str:
        """`name`, with a number where it is taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return self.unique(f"{name}_{count}") if count else name

    def learn(self, value: Value, name: str) -> None:
        """Remembers which sizes a value shows."""
        self.sizes.learn(value, name)

    def learned(self, node: Node, results: Sequence[str]) -> None:
        """Remembers which sizes the results of a node show."""
        for value, result in zip(node.outputs, results, strict=True):
            self.learn(value, result)

    def constant(self, value: Any, dtype: str = "i64") -> str:
        """An array as an initializer."""
        array = np.asarray(value, NUMPY_DTYPES[dtype])
        key = (dtype, array.shape, array.tobytes())
        if key not in self._written:
            name = self.unique(f"constant.{len(self.constants)}")
            self.constants.append(TensorProto(name=name, data_type=DATA_TYPES[dtype], dims=array.shape, raw_data=key[2]))
            self._written[key] = name
        return self._written[key]

    def length(self, size: Size) -> str:
        """A size as i64[1]."""
        if isinstance(size, int):
            return self.constant([size])
        outer, self.path = self.path, "sizes"
        try:
            return self.sizes[size].name
        finally:
            self.path = outer

    def number(self, size: Size) -> str:
        """A size as i64[]."""
        return self.constant(size) if isinstance(size, int) else self("Squeeze", self.length(size), self.constant([0]))

    def shape(self, sizes: Sequence[Size]) -> str:
        """Sizes as i64[n]."""
        parts: list[str] = []
        plain: list[int] = []
        for d in sizes:
            if isinstance(d, int):
                plain.append(d)
                continue
            parts += [self.constant(plain)] if plain else []
            parts.append(self.length(d))
            plain = []
        parts += [self.constant(plain)] if plain or not parts else []
        return parts[0] if len(parts) == 1 else self("Concat", *parts, axis=0)

    def transpose(self, x: str, perm: tuple[int, ...]) -> str:
        """x with its axes in another order; two that undo each other are none."""
        source, first = self.untransposed(x)
        if first and tuple(first[p] for p in perm) == tuple(range(len(perm))):
            return source
        made = self("Transpose", x, perm=perm)
        self._transposed[made] = (x, perm)
        return made

    def untransposed(self, x: str) -> tuple[str, tuple[int, ...]]:
        """What x is a transpose of, and by which order; x and () where it is none."""
        return self._transposed.get(x, (x, ()))

    def reshape(self, x: str, source: Sequence[Size], shape: Sequence[Size]) -> str:
        """x of sizes `source` in another shape; of several in a row the last one counts."""
        origin, sizes = self._reshaped.get(x, (x, tuple(source)))
        if sizes == tuple(shape):
            return origin
        made = self._reshape(origin, sizes, shape)
        self._reshaped[made] = (origin, sizes)
        return made

    def _reshape(self, x: str, source: Sequence[Size], shape: Sequence[Size]) -> str:
        # through a constant where one can say it: 0 copies a size, -1 infers one
        copied = [0 if isinstance(d, Dim) and i < len(source) and source[i] == d else d for i, d in enumerate(shape)]
        unknown = [i for i, d in enumerate(copied) if isinstance(d, Dim)]
        rest = [d for i, d in enumerate(shape) if i not in unknown]
        if 0 in shape or len(unknown) > 1 or (unknown and not all(map(self._positive, rest))):
            return self("Reshape", x, self.shape(shape), allowzero=1)
        return self("Reshape", x, self.constant([-1 if isinstance(d, Dim) else d for d in copied]))

    def live(self, outputs: Iterable[str]) -> tuple[list[NodeProto], list[TensorProto]]:
        """The nodes and constants that some output needs."""
        nodes = _live(self.nodes, outputs)
        need = {*outputs, *(x for node in every(nodes) for x in node.input)}
        return nodes, [c for c in self.constants if c.name in need]

    def _positive(self, size: Size) -> bool:
        # -1 cannot be inferred beside a size of 0
        return size > 0 if isinstance(size, int) else size.bind({n: self.bounds.get(n, 1) for n in size.names()}) > 0

    def _size_of(self, x: str, axis: int) -> _Length:
        return _Length(self, self("Shape", x, start=axis, end=axis + 1))

    def count(self, index: str) -> None:
        """Remembers in which iteration of the innermost loop this is."""
        self.sizes[INDEX] = self.sizes[INDEX.name] = _Length(self, self("Unsqueeze", index, self.constant([0])))


def every(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes and those in the bodies of loops among them."""
    for node in nodes:
        yield node
        for a in node.attribute:
            yield from every(a.g.node)


def _live(nodes: Sequence[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    need, found = set(outputs), []
    for node in reversed(nodes):
        if not need.isdisjoint(node.output):
            need.update(x for inner in every([node]) for x in inner.input)
            found.append(node)
    return found[::-1]


def _typed(name: str, type: Type) -> ValueInfoProto:
    """A value of a loop's body; its sizes, which may be those of an outer graph, are left to inference."""
    return helper.make_tensor_value_info(name, DATA_TYPES[type.dtype], None if type.rank else ())


class _Length:
    """An i64[1] on a tape, to compute with."""

    __slots__ = ("name", "tape")

    def __init__(self, tape: Tape, name: str):
        self.tape, self.name = tape, name

    def _of(self, kind: str, other: _Length | int) -> _Length:
        return _Length(self.tape, self.tape(kind, self.name, other.name if isinstance(other, _Length) else self.tape.constant([other])))

    def __add__(self, other: _Length | int) -> _Length:
        return self._of("Add", other)

    def __sub__(self, other: _Length | int) -> _Length:
        return self._of("Sub", other)

    def __mul__(self, other: _Length | int) -> _Length:
        return self if other == 1 else self._of("Mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, other: _Length | int) -> _Length:
        # Div rounds towards zero, Mod takes the divisor's sign
        return (self - self._of("Mod", other))._of("Div", other)

    def __rfloordiv__(self, other: int) -> _Length:
        return _Length(self.tape, self.tape.constant([other])) // self

    @staticmethod
    def minimum(a: _Length | int, b: _Length | int) -> _Length:
        """The smaller."""
        return a._of("Min", b) if isinstance(a, _Length) else b._of("Min", a)  # type: ignore[union-attr]

    @staticmethod
    def maximum(a: _Length | int, b: _Length | int) -> _Length:
        """The larger."""
        return a._of("Max", b) if isinstance(a, _Length) else b._of("Max", a)  # type: ignore[union-attr]
