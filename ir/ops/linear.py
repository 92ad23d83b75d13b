"""Matrix products."""

from __future__ import annotations

import numpy as np

from ..op import op
from .shape import transpose


@op("[*b n k], [*b k m] -> [*b n m]")
def matmul(x, y):
    """Matrix product over the last two axes."""
    return np.matmul(x, y)


@op("[*b k], [m k], [m]? -> [*b m]")
def linear(x, weight, bias=None):
    """x weight^T + bias, the weight stored [out in]."""
    return affine.reference(x, weight.T, bias)


@linear.decompose
def _(x, weight, bias):
    return affine(x, transpose(weight, perm=(1, 0)), bias)


@op("[*b k], [k m], [m]? -> [*b m]")
def affine(x, weight, bias=None):
    """x weight + bias, the weight stored [in out]."""
    y = (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], weight.shape[1])  # one product, where matmul makes one per row of the batch
    return y if bias is None else y + bias


@affine.decompose
def _(x, weight, bias):
    from .shape import expand_dims, squeeze

    y = squeeze(matmul(expand_dims(x, 0), weight), 0) if x.rank == 1 else matmul(x, weight)
    return y if bias is None else y + bias
