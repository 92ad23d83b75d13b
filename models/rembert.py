"""RemBERT (https://arxiv.org/abs/2010.12821): BERT with narrow embeddings going in and wide ones, not tied to them, coming out."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from ..ir.authoring import Card, Layer, nn


@dataclass(kw_only=True)
class RemBertConfig(nn.DecoderTextConfig):
    """config.json of a RemBERT checkpoint."""

    vocab_size: int = 250300
    hidden_size: int = 1152
    num_hidden_layers: int = 32
    num_attention_heads: int = 18
    input_embedding_size: int = 256
    output_embedding_size: int = 1664
    intermediate_size: int = 4608
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1
    classifier_dropout: ClassVar[None] = None

    embedding_width = property(attrgetter("input_embedding_size"))
    head_dropout = property(attrgetter("classifier_dropout_prob"))


class RemBert(nn.TextEncoder):
    """The encoder over projected embeddings."""

    def projection(self, c: RemBertConfig) -> nn.Linear:
        """Also where the widths are the same."""
        return nn.Linear(c.input_embedding_size, c.hidden_size)


def _words(c: RemBertConfig, body: RemBert) -> dict[str, Layer]:
    """The language model, whose words are never tied."""
    transform = nn.Transform(c.hidden_size, c.output_embedding_size, nn.ACTIVATIONS[c.hidden_act], c.layer_norm_eps)
    return {"transform": transform, "vocabulary": nn.Vocabulary(c.output_embedding_size, c.vocab_size, bias=True)}


CARD = Card(
    model_type="rembert",
    config=RemBertConfig,
    base="rembert",
    heads=nn.text_heads("RemBert", RemBert, "rembert", words=_words, causal="RemBertForCausalLM"),
    names={
        **nn.TEXT_NAMES,
        "project": "encoder.embedding_hidden_mapping_in",
        "transform.{dense,norm}": "cls.predictions.{dense,LayerNorm}",
        "vocabulary": "cls.predictions.decoder",
    },
    unused=("*embeddings.position_ids",),
)
