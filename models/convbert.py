"""ConvBERT (https://arxiv.org/abs/2008.02496): BERT half of whose heads weigh neighbours by kernels that they make of each span."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from ..ir.authoring import Card, ConfigError, Layer, Param, Value, nn, only, ops
from .electra import state_summary
from .roberta import roberta_words
from .roformer import LastSummaryConfig, activated_head


@dataclass(kw_only=True)
class ConvBertConfig(nn.TextConfig, LastSummaryConfig):
    """config.json of a ConvBERT checkpoint."""

    pad_token_id: int | None = 1
    embedding_size: int = 768
    head_ratio: int = 2
    conv_kernel_size: int = 9
    num_groups: int = 1
    is_decoder: bool = only(False)

    def check(self, where: str) -> None:
        """Two kinds of heads share the width; a span has a middle; groups divide widths."""
        heads = self.heads(where)
        if self.hidden_size % (2 * heads):
            found = f"hidden_size is {self.hidden_size}"
            raise ConfigError(
                f"{where}: {found}, expected a multiple of {2 * heads}: {heads} heads of each kind, by num_attention_heads and head_ratio"
            )
        if self.conv_kernel_size % 2 == 0:
            raise ConfigError(f"{where}: conv_kernel_size is {self.conv_kernel_size}, expected an odd number")
        self.divides(where, "num_groups", "hidden_size")
        self.divides(where, "num_groups", "intermediate_size")

    def heads(self, where: str = "config.json") -> int:
        """How many heads there are of each kind."""
        if self.head_ratio < 1:
            raise ConfigError(f"{where}: head_ratio is {self.head_ratio}, expected at least 1")
        return max(self.num_attention_heads // self.head_ratio, 1)


class SpanConv(Layer):
    """A convolution over positions, separated into one within each channel and one across channels."""

    def __init__(self, n: int, n_out: int, kernel: int):
        self.depthwise = nn.Conv(n, n, (kernel,), padding=(kernel // 2,), groups=n, bias=False)
        self.pointwise = nn.Conv(n, n_out, (1,), bias=False)
        self.bias = Param(n_out, 1, init="zeros")

    def forward(self, x: Value) -> Value:
        """[batch seq n] -> [batch seq n_out]."""
        y = self.pointwise(self.depthwise(ops.transpose(x, perm=(0, 2, 1)))) + self.bias
        return ops.transpose(y, perm=(0, 2, 1))


class MixedAttention(nn.Attention):
    """Attention, and beside it heads that weigh the neighbours of each position by a kernel made for its span."""

    def __init__(self, n: int, heads: int, kernel: int, **options: Any):
        inner = n // 2
        super().__init__(n, heads, inner=inner, **options)
        self.out = nn.Linear(n, n)
        self.span, self.kernels, self.neighbours = SpanConv(n, inner, kernel), nn.Linear(inner, heads * kernel), nn.Linear(n, inner)
        self.width = kernel

    def forward(self, x: Value, mask: Value | None = None, *context: Any) -> Value:
        """[batch seq n] -> [batch seq n]."""
        q, k, v = self.project(x)
        y = nn.heads_last(nn.attend(q, k, v, mask, None, scale=self.scale, dropout=self.dropout))
        return self.out_dropout(self.out(ops.concat(y, self.mix(x), axis=2)))

    def mix(self, x: Value) -> Value:
        """[batch seq n] -> [batch seq inner]: each position's neighbours, weighed."""
        split = lambda y: ops.rearrange(y, "batch seq (heads k) -> batch seq heads k", heads=self.heads)
        weights = ops.softmax(split(self.kernels(self.span(x) * self.q(x))))
        pad, length = self.width // 2, x.shape[1]
        around = ops.pad(split(self.neighbours(x)), low=(0, pad, 0, 0), high=(0, pad, 0, 0))
        terms = [around[:, i : i + length] * weights[..., i : i + 1] for i in range(self.width)]
        return ops.rearrange(reduce(lambda a, b: a + b, terms), "batch seq heads head -> batch seq (heads head)")


class GroupedLinear(Layer):
    """A linear layer within each group of channels."""

    def __init__(self, n_in: int, n_out: int, groups: int):
        self.weight, self.bias = Param(groups, n_in // groups, n_out // groups), Param(n_out, init="zeros")

    def forward(self, x: Value) -> Value:
        """[batch seq in] -> [batch seq out]."""
        parts = ops.rearrange(x, "batch seq (groups n) -> groups (batch seq) n", groups=self.weight.shape[0])
        return ops.rearrange(parts @ self.weight, "groups (batch seq) n -> batch seq (groups n)", batch=x.shape[0]) + self.bias


class ConvBert(nn.TextEncoder):
    """BERT's encoder with mixed attention."""

    def attention(self, c: ConvBertConfig, **options: Any) -> MixedAttention:
        """Attention of a block."""
        rates = {"dropout": c.attention_probs_dropout_prob, "out_dropout": c.hidden_dropout_prob}
        return MixedAttention(c.hidden_size, c.heads(), c.conv_kernel_size, **rates)

    def mlp(self, c: ConvBertConfig) -> nn.Mlp:
        """The feed-forward part of a block, perhaps in groups."""
        layer = nn.Linear if c.num_groups == 1 else lambda n_in, n_out: GroupedLinear(n_in, n_out, c.num_groups)
        return nn.Mlp(c.hidden_size, c.intermediate_size, c.hidden_act, layer=layer, dropout=c.hidden_dropout_prob)


_OPTIONS = {"classifier": activated_head, "summary": state_summary, "usual": ("input_ids", "attention_mask", "token_type_ids")}

CARD = Card(
    model_type="convbert",
    config=ConvBertConfig,
    base="convbert",
    heads=nn.text_heads("ConvBert", partial(ConvBert, pool=False), "convbert", words=roberta_words, **_OPTIONS),
    names={
        **nn.TEXT_NAMES,
        "project": "embeddings_project",
        "blocks.*.attention.layer.{span,kernels,neighbours}": "encoder.layer.*.attention.self.{key_conv_attn_layer,conv_kernel_layer,conv_out_layer}",
        "transform.{dense,norm}": "generator_predictions.{dense,LayerNorm}",
        "vocabulary": "generator_lm_head",
        "pool": "sequence_summary",
    },
    unused=("*embeddings.position_ids",),
)
