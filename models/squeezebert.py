"""SqueezeBERT (https://arxiv.org/abs/2006.11316): BERT whose linear layers are convolutions in groups of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, ConfigError, Value, collect, collecting, nn, only, ops


@dataclass(kw_only=True)
class SqueezeBertConfig(nn.TextConfig):
    """config.json of a SqueezeBERT checkpoint."""

    embedding_size: int = 768
    q_groups: int = 4
    k_groups: int = 4
    v_groups: int = 4
    post_attention_groups: int = 1
    intermediate_groups: int = 4
    output_groups: int = 4
    is_decoder: bool = only(False)

    def check(self, where: str) -> None:
        """Groups divide what they are of; nothing makes states of narrower embeddings."""
        super().check(where)
        for groups in ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"):
            self.divides(where, groups, "hidden_size")
        for groups in ("intermediate_groups", "output_groups"):
            self.divides(where, groups, "intermediate_size")
        if self.embedding_size != self.hidden_size:
            raise ConfigError(f"{where}: embedding_size is {self.embedding_size}, expected hidden_size={self.hidden_size}")


class Grouped(nn.Conv):
    """A linear layer within each group of channels, stored as a convolution of width 1."""

    def __init__(self, n_in: int, n_out: int, groups: int):
        super().__init__(n_in, n_out, (1,), groups=groups)

    def forward(self, x: Value) -> Value:
        """[batch seq in] -> [batch seq out]."""
        return ops.transpose(super().forward(ops.transpose(x, perm=(0, 2, 1))), perm=(0, 2, 1))


class GroupedAttention(nn.Attention):
    """Attention in groups of channels, of which the scores, not the weights, are an output on demand."""

    def __init__(self, n: int, heads: int, groups: tuple[int, int, int, int], **options: Any):
        super().__init__(n, heads, **options)
        self.q, self.k, self.v, self.out = (Grouped(n, n, g) for g in groups)

    def forward(self, x: Value, mask: Value | None = None, *context: Value | None) -> Value:
        """[batch seq n] -> [batch seq n]."""
        q, k, _ = self.project(x)
        scores = q @ ops.transpose(k, perm=(0, 1, 3, 2)) * self.scale
        collect("attentions", scores if mask is None else ops.where(mask, scores, ops.LOWEST))
        with collecting():
            return super().forward(x, mask, *context)


class SqueezeBert(nn.TextEncoder):
    """BERT's encoder in groups; every head has the pooled state's weights."""

    def __init__(self, c: SqueezeBertConfig, pool: bool = True):
        super().__init__(c, pool=True)

    def block(self, c: SqueezeBertConfig) -> nn.Block:
        """One block, whose normalisations do not heed `layer_norm_eps`."""
        n, inner = c.hidden_size, c.intermediate_size
        groups = c.q_groups, c.k_groups, c.v_groups, c.post_attention_groups
        options = {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob}
        mlp: Any = self.mlp(c)
        mlp.up, mlp.down = Grouped(n, inner, c.intermediate_groups), Grouped(inner, n, c.output_groups)
        return nn.Block(self.kind, lambda: nn.LayerNorm(n, 1e-12), GroupedAttention(n, c.num_attention_heads, groups, **options), mlp)


CARD = Card(
    model_type="squeezebert",
    config=SqueezeBertConfig,
    base="transformer",
    heads=nn.text_heads("SqueezeBert", SqueezeBert, "transformer", usual=("input_ids", "attention_mask", "token_type_ids")),
    names={
        **nn.TEXT_NAMES,
        **nn.BERT_WORDS,
        "blocks.*.attention.layer.{q,k,v}": "encoder.layers.*.attention.{query,key,value}",
        "blocks.*.attention.{layer.out,norm}": "encoder.layers.*.post_attention.{conv1d,layernorm}",
        "blocks.*.mlp.layer.{up,down}": "encoder.layers.*.{intermediate,output}.conv1d",
        "blocks.*.mlp.norm": "encoder.layers.*.output.layernorm",
    },
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
