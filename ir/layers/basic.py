"""Layers that nearly every model is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .. import ops
from ..graph import Param, Value, current
from ..layer import Layer
from ..signature import expects

Activation = Callable[[Value], Value]
Axes = Sequence[Any] | None  # one entry for each spatial axis


def _square(x: Value) -> Value:
    return x * x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": ops.gelu,
    "gelu_python": ops.gelu,
    "gelu_10": lambda x: ops.minimum(ops.maximum(ops.gelu(x), -10.0), 10.0),
    "gelu_new": lambda x: ops.gelu(x, approximate=True),
    "gelu_fast": lambda x: ops.gelu(x, approximate=True),
    "gelu_accurate": lambda x: ops.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: ops.gelu(x, approximate=True),
    "gelu_python_tanh": lambda x: ops.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(x * 1.702),
    "laplace": lambda x: (ops.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))) + 1.0) * 0.5,
    "leaky_relu": ops.leaky_relu,
    "linear": lambda x: x,
    "mish": lambda x: x * ops.tanh(ops.softplus(x)),
    "relu": ops.relu,
    "relu2": lambda x: _square(ops.relu(x)),
    "relu6": lambda x: ops.minimum(ops.relu(x), 6.0),
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}


class Linear(Layer):
    """x weight^T + bias, the weight stored [out in]."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True):
        self.weight = Param(n_out, n_in)
        self.bias = Param(n_out, init="zeros") if bias else None

    def forward(self, x: Value) -> Value:
        """[... in] -> [... out]."""
        return ops.linear(x, self.weight, self.bias)


class Affine(Layer):
    """x weight + bias, the weight stored [in out]."""

    def __init__(self, n_in: int, n_out: int):
        self.weight, self.bias = Param(n_in, n_out), Param(n_out, init="zeros")

    def forward(self, x: Value) -> Value:
        """[... in] -> [... out]."""
        return ops.affine(x, self.weight, self.bias)


class Embedding(Layer):
    """Rows of a table by index; the row `frozen` is not trained."""

    def __init__(self, rows: int, n: int, frozen: int | None = None):
        self.weight, self.frozen = Param(rows, n, init="normal"), frozen

    def forward(self, index: Value) -> Value:
        """int[...] -> [... n]."""
        return ops.take(self.weight, index) if self.frozen is None else ops.embedding(self.weight, index, frozen=self.frozen)


class LayerNorm(Layer):
    """Layer normalisation over the last axis."""

    def __init__(self, n: int, eps: float):
        self.weight, self.bias, self.eps = Param(n, init="ones"), Param(n, init="zeros"), eps

    def forward(self, x: Value) -> Value:
        """[... n] -> [... n]."""
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Layer):
    """Root-mean-square normalisation over the last axis, without a shift."""

    def __init__(self, n: int, eps: float):
        self.weight, self.eps = Param(n, init="ones"), eps

    def forward(self, x: Value) -> Value:
        """[... n] -> [... n]."""
        return ops.rms_norm(x, self.weight, eps=self.eps)


class Dropout(Layer):
    """Zeroes a share of the elements while training."""

    def __init__(self, rate: float):
        self.rate = rate

    def forward(self, x: Value) -> Value:
        """x, thinned out while training."""
        graph = current()
        if not graph.training or not self.rate:
            return x
        return ops.dropout(x, graph.random_key(), rate=self.rate, site=graph.random_site())


class DropPath(Layer):
    """Drops whole samples of a residual branch while training (https://arxiv.org/abs/1603.09382)."""

    def __init__(self, rate: float):
        self.rate = rate

    def forward(self, x: Value) -> Value:
        """x [batch ...], some samples zeroed and the others scaled up while training."""
        graph = current()
        if not graph.training or not self.rate:
            return x
        shape = (x.shape[0], *(1,) * (x.rank - 1))
        keep = ops.random_uniform(graph.random_key(), shape=shape, site=graph.random_site()) >= self.rate
        return ops.where(keep, x * (1 / (1 - self.rate)), 0.0)


class LayerDrop(Layer):
    """Passes a whole layer over at random while training (https://arxiv.org/abs/1909.11556)."""

    def __init__(self, rate: float):
        self.rate = rate

    def forward(self, x: Value, y: Value) -> Value:
        """y, which a layer made of x, or x."""
        graph = current()
        if not (graph.training and self.rate):
            return y
        return ops.where(ops.random_uniform(graph.random_key(), shape=(1,) * x.rank, site=graph.random_site()) < self.rate, x, y)


class Conv(Layer):
    """A convolution over the trailing axes; padding is one number for both ends of an axis, or (low, high)."""

    def __init__(
        self, n_in: int, n_out: int, kernel: Sequence[int], *, stride: Axes = None, padding: Axes = None, dilation: Axes = None, groups=1, bias=True
    ):
        expects(n_in % groups == 0, f"{n_in} channels do not divide into {groups} groups")
        one = (1,) * len(kernel)
        self.weight = Param(n_out, n_in // groups, *kernel)
        self.bias = Param(n_out, init="zeros") if bias else None
        pads = tuple((p, p) if isinstance(p, int) else p for p in padding or (0,) * len(kernel))
        self.options = {"stride": tuple(stride or one), "padding": pads, "dilation": tuple(dilation or one), "groups": groups}

    def forward(self, x: Value) -> Value:
        """[batch in *spatial] -> [batch out *spatial]."""
        return ops.conv(x, self.weight, self.bias, **self.options)


class GroupNorm(Layer):
    """Normalisation of groups of channels."""

    def __init__(self, groups: int, n: int, eps: float):
        self.weight, self.bias, self.groups, self.eps = Param(n, init="ones"), Param(n, init="zeros"), groups, eps

    def forward(self, x: Value) -> Value:
        """[batch n *spatial] -> the same."""
        return ops.group_norm(x, self.weight, self.bias, groups=self.groups, eps=self.eps)


class BatchNorm(Layer):
    """Normalisation of channels by running statistics, or by the batch's own while training, which then moves the running ones."""

    def __init__(self, n: int, eps: float = 1e-5, momentum: float = 0.1):
        self.weight, self.bias = Param(n, init="ones"), Param(n, init="zeros")
        self.running_mean = Param(n, init="zeros", trainable=False)
        self.running_var = Param(n, init="ones", trainable=False)
        self.num_batches_tracked = Param(dtype="i64", init=0)
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Value) -> Value:
        """[batch n *spatial] -> the same."""
        if not current().training:
            return ops.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, eps=self.eps)
        mean, variance = ops.batch_statistics(x)
        self._move(x, mean, variance)
        return ops.batch_norm(x, self.weight, self.bias, mean, variance, eps=self.eps)

    def _move(self, x: Value, mean: Value, variance: Value) -> None:
        """The running variance is that of a sample: n / (n - 1) times the batch's."""
        count = ops.size(value=_count(x), dtype="f32")
        moved = {self.running_mean: mean, self.running_var: variance * (count / (count - 1.0))}
        for running, new in moved.items():
            current().outputs[f"update.{running.key}"] = running * (1 - self.momentum) + new * self.momentum
        current().outputs[f"update.{self.num_batches_tracked.key}"] = self.num_batches_tracked + 1


def _count(x: Value):
    total = x.shape[0]
    for d in x.shape[2:]:
        total = d * total
    return total


class Mlp(Layer):
    """Two linear layers with an activation between, dropout after it and at the end; `layer(n_in, n_out)` makes the linear ones."""

    def __init__(self, n: int, inner: int, activation: str, *, layer: Any = Linear, inner_dropout: float = 0.0, dropout: float = 0.0):
        self.up, self.down, self.activation = layer(n, inner), layer(inner, n), ACTIVATIONS[activation]
        self.inner_dropout, self.dropout = Dropout(inner_dropout), Dropout(dropout)

    def forward(self, x: Value) -> Value:
        """[... n] -> [... n]."""
        return self.dropout(self.down(self.inner_dropout(self.activation(self.up(x)))))


class GatedMlp(Mlp):
    """down(activation(gate(x)) * linear(x)) (https://arxiv.org/abs/2002.05202); `layer(n_in, n_out)` makes the linear ones."""

    def __init__(self, n: int, inner: int, activation: str, *, layer: Any = Linear, **dropout: float):
        super().__init__(n, inner, activation, layer=layer, **dropout)
        self.gate, self.linear = self.__dict__.pop("up"), layer(n, inner)

    def forward(self, x: Value) -> Value:
        """[... n] -> [... n]."""
        return self.dropout(self.down(self.inner_dropout(self.activation(self.gate(x)) * self.linear(x))))
