"""What an answer is made from: one sample as it came, its inputs, and what the model made of them; and the arithmetic that answers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.errors import InputError, UsageError
from .files import Inputs

if TYPE_CHECKING:
    from .processor import Processor
    from .text import TextProcessor

Row = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Results:
    """One sample's run of a model.

    `config` is the model's config.json, `inputs` what the processor made of `sample`. The sample may have had several rows (a long text, one for each
    label): `given` and `made` have the arrays that went in and came out for each, without the batch axis and without padding.
    """

    config: Mapping[str, Any]
    inputs: Inputs
    given: Sequence[Arrays]
    made: Sequence[Arrays]
    processor: Processor | None = None
    sample: Mapping[str, Any] = field(default_factory=dict)

    def output(self, name: str, rank: int, row: int = 0) -> np.ndarray:
        """An output of one row as float64; UsageError where the model gave none of that name, or one of another rank (counted without the batch)."""
        if name not in self.made[row]:
            raise UsageError(f"this answer needs the output {name!r}; the model gave {', '.join(sorted(self.made[row])) or 'none'}")
        array = np.asarray(self.made[row][name])
        if array.ndim != rank:
            raise UsageError(f"output {name} has the shape {list(array.shape)} for each sample, expected {rank} axes")
        return array.astype(np.float64)

    def first(self, *names: str) -> str:
        """The first of some outputs that the model gave, else the first of the names."""
        return next((name for name in names if name in self.made[0]), names[0])

    @property
    def text(self) -> TextProcessor:
        """The tokenizer; UsageError where the run had no processor."""
        if self.processor is None:
            raise UsageError("this answer needs the tokenizer of the checkpoint: pass processor=processor_for(folder, config)")
        return self.processor.text

    def encoding(self, row: int) -> Any:
        """The tokens of a row with their places in the text."""
        if not self.inputs.encodings:
            raise InputError("this answer points into the text: pass the inputs as Processor.inputs(text=...) returns them, not a plain dict")
        return self.inputs.encodings[row]

    def label(self, number: int) -> str:
        """The name of a class; `id2label` of a config.json has its numbers as text."""
        names = self.config.get("id2label") or {}
        return names.get(str(number)) or names.get(number) or f"LABEL_{number}"

    @property
    def seconds_per_frame(self) -> float:
        """The time from one frame of a speech model to the next."""
        if self.processor is None:
            raise UsageError("this answer needs the sampling rate of the checkpoint: pass processor=processor_for(folder, config)")
        return float(np.prod(self.config.get("conv_stride", (1,)))) / self.processor.audio.sampling_rate


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probability of each logit by itself."""
    return softmax(np.stack([np.zeros_like(logits), logits], axis=-1))[..., 1]


def best(scores: np.ndarray, count: int | None) -> np.ndarray:
    """The indexes of the highest of some scores [n], best first; of equals the first; all where `count` is None."""
    return np.argsort(-scores, kind="stable")[:count]


def cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The cosine [rows columns] of each row of `vectors` [rows n] with each of `others` [columns n]; a row of zeros has cosine 0 with all."""
    one, two = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny) for x in (vectors, others))
    return one @ two.T
