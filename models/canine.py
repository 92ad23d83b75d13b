"""CANINE (https://arxiv.org/abs/2103.06874): characters by hashes, attention in chunks, and a deep encoder over every fourth position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..ir.authoring import Card, ConfigError, Layer, Value, collect, collecting, current, minimum, nn, only, ops
from ..ir.layers.banded import blocks_of
from ..ir.ops.attention import LOWEST

PRIMES = (31, 43, 59, 61, 73, 97, 103, 113, 137, 149, 157, 173, 181, 193, 211, 223)


@dataclass(kw_only=True)
class CanineConfig(nn.TextConfig):
    """config.json of a CANINE checkpoint."""

    max_position_embeddings: int = 16384
    type_vocab_size: int = 16
    downsampling_rate: int = 4
    upsampling_kernel_size: int = 4
    num_hash_functions: int = 8
    num_hash_buckets: int = 16384
    local_transformer_stride: int = 128
    position_embedding_type: str = only("absolute")

    def check(self, where: str) -> None:
        """Each hash fills a share of the width."""
        super().check(where)
        self.divides(where, "num_hash_functions", "hidden_size")
        if self.num_hash_functions > len(PRIMES):
            raise ConfigError(f"{where}: num_hash_functions is {self.num_hash_functions}, expected at most {len(PRIMES)}")


class Characters(nn.TextEmbeddings):
    """Code points, each a row of several tables by as many hashes, with segments and positions."""

    def __init__(self, c: CanineConfig):
        super().__init__(c)
        self.words = [nn.Embedding(c.num_hash_buckets, c.hidden_size // c.num_hash_functions) for _ in range(c.num_hash_functions)]
        self.buckets, self.most = c.num_hash_buckets, min(c.max_position_embeddings, c.num_hash_buckets)

    def position_table(self, c: CanineConfig, n: int) -> Layer:
        """The reference sizes it by the hash buckets."""
        return nn.Embedding(c.num_hash_buckets, n)

    def forward(self, input_ids: Any = None, inputs_embeds=None, **places) -> Value:
        """[batch seq n]."""
        if inputs_embeds is None:
            hashed = [table((input_ids + 1) * prime % self.buckets) for table, prime in zip(self.words, PRIMES, strict=False)]
            inputs_embeds = ops.concat(*hashed, axis=2)
        return super().forward(inputs_embeds=inputs_embeds, **places)


class ChunkAttention(nn.Attention):
    """Attention within chunks, of which the last may be shorter."""

    def __init__(self, n: int, heads: int, size: int, **options: Any):
        super().__init__(n, heads, **options)
        self.size = size

    def forward(self, x: Value, mask: Value | None = None, *_: Any) -> Value:
        """x [batch seq n], mask bool[batch 1 1 seq] -> [batch seq n]."""
        length, size, graph = x.shape[1], self.size, current()
        padded = nn.pad_to(x, (size, 1), (1, 2))
        q, k, v = (blocks_of(y, size) for y in self.project(padded))
        scores = (q * self.scale) @ ops.transpose(k, perm=(0, 1, 2, 4, 3))
        if mask is not None:
            live = nn.pad_to(ops.cast(mask[:, 0, 0], dtype="i64"), (size, 1), (1, 0)) > 0
            scores = ops.where(blocks_of(live, size, 1)[:, None, :, None, :], scores, LOWEST)
        # what the last chunk lacks weighs nothing even where all else is masked, for the convolutions behind read masked characters too
        there = ops.iota(size=padded.shape[1]) < ops.size(value=length)
        weights = ops.softmax(ops.where(blocks_of(there, size, 0)[:, None, :], scores, -math.inf))
        first = minimum(size, length)
        collect("attentions", weights[:, :, 0, :first, :first])  # the reference's output has the first chunk alone
        if graph.training and self.dropout:
            weights = ops.dropout(weights, graph.random_key(), rate=self.dropout, site=graph.random_site())
        y = ops.view(weights @ v, (x.shape[0], self.heads, padded.shape[1], v.shape[4]))
        return self.out_dropout(self.out(nn.heads_last(y[:, :, :length])))


class Convolution(Layer):
    """A convolution over positions, activated."""

    def __init__(self, c: CanineConfig, n_in: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0)):
        self.conv = nn.Conv(n_in, c.hidden_size, (kernel,), stride=(stride,), padding=(padding,))
        self.norm, self.activation = nn.LayerNorm(c.hidden_size, c.layer_norm_eps), nn.ACTIVATIONS[c.hidden_act]

    def forward(self, x: Value) -> Value:
        """[batch seq in] -> [batch seq/stride n]."""
        y = self.conv(ops.transpose(x, perm=(0, 2, 1)))
        return self.activation(ops.transpose(y, perm=(0, 2, 1)))


class Canine(nn.TextEncoder):
    """Characters through a shallow encoder, molecules of them through a deep one, and both through a shallow one again."""

    embedding = Characters

    def __init__(self, c: CanineConfig, pool: bool = True):
        super().__init__(c, pool)
        self.rate, kernel, n = c.downsampling_rate, c.upsampling_kernel_size, c.hidden_size
        self.first: list[Any] = [self.block(c)]
        self.last = [self.block(c)]
        self.first[0].attention.layer = ChunkAttention(
            n, c.num_attention_heads, c.local_transformer_stride, dropout=c.attention_probs_dropout_prob, out_dropout=c.hidden_dropout_prob
        )
        self.down = Convolution(c, n, self.rate, self.rate)
        self.up = Convolution(c, 2 * n, kernel, padding=((kernel - 1) // 2, kernel // 2))
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def forward(self, attention_mask=None, **words) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        mask, x = nn.key_mask(attention_mask), self.embeddings(**words)
        batch, length, n = x.shape
        count = length // self.rate
        current().limit(self.rate - length, 0, f"a sequence needs downsampling_rate={self.rate} characters or more: pad it")
        with collecting() as seen:
            x, before = nn.run_blocks(self.first, x, mask)
            molecules = self.down.norm(ops.concat(x[:, :1], self.down(x[:, : count * self.rate])[:, :-1], axis=1))
            some = None if mask is None else ops.any(blocks_of(mask[..., : count * self.rate], self.rate, 3), axis=4)
            deep, between = nn.run_blocks(self.blocks, molecules, some)
            rest = ops.broadcast_to(deep[:, -1:], shape=(batch, length - (count - 1) * self.rate, n))
            repeated = ops.concat(ops.repeat(deep[:, 1:], self.rate, 1), rest, axis=1)
            x = self.dropout(self.up.norm(self.up(ops.concat(x, repeated, axis=2))))
            x, after = nn.run_blocks(self.last, x, mask)
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(deep), "hidden_states": [*before, *between, *after], **seen}


def _body(c: CanineConfig, pool: bool = True) -> Canine:
    """The reference keeps the pooler in every head."""
    return Canine(c)


_SHALLOW = {"first": "initial_char_encoder", "last": "final_char_encoder"}

CARD = Card(
    model_type="canine",
    config=CanineConfig,
    base="canine",
    heads={k: head for k, head in nn.text_heads("Canine", _body, "canine").items() if k != "CanineForMaskedLM"},
    names={
        **nn.TEXT_NAMES,
        **{
            k.replace("blocks", ours): v.replace("encoder", theirs, 1)
            for k, v in nn.TEXT_NAMES.items()
            if k.startswith("blocks")
            for ours, theirs in _SHALLOW.items()
        },
        "embeddings.words.*": "char_embeddings.HashBucketCodepointEmbedder_*",
        "embeddings.{words,positions,segments}": "char_embeddings.{words,char_position_embeddings,token_type_embeddings}",
        "embeddings.norm": "char_embeddings.LayerNorm",
        "{down,up}.conv": "{chars_to_molecules,projection}.conv",
        "{down,up}.norm": "{chars_to_molecules,projection}.LayerNorm",
    },
    unused=("*position_ids",),
)
