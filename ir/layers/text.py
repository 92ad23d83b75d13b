"""Text encoders in BERT's manner: configuration, embeddings, body, weight names and heads, of which a card changes what it has of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import ops
from ..card import Head, inputs_of
from ..config import Config, choice
from ..errors import ConfigError
from ..graph import Value, current
from ..layer import Layer
from ..sizes import Size
from . import heads
from .attention import Attention, Block, PostNorm, encode, key_mask
from .basic import ACTIVATIONS, Dropout, Embedding, LayerNorm, Linear, Mlp
from .positions import RelativeAttention


@dataclass(kw_only=True)
class TextConfig(Config):
    """What text encoders have; a card overrides defaults and adds what is its own."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = choice("gelu", ACTIVATIONS)
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None

    @property
    def embedding_width(self) -> int:
        """The width of an embedding, which some families have smaller than that of a state."""
        return getattr(self, "embedding_size", None) or self.hidden_size

    @property
    def head_dropout(self) -> float:
        """What classifiers drop."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


@dataclass(kw_only=True)
class DecoderTextConfig(TextConfig):
    """What encoders have that may also be decoders."""

    is_decoder: bool = False
    add_cross_attention: bool = False

    def check(self, where: str) -> None:
        """Only a decoder attends to an encoder."""
        super().check(where)
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError(f"{where}: add_cross_attention is true but is_decoder is false; expected both or neither")


@dataclass(kw_only=True)
class RelativeTextConfig(DecoderTextConfig):
    """What encoders have whose positions may be distances, and that may also be decoders."""

    position_embedding_type: str = choice("absolute", ("absolute", "relative_key", "relative_key_query"))


class TextEmbeddings(Layer):
    """Words, segments where there are kinds of them, and (where they are absolute) positions, normalised."""

    def __init__(self, c: Any, n: int | None = None, *, norm: bool = True):
        width: int = n or getattr(c, "embedding_width", c.hidden_size)
        self.words = Embedding(c.vocab_size, width, c.pad_token_id)
        self.segments = Embedding(c.type_vocab_size, width) if c.type_vocab_size else None
        self.positions: Any = self.position_table(c, width)
        self.norm, self.dropout = LayerNorm(width, c.layer_norm_eps) if norm else None, Dropout(c.hidden_dropout_prob)
        self.absolute = self.positions is not None and getattr(c, "position_embedding_type", "absolute") == "absolute"
        self.most, self.pad = c.max_position_embeddings, c.pad_token_id

    def position_table(self, c: Any, n: int) -> Layer | None:
        """What turns places into vectors; None where embeddings know nothing of places."""
        return Embedding(c.max_position_embeddings, n)

    def places(self, input_ids: Value | None, length: Size) -> Value:
        """i64[seq] or i64[batch seq]: the places of the words, from 0."""
        return current().cache.positions(length, self.most)

    def forward(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None) -> Value:
        """[batch seq n]; segment 0 and consecutive places where none are given."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        length = x.shape[1]
        if self.segments is not None:
            x = x + (self.segments.weight[0] if token_type_ids is None else self.segments(token_type_ids))
        if self.absolute:
            x = x + self.positions(self.places(input_ids, length) if position_ids is None else position_ids)
        return self.dropout(x if self.norm is None else self.norm(x))


class PaddedEmbeddings(TextEmbeddings):
    """Embeddings whose places count words only, from the one after the padding id, which is the place of padding."""

    def position_table(self, c: Any, n: int) -> Layer:
        """A table whose row for padding is not trained."""
        return Embedding(c.max_position_embeddings, n, c.pad_token_id)

    def places(self, input_ids: Value | None, length: Size) -> Value:
        """i64[batch seq], or i64[seq] where there are no ids to tell padding by."""
        current().limit(length, self.most - self.pad - 1, "the model has no positions beyond")
        if input_ids is None:
            return ops.iota(size=length) + (self.pad + 1)
        live = ops.cast(~ops.equal(input_ids, self.pad), dtype="i64")
        return ops.cumsum(live, axis=1) * live + self.pad


class TextEncoder(Layer):
    """Embeddings, blocks, and what stands behind them: perhaps a normalisation and, for heads that read it, the pooled first position."""

    embedding: ClassVar[Callable[..., Any]] = TextEmbeddings
    kind: ClassVar[Callable[..., Layer]] = PostNorm
    distances: ClassVar[Callable[..., Attention]] = RelativeAttention

    def __init__(self, c: Any, pool: bool = True):
        self.embeddings = self.embedding(c)
        self.project = self.projection(c)
        self.blocks: list[Any] = self.stack(c)
        self.norm = self.last_norm(c)
        self.pooler = self.pooling(c) if pool else None

    def projection(self, c: Any) -> Layer | None:
        """What makes states of embeddings that are of another width."""
        width = getattr(c, "embedding_width", c.hidden_size)
        return None if width == c.hidden_size else Linear(width, c.hidden_size)

    def attention(self, c: Any, **options: Any) -> Attention:
        """Attention of a block, with distances where the configuration says so."""
        kind = getattr(c, "position_embedding_type", "absolute")
        options = {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob, **options}
        if kind == "absolute":
            return Attention(c.hidden_size, c.num_attention_heads, **options)
        positions, keys = c.max_position_embeddings, kind == "relative_key_query"
        return self.distances(c.hidden_size, c.num_attention_heads, positions=positions, keys=keys, **options)

    def cross(self, c: Any) -> Attention:
        """Attention to an encoder."""
        return Attention(c.hidden_size, c.num_attention_heads, dropout=c.attention_probs_dropout_prob, out_dropout=c.hidden_dropout_prob)

    def mlp(self, c: Any) -> Layer:
        """The feed-forward part of a block."""
        return Mlp(c.hidden_size, c.intermediate_size, c.hidden_act, dropout=c.hidden_dropout_prob)

    def block(self, c: Any) -> Layer:
        """One block."""
        cross = self.cross(c) if getattr(c, "add_cross_attention", False) else None
        attention = self.attention(c, causal=getattr(c, "is_decoder", False))
        return Block(self.kind, lambda: LayerNorm(c.hidden_size, c.layer_norm_eps), attention, self.mlp(c), cross)

    def stack(self, c: Any) -> list[Layer]:
        """The blocks, in the order in which they run."""
        return [self.block(c) for _ in range(c.num_hidden_layers)]

    def last_norm(self, c: Any) -> Layer | None:
        """What normalises the last state: nothing here."""
        return None

    def pooling(self, c: Any) -> Layer:
        """What makes one vector of the last state."""
        return heads.Pooler(c.hidden_size)

    def score_bias(self, x: Value) -> Value | None:
        """What is added to the attention scores of all blocks: nothing here."""
        return None

    def forward(self, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, **words) -> heads.Outputs:
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        x = self.embeddings(**words)
        x = x if self.project is None else self.project(x)
        memory = encoder_hidden_states, key_mask(encoder_attention_mask)
        x, seen = encode(self.blocks, x, key_mask(attention_mask), self.score_bias(x), *memory, norm=self.norm)
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(x), **seen}


def word_scores(c: Any, body: Any) -> dict[str, Any]:
    """BERT's language model: a transform, and scores by the embedding's own weight unless it is not tied."""
    width = getattr(c, "embedding_width", c.hidden_size)
    transform = heads.Transform(c.hidden_size, width, ACTIVATIONS[c.hidden_act], c.layer_norm_eps)
    tied = body.embeddings.words if c.tie_word_embeddings else None
    return {"transform": transform, "vocabulary": heads.Vocabulary(width, c.vocab_size, tied, bias=True)}


def first_state_head(c: Any) -> heads.ClassificationHead:
    """RoBERTa's classifier of the first state."""
    return heads.ClassificationHead(c.hidden_size, c.labels, c.head_dropout)


def encoder_inputs(c: Any) -> dict[str, str]:
    """The inputs of a text encoder, with those of an encoder that it attends to."""
    return heads.text_inputs(getattr(c, "embedding_width", c.hidden_size), memory=c.hidden_size if getattr(c, "add_cross_attention", False) else None)


def inputs_without(*names: str) -> Callable[[Any], dict[str, str]]:
    """`encoder_inputs` less some."""
    return lambda c: {k: t for k, t in encoder_inputs(c).items() if k not in names}


USUAL = ("input_ids", "attention_mask")


def text_head(build: Callable[[Any], Layer], prefix: str, inputs: Any = encoder_inputs, usual=USUAL, **labels: Any) -> Head:
    """A head over text whose body lies under `prefix`; `labels` are the types of further inputs, which may depend on the configuration."""
    return Head(build, inputs_of(inputs, **labels), usual, prefix)


def text_heads(
    family: str, body: Any, prefix: str, *, inputs: Any = encoder_inputs, usual=USUAL, words=word_scores, causal="", classifier=None, summary=None
) -> dict[str, Head]:
    """The heads that nearly every encoder has, by the reference's class names, which begin with `family`.

    `body(c, pool=...)` makes the encoder, `words(c, body)` the parts of its language model, which is also the head `causal` where that is named.
    `classifier(c)` decides from the first state, `summary(c)` makes of a body's outputs what multiple choice looks at; without them that is the
    pooled state.
    """

    def language_model(c: Any, causal: bool = False) -> Layer:
        encoder = body(c, pool=False)
        return heads.LanguageModel(encoder, **words(c, encoder), causal=causal)

    def decide(c: Any) -> Layer:
        if classifier is None:
            return heads.SequenceClassifier(body(c), Linear(c.hidden_size, c.labels), c, c.head_dropout)
        return heads.SequenceClassifier(body(c, pool=False), classifier(c), c, c.head_dropout, heads.first_state)

    def choose(c: Any) -> Layer:
        chosen = (c.head_dropout,) if summary is None else (0.0, summary(c))
        return heads.MultipleChoice(body(c), Linear(c.hidden_size, 1), *chosen)

    mark = lambda c: heads.TokenClassifier(body(c, pool=False), c.hidden_size, c.labels, c.head_dropout)
    find = lambda c: heads.SpanClassifier(body(c, pool=False), c.hidden_size, c.labels)
    place, places = "i64[batch]", "i64[batch seq]"
    found = {
        "Model": text_head(body, "", inputs, usual),
        "ForMaskedLM": text_head(language_model, prefix, inputs, usual, labels=places),
        "ForSequenceClassification": text_head(decide, prefix, inputs, usual, labels=heads.label_type),
        "ForMultipleChoice": text_head(choose, prefix, lambda c: heads.with_choices(inputs(c)), usual, labels=place),
        "ForTokenClassification": text_head(mark, prefix, inputs, usual, labels=places),
        "ForQuestionAnswering": text_head(find, prefix, inputs, usual, start_positions=place, end_positions=place),
    }
    named = {family + name: head for name, head in found.items()}
    return named | ({causal: text_head(lambda c: language_model(c, causal=True), prefix, inputs, usual, labels=places)} if causal else {})


def pair_heads(family: str, body: Any, prefix: str, *, inputs: Any = encoder_inputs, usual: Any = USUAL, words: Any = word_scores) -> dict[str, Head]:
    """BERT's heads over pairs of sentences: pre-training on words and on whether the second one follows, and that decision alone."""

    def pretrain(c: Any) -> Layer:
        encoder = body(c)
        return heads.PreTraining(encoder, **words(c, encoder), decide=Linear(c.hidden_size, 2))

    labels = {"labels": "i64[batch seq]", "next_sentence_label": "i64[batch]"}
    follow = lambda c: heads.NextSentence(body(c), c.hidden_size)
    return {
        f"{family}ForPreTraining": text_head(pretrain, prefix, inputs, usual, **labels),
        f"{family}ForNextSentencePrediction": text_head(follow, prefix, inputs, usual, labels="i64[batch]"),
    }


TEXT_NAMES = {
    "embeddings.{words,positions,segments}": "embeddings.{word_embeddings,position_embeddings,token_type_embeddings}",
    "embeddings.norm": "embeddings.LayerNorm",
    "blocks.*.attention.layer.{q,k,v}": "encoder.layer.*.attention.self.{query,key,value}",
    "blocks.*.attention.layer.distance": "encoder.layer.*.attention.self.distance_embedding",
    "blocks.*.attention.{layer.out,norm}": "encoder.layer.*.attention.output.{dense,LayerNorm}",
    "blocks.*.cross.layer.{q,k,v}": "encoder.layer.*.crossattention.self.{query,key,value}",
    "blocks.*.cross.{layer.out,norm}": "encoder.layer.*.crossattention.output.{dense,LayerNorm}",
    "blocks.*.mlp.layer.{up,down}": "encoder.layer.*.{intermediate,output}.dense",
    "blocks.*.mlp.norm": "encoder.layer.*.output.LayerNorm",
}
# How two families name the parts of their language models.
BERT_WORDS = {
    "transform.{dense,norm}": "cls.predictions.transform.{dense,LayerNorm}",
    "vocabulary.{weight,bias}": "cls.predictions.{decoder.weight,bias}",
    "next": "cls.seq_relationship",
}
ROBERTA_WORDS = {"transform.{dense,norm}": "lm_head.{dense,layer_norm}", "vocabulary.{weight,bias}": "lm_head.{decoder.weight,bias}"}
