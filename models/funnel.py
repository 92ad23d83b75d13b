"""Funnel Transformer (https://arxiv.org/abs/2006.03236): each block halves the sequence; a decoder over the whole length where it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..ir.authoring import Card, Config, ConfigError, Layer, Value, ceil_divide, choice, collecting, current, nn, ops
from ..ir.layers.pooled_attention import DistanceAttention, Side
from .electra import Discriminator


@dataclass(kw_only=True)
class FunnelConfig(Config):
    """config.json of a Funnel checkpoint."""

    aliases: ClassVar = {"hidden_size": "d_model", "num_attention_heads": "n_head"}

    vocab_size: int = 30522
    block_sizes: list[int] | tuple[int, ...] = (4, 4, 4)
    block_repeats: list[int] | None = None
    num_decoder_layers: int = 2
    d_model: int = 768
    n_head: int = 12
    d_head: int = 64
    d_inner: int = 3072
    hidden_act: str = choice("gelu_new", nn.ACTIVATIONS)
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layer_norm_eps: float = 1e-9
    pooling_type: str = choice("mean", ("mean", "max"))
    attention_type: str = choice("relative_shift", ("relative_shift", "factorized"))
    separate_cls: bool = True
    truncate_seq: bool = True
    pool_q_only: bool = True

    def check(self, where: str) -> None:
        """Each block has its repeats, and positions are pairs of sine and cosine."""
        if len(self.repeats) != len(self.block_sizes):
            raise ConfigError(f"{where}: block_repeats is {self.block_repeats}, expected a number for each of block_sizes={self.block_sizes}")
        if self.d_model % 2:
            raise ConfigError(f"{where}: d_model is {self.d_model}, expected an even number")

    @property
    def repeats(self) -> list[int]:
        """How often each layer of a block is applied."""
        return [1] * len(self.block_sizes) if self.block_repeats is None else self.block_repeats

    @property
    def hidden_size(self) -> int:
        """The width, by its usual name."""
        return self.d_model

    @property
    def head_dropout(self) -> float:
        """What classifiers drop."""
        return self.hidden_dropout


class FunnelLayer(Layer):
    """Attention of x, perhaps pooled, to what it was pooled from, and a feed-forward part, each normalised after."""

    def __init__(self, c: FunnelConfig):
        rates = {"dropout": c.attention_dropout, "out_dropout": c.hidden_dropout}
        self.attention = DistanceAttention(c.d_model, c.n_head, c.d_head, factorized=c.attention_type == "factorized", apart=c.separate_cls, **rates)
        self.norm = nn.LayerNorm(c.d_model, c.layer_norm_eps)
        options = {"inner_dropout": c.activation_dropout, "dropout": c.hidden_dropout}
        self.mlp = nn.PostNorm(nn.Mlp(c.d_model, c.d_inner, c.hidden_act, **options), nn.LayerNorm(c.d_model, c.layer_norm_eps))

    def forward(self, x: Value, memory: Value, rows: Side, keys: Side, stride: int) -> Value:
        """x [batch seq n] -> the same."""
        return self.mlp(self.norm(x + self.attention(x, memory, rows, keys, stride)))


class FunnelBase(Layer):
    """Embeddings and the encoder, whose last state is as much shorter as its blocks pool."""

    def __init__(self, c: FunnelConfig):
        self.config = c
        self.words, self.norm = nn.Embedding(c.vocab_size, c.d_model, c.pad_token_id), nn.LayerNorm(c.d_model, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout)
        self.blocks = [[FunnelLayer(c) for _ in range(size)] for size in c.block_sizes]

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, inputs_embeds=None) -> dict[str, Any]:
        """-> last_hidden_state [batch pooled n]."""
        x = self.dropout(self.norm(self.words(input_ids) if inputs_embeds is None else inputs_embeds))
        if token_type_ids is None:
            token_type_ids = ops.broadcast_to(ops.literal(value=[[0]]), shape=x.shape[:2])
        side = Side(ops.iota(size=x.shape[1]), token_type_ids, None if attention_mask is None else attention_mask > 0)
        with collecting() as seen:
            states = self.decode(self.encode(x, side), side)
        return {"last_hidden_state": states[-1], "hidden_states": states, **seen}

    def encode(self, x: Value, side: Side) -> list[Value]:
        """All states, the first being x."""
        states = [x]
        for i, (block, repeats) in enumerate(zip(self.blocks, self.config.repeats, strict=True)):
            for j, layer in enumerate(layer for layer in block for _ in range(repeats)):
                rows, x = side, states[-1]
                if i and not j:
                    x, rows = self.pool(x, side)
                whole = i and not j and self.config.pool_q_only
                states.append(layer(x, states[-1], rows, side, 2 ** (i - 1)) if whole else layer(x, x, rows, rows, 2**i))
                side = rows
        return states

    def decode(self, states: list[Value], side: Side) -> list[Value]:
        """The encoder's states, and those of a decoder where there is one."""
        return states

    def pool(self, x: Value, side: Side) -> tuple[Value, Side]:
        """Pairs of x [batch seq n] as one, the first position alone where it stands apart, and what is known of them."""
        c, length = self.config, x.shape[1]
        least = 3 if c.separate_cls else 2
        current().limit(least - length, 0, f"each of the {len(c.block_sizes)} blocks needs {least} positions to pool: pad the sequence")
        count = length + 1 if c.separate_cls and not c.truncate_seq else length
        place = ops.minimum(ops.iota(size=2 * ceil_divide(count, 2)), ops.size(value=count - 1))  # a last one without a pair is its own
        pairs = ops.view(ops.maximum(place - 1, 0) if c.separate_cls else place, (ceil_divide(count, 2), 2))
        one, other = pairs[:, 0], pairs[:, 1]
        a, b = ops.take(x, one, axis=1), ops.take(x, other, axis=1)
        live = None if side.live is None else ops.take(side.live, one, axis=1) & ops.take(side.live, other, axis=1)
        small = Side(ops.take(side.places, one), ops.take(side.segments, one, axis=1), live)
        return (a + b) * 0.5 if c.pooling_type == "mean" else ops.maximum(a, b), small


class Funnel(FunnelBase):
    """The encoder, and a decoder that adds its last state, repeated to the whole length, to that of its first block."""

    def __init__(self, c: FunnelConfig):
        super().__init__(c)
        self.decoder = [FunnelLayer(c) for _ in range(c.num_decoder_layers)]

    def decode(self, states: list[Value], side: Side) -> list[Value]:
        """All states of both."""
        c, x, first = self.config, states[-1], states[self.config.block_sizes[0]]
        stride, length = 2 ** (len(c.block_sizes) - 1), first.shape[1]
        if stride > 1:
            alone = 1 if c.separate_cls else 0
            wide = ops.repeat(x[:, alone:], stride, 1)
            if alone and c.truncate_seq:
                wide = ops.pad(wide, low=(0, 0, 0), high=(0, stride - 1, 0))
            wide = ops.slice_(wide, axis=1, start=0, stop=length - alone)
            x = ops.concat(x[:, :1], wide, axis=1) if alone else wide
        states = [*states, x + first]
        for layer in self.decoder:
            states.append(layer(states[-1], states[-1], side, side, 1))
        return states


class Replaced(Discriminator):
    """Whether each word was replaced."""

    def __init__(self, c: FunnelConfig):
        self.body, self.predictions = Funnel(c), nn.ClassificationHead(c.d_model, 1, 0.0, nn.ACTIVATIONS[c.hidden_act])


def _words(c: FunnelConfig, body: Funnel) -> dict[str, Layer]:
    return {"vocabulary": nn.Vocabulary(c.d_model, c.vocab_size, body.words if c.tie_word_embeddings else None, bias=True)}


def _inputs(c: FunnelConfig) -> dict[str, str]:
    return {k: t for k, t in nn.text_inputs(c.d_model).items() if k != "position_ids"}


def _decide(c: FunnelConfig, labels: int) -> Layer:
    return nn.ClassificationHead(c.d_model, labels, c.head_dropout)


_STACKS = {"blocks.*.*": "encoder.blocks.*.*", "decoder.*": "decoder.layers.*"}
_PARTS = {
    "attention": "attention",
    "attention.{q,k,v,out}": "attention.{q_head,k_head,v_head,post_proj}",
    "norm": "attention.layer_norm",
    "mlp.layer.{up,down}": "ffn.{linear_1,linear_2}",
    "mlp.norm": "ffn.layer_norm",
}

CARD = Card(
    model_type="funnel",
    config=FunnelConfig,
    base="funnel",
    heads={
        "FunnelBaseModel": nn.text_head(FunnelBase, "", _inputs),
        **nn.text_heads("Funnel", lambda c, pool=True: Funnel(c), "funnel", inputs=_inputs, words=_words),
        "FunnelForPreTraining": nn.text_head(Replaced, "funnel", _inputs, labels="i64[batch seq]"),
        "FunnelForSequenceClassification": nn.text_head(
            lambda c: nn.SequenceClassifier(FunnelBase(c), _decide(c, c.labels), c, pool=nn.first_state), "funnel", _inputs, labels=nn.label_type
        ),
        "FunnelForMultipleChoice": nn.text_head(
            lambda c: nn.MultipleChoice(FunnelBase(c), _decide(c, 1), pool=nn.first_state),
            "funnel",
            lambda c: nn.with_choices(_inputs(c)),
            labels="i64[batch]",
        ),
    },
    names={
        "words": "embeddings.word_embeddings",
        "norm": "embeddings.layer_norm",
        **{f"{ours}.{a}": f"{theirs}.{b}" for ours, theirs in _STACKS.items() for a, b in _PARTS.items()},
        "vocabulary": "lm_head",
        "predictions.{dense,out_proj}": "discriminator_predictions.{dense,dense_prediction}",
        "classifier.{dense,out_proj}": "classifier.{linear_hidden,linear_out}",
    },
)
