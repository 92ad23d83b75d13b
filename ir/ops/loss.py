"""Losses: what a model is trained by."""

from __future__ import annotations

import numpy as np

from ..op import op
from ..signature import expects
from ..types import KINDS, Type
from .elementwise import absolute, cast, equal, exp, log, negative, not_, relu, where
from .index import gather
from .reduce import log_softmax, mean, sum
from .shape import expand_dims, squeeze


def cross_entropy(logits, labels, *, ignore=-100):
    """Mean of -log softmax(logits)[label] over labels other than `ignore`: logits [... classes], labels int[...]."""
    kept = not_(equal(labels, ignore))
    safe = where(kept, labels, 0)
    picked = squeeze(gather(log_softmax(logits), expand_dims(safe, -1), axis=logits.rank - 1), -1)
    axes = tuple(range(picked.rank))
    return negative(sum(where(kept, picked, 0.0), axis=axes)) / sum(cast(kept, dtype="f32"), axis=axes)


def binary_cross_entropy(logits, labels):
    """Mean of -(y log p + (1 - y) log(1 - p)) with p = sigmoid(logits)."""
    terms = relu(logits) - logits * labels + log(exp(negative(absolute(logits))) + 1.0)
    return mean(terms, axis=tuple(range(terms.rank)))


def mean_squared_error(x, y):
    """Mean of (x - y)^2."""
    return mean((x - y) * (x - y), axis=tuple(range(x.rank)))


def _ctc_rule(log_probs, labels, input_lengths, label_lengths, *, blank):
    fits = log_probs.rank == 3 and log_probs.dtype in KINDS["float"] and labels.rank == 2 and labels.dtype in KINDS["int"]
    expects(fits, f"log_probs is {log_probs} and labels {labels}, expected float[time batch classes] and int[batch length]")
    for name, x in {"input_lengths": input_lengths, "label_lengths": label_lengths}.items():
        expects(x.dtype in KINDS["int"] and x.shape == (log_probs.shape[1],), f"{name} is {x}, expected int[{log_probs.shape[1]}]")
    return Type(log_probs.dtype, (log_probs.shape[1],))


@op(_ctc_rule)
def ctc_loss(log_probs, labels, input_lengths, label_lengths, *, blank):
    """-log of the probability of each label row summed over alignments: log_probs [time batch classes], labels int[batch length],
    lengths int[batch] (https://www.cs.toronto.edu/~graves/icml_2006.pdf). Infinite where no alignment exists."""
    out = np.empty(log_probs.shape[1], log_probs.dtype)
    for b, (row, steps, length) in enumerate(zip(labels, input_lengths, label_lengths, strict=True)):
        path = np.full(2 * length + 1, blank)
        path[1::2] = row[:length]
        skip = np.zeros(len(path), bool)
        skip[2:] = (path[2:] != blank) & (path[2:] != path[:-2])
        alpha = np.full(len(path), -np.inf)
        alpha[:2] = log_probs[0, b, path[:2]]
        for t in range(1, steps):
            one = np.concatenate(([-np.inf], alpha[:-1]))
            two = np.where(skip, np.concatenate(([-np.inf, -np.inf], alpha[:-2]))[: len(path)], -np.inf)
            alpha = np.logaddexp(np.logaddexp(alpha, one), two) + log_probs[t, b, path]
        out[b] = -np.logaddexp.reduce(alpha[-2:])
    return out
