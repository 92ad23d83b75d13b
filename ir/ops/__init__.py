"""Every op, by family, and the sugar over them; operators on values are bound here."""

from __future__ import annotations

from ..graph import Value
from . import elementwise as _e
from .attention import LOWEST, attention, attention_weights, causal_mask, rotary
from .convolution import average_pool, conv, conv_transpose, max_pool, resize
from .elementwise import (
    absolute,
    add,
    and_,
    cast,
    ceil,
    cos,
    div,
    elu,
    equal,
    erf,
    exp,
    floor,
    floor_divide,
    gelu,
    leaky_relu,
    less,
    less_equal,
    log,
    maximum,
    minimum,
    mul,
    negative,
    not_,
    or_,
    power,
    relu,
    remainder,
    round_,
    sigmoid,
    sign,
    silu,
    sin,
    softplus,
    sqrt,
    stop_gradient,
    sub,
    tanh,
    where,
    xor,
)
from .index import embedding, gather, one_hot, scatter, take
from .leaves import Literal, constant, dropout, iota, literal, random_uniform, size
from .linear import affine, linear, matmul
from .loop import loop
from .loss import binary_cross_entropy, cross_entropy, ctc_loss, mean_squared_error
from .normalization import batch_norm, batch_statistics, group_norm, l2_normalize, layer_norm, rms_norm
from .quantized import dequantize, dynamic_quantized_linear, quantized_linear, round_blocks, round_range
from .reduce import all, any, argmax, argmin, argsort, cumsum, log_softmax, logsumexp, max, mean, min, softmax, sort, sum, top_k
from .shape import (
    broadcast_to,
    concat,
    expand_dims,
    flip,
    index,
    pad,
    rearrange,
    repeat,
    reshape,
    roll,
    slice_,
    split,
    squeeze,
    stack,
    transpose,
    update,
    view,
    window,
)
from .while_loop import while_loop


def _bind_operators() -> None:
    for name, op in {"add": _e.add, "sub": _e.sub, "mul": _e.mul, "truediv": _e.div, "floordiv": _e.floor_divide, "mod": _e.remainder}.items():
        setattr(Value, f"__{name}__", lambda a, b, op=op: op(a, b))
        setattr(Value, f"__r{name}__", lambda a, b, op=op: op(b, a))
    for name, op in {"and": _e.and_, "or": _e.or_, "xor": _e.xor, "matmul": matmul, "lt": _e.less, "le": _e.less_equal}.items():
        setattr(Value, f"__{name}__", lambda a, b, op=op: op(a, b))
    turned = {"gt": lambda a, b: _e.less(b, a), "ge": lambda a, b: _e.less_equal(b, a)}
    others = {"neg": lambda a: _e.negative(a), "invert": lambda a: _e.not_(a), "getitem": index}
    for name, function in {**turned, **others}.items():
        setattr(Value, f"__{name}__", function)


_bind_operators()

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("annotations", "Value")]
