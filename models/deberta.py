"""DeBERTa (https://arxiv.org/abs/2006.03654): an encoder whose attention keeps what a word is apart from where it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from ..ir.authoring import Card, ConfigError, Layer, Param, Value, choice, collect, nn, ops
from ..ir.layers.disentangled import KINDS, DisentangledAttention, Distances, kept, live_rows


@dataclass(kw_only=True)
class DebertaConfig(nn.TextConfig):
    """What checkpoints of all versions of DeBERTa have."""

    type_vocab_size: int = 0
    layer_norm_eps: float = 1e-7
    embedding_size: int | None = None
    relative_attention: bool = False
    max_relative_positions: int = -1
    position_biased_input: bool = True
    pos_att_type: list[str] | str | None = None
    pooler_hidden_size: int | None = None
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = choice("gelu", nn.ACTIVATIONS)
    cls_dropout: float | None = None
    legacy: bool = True

    head_dropout = property(attrgetter("hidden_dropout_prob"))

    def check(self, where: str) -> None:
        """Kinds of scores are known, and widths that the reference leaves free agree."""
        super().check(where)
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"{where}: pos_att_type has {kind!r}, expected some of {', '.join(KINDS)}")
        if self.pooler_hidden_size not in (None, self.hidden_size):
            raise ConfigError(f"{where}: pooler_hidden_size is {self.pooler_hidden_size}, expected hidden_size={self.hidden_size}, which is pooled")
        if not self.legacy and self.embedding_width != self.hidden_size:
            raise ConfigError(f"{where}: embedding_size is {self.embedding_width}, expected hidden_size={self.hidden_size} where legacy is false")

    @property
    def kinds(self) -> list[str]:
        """Which attention scores depend on the distance."""
        kinds = self.pos_att_type or []
        return [k.strip() for k in kinds.lower().split("|")] if isinstance(kinds, str) else kinds

    @property
    def most(self) -> int:
        """How far apart words are told from farther ones."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings


@dataclass(kw_only=True)
class DebertaV1Config(DebertaConfig):
    """config.json of a DeBERTa checkpoint."""

    vocab_size: int = 50265
    talking_head: bool = False


class ProjectedNorm(Layer):
    """Normalisation, after a projection where the words are of another width."""

    def __init__(self, c: DebertaConfig):
        self.projection = None if c.embedding_width == c.hidden_size else nn.Linear(c.embedding_width, c.hidden_size, bias=False)
        self.norm = nn.LayerNorm(c.hidden_size, c.layer_norm_eps)

    def forward(self, x: Value) -> Value:
        """[batch seq width] -> [batch seq n]."""
        return self.norm(x if self.projection is None else self.projection(x))


class DebertaEmbeddings(nn.TextEmbeddings):
    """Words and segments; places are left to attention where the configuration says so."""

    def __init__(self, c: DebertaConfig):
        super().__init__(c, norm=False)
        self.norm = ProjectedNorm(c)

    def position_table(self, c: DebertaConfig, n: int) -> Layer | None:
        """The table of places, where words have one."""
        return super().position_table(c, n) if c.position_biased_input else None


class FusedAttention(DisentangledAttention):
    """Disentangled attention whose projections are stored as one, head by head; where heads talk, their scores and weights are mixed."""

    def __init__(self, n: int, heads: int, *, talking: bool, **options: Any):
        super().__init__(n, heads, key_bias=False, **options)
        del self.q, self.k, self.v
        self.qkv, self.q_bias, self.v_bias = nn.Linear(n, 3 * n, bias=False), Param(n, init="zeros"), Param(n, init="zeros")
        self.mix_scores, self.mix_weights = (nn.Linear(heads, heads, bias=False) if talking else None for _ in range(2))

    def project(self, x: Value) -> tuple[Value, Value, Value]:
        """Queries, keys and values; keys have no bias."""
        qkv = nn.heads_first(self.qkv(x), self.heads)
        q, k, v = ops.split(qkv, axis=3, sizes=(qkv.shape[3] // 3,) * 3)
        by_head = lambda bias: ops.view(bias, (self.heads, 1, q.shape[3]))
        return q + by_head(self.q_bias), k, v + by_head(self.v_bias)

    def weigh(self, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None) -> Value:
        """[batch heads rows head]: the values, weighed by scores."""
        if self.mix_scores is None or self.mix_weights is None:
            return super().weigh(q, k, v, mask, bias)
        scores = q * self.scale @ ops.transpose(k, perm=(0, 1, 3, 2))
        scores = _mixed(self.mix_scores, scores if bias is None else scores + bias)
        if mask is not None:
            scores = ops.where(live_rows(mask), ops.where(mask, scores, ops.LOWEST), 0.0)
        weights = _mixed(self.mix_weights, nn.Dropout(self.dropout)(ops.softmax(scores)))
        collect("attentions", weights)
        return weights @ v


def _mixed(mix: nn.Linear, x: Value) -> Value:
    """[batch heads rows keys], each head a combination of all."""
    return ops.transpose(mix(ops.transpose(x, perm=(0, 2, 3, 1))), perm=(0, 3, 1, 2))


class Deberta(nn.TextEncoder):
    """Blocks that know how far words are apart."""

    embedding = DebertaEmbeddings

    def __init__(self, c: Any, pool: bool = False):
        super().__init__(c, pool=False)
        self.relative = self.places(c) if c.relative_attention else None

    def projection(self, c: Any) -> None:
        """None: embeddings are projected before they are normalised."""

    def places(self, c: Any) -> Distances:
        """The vectors of distances."""
        return Distances(c.hidden_size, c.most)

    def attention(self, c: Any, **options: Any) -> nn.Attention:
        """Attention of a block."""
        rates = {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob}
        return self.distances(c.hidden_size, c.num_attention_heads, kinds=c.kinds, placed=c.relative_attention, **rates, **options)

    def forward(self, attention_mask=None, **words) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n]."""
        mask = nn.key_mask(attention_mask)
        x = kept(self.embeddings(**words), mask)
        x, seen = nn.encode(self.blocks, x, mask, self.relative and self.relative(x.shape[1]))
        return {"last_hidden_state": x, **seen}


class DebertaV1(Deberta):
    """The first version."""

    distances = FusedAttention

    def attention(self, c: DebertaV1Config, **options: Any) -> nn.Attention:
        """Attention whose heads may talk."""
        return super().attention(c, talking=c.talking_head, **options)


class Predictions(Layer):
    """A language model's parts in one, as the authors' code has them: their weights have names of their own."""

    def __init__(self, c: DebertaConfig, words: nn.Embedding):
        self.transform = nn.Transform(c.hidden_size, c.hidden_size, nn.ACTIVATIONS[c.hidden_act], c.layer_norm_eps)
        self.words = nn.Vocabulary(c.hidden_size, c.vocab_size, words, bias=True)

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch seq words]."""
        return self.words(self.transform(x))


def _words(c: DebertaConfig, body: Deberta) -> dict[str, Layer]:
    return nn.word_scores(c, body) if c.legacy else {"vocabulary": Predictions(c, body.embeddings.words)}


def _decide(c: DebertaConfig, labels: int) -> nn.ClassificationHead:
    rate = c.hidden_dropout_prob if c.cls_dropout is None else c.cls_dropout
    return nn.ClassificationHead(c.hidden_size, labels, rate, nn.ACTIVATIONS[c.pooler_hidden_act])


def deberta_card(model_type: str, family: str, body: type[Deberta], config: type[DebertaConfig], names: dict[str, str], choices: bool = True) -> Card:
    """A card of one version, whose classes begin with `family`; `names` are rows of its own, `choices` whether it has multiple choice."""
    classify = lambda c: nn.SequenceClassifier(body(c), _decide(c, c.labels), c, c.pooler_dropout, nn.first_state)
    choose = lambda c: nn.MultipleChoice(body(c), _decide(c, 1), c.pooler_dropout, nn.first_state)
    heads = nn.text_heads(family, body, "deberta", words=_words)
    for name, build in {f"{family}ForSequenceClassification": classify, f"{family}ForMultipleChoice": choose}.items():
        heads[name] = replace(heads[name], build=build)
    if not choices:
        del heads[f"{family}ForMultipleChoice"]
    return Card(
        model_type=model_type,
        config=config,
        base="deberta",
        heads=heads,
        names={
            **nn.TEXT_NAMES,
            "embeddings.norm.{projection,norm}": "embeddings.{embed_proj,LayerNorm}",
            "relative.{table,norm}": "encoder.{rel_embeddings,LayerNorm}",
            **nn.BERT_WORDS,
            "vocabulary.transform.{dense,norm}": "lm_predictions.lm_head.{dense,LayerNorm}",
            "vocabulary.words": "lm_predictions.lm_head",
            "classifier.{dense,out_proj}": "{pooler.dense,classifier}",
            **names,
        },
        also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
        unused=("*embeddings.position_ids", "*position_embeddings.weight", "mask_predictions.*", "lm_predictions.*"),
    )


CARD = deberta_card(
    "deberta",
    "Deberta",
    DebertaV1,
    DebertaV1Config,
    {
        "blocks.*.attention.layer.{qkv,q_bias,v_bias}": "encoder.layer.*.attention.self.{in_proj,q_bias,v_bias}",
        "blocks.*.attention.layer.distance_{key,query}": "encoder.layer.*.attention.self.{pos_proj,pos_q_proj}",
        "blocks.*.attention.layer.mix_{scores,weights}": "encoder.layer.*.attention.self.{head_logits_proj,head_weights_proj}",
    },
    choices=False,
)
