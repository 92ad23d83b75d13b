"""What becomes of a step's scores before a token is chosen, and the choice; formulas and their order are the reference's."""

from __future__ import annotations

import numpy as np

from .options import Options

Generator = np.random.Generator


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    made = np.exp(scores - scores.max(-1, keepdims=True))
    return made / made.sum(-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities along the last axis."""
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def constrained(scores: np.ndarray, tokens: np.ndarray, new: int, options: Options) -> np.ndarray:
    """Scores [rows words] after the repetition penalty for what is in `tokens` [rows seen], and without ends while too few tokens are new."""
    penalty = options.repetition_penalty
    if penalty != 1:
        seen = np.take_along_axis(scores, tokens, 1)
        scores = scores.copy()
        np.put_along_axis(scores, tokens, np.where(seen < 0, seen * penalty, seen / penalty), 1)
    if new < options.min_new_tokens and options.ends:
        scores = scores.copy()
        scores[:, [end for end in options.ends if end < scores.shape[1]]] = -np.inf
    return scores


def warped(scores: np.ndarray, options: Options) -> np.ndarray:
    """Scores [rows words] after temperature, top_k and top_p: what is not to be drawn is minus infinity."""
    if options.temperature != 1:
        scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[1]:
        least = np.partition(scores, -options.top_k, axis=-1)[:, -options.top_k, None]
        scores = np.where(scores < least, -np.inf, scores)
    if options.top_p < 1:
        order = np.argsort(scores, axis=-1, kind="stable")
        below = np.cumsum(softmax(np.take_along_axis(scores, order, -1)), axis=-1) <= 1 - options.top_p
        below[:, -1] = False  # one is always left
        removed = np.empty_like(below)
        np.put_along_axis(removed, order, below, -1)
        scores = np.where(removed, -np.inf, scores)
    return scores


def draw(scores: np.ndarray, generator: Generator) -> np.ndarray:
    """A token for each row of scores [rows words], one random number for each, so that rows do not depend on one another's.

    Words stay in the order of their ids: sorted by probability, two that rounding makes change places would change the token.
    """
    steps = np.cumsum(softmax(scores), axis=-1)
    wanted = generator.random(len(scores)) * steps[:, -1]
    tokens = [np.searchsorted(row, x, side="right") for row, x in zip(steps, wanted, strict=True)]
    return np.minimum(tokens, scores.shape[1] - 1).astype(np.int64)


def choose(logits: np.ndarray, tokens: np.ndarray, new: int, options: Options, generator: Generator) -> np.ndarray:
    """The next token of each row, the likeliest or a drawn one: in float64 where it is drawn, so that targets differ as little as can be."""
    if not options.do_sample:
        return constrained(logits, tokens, new, options).argmax(-1)
    return draw(warped(constrained(logits.astype(np.float64), tokens, new, options), options), generator)
