"""The tasks: for each the raw parts of a sample, how they become a model's inputs, and how its outputs become an answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...ir.errors import InputError, UsageError, nearest
from . import media_answers as media, text_answers as texts, token_answers as tokens
from .files import Inputs
from .processor import Processor

Sample = Mapping[str, Any]
LONGEST_ROW = 384  # tokens of a question and its context in one row, unless the model takes fewer

# ---- from a sample to inputs --------------------------------------------------------------------


def text_inputs(
    processor: Processor, sample: Sample, *, truncation: bool | str | None = None, max_length: int | None = None, tokenizer_kwargs: Any = None
) -> Inputs:
    """A text, or a pair of texts; one that is too long is an error unless it may be cut (`truncation`: True, or which text to cut)."""
    given = {"truncation": truncation, "max_length": max_length, **(tokenizer_kwargs or {})}
    if unknown := [k for k in given if k not in ("truncation", "max_length")]:
        raise UsageError(f"tokenizer_kwargs has {unknown[0]!r}, expected truncation and max_length alone")
    cut = "longest_first" if given["truncation"] is True else given["truncation"] or None
    return processor.inputs(text=sample["text"], pair=sample.get("text_pair"), truncation=cut, max_length=given["max_length"])


def token_inputs(processor: Processor, sample: Sample, *, stride: int | None = None) -> Inputs:
    """A text that is cut where it is too long, or with a `stride` spread over rows that share so many tokens."""
    return processor.inputs(text=sample["text"], stride=stride, truncation="longest_first", **_filled(processor))


def question_inputs(processor: Processor, sample: Sample, *, doc_stride: int | None = None, max_seq_len: int | None = None) -> Inputs:
    """A question with its context, which is spread over rows of `max_seq_len` tokens that share `doc_stride` tokens."""
    if empty := [k for k in ("question", "context") if not sample[k]]:
        raise InputError(f"the {empty[0]} is empty, expected a text")
    text = processor.text
    length = max_seq_len or min(text.max_length or LONGEST_ROW, LONGEST_ROW)
    stride = min(length // 2, 128) if doc_stride is None else doc_stride
    pair = (sample["question"], sample["context"])
    cut = "only_second"
    if text.padding_side != "right":
        pair, cut = pair[::-1], "only_first"
    return processor.inputs(text=pair[0], pair=pair[1], truncation=cut, max_length=length, stride=stride, **_filled(processor))


def label_inputs(processor: Processor, sample: Sample, *, hypothesis_template: str = "This example is {}.") -> Inputs:
    """A text with a hypothesis for each candidate label, one in a row."""
    says = _hypotheses(sample, hypothesis_template)
    return processor.inputs(text=[sample["text"]] * len(says), pair=says, truncation="only_first", **_filled(processor))


def image_label_inputs(processor: Processor, sample: Sample, *, hypothesis_template: str = "This is a photo of {}.") -> Inputs:
    """An image, and a text for each candidate label."""
    return processor.inputs(image=sample["image"], text=_hypotheses(sample, hypothesis_template), truncation=None, **_filled(processor))


def choice_inputs(processor: Processor, sample: Sample) -> Inputs:
    """A text with each of the choices that may continue it: one row with an axis of choices."""
    if len(sample["choices"]) < 2:
        raise InputError(f"got {len(sample['choices'])} choices, expected at least two that may continue the text")
    return processor.inputs(text=sample["text"], choices=sample["choices"], **_filled(processor))


def similar_inputs(processor: Processor, sample: Sample) -> Inputs:
    """The source sentence and those that it is compared with, one in a row; what is too long is cut, as such models are trained."""
    return processor.inputs(text=[sample["source_sentence"], *sample["sentences"]], truncation="longest_first", **_filled(processor))


def any_inputs(processor: Processor, sample: Sample, *, truncation: bool | str | None = None, tokenize_kwargs: Any = None) -> Inputs:
    """Whatever the model takes: text, image or audio."""
    result = Inputs()
    if "text" in sample:
        result.merge(text_inputs(processor, sample, truncation=truncation, tokenizer_kwargs=tokenize_kwargs))
    for name in ("image", "audio"):
        if name in sample:
            result.merge(processor.inputs(**{name: sample[name]}))
    return result


def image_inputs(processor: Processor, sample: Sample) -> Inputs:
    """An image: a file's name, a PIL image or an array."""
    return processor.inputs(image=sample["image"])


def audio_inputs(processor: Processor, sample: Sample) -> Inputs:
    """A recording: a file's name, samples at the model's rate, or samples with their rate."""
    return processor.inputs(audio=sample["audio"])


def _hypotheses(sample: Sample, template: str) -> list[str]:
    labels = sample["candidate_labels"]
    if not labels:
        raise InputError("candidate_labels is empty, expected at least one label")
    if template.format(labels[0]) == template:
        raise InputError(f"hypothesis_template is {template!r}, expected a text with {{}} where the label goes")
    return [template.format(label) for label in labels]


def _filled(processor: Processor) -> dict[str, str]:
    """What several rows of one sample are filled with where the tokenizer has no padding: it is taken off again before the model runs."""
    text = processor.text
    if "pad_token" in text.special:
        return {}
    return {"pad_token": text.special.get("eos_token") or text.tokenizer.id_to_token(0) or ""}


# ---- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One task.

    `head` is the slug that chooses a head for it, `endings` how the classes of fitting heads end, and a graph of any head fits that gives
    `output`. `parts` are those of a sample, `optional` the ones that may be missing, `shared` those that all samples of a call may have in common.
    `also` are other names, `name_of_text` that of what is written; a task that is `whole` is run with all rows of a sample in one call.
    """

    answer: Callable[..., Any] | None
    head: str
    endings: tuple[str, ...]
    encode: Callable[..., Inputs] = text_inputs
    parts: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    output: str = ""
    name_of_text: str = ""
    whole: bool = False

    @property
    def generates(self) -> bool:
        """Whether its answer is written token by token."""
        return self.answer is None


_PAIR = {"parts": ("text", "text_pair"), "optional": ("text_pair",)}
_ANY: dict[str, Any] = {"encode": any_inputs, "parts": ("text", "text_pair", "image", "audio"), "optional": ("text", "text_pair", "image", "audio")}
_CLASSES = "ForSequenceClassification"
_SEQUENCES = ("ForConditionalGeneration", "Seq2SeqLM")

TASKS: dict[str, Task] = {
    "fill-mask": Task(texts.fill_mask, "masked-lm", ("ForMaskedLM", "WithLMHeadModel")),
    "text-classification": Task(media.text_classification, "sequence-classification", (_CLASSES,), also=("sentiment-analysis",), **_PAIR),
    "token-classification": Task(tokens.token_classification, "token-classification", ("ForTokenClassification",), token_inputs, also=("ner",)),
    "question-answering": Task(
        texts.question_answering,
        "question-answering",
        ("ForQuestionAnsweringSimple", "ForQuestionAnswering"),
        question_inputs,
        ("question", "context"),
    ),
    "feature-extraction": Task(
        media.features, "feature-extraction", ("Model", "WithProjection", "Backbone", "Encoder"), output="last_hidden_state", **_ANY
    ),
    "sentence-similarity": Task(
        texts.sentence_similarity,
        "feature-extraction",
        (),
        similar_inputs,
        ("source_sentence", "sentences"),
        shared=("sentences",),
        output="sentence_embedding",
    ),
    "multiple-choice": Task(
        texts.multiple_choice, "multiple-choice", ("ForMultipleChoice", "DoubleHeadsModel"), choice_inputs, ("text", "choices"), shared=("choices",)
    ),
    "zero-shot-classification": Task(
        texts.zero_shot, "sequence-classification", (_CLASSES,), label_inputs, ("text", "candidate_labels"), shared=("candidate_labels",)
    ),
    "next-sentence-prediction": Task(
        texts.next_sentence, "next-sentence-prediction", ("ForNextSentencePrediction",), parts=("text", "text_pair"), output="seq_relationship_logits"
    ),
    "text-generation": Task(None, "causal-lm", ("ForCausalLM", "LMHeadModel"), name_of_text="generated"),
    "text2text-generation": Task(None, "seq2seq-lm", _SEQUENCES, name_of_text="generated"),
    "summarization": Task(None, "seq2seq-lm", _SEQUENCES, name_of_text="summary"),
    "translation": Task(None, "seq2seq-lm", _SEQUENCES, name_of_text="translation"),
    "image-classification": Task(media.image_classification, "image-classification", ("ForImageClassification",), image_inputs, ("image",)),
    "image-feature-extraction": Task(media.features, "feature-extraction", ("Model", "Backbone"), output="last_hidden_state", **_ANY),
    "zero-shot-image-classification": Task(
        media.zero_shot_image,
        "feature-extraction",
        ("CLIPModel",),
        image_label_inputs,
        ("image", "candidate_labels"),
        shared=("candidate_labels",),
        output="logits_per_image",
        whole=True,
    ),
    "masked-image-modeling": Task(media.masked_image, "masked-image-modeling", ("ForMaskedImageModeling",), image_inputs, ("image",)),
    "audio-classification": Task(media.audio_classification, "audio-classification", (_CLASSES,), audio_inputs, ("audio",)),
    "automatic-speech-recognition": Task(media.transcription, "ctc", ("ForCTC",), audio_inputs, ("audio",)),
    "audio-frame-classification": Task(
        media.frame_classification, "audio-frame-classification", ("ForAudioFrameClassification",), audio_inputs, ("audio",)
    ),
}
ALIASES = {alias: name for name, task in TASKS.items() for alias in task.also}


def task_name(given: str) -> str:
    """A task's own name for one of its names, `translation_en_to_fr` among them; UsageError with the nearest name for an unknown one."""
    if re.fullmatch("translation_[a-zA-Z]+_to_[a-zA-Z]+", given):
        return "translation"
    name = ALIASES.get(given, given)
    if name not in TASKS:
        raise UsageError(f"task {given!r} is unknown{nearest(given, [*TASKS, *ALIASES])}\n  known: {', '.join(TASKS)}")
    return name


def ending(head: str) -> str:
    """How a head's class ends, by the longest ending that is known; "" for one without a task of its own."""
    return max((e for task in TASKS.values() for e in task.endings if head.endswith(e)), key=len, default="")


def task_of(head: str, modalities: frozenset[str]) -> str:
    """The task of a head's class; features for one that has no task of its own."""
    fitting = [name for name, task in TASKS.items() if ending(head) in task.endings]
    return next((name for name in fitting if modalities & set(TASKS[name].parts)), next(iter(fitting), "feature-extraction"))
