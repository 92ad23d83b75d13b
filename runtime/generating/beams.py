"""Beam search, as the reference does it: which rows go on, which ended ones are kept, and when none can get better."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .options import Options
from .scores import constrained, log_softmax

NEVER = -1e9  # the reference's score of what must not be chosen
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Beams:
    """`beams` rows for each of `batch` prompts [batch prompt]: those that run and the best that have ended, with their scores."""

    def __init__(self, prompt: np.ndarray, options: Options):
        batch, beams = len(prompt), options.num_beams
        self.options, self.prompt, self.length = options, prompt.shape[1], prompt.shape[1]
        fill = (options.pad or options.ends[0]) if options.ends else -1
        self.running = np.full((batch, beams, self.length + options.max_new_tokens), fill, np.int64)
        self.running[:, :, : self.length] = prompt[:, None]
        self.scores = np.where(np.arange(beams) > 0, NEVER, np.zeros((batch, 1)))  # at first all rows are alike: one runs
        self.ended, self.ended_scores = self.running.copy(), np.full((batch, beams), NEVER)
        self.new = np.zeros((batch, beams), np.int64)  # how many tokens each ended row has
        self.finished = np.zeros((batch, beams), bool)
        self.open = np.ones((batch, 1), bool)  # whether a prompt's ended rows may still get better

    def advance(self, logits: np.ndarray) -> np.ndarray | None:
        """Takes the logits [batch*beams words] of the running rows; gives the rows that go on, by their old places, None where all is done."""
        batch, beams, _ = self.running.shape
        tokens = self.running[:, :, : self.length].reshape(batch * beams, -1)
        likely = constrained(log_softmax(logits.astype(np.float64)), tokens, self.length - self.prompt, self.options)
        words = likely.shape[1]
        total = (likely.reshape(batch, beams, words) + self.scores[..., None]).reshape(batch, beams * words)
        found = _greatest(total, max(2, 1 + len(self.options.ends)) * beams)
        scores, parents = np.take_along_axis(total, found, 1), found // words
        rows = np.take_along_axis(self.running, parents[..., None], 1)
        rows[:, :, self.length] = found % words
        stops = np.isin(found % words, self.options.ends) | (self.length + 1 == self.running.shape[2])
        next = _greatest(scores + stops * NEVER, beams)
        self.running = np.take_along_axis(rows, next[..., None], 1)
        self.scores = np.take_along_axis(scores + stops * NEVER, next, 1)
        self._keep(rows, scores, stops)
        self.length += 1
        self._close()
        done = not self.open.any() or (self.finished.all() and self.options.early_stopping is True) or stops.all()
        return None if done else (np.take_along_axis(parents, next, 1) + np.arange(batch)[:, None] * beams).reshape(-1)

    def _keep(self, rows: np.ndarray, scores: np.ndarray, stops: np.ndarray) -> None:
        """The best of the ended rows and those that ended now among the best candidates."""
        beams = self.scores.shape[1]
        stops = stops & (np.arange(stops.shape[1]) < beams)
        scores = scores / (self.length + 1 - self.prompt) ** self.options.length_penalty
        full = self.finished.all(-1, keepdims=True) & (self.options.early_stopping is True)
        scores = scores + NEVER * full + NEVER * ~self.open + NEVER * ~stops
        scores, new = np.concatenate([self.ended_scores, scores], 1), np.full(stops.shape, self.length + 1 - self.prompt)
        best = _greatest(scores, beams)
        self.ended_scores = np.take_along_axis(scores, best, 1)
        self.ended = np.take_along_axis(np.concatenate([self.ended, rows], 1), best[..., None], 1)
        self.new = np.take_along_axis(np.concatenate([self.new, new], 1), best, 1)
        self.finished = np.take_along_axis(np.concatenate([self.finished, stops], 1), best, 1)

    def _close(self) -> None:
        """Prompts whose best running row cannot beat the worst ended one, by the length that `early_stopping` assumes, are done."""
        penalty, whole = self.options.length_penalty, self.options.early_stopping == "never"
        length = self.options.max_new_tokens if whole and penalty > 0 else self.length - self.prompt
        worst = np.where(self.finished, self.ended_scores.min(1, keepdims=True), NEVER)
        self.open &= (self.scores[:, :1] / length**penalty > worst).any(-1, keepdims=True)

    def best(self) -> np.ndarray:
        """i64[batch prompt+new]: the best row of each prompt, filled up to the longest."""
        return self.ended[:, 0, : self.prompt + self.new[:, 0].max()]


def _greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` greatest of each row, the greatest first."""
    count = min(count, scores.shape[1])
    some = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.lexsort((some, -np.take_along_axis(scores, some, 1)), axis=1)
    return np.take_along_axis(some, order, 1)


def search(prompt: np.ndarray, logits: np.ndarray, step: Step, options: Options) -> np.ndarray:
    """The best rows for prompts [batch prompt] whose next logits are [batch words]; `step(tokens, rows)` gives those of rows in new places."""
    beams = Beams(prompt, options)
    logits = np.repeat(logits, options.num_beams, 0)
    while (rows := beams.advance(logits)) is not None:
        logits = step(beams.running[:, :, beams.length - 1].reshape(-1), rows)
    return beams.best()
