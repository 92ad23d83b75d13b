"""Normalisation layers as ops."""

from __future__ import annotations

import numpy as np

from ..op import op
from ..signature import expects
from .elementwise import maximum, sqrt
from .reduce import mean, sum
from .shape import same_dtype, view


@op("[*b n], [n]?, [n]? -> [*b n]")
def layer_norm(x, scale=None, shift=None, *, eps):
    """(x - mean) / sqrt(variance + eps) * scale + shift over the last axis (https://arxiv.org/abs/1607.06450)."""
    c = x - x.mean(-1, keepdims=True)
    y = c / np.sqrt((c * c).mean(-1, keepdims=True) + x.dtype.type(eps))
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


@layer_norm.decompose
def _(x, scale, shift, *, eps):
    c = x - mean(x, axis=-1, keep=True)
    y = c / sqrt(mean(c * c, axis=-1, keep=True) + eps)
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


@op("[*b n], [n] -> [*b n]")
def rms_norm(x, scale, *, eps):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis (https://arxiv.org/abs/1910.07467)."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps)) * scale


@rms_norm.decompose
def _(x, scale, *, eps):
    return x / sqrt(mean(x * x, axis=-1, keep=True) + eps) * scale


def _group_norm_rule(x, scale, shift, *, groups, eps):
    expects(x.rank >= 3, f"x is {x}, expected [batch channels *spatial]")
    channels = x.shape[1]
    expects(channels % groups == 0, f"{channels} channels do not divide into {groups} groups")
    expects(scale.shape == shift.shape == (channels,), f"scale is {scale} and shift {shift}, expected [{channels}]")
    same_dtype(x, scale=scale, shift=shift)
    return x


@op(_group_norm_rule)
def group_norm(x, scale, shift, *, groups, eps):
    """Each group of channels normalised over its channels and positions (https://arxiv.org/abs/1803.08494)."""
    g = x.reshape(x.shape[0], groups, -1)
    g = layer_norm.reference(g, eps=eps).reshape(x.shape)
    wide = (-1,) + (1,) * (x.ndim - 2)
    return g * scale.reshape(wide) + shift.reshape(wide)


@group_norm.decompose
def _(x, scale, shift, *, groups, eps):
    batch, channels, *spatial = x.shape
    g = view(x, (batch, groups, channels // groups, *spatial))
    axes = tuple(range(2, g.rank))
    c = g - mean(g, axis=axes, keep=True)
    y = view(c / sqrt(mean(c * c, axis=axes, keep=True) + eps), x.shape)
    return y * _per_channel(scale, x) + _per_channel(shift, x)


def _per_channel(v, x):
    return view(v, (v.shape[0], *(1,) * (x.rank - 2)))


def _batch_norm_rule(x, scale, shift, mean, variance, *, eps):
    expects(x.rank >= 2, f"x is {x}, expected [batch channels *spatial]")
    vectors = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
    for name, v in vectors.items():
        expects(v.shape == (x.shape[1],), f"{name} is {v}, expected [{x.shape[1]}]")
    same_dtype(x, **vectors)
    return x


@op(_batch_norm_rule)
def batch_norm(x, scale, shift, mean, variance, *, eps):
    """Each channel by given statistics: (x - mean) / sqrt(variance + eps) * scale + shift (https://arxiv.org/abs/1502.03167)."""
    wide = (-1,) + (1,) * (x.ndim - 2)
    factor = scale / np.sqrt(variance + x.dtype.type(eps))
    return (x - mean.reshape(wide)) * factor.reshape(wide) + shift.reshape(wide)


@batch_norm.decompose
def _(x, scale, shift, mean, variance, *, eps):
    factor = scale / sqrt(variance + eps)
    return (x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(shift, x)


def batch_statistics(x):
    """Mean and (biased) variance of each channel over batch and positions."""
    axes = (0, *range(2, x.rank))
    m = mean(x, axis=axes, keep=True)
    c = x - m
    return view(m, (x.shape[1],)), mean(c * c, axis=axes)


def l2_normalize(x, *, axis=-1, eps=0.0):
    """x divided by its length along axis, which is at least `eps`."""
    length = sqrt(sum(x * x, axis=axis, keep=True))
    return x / (maximum(length, eps) if eps else length)
