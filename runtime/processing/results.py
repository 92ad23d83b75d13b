"""What a readable answer is made from, and the arithmetic that all answers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.errors import InputError, UsageError
from .files import Inputs

if TYPE_CHECKING:
    from tokenizers import Encoding

    from .processor import Processor
    from .text import TextProcessor

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """One run of a model: its config.json, the inputs, the outputs by the reference's names, and the processor that made the inputs."""

    config: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    processor: Processor | None
    top_k: int

    def output(self, name: str, rank: int) -> np.ndarray:
        """An output as float64; UsageError where the model gave none of that name or rank."""
        if name not in self.outputs:
            raise UsageError(f"this answer needs the output {name!r}; the model gave {', '.join(sorted(self.outputs)) or 'none'}")
        array = np.asarray(self.outputs[name])
        if array.ndim != rank:
            raise UsageError(f"output {name} has the shape {list(array.shape)}, expected {rank} axes")
        return array.astype(np.float64)

    @property
    def text(self) -> TextProcessor:
        """The tokenizer; UsageError where the run had no processor."""
        if self.processor is None:
            raise UsageError("this answer needs the tokenizer of the checkpoint: pass processor=processor_for(folder, config)")
        return self.processor.text

    @property
    def texts(self) -> list[tuple[str, str | None]]:
        """(text, pair) of each sample, as far as the inputs still know them."""
        return self.inputs.texts if isinstance(self.inputs, Inputs) else []

    def label(self, number: int) -> str:
        """The name of a class; `id2label` of a config.json has its numbers as text."""
        names = self.config.get("id2label") or {}
        return names.get(str(number)) or names.get(number) or f"LABEL_{number}"

    def tokens(self) -> Iterator[tuple[int, int, Encoding, np.ndarray]]:
        """(row, sample, encoding, position of each of its tokens in the row) for each row of the text inputs."""
        if not isinstance(self.inputs, Inputs) or not self.inputs.encodings:
            raise InputError("this answer points into the text: pass the inputs as Processor.inputs(text=...) returns them, not a plain dict")
        mask = self.inputs["attention_mask"].reshape(-1, self.inputs["attention_mask"].shape[-1])
        for row, (sample, encoding) in enumerate(zip(self.inputs.samples, self.inputs.encodings, strict=True)):
            yield row, sample, encoding, np.flatnonzero(mask[row])

    def live(self, row: int, length: int) -> np.ndarray:
        """The positions of a row of `length` tokens or frames that are not padding."""
        mask = self.inputs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return np.arange(length)
        if "input_values" in self.inputs:
            return np.arange(min(self.frames(int(mask[row].sum())), length))
        return np.flatnonzero(mask[row]) if mask.shape[1] == length else np.arange(length)

    def frames(self, samples: int) -> int:
        """The number of frames that the convolutions of a speech model make of a number of samples."""
        for kernel, stride in zip(self.config.get("conv_kernel", ()), self.config.get("conv_stride", ()), strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

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


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """The indexes of the highest of some scores [n], best first; of equals the first."""
    return np.argsort(-scores, kind="stable")[:count]


def cosines(vectors: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows [rows n]; a row of zeros has cosine 0 with all."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms == 0, 1, norms)
    return unit @ unit.T
