"""Targets by name: a model compiled for one, an artifact opened on one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..exporters.artifact import find_graph
from ..ir.definition import Definition
from ..ir.errors import TargetError, UsageError, nearest
from ..ir.graph import Graph
from .session import Session


class NumpySession(Session):
    """The reference run; `dtype` is what all floats are, float64 unless asked otherwise."""

    target = "numpy"

    def __init__(self, definition: Definition, graph: Graph, device: str = "cpu", dtype: str = "f64"):
        if device != "cpu":
            raise TargetError(f"device {device!r}: the NumPy reference runs on 'cpu' only")
        super().__init__(graph, device=device, name=definition.name)
        self.weights, self.dtype = definition.weights, dtype

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for arrays that fit, floats in the session's dtype."""
        from ..ir.reference import reference

        return reference(self.graph, arrays, self.weights, float=self.dtype)


def _ort(definition: Definition, graph: Graph, device: str, **options: Any) -> Session:
    from .ort import OrtSession

    return OrtSession(definition, graph, device, **options)


def _xla(definition: Definition, graph: Graph, device: str, **options: Any) -> Session:
    from .xla import compile_xla

    return compile_xla(definition, graph, device=device, **options)


def _torch(definition: Definition, graph: Graph, device: str, **options: Any) -> Session:
    from .torch import TorchSession

    return TorchSession(definition, graph, device, **options)


def _tensorflow(definition: Definition, graph: Graph, device: str, **options: Any) -> Session:
    from .tensorflow import TensorflowSession

    return TensorflowSession(definition, graph, device, **options)


def _tf2onnx(definition: Definition, graph: Graph, device: str, **options: Any) -> Session:
    """A second way to ONNX that shares no rule with the first: TensorFlow's graph, converted by tf2onnx."""
    from ..exporters.onnx_from_tensorflow import to_proto
    from .ort import OnnxSession

    return OnnxSession(to_proto(definition, graph).SerializeToString(), graph, device, name=definition.name, **options)


TARGETS = {"numpy": NumpySession, "onnxruntime": _ort, "xla": _xla, "torch": _torch, "tensorflow": _tensorflow, "tf2onnx": _tf2onnx}
MODULES = {"numpy": "numpy", "onnxruntime": "onnxruntime", "xla": "jax", "torch": "torch", "tensorflow": "tensorflow"}


def installed() -> list[str]:
    """The targets whose framework is installed."""
    from importlib.util import find_spec

    return [name for name, module in MODULES.items() if find_spec(module) is not None]


def compile(
    model: Definition,
    on: str = "onnxruntime",
    *,
    device: str = "cpu",
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    graph: Graph | None = None,
    **options: Any,
) -> Session:
    """A session of a model: NumPy in, NumPy out.

    `on` is onnxruntime, xla, torch, tensorflow, numpy, or tf2onnx (an independent second way to ONNX); `device` cpu, cuda, tpu (or tensorrt for
    onnxruntime); `inputs` and `outputs` choose
    optional inputs and outputs on demand; `options` are the target session's. Errors: UsageError for an unknown target, MissingExtraError for
    one that is not installed, TargetError for a device or op that it lacks.
    """
    if on not in TARGETS:
        raise UsageError(f"target {on!r} is unknown{nearest(on, TARGETS)}")
    graph = model.graph(inputs, outputs) if graph is None else graph
    return TARGETS[on](model, graph, device, **options)


def open(place: str | os.PathLike[str], *, name: str = "", target: str = "", **options: Any) -> Session:
    """A session of an exported artifact, a folder or one of its files; no model code is needed.

    Where a folder has several graphs, `name` is a file's stem and `target` onnx, stablehlo or saved_model. Errors: UsageError where there is
    nothing to open, CheckpointError where a file is missing, damaged or not the one that was written.
    """
    place = Path(place)
    if place.suffix == ".onnx":
        kind = "onnx"
    else:
        _, entry = find_graph(place, target, name)
        kind = entry.target
    if kind == "onnx":
        from .ort import open_onnx

        return open_onnx(place, name=name, **options)
    if kind == "stablehlo":
        from .xla import open_stablehlo

        return open_stablehlo(place, name=name, **options)
    from .tensorflow import open_saved_model

    return open_saved_model(place, **options)
