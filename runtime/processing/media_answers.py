"""Answers of the heads for images and sound, and those that fit every kind of input: classes and features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir.errors import UsageError, nearest
from .results import Results, Row, best, sigmoid, softmax

ACTIVE = 0.5  # the probability from which on a speaker counts as speaking
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"softmax": softmax, "sigmoid": sigmoid, "none": lambda raw: raw}


def text_classification(run: Results, *, top_k: int | str | None = "", function_to_apply: str | None = None) -> Row | list[Row]:
    """The likeliest class; with `top_k` so many, best first (None: all of them), in a list.

    Scores are by `function_to_apply` ("softmax", "sigmoid", "none"); by default as config.json says that the model was trained: a regression's value
    as it is, several labels or a single one each by itself, else all classes together.
    """
    regression = run.config.get("problem_type") == "regression"
    found = _classes(run, None if isinstance(top_k, str) else top_k, function_to_apply or ("none" if regression else None))
    return found[0] if isinstance(top_k, str) else found


def image_classification(run: Results, *, top_k: int | None = 5, function_to_apply: str | None = None) -> list[Row]:
    """The likeliest classes; scores as for texts, but for a regression, which images have none of."""
    return _classes(run, top_k, function_to_apply)


def audio_classification(run: Results, *, top_k: int | None = None, function_to_apply: str | None = None) -> list[Row]:
    """All classes, the likeliest first, by the softmax of all unless asked otherwise."""
    return [{"score": row["score"], "label": row["label"]} for row in _classes(run, top_k, function_to_apply or "softmax")]


def _classes(run: Results, top_k: int | None, function: str | None) -> list[Row]:
    logits = run.output("logits", 1)
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k is {top_k}, expected at least 1, or None for all")
    single = run.config.get("problem_type") == "multi_label_classification" or len(logits) == 1
    function = (function or ("sigmoid" if single else "softmax")).lower()
    if function not in FUNCTIONS:
        raise UsageError(f"function_to_apply {function!r} is unknown{nearest(function, FUNCTIONS)}")
    scores = FUNCTIONS[function](logits)
    return [{"label": run.label(int(i)), "score": float(scores[i])} for i in best(scores, top_k)]


def features(run: Results, *, output: str = "", pool: bool = False, return_tensors: bool = False) -> Any:
    """An output as nested lists with a batch axis of one, or as an array with `return_tensors`.

    By default `last_hidden_state`, else the first that the model gives; the pooled state with `pool`; "*" gives all in a dict by name.
    """
    made = {k: np.asarray(x)[None] for k, x in run.made[0].items()}
    if output != "*":
        name = output or ("pooler_output" if pool else "last_hidden_state" if "last_hidden_state" in made else next(iter(made)))
        if name not in made:
            raise UsageError(f"this answer needs the output {name!r}{nearest(name, made)}; the model gave {', '.join(made)}")
        return made[name] if return_tensors else made[name].tolist()
    return made if return_tensors else {k: x.tolist() for k, x in made.items()}


def transcription(run: Results) -> Row:
    """What is said: the likeliest character of each frame, repeats merged and blanks dropped."""
    return {"text": run.text.decode_ctc(run.output("logits", 2).argmax(axis=-1))}


def frame_classification(run: Results) -> list[Row]:
    """When each speaker speaks: stretches of frames whose probability is above one half, in seconds."""
    scores, second = sigmoid(run.output("logits", 2)), run.seconds_per_frame
    rows = []
    for label in range(scores.shape[1]):
        active = np.concatenate([[False], scores[:, label] > ACTIVE, [False]])
        for start, end in np.flatnonzero(np.diff(active)).reshape(-1, 2):
            place = {"start": float(start * second), "end": float(end * second)}
            rows.append({"score": float(scores[start:end, label].mean()), "label": run.label(label), **place})
    return rows


def zero_shot_image(run: Results) -> list[Row]:
    """Which of the candidate labels fits the image best."""
    scores, labels = softmax(run.output("logits_per_image", 1)), run.sample["candidate_labels"]
    return [{"score": float(scores[i]), "label": labels[i]} for i in best(scores, None)]


def masked_image(run: Results) -> Row:
    """How the reconstruction of an image compares with it: range of values, and the mean absolute error of masked and of visible patches."""
    picture, given = run.output("reconstruction", 3), run.given[0]
    answer: Row = {"shape": f"[{' '.join(map(str, picture.shape))}]"}
    answer |= {"least": float(picture.min()), "mean": float(picture.mean()), "greatest": float(picture.max())}
    if "pixel_values" in given and given["pixel_values"].shape == picture.shape:
        error = np.abs(given["pixel_values"] - picture).mean(axis=0)
        hidden = _pixel_mask(run, error.shape)
        answer |= {f"{name} error": float(error[part].mean()) for name, part in (("masked", hidden), ("visible", ~hidden)) if part.any()}
    return answer


def _pixel_mask(run: Results, shape: tuple[int, ...]) -> np.ndarray:
    """bool [height width]: which pixels lie in a masked patch."""
    masked = run.given[0].get("bool_masked_pos")
    if masked is None:
        return np.zeros(shape, bool)
    size = run.config["patch_size"]
    high, wide = (size, size) if isinstance(size, int) else size
    patches = masked.astype(bool).reshape(shape[0] // high, shape[1] // wide)
    return patches.repeat(high, axis=0).repeat(wide, axis=1)
