"""QDQBERT (https://arxiv.org/abs/2004.09602): BERT trained with the rounding errors of eight-bit arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, Layer, Value, collect, nn, only, ops

LEAST = 2.0**-24  # a range below this is rounded to nothing
_USUAL = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(kw_only=True)
class QdqBertConfig(nn.DecoderTextConfig):
    """config.json of a QDQBERT checkpoint."""

    pad_token_id: int | None = 1
    position_embedding_type: str = only("absolute")


def fake_quant(x: Value, *, rows: bool = False) -> Value:
    """x rounded to 8 bits of its own range (of each row of a weight): symmetric, its gradient that of no rounding at all."""
    most = ops.max(ops.absolute(x), axis=tuple(range(1 if rows else 0, x.rank)), keep=True)
    some = most > LEAST
    scale = ops.where(some, 127.0 / ops.where(some, most, 1.0), 0.0)
    steps = ops.minimum(ops.maximum(ops.round_(x * scale), -128.0), 127.0)
    return x + ops.stop_gradient(steps / ops.where(some, scale, 1.0) - x)


class QuantLinear(nn.Linear):
    """A linear layer with its input and the rows of its weight rounded."""

    def forward(self, x: Value) -> Value:
        """[... in] -> [... out]."""
        return ops.linear(fake_quant(x), fake_quant(self.weight, rows=True), self.bias)


class QuantAttention(nn.Attention):
    """Attention whose products are those of rounded factors."""

    def __init__(self, n: int, heads: int, **options: Any):
        super().__init__(n, heads, **options)
        self.q, self.k, self.v, self.out = (QuantLinear(n, n) for _ in range(4))

    def mix(self, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None, kind: str) -> Value:
        """The values that each query sees, weighted: [batch heads rows head]."""
        weights = ops.attention_weights(fake_quant(q), fake_quant(k), mask, bias, scale=self.scale, causal=self.causal)
        collect(kind, weights)
        return fake_quant(nn.Dropout(self.dropout)(weights)) @ fake_quant(v)


class QuantPostNorm(nn.PostNorm):
    """norm(x + layer(x)), both summands rounded."""

    def forward(self, x: Value, *context: Any) -> Value:
        """The normalised sum of x and what the layer makes of it."""
        return self.norm(fake_quant(self.layer(x, *context)) + fake_quant(x))


class QdqBert(nn.TextEncoder):
    """BERT's encoder, its blocks rounded."""

    kind = QuantPostNorm

    def attention(self, c: QdqBertConfig, **options: Any) -> nn.Attention:
        """Attention of a block."""
        return QuantAttention(
            c.hidden_size, c.num_attention_heads, dropout=c.attention_probs_dropout_prob, out_dropout=c.hidden_dropout_prob, **options
        )

    cross = attention

    def mlp(self, c: QdqBertConfig) -> Layer:
        """The feed-forward part of a block."""
        return nn.Mlp(c.hidden_size, c.intermediate_size, c.hidden_act, layer=QuantLinear, dropout=c.hidden_dropout_prob)


CARD = Card(
    model_type="qdqbert",
    config=QdqBertConfig,
    base="bert",
    heads={
        **nn.text_heads("QDQBert", QdqBert, "bert", usual=_USUAL, causal="QDQBertLMHeadModel"),
        "QDQBertForNextSentencePrediction": nn.text_head(
            lambda c: nn.NextSentence(QdqBert(c), c.hidden_size), "bert", usual=_USUAL, labels="i64[batch]"
        ),
    },
    names={**nn.TEXT_NAMES, **nn.BERT_WORDS},
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
)
