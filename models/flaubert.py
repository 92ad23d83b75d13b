"""FlauBERT (https://arxiv.org/abs/1912.05372): XLM for French, which may normalise before its layers and drop whole ones while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Value, nn
from .xlm import Xlm, XlmBlock, XlmConfig, xlm_card


@dataclass(kw_only=True)
class FlaubertConfig(XlmConfig):
    """config.json of a FlauBERT checkpoint."""

    pre_norm: bool = False
    layerdrop: float = 0.0


class FlaubertBlock(XlmBlock):
    """A block that may be passed over while training."""

    def __init__(self, *parts: Any, layerdrop: float):
        super().__init__(*parts)
        self.drop = nn.LayerDrop(layerdrop)

    def forward(self, x: Value, mask: Value | None = None, live: Value | None = None, *none: None) -> Value:
        """x [batch seq n] -> [batch seq n]."""
        return self.drop(x, super().forward(x, mask, live))


class Flaubert(Xlm):
    """XLM's encoder with its own blocks."""

    def block(self, c: FlaubertConfig) -> FlaubertBlock:
        """One block."""
        kind = nn.PreNorm if c.pre_norm else nn.PostNorm
        norm = lambda: nn.LayerNorm(c.emb_dim, c.layer_norm_eps)
        return FlaubertBlock(kind, norm, self.attention(c), self.mlp(c), layerdrop=c.layerdrop)


CARD = xlm_card("flaubert", "Flaubert", Flaubert, FlaubertConfig)
