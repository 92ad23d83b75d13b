"""From raw text, images or sound to labelled answers: one pipeline for a task, on any target."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..ir.errors import InputError, UsageError, nearest
from .batching import MASK
from .processing.files import Inputs
from .processing.processor import Processor
from .processing.results import Results
from .processing.tasks import TASKS
from .sources import Source

MOST = 32  # rows of one call where no batch size is asked for
_KINDS = {"input_ids": "text", "pixel_values": "image", "input_values": "audio"}


class Pipeline:
    """A task on a model: called with raw samples, it gives their answers.

    `task`, `name` (the head's class) and `target` say what it is, `notes` what the last call did to its inputs (cut, resampled).
    """

    def __init__(self, task: str, source: Source, processor: Processor, batch_size: int | None, options: Mapping[str, Any]):
        self.source, self.processor = source, processor
        self._begin(task, source.name, source.target, batch_size, options)

    def _begin(self, task: str, name: str, target: str, batch_size: int | None, options: Mapping[str, Any]) -> None:
        self.task, self.name, self.target, self.batch_size, self.options = task, name, target, batch_size, dict(options)
        self.notes: list[str] = []
        self._kind = TASKS[task]
        self._check(self.options)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, expected at least 1")

    def __call__(self, inputs: Any = None, *more: Any, batch_size: int | None = None, **options: Any) -> Any:
        """The answer to one sample, or a list of the answers to a list of samples.

        A sample is a text, image or recording, or a dict of the task's parts; parts may be given by name instead, and those that samples share
        (`candidate_labels`) second. `options` are the task's. With a `batch_size` samples of unequal length share calls, padded where the tokenizer
        pads on the right; without, only samples of equal length do. Errors: InputError for a sample that does not fit, UsageError for options.
        """
        given = {**self.options, **dict(zip(self._kind.shared, more, strict=False)), **options}
        self._check(given)
        samples, single = self._samples(inputs, given)
        answers = self._answers(samples, {k: x for k, x in given.items() if k not in self._kind.parts}, batch_size or self.batch_size)
        return self._shaped(answers, inputs, single, options)

    def _shaped(self, answers: list[Any], inputs: Any, single: bool, options: Mapping[str, Any]) -> Any:
        """The answers in the shape that the reference's pipelines give them, whose habits differ."""
        if self.task in ("fill-mask", "question-answering") and len(answers) == 1:
            return answers[0]
        if self.task == "text-classification" and isinstance(inputs, str) and "top_k" not in options:
            return answers
        return answers[0] if single else answers

    # ---- samples

    def _check(self, given: Mapping[str, Any]) -> None:
        known = {*self.known_options(), *self._kind.parts}
        for name in given:
            if name not in known:
                raise UsageError(f"{self.task} has no option {name!r}{nearest(name, known)}")

    @property
    def takes(self) -> frozenset[str]:
        """Which of text, image and audio samples are made of."""
        return self.processor.modalities

    def known_options(self) -> Iterable[str]:
        """The names of the task's options."""
        functions = (f for f in (self._kind.encode, self._kind.answer) if f is not None)
        return [p.name for f in functions for p in inspect.signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY]

    def _samples(self, inputs: Any, given: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """The samples as dicts of their parts, and whether there is just one that stands in no list."""
        named = {k: given[k] for k in self._kind.parts if k in given}
        shared = {k: _labels(named.pop(k)) for k in self._kind.shared if k in named}
        if inputs is None:
            inputs, single = _zipped(named, self.task)
        else:
            single = not isinstance(inputs, (list, tuple)) or self._is_recording(inputs)
            inputs = [inputs] if single else list(inputs)
        return [self._sample(i, one, {**shared, **(named if single else {})}) for i, one in enumerate(inputs)], single

    @property
    def _bare(self) -> str:
        """The part that a sample is which is no dict."""
        return next((k for k in self._kind.parts if k in self.takes), self._kind.parts[0])

    def _is_recording(self, inputs: Any) -> bool:
        """Whether it is samples with their rate."""
        return isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], np.ndarray)

    def _sample(self, i: int, one: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
        task = self._kind
        if isinstance(one, Mapping) and "sampling_rate" in one:
            one = (np.asarray(one.get("raw", one.get("array"))), int(one["sampling_rate"]))
        sample = {**shared, **(one if isinstance(one, Mapping) else {self._bare: one})}
        for k in task.shared:
            sample[k] = _labels(sample[k]) if k in sample else None
        missing = [k for k in task.parts if sample.get(k) is None and k not in task.optional]
        unknown = [k for k in sample if k not in task.parts]
        if missing or unknown or not sample:
            wanted = " and ".join(k for k in task.parts if k not in task.optional) or " or ".join(task.parts)
            raise InputError(f"sample {i} has {' and '.join(k for k in sample if sample[k] is not None) or 'nothing'}, expected {wanted}")
        return {k: x for k, x in sample.items() if x is not None}

    # ---- running

    def _answers(self, samples: Sequence[Mapping[str, Any]], options: Mapping[str, Any], batch_size: int | None) -> list[Any]:
        encoded = [self._encoded(i, sample, options, len(samples) > 1) for i, sample in enumerate(samples)]
        self.notes = [note for inputs in encoded for note in inputs.notes]
        rows = [[inputs] if self._kind.whole else self._rows(inputs) for inputs in encoded]
        if self._kind.whole:
            made = [[self._whole(inputs)] for inputs in encoded]
        else:
            outputs = iter(self._run([row for some in rows for row in some], batch_size))
            made = [[next(outputs) for _ in some] for some in rows]
        answer, chosen = self._kind.answer, _of(self._kind.answer, options)
        config, found = self.processor.config, []
        for i, sample in enumerate(samples):
            try:
                found.append(answer(Results(config, encoded[i], rows[i], made[i], self.processor, sample), **chosen))  # type: ignore[misc]
            except InputError as error:
                raise _placed(error, i, len(samples)) from None
        return found

    def _encoded(self, i: int, sample: Mapping[str, Any], options: Mapping[str, Any], several: bool) -> Inputs:
        try:
            inputs = self._kind.encode(self.processor, sample, **_of(self._kind.encode, options))
        except InputError as error:
            raise _placed(error, i, 2 if several else 1) from None
        complete(inputs, self.source, self.processor.config)
        return inputs

    def _rows(self, inputs: Inputs) -> list[dict[str, np.ndarray]]:
        """The rows of a sample without the batch axis and without what only fills them up to the longest."""
        count = len(next(iter(inputs.values())))
        rows = [{k: x[r] for k, x in inputs.items()} for r in range(count)]
        if len(inputs.encodings) != count or count == 1:
            return rows
        full, left = len(rows[0]["input_ids"]), self.processor.text.padding_side == "left"
        for row, encoding in zip(rows, inputs.encodings, strict=True):
            own = slice(full - len(encoding.ids), None) if left else slice(len(encoding.ids))
            row.update({k: x[own] for k, x in row.items() if x.shape[:1] == (full,)})
        return rows

    def _whole(self, inputs: Inputs) -> dict[str, np.ndarray]:
        taken = self.source.taken(inputs)
        made = self.source.session(list(taken))(**taken)
        return {k: x[0] for k, x in made.items() if np.ndim(x)}

    def _run(self, rows: Sequence[Mapping[str, np.ndarray]], batch_size: int | None) -> list[dict[str, np.ndarray]]:
        """The outputs of each row."""
        taken = [self.source.taken(row) for row in rows]
        if not taken:
            return []
        session = self.source.session(list(taken[0]))
        if batch_size and batch_size > 1 and (pad := self._padding(session.inputs)) is not None:
            return session.many(taken, pad=pad, most=batch_size)
        groups: dict[Any, list[int]] = {}
        for i, row in enumerate(taken):
            groups.setdefault(tuple((k, x.shape) for k, x in row.items()), []).append(i)
        made: list[dict[str, np.ndarray]] = [{}] * len(taken)
        for group in groups.values():
            for start in range(0, len(group), batch_size or MOST):
                part = group[start : start + (batch_size or MOST)]
                outputs = session(**{k: np.stack([taken[i][k] for i in part]) for k in taken[part[0]]})
                for at, i in enumerate(part):
                    made[i] = {k: x[at] for k, x in outputs.items() if np.ndim(x)}
        return made

    def _padding(self, inputs: Mapping[str, Any]) -> dict[str, int] | None:
        """What shorter rows are filled with; None where rows that are filled up would mean something else, or have no single length."""
        if "input_ids" not in inputs or MASK not in inputs or inputs["input_ids"].rank != 2 or self.processor.config.get("pad_token_id") is None:
            return None
        text = self.processor.text
        pad = text.token_id("pad_token")
        return None if pad is None or text.padding_side != "right" else {"input_ids": pad, "token_type_ids": text.pad_type}

    def __repr__(self) -> str:
        return f"<pipeline {self.task} of {self.name} on {self.target}>"


def _of(function: Callable[..., Any] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function has."""
    names = inspect.signature(function).parameters if function else {}
    return {k: x for k, x in options.items() if k in names}


def _labels(given: Any) -> Any:
    """Labels as a list; a text has them between commas."""
    return [label.strip() for label in given.split(",") if label.strip()] if isinstance(given, str) else list(given)


def _zipped(named: Mapping[str, Any], task: str) -> tuple[list[dict[str, Any]], bool]:
    """Samples of parts that were given by name, each one or a list."""
    lengths = {len(x) for x in named.values() if isinstance(x, list)}
    if not named or len(lengths) > 1:
        have = ", ".join(f"{len(x)} of {k}" for k, x in named.items() if isinstance(x, list)) or "no input"
        raise InputError(f"{task} got {have}, expected {' and '.join(TASKS[task].parts)} of one number")
    count = lengths.pop() if lengths else 1
    samples = [{k: x[i] if isinstance(x, list) else x for k, x in named.items()} for i in range(count)]
    return samples, not any(isinstance(x, list) for x in named.values())


def _placed(error: InputError, i: int, count: int) -> InputError:
    return InputError(f"sample {i}: {error}") if count > 1 else error


def complete(inputs: Inputs, source: Source, config: Mapping[str, Any]) -> None:
    """Adds what raw input does not say and every run has; InputError where a kind of input that the model reads was not given."""
    given = [kind for k, kind in _KINDS.items() if k in inputs]
    if lacking := [kind for k, kind in _KINDS.items() if k in source.usual and k not in inputs]:
        told = f"{source.name} reads {' and '.join(given + lacking)}, got {' and '.join(given)} alone"
        raise InputError(f"{told}\n  give {lacking[0]} too, or choose another head")
    if "decoder_input_ids" in source.usual:
        start = config.get("decoder_start_token_id")
        if start is None:
            raise UsageError("config.json: decoder_start_token_id is missing, expected the id of the token that decoding starts with")
        inputs["decoder_input_ids"] = np.full((len(next(iter(inputs.values()))), 1), start, np.int64)
    if "decoder_attention_mask" in source.usual:
        inputs["decoder_attention_mask"] = np.ones_like(inputs["decoder_input_ids"])
    if "mc_token_ids" in source.usual:  # each choice is judged by its last token
        mask = inputs[MASK]
        inputs["mc_token_ids"] = mask.shape[-1] - 1 - np.argmax(mask[..., ::-1], axis=-1)
