"""PyTorch: what each op is there. Rules see `torch.fx` proxies, so that running the one loop writes a program (`torch.py`)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.errors import MissingExtraError
from ..ir.graph import Node, Param, Value
from ..ir.table import Table
from ..ir.types import KINDS, Type

try:
    import torch
    import torch.nn.functional as F
    from torch.fx.proxy import GraphAppendingTracer

    from .torch_dropout import attention_with_dropout, dropout
except ModuleNotFoundError as e:
    raise MissingExtraError("torch", "PyTorch as a target") from e

DTYPES: dict[str, torch.dtype] = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "u32": torch.uint32,
    "i64": torch.int64,
    "bool": torch.bool,
}
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_LARGEST = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_SMALL_INTEGERS = frozenset(KINDS["int"] - {"i64"})


def _along(axis: int, *at: Any) -> tuple[Any, ...]:
    """An index that acts on one axis only."""
    return (slice(None),) * axis + at


def _type(node: Node, place: int = 0) -> Type:
    """The type of an operand that is there."""
    return node.inputs[place].type  # type: ignore[union-attr]


TORCH = Table(
    "torch",
    {
        # what the loop itself answers (`Tracing.apply`): numbers and arrays of the graph
        ops.constant: lambda *, value, dtype: value,
        ops.size: lambda *, value, dtype: value,
        ops.literal: lambda *, value, dtype: value,
        ops.exp: torch.exp,
        ops.log: torch.log,
        ops.sqrt: torch.sqrt,
        ops.tanh: torch.tanh,
        ops.sin: torch.sin,
        ops.cos: torch.cos,
        ops.erf: torch.erf,
        ops.floor: torch.floor,
        ops.ceil: torch.ceil,
        ops.round_: torch.round,
        ops.stop_gradient: lambda x: x.detach(),
        ops.negative: operator.neg,
        ops.absolute: torch.abs,
        ops.sign: torch.sign,
        ops.not_: torch.logical_not,
        ops.add: operator.add,
        ops.sub: operator.sub,
        ops.mul: operator.mul,
        ops.div: operator.truediv,
        ops.floor_divide: operator.floordiv,
        ops.remainder: operator.mod,
        ops.power: operator.pow,
        ops.maximum: torch.maximum,
        ops.minimum: torch.minimum,
        ops.equal: operator.eq,
        ops.less: operator.lt,
        ops.less_equal: operator.le,
        ops.and_: torch.logical_and,
        ops.or_: torch.logical_or,
        ops.xor: torch.logical_xor,
        ops.where: torch.where,
        ops.cast: lambda x, *, dtype: x.to(dtype),
        ops.relu: torch.relu,
        ops.sigmoid: torch.sigmoid,
        ops.silu: F.silu,
        ops.gelu: lambda x, *, approximate: F.gelu(x, approximate="tanh" if approximate else "none"),
        # past its threshold torch returns x itself; 40 is where that is exact in float64 too
        ops.softplus: lambda x: F.softplus(x, beta=1, threshold=40),
        ops.leaky_relu: lambda x, *, slope: F.leaky_relu(x, slope),
        ops.elu: lambda x, *, alpha: F.elu(x, alpha),
        ops.mean: lambda x, *, axis, keep: x.mean(axis, keepdim=keep),
        ops.max: lambda x, *, axis, keep: x.amax(axis, keepdim=keep),
        ops.min: lambda x, *, axis, keep: x.amin(axis, keepdim=keep),
        ops.any: lambda x, *, axis, keep: torch.any(x, axis, keepdim=keep),
        ops.all: lambda x, *, axis, keep: torch.all(x, axis, keepdim=keep),
        ops.argmax: lambda x, *, axis, keep: x.argmax(axis, keepdim=keep),
        ops.argmin: lambda x, *, axis, keep: x.argmin(axis, keepdim=keep),
        ops.logsumexp: lambda x, *, axis, keep: torch.logsumexp(x, axis, keepdim=keep),
        ops.softmax: lambda x, *, axis: torch.softmax(x, axis),
        ops.log_softmax: lambda x, *, axis: torch.log_softmax(x, axis),
        ops.argsort: lambda x, *, axis, descending: torch.argsort(x, stable=True, dim=axis, descending=descending),
        ops.sort: lambda x, *, axis, descending: torch.sort(x, stable=True, dim=axis, descending=descending)[0],
        ops.reshape: lambda x, *, shape: x.reshape(shape),
        ops.transpose: lambda x, *, perm: x.permute(perm),
        ops.broadcast_to: lambda x, *, shape: x.expand(shape),
        ops.concat: lambda *xs, axis: torch.cat(xs, axis),
        ops.split: lambda x, *, axis, sizes: torch.split(x, list(sizes), axis),
        ops.slice_: lambda x, *, axis, start, stop, step: x[_along(axis, slice(start, stop, step))],
        ops.flip: lambda x, *, axis: torch.flip(x, (axis,)),
        ops.roll: lambda x, *, axis, shift: torch.roll(x, shift, axis),
        ops.matmul: torch.matmul,
        ops.linear: F.linear,
        ops.affine: lambda x, weight, bias: F.linear(x, weight.t(), bias),
        ops.group_norm: lambda x, scale, shift, *, groups, eps: F.group_norm(x, groups, scale, shift, eps),
        ops.dropout: lambda x, key, *, rate, site: _call(dropout, x, rate),
    },
)


# ---- rules that make tensors: they get `make`, which calls a function with the run's device ------


@TORCH.native(ops.iota)
def _iota(*, size, make):
    return make(torch.arange, size, dtype=torch.int64)


@TORCH.native(ops.random_uniform)
def _random_uniform(key, *, shape, site, make, dtype="f32"):
    return make(torch.rand, shape, dtype=dtype)


@TORCH.native(ops.window)
def _window(x, start, *, axis, length, make):
    return x.index_select(axis, start + make(torch.arange, length, dtype=torch.int64))


@TORCH.native(ops.update, node=True)
def _update(node, x, new, start, *, axis, make):
    length = _type(node, 1).shape[axis]
    length = length if isinstance(length, int) else new.shape[axis]
    return x.index_copy(axis, start + make(torch.arange, length, dtype=torch.int64), new)


@TORCH.native(ops.pad, node=True)
def _pad(node, x, *, low, high, mode, value, make):
    if mode == "constant":
        return F.pad(x, _torch_order(zip(low, high, strict=True)), value=_of_kind(node.type.dtype, value))
    for axis, (lo, hi) in enumerate(zip(low, high, strict=True)):
        if (lo, hi) != (0, 0):
            n = x.shape[axis]
            place = make(torch.arange, -lo, n + hi, dtype=torch.int64)
            if mode == "reflect":  # a triangle wave that turns on the first and the last element
                period = torch.sym_max(n * 2 - 2, 1)
                place = place % period
                place = torch.minimum(place, period - place)
            x = x.index_select(axis, place.clamp(min=0, max=n - 1))
    return x


_MAKERS = frozenset({ops.iota, ops.random_uniform, ops.window, ops.update, ops.pad, ops.ctc_loss})


def _of_kind(dtype: str, value: float) -> float | int | bool:
    return float(value) if dtype in KINDS["float"] else bool(value) if dtype == "bool" else int(value)


def _torch_order(padding: Iterable[tuple[Any, Any]]) -> list[Any]:
    """(low, high) per axis as `F.pad` wants them: flat, the last axis first."""
    return [p for pair in reversed(list(padding)) for p in pair]


# ---- rules that need static facts ----------------------------------------------------------------


@TORCH.native(ops.sum, node=True)
def _sum(node, x, *, axis, keep):
    return x.sum(axis, keepdim=keep, **_narrow(node))


@TORCH.native(ops.cumsum, node=True)
def _cumsum(node, x, *, axis):
    return x.cumsum(axis, **_narrow(node))


def _narrow(node: Node) -> dict[str, torch.dtype]:
    """torch adds up narrow integers in 64 bits unless told otherwise."""
    return {"dtype": DTYPES[node.type.dtype]} if node.type.dtype in _SMALL_INTEGERS else {}


@TORCH.native(ops.top_k, node=True)
def _top_k(node, x, *, k):
    whole = k == _type(node).shape[-1]
    values, places = (lambda s: (s[0], s[1]))(torch.sort(x, stable=True, dim=-1, descending=True))
    return (values, places) if whole else (values[..., :k], places[..., :k])


def _long(node: Node, place: int, index: Any) -> Any:
    """An index operand in the 64 bits that torch wants."""
    return index if _type(node, place).dtype == "i64" else index.long()


@TORCH.native(ops.take, ops.embedding, node=True)
def _take(node, x, index, *, axis=0, frozen=None):
    table, where = node.inputs[0].type, _type(node, 1)
    if axis == 0 and table.rank == 2 and table.dtype in KINDS["float"]:
        return F.embedding(index if where.dtype == "i32" else _long(node, 1, index), x, frozen)
    index = _long(node, 1, index)
    return x.index_select(axis, index) if where.rank == 1 else x[_along(axis, index)]


@TORCH.native(ops.gather, node=True)
def _gather(node, x, index, *, axis):
    return torch.gather(x, axis, _long(node, 1, index))


@TORCH.native(ops.scatter, node=True)
def _scatter(node, x, index, new, *, axis, reduce):
    index = _long(node, 1, index)
    return x.scatter(axis, index, new) if reduce == "set" else x.scatter_add(axis, index, new)


def _width(node: Node, x: Any) -> tuple[Any]:
    n = _type(node).shape[-1]
    return (n if isinstance(n, int) else x.shape[-1],)


@TORCH.native(ops.layer_norm, node=True)
def _layer_norm(node, x, scale, shift, *, eps):
    return F.layer_norm(x, _width(node, x), scale, shift, eps)


@TORCH.native(ops.rms_norm, node=True)
def _rms_norm(node, x, scale, *, eps):
    return F.rms_norm(x, _width(node, x), scale, eps)


def _statistics_are_fixed(node: Node) -> bool:
    """torch takes no gradient of statistics that are given to it."""
    return all(isinstance(v, Param) and not v.trainable for v in node.inputs[3:])


@TORCH.native(ops.batch_norm, when=_statistics_are_fixed)
def _batch_norm(x, scale, shift, mean, variance, *, eps):
    return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=eps)


def _few_axes(node: Node) -> bool:
    return _type(node).rank <= 5


def _even(padding: Iterable[tuple[Any, Any]]) -> bool:
    return all(isinstance(lo, int) and lo == hi for lo, hi in padding)


@TORCH.native(ops.conv, node=True, when=_few_axes)
def _conv(node, x, weight, bias, *, stride, padding, dilation, groups):
    low = tuple(lo for lo, _ in padding)
    if not _even(padding):
        x, low = F.pad(x, _torch_order(padding)), 0
    return _CONVOLUTIONS[_type(node).rank - 3](x, weight, bias, stride, low, dilation, groups)


@TORCH.native(ops.conv_transpose, node=True, when=_few_axes)
def _conv_transpose(node, x, weight, bias, *, stride, padding, output_padding, dilation, groups):
    n = _type(node).rank - 2
    fits = all(o < max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True))
    if _even(padding) and fits:
        return _TRANSPOSED[n - 1](x, weight, bias, stride, tuple(lo for lo, _ in padding), output_padding, groups, dilation)
    x = _TRANSPOSED[n - 1](x, weight, None, stride, 0, 0, groups, dilation)
    x = F.pad(x, _torch_order((-lo, o - hi) for (lo, hi), o in zip(padding, output_padding, strict=True)))
    return x if bias is None else x + bias.reshape((-1,) + (1,) * n)


def _pool_pads(kernel: tuple[int, ...], padding: Iterable[tuple[Any, Any]]) -> bool:
    """Whether torch pads so itself."""
    return _even(padding) and all(2 * lo <= k for k, (lo, _) in zip(kernel, padding, strict=True))


@TORCH.native(ops.max_pool, node=True, when=_few_axes)
def _max_pool(node, x, *, kernel, stride, padding):
    low = tuple(lo for lo, _ in padding)
    if not _pool_pads(kernel, padding):
        x, low = F.pad(x, _torch_order(padding), value=float("-inf")), 0
    return _LARGEST[_type(node).rank - 3](x, kernel, stride, low)


@TORCH.native(ops.average_pool, node=True, when=_few_axes)
def _average_pool(node, x, *, kernel, stride, padding, count_padding):
    pool = _AVERAGE[_type(node).rank - 3]
    if _pool_pads(kernel, padding):
        return pool(x, kernel, stride, tuple(lo for lo, _ in padding), count_include_pad=count_padding)
    pads = _torch_order(padding)
    total = pool(F.pad(x, pads), kernel, stride)
    return total if count_padding else total / pool(F.pad(torch.ones_like(x[:1, :1]), pads), kernel, stride)


_MODES = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


def _interpolates(node: Node) -> bool:
    """torch finds the nearest element in float32, which is exact for powers of two only: 2 elements made 82 come out wrong."""
    mode, n = node.attrs["mode"], _type(node).rank - 2
    powers = [2**i for i in range(6)]
    exact = all(any(new == old * p or old == new * p for p in powers) for old, new in zip(_type(node).shape[2:], node.attrs["sizes"], strict=True))
    return node.type.dtype in KINDS["float"] and ((mode, n) in _MODES or (mode == "nearest" and n <= 3 and exact))


@TORCH.native(ops.resize, node=True, when=_interpolates)
def _resize(node, x, *, sizes, mode, align_corners):
    if mode == "nearest":
        return F.interpolate(x, size=sizes, mode=mode)
    return F.interpolate(x, size=sizes, mode=_MODES[mode, _type(node).rank - 2], align_corners=align_corners)


@TORCH.native(ops.ctc_loss)
def _ctc_loss(log_probs, labels, input_lengths, label_lengths, *, blank, make):
    """torch's gradient is that with respect to logits, which it takes to be normalised; the term that adds nothing makes it the loss's own.
    A loss that is infinite has gradient zero, not NaN, so that it can be left out of a sum."""
    x = log_probs + make(torch.zeros, (1,), dtype=torch.float32)  # torch has no loss in half precision
    loss = lambda x, **options: F.ctc_loss(x, labels, input_lengths, label_lengths, blank, "none", **options)
    exact, finite = loss(x.detach()), loss(x, zero_infinity=True)
    steps = make(torch.arange, x.shape[0], dtype=torch.int64)[:, None]
    counted = torch.logical_and(steps < input_lengths, torch.isfinite(exact))
    nothing = torch.where(counted, torch.exp(x).sum(-1), 0.0).sum(0)
    return torch.where(torch.isinf(exact), exact, finite - (nothing - nothing.detach())).to(log_probs.dtype)


# ---- attention -----------------------------------------------------------------------------------


def _fused(node: Node) -> bool:
    """What `scaled_dot_product_attention` takes: one batch for all, causal only if square and without a mask (the rest is `explicit_causal`'s)."""
    q, k, v = (_type(node, i).shape for i in range(3))
    square = all(x is None for x in node.inputs[3:6]) and q[-2] == k[-2]
    return q[:-3] == k[:-3] == v[:-3] == node.type.shape[:-3] and (square or not node.attrs["causal"])


@TORCH.native(ops.attention, node=True, when=_fused)
def _attention(node, q, k, v, mask, bias, start, key, *, scale, causal, dropout, site):
    outer = node.type.rank - 3
    grouped = _type(node).shape[-3] != _type(node, 1).shape[-3]
    shapes = [x.shape for x in node.inputs[3:5] if x is not None]
    seen = mask if bias is None else bias if mask is None else torch.where(mask, bias, float("-inf"))
    if seen is not None:
        lead = [d for s in shapes for d in s[:-3]]
        rank = max(map(len, shapes)) - 3
        seen = _with_batch(seen, rank, q.shape if outer != 1 and any(d != 1 for d in lead) else None, outer)
    q4, k4, v4 = (_with_batch(x, outer, None, outer) for x in (q, k, v))
    if dropout:
        out = _call(attention_with_dropout, q4, k4, v4, seen, rate=dropout, causal=causal, scale=scale, grouped=grouped)
    else:
        options = {"enable_gqa": True} if grouped else {}
        out = F.scaled_dot_product_attention(q4, k4, v4, attn_mask=seen, is_causal=causal, scale=scale, **options)
    return out if outer == 1 else out[0] if outer == 0 else out.unflatten(0, tuple(q.shape[i] for i in range(outer)))


def _call(f: Any, x: Any, *rest: Any, **options: Any) -> Any:
    """A call of a function of our own in the program that x is a value of."""
    return x.tracer.create_proxy("call_function", f, (x, *rest), options)


def _with_batch(x: Any, lead: int, like: Any, outer: int) -> Any:
    """x with its `lead` leading axes made one; they are widened to those of `like` first, where that is given."""
    if like is not None:
        x, lead = x.expand(tuple(like[i] for i in range(outer)) + (-1, -1, -1)), outer
    return x if lead == 1 else x[None] if lead == 0 else x.flatten(0, lead - 1)


# ---- tracing -------------------------------------------------------------------------------------

# Ops that are Python's own on plain numbers, and that torch takes a plain number in beside a tensor.
_ARITHMETIC = frozenset(
    {ops.add, ops.sub, ops.mul, ops.div, ops.floor_divide, ops.remainder, ops.power, ops.negative, ops.equal, ops.less, ops.less_equal}
)


class Tracing(Table):
    """TORCH for one program: `f32` means `float`, tensors are made on `device`, both values of the program being written.

    Numbers of the graph stay Python numbers where torch takes them, so that they follow the dtype of what they meet.
    """

    def __init__(self, tracer: GraphAppendingTracer, *, float: Any, device: Any, literals: Mapping[Any, Any]):
        super().__init__(TORCH.name, TORCH.rules, minimum=torch.sym_min, maximum=torch.sym_max)
        self.wants_node, self.domain = TORCH.wants_node, TORCH.domain
        self.float, self.literals = float, literals
        where = {} if device is None else {"device": device}
        self.make = lambda f, *args, **options: tracer.create_proxy("call_function", f, args, {**options, **where})
        self.numbers: set[Value] = set()

    def dtype(self, name: str) -> Any:
        """torch's dtype, or the program's value for it."""
        return self.float if name == "f32" else DTYPES[name]

    def tensor(self, value: Value | None, x: Any) -> Any:
        """x, made a tensor if it is a number."""
        return self.make(torch.full, (), x, dtype=self.dtype(value.type.dtype)) if value in self.numbers else x

    def apply(self, node: Node, operands: Iterable[Any], attrs: Mapping[str, Any]) -> Any:
        """The results of one node, as values of the program."""
        attrs = {k: _plain(a) for k, a in attrs.items()}
        if node.op is ops.literal:
            return self.literals[node.attrs["value"], node.attrs["dtype"]]
        if node.op in (ops.constant, ops.size) or (node.op in _ARITHMETIC and self.numbers.issuperset(node.inputs)):
            self.numbers.update(node.outputs)
        elif node.op not in _ARITHMETIC:
            operands = self._tensors(node, list(operands))
            if "dtype" in attrs or node.op is ops.random_uniform:
                attrs["dtype"] = self.dtype(node.type.dtype)
            if node.op in _MAKERS:
                attrs["make"] = self.make
        return super().apply(node, operands, attrs)

    def _tensors(self, node: Node, operands: list[Any]) -> list[Any]:
        number = [v in self.numbers for v in node.inputs]
        if node.op is ops.where and number[1] != number[2]:  # the other branch gives the dtype
            number[1:] = False, False
        return [self.tensor(v, x) if is_number else x for v, x, is_number in zip(node.inputs, operands, number, strict=True)]


def _plain(x: Any) -> Any:
    """Python's own numbers in place of NumPy's, whose repr is not source."""
    return tuple(map(_plain, x)) if isinstance(x, tuple) else x.item() if isinstance(x, np.generic) else x
