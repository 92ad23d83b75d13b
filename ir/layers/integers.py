"""Layers that compute with integers alone (https://arxiv.org/abs/2101.01321): linear layers, GELU, softmax, normalisation and rescaling.

Integers are floating-point numbers with whole values. Each activation travels with its scale, which is None where a layer is not `whole`.
Ranges of activations are the checkpoint's: they are not moved here.
"""

from __future__ import annotations

import math

import numpy as np

from .. import ops
from ..graph import Param, Value
from ..layer import Layer
from ..ops.attention import LOWEST
from .basic import Embedding, LayerNorm, Linear

Scaled = tuple[Value, Value | None]  # an activation and its scale


def divided(x: Value, y: Value | float) -> Value:
    """x / y, by a division indeed: XLA makes of one by a constant or broadcast number a product with its reciprocal, whose whole numbers are now
    and then a little less than whole, so that floors miss them."""
    return x / ops.where(ops.equal(x, x), y, 1.0)


def over(number: float, x: Value) -> Value:
    """number / x as PyTorch has it, by the reciprocal, which is what floors in the reference see."""
    return number * (1.0 / x)


def scale_of(bits: int, low: Value, high: Value) -> Value:
    """How much one step of a symmetric range is worth."""
    return divided(ops.maximum(ops.maximum(ops.absolute(low), ops.absolute(high)), 1e-8), float(2 ** (bits - 1) - 1))


def quantized(x: Value, bits: int, scale: Value) -> Value:
    """x in whole steps, within the range."""
    most = float(2 ** (bits - 1) - 1)
    return ops.minimum(ops.maximum(ops.round_(1.0 / scale * x), -most), most - 1)


def rescaled(x: Value, scale: Value, new: Value) -> Value:
    """x, whole steps of `scale`, in whole steps of another; in double precision, as steps of 22 bits do not survive in single."""
    steps = ops.cast(ops.round_(divided(x, scale)), dtype="f64")
    return ops.round_(steps * (ops.cast(scale, dtype="f64") / ops.cast(new, dtype="f64")))


class Act(Layer):
    """Brings an activation to whole steps of a known range; the sum of it and of another one where that is given."""

    def __init__(self, bits: int, whole: bool):
        self.x_min, self.x_max = (Param(1, init=np.array([end], np.float32), trainable=False) for end in (-1e-5, 1e-5))
        self.act_scaling_factor = Param(1, init=np.zeros(1, np.float32), trainable=False)
        self.bits, self.whole = bits, whole

    def forward(self, x: Value, scale: Value | None = None, other: Value | None = None, other_scale: Value | None = None) -> Scaled:
        """x [... n] with its scale [1] or [n] -> the same in this range, and its scale [1]."""
        if not self.whole:
            return x if other is None else x + other, None
        new = scale_of(self.bits, self.x_min, self.x_max)
        if scale is None:
            return quantized(x, self.bits, new) * new, new  # the reference forgets the other one here
        most = float(2 ** (self.bits - 1) - 1)
        steps = rescaled(x, scale, new)
        if other is not None and other_scale is not None:
            steps = rescaled(other, other_scale, new) + steps
        return ops.cast(ops.minimum(ops.maximum(steps, -most - 1), most), dtype="f32") * new, new


class QuantEmbedding(Embedding):
    """Rows of a table in eight bits."""

    def __init__(self, rows: int, n: int, frozen: int | None, whole: bool):
        super().__init__(rows, n, frozen)
        self.weight_scaling_factor, self.weight_integer = _buffers((1,), self.weight.shape)
        self.whole = whole

    def forward(self, index: Value) -> Scaled:
        """int[...] -> [... n] and the scale."""
        if not self.whole:
            return super().forward(index), None
        scale = scale_of(8, ops.min(self.weight, axis=(0, 1)), ops.max(self.weight, axis=(0, 1)))[None]
        return ops.take(quantized(self.weight, 8, scale), index) * scale, scale


class QuantLinear(Linear):
    """A linear layer with eight-bit rows of weights and 32-bit biases."""

    def __init__(self, n_in: int, n_out: int, whole: bool):
        super().__init__(n_in, n_out)
        self.weight_integer, self.fc_scaling_factor, self.bias_integer = _buffers((n_out, n_in), (n_out,), (n_out,))
        self.whole = whole

    def forward(self, x: Value, scale: Value | None = None) -> Scaled:
        """[... in] and its scale [1] -> [... out] and its scale [out]."""
        if not self.whole or scale is None or self.bias is None:
            return super().forward(x), None
        each = scale_of(8, ops.min(self.weight, axis=1), ops.max(self.weight, axis=1))
        both = each * scale
        y = ops.linear(divided(x, scale), quantized(self.weight, 8, each[:, None]), quantized(self.bias, 32, both))
        return y * both, both


def _buffers(*shapes: tuple[int, ...]) -> tuple[Param, ...]:
    """What a checkpoint holds and every call computes anew."""
    return tuple(Param(*shape, init="zeros", trainable=False) for shape in shapes)


class IntLayerNorm(LayerNorm):
    """Layer normalisation with an integer square root."""

    def __init__(self, n: int, eps: float, whole: bool):
        super().__init__(n, eps)
        self.shift = Param(1, init="zeros", trainable=False)
        self.activation = Act(32, whole)  # in every checkpoint, and read by none
        self.whole = whole

    def forward(self, x: Value, scale: Value | None = None) -> Scaled:
        """[... n] and its scale [1] -> the same, and its scale [n]."""
        if not self.whole or scale is None:
            return super().forward(x), None
        steps, power = divided(x, scale), ops.power(2.0, self.shift)
        steps = steps - ops.round_(ops.mean(steps, axis=2, keep=True))
        low = ops.floor(steps / power)
        deviation = ops.floor(ops.sqrt(ops.sum(low * low, axis=2, keep=True))) * power
        steps = ops.floor(steps * ops.floor(2.0**31 / deviation) / 2.0)
        step = math.sqrt(x.shape[2]) / 2**30
        steps = steps + ops.floor(divided(self.bias / self.weight, step))
        scale = self.weight * step
        return steps * scale, scale


def int_gelu(x: Value, scale: Value) -> Scaled:
    """GELU of x with an error function that is a polynomial of integers."""
    a, b, c = -0.2888, -1.769, 1 / -0.2888
    steps, part = divided(x, scale), divided(scale, 1.4142)
    low, rest = ops.floor(over(b, part)), ops.floor(over(c, part * part))
    inner = ops.minimum(ops.absolute(steps), -low) + low
    erf = ops.floor(ops.sign(steps) * (inner * inner + rest) / 2.0**14)
    step = part * part * a * 2.0**14
    scale = scale * step / 2.0
    return steps * (erf + ops.floor(1.0 / step)) * scale, scale


class IntSoftmax(Layer):
    """Softmax with powers of two by shifts and the rest by a polynomial of integers."""

    def __init__(self, whole: bool):
        self.act, self.whole = Act(16, whole), whole

    def forward(self, x: Value, scale: Value, mask: Value | None) -> Scaled:
        """x [... keys] and its scale [1], mask bool[... keys] -> weights in eight bits, and their scale."""
        first, second, last = 0.35815147, 0.96963238 / 0.35815147, 1 / 0.35815147
        steps, half = divided(x, scale), ops.floor(over(-0.6931, scale))
        most = ops.max(steps if mask is None else ops.where(mask, steps, LOWEST), axis=3, keep=True)
        steps = steps - most if mask is None else ops.where(mask, steps - most, half * 30.0)
        steps = ops.maximum(steps, half * 30.0)
        shift = ops.floor(steps / half)
        left = steps - half * shift
        polynomial = (left + ops.floor(over(second, scale))) * left + ops.floor(over(last, scale * scale))
        powers = ops.maximum(ops.floor(polynomial * ops.power(2.0, 30.0 - shift)), 0.0)
        weights, step = self.act(powers, scale * scale * first / 2.0**30)
        weights = divided(weights, step)
        factor = ops.floor(2.0**32 / ops.sum(weights, axis=3, keep=True))
        return ops.floor(weights * factor / 2.0**24) / 2.0**8, ops.literal(value=np.array([2.0**-8], np.float32))
