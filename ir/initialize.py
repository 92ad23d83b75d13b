"""New weights for parameters, the same for the same seed and name whatever else the model holds."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable

import numpy as np

from .graph import Param
from .types import NUMPY_DTYPES

NORMAL_SCALE = 0.02  # standard deviation of "normal" (https://arxiv.org/abs/1810.04805, appendix)


def initialize(params: Iterable[Param], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays by key: zeros, ones, normal of standard deviation 0.02, or uniform within 1 / sqrt(fan in)."""
    return {p.key: _draw(p, seed) for p in params}


def _draw(param: Param, seed: int) -> np.ndarray:
    dtype = NUMPY_DTYPES[param.type.dtype]
    if not isinstance(param.init, str):
        return np.asarray(param.init, dtype)
    if param.init in ("zeros", "ones"):
        return np.full(param.shape, param.init == "ones", dtype)
    generator = np.random.default_rng([seed, zlib.crc32(param.key.encode())])
    if param.init == "normal":
        return (generator.standard_normal(param.shape, np.float32) * NORMAL_SCALE).astype(dtype)
    bound = 1 / math.sqrt(max(1, math.prod(param.shape[1:])))
    return generator.uniform(-bound, bound, param.shape).astype(dtype)
