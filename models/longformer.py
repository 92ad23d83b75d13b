"""Longformer (https://arxiv.org/abs/2004.05150): attention in a sliding window, and to and from a few tokens that see and are seen by all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..ir.authoring import Card, ConfigError, Head, Size, Value, collect, collecting, minimum, nn, ops
from ..ir.layers.banded import Keys, attend_jointly, band, blocks_of, by_distance, neighbours
from .roberta import roberta_words


@dataclass(kw_only=True)
class LongformerConfig(nn.TextConfig):
    """config.json of a Longformer checkpoint; `max_global_tokens`, which the reference has not, is how many global tokens a row may mark."""

    pad_token_id: int | None = 1
    sep_token_id: int | None = 2
    attention_window: int | list[int] = 512
    max_global_tokens: int | None = None

    def check(self, where: str) -> None:
        """Windows reach as far back as ahead."""
        super().check(where)
        if len(self.windows) != self.num_hidden_layers or any(w < 2 or w % 2 for w in self.windows):
            expected = f"an even number above 0, or one for each of the {self.num_hidden_layers} layers"
            raise ConfigError(f"{where}: attention_window is {self.attention_window}, expected {expected}")

    @property
    def windows(self) -> list[int]:
        """The window of each layer."""
        given = self.attention_window
        return given if isinstance(given, list) else [given] * self.num_hidden_layers


class Globals(NamedTuple):
    """Which tokens are global, bool[batch seq], where they stand, i64[batch slots], which slots are used, and which slot a token has."""

    marked: Value
    places: Value
    used: Value
    slot: Value


def global_tokens(marked: Value, slots: Size) -> Globals:
    """The first `slots` marked tokens of each row, in order."""
    length = marked.shape[1]
    places = ops.sort(ops.where(marked, ops.iota(size=length), length_of(marked)), axis=1)[:, :slots]
    last = ops.size(value=length - 1)
    rank = ops.cumsum(ops.cast(marked, dtype="i64"), axis=1) - 1
    return Globals(marked, ops.minimum(places, last), places <= last, ops.minimum(ops.maximum(rank, 0), ops.size(value=slots - 1)))


def length_of(x: Value) -> Value:
    """The size of the second axis as a number."""
    return ops.size(value=x.shape[1])


def rows_at(x: Value, index: Value) -> Value:
    """x [batch heads seq head] at index i64[batch places] -> [batch heads places head]."""
    return ops.gather(x, ops.broadcast_to(index[:, None, :, None], shape=(*x.shape[:2], index.shape[1], x.shape[3])), axis=2)


class WindowedAttention(nn.Attention):
    """Attention of each token to those in its window and to the global ones, which attend to all with projections of their own."""

    def __init__(self, n: int, heads: int, **options: Any):
        super().__init__(n, heads, **options)
        self.q_global, self.k_global, self.v_global = (nn.Linear(n, n) for _ in range(3))
        self.window = 0

    def forward(self, x: Value, live: Value, globals_: Globals | None = None) -> Value:
        """x [batch seq n] and live bool[batch seq], seq being a multiple of the window -> [batch seq n]."""
        q, k, v = self.project(x)
        local = live if globals_ is None else live & ~globals_.marked
        parts = [self._near(k, v, local)]
        if globals_ is not None:
            keys, values = (rows_at(y, globals_.places) for y in (k, v))
            parts.insert(0, Keys(keys, values, globals_.used[:, None, None, None, :]))
        y, weights = attend_jointly(blocks_of(q, self.window), parts, scale=self.scale, dropout=self.dropout)
        self._collect(weights, local)
        y = ops.where(live[:, None, :, None], ops.view(y, q.shape), 0.0)
        if globals_ is not None:
            y = ops.where(globals_.marked[:, None, :, None], rows_at(self._of_globals(x, live, globals_), globals_.slot), y)
        return self.out_dropout(self.out(nn.heads_last(y)))

    def _near(self, k: Value, v: Value, seen: Value) -> Keys:
        """The keys of each block's three."""
        w = self.window

        def three(y: Value, axis: int) -> Value:
            ends = [0] * y.rank
            ends[axis] = w
            return neighbours(blocks_of(ops.pad(y, low=tuple(ends), high=tuple(ends)), w, axis), axis=axis)

        near = ops.cast(three(ops.cast(seen, dtype="i64"), 1), dtype="bool")
        return Keys(three(k, 2), three(v, 2), near[:, None, :, None, :] & band(w))

    def _collect(self, weights: list[Value], local: Value) -> None:
        """Offers the weights on global tokens, then those by distance; rows of global tokens and of padding are zeros."""
        *shared, near = weights
        both = ops.concat(*shared, by_distance(near), axis=4)
        batch, heads, _, _, columns = both.shape
        collect("attentions", ops.where(local[:, None, :, None], ops.view(both, (batch, heads, local.shape[1], columns)), 0.0))

    def _of_globals(self, x: Value, live: Value, globals_: Globals) -> Value:
        """What global tokens make of all others [batch heads slots head]."""
        chosen = ops.gather(x, ops.broadcast_to(globals_.places[:, :, None], shape=(*globals_.places.shape, x.shape[2])), axis=1)
        q, k, v = (nn.heads_first(f(y), self.heads) for f, y in ((self.q_global, chosen), (self.k_global, x), (self.v_global, x)))
        mask = live[:, None, None, :] & globals_.used[:, None, :, None]
        parts = [Keys(k, v, mask[:, :, None])]
        y, (weights,) = attend_jointly(q[:, :, None], parts, scale=self.scale, dropout=self.dropout)
        collect("global_attentions", ops.transpose(weights[:, :, 0], perm=(0, 1, 3, 2)))
        return y[:, :, 0]


class Longformer(nn.TextEncoder):
    """RoBERTa's encoder with windows; `kind` says which tokens are global where no global_attention_mask is given.

    A graph's sizes cannot depend on the values of a mask, so that global tokens have a fixed number of slots: one for the first token, and
    else `max_global_tokens`, by default the largest window, which keeps the cost linear in the length. A row that marks more comes out as NaN
    throughout rather than wrong in silence. Only where all behind the question is global (multiple choice) are there as many as tokens.
    """

    embedding = nn.PaddedEmbeddings

    def __init__(self, c: LongformerConfig, pool: bool = True, kind: str = ""):
        super().__init__(c, pool)
        for block, window in zip(self.blocks, c.windows, strict=True):
            block.attention.layer.window = window // 2
        self.multiple, self.marking, self.separator = math.lcm(*c.windows), kind, c.sep_token_id
        self.slots = c.max_global_tokens or max(c.windows)

    def attention(self, c: LongformerConfig, **options: Any) -> WindowedAttention:
        """Attention of a block."""
        return WindowedAttention(c.hidden_size, c.num_attention_heads, dropout=c.attention_probs_dropout_prob, out_dropout=c.hidden_dropout_prob)

    def forward(self, attention_mask=None, global_attention_mask=None, **words) -> dict[str, Any]:
        """-> last_hidden_state [batch seq n], pooler_output [batch n]."""
        x = self.embeddings(**words)
        length = x.shape[1]
        x = nn.pad_to(x, (self.multiple, 1), (1, 2))
        padded = x.shape[:2]
        live = ops.broadcast_to((ops.iota(size=padded[1]) < ops.size(value=length))[None], shape=padded)
        if attention_mask is not None:
            live = live & (self._padded(attention_mask, padded[1]) > 0)
        globals_, x = self._globals(x, live, global_attention_mask, words.get("input_ids"))
        with collecting() as seen:
            x, states = nn.run_blocks(self.blocks, x, live, globals_)
        x, states = x[:, :length], [s[:, :length] for s in states]
        if "attentions" in seen:
            seen["attentions"] = [a[:, :, :length] for a in seen["attentions"]]
        return {"last_hidden_state": x, "pooler_output": self.pooler and self.pooler(x), "hidden_states": states, **seen}

    def _padded(self, mask: Value, length: Size) -> Value:
        return ops.pad(mask, low=(0, 0), high=(0, length - mask.shape[1]))

    def _globals(self, x: Value, live: Value, given: Value | None, ids: Value | None) -> tuple[Globals | None, Value]:
        """The global tokens, and x [batch seq n] with NaN in rows that mark more of them than there are slots."""
        length = x.shape[1]
        place = ops.iota(size=length)
        if given is not None:
            marked = self._padded(given, length) > 0
        elif self.marking == "first":
            return global_tokens(live & ops.equal(place, 0), 1), x
        elif not self.marking or ids is None:
            return None, x
        else:
            separator = ops.argmax(ops.cast(ops.equal(ids, self.separator), dtype="i64"), axis=1)[:, None]
            marked = place < separator if self.marking == "question" else place > separator + 1
        marked = marked & live
        if given is None and self.marking == "answer":
            return global_tokens(marked, length), x
        slots = minimum(self.slots, length)
        many = ops.sum(ops.cast(marked, dtype="i64"), axis=1) > ops.size(value=slots)
        return global_tokens(marked, slots), ops.where(many[:, None, None], math.nan, x)


KINDS = {"SequenceClassification": "first", "QuestionAnswering": "question", "MultipleChoice": "answer"}


def _inputs(c: LongformerConfig) -> dict[str, str]:
    return {**nn.text_inputs(c.hidden_size), "global_attention_mask": "i64[batch seq]"}


def _heads(kind: str) -> dict[str, Head]:
    return nn.text_heads(
        "Longformer", partial(Longformer, kind=kind), "longformer", inputs=_inputs, words=roberta_words, classifier=nn.first_state_head
    )


CARD = Card(
    model_type="longformer",
    config=LongformerConfig,
    base="longformer",
    heads={name: _heads(KINDS.get(name.removeprefix("LongformerFor"), ""))[name] for name in _heads("")},
    names={
        **nn.TEXT_NAMES,
        **nn.ROBERTA_WORDS,
        "blocks.*.attention.layer.{q_global,k_global,v_global}": "encoder.layer.*.attention.self.{query_global,key_global,value_global}",
    },
    also={"lm_head.bias": ["lm_head.decoder.bias"]},
    unused=("*embeddings.position_ids",),
)
