"""MobileBERT (https://arxiv.org/abs/2004.02984): BERT in bottlenecks, with several feed-forward parts in a block and three words in an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, ConfigError, Layer, Param, Value, choice, nn, only, ops


@dataclass(kw_only=True)
class MobileBertConfig(nn.TextConfig):
    """config.json of a MobileBERT checkpoint."""

    hidden_size: int = 512
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = choice("relu", nn.ACTIVATIONS)
    hidden_dropout_prob: float = 0.0
    embedding_size: int = 128
    trigram_input: bool = True
    use_bottleneck: bool = True
    intra_bottleneck_size: int = 128
    use_bottleneck_attention: bool = False
    key_query_shared_bottleneck: bool = True
    num_feedforward_networks: int = 4
    normalization_type: str = choice("no_norm", ("no_norm", "layer_norm"))
    classifier_activation: bool = True
    is_decoder: bool = only(False)

    def check(self, where: str) -> None:
        """Heads share the width of blocks; queries and keys have it; the language model is not narrower than embeddings."""
        self.divides(where, "num_attention_heads", "intra_bottleneck_size" if self.use_bottleneck else "hidden_size")
        narrowed = self.use_bottleneck_attention or self.key_query_shared_bottleneck or self.width == self.hidden_size
        if not narrowed:
            found = "use_bottleneck is true, use_bottleneck_attention and key_query_shared_bottleneck false"
            raise ConfigError(f"{where}: {found}, expected one of those two, as nothing else makes queries narrow")
        if self.embedding_size > self.hidden_size:
            raise ConfigError(f"{where}: embedding_size is {self.embedding_size}, expected at most hidden_size={self.hidden_size}")

    @property
    def width(self) -> int:
        """The width of a block."""
        return self.intra_bottleneck_size if self.use_bottleneck else self.hidden_size


class NoNorm(nn.LayerNorm):
    """x weight + bias, in the place of a normalisation."""

    def forward(self, x: Value) -> Value:
        """[... n] -> [... n]."""
        return x * self.weight + self.bias


def _norm(c: MobileBertConfig, n: int, eps: float) -> nn.LayerNorm:
    return (NoNorm if c.normalization_type == "no_norm" else nn.LayerNorm)(n, eps)


EPS = 1e-5  # of two normalisations that do not heed `layer_norm_eps`


class TrigramEmbeddings(nn.TextEmbeddings):
    """Embeddings of states' width, made of narrow ones of a word and its neighbours."""

    def __init__(self, c: MobileBertConfig):
        super().__init__(c, c.hidden_size)
        self.words = nn.Embedding(c.vocab_size, c.embedding_size, c.pad_token_id)
        self.widen = nn.Linear(c.embedding_size * (3 if c.trigram_input else 1), c.hidden_size)
        self.norm = _norm(c, c.hidden_size, EPS)
        self.trigram, self.wide = c.trigram_input, not c.trigram_input and c.embedding_size == c.hidden_size

    def forward(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None) -> Value:
        """[batch seq n]."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        if self.trigram:
            padded = ops.pad(x, low=(0, 1, 0), high=(0, 1, 0))
            x = ops.concat(padded[:, 2:], x, padded[:, :-2], axis=2)
        return super().forward(None, token_type_ids, position_ids, x if self.wide else self.widen(x))


class Projection(Layer):
    """A linear layer and a normalisation, with a residual between where there is one."""

    def __init__(self, c: MobileBertConfig, n_in: int, n_out: int, dropout: float = 0.0):
        self.dense, self.norm, self.dropout = nn.Linear(n_in, n_out), _norm(c, n_out, c.layer_norm_eps), nn.Dropout(dropout)

    def forward(self, x: Value, residual: Value | None = None) -> Value:
        """[batch seq in] -> [batch seq out]."""
        y = self.dropout(self.dense(x))
        return self.norm(y if residual is None else y + residual)


class NarrowAttention(nn.Attention):
    """Attention whose queries and keys are of one sequence of states, and values of another."""

    def __init__(self, n: int, values: int, heads: int, **options: Any):
        super().__init__(n, heads, **options)
        self.v = nn.Linear(values, n)

    def project(self, x: Any) -> tuple[Value, Value, Value]:
        """Queries, keys and values of two sequences."""
        parts = (self.q, x[0]), (self.k, x[0]), (self.v, x[1])
        return tuple(nn.heads_first(layer(y), self.heads) for layer, y in parts)  # type: ignore[return-value]

    def forward(self, x: Value, sources: Any, mask: Value | None = None, *context: Any) -> Value:
        """The two sequences [batch seq ...] in `sources` -> [batch seq n]; x is but added to it, by the block."""
        return super().forward(sources, mask)


class MobileBlock(Layer):
    """Attention and feed-forward parts in a bottleneck."""

    def __init__(self, c: MobileBertConfig):
        n, norm, rate = c.width, lambda eps=c.layer_norm_eps: _norm(c, c.width, eps), 0.0 if c.use_bottleneck else c.hidden_dropout_prob
        self.narrow = Projection(c, c.hidden_size, n) if c.use_bottleneck else None
        self.shared = Projection(c, c.hidden_size, n) if c.use_bottleneck and c.key_query_shared_bottleneck else None
        self.widen = Projection(c, n, c.hidden_size, c.hidden_dropout_prob) if c.use_bottleneck else None
        values = n if c.use_bottleneck_attention else c.hidden_size
        attention = NarrowAttention(n, values, c.num_attention_heads, dropout=c.attention_probs_dropout_prob, out_dropout=rate)
        mlp = lambda dropout=0.0: nn.Mlp(n, c.intermediate_size, c.hidden_act, dropout=dropout)
        self.attention = nn.PostNorm(attention, norm())
        self.more = [nn.PostNorm(mlp(), norm()) for _ in range(c.num_feedforward_networks - 1)]
        self.mlp = nn.PostNorm(mlp(rate), norm(EPS))
        self.all_narrow = c.use_bottleneck_attention

    def forward(self, x: Value, mask: Value | None = None, *context: Any) -> Value:
        """[batch seq n] -> [batch seq n]."""
        narrow = x if self.narrow is None else self.narrow(x)
        wide = x if self.shared is None else self.shared(x), x
        y = self.attention(narrow, (narrow, narrow) if self.all_narrow else wide, mask)
        for part in (*self.more, self.mlp):
            y = part(y)
        return y if self.widen is None else self.widen(y, x)


class FirstState(Layer):
    """The first position's state as it is."""

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch n]."""
        return x[:, 0]


class MobileBert(nn.TextEncoder):
    """Blocks in bottlenecks."""

    embedding = TrigramEmbeddings

    def block(self, c: MobileBertConfig) -> MobileBlock:
        """One block."""
        return MobileBlock(c)

    def projection(self, c: MobileBertConfig) -> None:
        """Embeddings are as wide as states."""

    def pooling(self, c: MobileBertConfig) -> Layer:
        """The first state, perhaps transformed."""
        return nn.Pooler(c.hidden_size) if c.classifier_activation else FirstState()


class WideVocabulary(nn.Vocabulary):
    """Scores of words by their embeddings and, as states are wider than those, by further numbers of each word."""

    def __init__(self, c: MobileBertConfig, tied: nn.Embedding | None):
        super().__init__(c.embedding_size, c.vocab_size, tied, bias=True)
        self.more = Param(c.hidden_size - c.embedding_size, c.vocab_size)

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch seq words]."""
        n = self.weight.shape[1]
        scores = super().forward(x[..., :n])
        return scores if n == x.shape[-1] else scores + x[..., n:] @ self.more


def _words(c: MobileBertConfig, body: MobileBert) -> dict[str, Layer]:
    transform = nn.Transform(c.hidden_size, c.hidden_size, nn.ACTIVATIONS[c.hidden_act], c.layer_norm_eps)
    return {"transform": transform, "vocabulary": WideVocabulary(c, body.embeddings.words if c.tie_word_embeddings else None)}


_OPTIONS = {"usual": ("input_ids", "attention_mask", "token_type_ids"), "words": _words}
_LAYER = "encoder.layer.*"

CARD = Card(
    model_type="mobilebert",
    config=MobileBertConfig,
    base="mobilebert",
    heads={
        **nn.text_heads("MobileBert", MobileBert, "mobilebert", **_OPTIONS),
        **nn.pair_heads("MobileBert", MobileBert, "mobilebert", **_OPTIONS),
    },
    names={
        **nn.TEXT_NAMES,
        **nn.BERT_WORDS,
        "embeddings.widen": "embeddings.embedding_transformation",
        "blocks.*.{narrow,shared}.{dense,norm}": f"{_LAYER}.bottleneck.{{input,attention}}.{{dense,LayerNorm}}",
        "blocks.*.widen.{dense,norm}": f"{_LAYER}.output.bottleneck.{{dense,LayerNorm}}",
        "blocks.*.more.*.layer.{up,down}": f"{_LAYER}.ffn.*.{{intermediate,output}}.dense",
        "blocks.*.more.*.norm": f"{_LAYER}.ffn.*.output.LayerNorm",
        "vocabulary.more": "cls.predictions.dense.weight",
    },
    also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
