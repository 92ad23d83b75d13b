"""TensorFlow's rules: what each op is on a CPU kernel by kernel (`TF`), and the few that XLA does better otherwise (`TF_XLA`).

The IR is channels-first and TensorFlow's CPU kernels are channels-last, so that convolutions and pools transpose around themselves; XLA folds
those transposes away. Sizes in attributes are numbers where they are known and int64 scalars where they are not.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.errors import MissingExtraError
from ..ir.graph import Node
from ..ir.op import Op
from ..ir.table import Table
from ..ir.types import NUMPY_DTYPES, Type

try:
    import tensorflow as tf
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise MissingExtraError("tensorflow", "the TensorFlow frontend") from None

Tensor = Any
DTYPES = {name: tf.as_dtype(dtype) for name, dtype in NUMPY_DTYPES.items()}


def static_shape(shape: Iterable[Any]) -> list[int | None]:
    """Sizes as TensorFlow has them: None where a size is not a number."""
    return [d if isinstance(d, int) else None for d in shape]


class TensorflowTable(Table):
    """The rules of TensorFlow; `f32` in the graph means the float of this run, so that one graph runs in f16, bf16, f32 and f64."""

    float = "f32"

    def apply(self, node: Node, operands: Iterable[Any], attrs: Mapping[str, Any]) -> Any:
        """The results of one node, told the sizes that the graph knows, which TensorFlow's own inference may have lost."""
        if attrs.get("dtype") == "f32":
            attrs = {**attrs, "dtype": self.float}
        made = super().apply(node, operands, attrs)
        results = [self._fit(x, v.type) for x, v in zip(made if len(node.outputs) > 1 else (made,), node.outputs, strict=True)]
        return tuple(results) if len(results) > 1 else results[0]

    def _fit(self, x: Tensor, type: Type) -> Tensor:
        x = tf.cast(x, DTYPES[self.float]) if type.dtype == "f32" else x
        x.set_shape(static_shape(type.shape))
        return x

    def in_float(self, float: str) -> TensorflowTable:
        """The same rules for another float."""
        table = copy.copy(self)
        table.float = float
        return table

    def derive(self, name: str, rules: Mapping[Op, Callable[..., Any]]) -> TensorflowTable:
        """The same rules but for some."""
        table = copy.copy(self)
        table.name, table.rules = name, {**self.rules, **rules}
        return table


def _size_of(x: Tensor, axis: int) -> Any:
    known = x.shape[axis]
    return tf.shape(x, out_type=tf.int64)[axis] if known is None else known


def _int64(x: Any) -> Tensor:
    return tf.cast(x, tf.int64)


TF = TensorflowTable(
    "tensorflow",
    size_of=_size_of,
    minimum=lambda a, b: tf.minimum(_int64(a), _int64(b)),
    maximum=lambda a, b: tf.maximum(_int64(a), _int64(b)),
)

# ---- elementwise --------------------------------------------------------------------------------


def _gelu(x: Tensor, *, approximate: bool) -> Tensor:
    """`tf.nn.gelu`, whose constants are no better than float32's."""
    if approximate:
        return 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * tf.math.erfc(x * -math.sqrt(0.5))


_ELEMENTWISE: dict[Any, Callable[..., Tensor]] = {
    ops.exp: tf.exp,
    ops.log: tf.math.log,
    ops.sqrt: tf.sqrt,
    ops.tanh: tf.tanh,
    ops.sin: tf.sin,
    ops.cos: tf.cos,
    ops.erf: tf.math.erf,
    ops.floor: tf.floor,
    ops.ceil: tf.math.ceil,
    ops.round_: tf.round,
    ops.stop_gradient: tf.stop_gradient,
    ops.negative: tf.negative,
    ops.absolute: tf.abs,
    ops.sign: tf.sign,
    ops.not_: tf.logical_not,
    ops.add: tf.add,
    ops.sub: tf.subtract,
    ops.mul: tf.multiply,
    ops.div: tf.divide,
    ops.floor_divide: tf.math.floordiv,
    ops.remainder: tf.math.floormod,
    ops.power: tf.pow,
    ops.maximum: tf.maximum,
    ops.minimum: tf.minimum,
    ops.equal: tf.equal,
    ops.less: tf.less,
    ops.less_equal: tf.less_equal,
    ops.and_: tf.logical_and,
    ops.or_: tf.logical_or,
    ops.xor: tf.math.logical_xor,
    ops.where: tf.where,
    ops.relu: tf.nn.relu,
    ops.sigmoid: tf.sigmoid,
    ops.gelu: _gelu,
    ops.softplus: tf.nn.softplus,
    ops.elu: lambda x, *, alpha: tf.where(x < 0, alpha * tf.math.expm1(tf.minimum(x, 0)), x),
    ops.cast: lambda x, *, dtype: tf.cast(x, DTYPES[dtype]),
}

# ---- leaves, shape, reductions ------------------------------------------------------------------


def _index(x: Tensor) -> Tensor:
    """An index of a dtype that gathering takes."""
    return x if x.dtype in (tf.int32, tf.int64) else _int64(x)


def _at(axis: int, along: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (along,)


def _random_uniform(key: Tensor, *, shape: Any, site: int) -> Tensor:
    """24 bits a number: XLA's floats are not those of the kernels."""
    return tf.cast(tf.bitwise.right_shift(_bits(key, shape, site, tf.uint32), tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _bits(key: Tensor, shape: Any, site: int, dtype: tf.DType) -> Tensor:
    """Random integers of one named generator: what XLA chooses by itself is not that of the kernels."""
    seed: Any = tf.random.fold_in(tf.bitcast(key, tf.int32), site, alg="philox")
    whole: dict[str, Any] = {"minval": None, "maxval": None, "dtype": dtype}
    return tf.random.stateless_uniform(shape, seed, alg="philox", **whole)


def _dropout(x: Tensor, key: Tensor, *, rate: float, site: int) -> Tensor:
    """Sixteen bits for each element, four of a draw: what dropout costs is the draws. The rate is right to 1 / 65536, the mean is kept."""
    if not (kept := round((1 - rate) * 65536)):
        return tf.zeros_like(x)
    count = tf.size(x, out_type=tf.int64)
    draws = tf.bitcast(_bits(key, [(count + 3) // 4], site, tf.int64), tf.int16)
    keep = tf.reshape(tf.reshape(draws, [-1])[:count], tf.shape(x)) <= kept - 1 - 32768
    return x * (tf.cast(keep, x.dtype) * (65536 / kept))


def _window(x: Tensor, start: Tensor, *, axis: int, length: Any) -> Tensor:
    return tf.gather(x, _int64(start) + tf.range(_int64(length)), axis=axis)


def _update(x: Tensor, new: Tensor, start: Tensor, *, axis: int) -> Tensor:
    """Every place takes its own element or one of `new`: no computed size, which XLA cannot have."""
    place = tf.range(_int64(_size_of(x, axis))) - _int64(start)
    last = _int64(_size_of(new, axis)) - 1
    moved = tf.gather(new, tf.clip_by_value(place, 0, tf.maximum(last, 0)), axis=axis)
    inside = tf.reshape((place >= 0) & (place <= last), [-1] + [1] * (x.shape.rank - axis - 1))
    return tf.where(inside, moved, x)


def _pad(x: Tensor, *, low: Sequence[Any], high: Sequence[Any], mode: Any, value: float) -> Tensor:
    if mode == "edge":
        for axis, (a, b) in enumerate(zip(low, high, strict=True)):
            if not _is(0, a, b):
                d = _int64(_size_of(x, axis))
                x = tf.gather(x, tf.clip_by_value(tf.range(_int64(-a), d + b), 0, d - 1), axis=axis)
        return x
    width = [[_int64(a), _int64(b)] for a, b in zip(low, high, strict=True)]
    return tf.pad(x, width, mode, constant_values=tf.cast(value, x.dtype))


def _is(number: int, *sizes: Any) -> bool:
    """Whether all sizes are known to be that number."""
    return all(isinstance(d, int) and d == number for d in sizes)


_MOVES: dict[Any, Callable[..., Tensor]] = {
    ops.constant: lambda *, value, dtype: tf.constant(value, DTYPES[dtype]),
    ops.literal: lambda *, value, dtype: tf.constant(value.array.astype(NUMPY_DTYPES[dtype])),
    ops.size: lambda *, value, dtype: tf.cast(value, DTYPES[dtype]),
    ops.iota: lambda *, size: tf.range(_int64(size)),
    ops.random_uniform: _random_uniform,
    ops.dropout: _dropout,
    ops.reshape: lambda x, *, shape: tf.reshape(x, [_int64(d) for d in shape]),
    ops.transpose: lambda x, *, perm: tf.transpose(x, perm),
    ops.broadcast_to: lambda x, *, shape: tf.broadcast_to(x, [_int64(d) for d in shape]),
    ops.concat: lambda *xs, axis: tf.concat(xs, axis),
    ops.split: lambda x, *, axis, sizes: tf.split(x, [_int64(s) for s in sizes], axis),
    ops.slice_: lambda x, *, axis, start, stop, step: x[_at(axis, slice(start, stop, step))],
    ops.window: _window,
    ops.update: _update,
    ops.pad: _pad,
    ops.flip: lambda x, *, axis: tf.reverse(x, [axis]),
    ops.roll: lambda x, *, axis, shift: tf.roll(x, shift, axis),
    ops.sum: lambda x, *, axis, keep: tf.reduce_sum(x, axis, keep),
    ops.mean: lambda x, *, axis, keep: tf.reduce_mean(x, axis, keep),
    ops.max: lambda x, *, axis, keep: tf.reduce_max(x, axis, keep),
    ops.min: lambda x, *, axis, keep: tf.reduce_min(x, axis, keep),
    ops.any: lambda x, *, axis, keep: tf.reduce_any(x, axis, keep),
    ops.all: lambda x, *, axis, keep: tf.reduce_all(x, axis, keep),
    ops.logsumexp: lambda x, *, axis, keep: tf.reduce_logsumexp(x, axis, keep),
    ops.softmax: tf.nn.softmax,
    ops.log_softmax: tf.nn.log_softmax,
    ops.cumsum: lambda x, *, axis: tf.cumsum(x, axis),
}

# ---- order and computed places ------------------------------------------------------------------


def _sortable(x: Tensor) -> Tensor:
    """x in a dtype that both the kernels and XLA order, with one zero, where XLA puts -0 before 0."""
    if x.dtype.is_floating:
        return tf.where(x == 0, tf.zeros_like(x), x)
    return tf.cast(x, tf.int32) if x.dtype in (tf.bool, tf.int8, tf.uint8, tf.int16) else x


def _extreme(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rule(x: Tensor, *, axis: int, keep: bool) -> Tensor:
        at = function(_sortable(x), axis, output_type=tf.int64)
        return tf.expand_dims(at, axis) if keep else at

    return rule


def _top_k(x: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    index, last = tf.math.top_k(_sortable(x), k).indices, x.shape.rank - 1
    return tf.gather(x, index, axis=last, batch_dims=last), _int64(index)


def _argsort(x: Tensor, *, axis: int, descending: bool) -> Tensor:
    return _int64(tf.argsort(_sortable(x), axis, "DESCENDING" if descending else "ASCENDING", stable=True))


def _gather(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    last = x.shape.rank - 1
    axis %= last + 1
    perm = list(range(last + 1))
    perm[axis], perm[last] = last, axis
    swap = lambda y: y if axis == last else tf.transpose(y, perm)
    return swap(tf.gather(swap(x), swap(_index(index)), axis=last, batch_dims=last))


def _scatter(x: Tensor, index: Tensor, new: Tensor, *, axis: int, reduce: str) -> Tensor:
    places = tf.meshgrid(*(tf.range(_int64(_size_of(index, i))) for i in range(x.shape.rank)), indexing="ij")
    places[axis] = _int64(index)
    write = tf.tensor_scatter_nd_add if reduce == "add" else tf.tensor_scatter_nd_update
    return write(x, tf.stack(places, -1), new)


_PLACES: dict[Any, Callable[..., Any]] = {
    ops.argmax: _extreme(tf.argmax),
    ops.argmin: _extreme(tf.argmin),
    ops.top_k: _top_k,
    ops.argsort: _argsort,
    ops.gather: _gather,
    ops.scatter: _scatter,
}

# ---- products -----------------------------------------------------------------------------------


def _product(transposed: bool) -> Callable[..., Tensor]:
    """x weight + bias on rows: one matrix product, where a batched one would repeat the weight."""

    def rule(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        *outer, last = (_int64(_size_of(x, i)) for i in range(x.shape.rank))
        y = tf.matmul(tf.reshape(x, [-1, last]), weight, transpose_b=transposed)
        y = y if bias is None else tf.nn.bias_add(y, bias)
        return tf.reshape(y, [*outer, _int64(_size_of(y, 1))])

    return rule


_PRODUCTS: dict[Any, Callable[..., Tensor]] = {ops.matmul: tf.matmul, ops.linear: _product(True), ops.affine: _product(False)}

# ---- convolutions and pools ---------------------------------------------------------------------


def _channels_last(x: Tensor) -> Tensor:
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1])


def _channels_first(x: Tensor) -> Tensor:
    return tf.transpose(x, [0, x.shape.rank - 1, *range(1, x.shape.rank - 1)])


def _padded(x: Tensor, padding: Sequence[tuple[Any, Any]], value: float = 0.0) -> Tensor:
    """Channels-first x with its spatial axes padded."""
    if all(_is(0, *p) for p in padding):
        return x
    return tf.pad(x, [[_int64(a), _int64(b)] for a, b in ((0, 0), (0, 0), *padding)], constant_values=tf.cast(value, x.dtype))


def _plus_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + tf.reshape(bias, [-1] + [1] * (y.shape.rank - 2))


def _spread(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """A kernel [*kernel in out] with zeros between its taps, in place of dilation."""
    for axis, l in enumerate(dilation):
        if l > 1:
            shape = weight.shape.as_list()
            wide = tf.pad(tf.expand_dims(weight, axis + 1), [[0, l - 1] if i == axis + 1 else [0, 0] for i in range(len(shape) + 1)])
            shape[axis] *= l
            weight = tf.reshape(wide, shape)[_at(axis, slice(0, shape[axis] - l + 1))]
    return weight


def _convolve(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """One group, channels-last. The kernels differentiate no dilation, and TensorFlow's way around it no stride beside it."""
    layout = _LAYOUTS[len(stride)]  # named, since eager gradients of Conv3D fail where it is left to be guessed
    if _is(1, *dilation) or not _is(1, *stride):
        return tf.nn.convolution(x, _spread(weight, dilation), stride, "VALID", layout)
    return tf.nn.convolution(x, weight, 1, "VALID", layout, dilations=dilation)


_LAYOUTS: dict[int, Any] = {1: "NWC", 2: "NHWC", 3: "NDHWC"}


def _grouped(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """One convolution for each group: the kernels do not differentiate grouped ones, and XLA does it a hundred times more slowly on a CPU."""
    last, kernel = _channels_last(x), tf.transpose(weight, [*range(2, weight.shape.rank), 1, 0])
    pairs = zip(tf.split(last, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return _channels_first(tf.concat([_convolve(part, w, stride, dilation) for part, w in pairs], -1))


def _taps(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """A depthwise convolution as a sum of shifted products, which XLA fuses into one loop (40 times faster than its own there)."""
    x = tf.repeat(x, weight.shape[0] // groups, 1) if weight.shape[0] != groups else x
    kernel = weight.shape[2:].as_list()
    spans = [(_size_of(x, i) - l * (k - 1) - 1) // s * s + 1 for i, (k, s, l) in enumerate(zip(kernel, stride, dilation, strict=True), 2)]
    terms = []
    for at in itertools.product(*map(range, kernel)):
        starts = [a * l for a, l in zip(at, dilation, strict=True)]
        part = x[(slice(None), slice(None), *(slice(a, a + n, s) for a, n, s in zip(starts, spans, stride, strict=True)))]
        terms.append(part * tf.reshape(weight[(slice(None), 0, *at)], [-1] + [1] * len(kernel)))
    return tf.add_n(terms)


def _depthwise(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """By the depthwise kernel, which takes two axes, one stride for both, and dilation only without stride."""
    n = len(stride)
    if n == 1:
        y = _depthwise(x[:, :, None], weight[:, :, None], (stride[0],) * 2, (dilation[0],) * 2, groups)
        return y[:, :, 0]
    if n > 2 or len(set(stride)) > 1 or not (_is(1, *stride) or _is(1, *dilation)):
        return _taps(x, weight, stride, dilation, groups)
    kernel = tf.transpose(weight, [2, 3, 1, 0])
    kernel = tf.reshape(kernel, [*kernel.shape[:2], groups, weight.shape[0] // groups])
    return _channels_first(tf.nn.depthwise_conv2d(_channels_last(x), kernel, [1, *stride, 1], "VALID", dilations=list(dilation)))


def _conv(depthwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rule(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
        convolve = depthwise if groups > 1 and weight.shape[1] == 1 else _grouped
        return _plus_bias(convolve(_padded(x, padding), weight, stride, dilation, groups), bias)

    return rule


def _xla_depthwise(x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    few = math.prod(weight.shape[2:].as_list()) <= _MOST_TAPS
    return (_taps if few else _depthwise)(x, weight, stride, dilation, groups)


_MOST_TAPS = 64  # a larger kernel compiles for too long


def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups: int
) -> Tensor:
    kernel = _spread(tf.transpose(weight, [*range(2, weight.shape.rank), 1, 0]), dilation)
    last, layout = _channels_last(x), _LAYOUTS[len(stride)]
    full = [(_size_of(x, i) - 1) * s + k for i, (s, k) in enumerate(zip(stride, kernel.shape[:-2], strict=True), 2)]
    shape = tf.stack([tf.cast(d, tf.int32) for d in (_size_of(x, 0), *full, weight.shape[1])])
    pairs = zip(tf.split(last, groups, -1), tf.split(kernel, groups, -1), strict=True)
    y = _channels_first(tf.concat([tf.nn.conv_transpose(part, w, shape, stride, "VALID", layout) for part, w in pairs], -1))
    y = _padded(y, [(0, o) for o in output_padding])
    cut = [slice(lo, f + o - hi) for f, o, (lo, hi) in zip(full, output_padding, padding, strict=True)]
    return _plus_bias(y[(slice(None), slice(None), *cut)], bias)


def _max_pool(x: Tensor, *, kernel: Any, stride: Any, padding: Any) -> Tensor:
    return _channels_first(tf.nn.max_pool(_channels_last(_padded(x, padding, -np.inf)), kernel, stride, "VALID"))


def _average_pool(x: Tensor, *, kernel: Any, stride: Any, padding: Any, count_padding: bool) -> Tensor:
    pool = lambda y: _channels_first(tf.nn.avg_pool(_channels_last(_padded(y, padding)), kernel, stride, "VALID"))
    return pool(x) if count_padding else pool(x) / pool(tf.ones_like(x[:1, :1]))


@TF.native(ops.take)
def _take(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    return tf.gather(x, _index(index), axis=axis)


@TF.native(ops.resize, when=lambda node: node.attrs["mode"] == "nearest")
def _nearest(x: Tensor, *, sizes: Sequence[Any], mode: str, align_corners: bool) -> Tensor:
    """In integers: TensorFlow turns a product and a quotient of floats into one factor, which can fall short of a whole number."""
    for axis, new in enumerate(sizes, 2):
        x = tf.gather(x, tf.range(_int64(new)) * _size_of(x, axis) // new, axis=axis)
    return x


_CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    ops.conv: _conv(_depthwise),
    ops.conv_transpose: _conv_transpose,
    ops.max_pool: _max_pool,
    ops.average_pool: _average_pool,
}

# ---- losses -------------------------------------------------------------------------------------

_NEVER = -1e30  # the logarithm of what is impossible; finite, so that no difference of two is NaN


def _ctc_loss(log_probs: Tensor, labels: Tensor, input_lengths: Tensor, label_lengths: Tensor, *, blank: int) -> Tensor:
    """The forward recursion over time, in 32 bits at least; where no path exists, the loss is infinite and its gradient zero.

    `tf.nn.ctc_loss` is another function: it normalises its operand again, is finite where no path exists, and XLA lacks it.
    """
    log_probs = tf.cast(log_probs, tf.float32) if log_probs.dtype.size < 4 else log_probs
    labels = tf.clip_by_value(_int64(labels), 0, _size_of(log_probs, 2) - 1)  # beyond the length of a row anything may stand
    blanks = tf.fill(tf.shape(labels), _int64(blank))
    path = tf.reshape(tf.stack([blanks, labels], -1), [_int64(_size_of(labels, 0)), -1])
    path = tf.concat([path, tf.fill([tf.shape(labels)[0], 1], _int64(blank))], 1)
    skips = (path != blank) & (path != tf.pad(path, [[0, 0], [2, 0]], constant_values=_int64(blank))[:, :-2])
    seen = tf.gather(tf.transpose(log_probs, [1, 0, 2]), path, axis=2, batch_dims=1)
    seen = tf.transpose(tf.maximum(seen, _NEVER), [1, 0, 2])
    total = _log_likelihood(seen, skips, _int64(input_lengths)[:, None], _int64(label_lengths)[:, None])
    return tf.where(total < _NEVER / 2, tf.cast(np.inf, total.dtype), -total)


@tf.custom_gradient
def _log_likelihood(seen: Tensor, skips: Tensor, steps: Tensor, length: Tensor) -> Any:
    """[batch] of seen [time batch states], whether a state can be reached from two before it, and counts of steps and labels [batch 1].

    The gradient is the probability of being in a state, by the backward recursion; TensorFlow's own would keep lists that cannot leave XLA.
    """
    never, sure = tf.cast(_NEVER, seen.dtype), tf.cast(0, seen.dtype)
    state = tf.range(_int64(tf.shape(seen)[2]))
    times = tf.range(_int64(tf.shape(seen)[0]))
    ends = tf.where((state == 2 * length) | (state == 2 * length - 1), sure, never)
    moved = lambda x, low, high: tf.pad(x, [[0, 0], [low, high]], constant_values=never)
    join = lambda *ways: tf.reduce_logsumexp(tf.stack(ways), 0)

    def forward(alpha: Tensor, now: tuple[Tensor, Tensor]) -> Tensor:
        here, time = now
        ways = join(alpha, moved(alpha, 1, 0)[:, :-1], tf.where(skips, moved(alpha, 2, 0)[:, :-2], never))
        return tf.where(time < steps, ways + here, alpha)

    def backward(beta: Tensor, now: tuple[Tensor, Tensor]) -> Tensor:
        here, time = now
        ways = join(beta, moved(beta, 0, 1)[:, 1:], moved(tf.where(skips, beta, never), 0, 2)[:, 2:])
        return tf.where(time < steps - 1, ways, ends) + here

    begin = tf.where(state == 0, sure, never) + tf.zeros_like(seen[0])
    alpha = tf.scan(forward, (seen, times), begin)
    total = tf.reduce_logsumexp(alpha[-1] + ends, 1)

    def gradient(upstream: Tensor) -> tuple[Tensor, None, None, None]:
        beta = tf.scan(backward, (seen, times), tf.zeros_like(begin), reverse=True)
        counts = (times[:, None, None] < steps) & (total > never / 2)[:, None]
        inside = tf.where(counts, tf.exp(alpha + beta - seen - total[:, None]), sure)
        return upstream[:, None] * inside, None, None, None

    return total, gradient


for _rules in (_ELEMENTWISE, _MOVES, _PLACES, _PRODUCTS, _CONVOLUTIONS, {ops.ctc_loss: _ctc_loss}):
    for _op, _rule in _rules.items():
        TF.native(_op)(_rule)

TF_XLA = TF.derive("tensorflow xla", {ops.conv: _conv(_xla_depthwise)})
