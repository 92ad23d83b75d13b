"""XLM-RoBERTa-XL and -XXL (https://arxiv.org/abs/2105.00572): RoBERTa whose blocks normalise first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ..ir.authoring import nn
from .roberta import RobertaConfig, roberta_card


@dataclass(kw_only=True)
class XlmRobertaXlConfig(RobertaConfig):
    """config.json of an XLM-RoBERTa-XL checkpoint."""

    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5


class XlmRobertaXl(nn.TextEncoder):
    """Blocks that normalise first, and a last normalisation in place of that of the embeddings."""

    embedding = partial(nn.PaddedEmbeddings, norm=False)
    kind = nn.PreNorm

    def mlp(self, c: XlmRobertaXlConfig) -> nn.Mlp:
        """Nothing is dropped here."""
        return nn.Mlp(c.hidden_size, c.intermediate_size, c.hidden_act)

    def last_norm(self, c: XlmRobertaXlConfig) -> nn.LayerNorm:
        """The normalisation of the last state."""
        return nn.LayerNorm(c.hidden_size, c.layer_norm_eps)


_CARD = roberta_card("xlm-roberta-xl", "XLMRobertaXL", body=XlmRobertaXl, config=XlmRobertaXlConfig)
CARD = replace(
    _CARD,
    names={
        **_CARD.names,
        "blocks.*.attention.{layer.out,norm}": "encoder.layer.*.attention.{output.dense,self_attn_layer_norm}",
        "blocks.*.cross.{layer.out,norm}": "encoder.layer.*.crossattention.{output.dense,self_attn_layer_norm}",
        "blocks.*.mlp.norm": "encoder.layer.*.LayerNorm",
        "norm": "encoder.LayerNorm",
    },
)
