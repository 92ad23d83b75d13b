"""DistilBERT (https://arxiv.org/abs/1910.01108): BERT's encoder without segments and pooling."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from ..ir.authoring import Card, Config, choice, nn, ops


@dataclass(kw_only=True)
class DistilBertConfig(Config):
    """config.json of a DistilBERT checkpoint."""

    aliases: ClassVar = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = choice("gelu", nn.ACTIVATIONS)
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int | None = 0

    # what text encoders call them, and what is fixed here
    hidden_size, num_attention_heads, num_hidden_layers = (property(attrgetter(name)) for name in ("dim", "n_heads", "n_layers"))
    intermediate_size, hidden_act = (property(attrgetter(name)) for name in ("hidden_dim", "activation"))
    hidden_dropout_prob, head_dropout = (property(attrgetter("dropout")) for _ in range(2))
    attention_probs_dropout_prob = property(attrgetter("attention_dropout"))
    type_vocab_size, layer_norm_eps = 0, 1e-12


class Embeddings(nn.TextEmbeddings):
    """Words and places, which may be fixed waves."""

    def position_table(self, c: DistilBertConfig, n: int) -> nn.Embedding:
        """A table that is learnt or not."""
        return (nn.Sinusoids if c.sinusoidal_pos_embds else nn.Embedding)(c.max_position_embeddings, n)


class DistilBert(nn.TextEncoder):
    """The encoder, which never pools."""

    embedding = Embeddings

    def __init__(self, c: DistilBertConfig, pool: bool = False):
        super().__init__(c, pool=False)


_inputs = nn.inputs_without("token_type_ids", "position_ids")


def _decide(c: DistilBertConfig, labels: int) -> nn.ClassificationHead:
    return nn.ClassificationHead(c.dim, labels, c.seq_classif_dropout, ops.relu)


def _classifier(c: DistilBertConfig) -> nn.SequenceClassifier:
    return nn.SequenceClassifier(DistilBert(c), _decide(c, c.labels), c, pool=nn.first_state)


def _choices(c: DistilBertConfig) -> nn.MultipleChoice:
    return nn.MultipleChoice(DistilBert(c), _decide(c, 1), pool=nn.first_state)


def _answer(c: DistilBertConfig) -> nn.SpanClassifier:
    return nn.SpanClassifier(DistilBert(c), c.dim, c.labels, c.qa_dropout)


_PLACES = {"start_positions": "i64[batch]", "end_positions": "i64[batch]"}
_DECISION = {"classifier.{dense,out_proj}": "{pre_classifier,classifier}"}

CARD = Card(
    model_type="distilbert",
    config=DistilBertConfig,
    base="distilbert",
    heads={
        **nn.text_heads("DistilBert", DistilBert, "distilbert", inputs=_inputs),
        "DistilBertForSequenceClassification": nn.text_head(_classifier, "distilbert", _inputs, labels=nn.label_type),
        "DistilBertForMultipleChoice": nn.text_head(_choices, "distilbert", lambda c: nn.with_choices(_inputs(c)), labels="i64[batch]"),
        "DistilBertForQuestionAnswering": nn.text_head(_answer, "distilbert", _inputs, **_PLACES),
    },
    names={
        **nn.TEXT_NAMES,
        "blocks.*.attention.layer.{q,k,v}": "transformer.layer.*.attention.{q_lin,k_lin,v_lin}",
        "blocks.*.attention.{layer.out,norm}": "transformer.layer.*.{attention.out_lin,sa_layer_norm}",
        "blocks.*.mlp.layer.{up,down}": "transformer.layer.*.ffn.{lin1,lin2}",
        "blocks.*.mlp.norm": "transformer.layer.*.output_layer_norm",
        "transform.{dense,norm}": "{vocab_transform,vocab_layer_norm}",
        "vocabulary": "vocab_projector",
        **_DECISION,
    },
    unused=("*embeddings.position_ids",),
)
