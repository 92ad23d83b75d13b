"""Sessions on TensorFlow, from a definition in memory or from a SavedModel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..exporters.artifact import MANIFEST, GraphFile, find_graph
from ..frontends.tensorflow import Function, as_function, checked_float, dtype_in, variables_of
from ..frontends.tensorflow_table import DTYPES, TF, TF_XLA, static_shape, tf
from ..ir.definition import Definition
from ..ir.errors import CheckpointError, InterlinguaError, TargetError, UsageError, nearest
from ..ir.graph import Graph
from ..ir.sizes import symbol
from ..ir.types import Type, dtype_of
from .session import Session

DEVICES = {"cpu": "CPU", "cuda": "GPU", "tpu": "TPU"}


class _Placed(Session):
    """A `tf.function` of a dict of tensors on one device."""

    target = "tensorflow"

    def __init__(self, graph: Graph, function: Function, *, device: str, name: str, float: str = "f32", jit_compile: bool | None):
        super().__init__(graph, device=device, name=name)
        self._place = place(device)
        self._types = {v.name: dtype_in(v.type, float) for v in graph.inputs}
        spec = {v.name: tf.TensorSpec(static_shape(v.shape), self._types[v.name]) for v in graph.inputs}
        compiled = not _grows(graph) if jit_compile is None else jit_compile
        self._function = tf.function(function, input_signature=[spec], autograph=False, jit_compile=compiled or None).get_concrete_function()

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for arrays that fit."""
        try:
            with tf.device(self._place):
                made = self._function(*tf.nest.flatten({k: tf.cast(arrays[k], dtype) for k, dtype in self._types.items()}))
                return {k: tf.cast(made[k], DTYPES[t.dtype]).numpy() for k, t in self.outputs.items()}
        except tf.errors.OpError as error:
            raise InterlinguaError(f"{self.name} failed in TensorFlow {tf.__version__}: {error.message}") from error


class TensorflowSession(_Placed):
    """A graph of a definition on TensorFlow, on the device cpu, cuda or tpu (`cuda:1` where there are several).

    XLA compiles it for each set of sizes that comes in. By default a graph whose cache grows is left to TensorFlow's own kernels, since there
    each call has new sizes. `dtype` is what floats are inside (float32 unless "f16", "bf16" or "f64"); results have the graph's dtypes all the same.

    Raises UsageError for an unknown device or dtype, TargetError for a device that is not there.
    """

    def __init__(self, definition: Definition, graph: Graph, device: str = "cpu", dtype: str | None = None, jit_compile: bool | None = None):
        float = checked_float(dtype)
        with tf.device(place(device)):
            weights = variables_of(definition.weights, graph.params(), float)
        table = TF if jit_compile is False or (jit_compile is None and _grows(graph)) else TF_XLA
        call = as_function(graph, weights, table.in_float(float)).get_concrete_function()
        by_name = lambda tensors: call(*(tensors[v.name] for v in graph.inputs))
        super().__init__(graph, by_name, device=device, name=definition.name, float=float, jit_compile=jit_compile)


class SavedModelSession(_Placed):
    """The signature `serving_default` of a SavedModel."""

    def __init__(self, folder: Path, graph: Graph | None, device: str, name: str, jit_compile: bool | None):
        try:
            with tf.device(place(device)):
                self._loaded = tf.saved_model.load(str(folder))  # holds the variables
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise CheckpointError(f"{folder} cannot be loaded by TensorFlow {tf.__version__}: {str(error).strip().splitlines()[0]}") from error
        signatures = self._loaded.signatures
        if "serving_default" not in signatures:
            raise CheckpointError(f"{folder} has no signature 'serving_default'; it has {', '.join(signatures) or 'none'}")
        call = signatures["serving_default"]
        graph = _declared(call) if graph is None else graph
        super().__init__(graph, lambda tensors: call(**tensors), device=device, name=name, jit_compile=jit_compile)


def open_saved_model(folder: str | os.PathLike[str], *, device: str = "cpu", jit_compile: bool | None = None) -> SavedModelSession:
    """A session of an exported SavedModel, or of any SavedModel with a signature `serving_default`.

    Raises UsageError where there is nothing to open, CheckpointError where a file is missing or damaged.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == "saved_model.pb" else folder
    if (folder / "saved_model.pb").is_file() and not (folder / MANIFEST).exists():
        return SavedModelSession(folder, None, device, folder.name, jit_compile)
    folder, entry = find_graph(folder, "saved_model")
    return SavedModelSession(folder, entry.graph(), device, entry.model or folder.name, jit_compile)


def place(device: str) -> str:
    """TensorFlow's name of a device. UsageError for an unknown one, TargetError for one that is not there."""
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and not number.isdigit()):
        raise UsageError(f"device {device!r} is unknown to TensorFlow sessions{nearest(kind, DEVICES)}")
    have = tf.config.list_logical_devices(DEVICES[kind])
    if int(number or 0) >= len(have):
        known = ", ".join(d.name.removeprefix("/device:") for d in tf.config.list_logical_devices())
        raise TargetError(f"device {device!r} is not there: TensorFlow {tf.__version__} sees {known}")
    return have[int(number or 0)].name


def _grows(graph: Graph) -> bool:
    """Whether the graph takes the keys and values of earlier calls, which are longer in each call."""
    return any("past" in v.type.names() for v in graph.inputs)


def _declared(signature: Any) -> Graph:
    """A graph of the inputs and outputs that a signature declares; sizes left open are taken to be independent."""
    inputs = {spec.name: _type(spec, name) for name, spec in signature.structured_input_signature[1].items()}
    return GraphFile("", "", inputs, {name: _type(spec, name) for name, spec in signature.structured_outputs.items()}).graph()


def _type(spec: Any, name: str) -> str:
    if spec.shape.rank is None or spec.dtype not in DTYPES.values():
        raise TargetError(f"{name!r} is {spec}, expected a tensor of known rank and of {', '.join(DTYPES)}")
    name = "".join(c if c.isalnum() else "_" for c in name)
    return str(Type(dtype_of(spec.dtype.as_numpy_dtype), tuple(symbol(f"{name}_{i}") if d is None else d for i, d in enumerate(spec.shape))))
