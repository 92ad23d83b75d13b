"""From raw text, images or sound to a readable answer, with a checkpoint or an exported folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoints import resolve
from ..checkpoints.files import read_json
from ..exporters.artifact import MANIFEST, read_manifest
from ..ir.errors import UsageError
from .processing import Answer, answer, processor_for
from .session import Session
from .targets import compile, open

Progress = Callable[[str], None]


def run_raw(
    place: str, on: str = "onnxruntime", *, head: str | None = None, device: str = "cpu", top_k: int = 5, progress: Progress = lambda text: None, **raw: Any
) -> Answer:
    """The readable answer of a model for `text`, `pair`, `image` or `audio`.

    `place` is a checkpoint's folder or hub id, or a folder that an export wrote, which needs no model code. Errors: UsageError for inputs that
    the model does not take, and those of loading and running.
    """
    folder = Path(resolve(place))
    config = read_json(folder / "config.json", "the configuration of the model")
    processor = processor_for(folder, config)
    inputs = processor.inputs(**{k: v for k, v in raw.items() if v is not None})
    progress(f"preparing {place}")
    session, name = _session(folder, on, head, device, inputs)
    progress(f"running {name} on {session.target}")
    taken = session.inputs
    outputs = session(**{k: x for k, x in inputs.items() if k in taken or k not in session.graph.ignored})
    return answer(name, config, inputs, outputs, processor, top_k)


def _session(folder: Path, on: str, head: str | None, device: str, inputs: Any) -> tuple[Session, str]:
    """An exported graph where the folder has one for this target and head, else the checkpoint compiled for it."""
    targets = {"onnxruntime": "onnx", "xla": "stablehlo", "tensorflow": "saved_model"}
    if (folder / MANIFEST).exists():
        entries = [g for g in read_manifest(folder) if g.target == targets.get(on) and head in (None, g.head)]
        if len(entries) == 1 and set(entries[0].inputs) <= set(inputs):
            return open(folder / entries[0].file, device=device), entries[0].head or entries[0].model
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise UsageError(f"{folder} has no graph for {on} that takes {', '.join(inputs)}\n  export the model with those inputs")
    from ..model import load

    model = load(folder, head)
    present = [k for k in inputs if k in model.inputs]
    return compile(model, on, device=device, inputs=present), model.head
