"""ONNX rules by op and opset. A rule writes on a tape: `rule(tape, node, *operands, **attributes)`, operands being names of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..ir import ops
from ..ir.graph import Graph, Node, Param
from ..ir.op import Op
from ..ir.signature import broadcast
from ..ir.sizes import Size, product
from ..ir.table import Table, run
from ..ir.types import KINDS, NUMPY_DTYPES
from .onnx_tape import DATA_TYPES, Tape


class Rule(NamedTuple):
    """What writes an op, from which opset on, and for which nodes."""

    since: int
    write: Callable[..., Any]
    when: Callable[[Node], bool] | None


RULES: dict[Op, list[Rule]] = {}
MICROSOFT = "com.microsoft"  # the domain of what onnxruntime adds to ONNX


class OnnxTable(Table):
    """The rules of the tape's opset; sizes in attributes stay symbolic, the tape computes them where a rule needs them."""

    def __init__(self, tape: Tape):
        super().__init__(f"ONNX opset {tape.opset}", size_of=None)
        self.tape = tape
        for op, rules in RULES.items():
            if fit := [r for r in rules if r.since <= tape.opset]:
                newest = max(fit, key=lambda r: r.since)
                self.native(op, node=True, when=newest.when)(partial(_write, newest.write, tape))


def _write(write: Callable[..., Any], tape: Tape, node: Node, *operands: Any, **attrs: Any) -> Any:
    tape.path = node.path
    return write(tape, node, *operands, **attrs)


def rule(*named: Op, since: int = 1, when: Callable[[Node], bool] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declares how ops are written from opset `since` on, for nodes for which `when` holds; others are decomposed."""

    def declare(write: Callable[..., Any]) -> Callable[..., Any]:
        for op in named:
            RULES.setdefault(op, []).append(Rule(since, write, when))
        return write

    return declare


def shape_in(node: Node, i: int = 0) -> tuple[Size, ...]:
    """The sizes of an operand."""
    return node.inputs[i].shape  # type: ignore[union-attr]


def dtype_in(node: Node, i: int = 0) -> str:
    """The dtype of an operand."""
    return node.inputs[i].type.dtype  # type: ignore[union-attr]


# ---- elementwise --------------------------------------------------------------------------------

NAMED = {
    ops.exp: "Exp", ops.log: "Log", ops.sqrt: "Sqrt", ops.tanh: "Tanh", ops.sin: "Sin", ops.cos: "Cos", ops.erf: "Erf", ops.floor: "Floor",
    ops.ceil: "Ceil", ops.round_: "Round", ops.negative: "Neg", ops.absolute: "Abs", ops.sign: "Sign", ops.not_: "Not", ops.add: "Add",
    ops.sub: "Sub", ops.mul: "Mul", ops.div: "Div", ops.power: "Pow", ops.maximum: "Max", ops.minimum: "Min", ops.equal: "Equal",
    ops.less: "Less", ops.less_equal: "LessOrEqual", ops.and_: "And", ops.or_: "Or", ops.xor: "Xor", ops.relu: "Relu", ops.sigmoid: "Sigmoid",
    ops.softplus: "Softplus", ops.matmul: "MatMul", ops.remainder: "Mod",
}  # fmt: skip
for _op, _kind in NAMED.items():
    rule(_op)(lambda t, node, *xs, kind=_kind: t(kind, *xs))

rule(ops.stop_gradient)(lambda t, node, x: x)
rule(ops.leaky_relu)(lambda t, node, x, *, slope: t("LeakyRelu", x, alpha=float(slope)))
rule(ops.elu)(lambda t, node, x, *, alpha: t("Elu", x, alpha=float(alpha)))
rule(ops.cast)(lambda t, node, x, *, dtype: x if dtype_in(node) == dtype else t("Cast", x, to=DATA_TYPES[dtype]))


@rule(ops.floor_divide)
def _(t: Tape, node: Node, x: str, y: str) -> str:
    # Div rounds towards zero, Mod takes the divisor's sign
    return t("Div", t("Sub", x, t("Mod", x, y)), y)


@rule(ops.where)
def _(t: Tape, node: Node, test: str, x: str, y: str) -> str:
    if dtype_in(node, 1) == "bool":  # onnxruntime has no kernel
        return t("Or", t("And", test, x), t("And", t("Not", test), y))
    return t("Where", test, x, y)


@rule(ops.gelu, since=20)
def _(t: Tape, node: Node, x: str, *, approximate: bool) -> str:
    return t("Gelu", x, approximate="tanh" if approximate else "none")


# ---- leaves -------------------------------------------------------------------------------------

rule(ops.constant)(lambda t, node, *, value, dtype: t.constant(value, dtype))
rule(ops.dropout, when=lambda node: node.attrs["rate"] == 0)(lambda t, node, x, key, **_: x)
rule(ops.literal)(lambda t, node, *, value, dtype: t.constant(value.array, dtype))


@rule(ops.size)
def _(t: Tape, node: Node, *, value: Size, dtype: str) -> str:
    if isinstance(value, int):
        return t.constant(value, dtype)
    return t.number(value) if dtype == "i64" else t("Cast", t.number(value), to=DATA_TYPES[dtype])


@rule(ops.iota)
def _(t: Tape, node: Node, *, size: Size) -> str:
    if isinstance(size, int):
        return t.constant(np.arange(size))
    return t("Range", t.constant(0), t.number(size), t.constant(1))


# ---- shape --------------------------------------------------------------------------------------

rule(ops.reshape)(lambda t, node, x, *, shape: t.reshape(x, shape_in(node), shape))
rule(ops.transpose)(lambda t, node, x, *, perm: t.transpose(x, perm))
rule(ops.broadcast_to)(lambda t, node, x, *, shape: x if shape_in(node) == shape else t("Expand", x, t.shape(shape)))
rule(ops.concat)(lambda t, node, *xs, axis: xs[0] if len(xs) == 1 else t("Concat", *xs, axis=axis))
rule(ops.flip)(lambda t, node, x, *, axis: _slice(t, x, axis, t.constant([-1]), t.constant([np.iinfo(np.int64).min]), -1))
rule(ops.slice_)(lambda t, node, x, *, axis, start, stop, step: _slice(t, x, axis, t.length(start), t.length(stop), step))


def _slice(t: Tape, x: str, axis: int, start: str, stop: str, step: int = 1) -> str:
    return t("Slice", x, start, stop, t.constant([axis]), *([] if step == 1 else [t.constant([step])]))


@rule(ops.split)
def _(t: Tape, node: Node, x: str, *, axis: int, sizes: tuple[Size, ...]) -> Any:
    if len(sizes) == 1:
        return x
    return t("Split", x, t.shape(sizes), axis=axis, outputs=len(sizes))


@rule(ops.window)
def _(t: Tape, node: Node, x: str, start: str, *, axis: int, length: Size) -> str:
    first = _index(t, node, start)
    return _slice(t, x, axis, first, t("Add", first, t.length(length)))


@rule(ops.update)
def _(t: Tape, node: Node, x: str, new: str, start: str, *, axis: int) -> str:
    first = _index(t, node, start)
    last = t("Add", first, t.length(shape_in(node, 1)[axis]))
    end = t.constant([np.iinfo(np.int64).max])
    return t("Concat", _slice(t, x, axis, t.constant([0]), first), new, _slice(t, x, axis, last, end), axis=axis)


def _index(t: Tape, node: Node, start: str) -> str:
    """The last operand, an integer, as i64[1]."""
    wide = start if dtype_in(node, -1) == "i64" else t("Cast", start, to=DATA_TYPES["i64"])
    return t("Reshape", wide, t.constant([1]))


@rule(ops.pad)
def _(t: Tape, node: Node, x: str, *, low: tuple[Size, ...], high: tuple[Size, ...], mode: str, value: float) -> str:
    fill = t.constant(value, dtype_in(node)) if mode == "constant" else None
    return t("Pad", x, t.shape((*low, *high)), fill, mode=mode)


# ---- products -----------------------------------------------------------------------------------


@rule(ops.linear)
def _(t: Tape, node: Node, x: str, weight: str, bias: str | None) -> str:
    return _product(t, node, x, weight, bias, shape_in(node, 1)[0], transB=1)


@rule(ops.affine)
def _(t: Tape, node: Node, x: str, weight: str, bias: str | None) -> str:
    return _product(t, node, x, weight, bias, shape_in(node, 1)[1])


def _product(t: Tape, node: Node, x: str, weight: str, bias: str | None, width: Size, transB: int | None = None) -> str:
    """Rows times weight: the weight stays as the checkpoint has it, so that it can be referenced in place."""
    source = shape_in(node)
    rows = (product(source[:-1]), source[-1])
    y = t("Gemm", t.reshape(x, source, rows), weight, bias, transB=transB)
    return t.reshape(y, (rows[0], width), (*source[:-1], width))


def _sized(t: Tape, node: Node, x: str) -> str:
    """x with its last size stated where heads were joined: of Attention's result onnx infers 0 where it does not know the operands'."""
    joined = node.inputs[0].node is not None and node.inputs[0].node.op is ops.reshape  # type: ignore[union-attr]
    return t("Reshape", x, t.constant([*[0] * (len(shape_in(node)) - 1), shape_in(node)[-1]])) if joined else x


def _packed(node: Node) -> bool:
    """MatMulNBits packs weights that are constants; with others it multiplies floats."""
    return dtype_in(node) == "f32" and shape_in(node)[:-1] != () and isinstance(node.inputs[1], Param)


@rule(ops.quantized_linear, when=_packed)
def _(t: Tape, node: Node, x: str, weight: str, scale: str, bias: str | None, *, bits: int) -> str:
    width, block = shape_in(node, 1)[0], shape_in(node, 1)[-1] * 8 // bits
    sizes = {"K": shape_in(node)[-1], "N": width, "bits": bits, "block_size": block}
    x = _sized(t, node, x)
    # level 4 lets the kernel multiply bytes, which is several times as fast; without it 8 bits have no kernel of their own
    return t("MatMulNBits", x, weight, scale, None, None, bias, domain=MICROSOFT, accuracy_level=4, **sizes)


@rule(ops.dynamic_quantized_linear, when=lambda node: dtype_in(node) == "f32")
def _(t: Tape, node: Node, x: str, weight: str, scale: str, bias: str | None) -> str:
    # standard operators: onnxruntime makes one kernel of them, which is as fast as its own DynamicQuantizeMatMul
    rounded, step, zero = t("DynamicQuantizeLinear", _sized(t, node, x), outputs=3)
    y = t("Cast", t("MatMulInteger", rounded, weight, zero), to=DATA_TYPES["f32"])
    y = t("Mul", y, t("Mul", step, scale))
    return y if bias is None else t("Add", y, bias)


# ---- reductions and order -----------------------------------------------------------------------


def _reduction(kind: str, t: Tape, node: Node, x: str, *, axis: int | tuple[int, ...], keep: bool) -> str:
    axes = axis if isinstance(axis, tuple) else (axis,)
    if t.opset < 18 and kind != "ReduceSum":  # axes became an operand: for sums in opset 13, for others in 18
        return t(kind, x, axes=axes, keepdims=int(keep))
    return t(kind, x, t.constant(axes), keepdims=int(keep))


REDUCTIONS = {ops.sum: "ReduceSum", ops.mean: "ReduceMean", ops.max: "ReduceMax", ops.min: "ReduceMin", ops.logsumexp: "ReduceLogSumExp"}
for _op, _kind in REDUCTIONS.items():
    rule(_op)(partial(_reduction, _kind))

rule(ops.argmax)(lambda t, node, x, *, axis, keep: t("ArgMax", x, axis=axis, keepdims=int(keep)))
rule(ops.argmin)(lambda t, node, x, *, axis, keep: t("ArgMin", x, axis=axis, keepdims=int(keep)))
rule(ops.cumsum)(lambda t, node, x, *, axis: t("CumSum", x, t.constant(axis)))
rule(ops.softmax)(lambda t, node, x, *, axis: t("Softmax", x, axis=axis))
rule(ops.log_softmax)(lambda t, node, x, *, axis: t("LogSoftmax", x, axis=axis))
rule(ops.top_k)(lambda t, node, x, *, k: t("TopK", x, t.length(k), axis=-1, outputs=2))
rule(ops.sort)(lambda t, node, x, *, axis, descending: _ordered(t, node, x, axis, descending)[0])
rule(ops.argsort)(lambda t, node, x, *, axis, descending: _ordered(t, node, x, axis, descending)[1])


def _ordered(t: Tape, node: Node, x: str, axis: int, descending: bool) -> tuple[str, str]:
    return t("TopK", x, t.length(shape_in(node)[axis]), axis=axis, largest=int(descending), outputs=2)


# ---- index --------------------------------------------------------------------------------------

rule(ops.take, ops.embedding)(lambda t, node, x, index, *, axis=0, frozen=None: t("Gather", x, _wide(t, node, index), axis=axis))
rule(ops.gather)(lambda t, node, x, index, *, axis: t("GatherElements", x, _wide(t, node, index), axis=axis))


@rule(ops.scatter)
def _(t: Tape, node: Node, x: str, index: str, new: str, *, axis: int, reduce: str) -> str:
    return t("ScatterElements", x, _wide(t, node, index), new, axis=axis, reduction="add" if reduce == "add" else None)


def _wide(t: Tape, node: Node, index: str) -> str:
    """The index operand in a dtype that ONNX takes."""
    return index if dtype_in(node, 1) in ("i32", "i64") else t("Cast", index, to=DATA_TYPES["i64"])


# ---- attention ----------------------------------------------------------------------------------

LOWEST = {name: float(ml_dtypes.finfo(NUMPY_DTYPES[name]).min) for name in KINDS["float"]}


def _attention_fits(node: Node) -> bool:
    """Attention-23 takes 4-D operands of one batch, a mask of theirs or of 1, and counts causal rows from the first key."""
    q, k, v, mask, bias, start, _ = node.inputs
    if node.attrs["dropout"] or q.rank != 4 or not q.shape[0] == k.shape[0] == v.shape[0]:  # type: ignore[union-attr]
        return False
    if any(m is not None and (m.rank > 4 or (m.rank == 4 and m.shape[0] not in (1, q.shape[0]))) for m in (mask, bias)):  # type: ignore[union-attr]
        return False
    return not node.attrs["causal"] or (mask is None and start is None and q.shape[-2] == k.shape[-2])  # type: ignore[union-attr]


@rule(ops.attention, since=23, when=_attention_fits)
def _(t: Tape, node: Node, q: str, k: str, v: str, mask: str | None, bias: str | None, *_: str | None, scale: float, causal: bool, **__: Any) -> str:
    attrs: dict[str, Any] = {"scale": float(scale), "is_causal": int(causal) or None}
    added, seen = _added(t, node, mask, bias), _seen(t, node, mask)
    batch, heads, rows = shape_in(node)[:3]
    kv_heads, width = shape_in(node, 1)[1], shape_in(node, 2)[-1]
    sources = [t.untransposed(x) for x in (q, k, v)]
    if any(perm != (0, 2, 1, 3) for _, perm in sources) or (seen and seen[1][1] != 1):
        y = t("Attention", q, k, v, added, **attrs)
        return t("Mul", y, seen[0]) if seen else y
    # operands made of [batch rows heads size] are taken as [batch rows heads*size]: nothing is moved
    q, k, v = (_joined(t, x, shape_in(node, i)) for i, (x, _) in enumerate(sources))
    y = t("Attention", q, k, v, added, q_num_heads=heads, kv_num_heads=kv_heads, **attrs)
    y = t("Mul", y, t.reshape(*seen, (seen[1][0], *seen[1][2:]))) if seen else y
    return t.transpose(t.reshape(y, (batch, rows, heads * width), (batch, rows, heads, width)), (0, 2, 1, 3))


def _joined(t: Tape, x: str, shape: tuple[Size, ...]) -> str:
    """[batch heads rows size] as [batch rows heads*size], given the shape after heads and rows change places."""
    batch, heads, rows, size = shape
    return t.reshape(x, (batch, rows, heads, size), (batch, rows, heads * size))


def _added(t: Tape, node: Node, mask: str | None, bias: str | None) -> str | None:
    """What is added to scores, of rank 4 and with the rows of the queries, which the operator does not repeat itself.

    It is finite: runtimes that are older than the rule that a row without any key is zero (onnx 1.23) give NaN for infinities there.
    """
    dtype = dtype_in(node)
    added = bias if mask is None else t("Where", mask, bias or t.constant(0, dtype), t.constant(LOWEST[dtype], dtype))
    if added is None:
        return None
    shape = broadcast(*(x.shape for x in node.inputs[3:5] if x is not None))
    wide = (*(1,) * (4 - len(shape)), *shape)
    rows = shape_in(node)[-2]
    added = t.reshape(added, shape, wide)
    return added if wide[-2] == rows else t("Expand", added, t.shape((1, 1, rows, 1)))


def _seen(t: Tape, node: Node, mask: str | None) -> tuple[str, tuple[Size, ...]] | None:
    """1 for a row that sees some key, else 0, [batch|1 heads|1 rows|1 1], and these sizes: what older runtimes give is multiplied by it."""
    if mask is None:
        return None
    shape = (*(1,) * (4 - len(shape_in(node, 3))), *shape_in(node, 3))
    some = t("ReduceMax", t.reshape(mask, shape_in(node, 3), shape), t.constant([-1]), keepdims=1)
    return t("Cast", some, to=DATA_TYPES[dtype_in(node)]), (*shape[:-1], 1)


def _rotary_fits(node: Node) -> bool:
    """RotaryEmbedding-23 takes [batch heads seq head] and angles [batch seq head/2] that all heads share."""
    x, cos, _ = node.inputs
    shared = cos.rank == 2 or (cos.rank == 4 and cos.shape[1] == 1 and cos.shape[0] in (1, x.shape[0]))  # type: ignore[union-attr]
    return x.rank == 4 and shared and cos.shape[-2] == x.shape[-2]  # type: ignore[union-attr]


@rule(ops.rotary, since=23, when=_rotary_fits)
def _(t: Tape, node: Node, x: str, cos: str, sin: str, *, interleaved: bool) -> str:
    shape, wide = shape_in(node, 1), (shape_in(node)[0], *shape_in(node, 1)[-2:])

    def angles(a: str) -> str:
        flat = t.reshape(a, shape, shape[:1] + shape[2:]) if len(shape) == 4 else a
        return flat if len(shape) == 4 and shape[0] == wide[0] else t("Expand", flat, t.shape(wide))

    return t("RotaryEmbedding", x, angles(cos), angles(sin), interleaved=int(interleaved) or None)


# ---- convolution --------------------------------------------------------------------------------


def _spatial(*, stride: tuple[int, ...], padding: tuple[tuple[int, int], ...], dilation: tuple[int, ...] | None = None) -> dict[str, Any]:
    return {"strides": stride, "pads": tuple(p[0] for p in padding) + tuple(p[1] for p in padding), "dilations": dilation}


@rule(ops.conv)
def _(t: Tape, node: Node, x: str, weight: str, bias: str | None, *, groups: int, **places: Any) -> str:
    return t("Conv", x, weight, bias, group=groups, **_spatial(**places))


@rule(ops.conv_transpose)
def _(t: Tape, node: Node, x: str, weight: str, bias: str | None, *, groups: int, output_padding: Any, **places: Any) -> str:
    return t("ConvTranspose", x, weight, bias, group=groups, output_padding=output_padding, **_spatial(**places))


rule(ops.max_pool)(lambda t, node, x, *, kernel, **places: t("MaxPool", x, kernel_shape=kernel, **_spatial(**places)))


@rule(ops.average_pool)
def _(t: Tape, node: Node, x: str, *, kernel: Any, count_padding: bool, **places: Any) -> str:
    return t("AveragePool", x, kernel_shape=kernel, count_include_pad=int(count_padding), **_spatial(**places))


# onnxruntime computes nearest places in float32, which may round to the other side, and cubic ones for images only
@rule(ops.resize, when=lambda node: node.inputs[0].rank == 4 and node.attrs["mode"] != "nearest")  # type: ignore[union-attr]
def _(t: Tape, node: Node, x: str, *, sizes: tuple[Size, ...], mode: str, align_corners: bool) -> str:
    sizes = (*shape_in(node)[:2], *sizes)
    if sizes == shape_in(node):
        return x
    place = "align_corners" if align_corners else "half_pixel"
    cubic = -0.75 if mode == "cubic" else None
    return t("Resize", x, None, None, t.shape(sizes), mode=mode, coordinate_transformation_mode=place, cubic_coeff_a=cubic)


# ---- normalisation ------------------------------------------------------------------------------


@rule(ops.layer_norm, since=17, when=lambda node: node.inputs[1] is not None or isinstance(node.inputs[0].shape[-1], int))  # type: ignore[union-attr]
def _(t: Tape, node: Node, x: str, scale: str | None, shift: str | None, *, eps: float) -> str:
    if scale is None:
        scale = t.constant(np.ones(shape_in(node)[-1]), dtype_in(node))  # type: ignore[call-overload]
    return t("LayerNormalization", x, scale, shift, axis=-1, epsilon=float(eps))


rule(ops.rms_norm, since=23)(lambda t, node, x, scale, *, eps: t("RMSNormalization", x, scale, axis=-1, epsilon=float(eps)))


@rule(ops.group_norm)
def _(t: Tape, node: Node, x: str, scale: str, shift: str, *, groups: int, eps: float) -> str:
    # GroupNormalization has no kernel in onnxruntime's CPU provider, InstanceNormalization has: the groups are its channels
    shape, dtype = shape_in(node), dtype_in(node)
    grouped = (shape[0], groups, product(shape[1:]) // groups)
    one, zero = t.constant(np.ones(groups), dtype), t.constant(np.zeros(groups), dtype)
    y = t.reshape(t("InstanceNormalization", t.reshape(x, shape, grouped), one, zero, epsilon=float(eps)), grouped, shape)
    wide = (shape[1], *(1,) * (len(shape) - 2))
    return t("Add", t("Mul", y, t.reshape(scale, shape[1:2], wide)), t.reshape(shift, shape[1:2], wide))


@rule(ops.batch_norm)
def _(t: Tape, node: Node, x: str, *vectors: str, eps: float) -> str:
    return t("BatchNormalization", x, *vectors, epsilon=float(eps))


# ---- loops --------------------------------------------------------------------------------------


@rule(ops.while_loop)
def _(t: Tape, node: Node, again: str, *xs: str, body: Graph, carries: int, most: int) -> Any:
    def iteration(index: str, carried: Sequence[str]) -> list[str]:
        t.count(index)
        feed = dict(zip(body.inputs, (*carried, *xs[carries:]), strict=True))
        for v, x in feed.items():
            t.learn(v, x)
        return list(run(body, OnnxTable(t), feed, observe=t.learned).values())

    made = t.loop(most, again, xs[:carries], [v.type for v in node.outputs], iteration)
    return made if carries > 1 else made[0]
