"""The JAX table: what each op is in `jax.numpy` and `lax`. Composites that XLA fuses by itself are left to their decompositions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from ..ir import ops
from ..ir.errors import MissingExtraError
from ..ir.graph import Node, Value
from ..ir.sizes import Dim
from ..ir.table import Table
from ..ir.types import KINDS, NUMPY_DTYPES

try:
    import jax
    import jax.core
    import jax.export
    import jax.numpy as jnp
    from jax import lax
except ImportError as error:
    raise MissingExtraError("jax", "the JAX frontend") from error

_FLAT = -1e30  # the log of nothing: finite, so that no gradient is a difference of infinities


class JaxTable(Table):
    """The rules of JAX; `f32` in the graph means the float of this run, so that one graph runs in f16, bf16, f32 and f64.

    Sizes may be symbolic (`jax.export`); least and largest are JAX's own then.
    """

    def __init__(self) -> None:
        super().__init__("JAX", minimum=jax.core.min_dim, maximum=jax.core.max_dim)
        self.float = "f32"
        self.seen: dict[Dim, Any] = {}

    def for_run(self, float: str) -> JaxTable:
        """The same rules for one run in that float."""
        table = copy.copy(self)
        table.float, table.seen = float, {}
        return table

    def apply(self, node: Node, operands: Iterable[Any], attrs: Mapping[str, Any]) -> Any:
        """The result of one node, its layer's path on every instruction that XLA reports."""
        if attrs.get("dtype") == "f32":
            attrs = {**attrs, "dtype": self.float}
        if node.op is not ops.loop:
            operands = map(_whole, operands)
        double = any(x.type.dtype == "f64" for x in (*node.inputs, *node.outputs) if x is not None)
        with jax.named_scope(node.path or "model"), jax.enable_x64(True) if double else nullcontext():  # else a graph's own f64 is f32
            made = super().apply(node, operands, attrs)
            several = len(node.outputs) > 1
            agreed = tuple(self.agree(v, x) for v, x in zip(node.outputs, made if several else (made,), strict=True))
        return agreed if several else agreed[0]

    def agree(self, value: Value, x: Any) -> Any:
        """x, each symbolic axis in the form in which the run met its size first: two forms of one size JAX does not always prove equal."""
        for axis, d in enumerate(value.shape):
            if isinstance(d, Dim) and jax.export.is_symbolic_dim(x.shape[axis]):
                size = self.seen.setdefault(d, x.shape[axis])
                x = x if size == x.shape[axis] else jnp.take(x, jnp.arange(size), axis)
        return x


class Row:
    """One row of an array that holds a parameter of all blocks; taken out of it only where something else than a loop over all reads it."""

    def __init__(self, stack: Any, index: int):
        self.stack, self.index, self.dtype = stack, index, stack.dtype

    def __jax_array__(self) -> Any:
        return lax.index_in_dim(self.stack, self.index, 0, False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.stack, dtype)[self.index]


def _whole(x: Any) -> Any:
    return jnp.asarray(x) if isinstance(x, Row) else x


def native_dtype(dtype: str) -> np.dtype:
    """The dtype that JAX computes ours in: 64 bits become 32 unless JAX was told to keep them."""
    return jax.dtypes.canonicalize_dtype(NUMPY_DTYPES[dtype])


JAX = JaxTable()
JAX.rules.update(
    {
        ops.exp: jnp.exp,
        ops.log: jnp.log,
        ops.sqrt: jnp.sqrt,
        ops.tanh: jnp.tanh,
        ops.sin: jnp.sin,
        ops.cos: jnp.cos,
        ops.erf: jax.scipy.special.erf,
        ops.floor: jnp.floor,
        ops.ceil: jnp.ceil,
        ops.round_: jnp.round,
        ops.stop_gradient: jax.lax.stop_gradient,
        ops.negative: jnp.negative,
        ops.absolute: jnp.abs,
        ops.sign: jnp.sign,
        ops.not_: jnp.logical_not,
        ops.add: jnp.add,
        ops.sub: jnp.subtract,
        ops.mul: jnp.multiply,
        ops.div: jnp.divide,
        ops.floor_divide: jnp.floor_divide,
        ops.remainder: jnp.remainder,
        ops.power: jnp.power,
        ops.maximum: jnp.maximum,
        ops.minimum: jnp.minimum,
        ops.equal: jnp.equal,
        ops.less: jnp.less,
        ops.less_equal: jnp.less_equal,
        ops.and_: jnp.logical_and,
        ops.or_: jnp.logical_or,
        ops.xor: jnp.logical_xor,
        ops.where: jnp.where,
        ops.cast: lambda x, *, dtype: jnp.asarray(x).astype(native_dtype(dtype)),
        ops.relu: jax.nn.relu,
        ops.sigmoid: jax.nn.sigmoid,
        ops.silu: jax.nn.silu,
        ops.gelu: lambda x, *, approximate: jax.nn.gelu(x, approximate=approximate),
        ops.softplus: jax.nn.softplus,
        ops.leaky_relu: lambda x, *, slope: jax.nn.leaky_relu(x, slope),
        ops.elu: lambda x, *, alpha: jax.nn.elu(x, alpha),
        ops.sum: lambda x, *, axis, keep: jnp.sum(x, axis, dtype=x.dtype, keepdims=keep),
        ops.mean: lambda x, *, axis, keep: jnp.mean(x, axis, keepdims=keep),
        ops.max: lambda x, *, axis, keep: jnp.max(x, axis, keepdims=keep),
        ops.min: lambda x, *, axis, keep: jnp.min(x, axis, keepdims=keep),
        ops.any: lambda x, *, axis, keep: jnp.any(x, axis, keepdims=keep),
        ops.all: lambda x, *, axis, keep: jnp.all(x, axis, keepdims=keep),
        ops.argmax: lambda x, *, axis, keep: jnp.argmax(x, axis, keepdims=keep),
        ops.argmin: lambda x, *, axis, keep: jnp.argmin(x, axis, keepdims=keep),
        ops.cumsum: lambda x, *, axis: jnp.cumsum(x, axis, dtype=x.dtype),
        ops.logsumexp: lambda x, *, axis, keep: jax.nn.logsumexp(x, axis, keepdims=keep),
        ops.softmax: lambda x, *, axis: jax.nn.softmax(x, axis),
        ops.log_softmax: lambda x, *, axis: jax.nn.log_softmax(x, axis),
        ops.top_k: lambda x, *, k: lax.top_k(x, k),
        ops.argsort: lambda x, *, axis, descending: jnp.argsort(x, axis, stable=True, descending=descending),
        ops.sort: lambda x, *, axis, descending: jnp.sort(x, axis, descending=descending),
        ops.reshape: lambda x, *, shape: jnp.reshape(x, shape),
        ops.transpose: lambda x, *, perm: jnp.transpose(x, perm),
        ops.broadcast_to: lambda x, *, shape: jnp.broadcast_to(x, shape),
        ops.concat: lambda *xs, axis: jnp.concatenate(xs, axis),
        ops.split: lambda x, *, axis, sizes: tuple(lax.split(x, sizes, axis)),
        ops.flip: lambda x, *, axis: jnp.flip(x, axis),
        ops.roll: lambda x, *, axis, shift: jnp.roll(x, shift, axis),
        ops.gather: lambda x, index, *, axis: jnp.take_along_axis(x, index, axis),
        ops.iota: lambda *, size: jnp.arange(size),
        ops.literal: lambda *, value, dtype: jnp.asarray(value.array, native_dtype(dtype)),
        ops.matmul: jnp.matmul,
        ops.linear: lambda x, weight, bias: _plus(jnp.matmul(x, weight.T), bias),
        ops.affine: lambda x, weight, bias: _plus(jnp.matmul(x, weight), bias),
    }
)


def _plus(y: Any, bias: Any) -> Any:
    return y if bias is None else y + bias


@JAX.native(ops.take)
def _take(x, index, *, axis):
    return jnp.take(x, index, axis)


@JAX.native(ops.constant)
def _constant(*, value, dtype):
    """A Python number, which takes the dtype of what it meets; a finite one stays finite in the float of the run."""
    if dtype in KINDS["float"]:
        largest = float(jnp.finfo(native_dtype(dtype)).max)
        return float(value) if abs(value) == np.inf else float(np.clip(value, -largest, largest))
    return bool(value) if dtype == "bool" else int(value)


@JAX.native(ops.size)
def _size(*, value, dtype):
    return _constant(value=value, dtype=dtype) if isinstance(value, int) else jnp.asarray(value).astype(native_dtype(dtype))


@JAX.native(ops.random_uniform)
def _random_uniform(key, *, shape, site):
    return jax.random.uniform(_key_of(key, site), shape, jnp.float32)


def _key_of(key: Any, site: Any) -> Any:
    return jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), site)


@JAX.native(ops.dropout)
def _dropout(x, key, *, rate, site):
    """Sixteen bits for each element, two of a draw: what dropout costs is the draws. The rate is right to 1 / 65536, the mean is kept."""
    if not (kept := round((1 - rate) * 65536)):
        return jnp.zeros_like(x)
    key = _key_of(key, site)
    if jax.export.is_symbolic_dim(x.size):
        draws = jax.random.bits(key, x.shape, jnp.uint16)
    else:
        draws = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32).view(jnp.uint16)[: x.size].reshape(x.shape)
    return jnp.where(draws <= kept - 1, x * (65536 / kept), 0)


# A slice whose symbolic ends JAX cannot prove to lie within x is read or written by index.


@JAX.native(ops.slice_)
def _slice(x, *, axis, start, stop, step):
    try:
        return lax.slice_in_dim(x, start, stop, step, axis)
    except jax.errors.InconclusiveDimensionOperation:
        return jnp.take(x, start + step * jnp.arange((stop - start + step - 1) // step), axis)


@JAX.native(ops.window)
def _window(x, start, *, axis, length):
    try:
        return lax.dynamic_slice_in_dim(x, start, length, axis)
    except jax.errors.InconclusiveDimensionOperation:
        return jnp.take(x, start + jnp.arange(length), axis)


@JAX.native(ops.update)
def _update(x, new, start, *, axis):
    try:
        return lax.dynamic_update_slice_in_dim(x, new, start, axis)
    except jax.errors.InconclusiveDimensionOperation:
        return x.at[(slice(None),) * axis + (start + jnp.arange(new.shape[axis]),)].set(new)


@JAX.native(ops.pad)
def _pad(x, *, low, high, mode, value):
    if mode == "constant":
        return lax.pad(x, jnp.asarray(value).astype(x.dtype), [(a, b, 0) for a, b in zip(low, high, strict=True)])
    for axis, (before, after) in enumerate(zip(low, high, strict=True)):
        if isinstance(before, int) and isinstance(after, int) and before == after == 0:
            continue
        last = x.shape[axis] - 1
        at = jnp.arange(x.shape[axis] + before + after) - before
        if mode == "reflect":  # a triangle wave, as often as it takes; the only element of an axis of size 1 is its own mirror image
            at = last - jnp.abs(last - at % jnp.maximum(2 * last, 1))
        x = jnp.take(x, jnp.clip(at, 0, last), axis)
    return x


@JAX.native(ops.scatter)
def _scatter(x, index, new, *, axis, reduce):
    places = [jnp.reshape(jnp.arange(d), (-1, *(1,) * (index.ndim - 1 - i))) for i, d in enumerate(index.shape)]
    places[axis] = index
    spot = x.at[tuple(places)]
    return spot.set(new) if reduce == "set" else spot.add(new)


@JAX.native(ops.loop, node=True)
def _loop(node, *xs, body, carries, shared, count):
    """A scan: XLA compiles the body once. What differs between iterations is stacked, and what they make is taken apart again."""
    carried, same, own = tuple(map(_whole, xs[:carries])), [_whole(x) for x in xs[carries : carries + shared]], xs[carries + shared :]
    stacked = [_stacked(own[i : i + count], carried) for i in range(0, len(own), count)]

    def step(carried, row):
        index, *rows = row
        made = body(*carried, *same, *rows, index=index)
        return made[:carries], made[carries:]

    carried, made = lax.scan(step, carried, (jnp.arange(count), *stacked))
    results = (*carried, *(lax.index_in_dim(y, i, 0, False) for y in made for i in range(count)))
    return results if len(node.outputs) > 1 else results[0]


@JAX.native(ops.while_loop, node=True)
def _while_loop(node, again, *xs, body, carries, most):
    def step(state):
        index, _, carried = state
        again, *carried = body(*carried, *xs[carries:], index=index)
        return index + 1, jnp.asarray(again), fitted(carried)

    float = jnp.result_type(jnp.float16, *[x for x in xs if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)])
    dtypes = [float if v.type.dtype == "f32" else native_dtype(v.type.dtype) for v in node.outputs]
    fitted = lambda carried: tuple(jnp.asarray(x, dtype) for x, dtype in zip(carried, dtypes, strict=True))
    start = (jnp.asarray(0, native_dtype("i64")), jnp.asarray(again), fitted(xs[:carries]))
    *_, carried = lax.while_loop(lambda state: state[1] & (state[0] < most), step, start)
    return carried if carries > 1 else carried[0]


def _stacked(xs, carried):
    """Joined on a new first axis; Python numbers take the float that is carried along."""
    if all(isinstance(x, Row) and x.stack is xs[0].stack and x.index == xs[0].index + i for i, x in enumerate(xs)):
        return lax.slice_in_dim(xs[0].stack, xs[0].index, xs[0].index + len(xs))
    if isinstance(xs[0], (bool, int, float)):
        kind = jnp.result_type(*[c for c in carried if not isinstance(c, (bool, int, float))]) if isinstance(xs[0], float) else None
        return jnp.asarray(xs, kind)
    xs = [_whole(x) for x in xs]
    if not xs[0].ndim:
        return jnp.stack(xs)
    return jnp.reshape(jnp.concatenate(xs), (len(xs), *xs[0].shape))  # one instruction for all, where a stack has one for each


def _grouped(q, kv_heads):
    *batch, heads, rows, d = q.shape
    return jnp.reshape(q, (*batch, kv_heads, heads // kv_heads, rows, d))


def _joined(x):
    *batch, kv_heads, group, rows, d = x.shape
    return jnp.reshape(x, (*batch, kv_heads * group, rows, d))


@JAX.native(ops.attention_weights)
def _attention_weights(q, k, mask, bias, start, *, scale, causal):
    """Key heads are not repeated; a masked score is the least finite one of the dtype, so that no step makes a NaN (`jax_debug_nans`)."""
    same = q.shape[-3] == k.shape[-3]
    q = q * scale
    scores = jnp.einsum("...qd,...kd->...qk", q, k) if same else _joined(jnp.einsum("...hgqd,...hkd->...hgqk", _grouped(q, k.shape[-3]), k))
    if bias is not None:
        scores = scores + bias
    if causal:
        rows, keys = q.shape[-2], k.shape[-2]
        seen = jnp.arange(keys) <= jnp.arange(rows)[:, None] + (keys - rows if start is None else start)
        mask = seen if mask is None else jnp.logical_and(mask, seen)
    if mask is None:
        return jax.nn.softmax(scores)
    weights = jax.nn.softmax(jnp.where(mask, scores, float(jnp.finfo(scores.dtype).min)))
    return jnp.where(jnp.any(mask, -1, keepdims=True), weights, 0.0)


@JAX.native(ops.attention, when=lambda node: not node.attrs["dropout"])
def _attention(q, k, v, mask, bias, start, key, *, scale, causal, dropout, site):
    weights = _attention_weights(q, k, mask, bias, start, scale=scale, causal=causal)
    if q.shape[-3] == v.shape[-3]:
        return jnp.matmul(weights, v)
    return _joined(jnp.einsum("...hgqk,...hkd->...hgqd", _grouped(weights, v.shape[-3]), v))


def _per_channel(y, bias, n):
    return _plus(y, None if bias is None else jnp.reshape(bias, (-1, *(1,) * n)))


@JAX.native(ops.conv)
def _conv(x, weight, bias, *, stride, padding, dilation, groups):
    y = lax.conv_general_dilated(x, weight, stride, padding, rhs_dilation=dilation, feature_group_count=groups)
    return _per_channel(y, bias, x.ndim - 2)


@JAX.native(ops.conv_transpose)
def _conv_transpose(x, weight, bias, *, stride, padding, output_padding, dilation, groups):
    """A convolution over x with stride - 1 zeros between its elements, by the mirrored kernel."""
    channels, per_group, *kernel = weight.shape
    weight = jnp.reshape(jnp.flip(weight, range(2, weight.ndim)), (groups, channels // groups, per_group, *kernel))
    weight = jnp.reshape(jnp.swapaxes(weight, 1, 2), (groups * per_group, channels // groups, *kernel))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sides = [(r - low, r - high + more) for r, (low, high), more in zip(reach, padding, output_padding, strict=True)]
    y = lax.conv_general_dilated(x, weight, (1,) * len(kernel), sides, lhs_dilation=stride, rhs_dilation=dilation, feature_group_count=groups)
    return _per_channel(y, bias, len(kernel))


def _windows(x, fill, function, kernel, stride, padding):
    fill = np.asarray(fill, x.dtype)  # NumPy's, so that it is known under jit: only with the identity of `function` is there a gradient
    return lax.reduce_window(x, fill, function, (1, 1, *kernel), (1, 1, *stride), ((0, 0), (0, 0), *padding))


@JAX.native(ops.max_pool)
def _max_pool(x, *, kernel, stride, padding):
    return _windows(x, -np.inf, lax.max, kernel, stride, padding)


@JAX.native(ops.average_pool)
def _average_pool(x, *, kernel, stride, padding, count_padding):
    total = _windows(x, 0, lax.add, kernel, stride, padding)
    if count_padding:
        return total / float(np.prod(kernel))
    return total / _windows(jnp.ones((1, 1, *x.shape[2:]), x.dtype), 0, lax.add, kernel, stride, padding)


@JAX.native(ops.ctc_loss)
def _ctc_loss(log_probs, labels, input_lengths, label_lengths, *, blank):
    """The forward recursion over blank, label, blank, label ... blank, all rows of the batch at once."""
    batch, length = labels.shape
    inside = jnp.arange(length) < label_lengths[:, None]
    blanks = jnp.full_like(labels, blank)
    path = jnp.reshape(jnp.stack((blanks, jnp.where(inside, labels, blank)), -1), (batch, 2 * length))
    path = jnp.concatenate((path, jnp.full((batch, 1), blank, labels.dtype)), 1)
    place = jnp.arange(2 * length + 1)
    skips = jnp.logical_and(path != blank, path != jnp.roll(path, 2, 1)) & (place >= 2)
    log_probs = jnp.maximum(log_probs, _FLAT)
    emitted = lambda now: jnp.take_along_axis(now, path, 1)

    def step(alpha, row):
        now, t = row
        one = jnp.where(place >= 1, jnp.roll(alpha, 1, 1), _FLAT)
        two = jnp.where(skips, jnp.roll(alpha, 2, 1), _FLAT)
        moved = jnp.maximum(jnp.logaddexp(jnp.logaddexp(alpha, one), two) + emitted(now), _FLAT)
        return jnp.where((t < input_lengths)[:, None], moved, alpha), None

    started = (place == 0) | ((place == 1) & (label_lengths[:, None] > 0))
    alpha = jnp.where(started, emitted(log_probs[0]), _FLAT)
    alpha, _ = lax.scan(step, alpha, (log_probs[1:], jnp.arange(1, log_probs.shape[0])))
    end = 2 * label_lengths[:, None]
    last = jnp.take_along_axis(alpha, end, 1)[:, 0]
    before = jnp.where(label_lengths > 0, jnp.take_along_axis(alpha, jnp.maximum(end - 1, 0), 1)[:, 0], _FLAT)
    total = jnp.logaddexp(last, before)
    return jnp.where(total < 0.5 * _FLAT, jnp.inf, -total)
