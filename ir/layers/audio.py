"""Layers of models that hear: convolutions over samples, frame masks, code books, time-delay layers and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import ops
from ..graph import Param, Value, current
from ..layer import Layer
from ..sizes import Dim, Size
from .basic import ACTIVATIONS, Conv, Dropout, GroupNorm, LayerNorm, Linear


class ChannelNorm(LayerNorm):
    """Layer normalisation over the channels of [batch channels time]."""

    def forward(self, x: Value) -> Value:
        """[batch n time] -> the same."""
        return ops.transpose(super().forward(ops.transpose(x, perm=(0, 2, 1))), perm=(0, 2, 1))


class SampleConv(Layer):
    """A strided convolution, perhaps normalised, and an activation."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, *, bias: bool, norm: str, activation: str):
        self.conv = Conv(n_in, n_out, (kernel,), stride=(stride,), bias=bias)
        norms = {"group": lambda: GroupNorm(n_out, n_out, 1e-5), "layer": lambda: ChannelNorm(n_out, 1e-5), "none": lambda: None}
        self.norm, self.activation = norms[norm](), ACTIVATIONS[activation]

    def forward(self, x: Value) -> Value:
        """[batch in time] -> [batch out frames]."""
        x = self.conv(x)
        return self.activation(x if self.norm is None else self.norm(x))


def least_samples(kernels: Sequence[int], strides: Sequence[int], least: int = 1) -> int:
    """How many samples make at least so many frames."""
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        least = (least - 1) * stride + kernel
    return least


def frame_count(samples: Any, kernels: Sequence[int], strides: Sequence[int]) -> Any:
    """How many frames the convolutions make of that many samples, a size or a value."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def frames_of(attention_mask: Value, frames: Size) -> Value:
    """i64[batch]: the frames that the live samples of each row make; `frames` is their number as a size of `samples`."""
    live = ops.sum(attention_mask, axis=1)
    return frames.bind({"samples": live}) if isinstance(frames, Dim) else ops.minimum(live, frames)


def mask_until(lengths: Value, frames: Size) -> Value:
    """bool[batch frames]: true before each length. A row too short for one frame counts from the end, as the reference's does."""
    last = lengths - 1
    last = ops.where(last < 0, last + frames, last)
    return ops.iota(size=frames)[None, :] <= last[:, None]


class PositionConv(Layer):
    """Positions as a grouped convolution with normalised weights (https://arxiv.org/abs/1602.07868), as long as its input."""

    def __init__(self, n: int, kernel: int, groups: int, activation: str):
        self.scale, self.direction = Param(1, 1, kernel, init="ones"), Param(n, n // groups, kernel)
        self.bias, self.activation = Param(n, init="zeros"), ACTIVATIONS[activation]
        self.options = {"stride": (1,), "padding": ((kernel // 2, (kernel - 1) // 2),), "dilation": (1,), "groups": groups}

    def forward(self, x: Value) -> Value:
        """[batch frames n] -> the same."""
        length = ops.sqrt(ops.sum(self.direction * self.direction, axis=(0, 1), keep=True))
        x = ops.conv(ops.transpose(x, perm=(0, 2, 1)), self.scale * (self.direction / length), self.bias, **self.options)
        return ops.transpose(self.activation(x), perm=(0, 2, 1))


def random_spans(shape: tuple[Size, Size], share: float, length: int) -> Value:
    """bool[shape]: spans of `length` that start at random and cover about that share (https://arxiv.org/abs/1904.08779)."""
    graph = current()
    starts = ops.random_uniform(graph.random_key(), shape=shape, site=graph.random_site()) < share / length
    count = ops.cumsum(ops.cast(starts, dtype="i64"), axis=1)
    before = ops.pad(count, low=(0, length), high=(0, 0))[:, : shape[1]]
    return count > before


class Quantizer(Layer):
    """The nearest entry of each code book, joined (https://arxiv.org/abs/2006.11477); while training a random one, by Gumbel noise."""

    temperature = 2.0

    def __init__(self, n: int, groups: int, words: int, width: int):
        self.groups, self.words = groups, words
        self.codevectors, self.weight_proj = Param(1, groups * words, width // groups), Linear(n, groups * words)

    def forward(self, x: Value, mask: Value | None) -> tuple[Value, Value, Value]:
        """x [batch frames n] -> vectors [batch frames width], their codes i64[batch frames groups], perplexity of the codes used."""
        scores = ops.rearrange(self.weight_proj(x), "batch frames (groups words) -> batch frames groups words", groups=self.groups)
        soft = ops.softmax(scores)
        if current().training:
            graph = current()
            noise = ops.random_uniform(graph.random_key(), shape=scores.shape, site=graph.random_site())
            drawn = ops.softmax((scores - ops.log(-ops.log(noise + 1e-20) + 1e-20)) / self.temperature)
            codes = ops.argmax(drawn, axis=3)
            chosen = ops.stop_gradient(ops.one_hot(codes, size=self.words) - drawn) + drawn
        else:
            codes = ops.argmax(scores, axis=3)
            chosen = soft = ops.one_hot(codes, size=self.words)
        books = ops.view(self.codevectors, (self.groups, self.words, self.codevectors.shape[2]))
        rows = ops.rearrange(chosen, "batch frames groups words -> groups (batch frames) words") @ books
        vectors = ops.rearrange(rows, "groups (batch frames) width -> batch frames (groups width)", batch=x.shape[0])
        return vectors, codes, _perplexity(soft, mask)


def _perplexity(shares: Value, mask: Value | None) -> Value:
    """Sum over groups of exp(entropy) of the mean of shares [batch frames groups words] over (masked) frames."""
    if mask is None:
        used = ops.mean(shares, axis=(0, 1))
    else:
        masked = ops.cast(mask, dtype="f32")
        used = ops.sum(shares * masked[:, :, None, None], axis=(0, 1)) / ops.sum(masked, axis=(0, 1))
    return ops.sum(ops.exp(-ops.sum(used * ops.log(used + 1e-7), axis=1)), axis=0)


class TimeDelay(Layer):
    """A dilated convolution over frames, its kernel stored as a linear layer's."""

    def __init__(self, n_in: int, n_out: int, kernel: int, dilation: int):
        self.kernel, self.shape, self.dilation = Linear(n_in * kernel, n_out), (n_out, kernel, n_in), dilation

    def forward(self, x: Value) -> Value:
        """[batch frames in] -> [batch fewer out]."""
        weight = ops.transpose(ops.view(self.kernel.weight, self.shape), perm=(0, 2, 1))
        options = {"stride": (1,), "padding": ((0, 0),), "dilation": (self.dilation,)}
        y = ops.conv(ops.transpose(x, perm=(0, 2, 1)), weight, self.kernel.bias, **options)
        return ops.relu(ops.transpose(y, perm=(0, 2, 1)))


def mean_and_deviation(x: Value, lengths: Value | None) -> Value:
    """x [batch frames n] -> [batch 2n]: mean and (sample) standard deviation over each row's first frames."""
    if lengths is None:
        live = ops.broadcast_to(ops.literal(value=[[[1.0]]]), shape=(*x.shape[:2], 1))
    else:
        live = ops.cast(ops.iota(size=x.shape[1])[None, :] < lengths[:, None], dtype="f32")[:, :, None]
    count = ops.sum(live, axis=1)
    mean = ops.sum(x * live, axis=1) / count
    apart = (x - mean[:, None]) * live
    variance = ops.sum(apart * apart, axis=1) / (count - 1.0)
    varies = variance > 0.0  # the gradient of a constant channel's deviation is 0, where a root's would be infinite
    return ops.concat(mean, ops.where(varies, ops.sqrt(ops.where(varies, variance, 1.0)), variance), axis=1)


class MarginLoss(Layer):
    """Softmax over cosines, the right one made harder by a margin (https://arxiv.org/abs/1801.05599)."""

    def __init__(self, n: int, labels: int, scale: float = 30.0, margin: float = 0.4):
        self.weight, self.scale, self.margin = Param(n, labels), scale, margin

    def forward(self, x: Value, labels: Value) -> Value:
        """x [batch n], labels i64[batch] -> the mean loss."""
        cosines = ops.l2_normalize(x, eps=1e-12) @ ops.l2_normalize(self.weight, axis=0, eps=1e-12)
        right = ops.one_hot(labels, size=self.weight.shape[1])
        return ops.cross_entropy((cosines - right * self.margin) * self.scale, labels)


def ctc_loss(logits: Value, labels: Value, lengths: Value, *, blank: int, reduction: str, zero_infinity: bool) -> Value:
    """The loss of aligning labels i64[batch n] (negative ones are none) to logits [batch frames words] of those lengths."""
    some = labels >= 0
    order = ops.argsort(ops.cast(~some, dtype="i64"), axis=1)  # labels first, in their order
    compact = ops.gather(ops.where(some, labels, 0), order, axis=1)
    count = ops.sum(ops.cast(some, dtype="i64"), axis=1)
    losses = ops.ctc_loss(ops.transpose(ops.log_softmax(logits), perm=(1, 0, 2)), compact, lengths, count, blank=blank)
    if zero_infinity:
        losses = ops.where(losses < 1e30, losses, 0.0)
    if reduction == "sum":
        return ops.sum(losses, axis=0)
    return ops.mean(losses / ops.cast(ops.maximum(count, 1), dtype="f32"), axis=0)


class ConvGate(Layer):
    """A strided convolution whose second half gates the first (https://arxiv.org/abs/1612.08083)."""

    def __init__(self, n: int, kernel: int, stride: int):
        self.conv = Conv(n, 2 * n, (kernel,), stride=(stride,), padding=(1,))

    def forward(self, x: Value) -> Value:
        """[batch n frames] -> [batch n fewer]."""
        n = x.shape[1]
        value, gate = ops.split(self.conv(x), axis=1, sizes=(n, n))
        return value * ops.sigmoid(gate)


class FeatureProjection(Layer):
    """Normalised features, and the same at the model's width."""

    def __init__(self, n_in: int, n_out: int, eps: float, dropout: float):
        self.norm, self.projection, self.dropout = LayerNorm(n_in, eps), Linear(n_in, n_out), Dropout(dropout)

    def forward(self, x: Value) -> tuple[Value, Value]:
        """[batch frames in] -> ([batch frames out], the normalised x)."""
        x = self.norm(x)
        return self.dropout(self.projection(x)), x
