"""T5, versions 1.0 and 1.1 (https://arxiv.org/abs/1910.10683): an encoder and a decoder with relative positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ..ir.authoring import ENCODES_THEN_GENERATES, Card, Config, ConfigError, Head, InputError, Layer, Value, choice, inputs_of, nn, only, ops


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

    def forward(self, x: Value, mask: Value | None, memory: Value | None = None, memory_mask: Value | None = None) -> tuple[Value, dict[str, Any]]:
        """The normalised last state [batch seq n]; all states, the last one normalised, and what the blocks collect."""
        norm = lambda x: self.dropout(self.norm(x))
        return nn.encode(self.blocks, self.dropout(x), mask, self.bias(x.shape[1]), memory, memory_mask, norm=norm)


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
        x, seen = self.encoder(self.words(input_ids) if inputs_embeds is None else inputs_embeds, nn.key_mask(attention_mask))
        return {"last_hidden_state": x, **seen}


class T5(T5Encoder):
    """Encoder and decoder over the same words; one that echoes reads its input, shifted right, where its decoder is given nothing."""

    def __init__(self, c: T5Config, echo: bool = False):
        super().__init__(c)
        self.decoder, self.echo, self.config = Stack(c, c.num_decoder_layers or c.num_layers, decoder=True), echo, c

    def forward(self, decoder_input_ids=None, decoder_attention_mask=None, decoder_inputs_embeds=None, attention_mask=None, **words):
        """-> last_hidden_state [batch decoder_seq n], encoder_last_hidden_state [batch seq n]."""
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if not self.echo or words.get("input_ids") is None:
                raise InputError("T5 lacks input 'decoder_input_ids': i64[batch decoder_seq]; or give labels to a head that has them")
            decoder_input_ids = shift_right(words["input_ids"], self.config)
        encoded = super().forward(attention_mask=attention_mask, **words)
        x = self.words(decoder_input_ids) if decoder_inputs_embeds is None else decoder_inputs_embeds
        x, seen = self.decoder(x, nn.key_mask(decoder_attention_mask), encoded["last_hidden_state"], nn.key_mask(attention_mask))
        named = {"cross_attentions" if k == "cross_attentions" else f"decoder_{k}": v for k, v in seen.items()}
        return {"last_hidden_state": x, **named, **{f"encoder_{k}": v for k, v in encoded.items()}}


def shift_right(ids: Value, c: T5Config) -> Value:
    """The start id before all ids but the last; -100 becomes padding."""
    start = ops.broadcast_to(ops.literal(value=[[c.start]]), shape=(ids.shape[0], 1))
    return ops.concat(start, ops.where(ops.equal(ids, -100), c.pad_token_id or 0, ids)[:, :-1], axis=1)


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
        return nn.scored(out, logits, labels)


def _classifier(c: T5Config) -> nn.SequenceClassifier:
    """Decides from the decoder's state at the input's last end-of-sequence."""

    def last_end(out, inputs) -> Value:
        ends = ops.equal(inputs["input_ids"], c.eos_token_id)
        return nn.pick(out["last_hidden_state"], ops.max(ops.where(ends, ops.iota(size=ends.shape[1]), 0), axis=1))

    decide = nn.ClassificationHead(c.d_model, c.labels, c.classifier_dropout)
    return nn.SequenceClassifier(T5(c, echo=True), decide, c, c.classifier_dropout, last_end)


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
CARD = Card(
    model_type="t5",
    config=T5Config,
    base="transformer",
    heads={
        "T5Model": _head(T5, usual=_DECODED),
        "T5ForConditionalGeneration": _head(ConditionalGeneration, usual=_DECODED, parts=ENCODES_THEN_GENERATES, labels="i64[batch decoder_seq]"),
        "T5EncoderModel": _head(T5Encoder, _encoder_inputs),
        "T5ForSequenceClassification": _head(_classifier, prefix="transformer", names={"classifier": "classification_head"}, labels=nn.label_type),
        "T5ForTokenClassification": _head(
            lambda c: nn.TokenClassifier(T5Encoder(c), c.d_model, c.labels, c.classifier_dropout),
            _encoder_inputs,
            prefix="transformer",
            labels="i64[batch seq]",
        ),
        "T5ForQuestionAnswering": _head(
            lambda c: nn.SpanClassifier(T5(c, echo=True), c.d_model, c.labels), start_positions="i64[batch]", end_positions="i64[batch]"
        ),
    },
    names={
        "{words,vocabulary}": "{shared,lm_head}",
        "{encoder,decoder}.bias.table": "{encoder,decoder}.block.0.layer.0.SelfAttention.relative_attention_bias",
        "{encoder,decoder}.norm": "{encoder,decoder}.final_layer_norm",
        "{encoder,decoder}.blocks.*.attention.norm": "{encoder,decoder}.block.*.layer.0.layer_norm",
        "{encoder,decoder}.blocks.*.attention.layer.{q,k,v,out}": "{encoder,decoder}.block.*.layer.0.SelfAttention.{q,k,v,o}",
        "decoder.blocks.*.cross.norm": "decoder.block.*.layer.1.layer_norm",
        "decoder.blocks.*.cross.layer.{q,k,v,out}": "decoder.block.*.layer.1.EncDecAttention.{q,k,v,o}",
        # the reference numbers a block's parts; the decoder has one more
        "{encoder,decoder}.blocks.*.mlp.norm": "{encoder.block.*.layer.1,decoder.block.*.layer.2}.layer_norm",
        "encoder.blocks.*.mlp.layer.{up,gate,linear,down}": "encoder.block.*.layer.1.DenseReluDense.{wi,wi_0,wi_1,wo}",
        "decoder.blocks.*.mlp.layer.{up,gate,linear,down}": "decoder.block.*.layer.2.DenseReluDense.{wi,wi_0,wi_1,wo}",
    },
    also={"shared.weight": ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]},
    unused=("*embed_tokens.weight", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"),
)
