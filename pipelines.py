"""`pipeline`: from raw text, images or sound to labelled answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .ir.definition import Definition

if TYPE_CHECKING:
    from .runtime.pipeline import Pipeline


def pipeline(
    task: str | None,
    place: str | os.PathLike[str] | Definition,
    on: str | None = None,
    *,
    head: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    session: Mapping[str, Any] | None = None,
    **options: Any,
) -> Pipeline:
    """A function from raw samples to labelled answers, in the form that the reference library's pipelines give them.

    `task` is a name of the reference's pipelines ("fill-mask", "ner", "translation_en_to_de", ...), "sentence-similarity", "multiple-choice" or
    "next-sentence-prediction"; None takes that of the checkpoint's head. `place` is a checkpoint's folder or hub id, an exported folder, for which no
    model code or weights elsewhere are needed, or a loaded model. `on` is a target, by default what the folder was exported for, else onnxruntime;
    `session` has its options. `head` is a class name where the checkpoint's own would not do. `options` are those of the task, which a call may
    change; `batch_size` is the most rows of a call and allows padding (see `Pipeline.__call__`).

    Errors: UsageError for an unknown task or option, or a head that does not fit; CheckpointError for a checkpoint that lacks what the task needs.
    """
    from .model import load
    from .runtime.answering import make

    return make(task, place, load, on, head=head, device=device, batch_size=batch_size, session=session, **options)
