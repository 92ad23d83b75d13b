"""Nystromformer (https://arxiv.org/abs/2102.03902): BERT whose attention goes by way of landmarks, at a cost linear in the length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..ir.authoring import Card, ConfigError, Size, Value, choice, collect, current, nn, only, ops
from .roformer import activated_head

STEPS = 6  # of the iteration towards the inverse
OFFSET = 2  # of the first place, a trace of older tables


@dataclass(kw_only=True)
class NystromformerConfig(nn.TextConfig):
    """config.json of a Nystromformer checkpoint."""

    vocab_size: int = 30000
    hidden_act: str = choice("gelu_new", nn.ACTIVATIONS)
    max_position_embeddings: int = 510
    segment_means_seq_len: int = 64
    num_landmarks: int = 64
    conv_kernel_size: int | None = 65
    inv_coeff_init_option: bool = only(False)
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    position_embedding_type: str = choice("absolute", ("absolute", "relative_key", "relative_key_query"))
    is_decoder: bool = only(False)

    def check(self, where: str) -> None:
        """There are enough words for the landmarks; the convolution has a middle."""
        super().check(where)
        if not 1 <= self.num_landmarks <= self.segment_means_seq_len:
            raise ConfigError(f"{where}: num_landmarks is {self.num_landmarks}, expected 1 to segment_means_seq_len={self.segment_means_seq_len}")
        odd(where, "conv_kernel_size", self.conv_kernel_size)


def odd(where: str, name: str, kernel: int | None) -> None:
    """ConfigError unless a kernel, where there is one, has a middle."""
    if kernel is not None and kernel % 2 == 0:
        raise ConfigError(f"{where}: {name} is {kernel}, expected an odd number, or null for no convolution")


class OffsetEmbeddings(nn.TextEmbeddings):
    """Embeddings whose places count from `OFFSET`."""

    def position_table(self, c: Any, n: int) -> nn.Embedding:
        """A table with room for the offset."""
        return nn.Embedding(c.max_position_embeddings + OFFSET, n)

    def places(self, input_ids: Value | None, length: Size) -> Value:
        """i64[seq]."""
        return super().places(input_ids, length) + OFFSET


def value_conv(heads: int, kernel: int | None) -> nn.Conv | None:
    """A convolution of each head's values over positions, where there is a kernel."""
    return None if kernel is None else nn.Conv(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)


def _inverse(x: Value) -> Value:
    """Towards the Moore-Penrose inverse of x [batch heads n n], from a start that is as small as the whole batch needs it."""
    n = x.shape[-1]
    place = ops.iota(size=n)
    one = ops.cast(ops.equal(place[:, None], place[None, :]), dtype="f32")
    y = ops.transpose(x, perm=(0, 1, 3, 2)) / ops.max(ops.sum(x, axis=2), axis=(0, 1, 2))
    for _ in range(STEPS):
        xy = x @ y
        y = (y * 0.25) @ (one * 13.0 - xy @ (one * 15.0 - xy @ (one * 7.0 - xy)))
    return y


class LandmarkAttention(nn.Attention):
    """Attention through `landmarks`, means of neighbouring queries and keys; plain where each of `length` words is its own landmark."""

    def __init__(self, n: int, heads: int, landmarks: int, length: int, kernel: int | None, **options: Any):
        super().__init__(n, heads, **options)
        self.conv, self.landmarks, self.length = value_conv(heads, kernel), landmarks, length

    def forward(self, x: Value, mask: Value | None = None, *context: Any) -> Value:
        """[batch seq n] -> [batch seq n]."""
        q, k, v = self.project(x)
        plain = self.landmarks == self.length
        y = nn.attend(q, k, v, mask, None, scale=self.scale) if plain else self.approximate(q, k, v, mask)
        y = y if self.conv is None else y + self.conv(v)
        return self.out_dropout(self.out(nn.heads_last(y)))

    def approximate(self, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
        """[batch heads seq head]."""
        mean_q, mean_k = self.means(q), self.means(k)
        weigh = partial(ops.attention_weights, scale=self.scale)
        weights = weigh(q, mean_k) @ _inverse(weigh(mean_q, mean_k))
        collect("attentions", weights)
        return weights @ ops.attention(mean_q, k, v, mask, scale=self.scale)

    def means(self, x: Value) -> Value:
        """[batch heads seq head] -> [batch heads landmarks head]."""
        each = self.length // self.landmarks
        fit = each * self.landmarks
        for more in (x.shape[2] - fit, fit - x.shape[2]):
            current().limit(more, 0, f"num_landmarks={self.landmarks} and segment_means_seq_len={self.length} take sequences of length {fit}, padded")
        return ops.mean(ops.rearrange(x[:, :, :fit], "batch heads (landmarks each) head -> batch heads landmarks each head", each=each), axis=3)


class Nystromformer(nn.TextEncoder):
    """BERT's encoder with landmarks."""

    embedding = OffsetEmbeddings

    def attention(self, c: NystromformerConfig, **options: Any) -> LandmarkAttention:
        """Attention of a block, of whose weights none are dropped."""
        n, sizes = c.hidden_size, (c.num_landmarks, c.segment_means_seq_len, c.conv_kernel_size)
        return LandmarkAttention(n, c.num_attention_heads, *sizes, out_dropout=c.hidden_dropout_prob)


class FirstPooler(nn.Pooler):
    """The pooled first state of a body's outputs."""

    def forward(self, outputs: Any, inputs: Any) -> Value:  # type: ignore[override]
        """[batch n]."""
        return super().forward(outputs["last_hidden_state"])


def landmark_card(model_type: str, family: str, config: type[nn.TextConfig], encoder: type[nn.TextEncoder]) -> Card:
    """A card of an encoder without a pooled state, whose classes begin with `family`."""
    body, usual = partial(encoder, pool=False), ("input_ids", "attention_mask", "token_type_ids")
    choose = lambda c: FirstPooler(c.hidden_size, activation=ops.relu)
    return Card(
        model_type=model_type,
        config=config,
        base=model_type,
        heads=nn.text_heads(family, body, model_type, classifier=activated_head, summary=choose, usual=usual),
        names={
            **nn.TEXT_NAMES,
            **nn.BERT_WORDS,
            "blocks.*.attention.layer.conv": "encoder.layer.*.attention.self.conv",
            "pool.dense": "pre_classifier",
        },
        also={"cls.predictions.bias": ["cls.predictions.decoder.bias"]},
        unused=("*embeddings.position_ids", "*embeddings.token_type_ids"),
    )


# the iteration for the inverse starts from the greatest sum in the whole batch
CARD = replace(landmark_card("nystromformer", "Nystromformer", NystromformerConfig, Nystromformer), by_rows=False)
