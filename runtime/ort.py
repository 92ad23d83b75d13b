"""Sessions on onnxruntime, from a definition in memory or from an ONNX file."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from ..exporters.artifact import MANIFEST, GraphFile, find_graph, read_manifest
from ..exporters.onnx import OPSET, prepare, to_proto
from ..ir.definition import Definition
from ..ir.errors import CheckpointError, InterlinguaError, TargetError, UsageError, nearest
from ..ir.graph import Graph
from ..ir.sizes import Size, parse_size, symbol
from ..ir.types import NUMPY_DTYPES, Type
from ..ir.weights import Location
from .packed import packed_file, return_freed_memory
from .row_groups import RowGroups, divisible
from .session import Session
from .vocabulary_head import VocabularyHead

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
DEFAULTS = {"session.intra_op.allow_spinning": "0"}  # threads that spin while they wait take the cores from other sessions
# for files of half floats: onnxruntime 1.32 widens them on CPUs, and its layout of convolutions crashes on what that leaves of some (Funnel's)
HALF = {"optimization.disable_specified_optimizers": "NchwcTransformer"}
_NO_BF16 = "\n  onnxruntime has hardly any kernels for bf16 on CPUs: open it on device='cuda', or export the model with dtype='f16'"
_DTYPES = {"float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "bool", "uint8": "u8", "uint32": "u32"}
_DTYPES |= {f"int{n}": f"i{n}" for n in (8, 16, 32, 64)}


class OnnxSession(Session):
    """An ONNX model on onnxruntime: the path of a file, or its bytes with the `folder` that its external data lies in, or with `initializers`.

    `device` is cpu, cuda or tensorrt, with a number where there are several (`cuda:1`). `session_options` are entries of onnxruntime's session
    configuration, or an `onnxruntime.SessionOptions`; `provider_options` those of the device's provider; `threads` 0 means one per core.
    `packed` is a folder for weights as the processor's kernels read them: made where they are missing, then mapped, and so shared, by all sessions.
    Large batches then run in groups of rows, a group on each thread (runtime/row_groups.py), where `by_rows` says that the rows of a
    batch do not see one another: cards say so of their architectures (ir/card.py), you of models of your own.
    `apart` names an output: where a large linear layer makes it, on a CPU, that layer is no part of the graph that runs, but the session's `head`.

    Raises CheckpointError for what onnxruntime cannot load, UsageError for an unknown device, TargetError for one that is not here.
    """

    target = "onnxruntime"

    head: VocabularyHead | None = None
    groups: RowGroups | None = None

    def __init__(
        self,
        model: str | bytes,
        graph: Graph | None = None,
        device: str = "cpu",
        *,
        name: str = "the model",
        threads: int = 0,
        folder: str = "",
        initializers: Mapping[str, np.ndarray] | None = None,
        session_options: Mapping[str, str] | ort.SessionOptions | None = None,
        provider_options: Mapping[str, Any] | None = None,
        apart: str = "",
        packed: str | os.PathLike[str] = "",
        by_rows: bool = False,
    ):
        if packed and (device != "cpu" or isinstance(session_options, ort.SessionOptions)):
            raise UsageError(f"packed={str(packed)!r} is for device='cpu', with session_options as a mapping: weights are packed for the processor")
        providers, self.apart = _providers(device, provider_options or {}), apart
        folder = folder or (os.path.dirname(os.path.abspath(model)) if isinstance(model, str) else "")
        if apart and device == "cpu" and not isinstance(session_options, ort.SessionOptions):
            model, initializers = self._without_head(model, folder, initializers or {}, threads=threads, session_options=session_options)
        entries = HALF if _has(graph, "f16") else {}
        options = _options(session_options, threads, entries, folder, initializers or {})
        try:
            if packed:
                model = str(packed_file(packed, model, folder, initializers or {}, options, repr((session_options, entries))))
                options = _options(session_options, threads, entries)
                if by_rows and threads != 1 and self.head is None and graph is not None and divisible(graph):
                    self.groups = RowGroups(threads, partial(OnnxSession, model, graph, name=name, threads=1, session_options=session_options))
            self.ort = ort.InferenceSession(model, options, providers=providers)
            if packed:
                return_freed_memory()
        except UsageError:
            raise
        except Exception as error:  # onnxruntime's errors have no common base
            raise _unloadable(error, model if isinstance(model, str) else name, graph, packed) from error
        if (wanted := providers[0][0]) not in self.ort.get_providers():
            raise TargetError(f"device {device!r}: onnxruntime could not start {wanted}\n  see that its driver and libraries are installed")
        super().__init__(graph or _declared(self.ort), device=device, name=name)

    def _without_head(
        self, model: str | bytes, folder: str, arrays: Mapping[str, np.ndarray], **options: Any
    ) -> tuple[str | bytes, Mapping[str, np.ndarray]]:
        """The model and its arrays without the layer that makes the output `apart`, where that becomes the session's head."""
        try:
            proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
        except (OSError, DecodeError):
            return model, arrays  # which onnxruntime will say
        self.head = VocabularyHead.cut(proto, self.apart, folder, arrays, partial(OnnxSession, **options))
        if self.head is None:
            return model, arrays
        return proto.SerializeToString(), {t.name: arrays[t.name] for t in proto.graph.initializer if t.name in arrays}

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs for arrays that fit."""
        return self.groups.run(arrays, self._run) if self.groups else self._run(arrays)

    def _run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        fetched = {name: name for name in self.graph.outputs} | ({self.apart: self.head.states} if self.head else {})
        try:
            if _has(self.graph, "bf16"):  # which onnxruntime does not know as arrays
                values = self.ort.run_with_ort_values(list(fetched.values()), {k: _ort_value(x) for k, x in arrays.items()})
                found = [as_array(x) for x in values]
            else:
                found = [np.asarray(x) for x in self.ort.run(list(fetched.values()), dict(arrays))]
        except Exception as error:
            raise InterlinguaError(f"{self.name} failed in onnxruntime {ort.__version__}: {reason(error)}") from error
        made = dict(zip(fetched, found, strict=True))
        if self.head:
            scores = self.head.scores(made[self.apart])
            made[self.apart] = scores.reshape(len(next(iter(arrays.values()))), -1, scores.shape[-1])
        return made

    def close(self) -> None:
        """Gives back what the session holds, the memory of its weights above all; it cannot run afterwards."""
        del self.ort
        self.head = self.groups = None


class OrtSession(OnnxSession):
    """A graph of a definition on onnxruntime, built in memory; weights that lie in files are mapped. `options` are those of `OnnxSession`."""

    def __init__(self, definition: Definition, graph: Graph, device: str = "cpu", *, opset: int = OPSET, **options: Any):
        prepared, weights = prepare(graph, opset), definition.weights
        found = {p.key: weights.location(p.key) for p in prepared.params()}
        folder = _common(at.file for at in found.values() if at)
        places = {k: at._replace(file=os.path.relpath(at.file, folder)) if at else Location("memory", 0, 0) for k, at in found.items()}
        proto = to_proto(prepared, weights, opset=opset, place=places.__getitem__, name=definition.name)
        arrays = {k: weights.array(k) for k, at in found.items() if at is None}
        options = {"by_rows": getattr(definition, "by_rows", False), **options}
        super().__init__(proto.SerializeToString(), graph, device, name=definition.name, folder=folder, initializers=arrays, **options)


def _common(files: Iterable[str]) -> str:
    """The folder below which all files lie; the empty text for none."""
    folders = {os.path.dirname(os.path.abspath(f)) for f in files}
    return os.path.commonpath(folders) if folders else ""


def open_onnx(place: str | os.PathLike[str], *, name: str = "", **options: Any) -> OnnxSession:
    """A session of an exported graph, or of any ONNX file; `name` is the file's stem where a folder has several.

    Raises UsageError where there is nothing to open, CheckpointError where a file is missing or damaged.
    """
    place = Path(place)
    if place.suffix == ".onnx" and place.is_file() and not _listed(place):
        return OnnxSession(str(place), name=place.stem, **options)
    folder, entry = find_graph(place, "onnx", name)
    options = {"by_rows": entry.details.get("by_rows") is True, **options}
    return OnnxSession(str(folder / entry.file), entry.graph(), name=entry.model or Path(entry.file).stem, **options)


def open_staged(file: Path, folders: Sequence[Path], graph: Graph | None, *, widen: bool = False, **options: Any) -> OnnxSession:
    """A session of a graph file whose weights lie in several folders still, as while an artifact is written; with `widen` bf16 becomes f32 in it."""
    proto = onnx.load(file, load_external_data=False)
    if widen:
        _widen(proto.graph)
    base = _common(str(f / "model.onnx") for f in folders)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                at = next(f / entry.value for f in folders if (f / entry.value).exists())
                entry.value = os.path.relpath(at, base)
    return OnnxSession(proto.SerializeToString(), graph, folder=base, **options)


def _widen(graph: onnx.GraphProto) -> None:
    """Makes f32 of the bf16 in a graph: what is stored is cast where the graph begins, and every other number is made as f32."""
    bf16, f32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    nodes, casts = list(graph.node), []
    for tensor in graph.initializer:
        if tensor.data_type == bf16:
            casts.append(onnx.helper.make_node("Cast", [f"{tensor.name}.stored"], [tensor.name], to=f32))
            tensor.name += ".stored"
    for v in (*graph.input, *graph.output, *graph.value_info):
        if v.type.tensor_type.elem_type == bf16:
            v.type.tensor_type.elem_type = f32
    for node in nodes:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                _widen(a.g)
            elif (node.op_type, a.name, a.i) == ("Cast", "to", bf16):
                a.i = f32
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def _listed(file: Path) -> bool:
    return (file.parent / MANIFEST).exists() and any(g.file == file.name for g in read_manifest(file.parent))


def _providers(device: str, options: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    kind, _, number = device.partition(":")
    if kind not in PROVIDERS or not re.fullmatch(r"\w+(:\d+)?", device):
        raise UsageError(f"device {device!r} is unknown to onnxruntime sessions{nearest(kind, PROVIDERS)}")
    installed = ort.get_available_providers()
    first, *rest = PROVIDERS[kind]
    if first not in installed:
        raise TargetError(
            f"device {device!r} needs {first}, onnxruntime {ort.__version__} has {', '.join(installed)}\n"
            "  run: pip uninstall onnxruntime && pip install onnxruntime-gpu"
        )
    own = {"device_id": int(number)} if number else {}
    return [(first, {**own, **options}), *((p, own if p.startswith("CUDA") else {}) for p in rest if p in installed)]


def _options(
    given: Mapping[str, str] | ort.SessionOptions | None,
    threads: int,
    entries: Mapping[str, str],
    folder: str = "",
    arrays: Mapping[str, np.ndarray] | None = None,
) -> ort.SessionOptions:
    """onnxruntime's options: those given and what the graph needs, with the place that its weights lie in."""
    if given is None or isinstance(given, Mapping):
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        entries = {**DEFAULTS, **(given or {}), **entries}
    else:
        options = given
    for key, value in entries.items():
        options.add_session_config_entry(key, str(value))
    if threads:
        options.intra_op_num_threads = threads
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if arrays:
        options.add_external_initializers(list(arrays), [_ort_value(x) for x in arrays.values()])
    return options


def _unloadable(error: Exception, what: str, graph: Graph | None, packed: str | os.PathLike[str]) -> CheckpointError:
    """What is said of a model, by its path or name, that onnxruntime refuses."""
    hint = _NO_BF16 if "NOT_IMPLEMENTED" in str(error) and _has(graph, "bf16") else ""
    if packed and Path(what).is_relative_to(Path(packed).expanduser().absolute()):
        hint = "\n  delete that folder: it is made again from the model"
    return CheckpointError(f"{what} cannot be loaded by onnxruntime {ort.__version__}: {reason(error)}{hint}")


def _ort_value(array: np.ndarray) -> ort.OrtValue:
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype == NUMPY_DTYPES["bf16"]:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), 16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def as_array(value: ort.OrtValue) -> np.ndarray:
    """An array of what lies in host memory, of any dtype."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    words = np.frombuffer(ctypes.string_at(value.data_ptr(), 2 * math.prod(shape)), np.uint16)
    return words.view(NUMPY_DTYPES["bf16"]).reshape(shape)


def _has(graph: Graph | None, dtype: str) -> bool:
    """Whether a graph takes or gives tensors of that dtype."""
    return graph is not None and any(v.type.dtype == dtype for v in (*graph.inputs, *graph.outputs.values()))


def reason(error: Exception) -> str:
    """onnxruntime's message without its prefix and without where in its source it was raised."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |/\S+/onnxruntime/\S+ ", "", str(error))


def _declared(session: ort.InferenceSession) -> Graph:
    """A graph of the inputs and outputs that an ONNX file declares."""
    inputs = {x.name: _type(x) for x in session.get_inputs()}
    outputs = {x.name: _type(x) for x in session.get_outputs()}
    return GraphFile("", "", {k: str(t) for k, t in inputs.items()}, {k: str(t) for k, t in outputs.items()}).graph()


def _type(declared: Any) -> Type:
    match = re.fullmatch(r"tensor\((\w+)\)", declared.type)
    if not match or match[1] not in _DTYPES:
        raise TargetError(f"{declared.name!r} is a {declared.type}, expected tensors of {', '.join(sorted(_DTYPES))}")
    return Type(_DTYPES[match[1]], tuple(_size(d, f"{declared.name}_{i}") for i, d in enumerate(declared.shape)))


def _size(declared: Any, fallback: str) -> Size:
    if isinstance(declared, int):
        return declared
    try:
        return parse_size(str(declared or "?").replace(" ", ""))
    except InterlinguaError:
        return symbol(re.sub(r"\W", "_", fallback))
