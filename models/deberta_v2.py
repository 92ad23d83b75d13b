"""DeBERTa, versions 2 and 3 (https://arxiv.org/abs/2111.09543): buckets of distances, and a convolution beside the first block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import ConfigError, Layer, Value, choice, nn, ops
from ..ir.layers.disentangled import DisentangledAttention, Distances, kept
from .deberta import Deberta, DebertaConfig, deberta_card


@dataclass(kw_only=True)
class DebertaV2Config(DebertaConfig):
    """config.json of a DeBERTa-v2 checkpoint."""

    vocab_size: int = 128100
    hidden_size: int = 1536
    num_hidden_layers: int = 24
    num_attention_heads: int = 24
    intermediate_size: int = 6144
    attention_head_size: int | None = None
    share_att_key: bool = False
    position_buckets: int = -1
    norm_rel_ebd: str = "none"
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = choice("tanh", nn.ACTIVATIONS)

    def check(self, where: str) -> None:
        """Heads make up the width, buckets reach beyond the exact ones, and a convolution keeps the length."""
        super().check(where)
        head, buckets, limit = self.hidden_size // self.num_attention_heads, self.position_buckets, 2 * self.most - 3
        if self.attention_head_size not in (None, head):
            raise ConfigError(f"{where}: attention_head_size is {self.attention_head_size}, expected {head}: hidden_size by num_attention_heads")
        if self.relative_attention and buckets > 0 and not 2 <= buckets <= limit:
            raise ConfigError(f"{where}: position_buckets is {buckets}, expected 2 to {limit}, or -1 for a vector for each distance")
        if self.conv_kernel_size > 0:
            self.divides(where, "conv_groups", "hidden_size")
            if self.conv_kernel_size % 2 == 0:
                raise ConfigError(f"{where}: conv_kernel_size is {self.conv_kernel_size}, expected an odd number, or 0 for no convolution")


class ConvolvedBlock(nn.Block):
    """A block to whose result a convolution of what it read is added."""

    def __init__(self, c: DebertaV2Config, *parts: Any):
        super().__init__(*parts)
        n, kernel = c.hidden_size, c.conv_kernel_size
        self.conv = nn.Conv(n, n, (kernel,), padding=(kernel // 2,), groups=c.conv_groups)
        self.norm, self.dropout = nn.LayerNorm(n, c.layer_norm_eps), nn.Dropout(c.hidden_dropout_prob)
        self.activation = nn.ACTIVATIONS[c.conv_act]

    def forward(self, x: Value, mask: Value | None = None, *context: Any) -> Value:
        """x [batch seq n] -> the same, zero where the mask is."""
        y = ops.transpose(self.conv(ops.transpose(x, perm=(0, 2, 1))), perm=(0, 2, 1))
        return kept(self.norm(super().forward(x, mask, *context) + self.activation(self.dropout(y))), mask)


class DebertaV2(Deberta):
    """The later versions."""

    distances = DisentangledAttention

    def attention(self, c: DebertaV2Config, **options: Any) -> nn.Attention:
        """Attention that may share its projections."""
        return super().attention(c, share=c.share_att_key, **options)

    def places(self, c: DebertaV2Config) -> Distances:
        """The vectors of buckets."""
        normal = "layer_norm" in (part.strip() for part in c.norm_rel_ebd.lower().split("|"))
        return Distances(c.hidden_size, c.most, c.position_buckets, nn.LayerNorm(c.hidden_size, c.layer_norm_eps) if normal else None)

    def stack(self, c: DebertaV2Config) -> list[Layer]:
        """The blocks, the first one perhaps with a convolution."""
        blocks = super().stack(c)
        if c.conv_kernel_size > 0:
            blocks[0] = ConvolvedBlock(c, self.kind, lambda: nn.LayerNorm(c.hidden_size, c.layer_norm_eps), self.attention(c), self.mlp(c))
        return blocks


CARD = deberta_card(
    "deberta-v2",
    "DebertaV2",
    DebertaV2,
    DebertaV2Config,
    {
        "blocks.*.attention.layer.{q,k,v}": "encoder.layer.*.attention.self.{query_proj,key_proj,value_proj}",
        "blocks.*.attention.layer.distance_{key,query}": "encoder.layer.*.attention.self.{pos_key_proj,pos_query_proj}",
        "blocks.0.{conv,norm}": "encoder.conv.{conv,LayerNorm}",
    },
)
