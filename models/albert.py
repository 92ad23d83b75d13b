"""ALBERT (https://arxiv.org/abs/1909.11942): BERT whose layers share weights in groups, over narrow embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir.authoring import Card, ConfigError, Layer, Value, choice, nn


@dataclass(kw_only=True)
class AlbertConfig(nn.TextConfig):
    """config.json of an ALBERT checkpoint."""

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = choice("gelu_new", nn.ACTIVATIONS)
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float | None = 0.1
    position_embedding_type: str = choice("absolute", ("absolute", "relative_key", "relative_key_query"))

    def check(self, where: str) -> None:
        """There is a group and something in it."""
        super().check(where)
        for name in ("num_hidden_groups", "inner_group_num"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}: {name} is {getattr(self, name)}, expected at least 1")

    @property
    def head_dropout(self) -> float:
        """What classifiers drop."""
        return self.hidden_dropout_prob if self.classifier_dropout_prob is None else self.classifier_dropout_prob


class UnscaledDistances(nn.RelativeAttention):
    """Attention whose distance scores are added as they are, where BERT scales them with the others."""

    def scores(self, q: Value, k: Value) -> Value:
        """[batch heads rows keys]."""
        return super().scores(q, k) / self.scale


class Group(Layer):
    """Blocks that run one after another, again and again."""

    def __init__(self, layers: list[Layer]):
        self.layers = layers

    def forward(self, x: Value, *context) -> Value:
        """[batch seq n] -> [batch seq n]."""
        return nn.run_blocks(self.layers, x, *context)[0]


class Albert(nn.TextEncoder):
    """Groups of blocks, each run for its share of the layers."""

    distances = UnscaledDistances

    def projection(self, c: AlbertConfig) -> nn.Linear:
        """Also where the widths are the same."""
        return nn.Linear(c.embedding_size, c.hidden_size)

    def mlp(self, c: AlbertConfig) -> nn.Mlp:
        """Nothing is dropped here."""
        return nn.Mlp(c.hidden_size, c.intermediate_size, c.hidden_act)

    def stack(self, c: AlbertConfig) -> list[Layer]:
        """The group of each layer."""
        self.groups = [Group([self.block(c) for _ in range(c.inner_group_num)]) for _ in range(c.num_hidden_groups)]
        share = c.num_hidden_layers / c.num_hidden_groups
        return [self.groups[int(layer / share)] for layer in range(c.num_hidden_layers)]


def _pretraining(c: AlbertConfig) -> nn.PreTraining:
    body, names = Albert(c), ("sentence_order_label", "sop_logits")
    return nn.PreTraining(body, **nn.word_scores(c, body), decide=nn.Linear(c.hidden_size, c.labels), names=names, dropout=c.head_dropout)


_USUAL = ("input_ids", "attention_mask", "token_type_ids")
_LAYER = "encoder.albert_layer_groups.*.albert_layers.*"

CARD = Card(
    model_type="albert",
    config=AlbertConfig,
    base="albert",
    heads={
        **nn.text_heads("Albert", Albert, "albert", usual=_USUAL),
        "AlbertForPreTraining": nn.text_head(_pretraining, "albert", usual=_USUAL, labels="i64[batch seq]", sentence_order_label="i64[batch]"),
    },
    names={
        **nn.TEXT_NAMES,
        "project": "encoder.embedding_hidden_mapping_in",
        "groups.*.layers.*.attention.layer.{q,k,v,out,distance}": f"{_LAYER}.attention.{{query,key,value,dense,distance_embedding}}",
        "groups.*.layers.*.attention.norm": f"{_LAYER}.attention.LayerNorm",
        "groups.*.layers.*.mlp.layer.{up,down}": f"{_LAYER}.{{ffn,ffn_output}}",
        "groups.*.layers.*.mlp.norm": f"{_LAYER}.full_layer_layer_norm",
        "pooler.dense": "pooler",
        "transform.{dense,norm}": "predictions.{dense,LayerNorm}",
        "vocabulary.{weight,bias}": "predictions.{decoder.weight,bias}",
        "next": "sop_classifier.classifier",
    },
    also={"predictions.bias": ["predictions.decoder.bias"]},
    unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
)
