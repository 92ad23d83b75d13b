"""The loop of generation: steps of a decoder, and what each step hands on."""

from __future__ import annotations

import copy
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

    def step(self, tokens: np.ndarray, last: int = 1) -> np.ndarray:
        """Logits f32[rows last words] after the last of tokens [rows n]; where the greatest is all that counts, others may be minus infinity."""
        start, self.length = self.length, self.length + tokens.shape[1]
        mask = self.mask[:, : self.length]
        places = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, start:]
        own = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
        logits, new = self.decoder.run({**self.memory, **{self.prefix + k: x for k, x in own.items()}}, self.state, self.greatest_only, last)
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

    def back(self, length: int) -> None:
        """Forgets all tokens but the first ones."""
        if length < self.length:
            own = {k: self.state[k] for k in self.decoder.grown}
            self.state, self.length = {**self.state, **self.decoder.shorten(own, self.length - length)}, length

    def after(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits f32[rows words] after one token for each of the rows in new places."""
        self.select(rows)
        return self.step(tokens[:, None])[:, 0]


class Draft:
    """A smaller model's guess at the next tokens, which the larger one reads all at once.

    It draws with the random numbers that the larger one will draw with, so that two models which agree draw the same tokens.
    """

    def __init__(self, run: Decoding, options: Options):
        self.run, self.options = run, options

    def after(self, tokens: np.ndarray, new: int, generator: np.random.Generator) -> np.ndarray:
        """Guesses i64[rows n] at what follows tokens [rows seen], the last `new` of which are new; one token is left to the larger model."""
        self.run.back(tokens.shape[1] - 1)
        made, generator = tokens, copy.deepcopy(generator)
        for at in range(new, min(new + self.options.num_assistant_tokens, self.options.max_new_tokens - 1)):
            logits = self.run.step(made[:, self.run.length :])[:, 0]
            made = np.concatenate([made, choose(logits, made, at, self.options, generator)[:, None]], 1)
        return made[:, tokens.shape[1] :]


def rows_alone(
    prompt: np.ndarray, logits: np.ndarray, run: Decoding, options: Options, stream: Stream | None = None, draft: Draft | None = None
) -> np.ndarray:
    """Rows that each go their own way, until all have ended; `logits` f32[rows 1 words] are those after the prompt.

    Guesses of a draft are read together; tokens are chosen from the logits after each, up to the first that is not what was guessed.
    """
    start, new = prompt.shape[1], 0
    tokens = np.concatenate([prompt, np.zeros((len(prompt), options.max_new_tokens), np.int64)], 1)
    generator, going = np.random.default_rng(options.seed), np.ones(len(prompt), bool)
    guessed = none = tokens[:, :0]
    while True:
        for at in range(logits.shape[1]):
            chosen = choose(logits[:, at], tokens[:, : start + new], new, options, generator)
            chosen = np.where(going, chosen, options.pad or 0) if options.ends else chosen
            tokens[:, start + new], new = chosen, new + 1
            if stream is not None:
                stream(chosen.copy())
            going &= ~np.isin(chosen, options.ends)
            if new == options.max_new_tokens or not going.any():
                return tokens[:, : start + new]
            if at < guessed.shape[1] and (guessed[going, at] != chosen[going]).any():
                break
        seen = tokens[:, : start + new]
        guessed = draft.after(seen, new, generator) if draft else none
        run.back(start + new - 1)
        logits = run.step(np.concatenate([seen[:, -1:], guessed], 1), 1 + guessed.shape[1])


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
