"""Megatron-BERT (https://arxiv.org/abs/1909.08053): BERT whose blocks normalise first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ..ir.authoring import Card, nn


@dataclass(kw_only=True)
class MegatronBertConfig(nn.RelativeTextConfig):
    """config.json of a Megatron-BERT checkpoint."""

    vocab_size: int = 29056
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    classifier_dropout: ClassVar[None] = None


class MegatronBert(nn.TextEncoder):
    """Blocks that normalise first, and a last normalisation in place of that of the embeddings."""

    embedding = partial(nn.TextEmbeddings, norm=False)
    kind = nn.PreNorm

    def cross(self, c: MegatronBertConfig) -> nn.Attention:
        """Attention to an encoder, with distances as in the block's own."""
        return self.attention(c)

    def last_norm(self, c: MegatronBertConfig) -> nn.LayerNorm:
        """The normalisation of the last state."""
        return nn.LayerNorm(c.hidden_size, c.layer_norm_eps)


_USUAL = ("input_ids", "attention_mask", "token_type_ids")

CARD = Card(
    model_type="megatron-bert",
    config=MegatronBertConfig,
    base="bert",
    heads={
        **nn.text_heads("MegatronBert", MegatronBert, "bert", usual=_USUAL, causal="MegatronBertForCausalLM"),
        **nn.pair_heads("MegatronBert", MegatronBert, "bert", usual=_USUAL),
    },
    names={
        **nn.TEXT_NAMES,
        **nn.BERT_WORDS,
        "blocks.*.cross.layer.distance": "encoder.layer.*.crossattention.self.distance_embedding",
        "blocks.*.attention.{layer.out,norm}": "encoder.layer.*.attention.{output.dense,ln}",
        "blocks.*.cross.{layer.out,norm}": "encoder.layer.*.crossattention.{output.dense,ln}",
        "blocks.*.mlp.norm": "encoder.layer.*.ln",
        "norm": "encoder.ln",
    },
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
