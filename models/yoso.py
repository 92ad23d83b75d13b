"""YOSO (https://arxiv.org/abs/2111.09714): BERT whose keys are seen as often as hashing would have them collide with the query, in expectation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.authoring import Card, ConfigError, Value, choice, collect, nn, only, ops
from .nystromformer import OffsetEmbeddings, landmark_card, odd, value_conv


@dataclass(kw_only=True)
class YosoConfig(nn.TextConfig):
    """config.json of a YOSO checkpoint; sampled hashes (`use_expectation` false) are refused: the reference has them for one device, and wrong."""

    vocab_size: int = 50265
    max_position_embeddings: int = 4096
    type_vocab_size: int = 1
    pad_token_id: int | None = 1
    position_embedding_type: str = choice("absolute", ("absolute", "relative_key", "relative_key_query"))
    use_expectation: bool = only(True)
    hash_code_len: int = 9
    conv_window: int | None = None

    def check(self, where: str) -> None:
        """A hash has bits; the convolution has a middle."""
        super().check(where)
        if self.hash_code_len < 1:
            raise ConfigError(f"{where}: hash_code_len is {self.hash_code_len}, expected at least 1")
        odd(where, "conv_window", self.conv_window)


# arcsin(r) / r as a polynomial of r^2 up to 1/4, exact to 1e-15.
_SERIES = np.polynomial.Chebyshev.interpolate(lambda z: np.arcsin(np.sqrt(z)) / np.sqrt(z), 13, [0, 0.25])
_ARCSINE = [float(a) for a in _SERIES.convert(kind=np.polynomial.Polynomial).coef]


def arcsine(x: Value) -> Value:
    """The angle whose sine is x, which is taken as -1 or 1 beyond; half of it, where x is not small, is that of a smaller sine."""
    size = ops.absolute(x)
    small = size < 0.5
    z = ops.where(small, x * x, ops.maximum((1.0 - size) * 0.5, 0.0))
    ratio = z * _ARCSINE[-1]
    for coefficient in _ARCSINE[-2:0:-1]:
        ratio = (ratio + coefficient) * z
    angle = (ratio + _ARCSINE[0]) * ops.sqrt(z)
    return ops.sign(x) * ops.where(small, angle, math.pi / 2 - angle * 2.0)


class HashAttention(nn.Attention):
    """Values by the probability that `bits` random planes do not part key and query, of length 1, and a convolution of them.

    The reference does not mask keys: padding is seen.
    """

    def __init__(self, n: int, heads: int, bits: int, window: int | None, **options: Any):
        super().__init__(n, heads, **options)
        self.bits, self.conv = bits, value_conv(heads, window)

    def forward(self, x: Value, mask: Value | None = None, *context: Any) -> Value:
        """[batch seq n] -> [batch seq n]."""
        q, k, v = self.project(x)
        y = ops.l2_normalize(self.collisions(q, k) @ v, eps=1e-12)
        if self.conv is not None:
            y = y + self.conv(v if mask is None else ops.where(ops.transpose(mask, perm=(0, 1, 3, 2)), v, 0.0))
        y = nn.heads_last(y)
        collect("attentions", y)
        return self.out_dropout(self.out(y))

    def collisions(self, q: Value, k: Value) -> Value:
        """[batch heads seq keys]; its derivative by the cosine is taken as bits / 2 times itself, which is finite everywhere."""
        cosine = ops.l2_normalize(q, eps=1e-12) @ ops.transpose(ops.l2_normalize(k, eps=1e-12), perm=(0, 1, 3, 2))
        fixed = ops.stop_gradient(cosine)
        expected = ops.power(arcsine(fixed) * (1 / math.pi) + 0.5, float(self.bits))
        return expected * ((cosine - fixed) * (self.bits / 2) + 1.0)


class Yoso(nn.TextEncoder):
    """BERT's encoder with attention by hashes."""

    embedding = OffsetEmbeddings

    def attention(self, c: YosoConfig, **options: Any) -> HashAttention:
        """Attention of a block."""
        return HashAttention(c.hidden_size, c.num_attention_heads, c.hash_code_len, c.conv_window, out_dropout=c.hidden_dropout_prob)


CARD: Card = landmark_card("yoso", "Yoso", YosoConfig, Yoso)
