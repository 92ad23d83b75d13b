"""Answers as a table that a person can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .results import Row, cosines

LONGEST_CELL = 60
FIRST_VALUES = 4


@dataclass(frozen=True)
class Answer:
    """The answers to several samples: `rows` are records of one kind ("input" counts the samples), `str()` is a table of them."""

    rows: list[Row]

    @classmethod
    def of(cls, answers: Sequence[Any]) -> Answer:
        """The rows of what a pipeline gave for each sample: records, lists of records, numbers, or outputs by name."""
        if answers and all(isinstance(a, Mapping) and all(isinstance(x, np.ndarray) for x in a.values()) for a in answers):
            return cls(_summaries(answers))
        return cls([{"input": i} | row for i, answer in enumerate(answers) for row in _records(answer)])

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


def _records(answer: Any) -> list[Row]:
    if isinstance(answer, Mapping) and "labels" in answer:
        return [{"label": label, "score": score} for label, score in zip(answer["labels"], answer["scores"], strict=True)]
    if isinstance(answer, Mapping):
        return [dict(answer)]
    if answer and isinstance(answer[0], float):
        return [{"score": score} for score in answer]
    return [row for part in answer for row in _records(part)]


def _summaries(answers: Sequence[Mapping[str, np.ndarray]]) -> list[Row]:
    """Each output in numbers: shape, norm, first values, and the cosine of each embedding with those of the other inputs."""
    rows = []
    for name in answers[0]:
        parts = [np.asarray(answer[name][0], np.float64) for answer in answers]
        vectors = parts[0].ndim == 1 and len(parts) > 1
        similar = cosines(np.stack(parts), np.stack(parts)) if vectors else None
        for i, part in enumerate(parts):
            shape = f"[{' '.join(map(str, part.shape))}]"
            row: Row = {"output": name, "input": i, "shape": shape, "norm": float(np.linalg.norm(part))}
            row["values"] = [float(v) for v in part.ravel()[:FIRST_VALUES]]
            rows.append(row | ({"cosine": [float(v) for v in similar[i]]} if similar is not None else {}))
    return rows


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
