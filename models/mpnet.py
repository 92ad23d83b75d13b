"""MPNet (https://arxiv.org/abs/2004.09297): RoBERTa without segments, whose attention scores also have a bias by distance, the same in all layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir.authoring import Card, ConfigError, Value, nn, only
from .roberta import roberta_words

BUCKETS, MOST = 32, 128  # of distances; the reference has them fixed, whatever the table's size
PADDING = 1  # likewise the id that embeddings take for padding


@dataclass(kw_only=True)
class MPNetConfig(nn.TextConfig):
    """config.json of an MPNet checkpoint."""

    type_vocab_size: ClassVar[int] = 0  # type: ignore[misc]
    vocab_size: int = 30527
    relative_attention_num_buckets: int = 32
    pad_token_id: int | None = 1
    is_decoder: bool = only(False)

    def check(self, where: str) -> None:
        """Each bucket has a row."""
        super().check(where)
        if self.relative_attention_num_buckets < BUCKETS:
            found = f"relative_attention_num_buckets is {self.relative_attention_num_buckets}"
            raise ConfigError(f"{where}: {found}, expected at least {BUCKETS}: distances have that many buckets in any case")


class MPNet(nn.TextEncoder):
    """BERT's encoder with one table of distances."""

    def __init__(self, c: MPNetConfig, pool: bool = True):
        super().__init__(c, pool)
        self.distance = nn.RelativeBias(c.num_attention_heads, BUCKETS, MOST, causal=False)
        self.distance.table = nn.Embedding(c.relative_attention_num_buckets, c.num_attention_heads)

    def embedding(self, c: MPNetConfig) -> nn.PaddedEmbeddings:  # type: ignore[override]
        """Embeddings that tell padding by its id."""
        return nn.PaddedEmbeddings(replace(c, pad_token_id=PADDING))

    def score_bias(self, x: Value) -> Value:
        """[1 heads seq seq]."""
        return self.distance(x.shape[1])


CARD = Card(
    model_type="mpnet",
    config=MPNetConfig,
    base="mpnet",
    heads=nn.text_heads("MPNet", MPNet, "mpnet", inputs=nn.inputs_without("token_type_ids"), words=roberta_words, classifier=nn.first_state_head),
    names={
        **nn.TEXT_NAMES,
        **nn.ROBERTA_WORDS,
        "blocks.*.attention.layer.{q,k,v}": "encoder.layer.*.attention.attn.{q,k,v}",
        "blocks.*.attention.{layer.out,norm}": "encoder.layer.*.attention.{attn.o,LayerNorm}",
        "distance.table": "encoder.relative_attention_bias",
    },
    also={"lm_head.bias": ["lm_head.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
