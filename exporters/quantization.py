"""Quantisation: linear layers and tables of rows whose weights are stored as bytes or half bytes, made when they are written."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.errors import UsageError, nearest
from ..ir.graph import Graph, Node, Param, Value
from ..ir.passes import optimize
from ..ir.reference import read
from ..ir.types import NUMPY_DTYPES
from ..ir.weights import Location, Weights

REPORT = "quantization.json"  # beside graphs: which layers are quantised, and what that costs
LEAST = 4096  # elements: smaller weights stay as they are
_CHUNK = 1 << 22  # elements that are quantised at once
_SHORTEST = 16  # of the blocks that MatMulNBits takes
_GREATEST = 64  # of the bytes that are multiplied by bytes


@dataclass(frozen=True)
class Scheme:
    """How weights are stored: in integers of so many bits, with a scale for each `block` of them.

    With `dynamic` a linear layer's weight has one scale for each output, and its activations become bytes over their whole range.
    """

    name: str
    bits: int
    block: int
    dynamic: bool = False


SCHEMES = {s.name: s for s in (Scheme("int8", 8, 128, dynamic=True), Scheme("int8-weights", 8, 128), Scheme("int4-weights", 4, 32))}


def scheme_of(name: str) -> Scheme:
    """The scheme of that name; UsageError for an unknown one."""
    if name not in SCHEMES:
        raise UsageError(f"quantisation {name!r} is unknown{nearest(name, SCHEMES)}")
    return SCHEMES[name]


@dataclass(frozen=True)
class Stored:
    """A weight and how it is stored: in rows of blocks, or, where `block` is 0, in bytes [in out] with a scale for each output.

    `turned` says that the weight of the model has its outputs along the second axis.
    """

    weight: Param
    bits: int
    block: int
    turned: bool

    def params(self) -> tuple[Param, Param]:
        """The integers and the scales."""
        rows, n = self.weight.shape[::-1] if self.turned else self.weight.shape
        blocks = -(-n // self.block) if self.block else 1
        shapes = ((rows, blocks, self.block * self.bits // 8), (rows, blocks)) if self.block else ((n, rows), (rows,))
        made = Param(*shapes[0], dtype="u8" if self.block else "i8", trainable=False), Param(*shapes[1], trainable=False)
        for param, suffix in zip(made, (f"q{self.bits}", "scale"), strict=True):
            param.name, param.key = f"{self.weight.name}.{suffix}", f"{self.weight.key}.{suffix}"
        return made

    def arrays(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The integers and the scales of a weight as the model has it."""
        rows = weight.T if self.turned else weight
        return quantize_blocks(rows, self.bits, self.block) if self.block else quantize_channels(rows)


def quantize_blocks(rows: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [rows n] as `ops.dequantize` reads them: u8[rows blocks block*bits/8] and f32[rows blocks].

    A byte is scaled by the largest magnitude of its block. With 4 bits the number of largest magnitude becomes -8 of -8 to 7, whatever its sign.
    """
    count, n = rows.shape
    blocks = -(-n // block)
    stored, scales = np.empty((count, blocks, block * bits // 8), np.uint8), np.empty((count, blocks), np.float32)
    for part in _parts(count, n):
        x = np.zeros((len(rows[part]), blocks * block), np.float32)
        x[:, :n] = rows[part]
        x = x.reshape(len(x), blocks, block)
        top = 2 ** (bits - 1)
        if bits == 4:
            place = np.abs(x).argmax(-1)[..., None]
            scale = np.take_along_axis(x, place, -1)[..., 0] / -top
        else:
            scale = np.abs(x).max(-1) / (top - 1)
        scales[part] = scale
        whole = np.clip(np.rint(x / _nonzero(scale)[..., None]) + top, 0, 2 * top - 1).astype(np.uint8)
        stored[part] = whole if bits == 8 else whole[..., 0::2] | whole[..., 1::2] << 4
    return stored, scales


def quantize_channels(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [out in] as `ops.dynamic_quantized_linear` reads them: i8[in out] from -64 to 64 and f32[out].

    Of larger numbers the sum of two products with bytes would overflow 16 bits, in which x86 processors without VNNI add them.
    """
    count, n = rows.shape
    stored, scales = np.empty((n, count), np.int8), np.empty(count, np.float32)
    for part in _parts(count, n):
        x = rows[part].astype(np.float32, copy=False)
        scales[part] = np.abs(x).max(-1) / _GREATEST
        stored[:, part] = np.rint(x / _nonzero(scales[part])[:, None]).T
    return stored, scales


def _parts(count: int, n: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, n))
    return (slice(i, i + step) for i in range(0, count, step))


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(1), scale)


# ---- which weights ------------------------------------------------------------------------------

_LINEAR, _AFFINE, _TABLE = "linear", "affine", "table"


def layer_of(param: Param) -> str:
    """The layer whose weight this is, which is what layers are chosen by."""
    return param.name.removesuffix(".weight")


def quantizable(graphs: Iterable[Graph], layers: Collection[str] | None = None) -> dict[str, Param]:
    """The layers whose weight can be quantised: matrices that are only multiplied by or looked up in; of those, the ones that globs name.

    Raises UsageError for a glob that names none.
    """
    found = {layer_of(p): p for p, uses in _uses(graphs).items() if uses in ({_LINEAR}, {_AFFINE}, {_TABLE}, {_LINEAR, _TABLE})}
    if layers is None:
        return found
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise UsageError(f"no layer {pattern!r} can be quantised{nearest(pattern, found)}")
    return {name: p for name, p in found.items() if any(fnmatchcase(name, pattern) for pattern in layers)}


def _uses(graphs: Iterable[Graph]) -> dict[Param, set[str]]:
    """What each large matrix is used as."""
    uses: dict[Param, set[str]] = {}
    for graph in graphs:
        for v in graph.outputs.values():
            uses.setdefault(v, set()).add("output")  # type: ignore[arg-type]
        for node in graph.live():
            for i, v in enumerate(node.inputs):
                if isinstance(v, Param):
                    uses.setdefault(v, set()).add(_use(node, i))
    return {v: found for v, found in uses.items() if isinstance(v, Param) and v.rank == 2 and v.shape[0] * v.shape[1] >= LEAST}


def _use(node: Node, operand: int) -> str:
    if operand == 1 and node.op in (ops.linear, ops.affine):
        return node.op.name
    looked_up = operand == 0 and (node.op is ops.embedding or (node.op is ops.take and node.attrs["axis"] == 0))
    return _TABLE if looked_up else node.op.name


def _stored(weight: Param, uses: set[str], scheme: Scheme) -> Stored:
    turned = uses == {_AFFINE}
    if scheme.dynamic and _TABLE not in uses:
        return Stored(weight, 8, 0, turned)
    length = weight.shape[0] if turned else weight.shape[1]
    return Stored(weight, scheme.bits, min(scheme.block, max(_SHORTEST, 1 << (length - 1).bit_length())), turned)


# ---- graphs and weights -------------------------------------------------------------------------


def quantize(graphs: Mapping[str, Graph], weights: Weights, scheme: Scheme, layers: Collection[str]) -> tuple[dict[str, Graph], QuantizedWeights]:
    """Graphs in which those layers (of `quantizable`) are quantised, and the weights that they read. Graphs share them."""
    uses = _uses(graphs.values())
    plans = {p: _stored(p, uses[p], scheme) for name, p in quantizable(graphs.values()).items() if name in layers}
    made = {p: plan.params() for p, plan in plans.items()}

    def rule(node: Node, operands: tuple[Value | None, ...]) -> Any:
        at = next((i for i, v in enumerate(node.inputs) if v in made), None)
        return None if at is None else _quantized(node, operands, plans[node.inputs[at]], *made[node.inputs[at]])  # type: ignore[index]

    changed = {stem: graph.rebuild(rule) for stem, graph in graphs.items()}
    return changed, QuantizedWeights(weights, {plan: [p.key for p in made[w]] for w, plan in plans.items()})


def _quantized(node: Node, operands: tuple[Any, ...], plan: Stored, stored: Param, scale: Param) -> Value:
    if node.op in (ops.linear, ops.affine):
        x, _, bias = operands
        return ops.quantized_linear(x, stored, scale, bias, bits=plan.bits) if plan.block else ops.dynamic_quantized_linear(x, stored, scale, bias)
    index = operands[1]
    return ops.dequantize(ops.take(stored, index), ops.take(scale, index), bits=plan.bits, size=plan.weight.shape[1])


class QuantizedWeights:
    """Weights of which some are stored as integers, each quantised when it is read. None lies in a file that can be referred to."""

    def __init__(self, source: Weights, stored: Mapping[Stored, Collection[str]]):
        self.source = source
        self.made = {key: (plan, i) for plan, keys in stored.items() for i, key in enumerate(keys)}
        self.types = {p.key: p.type for plan in stored for p in plan.params()}
        self.replaced = {plan.weight.key for plan in stored}
        self._last: tuple[Stored | None, tuple[np.ndarray, ...]] = None, ()

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self.source if key not in self.replaced)
        yield from self.made

    def __contains__(self, key: object) -> bool:
        return key in self.made or (key in self.source and key not in self.replaced)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape as stored."""
        if key not in self.made:
            return self.source.spec(key)
        return self.types[key].dtype, self.types[key].shape  # type: ignore[return-value]

    def array(self, key: str) -> np.ndarray:
        """The weight as stored; the integers and scales of the one that was read last are kept."""
        if key not in self.made:
            return self.source.array(key)
        plan, i = self.made[key]
        if self._last[0] is not plan:
            self._last = plan, plan.arrays(read(self.source, plan.weight.key))
        return self._last[1][i]

    def location(self, key: str) -> Location | None:
        """None: an artifact that referred to the checkpoint for what is left of it would keep all of it."""
        return None


@dataclass
class Quantized:
    """Graphs and weights of a model of which some layers are quantised: what sessions and references are made of."""

    name: str
    graphs: dict[str, Graph]
    weights: QuantizedWeights


def in_fewer_bits(model: Any, graphs: Mapping[str, Graph], scheme: str) -> Quantized:
    """Graphs of a model with all layers quantised that can be, for sessions of this process. UsageError for an unknown scheme."""
    prepared = {stem: optimize(graph) for stem, graph in graphs.items()}
    return Quantized(model.name, *quantize(prepared, model.weights, scheme_of(scheme), list(quantizable(prepared.values()))))


def size_of(weights: Weights, keys: Iterable[str]) -> int:
    """The bytes of those weights as stored."""
    return sum(math.prod(shape) * NUMPY_DTYPES[dtype].itemsize for dtype, shape in map(weights.spec, keys))
