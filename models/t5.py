"""T5, versions 1.0 and 1.1 (https://arxiv.org/abs/1910.10683): an encoder and a decoder with relative positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ..ir import layers as nn
from ..ir import ops
from ..ir.card import ENCODES_THEN_GENERATES, Card, Head, inputs_of
from ..ir.config import Config, choice, only
from ..ir.errors import ConfigError, InputError
from ..ir.graph import Value
from ..ir.layer import Layer, collecting


@dataclass(kw_only=True)
class T5Config(Config):
    """config.json of a T5 checkpoint."""

    aliases: ClassVar = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "head_dim": "d_kv"}

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    classifier_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = choice("relu", [kind + a for a in nn.ACTIVATIONS for kind in ("", "gated-")])
    is_decoder: bool = only(False)
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1

    def check(self, where: str) -> None:
        """Buckets beyond the exact ones need distances beyond them."""
        buckets, most = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets < 4 or most <= buckets // 2:
            found = f"relative_attention_num_buckets is {buckets} and relative_attention_max_distance {most}"
            raise ConfigError(f"{where}: {found}, expected at least 4 buckets and a distance above half of them")

    @property
    def start(self) -> int:
        """The id that decoding starts with."""
        if self.decoder_start_token_id is None:
            raise ConfigError("config.json: decoder_start_token_id is missing, expected the id that decoder_input_ids start with\n  or pass them")
        return self.decoder_start_token_id


class Stack(Layer):
    """Blocks with one table of relative positions, and a last normalisation."""

    def __init__(self, c: T5Config, layers: int, decoder: bool):
        self.bias = nn.RelativeBias(c.num_heads, c.relative_attention_num_buckets, c.relative_attention_max_distance, causal=decoder)
        self.dropout = nn.Dropout(c.dropout_rate)
        self.blocks = [self._block(c, decoder) for _ in range(layers)]
        self.norm = nn.RMSNorm(c.d_model, c.layer_norm_epsilon)

    @staticmethod
    def _block(c: T5Config, decoder: bool) -> nn.Block:
        n, rate = c.d_model, c.dropout_rate
        options = {"inner": c.num_heads * c.d_kv, "bias": False, "scale": 1.0, "dropout": rate, "out_dropout": rate}
        cross = nn.Attention(n, c.num_heads, **options) if decoder else None
        attention = nn.Attention(n, c.num_heads, causal=decoder, **options)
        return nn.Block(nn.PreNorm, lambda: nn.RMSNorm(n, c.layer_norm_epsilon), attention, feed_forward(c), cross)

    def forward(self, x: Value, mask: Value | None, memory: Value | None = None, memory_mask: Value | None = None) -> tuple[Value, list[Value]]:
        """The normalised last state [batch seq n] and all states, the last one normalised."""
        x, states = nn.run_blocks(self.blocks, self.dropout(x), mask, self.bias(x.shape[1]), memory, memory_mask)
        x = self.dropout(self.norm(x))
        return x, [*states[:-1], x]


def feed_forward(c: T5Config) -> Layer:
    """Plain, or gated; "gated-gelu" means the tanh approximation."""
    gated, name = c.feed_forward_proj.startswith("gated-"), c.feed_forward_proj.removeprefix("gated-")
    options = {"layer": partial(nn.Linear, bias=False), "inner_dropout": c.dropout_rate, "dropout": c.dropout_rate}
    return (nn.GatedMlp if gated else nn.Mlp)(c.d_model, c.d_ff, "gelu_new" if gated and name == "gelu" else name, **options)


class T5Encoder(Layer):
    """Words and the encoder's stack."""

    def __init__(self, c: T5Config):
        self.words, self.encoder = nn.Embedding(c.vocab_size, c.d_model), Stack(c, c.num_layers, decoder=False)

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        """-> last_hidden_state [batch seq n]."""
        with collecting() as seen:
            x, states = self.encoder(self.words(input_ids) if inputs_embeds is None else inputs_embeds, nn.key_mask(attention_mask))
        return {"last_hidden_state": x, "hidden_states": states, **seen}


class T5(T5Encoder):
    """Encoder and decoder over the same words."""

    def __init__(self, c: T5Config):
        super().__init__(c)
        self.decoder = Stack(c, c.num_decoder_layers or c.num_layers, decoder=True)

    def prompt(self, input_ids: Value | None) -> Value:
        """What the decoder reads where it is given nothing."""
        raise InputError("T5 lacks input 'decoder_input_ids': i64[batch decoder_seq]; or give labels to a head that has them")

    def forward(self, decoder_input_ids=None, decoder_attention_mask=None, decoder_inputs_embeds=None, attention_mask=None, **words):
        """-> last_hidden_state [batch decoder_seq n], encoder_last_hidden_state [batch seq n]."""
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prompt(words.get("input_ids"))
        encoded = super().forward(attention_mask=attention_mask, **words)
        x = self.words(decoder_input_ids) if decoder_inputs_embeds is None else decoder_inputs_embeds
        with collecting() as seen:
            x, states = self.decoder(x, nn.key_mask(decoder_attention_mask), encoded["last_hidden_state"], nn.key_mask(attention_mask))
        named = {"cross_attentions" if k == "cross_attentions" else f"decoder_{k}": v for k, v in seen.items()}
        return {"last_hidden_state": x, "decoder_hidden_states": states, **named, **{f"encoder_{k}": v for k, v in encoded.items()}}


def shift_right(ids: Value, c: T5Config) -> Value:
    """The start id before all ids but the last; -100 becomes padding."""
    start = ops.broadcast_to(ops.literal(value=[[c.start]]), shape=(ids.shape[0], 1))
    return ops.concat(start, ops.where(ops.equal(ids, -100), c.pad_token_id or 0, ids)[:, :-1], axis=1)


class Echo(T5):
    """A T5 whose decoder reads the input, shifted right, where it is given nothing."""

    def __init__(self, c: T5Config):
        super().__init__(c)
        self.config = c

    def prompt(self, input_ids: Value | None) -> Value:
        """The shifted input."""
        return shift_right(super().prompt(None) if input_ids is None else input_ids, self.config)


class ConditionalGeneration(Layer):
    """Next words of the decoder, which reads the shifted labels where it is given nothing."""

    def __init__(self, c: T5Config):
        self.body, self.config = T5(c), c
        self.vocabulary = nn.Vocabulary(c.d_model, c.vocab_size, self.body.words if c.tie_word_embeddings else None)

    def forward(self, labels=None, decoder_input_ids=None, **inputs):
        """-> logits [batch decoder_seq words], loss where labels are given."""
        if decoder_input_ids is None and inputs.get("decoder_inputs_embeds") is None and labels is not None:
            decoder_input_ids = shift_right(labels, self.config)
        out = self.body(decoder_input_ids=decoder_input_ids, **inputs)
        x = out["last_hidden_state"]
        logits = self.vocabulary(x * self.config.d_model**-0.5 if self.config.tie_word_embeddings else x)
        return {"loss": None if labels is None else ops.cross_entropy(logits, labels), "logits": logits, **nn.rest(out)}


def _classifier(c: T5Config) -> nn.SequenceClassifier:
    decide = nn.ClassificationHead(c.d_model, c.labels, c.classifier_dropout)
    return nn.SequenceClassifier(Echo(c), decide, c, c.classifier_dropout, _end_state(c))


def _end_state(c: T5Config):
    """How the classifier finds the decoder's state at the input's last end-of-sequence."""

    def pool(out, inputs) -> Value:
        ends = ops.equal(inputs["input_ids"], c.eos_token_id)
        return nn.pick(out["last_hidden_state"], ops.max(ops.where(ends, ops.iota(size=ends.shape[1]), 0), axis=1))

    return pool


def _encoder_inputs(c: T5Config) -> dict[str, str]:
    return {"input_ids": "i64[batch seq]", "attention_mask": "i64[batch seq]", "inputs_embeds": f"f32[batch seq {c.d_model}]"}


def _decoder_inputs(c: T5Config) -> dict[str, str]:
    return _encoder_inputs(c) | {
        "decoder_input_ids": "i64[batch decoder_seq]",
        "decoder_attention_mask": "i64[batch decoder_keys]",
        "decoder_inputs_embeds": f"f32[batch decoder_seq {c.d_model}]",
    }


def _head(build, common=_decoder_inputs, usual=("input_ids", "attention_mask"), **options) -> Head:
    """A head over the encoder's or the decoder's inputs, with its labels."""
    labels = {k: options.pop(k) for k in ("labels", "start_positions", "end_positions") if k in options}
    return Head(build, inputs_of(common, **labels), usual, **options)


_DECODED = ("input_ids", "attention_mask", "decoder_input_ids")
_PARTS = {"attention": "SelfAttention", "cross": "EncDecAttention"}
_PLACES = {"encoder": {"attention": 0, "mlp": 1}, "decoder": {"attention": 0, "cross": 1, "mlp": 2}}


def _names() -> dict[str, str]:
    """The reference numbers a block's parts; the decoder has one more."""
    table = {"words": "shared"}
    for stack, places in _PLACES.items():
        table |= {
            f"{stack}.bias.table": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",
            f"{stack}.norm": f"{stack}.final_layer_norm",
        }
        for part, place in places.items():
            ours, theirs = f"{stack}.blocks.*.{part}", f"{stack}.block.*.layer.{place}"
            table[f"{ours}.norm"] = f"{theirs}.layer_norm"
            if part == "mlp":
                rows = {"up": "wi", "gate": "wi_0", "linear": "wi_1", "down": "wo"}
                table |= {f"{ours}.layer.{k}": f"{theirs}.DenseReluDense.{v}" for k, v in rows.items()}
            else:
                rows = {"q": "q", "k": "k", "v": "v", "out": "o"}
                table |= {f"{ours}.layer.{k}": f"{theirs}.{_PARTS[part]}.{v}" for k, v in rows.items()}
    return table


CARD = Card(
    model_type="t5",
    config=T5Config,
    base="transformer",
    heads={
        "T5Model": _head(T5, usual=_DECODED),
        "T5ForConditionalGeneration": _head(ConditionalGeneration, usual=_DECODED, parts=ENCODES_THEN_GENERATES, labels="i64[batch decoder_seq]"),
        "T5EncoderModel": _head(T5Encoder, _encoder_inputs),
        "T5ForSequenceClassification": _head(
            lambda c: nn.SequenceClassifier(
                Echo(c), nn.ClassificationHead(c.d_model, c.labels, c.classifier_dropout), c, c.classifier_dropout, _end_state(c)
            ),
            prefix="transformer",
            names={"classifier": "classification_head"},
            labels=nn.label_type,
        ),
        "T5ForTokenClassification": _head(
            lambda c: nn.TokenClassifier(T5Encoder(c), c.d_model, c.labels, c.classifier_dropout),
            _encoder_inputs,
            prefix="transformer",
            labels="i64[batch seq]",
        ),
        "T5ForQuestionAnswering": _head(
            lambda c: nn.SpanClassifier(Echo(c), c.d_model, c.labels), start_positions="i64[batch]", end_positions="i64[batch]"
        ),
    },
    names={**_names(), "vocabulary": "lm_head"},
    also={"shared.weight": ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]},
    unused=("*embed_tokens.weight", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
)
