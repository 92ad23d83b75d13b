"""PyTorch's own functions in the arguments of our ops: an independent truth for the references."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def padded(x: Any, padding: Any, value: float = 0.0) -> Any:
    return F.pad(x, [p for low_high in reversed(padding) for p in low_high], value=value)


def pooling(kind: str) -> Callable[..., Any]:
    def pool(x: Any, *, kernel: Any, stride: Any, padding: Any, count_padding: bool = True) -> Any:
        function = getattr(F, f"{kind}_pool{len(kernel)}d")
        if kind == "max":
            return function(padded(x, padding, -math.inf), kernel, stride)
        mean = function(padded(x, padding), kernel, stride)
        return mean if count_padding else mean / function(padded(torch.ones_like(x), padding), kernel, stride)

    return pool


def conv(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: int = 1) -> Any:
    function = getattr(F, f"conv{len(stride)}d")
    return function(padded(x, padding), weight, bias, stride, 0, dilation, groups)


def conv_transpose(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, output_padding: Any, dilation: Any, groups=1) -> Any:
    # PyTorch pads alike on both sides, and only what its padding took away can be output padding: the ends are cut here
    function = getattr(F, f"conv_transpose{len(stride)}d")
    y = padded(function(x, weight, None, stride, 0, 0, groups, dilation), [(0, o) for o in output_padding])
    for axis, (low, high) in enumerate(padding, 2):
        y = y.narrow(axis, low, y.shape[axis] - low - high)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(stride))


def resize(x: Any, *, sizes: Any, mode: str, align_corners: bool = False) -> Any:
    interpolate = F.interpolate
    if mode == "nearest":
        return interpolate(x, sizes, mode="nearest")
    names = {("linear", 1): "linear", ("linear", 2): "bilinear", ("cubic", 2): "bicubic"}
    if mode == "cubic" and len(sizes) == 1:  # PyTorch has no cubic in one dimension; a second axis of equal size does not matter
        return interpolate(x[..., None, :], (1, *sizes), mode="bicubic", align_corners=align_corners)[..., 0, :]
    return interpolate(x, sizes, mode=names[mode, len(sizes)], align_corners=align_corners)


def attention(q: Any, k: Any, v: Any, mask: Any = None, bias: Any = None, start: Any = None, *, scale: float, causal: bool = False) -> Any:
    rows, keys = q.shape[-2], k.shape[-2]
    added = torch.zeros(rows, keys, dtype=q.dtype) if bias is None else bias
    if mask is not None:
        added = added.masked_fill(~mask, -math.inf)
    if causal:
        first = keys - rows if start is None else int(start)
        added = added.masked_fill(torch.ones(rows, keys, dtype=torch.bool).triu(first + 1), -math.inf)
    out = F.scaled_dot_product_attention(q, k, v, added, scale=scale, enable_gqa=True)
    return out.nan_to_num(0.0)  # a row without keys


def attention_weights(q: Any, k: Any, *rest: Any, **attrs: Any) -> Any:
    eye = torch.eye(k.shape[-2], dtype=q.dtype).expand(*k.shape[:-1], k.shape[-2])
    return attention(q, k, eye, *rest, **attrs)


def rotary(x: Any, cos: Any, sin: Any, *, interleaved: bool) -> Any:
    # a turned pair is a product of complex numbers
    n = x.shape[-1] // 2
    pair = torch.complex(x[..., 0::2], x[..., 1::2]) if interleaved else torch.complex(x[..., :n], x[..., n:])
    y = pair * torch.complex(cos, sin)
    return torch.view_as_real(y).flatten(-2) if interleaved else torch.cat([y.real, y.imag], -1)


def pad(x: Any, *, low: Any, high: Any, mode: str = "constant", value: float = 0.0) -> Any:
    if mode == "constant":
        return padded(x, list(zip(low, high, strict=True)), value)
    flat = [p for low_high in reversed(list(zip(low, high, strict=True))[1:]) for p in low_high]
    return F.pad(x, flat, mode={"edge": "replicate"}.get(mode, mode))


def dequantize(weight: Any, scale: Any, *, bits: int, size: int) -> Any:
    digits = torch.stack([weight.long() // 2 ** (bits * i) % 2**bits for i in range(8 // bits)], -1).flatten(-2)
    return ((digits - 2 ** (bits - 1)) * scale.unsqueeze(-1)).flatten(-2)[..., :size]


def round_blocks(x: Any, *, block: int) -> Any:
    def one(part: Any) -> Any:
        step = max(float(part.abs().max()) / 127, 1e-300)
        return torch.round(part / step) * step

    rows = [torch.cat([one(p) for p in row.split(block)]) for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).reshape(x.shape)


def round_range(x: Any) -> Any:
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    step = (high - low) / 255 or 1.0
    zero = round(-low / step)
    return (torch.round(x / step) + zero).clamp(0, 255).sub(zero) * step


def quantized_linear(x: Any, weight: Any, scale: Any, bias: Any = None, *, bits: int) -> Any:
    rounded = round_blocks(x, block=weight.shape[-1] * 8 // bits)
    return F.linear(rounded, dequantize(weight, scale, bits=bits, size=x.shape[-1]), bias)


def dynamic_quantized_linear(x: Any, weight: Any, scale: Any, bias: Any = None) -> Any:
    return F.linear(round_range(x), (weight * scale).T, bias)


def loop(x: Any, shift: Any, *weights: Any, **_: Any) -> Any:
    """The loop of the samples."""
    sums = []
    for i, weight in enumerate(weights, 1):
        x = torch.tanh(x @ weight + shift) * i
        sums.append(x.sum(1))
    return x, *sums


def while_loop(again: Any, x: Any, count: Any, step: Any, *, most: int, **_: Any) -> Any:
    """The loop of the samples."""
    for i in range(1, most + 1):
        if again:
            x, count = 2 * x + i * step, count + len(x)
            again = x.abs().sum() < 400
    return x, count


ALIKE = "exp log sqrt tanh sin cos erf floor ceil round sign relu sigmoid add sub mul div floor_divide remainder maximum minimum where matmul"
REDUCTIONS = {"max": "amax", "min": "amin"} | {name: name for name in ("mean", "logsumexp", "any", "all", "argmax", "argmin")}


def reduction(name: str) -> Callable[..., Any]:
    """The reduction of that name, with our names of its arguments."""
    function = getattr(torch, name)
    return lambda x, axis, keep=False: function(x, axis, keep)


TRUTH: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name) for name in ALIKE.split()},
    **{ours: reduction(theirs) for ours, theirs in REDUCTIONS.items()},
    "stop_gradient": torch.Tensor.detach,
    "negative": torch.neg,
    "absolute": torch.abs,
    "not": torch.logical_not,
    "power": torch.pow,
    "equal": torch.eq,
    "less": torch.lt,
    "less_equal": torch.le,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": lambda x: F.softplus(x, threshold=1e9),
    "leaky_relu": lambda x, slope=0.01: F.leaky_relu(x, slope),
    "gelu": lambda x, approximate=False: F.gelu(x, approximate="tanh" if approximate else "none"),
    "sum": lambda x, axis, keep=False: torch.sum(x, axis, keep, dtype=x.dtype),
    "softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "log_softmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "cumsum": lambda x, axis: torch.cumsum(x, axis, dtype=x.dtype),
    "top_k": lambda x, k: tuple(y[..., :k] for y in torch.sort(x, dim=-1, descending=True, stable=True)),
    "argsort": lambda x, axis=-1, descending=False: torch.sort(x, dim=axis, descending=descending, stable=True)[1],
    "sort": lambda x, axis=-1, descending=False: torch.sort(x, dim=axis, descending=descending)[0],
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, perm: x.permute(perm),
    "broadcast_to": lambda x, shape: x.expand(shape),
    "concat": lambda *xs, axis: torch.cat(xs, axis),
    "split": lambda x, axis, sizes: torch.split(x, sizes, axis),
    "slice": lambda x, axis, start, stop, step=1: torch.movedim(torch.movedim(x, axis, 0)[start:stop:step], 0, axis),
    "window": lambda x, start, axis, length: x.narrow(axis, int(start), length),
    "update": lambda x, new, start, axis: torch.slice_scatter(x, new, axis, int(start), int(start) + new.shape[axis]),
    "flip": lambda x, axis: x.flip(axis),
    "roll": lambda x, axis, shift: torch.roll(x, shift, axis),
    "pad": pad,
    "embedding": lambda table, i, frozen: F.embedding(i, table, frozen),
    "take": lambda x, i, axis=0: x.index_select(axis, i.reshape(-1).long()).reshape(*x.shape[:axis], *i.shape, *x.shape[axis + 1 :]),
    "gather": lambda x, index, axis: torch.gather(x, axis, index),
    "scatter": lambda x, i, new, axis, reduce: (torch.scatter if reduce == "set" else torch.scatter_add)(x, axis, i, new),
    "linear": F.linear,
    "affine": lambda x, weight, bias=None: F.linear(x, weight.T, bias),
    "dequantize": dequantize,
    "round_blocks": round_blocks,
    "round_range": round_range,
    "quantized_linear": quantized_linear,
    "dynamic_quantized_linear": dynamic_quantized_linear,
    "loop": loop,
    "while_loop": while_loop,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": pooling("max"),
    "average_pool": pooling("avg"),
    "resize": resize,
    "attention": attention,
    "attention_weights": attention_weights,
    "rotary": rotary,
    "layer_norm": lambda x, scale=None, shift=None, eps=0.0: F.layer_norm(x, x.shape[-1:], scale, shift, eps),
    "rms_norm": lambda x, scale, eps: F.rms_norm(x, x.shape[-1:], scale, eps),
    "group_norm": lambda x, scale, shift, groups, eps: F.group_norm(x, groups, scale, shift, eps),
    "batch_norm": lambda x, scale, shift, mean, variance, eps: F.batch_norm(x, mean, variance, scale, shift, False, 0.0, eps),
    "ctc_loss": lambda *xs, blank: F.ctc_loss(*xs, blank=blank, reduction="none"),
}
