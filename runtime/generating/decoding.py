"""The loop of generation: steps of a decoder, and what each step hands on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .options import Options
from .scores import choose
from .stepper import State, Stepper

Stream = Callable[[np.ndarray], Any]


class Decoding:
    """One generation under way: how many tokens there are, which of them are padding, and keys and values on the device."""

    def __init__(self, decoder: Stepper, prompt: np.ndarray, mask: np.ndarray | None, options: Options):
        self.decoder, self.batch, self.length, self.greatest_only = decoder, len(prompt), 0, options.greatest_only
        self.mask = np.ones((len(prompt), prompt.shape[1] + options.max_new_tokens), np.int64)
        if mask is not None:
            self.mask[:, : prompt.shape[1]] = mask
        self.prefix = "decoder_" if "decoder_input_ids" in decoder.inputs else ""
        self.memory: dict[str, np.ndarray] = {}
        self.state: State = decoder.begin(len(prompt), self.mask.shape[1])

    def remember(self, state: State, mask: np.ndarray) -> None:
        """Takes an encoder's keys and values, and the mask of what it read."""
        self.state, self.memory = {**self.state, **state}, {"attention_mask": mask}

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Logits f32[rows words] after tokens [rows n]; where the greatest is all that counts, others may be minus infinity."""
        start, self.length = self.length, self.length + tokens.shape[1]
        mask = self.mask[:, : self.length]
        places = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, start:]
        own = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
        logits, new = self.decoder.run({**self.memory, **{self.prefix + k: x for k, x in own.items()}}, self.state, self.greatest_only)
        self.state = {**self.state, **new}
        return logits  # type: ignore[return-value]

    def select(self, rows: np.ndarray, everything: bool = False) -> None:
        """Puts rows in new places. What an encoder made is alike for all rows of a prompt, and stays unless `everything` is to be moved."""
        if np.array_equal(rows, np.arange(len(self.mask))):
            return
        names = self.state if everything else self.decoder.grown
        self.state = {**self.state, **self.decoder.select({k: self.state[k] for k in names}, rows)}
        self.mask = self.mask[rows]
        if everything:
            self.memory = {k: x[rows] for k, x in self.memory.items()}

    def after(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits after one token for each of the rows in new places."""
        self.select(rows)
        return self.step(tokens[:, None])


def rows_alone(prompt: np.ndarray, logits: np.ndarray, run: Decoding, options: Options, stream: Stream | None) -> np.ndarray:
    """Rows that each go their own way, until all have ended."""
    start = prompt.shape[1]
    tokens = np.concatenate([prompt, np.zeros((len(prompt), options.max_new_tokens), np.int64)], 1)
    generator, going = np.random.default_rng(options.seed), np.ones(len(prompt), bool)
    for new in range(options.max_new_tokens):
        if new:
            logits = run.step(tokens[:, start + new - 1 : start + new])
        chosen = choose(logits, tokens[:, : start + new], new, options, generator)
        tokens[:, start + new] = np.where(going, chosen, options.pad or 0) if options.ends else chosen
        if stream is not None:
            stream(tokens[:, start + new].copy())
        going &= ~np.isin(chosen, options.ends)
        if not going.any():
            return tokens[:, : start + new + 1]
    return tokens


class Pieces:
    """Hands on what each token adds to the text; characters of several tokens when they are whole."""

    def __init__(self, decode: Callable[[list[int]], str], write: Callable[[str], Any]):
        self.decode, self.write, self.said = decode, write, ""
        self.ids: list[int] = []

    def __call__(self, tokens: np.ndarray) -> None:
        self.ids.append(int(tokens[0]))
        if not (text := self.decode(self.ids)).endswith("\ufffd"):
            self.end(text)

    def end(self, text: str) -> None:
        if text.startswith(self.said) and text != self.said:
            self.write(text[len(self.said) :])
            self.said = text
