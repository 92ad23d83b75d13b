"""Ops on each element: arithmetic, comparison, logic, choice and activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..op import Op, op
from ..types import NUMPY_DTYPES
from .numeric import erf as numpy_erf


def _declare(name: str, signature: str, function: Callable[..., Any], doc: str) -> Op:
    function.__name__, function.__doc__ = name, doc
    return Op(function, signature)


def _unary(name: str, function: Callable[[Any], Any], doc: str, signature: str = "float[*b] -> [*b]") -> Op:
    return _declare(name, signature, lambda x: function(x), doc)


def _binary(name: str, function: Callable[[Any, Any], Any], doc: str, signature: str = "[*b], [*b] -> [*b]") -> Op:
    return _declare(name, signature, lambda x, y: function(x, y), doc)


exp = _unary("exp", np.exp, "e to the power of each element.")
log = _unary("log", np.log, "Natural logarithm.")
sqrt = _unary("sqrt", np.sqrt, "Square root.")
tanh = _unary("tanh", np.tanh, "Hyperbolic tangent.")
sin = _unary("sin", np.sin, "Sine of an angle in radians.")
cos = _unary("cos", np.cos, "Cosine of an angle in radians.")
erf = _unary("erf", numpy_erf, "Gauss error function.")
floor = _unary("floor", np.floor, "Largest whole number that is not above.")
ceil = _unary("ceil", np.ceil, "Smallest whole number that is not below.")
round_ = _unary("round", np.round, "Nearest whole number, halves to even.")
negative = _unary("negative", np.negative, "Sign changed.", "[*b] -> [*b]")
absolute = _unary("absolute", np.abs, "Distance from zero.", "[*b] -> [*b]")
sign = _unary("sign", np.sign, "-1, 0 or 1.", "[*b] -> [*b]")
stop_gradient = _unary("stop_gradient", lambda x: x, "x, through which no gradient flows.", "[*b] -> [*b]")
not_ = _unary("not", np.logical_not, "Whether not.", "bool[*b] -> bool[*b]")

add = _binary("add", lambda x, y: x + y, "Sum.")
sub = _binary("sub", lambda x, y: x - y, "Difference.")
mul = _binary("mul", lambda x, y: x * y, "Product.")
div = _binary("div", lambda x, y: x / y, "Quotient of floats.", "float[*b], float[*b] -> [*b]")
floor_divide = _binary("floor_divide", lambda x, y: x // y, "Quotient of integers, rounded down.", "int[*b], int[*b] -> [*b]")
remainder = _binary("remainder", lambda x, y: x % y, "What floor_divide leaves, of the divisor's sign.", "int[*b], int[*b] -> [*b]")
power = _binary("power", lambda x, y: np.power(x, y), "x to the power of y; a float base is not negative.", "float[*b], float[*b] -> [*b]")
maximum = _binary("maximum", lambda x, y: np.maximum(x, y), "The larger.")
minimum = _binary("minimum", lambda x, y: np.minimum(x, y), "The smaller.")
equal = _binary("equal", lambda x, y: x == y, "Whether equal.", "[*b], [*b] -> bool[*b]")
less = _binary("less", lambda x, y: x < y, "Whether x < y.", "[*b], [*b] -> bool[*b]")
less_equal = _binary("less_equal", lambda x, y: x <= y, "Whether x <= y.", "[*b], [*b] -> bool[*b]")
and_ = _binary("and", np.logical_and, "Whether both.", "bool[*b], bool[*b] -> bool[*b]")
or_ = _binary("or", np.logical_or, "Whether either.", "bool[*b], bool[*b] -> bool[*b]")
xor = _binary("xor", np.logical_xor, "Whether just one.", "bool[*b], bool[*b] -> bool[*b]")


@op("bool[*b], [*b], [*b] -> [*b]")
def where(test, x, y):
    """x where test, else y."""
    return np.where(test, x, y)


@op("any[*b] -> dtype[*b]")
def cast(x, *, dtype):
    """x as another dtype; floats to integers drop the fraction, numbers to bool ask whether they differ from zero."""
    return x.astype(NUMPY_DTYPES[dtype])


@op("float[*b] -> [*b]")
def relu(x):
    """max(x, 0)."""
    return np.maximum(x, 0)


@relu.decompose
def _(x):
    return maximum(x, 0.0)


@op("float[*b] -> [*b]")
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


@sigmoid.decompose
def _(x):
    return tanh(x * 0.5) * 0.5 + 0.5


@op("float[*b] -> [*b]")
def silu(x):
    """x sigmoid(x), also called swish (https://arxiv.org/abs/1702.03118)."""
    return x * sigmoid.reference(x)


@silu.decompose
def _(x):
    return x * sigmoid(x)


@op("float[*b] -> [*b]")
def gelu(x, *, approximate=False):
    """x P(Z <= x) for a normal Z, or its tanh approximation (https://arxiv.org/abs/1606.08415)."""
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + numpy_erf(x * math.sqrt(0.5)))


@gelu.decompose
def _(x, *, approximate):
    if approximate:
        return x * 0.5 * (tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0)
    return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1.0)


@op("float[*b] -> [*b]")
def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@softplus.decompose
def _(x):
    return relu(x) + log(exp(negative(absolute(x))) + 1.0)


@op("float[*b] -> [*b]")
def leaky_relu(x, *, slope=0.01):
    """x, times `slope` where negative."""
    return np.where(x < 0, x * x.dtype.type(slope), x)


@leaky_relu.decompose
def _(x, *, slope):
    return where(less(x, 0.0), x * slope, x)


@op("float[*b] -> [*b]")
def elu(x, *, alpha=1.0):
    """x, or alpha (exp(x) - 1) where negative (https://arxiv.org/abs/1511.07289)."""
    return np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x)


@elu.decompose
def _(x, *, alpha):
    return where(less(x, 0.0), (exp(minimum(x, 0.0)) - 1.0) * alpha, x)
