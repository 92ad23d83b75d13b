"""One vector for each sequence: the pooling and normalisation that a sentence-transformers checkpoint asks for."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ops
from ..graph import Value
from ..layer import Layer
from .heads import Outputs, pick

LEAST = 1e-9  # what the reference holds a count of words to at least


def _words(x: Value, mask: Value | None) -> tuple[Value, Value]:
    """[batch seq 1] of ones where there is a word, and how many [batch 1]."""
    live = ops.broadcast_to(ops.literal(value=[[[1.0]]]), shape=(*x.shape[:2], 1)) if mask is None else ops.cast(mask > 0, dtype="f32")[:, :, None]
    return live, ops.maximum(ops.sum(live, axis=1), LEAST)


def _mean(x: Value, mask: Value | None) -> Value:
    live, count = _words(x, mask)
    return ops.sum(x * live, axis=1) / count


def _scaled_sum(x: Value, mask: Value | None) -> Value:
    live, count = _words(x, mask)
    return ops.sum(x * live, axis=1) / ops.sqrt(count)


def _max(x: Value, mask: Value | None) -> Value:
    live, _ = _words(x, mask)
    return ops.max(ops.where(live > 0.0, x, -1e9), axis=1)


def _weighted(x: Value, mask: Value | None) -> Value:
    live, _ = _words(x, mask)
    weight = live * (ops.cast(ops.iota(size=x.shape[1]), dtype="f32") + 1.0)[None, :, None]
    return ops.sum(x * weight, axis=1) / ops.maximum(ops.sum(weight, axis=1), LEAST)


def _last(x: Value, mask: Value | None) -> Value:
    if mask is None:
        return x[:, -1]
    return pick(x, ops.max(ops.where(mask > 0, ops.iota(size=x.shape[1]), 0), axis=1))


# The fields of a Pooling module's configuration that choose how words become one vector.
POOLING = {
    "pooling_mode_cls_token": lambda x, mask: x[:, 0],
    "pooling_mode_max_tokens": _max,
    "pooling_mode_mean_tokens": _mean,
    "pooling_mode_mean_sqrt_len_tokens": _scaled_sum,
    "pooling_mode_weightedmean_tokens": _weighted,
    "pooling_mode_lasttoken": _last,
}


class SentenceEmbedding(Layer):
    """A body whose last states are pooled into `sentence_embedding`, by the modes named, joined, and perhaps of length 1."""

    def __init__(self, body: Layer, modes: Sequence[str], normalize: bool):
        self.body, self.modes, self.normalize = body, list(modes), normalize

    def forward(self, attention_mask: Value | None = None, **inputs: Value | None) -> Outputs:
        """-> the body's outputs and sentence_embedding [batch n]."""
        out = self.body(attention_mask=attention_mask, **inputs)
        vectors = [POOLING[mode](out["last_hidden_state"], attention_mask) for mode in self.modes]
        vector = vectors[0] if len(vectors) == 1 else ops.concat(*vectors, axis=1)
        return {**out, "sentence_embedding": ops.l2_normalize(vector, eps=1e-12) if self.normalize else vector}
