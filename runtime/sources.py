"""What a pipeline runs: a graph of an exported folder where one fits, else a model that is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..exporters.artifact import MANIFEST, GraphFile, read_manifest
from ..ir.definition import Definition
from ..ir.errors import InputError, UsageError
from .session import Session
from .targets import compile, open

FORMATS = {"onnxruntime": "onnx", "xla": "stablehlo", "tensorflow": "saved_model"}  # what an export writes for a target
PLAIN = {"attention_mask": 1, "token_type_ids": 0}  # filled with this, an input says what leaving it out says


class Source:
    """A model on a target: its `name` (the head's class), all inputs that it `takes`, and those that are `usual`."""

    def __init__(self, name: str, target: str, takes: Mapping[str, str], usual: Sequence[str]):
        self.name, self.target, self.takes, self.usual = name, target, takes, usual

    def session(self, inputs: Sequence[str]) -> Session:
        """The session for inputs of these names, which is made once."""
        raise TypeError(f"{type(self).__name__} does not define session")

    def taken(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs without those that the model does not take and that say nothing; InputError for one that says something."""
        for k, x in inputs.items():
            if k not in self.takes and not (k in PLAIN and np.all(x == PLAIN[k])):
                told = f"{self.name} takes no {k!r}, without which these inputs mean something else"
                raise InputError(f"{told}\n  export it again with --input {k} among others")
        return {k: x for k, x in inputs.items() if k in self.takes}


class Compiled(Source):
    """A model that is compiled for the inputs that come."""

    def __init__(self, model: Definition, on: str, device: str, outputs: Sequence[str] | None, options: Mapping[str, Any]):
        super().__init__(model.name, on, model.inputs, model.usual)
        self.model, self.device, self.outputs, self.options = model, device, outputs, options
        self._sessions: dict[frozenset[str], Session] = {}

    def session(self, inputs: Sequence[str]) -> Session:
        """The session for inputs of these names."""
        key = frozenset(inputs)
        if key not in self._sessions:
            self._sessions[key] = compile(self.model, self.target, device=self.device, inputs=list(inputs), outputs=self.outputs, **self.options)
        return self._sessions[key]


class Opened(Source):
    """An exported graph, for which no model code is needed."""

    def __init__(self, folder: Path, graph: GraphFile, on: str, device: str, options: Mapping[str, Any]):
        super().__init__(graph.head or graph.model, on, {**dict.fromkeys(graph.ignored, ""), **graph.inputs}, list(graph.inputs))
        self._session = open(folder if graph.target == "saved_model" else folder / graph.file, target=graph.target, device=device, **options)

    def session(self, inputs: Sequence[str]) -> Session:
        """The one session that there is."""
        return self._session


def exported(folder: Path, on: str | None, fits: Callable[[GraphFile], bool], wanted: str) -> tuple[str, GraphFile | None]:
    """The target, and the graph of the folder to run there; none where the checkpoint itself is to be compiled.

    UsageError for a folder whose graphs do not fit and that holds no weights.
    """
    known = read_manifest(folder) if (folder / MANIFEST).exists() else []
    fitting = [g for g in known if fits(g)]
    on = on or next((target for target, kind in FORMATS.items() if any(g.target == kind for g in fitting)), "onnxruntime")
    graphs = {Path(g.file).stem: g for g in fitting if g.target == FORMATS.get(on)}
    if graphs:
        return on, graphs.get("model") or next(iter(graphs.values()))
    if known and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        have = ", ".join(f"{g.file} ({g.head} for {g.target})" for g in known)
        told = f"{folder} has {have}, expected a graph of {wanted} for {on}, or a checkpoint"
        raise UsageError(f"{told}\n  choose the task, head and target to fit, or export the model anew")
    return on, None
