"""The tape that ONNX rules write on: nodes, constants and arithmetic on sizes, each distinct one written once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ..ir.graph import Value
from ..ir.sizes import Dim, Size
from ..ir.table import Sizes, Table
from ..ir.types import NUMPY_DTYPES

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

    `path` is the layer that is being written, `bounds` the least value of named sizes (1 where none is given).
    """

    def __init__(self, opset: int, bounds: Mapping[str, int] | None = None, reserved: Sequence[str] = ()):
        self.opset, self.path = opset, ""
        self.bounds = {"past": 0, **(bounds or {})}
        self.nodes: list[NodeProto] = []
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
            self.nodes.append(node)
            self._written[key] = name if outputs == 1 else results
        return self._written[key]

    def unique(self, name: str) -> str:
        """`name`, with a number where it is taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return self.unique(f"{name}_{count}") if count else name

    def learn(self, value: Value, name: str) -> None:
        """Remembers which sizes a value shows."""
        self.sizes.learn(value, name)

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
        need, nodes = set(outputs), []
        for node in reversed(self.nodes):
            if not need.isdisjoint(node.output):
                need.update(node.input)
                nodes.append(node)
        return nodes[::-1], [c for c in self.constants if c.name in need]

    def _positive(self, size: Size) -> bool:
        # -1 cannot be inferred beside a size of 0
        return size > 0 if isinstance(size, int) else size.bind({n: self.bounds.get(n, 1) for n in size.names()}) > 0

    def _size_of(self, x: str, axis: int) -> _Length:
        return _Length(self, self("Shape", x, start=axis, end=axis + 1))


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
