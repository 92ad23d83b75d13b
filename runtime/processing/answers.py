"""From a model's outputs to an answer that a person can read, for each kind of head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.errors import UsageError, nearest
from . import media_answers as media
from . import text_answers as texts
from .results import Results, Row

if TYPE_CHECKING:
    from .processor import Processor

# By slug; a class of the reference is found by how its name ends, a pipeline's task by the other names, spelt in lower case without punctuation.
HEADS: dict[str, tuple[tuple[str, ...], Callable[[Results], list[Row]]]] = {
    "classification": (("sequenceclassification", "imageclassification", "textclassification", "audioclassification"), media.classification),
    "token-classification": (("ner",), texts.token_classification),
    "question-answering": ((), texts.question_answering),
    "masked-lm": (("fillmask",), texts.masked_lm),
    "causal-lm": (("lmheadmodel", "lmhead", "textgeneration"), texts.language_model),
    "conditional-generation": (("text2textgeneration", "seq2seqlm"), texts.language_model),
    "next-sentence-prediction": ((), texts.next_sentence),
    "multiple-choice": ((), texts.multiple_choice),
    "double-heads": (("doubleheadsmodel",), texts.double_heads),
    "ctc": (("automaticspeechrecognition",), media.transcription),
    "audio-frame-classification": ((), media.frame_classification),
    "xvector": ((), media.speaker_embedding),
    "zero-shot-image-classification": (("clipmodel",), media.zero_shot),
    "masked-image-modeling": ((), media.masked_image),
    "pretraining": ((), lambda run: (texts.pretraining if "seq_relationship_logits" in run.outputs else media.features)(run)),
    "features": (("model", "withprojection", "backbone", "featureextraction", "sentencesimilarity"), media.features),
}
LONGEST_CELL = 60


@dataclass(frozen=True)
class Answer:
    """A readable answer: `rows` are records of one kind ("input" counts the inputs, scores are probabilities), `str()` is a table of them."""

    task: str
    rows: list[Row]

    def __str__(self) -> str:
        if not self.rows:
            return "(nothing found)"
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        if all(row.get("input", 0) == 0 for row in self.rows):
            columns = [column for column in columns if column != "input"]
        longest = None if len(set(columns) - {"input"}) == 1 else LONGEST_CELL  # a transcript is all there is: it is not cut
        table = [columns, *([_cell(row.get(column, ""), longest) for column in columns] for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
        right = [isinstance(next((row[c] for row in self.rows if c in row), ""), (int, float)) for c in columns]
        return "\n".join(_line(line, widths, right) for line in table)


def answer(
    head_or_task: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    processor: Processor | None = None,
    top_k: int = 5,
) -> Answer:
    """The readable answer of one run of a model.

    `head_or_task` is the reference's class name ("BertForMaskedLM"), a head's slug ("masked-lm") or a pipeline task ("fill-mask"); `config` is the
    model's config.json; `inputs` are best those of `Processor.inputs`, which still know the text; `outputs` go by the reference's names. A class
    whose head has no readable form of its own is summarised as features. Raises UsageError for an unknown task, a missing output or processor.
    """
    if top_k < 1:
        raise UsageError(f"top_k={top_k}, expected at least 1")
    task = _task(head_or_task)
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    return Answer(task, HEADS[task][1](Results(config, inputs, arrays, processor, top_k)))


def _task(name: str) -> str:
    """The slug of the head whose name the given one ends with, the longest of several."""
    spelt = _spelt(name)
    endings = [(ending, task) for task, (names, _) in HEADS.items() for ending in (_spelt(task), *names) if spelt.endswith(ending)]
    if endings:
        return max(endings, key=lambda item: len(item[0]))[1]
    if name != name.lower():  # a class of the reference, spelt as one
        return "features"
    raise UsageError(f"head or task {name!r} is not known{nearest(name, HEADS)}")


def _spelt(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _cell(value: Any, longest: int | None = LONGEST_CELL) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, (list, tuple)):
        return " ".join(_cell(item) for item in value)
    text = value if isinstance(value, str) else str(value)
    text = text if text == text.strip() and text.isprintable() else repr(text)
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def _line(cells: Iterable[str], widths: list[int], right: list[bool]) -> str:
    padded = (cell.rjust(width) if numeric else cell.ljust(width) for cell, width, numeric in zip(cells, widths, right, strict=True))
    return "  ".join(padded).rstrip()
