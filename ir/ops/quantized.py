"""Products with weights stored as small integers. The arithmetic is that of the integer kernels, activations rounded as they round them."""

from __future__ import annotations

import numpy as np

from ..op import op
from ..signature import Signature, expects
from ..types import KINDS
from .linear import affine, linear

LEVELS = 127  # of a signed byte, on either side of zero


def _holds(weight, bits, size):
    """Whether rows of blocks hold just `size` numbers, the last block in part."""
    expects(bits in (4, 8), f"bits={bits}, expected 4 or 8")
    blocks, block = weight.shape[-2], weight.shape[-1] * 8 // bits
    fits = (blocks - 1) * block < size <= blocks * block
    expects(fits, f"weight {weight} holds {blocks} blocks of {block} numbers, expected enough for {size} and no more")


_DEQUANTIZE = Signature("u8[*b g c], [*b g] -> [*b size]")


def _dequantize_rule(weight, scale, *, bits, size):
    made = _DEQUANTIZE(("weight", "scale"), [weight, scale], {"size": size})
    _holds(weight, bits, size)
    return made


@op(_dequantize_rule)
def dequantize(weight, scale, *, bits, size):
    """Rows of `size` numbers from blocks of unsigned integers: (integer - 2^(bits-1)) times the scale of its block.

    With 4 bits a byte holds two integers, the first in its low half. The last block may be longer than the row. This is the layout of MatMulNBits
    (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
    """
    whole = weight if bits == 8 else np.stack([weight & 15, weight >> 4], -1).reshape(*weight.shape[:-1], 2 * weight.shape[-1])
    x = (whole.astype(scale.dtype) - 2 ** (bits - 1)) * scale[..., None]
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])[..., :size]


@dequantize.decompose
def _(weight, scale, *, bits, size):
    from .elementwise import cast, floor_divide, remainder
    from .shape import expand_dims, slice_, stack, view

    whole = cast(weight, dtype="i32")
    if bits == 4:
        whole = stack(remainder(whole, 16), floor_divide(whole, 16), axis=weight.rank)
        whole = view(whole, (*weight.shape[:-1], 2 * weight.shape[-1]))
    x = cast(whole - 2 ** (bits - 1), dtype=scale.type.dtype) * expand_dims(scale, scale.rank)
    rows = view(x, (*x.shape[:-2], x.shape[-2] * x.shape[-1]))
    return rows if rows.shape[-1] == size else slice_(rows, axis=rows.rank - 1, start=0, stop=size)


@op("float[*b k] -> [*b k]")
def round_blocks(x, *, block):
    """x rounded to 255 evenly spaced numbers, from minus to plus the largest magnitude of each `block` numbers of the last axis."""
    n = x.shape[-1]
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % block)]).reshape(*x.shape[:-1], -(-n // block), block)
    step = np.abs(blocks).max(-1, keepdims=True) / LEVELS
    rounded = np.round(blocks / np.where(step == 0, step.dtype.type(1), step)) * step
    return rounded.reshape(*x.shape[:-1], rounded.shape[-2] * block)[..., :n]


@round_blocks.decompose
def _(x, *, block):
    from .elementwise import absolute, equal, round_, where
    from .reduce import max
    from .shape import pad, slice_, view

    n, none = x.shape[-1], (0,) * (x.rank - 1)
    wide = pad(x, low=(0,) * x.rank, high=(*none, -n % block)) if n % block else x
    blocks = view(wide, (*x.shape[:-1], -(-n // block), block))
    step = max(absolute(blocks), axis=-1, keep=True) / float(LEVELS)
    rounded = view(round_(blocks / where(equal(step, 0.0), 1.0, step)) * step, wide.shape)
    return slice_(rounded, axis=x.rank - 1, start=0, stop=n) if n % block else rounded


def _whole_rule(x):
    expects(x.dtype in KINDS["float"], f"x is {x}, expected float")
    return x  # no signature: an element depends on all others, and no axis can be taken apart


@op(_whole_rule)
def round_range(x):
    """x rounded to 256 evenly spaced numbers, from the least of all its elements to the largest; zero is one of them (DynamicQuantizeLinear)."""
    low, high = x.min(initial=0), x.max(initial=0)
    step = (high - low) / x.dtype.type(255)
    step = step if step else x.dtype.type(1)
    zero = np.round(-low / step)
    return (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step


@round_range.decompose
def _(x):
    from .elementwise import equal, maximum, minimum, round_, where
    from .reduce import max, min

    axes = tuple(range(x.rank))
    low, high = (min(x, axis=axes), max(x, axis=axes)) if axes else (x, x)
    low, high = minimum(low, 0.0), maximum(high, 0.0)
    step = (high - low) / 255.0
    step = where(equal(step, 0.0), 1.0, step)
    zero = round_(-low / step)
    return (minimum(maximum(round_(x / step) + zero, 0.0), 255.0) - zero) * step


_QUANTIZED = Signature("[*b k], u8[m g c], [m g], [m]? -> [*b m]")


def _quantized_rule(x, weight, scale, bias, *, bits):
    made = _QUANTIZED(("x", "weight", "scale", "bias"), [x, weight, scale, bias], {})
    _holds(weight, bits, x.shape[-1])
    return made


@op(_quantized_rule)
def quantized_linear(x, weight, scale, bias=None, *, bits):
    """x weight^T + bias for a weight [out in] in blocks (`dequantize`), x rounded to bytes in blocks of the same length (MatMulNBits)."""
    block = weight.shape[-1] * 8 // bits
    return linear.reference(round_blocks.reference(x, block=block), dequantize.reference(weight, scale, bits=bits, size=x.shape[-1]), bias)


@quantized_linear.decompose
def _(x, weight, scale, bias, *, bits):
    block = weight.shape[-1] * 8 // bits
    return linear(round_blocks(x, block=block), dequantize(weight, scale, bits=bits, size=x.shape[-1]), bias)


_DYNAMIC = Signature("[*b k], i8[k m], [m], [m]? -> [*b m]")


def _dynamic_rule(x, weight, scale, bias):
    return _DYNAMIC(("x", "weight", "scale", "bias"), [x, weight, scale, bias], {})


@op(_dynamic_rule)
def dynamic_quantized_linear(x, weight, scale, bias=None):
    """x weight + bias for a weight [in out] of bytes with a scale for each output, x rounded to bytes over its whole range (MatMulInteger)."""
    return affine.reference(round_range.reference(x), weight.astype(x.dtype) * scale, bias)


@dynamic_quantized_linear.decompose
def _(x, weight, scale, bias):
    from .elementwise import cast

    return affine(round_range(x), cast(weight, dtype=scale.type.dtype) * scale, bias)
