"""A pickle machine that can build tensors and nothing else.

Python's own `pickle` is a program loader: even with `find_class` closed it sets attributes on what it is given (BUILD), and its memo can be made
to fill the memory by ten bytes (LONG_BINPUT). This one has no operation that reaches a Python object other than the plain values it made itself.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ..ir.errors import CheckpointError
from .files import DAMAGED, brief

MAX_PICKLE = 16 << 20  # bytes of opcodes: some 100,000 weights; the weights themselves are not in the pickle
_MAX_INTEGER = 16  # bytes; PyTorch's magic number has 10
_CONVERT = "\n  nothing was executed; ask its publisher for safetensors, or convert it to safetensors where you trust it"


class DType(NamedTuple):
    """A dtype as PyTorch names it."""

    name: str
    itemsize: int


class Storage(NamedTuple):
    """A run of `numel` elements, stored under `key`."""

    dtype: DType
    key: str
    numel: int


class Tensor(NamedTuple):
    """A strided view of a storage, in elements of `dtype`; what is in it has not been checked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any
    dtype: Any
    metadata: Any = None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    return Tensor(storage, offset, size, stride, None)


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None) -> Tensor:
    return Tensor(storage, offset, size, stride, None, metadata)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None) -> Tensor:
    return Tensor(storage, offset, size, stride, dtype, metadata)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Any:
    return data


def _ordered_dict(pairs: Any = None) -> dict[Any, Any]:
    if pairs is None:
        return {}
    result = {_key(k): v for k, v in pairs}
    pairs.clear()  # Python 2 lists its items here; used up, so that a long list cannot be copied again and again
    return result


def _size(sizes: Any) -> Any:
    return sizes


_STORAGES = {
    "DoubleStorage": DType("f64", 8), "FloatStorage": DType("f32", 4), "HalfStorage": DType("f16", 2), "BFloat16Storage": DType("bf16", 2),
    "LongStorage": DType("i64", 8), "IntStorage": DType("i32", 4), "ShortStorage": DType("i16", 2), "CharStorage": DType("i8", 1),
    "ByteStorage": DType("u8", 1), "BoolStorage": DType("bool", 1),
    "ComplexFloatStorage": DType("complex64", 8), "ComplexDoubleStorage": DType("complex128", 16),
}  # fmt: skip
_DTYPES = {
    "float64": DType("f64", 8), "float32": DType("f32", 4), "float16": DType("f16", 2), "bfloat16": DType("bf16", 2),
    "int64": DType("i64", 8), "int32": DType("i32", 4), "int16": DType("i16", 2), "int8": DType("i8", 1),
    "uint32": DType("u32", 4), "uint8": DType("u8", 1), "bool": DType("bool", 1),
    "uint64": DType("uint64", 8), "uint16": DType("uint16", 2), "complex64": DType("complex64", 8), "complex128": DType("complex128", 16),
    "float8_e4m3fn": DType("float8_e4m3fn", 1), "float8_e5m2": DType("float8_e5m2", 1), "float8_e8m0fnu": DType("float8_e8m0fnu", 1),
    "float8_e4m3fnuz": DType("float8_e4m3fnuz", 1), "float8_e5m2fnuz": DType("float8_e5m2fnuz", 1),
}  # fmt: skip
UNTYPED = DType("untyped", 1)
# every name that a pickle may speak, and what it means here: functions may be called, all else is data
GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.UntypedStorage": UNTYPED,
    "torch.storage.UntypedStorage": UNTYPED,
    **{f"torch.{name}": dtype for name, dtype in (_STORAGES | _DTYPES).items()},
}
_FUNCTIONS = tuple(v for v in GLOBALS.values() if callable(v))
_MARK = object()


class Unpickler:
    """Reads one pickle after another from `data`, beginning at `position`; every failure is a CheckpointError."""

    def __init__(self, data: bytes | mmap.mmap, error: Callable[[str, str], CheckpointError]):
        self.data = data
        self.position = 0
        self.end = min(len(data), MAX_PICKLE)
        self.storages: dict[str, Storage] = {}
        self._error = error
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The next pickle's value: numbers, strings, lists, tuples, dicts, and `Tensor`s."""
        self._stack, self._memo = [], {}
        try:
            while (code := self.take(1)[0]) != _STOP:
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise self._error(f"pickle opcode {code:#04x} at byte {self.position - 1} is not one that tensors need", _CONVERT)
                operation(self)
            return self._pop()
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise self._error(f"pickle is malformed at byte {self.position} ({type(error).__name__}: {error})", DAMAGED) from error

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if not 0 <= count <= self.end - self.position:
            if self.end < len(self.data):
                raise self._error(f"pickle is larger than {MAX_PICKLE} bytes, expected tensors and their names only", _CONVERT)
            raise self._error(f"pickle ends at byte {self.end}, expected {brief(count)} bytes more", DAMAGED)
        self.position += count
        return self.data[self.position - count : self.position]

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise IndexError("a mark where a value was expected")
        return value

    def _pop_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise IndexError("no mark where one was expected")

    def _line(self) -> str:
        start = self.position
        end = self.data.find(b"\n", start, min(self.end, start + 1024))
        if end < 0:
            raise ValueError("a name has no end")
        self.position = end + 1
        return self.data[start:end].decode("utf-8")

    def _instance(self) -> None:
        self._find(self._line(), self._line())
        raise self._error(f"pickle opcode 'i' at byte {self.position} is not one that tensors need", _CONVERT)

    def _find(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else brief((module, name))
        if full not in GLOBALS:
            raise self._error(f"asks to run {brief(full)[1:-1]}, which is refused: weights need no code", _CONVERT)
        return GLOBALS[full]

    def _reduce(self) -> Any:
        arguments, function = self._pop(), self._pop()
        if not any(function is f for f in _FUNCTIONS) or type(arguments) is not tuple:
            raise self._error(f"asks to call {brief(function)}, which is refused: weights need no code", _CONVERT)
        return function(*arguments)

    def _persistent(self) -> Storage:
        """A storage, the only thing that PyTorch keeps outside the pickle."""
        match self._pop():
            case ("storage", DType() as dtype, str(key), str(), int(numel), *view) if numel >= 0 and view in ([], [None]):
                storage = Storage(dtype, key, numel)
            case other:
                raise self._error(f"refers to {brief(other)}, expected ('storage', type, key, place, size)", DAMAGED)
        known = self.storages.setdefault(key, storage)
        if known.numel * known.dtype.itemsize != numel * dtype.itemsize:
            raise self._error(
                f"storage {brief(key)} has {numel} elements of {dtype.name} in one place, {known.numel} of {known.dtype.name} in another", DAMAGED
            )
        return storage

    def _build(self) -> None:
        """PyTorch sets `_metadata` on a state dict, which says nothing about weights: checked to be that, and dropped."""
        state = self._pop()
        if type(self._stack[-1]) is not dict or type(state) is not dict:
            raise self._error(f"asks to set the state of {brief(self._stack[-1])}, which is refused: weights need no code", _CONVERT)

    def _extend(self, kind: type, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not kind:
            raise TypeError(f"{brief(target)} where a {kind.__name__} was expected")
        if kind is dict:
            target.update(_pairs(values))
        else:
            target.extend(values)

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def _integer(self, size: int) -> int:
        if size > _MAX_INTEGER:
            raise ValueError(f"an integer of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def _gather(self, count: int) -> tuple[Any, ...]:
        return tuple(self._pop() for _ in range(count))[::-1]

    def _memoize(self, index: int) -> None:
        if self._stack[-1] is _MARK:
            raise IndexError("a mark where a value was expected")
        self._memo[index] = self._stack[-1]


def _key(value: Any) -> Any:
    # a nested tuple as key could overflow the C stack in hash()
    if not isinstance(value, str | int | float | bytes | None):
        raise TypeError(f"{brief(value)} as a key")
    return value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return {_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}


def _push(make: Callable[[Unpickler], Any]) -> Callable[[Unpickler], None]:
    return lambda u: u._stack.append(make(u))


_STOP = ord(".")
# the opcodes of protocols 2 to 5 that plain values, storages and tensors need: https://docs.python.org/3/library/pickletools.html
_OPERATIONS: dict[int, Callable[[Unpickler], Any]] = {
    0x80: lambda u: u.take(1),  # PROTO
    0x95: lambda u: u.take(8),  # FRAME
    ord("N"): _push(lambda u: None),
    0x88: _push(lambda u: True),
    0x89: _push(lambda u: False),
    ord("K"): _push(lambda u: u._number("<B")),
    ord("M"): _push(lambda u: u._number("<H")),
    ord("J"): _push(lambda u: u._number("<i")),
    0x8A: _push(lambda u: u._integer(u._number("<B"))),
    0x8B: _push(lambda u: u._integer(u._number("<I"))),
    ord("G"): _push(lambda u: u._number(">d")),
    ord("X"): _push(lambda u: u.take(u._number("<I")).decode("utf-8", "surrogatepass")),
    0x8C: _push(lambda u: u.take(u._number("<B")).decode("utf-8", "surrogatepass")),
    0x8D: _push(lambda u: u.take(u._number("<Q")).decode("utf-8", "surrogatepass")),
    ord("U"): _push(lambda u: u.take(u._number("<B")).decode("utf-8")),  # str of Python 2
    ord("T"): _push(lambda u: u.take(u._number("<I")).decode("utf-8")),
    ord("C"): _push(lambda u: u.take(u._number("<B"))),
    ord("B"): _push(lambda u: u.take(u._number("<I"))),
    0x8E: _push(lambda u: u.take(u._number("<Q"))),
    ord("]"): _push(lambda u: []),
    ord("}"): _push(lambda u: {}),
    ord("("): _push(lambda u: _MARK),
    ord(")"): _push(lambda u: ()),
    ord("t"): _push(lambda u: tuple(u._pop_mark())),
    ord("l"): _push(lambda u: u._pop_mark()),
    ord("d"): _push(lambda u: _pairs(u._pop_mark())),
    0x85: _push(lambda u: u._gather(1)),
    0x86: _push(lambda u: u._gather(2)),
    0x87: _push(lambda u: u._gather(3)),
    ord("a"): lambda u: u._extend(list, [u._pop()]),
    ord("e"): lambda u: u._extend(list, u._pop_mark()),
    ord("s"): lambda u: u._extend(dict, list(u._gather(2))),
    ord("u"): lambda u: u._extend(dict, u._pop_mark()),
    ord("0"): lambda u: u._pop(),
    ord("1"): lambda u: u._pop_mark(),
    ord("2"): lambda u: u._stack.append(u._stack[-1]),
    ord("q"): lambda u: u._memoize(u._number("<B")),
    ord("r"): lambda u: u._memoize(u._number("<I")),
    0x94: lambda u: u._memoize(len(u._memo)),
    ord("h"): _push(lambda u: u._memo[u._number("<B")]),
    ord("j"): _push(lambda u: u._memo[u._number("<I")]),
    ord("c"): _push(lambda u: u._find(u._line(), u._line())),
    ord("i"): lambda u: u._instance(),  # never allowed, but its refusal can name what it asks for
    0x93: _push(lambda u: u._find(*u._gather(2))),
    ord("Q"): _push(lambda u: u._persistent()),
    ord("R"): _push(lambda u: u._reduce()),
    ord("b"): lambda u: u._build(),
}
