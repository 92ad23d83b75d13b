"""What becomes of a step's scores before a token is chosen, and the choice; formulas and their order are the reference's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
    """Scores [rows words] of what may follow `tokens` [rows seen], the last `new` of which are not of the prompt.

    What is in a row already is made less likely, what must not follow is minus infinity, and what must follow is all that is left.
    """
    scores = _without(_penalised(scores, tokens, options), _refused(tokens, new, options))
    if (wanted := _forced(tokens, new, options)) is not None:
        scores = np.full_like(scores, -np.inf)
        scores[:, wanted] = 0
    return _without(scores, _suppressed(tokens, new, options))


def _penalised(scores: np.ndarray, tokens: np.ndarray, options: Options) -> np.ndarray:
    if (penalty := options.repetition_penalty) == 1:
        return scores
    seen, scores = np.take_along_axis(scores, tokens, 1), scores.copy()
    np.put_along_axis(scores, tokens, np.where(seen < 0, seen * penalty, seen / penalty), 1)
    return scores


def _without(scores: np.ndarray, refused: Iterable[tuple[int | slice, Sequence[int]]]) -> np.ndarray:
    """Scores that are minus infinity for words, by row or for all rows; of ids that no word has there is nothing to refuse."""
    copied = False
    for rows, words in refused:
        scores, copied = scores if copied else scores.copy(), True
        scores[rows, [word for word in words if word < scores.shape[1]]] = -np.inf
    return scores


def _refused(tokens: np.ndarray, new: int, options: Options) -> Iterator[tuple[int | slice, Sequence[int]]]:
    """Words that would repeat what a row has, that finish what must not be written, or that end a row too early."""
    length = tokens.shape[1]
    if 0 < (n := options.no_repeat_ngram_size) <= length:
        pieces = sliding_window_view(tokens, n, axis=1)
        again = (pieces[:, :, : n - 1] == tokens[:, None, length + 1 - n :]).all(-1)
        yield from ((row, pieces[row, again[row], -1].tolist()) for row in np.flatnonzero(again.any(1)).tolist())
    for *start, word in options.bad_words_ids:
        if start or word not in options.ends:
            after = (tokens[:, length - len(start) :] == start).all(1) if len(start) <= length else np.zeros(len(tokens), bool)
            yield from ((row, [word]) for row in np.flatnonzero(after).tolist())
    if new < options.min_new_tokens or (not options.min_new_tokens and length < options.min_length):
        yield slice(None), options.ends


def _forced(tokens: np.ndarray, new: int, options: Options) -> int | list[int] | None:
    """What comes next, whatever the scores: at the first place of all, and at the last."""
    if options.forced_eos_token_id is not None and new == options.max_new_tokens - 1:
        return options.forced_eos_token_id
    return options.forced_bos_token_id if tokens.shape[1] == 1 else None


def _suppressed(tokens: np.ndarray, new: int, options: Options) -> Iterator[tuple[int | slice, Sequence[int]]]:
    """Words that are never to be written, and those that are not to be the first (after one that is forced)."""
    if options.suppress_tokens:
        yield slice(None), options.suppress_tokens
    forced = tokens.shape[1] - new == 1 and options.forced_bos_token_id is not None
    if options.begin_suppress_tokens and new == int(forced):
        yield slice(None), options.begin_suppress_tokens


def warped(scores: np.ndarray, options: Options) -> np.ndarray:
    """Scores [rows words] after temperature and the filters: what is not to be drawn is minus infinity."""
    if options.temperature != 1:
        scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[1]:
        least = np.partition(scores, -options.top_k, axis=-1)[:, -options.top_k, None]
        scores = np.where(scores < least, -np.inf, scores)
    if options.top_p < 1:
        scores = _nucleus(scores, options.top_p)
    if options.min_p is not None:
        likely = softmax(scores)
        scores = _above(scores, options.min_p * likely.max(-1, keepdims=True), likely)
    if options.typical_p < 1:
        scores = _typical(scores, options.typical_p)
    if 0 < options.epsilon_cutoff < 1:
        scores = _above(scores, options.epsilon_cutoff, softmax(scores))
    if 0 < (eta := options.eta_cutoff) < 1:
        scores = _above(scores, np.minimum(eta, np.sqrt(eta) * np.exp(-_entropy(scores))), softmax(scores))
    return scores


def _nucleus(scores: np.ndarray, mass: float) -> np.ndarray:
    """Scores of the likeliest words that together have that probability (https://arxiv.org/abs/1904.09751)."""
    order = np.argsort(scores, axis=-1, kind="stable")
    below = np.cumsum(softmax(np.take_along_axis(scores, order, -1)), axis=-1) <= 1 - mass
    below[:, -1] = False  # one is always left
    removed = np.empty_like(below)
    np.put_along_axis(removed, order, below, -1)
    return np.where(removed, -np.inf, scores)


def _above(scores: np.ndarray, least: np.ndarray | float, likely: np.ndarray) -> np.ndarray:
    """Scores of the words that are as likely as that, and of the likeliest."""
    return np.where((likely < least) & (scores < scores.max(-1, keepdims=True)), -np.inf, scores)


def _entropy(scores: np.ndarray) -> np.ndarray:
    logs = log_softmax(scores)
    return -(np.exp(logs) * np.where(np.isfinite(logs), logs, 0)).sum(-1, keepdims=True)


def _typical(scores: np.ndarray, mass: float) -> np.ndarray:
    """Scores of the words whose surprise is nearest to the entropy, which together have that probability (https://arxiv.org/abs/2202.00666)."""
    apart = np.abs(-log_softmax(scores) - _entropy(scores))
    order = np.argsort(apart, axis=-1, kind="stable")
    reached = (np.cumsum(softmax(np.take_along_axis(scores, order, -1)), axis=-1) < mass).sum(-1, keepdims=True)
    last = np.take_along_axis(order, np.minimum(reached, scores.shape[1] - 1), -1)
    return np.where(apart > np.take_along_axis(apart, last, -1), -np.inf, scores)


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
