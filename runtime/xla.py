"""Sessions on XLA, through whichever PJRT client JAX finds: from a definition in memory or from a StableHLO file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..exporters.artifact import GraphFile, find_graph, read_manifest
from ..ir.definition import Definition
from ..ir.errors import CheckpointError, InputError, InterlinguaError, MissingExtraError, ShapeError, TargetError, UsageError, nearest
from ..ir.graph import Graph
from ..ir.sizes import parse_size
from ..ir.types import NUMPY_DTYPES, Type
from .session import Session

DEVICES = ("cpu", "cuda", "tpu")
Program = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]


class XlaSession(Session):
    """A program on one device, compiled when it first meets a set of sizes.

    `program(weights, inputs)` takes and gives arrays by place, inputs and outputs in the graph's order; `dtypes` are those of its inputs by name.
    `device` is cpu, cuda or tpu, with a number where there are several (`cuda:1`). The buffers of inputs named in `donate` may be reused for outputs.

    Raises UsageError for an unknown device, TargetError for one that is not here.
    """

    target = "xla"
    compiles_sizes = True

    def __init__(
        self,
        graph: Graph,
        program: Program,
        weights: Iterable[np.ndarray],
        dtypes: Mapping[str, np.dtype],
        *,
        device: str = "cpu",
        name: str = "the model",
        donate: Iterable[str] = (),
    ):
        super().__init__(graph, device=device, name=name)
        self.jax, self._place, self.program = _jax(), find_device(device), program
        self._dtypes, self._donated = dict(dtypes), frozenset(donate)
        self.weights = [self.jax.device_put(w, self._place) for w in weights]

        def by_name(weights: Sequence[Any], kept: Mapping[str, Any], donated: Mapping[str, Any]) -> dict[str, Any]:
            given = {**kept, **donated}
            return dict(zip(graph.outputs, program(weights, [given[k] for k in self.inputs]), strict=True))

        self._compiled = self.jax.jit(by_name, donate_argnums=2)

    def put(self, name: str, array: Any) -> Any:
        """An array for the input of that name, on the device and in the program's dtype; on a CPU it may share the memory.

        Raises InputError for an integer that the dtype cannot hold.
        """
        array, dtype = np.asarray(array), self._dtypes[name]
        if dtype.kind in "iu" and array.dtype.kind in "iu" and array.dtype.itemsize > dtype.itemsize and array.size:
            bounds = np.iinfo(dtype)
            if worst := next((int(x) for x in (array.min(), array.max()) if not bounds.min <= x <= bounds.max), None):
                raise InputError(f"input {name!r} has {worst}, expected {bounds.min} to {bounds.max}: XLA has integers of {dtype.itemsize * 8} bits")
        return self.jax.device_put(array.astype(dtype, copy=False), self._place)

    def on_device(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs on the device for inputs on the device (`put`), without waiting; donated ones are gone afterwards."""
        kept = {k: x for k, x in arrays.items() if k not in self._donated}
        return self.guarded(self._compiled, self.weights, kept, {k: arrays[k] for k in arrays if k in self._donated})

    def guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a compiled function; InterlinguaError names the model and device where XLA fails."""
        try:
            return call(*arguments)
        except self.jax.errors.JaxRuntimeError as error:
            raise InterlinguaError(f"{self.name} failed in XLA on {self.device}: {error}") from error

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for arrays that fit."""
        made = self.on_device({k: self.put(k, x) for k, x in arrays.items()})
        return {k: np.asarray(made[k]).astype(NUMPY_DTYPES[t.dtype], copy=False) for k, t in self.outputs.items()}


def compile_xla(
    definition: Definition,
    graph: Graph | None = None,
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    dtype: str | None = None,
    **options: Any,
) -> XlaSession:
    """A session of a definition's graph through `jax.jit`. `options` are `device` and `donate` of `XlaSession`.

    `dtype` is what floats are inside, float32 unless "bf16", "f16" or "f64"; results have the graph's dtypes all the same.
    """
    _jax()
    from ..frontends.jax import as_program, checked_float, run_dtype

    graph, float = definition.graph(inputs, outputs) if graph is None else graph, checked_float(dtype)
    program, params = as_program(graph)
    weights = (definition.weights.array(p.key).astype(run_dtype(p.type, float), copy=False) for p in params)
    dtypes = {v.name: run_dtype(v.type, float) for v in graph.inputs}
    return XlaSession(graph, program, weights, dtypes, name=definition.name, **options)


def open_stablehlo(place: str | os.PathLike[str], *, name: str = "", **options: Any) -> XlaSession:
    """A session of an exported program, without any model code; `name` is the file's stem where a folder has several.

    Raises UsageError where there is nothing to open, CheckpointError where a file is missing or damaged, TargetError for a device that the
    program was not lowered for.
    """
    folder, entry = find_graph(place, "stablehlo", name)
    return _session(folder / entry.file, [folder], entry, **options)


def open_staged(file: Path, folders: Sequence[Path], graph: Graph | None = None, **options: Any) -> XlaSession:
    """A session of a program whose weights lie in several folders still, as while an artifact is written."""
    entry = next(e for e in read_manifest(file.parent) if e.file == file.name)
    return _session(file, folders, entry, graph, **options)


def find_device(device: str) -> Any:
    """JAX's device of that name. UsageError for an unknown one, TargetError for one that is not here."""
    jax = _jax()
    present = [*jax.devices(), *jax.devices("cpu")]
    platform, _, number = device.partition(":")
    known = {*DEVICES, *(d.platform for d in present)}
    if platform not in known or (number and not number.isdigit()):
        raise UsageError(f"device {device!r} is unknown to XLA sessions{nearest(platform, known)}")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, IndexError):
        have = sorted({f"{d.platform}:{d.id}" for d in present})
        raise TargetError(f"device {device!r} is not here; JAX {jax.__version__} has {', '.join(have)}") from None


def _session(file: Path, folders: Sequence[Path], entry: GraphFile, graph: Graph | None = None, *, device: str = "cpu", **options: Any) -> XlaSession:
    place = find_device(device)  # before anything is read
    exported = _deserialized(file)
    platform = {"gpu": "cuda"}.get(place.platform, place.platform)
    if platform not in exported.platforms:
        raise TargetError(f"{file} was lowered for {', '.join(exported.platforms)}, not for {device}\n  export it again with that platform")
    graph, rows = _signature(entry) if graph is None else graph, entry.details.get("weights")
    if not isinstance(rows, list) or len(rows) + len(graph.inputs) != len(exported.in_avals):
        raise CheckpointError(f"{file} takes {len(exported.in_avals)} arrays, unlike what interlingua.json lists\n  export the model again")
    weights = (_stored(row, aval, folders) for row, aval in zip(rows, exported.in_avals, strict=False))
    dtypes = {v.name: np.dtype(aval.dtype) for v, aval in zip(graph.inputs, exported.in_avals[len(rows) :], strict=True)}
    return XlaSession(graph, exported.call, weights, dtypes, device=device, name=entry.model or file.stem, **options)


def _signature(entry: GraphFile) -> Graph:
    graph = entry.graph()
    graph.limits = {parse_size(d): (int(most), why) for d, (most, why) in entry.details.get("limits", {}).items()}
    return graph


def _deserialized(file: Path) -> Any:
    jax = _jax()
    try:
        return jax.export.deserialize(bytearray(file.read_bytes()))
    except ImportError as error:
        raise MissingExtraError("jax", "a StableHLO file") from error
    except Exception as error:  # flatbuffers fails in any way on other bytes
        raise CheckpointError(f"{file} is not a program that jax {jax.__version__} can read: {error}\n  export the model again") from error


def _stored(row: Mapping[str, Any], aval: Any, folders: Sequence[Path]) -> np.ndarray:
    """A weight as it lies in its file, mapped where it is of the program's dtype."""
    try:
        type, offset = Type.parse(row["type"]), int(row["offset"])
        file = next(f / row["file"] for f in folders if (f / row["file"]).is_file())
        dtype = NUMPY_DTYPES[type.dtype]
        raw = np.memmap(file, np.uint8, "r")[offset : offset + math.prod(aval.shape) * dtype.itemsize]
        return raw.view(dtype).reshape(aval.shape).astype(aval.dtype, copy=False)
    except (KeyError, TypeError, ValueError, StopIteration, ShapeError) as error:
        raise CheckpointError(f"weight {row!r:.200} of interlingua.json cannot be read: {error!r:.200}\n  export the model again") from error


def _jax() -> Any:
    try:
        import jax
        import jax.export
    except ImportError as error:
        raise MissingExtraError("jax", "a session on XLA") from error
    return jax
