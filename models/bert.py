"""BERT (https://arxiv.org/abs/1810.04805): a text encoder with all its heads; a decoder where the configuration says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir import layers as nn
from ..ir import ops
from ..ir.card import Card, Head, inputs_of
from ..ir.config import Config, choice
from ..ir.errors import ConfigError
from ..ir.graph import Value, current
from ..ir.layer import Layer, collecting


@dataclass(kw_only=True)
class BertConfig(Config):
    """config.json of a BERT checkpoint."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = choice("gelu", nn.ACTIVATIONS)
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = choice("absolute", ("absolute", "relative_key", "relative_key_query"))
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False

    def check(self, where: str) -> None:
        """Heads share the width; only a decoder attends to an encoder."""
        self.divides(where, "num_attention_heads", "hidden_size")
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError(f"{where}: add_cross_attention is true but is_decoder is false; expected both or neither")

    @property
    def head_dropout(self) -> float:
        """What classifiers drop."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


class RelativeAttention(nn.Attention):
    """Attention whose scores also depend on how far query and key are apart (https://arxiv.org/abs/1803.02155).

    Each distance has a vector; its product with the query (and, where `keys` is true, with the key) is added to the scores.
    """

    def __init__(self, n: int, heads: int, *, positions: int, keys: bool, **options):
        super().__init__(n, heads, **options)
        self.distance, self.keys, self.most = nn.Embedding(2 * positions - 1, n // heads), keys, positions

    def scores(self, q: Value, k: Value) -> Value:
        """[batch heads rows keys] of q [batch heads rows head] and k [batch heads keys head]."""
        rows, columns = ops.iota(size=q.shape[2]) + current().cache.past, ops.iota(size=k.shape[2])
        vectors = self.distance(rows[:, None] - columns[None, :] + (self.most - 1))  # [rows keys head]
        by_row = ops.rearrange(q, "batch heads rows head -> rows (batch heads) head") @ ops.rearrange(vectors, "rows keys head -> rows head keys")
        total = ops.rearrange(by_row, "rows (batch heads) keys -> batch heads rows keys", heads=self.heads)
        if self.keys:
            by_key = ops.rearrange(k, "batch heads keys head -> keys (batch heads) head") @ ops.rearrange(vectors, "rows keys head -> keys head rows")
            total = total + ops.rearrange(by_key, "keys (batch heads) rows -> batch heads rows keys", heads=self.heads)
        return total * self.scale


class BertEmbeddings(Layer):
    """Words, segments and (where they are absolute) positions."""

    def __init__(self, c: BertConfig):
        n = c.hidden_size
        self.words, self.segments = nn.Embedding(c.vocab_size, n, c.pad_token_id), nn.Embedding(c.type_vocab_size, n)
        self.positions = nn.Embedding(c.max_position_embeddings, n)
        self.norm, self.dropout = nn.LayerNorm(n, c.layer_norm_eps), nn.Dropout(c.hidden_dropout_prob)
        self.absolute, self.most = c.position_embedding_type == "absolute", c.max_position_embeddings

    def forward(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None) -> Value:
        """[batch seq n]; segment 0 and positions from 0 where none are given."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        x = x + (self.segments.weight[0] if token_type_ids is None else self.segments(token_type_ids))
        if self.absolute:
            x = x + self.positions(current().cache.positions(x.shape[1], self.most) if position_ids is None else position_ids)
        return self.dropout(self.norm(x))


class Bert(Layer):
    """Embeddings, blocks and, for heads that read it, the pooled first position."""

    def __init__(self, c: BertConfig, pool: bool = True):
        self.embeddings = BertEmbeddings(c)
        self.blocks = [self._block(c) for _ in range(c.num_hidden_layers)]
        self.pooler = nn.Pooler(c.hidden_size) if pool else None

    @staticmethod
    def _block(c: BertConfig) -> nn.Block:
        n = c.hidden_size
        options: dict[str, Any] = {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob}
        if c.position_embedding_type == "absolute":
            attention = nn.Attention(n, c.num_attention_heads, causal=c.is_decoder, **options)
        else:
            keys = c.position_embedding_type == "relative_key_query"
            attention = RelativeAttention(n, c.num_attention_heads, positions=c.max_position_embeddings, keys=keys, causal=c.is_decoder, **options)
        mlp = nn.Mlp(n, c.intermediate_size, c.hidden_act, dropout=c.hidden_dropout_prob)
        cross = nn.Attention(n, c.num_attention_heads, **options) if c.add_cross_attention else None
        return nn.Block(nn.PostNorm, lambda: nn.LayerNorm(n, c.layer_norm_eps), attention, mlp, cross)

    def forward(self, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, **words):
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        x = self.embeddings(**words)
        with collecting() as seen:
            x, states = nn.run_blocks(self.blocks, x, nn.key_mask(attention_mask), None, encoder_hidden_states, nn.key_mask(encoder_attention_mask))
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(x), "hidden_states": states, **seen}


class PreTraining(Layer):
    """Masked words and whether the second sentence follows the first."""

    def __init__(self, body: Bert, transform: Layer, vocabulary: Layer, n: int):
        self.body, self.transform, self.vocabulary, self.next = body, transform, vocabulary, nn.Linear(n, 2)

    def forward(self, labels=None, next_sentence_label=None, **inputs):
        """-> prediction_logits [batch seq words], seq_relationship_logits [batch 2], loss where both labels are given."""
        out = self.body(**inputs)
        words, follows = self.vocabulary(self.transform(out["last_hidden_state"])), self.next(out["pooler_output"])
        given = labels is not None and next_sentence_label is not None
        loss = ops.cross_entropy(words, labels) + ops.cross_entropy(follows, next_sentence_label) if given else None
        return {"loss": loss, "prediction_logits": words, "seq_relationship_logits": follows, **nn.rest(out)}


class NextSentence(Layer):
    """Whether the second sentence follows the first."""

    def __init__(self, body: Bert, n: int):
        self.body, self.next = body, nn.Linear(n, 2)

    def forward(self, labels=None, **inputs):
        """-> logits [batch 2]: class 0 is that it follows."""
        out = self.body(**inputs)
        logits = self.next(out["pooler_output"])
        return {"loss": None if labels is None else ops.cross_entropy(logits, labels), "logits": logits, **nn.rest(out)}


def _words(c: BertConfig, body: Bert) -> dict[str, Layer]:
    tied = body.embeddings.words if c.tie_word_embeddings else None
    transform = nn.Transform(c.hidden_size, c.hidden_size, nn.ACTIVATIONS[c.hidden_act], c.layer_norm_eps)
    return {"transform": transform, "vocabulary": nn.Vocabulary(c.hidden_size, c.vocab_size, tied, bias=True)}


def _language_model(c: BertConfig, causal: bool) -> nn.LanguageModel:
    body = Bert(c, pool=False)
    return nn.LanguageModel(body, **_words(c, body), causal=causal)


def _inputs(c: BertConfig) -> dict[str, str]:
    return nn.text_inputs(c.hidden_size, memory=c.hidden_size if c.add_cross_attention else None)


def _head(build, prefix="bert", common=_inputs, **labels) -> Head:
    return Head(build, inputs_of(common, **labels), ("input_ids", "attention_mask", "token_type_ids"), prefix)


_HEADS = {
    "BertModel": _head(Bert, prefix=""),
    "BertForPreTraining": _head(
        lambda c: PreTraining(body := Bert(c), **_words(c, body), n=c.hidden_size), labels="i64[batch seq]", next_sentence_label="i64[batch]"
    ),
    "BertLMHeadModel": _head(lambda c: _language_model(c, causal=True), labels="i64[batch seq]"),
    "BertForMaskedLM": _head(lambda c: _language_model(c, causal=False), labels="i64[batch seq]"),
    "BertForNextSentencePrediction": _head(lambda c: NextSentence(Bert(c), c.hidden_size), labels="i64[batch]"),
    "BertForSequenceClassification": _head(
        lambda c: nn.SequenceClassifier(Bert(c), nn.Linear(c.hidden_size, c.labels), c, c.head_dropout), labels=nn.label_type
    ),
    "BertForMultipleChoice": _head(
        lambda c: nn.MultipleChoice(Bert(c), c.hidden_size, c.head_dropout), common=lambda c: nn.with_choices(_inputs(c)), labels="i64[batch]"
    ),
    "BertForTokenClassification": _head(
        lambda c: nn.TokenClassifier(Bert(c, pool=False), c.hidden_size, c.labels, c.head_dropout), labels="i64[batch seq]"
    ),
    "BertForQuestionAnswering": _head(
        lambda c: nn.SpanClassifier(Bert(c, pool=False), c.hidden_size, c.labels), start_positions="i64[batch]", end_positions="i64[batch]"
    ),
}

_BLOCK = {
    "attention.layer.q": "attention.self.query",
    "attention.layer.k": "attention.self.key",
    "attention.layer.v": "attention.self.value",
    "attention.layer.distance": "attention.self.distance_embedding",
    "attention.layer.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "cross.layer.q": "crossattention.self.query",
    "cross.layer.k": "crossattention.self.key",
    "cross.layer.v": "crossattention.self.value",
    "cross.layer.out": "crossattention.output.dense",
    "cross.norm": "crossattention.output.LayerNorm",
    "mlp.layer.up": "intermediate.dense",
    "mlp.layer.down": "output.dense",
    "mlp.norm": "output.LayerNorm",
}

CARD = Card(
    model_type="bert",
    config=BertConfig,
    heads=_HEADS,
    base="bert",
    names={
        "embeddings.words": "embeddings.word_embeddings",
        "embeddings.positions": "embeddings.position_embeddings",
        "embeddings.segments": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        **{f"blocks.*.{ours}": f"encoder.layer.*.{theirs}" for ours, theirs in _BLOCK.items()},
        "transform.dense": "cls.predictions.transform.dense",
        "transform.norm": "cls.predictions.transform.LayerNorm",
        "vocabulary.weight": "cls.predictions.decoder.weight",
        "vocabulary.bias": "cls.predictions.bias",
        "next": "cls.seq_relationship",
    },
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
)
