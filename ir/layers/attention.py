"""Multi-head attention and the blocks made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import ops
from ..graph import Value, current
from ..layer import Layer, collect, collecting
from .basic import Affine, Dropout, Linear


def key_mask(attention_mask: Value | None) -> Value | None:
    """bool[batch 1 1 keys] of an i64[batch keys] mask whose ones are to be seen."""
    return None if attention_mask is None else (attention_mask > 0)[:, None, None, :]


def heads_first(x: Value, heads: int) -> Value:
    """[batch seq n] -> [batch heads seq n/heads]."""
    return ops.rearrange(x, "batch seq (heads head) -> batch heads seq head", heads=heads)


def heads_last(x: Value) -> Value:
    """[batch heads seq head] -> [batch seq heads*head]."""
    return ops.rearrange(x, "batch heads seq head -> batch seq (heads head)")


def attend(
    q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None, *, scale: float, causal: bool = False, dropout: float = 0, kind="attentions"
) -> Value:
    """Attention whose weights are an output on demand, with dropout on them while training."""
    graph = current()
    collect(kind, ops.attention_weights(q, k, mask, bias, scale=scale, causal=causal))
    if not (graph.training and dropout):
        return ops.attention(q, k, v, mask, bias, scale=scale, causal=causal)
    key, site = graph.random_key(), graph.random_site()
    return ops.attention(q, k, v, mask, bias, None, key, scale=scale, causal=causal, dropout=dropout, site=site)


class Attention(Layer):
    """Queries from x; keys and values from x, or from another sequence, `memory`.

    `inner` is the width of all heads together. A causal one joins its keys and values with those of earlier calls (`cache`).
    """

    def __init__(
        self,
        n: int,
        heads: int,
        *,
        inner: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        scale: float | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        out_dropout: float = 0.0,
    ):
        inner = inner or n
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.scale = (inner // heads) ** -0.5 if scale is None else scale
        self.q = Linear(n, inner, bias)
        self.k = Linear(n, inner, bias)
        self.v = Linear(n, inner, bias)
        self.out = Linear(inner, n, bias if out_bias is None else out_bias)
        self.out_dropout = Dropout(out_dropout)

    def query(self, x: Value) -> Value:
        """[batch heads seq head]."""
        return heads_first(self.q(x), self.heads)

    def keys_and_values(self, x: Value) -> tuple[Value, Value]:
        """Two of [batch heads seq head]."""
        return heads_first(self.k(x), self.heads), heads_first(self.v(x), self.heads)

    def project(self, x: Value) -> tuple[Value, Value, Value]:
        """Queries, keys and values of one sequence."""
        return self.query(x), *self.keys_and_values(x)

    def scores(self, q: Value, k: Value) -> Value | None:
        """What is added to the scaled scores because of where queries and keys stand; nothing here."""
        return None

    def mix(self, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None, kind: str) -> Value:
        """The values that each query sees, weighted: [batch heads rows head]."""
        return attend(q, k, v, mask, bias, scale=self.scale, causal=self.causal, dropout=self.dropout, kind=kind)

    def forward(self, x: Value, mask: Value | None = None, bias: Value | None = None, memory: Value | None = None) -> Value:
        """x [batch seq n], mask bool[batch|1 1 rows|1 keys], bias [batch|1 heads rows keys], memory [batch keys n] -> [batch seq n]."""
        if memory is None:
            q, k, v = self.project(x)
            k, v = current().cache.extend(k, v) if self.causal else (k, v)
        else:
            q = self.query(x)
            k, v = current().cache.once(lambda: self.keys_and_values(memory))
        own = self.scores(q, k)
        bias = own if bias is None else bias if own is None else bias + own
        kind = "attentions" if memory is None else "cross_attentions"
        return self.out_dropout(self.out(heads_last(self.mix(q, k, v, mask, bias, kind))))


class FusedAttention(Attention):
    """Attention whose projections are stored as one [in 3*out] matrix, or as q and one [in 2*out] where there is a memory."""

    def __init__(self, n: int, heads: int, *, cross: bool = False, **options: Any):
        super().__init__(n, heads, **options)
        del self.q, self.k, self.v
        if cross:
            self.q, self.kv = Affine(n, n), Affine(n, 2 * n)
        else:
            self.qkv = Affine(n, 3 * n)
        self.out = Affine(n, n)

    def keys_and_values(self, x: Value) -> tuple[Value, Value]:
        """Two of [batch heads seq head]."""
        return tuple(heads_first(y, self.heads) for y in _parts(self.kv(x), 2))  # type: ignore[return-value]

    def project(self, x: Value) -> tuple[Value, Value, Value]:
        """Queries, keys and values of one sequence."""
        return tuple(heads_first(y, self.heads) for y in _parts(self.qkv(x), 3))  # type: ignore[return-value]


def _parts(x: Value, count: int) -> tuple[Value, ...]:
    width = x.shape[-1] // count
    return ops.split(x, axis=x.rank - 1, sizes=(width,) * count)


class PreNorm(Layer):
    """x + layer(norm(x))."""

    def __init__(self, layer: Layer, norm: Layer):
        self.layer, self.norm = layer, norm

    def forward(self, x: Value, *context: Any) -> Value:
        """x with what the layer makes of its normalised self added."""
        return x + self.layer(self.norm(x), *context)


class PostNorm(Layer):
    """norm(x + layer(x))."""

    def __init__(self, layer: Layer, norm: Layer):
        self.layer, self.norm = layer, norm

    def forward(self, x: Value, *context: Any) -> Value:
        """The normalised sum of x and what the layer makes of it."""
        return self.norm(x + self.layer(x, *context))


class Block(Layer):
    """Attention, attention to a memory where there is one, and a feed-forward part, each in a `kind` (PreNorm or PostNorm) with a norm of its own."""

    def __init__(self, kind: Any, norm: Callable[[], Layer], attention: Layer, mlp: Layer, cross: Layer | None = None):
        self.attention, self.mlp = kind(attention, norm()), kind(mlp, norm())
        self.cross = None if cross is None else kind(cross, norm())

    def forward(self, x: Value, mask: Any = None, bias: Any = None, memory: Any = None, memory_mask: Any = None) -> Value:
        """x [batch seq n], mask and bias as `Attention`'s, memory [batch keys m] and its mask -> [batch seq n]."""
        x = self.attention(x, mask, bias)
        if self.cross is not None and memory is not None:
            x = self.cross(x, memory_mask, None, memory)
        return self.mlp(x)


def run_blocks(blocks: Sequence[Layer], x: Value, *context: Any) -> tuple[Value, list[Value]]:
    """The last state and all of them, the first being x."""
    states = [x]
    for block in blocks:
        states.append(block(states[-1], *context))
    return states[-1], states


def encode(blocks: Sequence[Layer], x: Value, *context: Any, norm: Callable[[Value], Value] | None = None) -> tuple[Value, dict[str, Any]]:
    """The last state of a row of blocks, normalised by `norm`; on demand all states, the first being x, and what the blocks collect."""
    with collecting() as seen:
        x, states = run_blocks(blocks, x, *context)
    x = x if norm is None else norm(x)
    return x, {"hidden_states": [*states[:-1], x], **seen}
