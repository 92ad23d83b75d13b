"""I-BERT (https://arxiv.org/abs/2101.01321): RoBERTa, in `quant_mode` with integers alone, outside of it as it was before they were."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, Layer, Value, choice, collect, collecting, nn, only, ops
from ..ir.layers.integers import Act, IntLayerNorm, IntSoftmax, QuantEmbedding, QuantLinear, Scaled, int_gelu
from .roberta import roberta_words

FORCED = ("none", "gelu", "softmax", "layernorm", "nonlinear")


@dataclass(kw_only=True)
class IBertConfig(nn.TextConfig):
    """config.json of an I-BERT checkpoint; `force_dequant` names what stays in floating point."""

    pad_token_id: int | None = 1
    hidden_act: str = only("gelu")
    position_embedding_type: str = only("absolute")
    quant_mode: bool = False
    force_dequant: str = choice("none", FORCED)

    def whole(self, part: str) -> bool:
        """Whether a part computes with integers."""
        return self.quant_mode and self.force_dequant not in ("nonlinear", part)


class Embeddings(nn.PaddedEmbeddings):
    """RoBERTa's embeddings, their sums and norm in integers."""

    def __init__(self, c: IBertConfig):
        super().__init__(c)
        self.words, self.segments = (
            QuantEmbedding(c.vocab_size, c.hidden_size, c.pad_token_id, c.quant_mode),
            QuantEmbedding(c.type_vocab_size, c.hidden_size, None, c.quant_mode),
        )
        self.embeddings_act1, self.embeddings_act2, self.output_activation = Act(16, c.quant_mode), Act(16, c.quant_mode), Act(8, c.quant_mode)
        self.norm = IntLayerNorm(c.hidden_size, c.layer_norm_eps, c.whole("layernorm"))

    def position_table(self, c: IBertConfig, n: int) -> Layer:
        """A table whose row for padding is not trained."""
        return QuantEmbedding(c.max_position_embeddings, n, c.pad_token_id, c.quant_mode)

    def forward(self, input_ids=None, token_type_ids=None, position_ids=None, inputs_embeds=None) -> Scaled:
        """[batch seq n] and its scale."""
        x, scale = self.words(input_ids) if inputs_embeds is None else (inputs_embeds, None)
        length = x.shape[1]
        if token_type_ids is None:
            token_type_ids = ops.broadcast_to(ops.literal(value=[[0]]), shape=x.shape[:2])
        x, scale = self.embeddings_act1(x, scale, *self.segments(token_type_ids))
        x, scale = self.embeddings_act1(x, scale, *self.positions(self.places(input_ids, length) if position_ids is None else position_ids))
        x, scale = self.norm(x, scale)
        return self.output_activation(self.dropout(x), scale)


class SelfAttention(Layer):
    """Attention among whole steps."""

    def __init__(self, c: IBertConfig):
        n = c.hidden_size
        self.query, self.key, self.value = (QuantLinear(n, n, c.quant_mode) for _ in range(3))
        self.query_activation, self.key_activation, self.value_activation, self.output_activation = (Act(8, c.quant_mode) for _ in range(4))
        self.softmax, self.heads, self.dropout = IntSoftmax(c.whole("softmax")), c.num_attention_heads, nn.Dropout(c.attention_probs_dropout_prob)

    def forward(self, x: Value, scale: Value | None, mask: Value | None) -> Scaled:
        """[batch seq n] and its scale -> the same."""
        q, k, v = (
            act(*layer(x, scale))
            for layer, act in ((self.query, self.query_activation), (self.key, self.key_activation), (self.value, self.value_activation))
        )
        rows, keys, values = (nn.heads_first(y, self.heads) for y, _ in (q, k, v))
        root = math.sqrt(rows.shape[3])
        if self.softmax.whole:
            scores = rows @ ops.transpose(keys, perm=(0, 1, 3, 2)) / root
            weights, step = self.softmax(scores, q[1] * k[1] / root, mask)
        else:
            weights, step = ops.attention_weights(rows, keys, mask, scale=1 / root), None
        collect("attentions", weights)
        y = nn.heads_last(self.dropout(weights) @ values)
        return self.output_activation(y, None if step is None else step * v[1])


class Output(Layer):
    """A linear layer, and the normalised sum of it and what came before."""

    def __init__(self, c: IBertConfig, n_in: int):
        self.dense, self.LayerNorm, self.dropout = (
            QuantLinear(n_in, c.hidden_size, c.quant_mode),
            IntLayerNorm(c.hidden_size, c.layer_norm_eps, c.whole("layernorm")),
            nn.Dropout(c.hidden_dropout_prob),
        )
        self.ln_input_act, self.output_activation = Act(22, c.quant_mode), Act(8, c.quant_mode)

    def forward(self, x: Value, scale: Value | None, before: Value, before_scale: Value | None) -> Scaled:
        """[batch seq in] and [batch seq n] with their scales -> [batch seq n] and its scale."""
        x, scale = self.dense(x, scale)
        return self.output_activation(*self.LayerNorm(*self.ln_input_act(self.dropout(x), scale, before, before_scale)))


class Inner(Layer):
    """The wide half of a feed-forward part."""

    def __init__(self, c: IBertConfig):
        self.dense, self.output_activation, self.whole = (
            QuantLinear(c.hidden_size, c.intermediate_size, c.quant_mode),
            Act(8, c.quant_mode),
            c.whole("gelu"),
        )

    def forward(self, x: Value, scale: Value | None) -> Scaled:
        """[batch seq n] and its scale -> [batch seq inner] and its scale."""
        x, scale = self.dense(x, scale)
        return self.output_activation(*(int_gelu(x, scale) if self.whole and scale is not None else (ops.gelu(x), None)))


class IBertBlock(Layer):
    """One block."""

    def __init__(self, c: IBertConfig):
        self.attention = {"self": SelfAttention(c), "output": Output(c, c.hidden_size)}
        self.intermediate, self.output = Inner(c), Output(c, c.intermediate_size)
        self.pre_intermediate_act, self.pre_output_act = Act(8, c.quant_mode), Act(8, c.quant_mode)

    def forward(self, x: Value, scale: Value | None, mask: Value | None) -> Value:
        """[batch seq n] and its scale -> [batch seq n]."""
        x, scale = self.attention["output"](*self.attention["self"](x, scale, mask), x, scale)
        x, scale = self.pre_intermediate_act(x, scale)
        inner = self.pre_output_act(*self.intermediate(x, scale))
        return self.output(*inner, x, scale)[0]


class IBert(nn.TextEncoder):
    """RoBERTa's encoder over whole steps."""

    embedding = Embeddings

    def block(self, c: IBertConfig) -> Layer:
        """One block."""
        return IBertBlock(c)

    def forward(self, attention_mask=None, **words) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        x, scale = self.embeddings(**words)
        with collecting() as seen:
            # every block is told the scale of the embeddings, as the reference does
            x, states = nn.run_blocks(self.blocks, x, scale, nn.key_mask(attention_mask))
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(x), "hidden_states": states, **seen}


CARD = Card(
    model_type="ibert",
    config=IBertConfig,
    base="ibert",
    heads=nn.text_heads("IBert", IBert, "ibert", words=roberta_words, classifier=nn.first_state_head),
    names={
        **{k: v for k, v in nn.TEXT_NAMES.items() if k.startswith("embeddings")},
        **nn.ROBERTA_WORDS,
        "blocks.*": "encoder.layer.*",
    },
    also={"lm_head.bias": ["lm_head.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
