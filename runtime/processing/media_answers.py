"""Answers of the heads for images and sound, and those that fit every kind of input: classes and embeddings."""

from __future__ import annotations

import numpy as np

from .results import Results, Row, best, cosines, sigmoid, softmax

FIRST_VALUES = 4
ACTIVE = 0.5  # the probability from which on a speaker counts as speaking


def classification(run: Results) -> list[Row]:
    """The likeliest classes of each input; by `problem_type` each class by itself, or the raw value of a regression."""
    logits = run.output("logits", 2)
    problem, single = run.config.get("problem_type"), logits.shape[1] == 1
    rescale = (lambda raw: raw) if problem == "regression" else sigmoid if problem == "multi_label_classification" or single else softmax
    rows = []
    for row, (raw, scores) in enumerate(zip(logits, rescale(logits), strict=True)):
        for number in best(scores, run.top_k):
            answer = {"input": row, "label": run.label(int(number)), "score": float(scores[number])}
            # one class and no word of the problem: as likely a regression, whose value the score would hide
            rows.append(answer | ({"logit": float(raw[number])} if single and problem is None else {}))
    return rows


def features(run: Results) -> list[Row]:
    """Each output in numbers: live shape, norm, first values, and the cosine of each embedding with those of the other inputs."""
    rows = []
    for name, value in run.outputs.items():
        array = np.asarray(value)
        if array.ndim == 0:
            rows.append({"output": name, "shape": "[]", "values": [float(array)]})
            continue
        similar = cosines(array.astype(np.float64)) if array.ndim == 2 and len(array) > 1 else None
        for row, part in enumerate(array.astype(np.float64)):
            part = part[run.live(row, len(part))] if part.ndim == 2 else part
            shape = f"[{' '.join(map(str, part.shape))}]"
            answer: Row = {"output": name, "input": row, "shape": shape, "norm": float(np.linalg.norm(part))}
            answer["values"] = [float(v) for v in part.ravel()[:FIRST_VALUES]]
            rows.append(answer | ({"cosine": [float(v) for v in similar[row]]} if similar is not None else {}))
    return rows


def speaker_embedding(run: Results) -> list[Row]:
    """The voice of each recording as an embedding, and its cosine with those of the other recordings."""
    return features(Results(run.config, run.inputs, {"embeddings": run.output("embeddings", 2)}, run.processor, run.top_k))


def transcription(run: Results) -> list[Row]:
    """What is said in each recording: the likeliest character of each frame, repeats merged and blanks dropped."""
    frames = run.output("logits", 3).argmax(axis=-1)
    return [{"input": row, "text": run.text.decode_ctc(ids[run.live(row, len(ids))])} for row, ids in enumerate(frames)]


def frame_classification(run: Results) -> list[Row]:
    """When each speaker speaks: stretches of frames whose probability is above one half, in seconds."""
    scores = sigmoid(run.output("logits", 3))
    second = run.seconds_per_frame
    rows = []
    for row, frames in enumerate(scores):
        frames = frames[run.live(row, len(frames))]
        for label in range(frames.shape[1]):
            active = np.concatenate([[False], frames[:, label] > ACTIVE, [False]])
            edges = np.flatnonzero(np.diff(active)).reshape(-1, 2)
            for start, end in edges:
                answer = {"input": row, "label": run.label(label), "start": float(start * second), "end": float(end * second)}
                rows.append(answer | {"score": float(frames[start:end, label].mean())})
    return rows


def zero_shot(run: Results) -> list[Row]:
    """Which of the texts fits each image best."""
    scores = softmax(run.output("logits_per_image", 2))
    rows = []
    for row, texts in enumerate(scores):
        for number in best(texts, run.top_k):
            text = run.texts[number][0] if len(run.texts) == len(texts) else f"text {number}"
            rows.append({"input": row, "text": text, "score": float(texts[number])})
    return rows


def masked_image(run: Results) -> list[Row]:
    """How the reconstruction of each image compares with it: range of values, and the mean absolute error of masked and of visible patches."""
    pictures = run.output("reconstruction", 4)
    truth, masked = run.inputs.get("pixel_values"), run.inputs.get("bool_masked_pos")
    rows = []
    for row, picture in enumerate(pictures):
        answer: Row = {"input": row, "shape": f"[{' '.join(map(str, picture.shape))}]"}
        answer |= {"least": float(picture.min()), "mean": float(picture.mean()), "greatest": float(picture.max())}
        if truth is not None and truth.shape == pictures.shape:
            error = np.abs(truth[row] - picture).mean(axis=0)
            hidden = _pixel_mask(run, masked, row, error.shape)
            answer |= {f"{name} error": float(error[part].mean()) for name, part in (("masked", hidden), ("visible", ~hidden)) if part.any()}
        rows.append(answer)
    return rows


def _pixel_mask(run: Results, masked: np.ndarray | None, row: int, shape: tuple[int, ...]) -> np.ndarray:
    """bool [height width]: which pixels lie in a masked patch."""
    if masked is None:
        return np.zeros(shape, bool)
    size = run.config["patch_size"]
    high, wide = (size, size) if isinstance(size, int) else size
    patches = masked[row].astype(bool).reshape(shape[0] // high, shape[1] // wide)
    return patches.repeat(high, axis=0).repeat(wide, axis=1)
