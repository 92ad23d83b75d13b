"""One table of op applications: what every table of rules, every pass and every exporter is tried on.

An operand is written as a type, `f32[b s 4]`, in which names stand for the sizes of `SIZES`: the concrete graph has the numbers, the symbolic
one the names. No two axes of an operand have one size, so that a confusion of axes shows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from interlingua.ir import ops
from interlingua.ir.graph import Graph
from interlingua.ir.op import Op
from interlingua.ir.sizes import Dim, Size, bind, symbol
from interlingua.ir.table import INDEX
from interlingua.ir.types import NUMPY_DTYPES, Type

SIZES = {"b": 2, "s": 3, "t": 7, "h": 9, "w": 8}
b, s, t, h, w = map(symbol, SIZES)


@dataclass(frozen=True)
class Sample:
    """An op on operands (None where an optional one is left out).

    `gradient` says whether results are differentiable in all float operands. `types` and `symbolic_attrs` are the symbolic form, `names` the
    results; `random` marks results that depend on how a target draws random numbers.
    """

    op: Op
    operands: tuple[np.ndarray | None, ...]
    attrs: dict[str, Any]
    id: str
    gradient: bool
    types: tuple[Type | None, ...] = ()
    symbolic_attrs: dict[str, Any] | None = None
    random: bool = False

    def inputs(self, symbolic: bool = False) -> dict[str, np.ndarray]:
        """Arrays by input name for `sample_graph(self, symbolic)`."""
        arrays = {f"x{i}": x for i, x in enumerate(self.operands) if x is not None}
        names = sorted(_uncarried(self)) if symbolic else []
        return arrays | ({"carrier": np.zeros([SIZES[n] for n in names], np.float32)} if names else {})

    def __repr__(self) -> str:
        return self.id


def sample_graph(sample: Sample, symbolic: bool = False) -> Graph:
    """The sample as a graph with inputs x0, x1, ... (by place of the operand) and outputs y0, y1, ...

    With `symbolic`, axes that can be are named sizes; a leaf op whose attributes need a size gets an input `carrier` that shows it.
    """
    graph = Graph()
    with graph.tracing():
        types = sample.types if symbolic else [None if x is None else Type.of(x) for x in sample.operands]
        values = [None if t is None else graph.input(f"x{i}", t) for i, t in enumerate(types)]
        if symbolic and (names := sorted(_uncarried(sample))):
            graph.input("carrier", Type("f32", tuple(map(symbol, names))))
        result = sample.op(*values, **((sample.symbolic_attrs if symbolic else None) or sample.attrs))
    graph.outputs = {f"y{i}": v for i, v in enumerate(result if isinstance(result, tuple) else (result,))}
    return graph


def _uncarried(sample: Sample) -> set[str]:
    carried = {d.name for t in sample.types if t is not None for d in t.shape if isinstance(d, Dim)}
    return _names(tuple((sample.symbolic_attrs or {}).values())) - carried


def _names(x: Any) -> set[str]:
    if isinstance(x, tuple):
        return set().union(*map(_names, x))
    return x.names() if isinstance(x, Dim) else set()


# ---- operands -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A type and how its numbers are drawn."""

    text: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Any]


def between(text: str, low: float, high: float) -> Operand:
    """Numbers drawn evenly; integers leave out `high`."""
    kind = np.dtype(NUMPY_DTYPES[Type.parse(text).dtype]).kind
    return Operand(text, lambda rng, shape: rng.integers(low, high, shape) if kind in "iu" else rng.uniform(low, high, shape))


def positive(text: str) -> Operand:
    """Numbers far enough from zero to divide by."""
    return between(text, 0.5, 2.0)


def given(text: str, values: Any) -> Operand:
    """Just these numbers."""
    return Operand(text, lambda rng, shape: np.broadcast_to(np.asarray(values), shape))


def permuted(text: str) -> Operand:
    """Indices that do not repeat along the last axis, out of twice as many."""
    return Operand(text, lambda rng, shape: np.argsort(rng.random((*shape[:-1], 2 * shape[-1])), -1)[..., : shape[-1]])


def _usual(text: str) -> Operand:
    kind = np.dtype(NUMPY_DTYPES[Type.parse(text).dtype]).kind
    if kind == "b":
        return Operand(text, lambda rng, shape: rng.random(shape) < 0.6)
    return between(text, 0 if kind == "u" else -9, 10) if kind in "iu" else Operand(text, lambda rng, shape: rng.standard_normal(shape))


SAMPLES: list[Sample] = []
RANDOM_SAMPLES: list[Sample] = []
_FLAT = {"floor", "ceil", "round", "sign"}


def add(op: Op, *operands: str | Operand | None, note: str = "", gradient: bool | None = None, random: bool = False, **attrs: Any) -> None:
    """One row of the table."""
    rows = RANDOM_SAMPLES if random else SAMPLES
    count = sum(r.op is op for r in rows)
    id = f"{op.name}-{note or count}"
    assert id not in {r.id for r in rows}, id
    rng = np.random.default_rng(zlib.crc32(id.encode()))
    drawn = [_usual(x) if isinstance(x, str) else x for x in operands]
    types = tuple(None if x is None else Type.parse(x.text) for x in drawn)
    arrays = []
    for x, type in zip(drawn, types, strict=True):
        arrays.append(None if x is None else np.asarray(x.draw(rng, bind(type.shape, SIZES)), NUMPY_DTYPES[type.dtype]))
    floats = any(x is not None and x.dtype.kind == "f" for x in arrays)
    concrete = {k: bind(v, SIZES) for k, v in attrs.items()}
    if gradient is None:
        gradient = floats and op.name not in _FLAT and _any_float(op, arrays, concrete)
    rows.append(Sample(op, tuple(arrays), concrete, id, gradient, types, attrs, random))


def _any_float(op: Op, arrays: list[np.ndarray | None], attrs: dict[str, Any]) -> bool:
    """Whether some result is of a float dtype."""
    given = op.parameters.bind(*[None] * len(arrays), **attrs)
    given.apply_defaults()
    types = [None if x is None else Type.of(x) for x in arrays]
    return any(t.dtype == "f32" for t in op.infer(types + [None] * (len(given.args) - len(types)), dict(given.kwargs)))


# ---- elementwise --------------------------------------------------------------------------------

for _op in (ops.exp, ops.tanh, ops.sin, ops.cos, ops.erf, ops.relu, ops.sigmoid, ops.silu, ops.gelu, ops.softplus, ops.leaky_relu, ops.elu):
    add(_op, "f32[b s 4]")
for _op in (ops.sigmoid, ops.softplus, ops.silu, ops.gelu, ops.tanh, ops.erf, ops.elu):
    add(_op, given("f32[9]", [-90.0, -30.0, -5.5, -1.0, -1e-3, 1e-3, 4.0, 6.5, 80.0]), note="wide")
for _op in (ops.log, ops.sqrt):
    add(_op, positive("f32[b s 4]"))
for _op in (ops.floor, ops.ceil, ops.round_):
    add(_op, between("f32[b s 4]", -4, 4))
    add(_op, given("f32[7]", [-2.5, -1.5, -0.5, 0.0, 0.5, 1.5, 2.5]), note="halves")
for _op in (ops.negative, ops.absolute, ops.sign):
    add(_op, "f32[b s 4]")
    add(_op, given("i64[b 3]", [[-3, 0, 5], [7, -1, 2]]), note="int")
    add(_op, "i32[b s]", note="i32")
add(ops.gelu, "f32[b s 4]", note="tanh", approximate=True)
add(ops.leaky_relu, "f32[b s 4]", note="slope", slope=0.2)
add(ops.elu, "f32[b s 4]", note="alpha", alpha=0.7)
add(ops.not_, "bool[b s]")
for _op in (ops.add, ops.sub, ops.mul, ops.maximum, ops.minimum):
    add(_op, "f32[b s 4]", "f32[b s 4]")
    add(_op, "f32[b 1 4]", "f32[s 1]", note="broadcast")
    add(_op, "f32[b s]", "f32[]", note="scalar")
    add(_op, "i64[b s]", "i64[s]", note="int")
    add(_op, "i32[b s]", "i32[b s]", note="i32")
add(ops.div, "f32[b s 4]", positive("f32[s 4]"))
add(ops.power, positive("f32[b s 4]"), "f32[4]")
add(ops.power, positive("f32[b s]"), "f32[]", note="scalar")
for _op in (ops.floor_divide, ops.remainder):
    add(_op, "i64[b s 4]", given("i64[4]", [1, 2, 3, 7]))
    add(_op, given("i64[4]", [-7, 7, -8, 6]), given("i64[4]", [3, -3, 2, -4]), note="signs")
    add(_op, "i32[b s]", given("i32[]", 4), note="i32")
for _op in (ops.equal, ops.less, ops.less_equal):
    add(_op, "f32[b s 4]", "f32[4]")
    add(_op, between("i64[b s 4]", 0, 3), between("i64[s 4]", 0, 3), note="int")
add(ops.equal, "bool[b s]", "bool[s]", note="bool")
for _op in (ops.and_, ops.or_, ops.xor):
    add(_op, "bool[b s 4]", "bool[s 1]")
add(ops.where, "bool[b s 4]", "f32[b s 4]", "f32[b s 4]")
add(ops.where, "bool[s 1]", "f32[]", "f32[b 1 4]", note="broadcast")
add(ops.where, "bool[b s]", "i64[b s]", "i64[s]", note="int")
add(ops.where, "bool[b s]", "bool[b s]", "bool[s]", note="bool")
for _pair in ("f32-i64", "f32-i32", "f32-f16", "f32-f32", "i64-f32", "i64-i32", "bool-f32", "bool-i64", "u8-f32", "i32-i64"):
    _from, _to = _pair.split("-")
    add(ops.cast, between("f32[b s 4]", -9, 9) if _from == "f32" else f"{_from}[b s 4]", note=_pair, dtype=_to, gradient=_from == _to)
add(ops.cast, given("f32[5]", [-2.0, -0.25, 0.0, 0.25, 3.0]), note="f32-bool", dtype="bool")
add(ops.cast, given("i64[b 3]", [[-2, 0, 5], [0, 1, 0]]), note="i64-bool", dtype="bool")

# ---- leaves -------------------------------------------------------------------------------------

for _value, _dtype in [(1.5, "f32"), (-3, "i64"), (7, "i32"), (True, "bool"), (0.25, "f16"), (float("-inf"), "f32")]:
    add(ops.constant, value=_value, dtype=_dtype)
add(ops.literal, value=ops.Literal(np.arange(6, dtype=np.float32).reshape(2, 3) / 7), dtype="f32")
add(ops.literal, value=ops.Literal(np.array([[3, -1, 2]])), dtype="i64")
add(ops.literal, value=ops.Literal(np.array([True, False, True])), dtype="bool")
add(ops.literal, value=ops.Literal(np.zeros((0, 3), np.float32)), dtype="f32", note="empty")
add(ops.size, value=b * s)
add(ops.size, value=(h - 1) // 2 + b, dtype="f32", note="f32")
add(ops.size, value=5, dtype="i32", note="i32")
add(ops.iota, size=t)
add(ops.iota, size=4)
add(ops.iota, size=b * s + 1, note="expression")
KEY = given("u32[2]", [3, 5])
add(ops.dropout, "f32[b s 4]", KEY, note="nothing", rate=0.0, site=0)
add(ops.random_uniform, KEY, shape=(b, s, 4000), site=0, random=True)
add(ops.random_uniform, KEY, shape=(b, s, 4000), site=1, random=True)
add(ops.dropout, given("f32[b s 4000]", 1.0), KEY, rate=0.25, site=2, random=True, gradient=True)

# ---- shape --------------------------------------------------------------------------------------

add(ops.reshape, "f32[b s 4]", shape=(b * s, 4))
add(ops.reshape, "f32[b s 12]", shape=(b, s, 3, 4), note="split")
add(ops.reshape, "f32[b s]", shape=(1, b, 1, s, 1), note="ones")
add(ops.reshape, "i64[b s 4]", shape=(4, s, b), note="int")
add(ops.transpose, "f32[b s 4]", perm=(1, 0, 2))
add(ops.transpose, "f32[b s 4 5]", perm=(0, 2, 3, 1), note="4d")
add(ops.transpose, "bool[b s]", perm=(1, 0), note="bool")
add(ops.broadcast_to, "f32[s 1]", shape=(b, s, 4))
add(ops.broadcast_to, "f32[]", shape=(b, s), note="scalar")
add(ops.broadcast_to, "i64[b s]", shape=(b, s), note="same")
add(ops.concat, "f32[b s 4]", "f32[b s 4]", axis=0)
add(ops.concat, "f32[b s 4]", "f32[b t 4]", "f32[b 1 4]", axis=1, note="three")
add(ops.concat, "i64[b s]", "i64[b 2]", axis=1, note="int")
add(ops.concat, "f32[b s]", axis=1, note="one")
add(ops.concat, "bool[b s]", "bool[b t]", axis=1, note="bool")
add(ops.split, "f32[b s 7]", axis=2, sizes=(2, 4, 1))
add(ops.split, "f32[b s 4]", axis=1, sizes=(1, s - 1), note="symbolic")
add(ops.split, "i64[6 b]", axis=0, sizes=(4, 2), note="int")
add(ops.slice_, "f32[b t 4]", axis=1, start=1, stop=t - 1)
add(ops.slice_, "f32[b t 5]", axis=1, start=1, stop=t, step=2, note="step")
add(ops.slice_, "f32[b s 10]", axis=2, start=2, stop=9, step=3, note="step-inner")
add(ops.slice_, "i64[b s]", axis=0, start=0, stop=1, note="int")
add(ops.slice_, "f32[b t]", axis=1, start=3, stop=3, note="empty", gradient=False)
add(ops.window, "f32[b t 4]", given("i64[]", 2), axis=1, length=s)
add(ops.window, "i64[b t]", given("i64[]", 4), axis=1, length=3, note="int")
add(ops.update, "f32[b t 4]", "f32[b s 4]", given("i64[]", 2), axis=1)
add(ops.update, "i64[b t]", "i64[b 2]", given("i64[]", 5), axis=1, note="int")
add(ops.pad, "f32[b s 4]", low=(0, 1, 2), high=(0, 3, 0))
add(ops.pad, "f32[b s 4]", low=(0, 1, 2), high=(1, 0, 1), value=-1.5, note="value")
add(ops.pad, "i64[b s]", low=(0, 2), high=(0, 1), value=3, note="int")
add(ops.pad, "f32[b 4 5]", low=(0, 3, 2), high=(0, 1, 4), mode="reflect", note="reflect")
add(ops.pad, "f32[b 4 5]", low=(0, 5, 1), high=(0, 1, 6), mode="edge", note="edge")
add(ops.flip, "f32[b s 4]", axis=1)
add(ops.flip, "i64[b s]", axis=0, note="int")
add(ops.roll, "f32[b t 4]", axis=1, shift=2)
add(ops.roll, "f32[b 4 t]", axis=2, shift=t - 1, note="symbolic")
add(ops.roll, "f32[b s]", axis=1, shift=0, note="nothing")

# ---- products and reductions --------------------------------------------------------------------

add(ops.matmul, "f32[s 4]", "f32[4 5]")
add(ops.matmul, "f32[b 3 t 4]", "f32[b 3 4 5]", note="4d")
add(ops.matmul, "f32[b 1 s 4]", "f32[6 4 5]", note="broadcast")
add(ops.matmul, between("i64[b s 4]", -3, 4), between("i64[4 5]", -3, 4), note="int")
for _op, _weight in [(ops.linear, "f32[5 4]"), (ops.affine, "f32[4 5]")]:
    add(_op, "f32[b s 4]", _weight, "f32[5]")
    add(_op, "f32[b s 4]", _weight, None, note="no-bias")
    add(_op, "f32[b 4]", _weight, "f32[5]", note="2d")
    add(_op, "f32[b s t 4]", _weight, "f32[5]", note="4d")
    add(_op, "f32[4]", _weight, "f32[5]", note="1d")
for _bits, _bytes in ((8, 16), (4, 8)):  # two blocks of 16, of which a row of 27 uses 11 of the second
    _stored = between(f"u8[5 2 {_bytes}]", 0, 256)
    add(ops.dequantize, _stored, positive("f32[5 2]"), bits=_bits, size=27, gradient=False)
    add(ops.dequantize, between(f"u8[b s 2 {_bytes}]", 0, 256), positive("f32[b s 2]"), bits=_bits, size=32, gradient=False, note=f"rows-{_bits}")
    add(ops.quantized_linear, "f32[b s 27]", _stored, positive("f32[5 2]"), "f32[5]", bits=_bits, gradient=False)
    add(ops.quantized_linear, "f32[27]", _stored, positive("f32[5 2]"), None, bits=_bits, gradient=False, note=f"1d-{_bits}")
add(ops.round_blocks, "f32[b s 27]", block=16, gradient=False)
add(ops.round_blocks, given("f32[b 32]", np.repeat([[0.0, 1.0, -2.0, 0.5]], 8)), block=8, gradient=False, note="zeros")
add(ops.round_range, "f32[b s 6]", gradient=False)
add(ops.round_range, positive("f32[b s]"), gradient=False, note="positive")
add(ops.round_range, given("f32[b s]", 0.0), gradient=False, note="zeros")
add(ops.dynamic_quantized_linear, "f32[b s 4]", between("i8[4 5]", -64, 65), positive("f32[5]"), "f32[5]", gradient=False)
add(ops.dynamic_quantized_linear, "f32[b 4]", between("i8[4 5]", -64, 65), positive("f32[5]"), None, gradient=False, note="no-bias")
for _op in (ops.sum, ops.mean, ops.max, ops.min):
    add(_op, "f32[b s 4]", axis=1)
    add(_op, "f32[b s 4]", axis=2, keep=True, note="keep")
    add(_op, "f32[b s 4]", axis=(0, 2), note="axes")
    add(_op, "f32[b s 4 5]", axis=(1, 2), keep=True, note="axes-keep")
    add(_op, "f32[b s 4]", axis=-1, note="negative")
for _op in (ops.sum, ops.max, ops.min):
    add(_op, "i64[b s 4]", axis=1, note="int")
    add(_op, "i32[b s 4]", axis=(0, 1), note="i32")
for _op in (ops.any, ops.all):
    add(_op, "bool[b s 4]", axis=2)
    add(_op, "bool[b s 4]", axis=(0, 2), keep=True, note="axes-keep")
    add(_op, given("bool[b 3]", [[True, True, True], [False, False, False]]), axis=-1, note="extremes")
for _op in (ops.argmax, ops.argmin):
    add(_op, "f32[b s 4]", axis=1)
    add(_op, "f32[b s 4]", axis=-1, keep=True, note="keep")
    add(_op, given("f32[b 4]", [[1, 3, 3, 1], [2, 0, 0, 2]]), axis=1, note="ties")
    add(_op, between("i64[b s 4]", 0, 3), axis=2, note="int")
add(ops.cumsum, "f32[b s 4]", axis=1)
add(ops.cumsum, "i64[b s]", axis=-1, note="int")
add(ops.cumsum, "i32[b s]", axis=0, note="i32")
add(ops.logsumexp, "f32[b s 4]", axis=1)
add(ops.logsumexp, between("f32[b s 4]", -90, 90), axis=2, keep=True, note="keep-wide")
add(ops.logsumexp, "f32[b s 4]", axis=(0, 2), note="axes")
for _op in (ops.softmax, ops.log_softmax):
    add(_op, "f32[b s 4]")
    add(_op, "f32[b s 4]", axis=1, note="inner")
    add(_op, between("f32[b 5]", -90, 90), axis=1, note="wide")
add(ops.top_k, "f32[b s 6]", k=3)
add(ops.top_k, "f32[b 5]", k=5, note="all")
add(ops.top_k, given("f32[b 6]", [[1, 2, 2, 1, 2, 0], [5, 5, 5, 5, 5, 5]]), k=4, note="ties", gradient=False)
add(ops.top_k, given("i64[b 6]", [[1, 2, 2, 1, 2, -9], [5, 4, 5, 4, 5, 4]]), k=3, note="int")
for _op in (ops.argsort, ops.sort):
    for _descending in (False, True):
        _note = "-descending" if _descending else ""
        add(_op, "f32[b s 6]", descending=_descending, note=f"float{_note}")
        add(_op, given("f32[b 6]", [[1, 2, 2, 1, 2, 0], [3, 3, 3, 3, 3, 3]]), descending=_descending, note=f"ties{_note}", gradient=False)
        add(_op, "f32[b 6 s]", axis=1, descending=_descending, note=f"inner{_note}")
        add(_op, between("i64[b 6]", 0, 4), descending=_descending, note=f"int{_note}")

# ---- index --------------------------------------------------------------------------------------

add(ops.take, "f32[6 4]", between("i64[b s]", 0, 6))
add(ops.take, "f32[b 6 4]", between("i64[s]", 0, 6), axis=1, note="inner")
add(ops.take, "f32[b s 6]", between("i64[3 5]", 0, 6), axis=2, note="last")
add(ops.take, "f32[b 6 4]", given("i64[]", 3), axis=1, note="scalar")
add(ops.take, "i64[6]", between("i32[b s]", 0, 6), note="i32")
add(ops.embedding, "f32[6 4]", between("i64[b s]", 0, 6), frozen=2, gradient=False)
add(ops.embedding, "f32[6 4]", between("i32[s]", 0, 6), frozen=0, note="i32", gradient=False)
add(ops.stop_gradient, "f32[b s]", gradient=False)
add(ops.gather, "f32[b 6 4]", between("i64[b 5 4]", 0, 6), axis=1)
add(ops.gather, "f32[b s 6]", between("i64[b s 2]", 0, 6), axis=2, note="last")
add(ops.gather, "i64[6 b]", between("i64[3 b]", 0, 6), axis=0, note="first")
for _reduce in ("set", "add"):
    add(ops.scatter, "f32[b s 8]", permuted("i64[b s 4]"), "f32[b s 4]", axis=2, reduce=_reduce, note=f"{_reduce}-last")
    add(ops.scatter, "f32[6 b]", given("i64[4 b]", [[5, 0], [1, 4], [0, 2], [3, 3]]), "f32[4 b]", axis=0, reduce=_reduce, note=f"{_reduce}-first")
    add(ops.scatter, "i64[b 8]", permuted("i64[b 4]"), "i64[b 4]", axis=1, reduce=_reduce, note=f"{_reduce}-int")
add(ops.scatter, "f32[b 5 4]", given("i64[b 3 4]", [[[1]], [[4]]]), "f32[b 3 4]", axis=1, reduce="add", note="add-repeated")
add(ops.one_hot, given("i64[b 3]", [[0, 4, 2], [-1, 5, 3]]), size=5)
add(ops.one_hot, between("i32[b s]", 0, 4), size=4, note="i32")
add(ops.one_hot, between("i64[b s]", 0, 4), size=4, dtype="i64", note="int")
add(ops.one_hot, between("i64[b s]", 0, 7), size=t, dtype="bool", note="symbolic")

# ---- attention ----------------------------------------------------------------------------------

QKV = ("f32[b 4 s 6]", "f32[b 4 t 6]", "f32[b 4 t 5]")
MASK = Operand("bool[b 1 1 t]", lambda rng, shape: np.arange(7) < np.array([7, 4]).reshape(2, 1, 1, 1))
ROWS = Operand("bool[b 1 s t]", lambda rng, shape: (rng.random(shape) < 0.6) & (np.arange(3) != 1)[:, None])
SQUARE = ("f32[b 4 s 6]", "f32[b 4 s 6]", "f32[b 4 s 5]")
for _op, _n in [(ops.attention, 3), (ops.attention_weights, 2)]:
    for _note, _qkv, _rest, _attrs in [
        ("plain", QKV, (), {}),
        ("mask", QKV, (MASK,), {}),
        ("mask-rows", QKV, (ROWS,), {}),
        ("mask-heads", QKV, ("bool[b 4 s t]",), {}),
        ("mask-no-batch", QKV, ("bool[4 s t]",), {}),
        ("bias", QKV, (None, "f32[1 4 s t]"), {}),
        ("bias-keys", QKV, (None, "f32[b 1 1 t]"), {}),
        ("mask-bias", QKV, (ROWS, "f32[4 s t]"), {}),
        ("causal", SQUARE, (), {"causal": True}),
        ("causal-mask", SQUARE, (given("bool[b 1 1 s]", [[[[True, True, False]]], [[[False, True, True]]]]),), {"causal": True}),
        ("causal-bias", SQUARE, (None, "f32[1 4 s s]"), {"causal": True}),
        ("causal-fewer-rows", QKV, (), {"causal": True}),
        ("causal-fewer-rows-mask", QKV, (MASK,), {"causal": True}),
        ("causal-more-rows", ("f32[b 4 t 6]", "f32[b 4 s 6]", "f32[b 4 s 5]"), (), {"causal": True}),
        ("causal-one-row", ("f32[b 4 1 6]", *QKV[1:]), (), {"causal": True}),
        ("causal-start", QKV, (None, None, given("i64[]", 2)), {"causal": True}),
        ("causal-start-i32", QKV, (None, None, given("i32[]", 1)), {"causal": True}),
        ("causal-start-mask-bias", QKV, (MASK, "f32[4 s t]", given("i64[]", 3)), {"causal": True}),
        ("one-row", ("f32[b 4 1 6]", *QKV[1:]), (MASK,), {}),
        ("grouped", ("f32[b 6 s 8]", "f32[b 2 t 8]", "f32[b 2 t 5]"), (MASK,), {}),
        ("grouped-causal", ("f32[b 6 s 8]", "f32[b 2 s 8]", "f32[b 2 s 5]"), (), {"causal": True}),
        ("single-kv-head", ("f32[b 4 s 6]", "f32[b 1 t 6]", "f32[b 1 t 5]"), (), {}),
        ("no-batch", ("f32[4 s 6]", "f32[4 t 6]", "f32[4 t 5]"), (), {}),
        ("windows", ("f32[b 5 4 s 6]", "f32[b 5 4 t 6]", "f32[b 5 4 t 8]"), ("bool[5 1 s t]", "f32[4 s t]"), {}),
        ("windows-causal", ("f32[b 5 4 s 6]", "f32[b 5 4 s 6]", "f32[b 5 4 s 8]"), (), {"causal": True}),
    ]:
        add(_op, *_qkv[:_n], *_rest, note=_note, scale=0.4, **_attrs)
add(ops.attention, *QKV, None, None, None, KEY, scale=0.4, dropout=0.25, site=3, random=True)
for _interleaved, _note in [(False, "halves"), (True, "pairs")]:
    add(ops.rotary, "f32[b 4 s 6]", "f32[s 3]", "f32[s 3]", interleaved=_interleaved, note=_note)
    add(ops.rotary, "f32[b 4 s 6]", "f32[b 1 s 3]", "f32[b 1 s 3]", interleaved=_interleaved, note=f"{_note}-batch")

# ---- convolution --------------------------------------------------------------------------------


def _conv(*operands: Any, n: int = 1, **attrs: Any) -> None:
    add(ops.conv, *operands, **{"stride": (1,) * n, "padding": ((0, 0),) * n, "dilation": (1,) * n} | attrs)


def _conv_transpose(*operands: Any, n: int = 1, **attrs: Any) -> None:
    usual = {"stride": (1,) * n, "padding": ((0, 0),) * n, "output_padding": (0,) * n, "dilation": (1,) * n}
    add(ops.conv_transpose, *operands, **usual | attrs)


_conv("f32[b 4 h]", "f32[6 4 3]", "f32[6]", note="1d")
_conv("f32[b 4 h]", "f32[6 4 3]", None, note="1d-stride-padding", stride=(2,), padding=((2, 1),))
_conv("f32[b 4 h]", "f32[6 4 3]", "f32[6]", note="1d-dilation", dilation=(3,), padding=((1, 1),))
_conv("f32[b 4 h]", "f32[6 2 4]", "f32[6]", note="1d-groups", groups=2, padding=((1, 2),))
_conv("f32[b 4 h]", "f32[4 1 3]", "f32[4]", note="1d-depthwise", groups=4)
_conv("f32[b 4 h w]", "f32[6 4 3 2]", "f32[6]", n=2, note="2d")
_conv("f32[b 4 h w]", "f32[6 4 3 2]", None, n=2, note="2d-stride-padding", stride=(2, 3), padding=((1, 1), (0, 2)))
_conv("f32[b 4 h w]", "f32[6 4 3 2]", "f32[6]", n=2, note="2d-dilation", dilation=(2, 3))
_conv("f32[b 4 h w]", "f32[6 2 3 3]", "f32[6]", n=2, note="2d-groups", groups=2, padding=((1, 1), (1, 1)))
_conv("f32[b 3 h w]", "f32[6 3 4 4]", "f32[6]", n=2, note="2d-patches", stride=(4, 4))
_conv("f32[b 4 h w]", "f32[6 4 1 1]", "f32[6]", n=2, note="2d-pointwise")
_conv_transpose("f32[b 4 h]", "f32[4 6 3]", "f32[6]", note="1d")
_conv_transpose("f32[b 4 h]", "f32[4 6 3]", None, note="1d-stride-padding", stride=(3,), padding=((1, 2),), output_padding=(1,))
_conv_transpose("f32[b 4 h]", "f32[4 3 3]", "f32[6]", note="1d-groups", stride=(2,), groups=2)
_conv_transpose("f32[b 4 h w]", "f32[4 6 3 2]", "f32[6]", n=2, note="2d")
_conv_transpose("f32[b 4 h w]", "f32[4 6 2 2]", "f32[6]", n=2, note="2d-stride", stride=(2, 2))
_ALL = {"stride": (2, 3), "padding": ((1, 1), (0, 1)), "output_padding": (1, 2), "dilation": (2, 1)}
_conv_transpose("f32[b 4 h w]", "f32[4 6 3 2]", "f32[6]", n=2, note="2d-all", **_ALL)
_conv_transpose("f32[b 4 h w]", "f32[4 3 3 2]", None, n=2, note="2d-groups", stride=(2, 1), padding=((1, 1), (0, 0)), groups=2)
for _op, _attrs in [(ops.max_pool, {}), (ops.average_pool, {}), (ops.average_pool, {"count_padding": False})]:
    _note = "-uncounted" if _attrs else ""
    add(_op, "f32[b 4 h]", kernel=(3,), stride=(2,), padding=((0, 0),), note=f"1d{_note}", **_attrs)
    add(_op, "f32[b 4 h]", kernel=(3,), stride=(1,), padding=((1, 1),), note=f"1d-padding{_note}", **_attrs)
    add(_op, "f32[b 4 h w]", kernel=(3, 2), stride=(2, 2), padding=((0, 0), (0, 0)), note=f"2d{_note}", **_attrs)
    add(_op, "f32[b 4 h w]", kernel=(3, 3), stride=(2, 1), padding=((1, 1), (1, 1)), note=f"2d-padding{_note}", **_attrs)
    add(_op, "f32[b 4 h w]", kernel=(3, 2), stride=(1, 2), padding=((0, 1), (1, 0)), note=f"2d-asymmetric{_note}", **_attrs)
for _mode in ("nearest", "linear", "cubic"):
    add(ops.resize, "f32[b 4 h]", sizes=(2 * h,), mode=_mode, note=f"{_mode}-1d-up")
    add(ops.resize, "f32[b 4 h w]", sizes=(13, 11), mode=_mode, note=f"{_mode}-up")
    add(ops.resize, "f32[b 4 h w]", sizes=(4, 5), mode=_mode, note=f"{_mode}-down")
    add(ops.resize, "f32[b 4 h w]", sizes=(h, 2 * w), mode=_mode, note=f"{_mode}-one-axis")
    add(ops.resize, "f32[b 4 h w]", sizes=(1, 3), mode=_mode, note=f"{_mode}-to-one")
for _mode in ("linear", "cubic"):
    add(ops.resize, "f32[b 4 h w]", sizes=(13, 4), mode=_mode, align_corners=True, note=f"{_mode}-corners")
    add(ops.resize, "f32[b 4 h w]", sizes=(1, 15), mode=_mode, align_corners=True, note=f"{_mode}-corners-to-one")

# ---- norms and losses ---------------------------------------------------------------------------

add(ops.layer_norm, "f32[b s 6]", "f32[6]", "f32[6]", eps=1e-5)
add(ops.layer_norm, "f32[b s 6]", "f32[6]", None, eps=1e-5, note="no-shift")
add(ops.layer_norm, "f32[b s 6]", None, None, eps=1e-3, note="bare")
add(ops.layer_norm, "f32[6]", "f32[6]", "f32[6]", eps=1e-5, note="1d")
add(ops.layer_norm, given("f32[b 6]", 3.0), "f32[6]", "f32[6]", eps=1e-2, note="constant")
add(ops.rms_norm, "f32[b s 6]", "f32[6]", eps=1e-6)
add(ops.rms_norm, "f32[b 6]", "f32[6]", eps=1e-2, note="2d")
add(ops.group_norm, "f32[b 6 h w]", "f32[6]", "f32[6]", groups=3, eps=1e-5)
add(ops.group_norm, "f32[b 6 h]", "f32[6]", "f32[6]", groups=6, eps=1e-5, note="instance")
add(ops.group_norm, "f32[b 6 h]", "f32[6]", "f32[6]", groups=1, eps=1e-5, note="one")
add(ops.batch_norm, "f32[b 6 h w]", "f32[6]", "f32[6]", "f32[6]", positive("f32[6]"), eps=1e-5)
add(ops.batch_norm, "f32[b 6]", "f32[6]", "f32[6]", "f32[6]", positive("f32[6]"), eps=1e-3, note="2d")
LABELS = given("i64[4 5]", [[1, 2, 3, 4, 5], [2, 2, 1, 0, 0], [3, 3, 3, 0, 0], [5, 1, 0, 0, 0]])
LAST = given("i64[4 3]", [[0, 1, 2], [2, 2, 0], [1, 1, 1], [4, 0, 0]])
LOG_PROBS = Operand("f32[11 4 6]", lambda rng, shape: (lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)))(rng.standard_normal(shape)))
for _note, _labels, _times, _lengths, _blank in [
    ("repeated", LABELS, [11, 9, 8, 10], [5, 3, 3, 2], 0),
    ("blank-last", LAST, [11, 6, 7, 3], [3, 2, 3, 1], 5),
    ("empty-label", LABELS, [11, 9, 8, 10], [5, 3, 0, 2], 0),
    ("impossible", LABELS, [11, 9, 4, 10], [5, 3, 3, 2], 0),
]:
    _row = (LOG_PROBS, _labels, given("i64[4]", _times), given("i64[4]", _lengths))
    add(ops.ctc_loss, *_row, blank=_blank, note=_note, gradient=False if _note == "impossible" else None)

# ---- loops --------------------------------------------------------------------------------------


def _body() -> Graph:
    """y = tanh(x weight + shift) times 1, 2, ...; carried on, and its sums made."""
    body = Graph()
    with body.tracing():
        x, shift, weight = body.input("x", "f32[3 4]"), body.input("shift", "f32[4]"), body.input("weight", "f32[4 4]")
        y = ops.tanh(ops.affine(x, weight, shift)) * ops.size(value=INDEX + 1, dtype="f32")
        body.outputs = {"y": y, "sums": ops.sum(y, axis=1)}
    return body


add(ops.loop, "f32[3 4]", "f32[4]", *["f32[4 4]"] * 3, body=_body(), carries=1, shared=1, count=3, gradient=True)


def _doubling(rows: Size) -> Graph:
    """x doubled and what has been added to it counted, until a sum is large; `step` is shared."""
    body = Graph()
    with body.tracing():
        x, count, step = body.input("x", Type("f32", (rows, 4))), body.input("count", "i64[]"), body.input("step", "f32[4]")
        y = x * 2.0 + step * ops.size(value=INDEX + 1, dtype="f32")
        body.outputs = {"again": ops.sum(ops.absolute(y), axis=(0, 1)) < 400.0, "x": y, "count": count + ops.size(value=rows)}
    return body


_started = (given("i64[]", 5), "f32[4]")
for _on, _most, _note in [(True, 9, "ends"), (True, 2, "most"), (False, 9, "never")]:
    add(ops.while_loop, given("bool[]", _on), "f32[3 4]", *_started, body=_doubling(3), carries=2, most=_most, note=_note, gradient=False)
