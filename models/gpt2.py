"""GPT-2 (https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf): a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..ir.authoring import GENERATES, Card, ConfigError, Head, Layer, Part, Value, choice, current, inputs_of, nn, ops


@dataclass(kw_only=True)
class GptConfig(nn.SummaryConfig):
    """What both of the first GPTs have."""

    aliases: ClassVar = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    summary_type: str = "cls_index"


@dataclass(kw_only=True)
class Gpt2Config(GptConfig):
    """config.json of a GPT-2 checkpoint."""

    n_inner: int | None = None
    activation_function: str = choice("gelu_new", nn.ACTIVATIONS)
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False  # the same numbers in float32
    add_cross_attention: bool = False
    classifier_dropout: float | None = None
    hidden_dropout: float | None = None

    @property
    def head_dropout(self) -> float:
        """What the token classifier drops."""
        return next((d for d in (self.classifier_dropout, self.hidden_dropout) if d is not None), 0.1)


class Gpt2(Layer):
    """Embeddings, causal blocks and a last normalisation."""

    def __init__(self, c: Any):
        self.words, self.positions = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.n_positions, c.n_embd)
        self.dropout, self.most = nn.Dropout(c.embd_pdrop), c.n_positions
        self.blocks = [self.block(c, i) for i in range(c.n_layer)]
        self.norm = self.last_norm(c)

    def last_norm(self, c: Any) -> nn.LayerNorm | None:
        """What normalises the last state."""
        return nn.LayerNorm(c.n_embd, c.layer_norm_epsilon)

    def block(self, c: Any, i: int) -> nn.Block:
        """The block at place i."""
        n, inner = c.n_embd, c.n_inner or 4 * c.n_embd
        scale = (n // c.n_head) ** -0.5 if c.scale_attn_weights else 1.0
        options = {"scale": scale / (i + 1) if c.scale_attn_by_inverse_layer_idx else scale, "dropout": c.attn_pdrop, "out_dropout": c.resid_pdrop}
        mlp = nn.Mlp(n, inner, c.activation_function, layer=nn.Affine, dropout=c.resid_pdrop)
        cross = nn.FusedAttention(n, c.n_head, cross=True, **options) if c.add_cross_attention else None
        attention = nn.FusedAttention(n, c.n_head, causal=True, **options)
        return nn.Block(nn.PreNorm, lambda: nn.LayerNorm(n, c.layer_norm_epsilon), attention, mlp, cross)

    def embed(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None) -> Value:
        """[batch seq n]; positions count from 0, whatever the mask says, and token types are words."""
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        x = x + self.positions(current().cache.positions(x.shape[1], self.most, position_ids))
        return x if token_type_ids is None else x + self.words(token_type_ids)

    def forward(self, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None, **words):
        """-> last_hidden_state [batch seq n]."""
        x, mask, memory_mask = self.dropout(self.embed(**words)), nn.key_mask(attention_mask), nn.key_mask(encoder_attention_mask)
        x, seen = nn.encode(self.blocks, x, mask, None, encoder_hidden_states, memory_mask, norm=self.norm)
        return {"last_hidden_state": x, **seen}


class DoubleHeads(Layer):
    """Next words, and which of several sequences is right."""

    def __init__(self, c: Any, body: Gpt2):
        self.body, self.vocabulary = body, _vocabulary(c, body)
        if c.summary_type != "cls_index":
            raise ConfigError(f"summary_type is {c.summary_type!r}, expected 'cls_index': others mix up the choices in the reference")
        self.choice = nn.SequenceSummary(c, c.n_embd, 1)

    def forward(self, mc_token_ids=None, labels=None, mc_labels=None, **inputs):
        """Inputs [batch choices seq] -> logits [batch choices seq words], mc_logits [batch choices], loss and mc_loss where labels are given."""
        batch, choices = next(x for x in inputs.values() if x is not None).shape[:2]
        out = self.body(**{k: None if x is None else ops.view(x, (batch * choices, *x.shape[2:])) for k, x in inputs.items()})
        x = out["last_hidden_state"]
        logits = self.vocabulary(x)
        scores = self.choice(x, None if mc_token_ids is None else ops.view(mc_token_ids, (batch * choices,)))
        apart = lambda y: ops.view(y, (batch, choices, *y.shape[1:]))
        scores = apart(ops.squeeze(scores, -1) if scores.shape[-1] == 1 else scores)
        loss = None if labels is None else nn.causal_loss(logits, ops.view(labels, x.shape[:2]))
        found = {"loss": loss, "mc_loss": None if mc_labels is None else ops.cross_entropy(scores, mc_labels), "mc_logits": scores}
        return {**found, "logits": apart(logits), **nn.rest(out), "hidden_states": [*out["hidden_states"][:-1], apart(x)]}


def _last_state(c: Any):
    """How a classifier finds each sequence's last word."""

    def pool(out, inputs) -> Value:
        x = out["last_hidden_state"]
        return x[:, -1] if inputs.get("input_ids") is None else nn.pick(x, nn.last_token(inputs["input_ids"], c.pad_token_id))

    return pool


def _vocabulary(c: Any, body: Gpt2) -> nn.Vocabulary:
    return nn.Vocabulary(c.n_embd, c.vocab_size, body.words if c.tie_word_embeddings else None)


def _inputs(c: Any) -> dict[str, str]:
    return nn.text_inputs(c.n_embd, memory=c.n_embd if getattr(c, "add_cross_attention", False) else None)


def _head(build, prefix="transformer", common=_inputs, usual=("input_ids", "attention_mask"), parts=(), names=None, **labels) -> Head:
    return Head(build, inputs_of(common, **labels), usual, prefix, parts, names or {})


def gpt_heads(family: str, body: type[Gpt2], parts: Sequence[Part] = ()) -> dict[str, Head]:
    """The heads that both of the first GPTs have, by the reference's class names, which begin with `family`."""

    def language_model(c: Any) -> nn.LanguageModel:
        made = body(c)
        return nn.LanguageModel(made, _vocabulary(c, made), causal=True)

    decide = lambda c: nn.SequenceClassifier(body(c), nn.Linear(c.n_embd, c.labels, bias=False), c, pool=_last_state(c))
    chosen = {"mc_token_ids": "i64[batch choices]", "labels": "i64[batch choices seq]", "mc_labels": "i64[batch]"}
    usual, choices = ("input_ids", "attention_mask", "mc_token_ids"), lambda c: nn.with_choices(_inputs(c))
    return {
        f"{family}Model": _head(body, prefix=""),
        f"{family}LMHeadModel": _head(language_model, parts=parts, labels="i64[batch seq]"),
        f"{family}DoubleHeadsModel": _head(lambda c: DoubleHeads(c, body(c)), common=choices, usual=usual, **chosen),
        f"{family}ForSequenceClassification": _head(decide, names={"classifier": "score"}, labels=nn.label_type),
    }


CARD = Card(
    model_type="gpt2",
    config=Gpt2Config,
    base="transformer",
    heads={
        **gpt_heads("GPT2", Gpt2, GENERATES),
        "GPT2ForTokenClassification": _head(lambda c: nn.TokenClassifier(Gpt2(c), c.n_embd, c.labels, c.head_dropout), labels="i64[batch seq]"),
        "GPT2ForQuestionAnswering": _head(lambda c: nn.SpanClassifier(Gpt2(c), c.n_embd), start_positions="i64[batch]", end_positions="i64[batch]"),
    },
    names={
        "{words,positions,norm,vocabulary}": "{wte,wpe,ln_f,lm_head}",
        "blocks.*.{attention,cross,mlp}.norm": "h.*.{ln_1,ln_cross_attn,ln_2}",
        "blocks.*.attention.layer.{qkv,out}": "h.*.attn.{c_attn,c_proj}",
        "blocks.*.cross.layer.{q,kv,out}": "h.*.crossattention.{q_attn,c_attn,c_proj}",
        "blocks.*.mlp.layer.{up,down}": "h.*.mlp.{c_fc,c_proj}",
        "choice.summary": "multiple_choice_head.summary",
    },
    unused=("*attn.bias", "*attn.masked_bias", "*crossattention.bias", "*crossattention.masked_bias"),
)
