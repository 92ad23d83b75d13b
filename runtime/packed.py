"""Weights in the order that this machine's kernels read, in files: packed once, and mapped by every session and process that opens them.

onnxruntime packs the weights of linear layers and convolutions when a session is opened, into memory of that session. Here it writes them to a folder
instead, beside the graph that it has optimised, and later sessions map them: they open faster, and share one copy.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from ..ir.errors import UsageError

MODEL, WEIGHTS = "model.onnx", "weights.bin"
SMALLEST = 1024  # bytes of what lies in the second file
_SAVING = {
    "session.optimized_model_external_initializers_file_name": WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": str(SMALLEST),
    "session.save_external_prepacked_constant_initializers": "1",
}


def packed_file(
    store: str | os.PathLike[str], model: str | bytes, folder: str, arrays: Mapping[str, np.ndarray], options: ort.SessionOptions, settings: str
) -> Path:
    """The file of a model whose weights are packed; what `store` has no such file of yet is written there, whole or not at all.

    `folder` has the files of its weights, and `arrays` are those in memory; `options` are onnxruntime's for this model, and `settings` their text.
    Which file it is follows from all of them (of files: path, size and time), onnxruntime's version and the processor.

    Raises UsageError where nothing can be written, and onnxruntime's own errors for what it cannot load.
    """
    store = Path(store).expanduser().absolute()
    found = store / _key(model, folder, arrays, settings)
    if found.exists():
        return found / MODEL
    try:
        (made := store / f".packing-{uuid4().hex}").mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"packed={str(store)!r}: no folder that can be written to: {error.strerror}") from error
    try:
        options.optimized_model_filepath = str(made / MODEL)
        for key, value in _SAVING.items():
            options.add_session_config_entry(key, value)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        made.rename(found)
    except OSError:
        if not found.exists():  # or else another process was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return found / MODEL


def return_freed_memory() -> None:
    """Hand memory that is free back to the system, where the C library can (glibc).

    onnxruntime packs each weight once more to find the packed one by its content, and frees it: glibc would keep that for later in pieces, as many as
    small allocations have cut off one another.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def _key(model: str | bytes, folder: str, arrays: Mapping[str, np.ndarray], settings: str) -> str:
    content = Path(model).read_bytes() if isinstance(model, str) else model
    digest = hashlib.blake2b(content, digest_size=16)
    for said in (ort.__version__, _processor(), settings, *_files(content, folder)):
        digest.update(repr(said).encode())
    for name, array in arrays.items():
        digest.update(name.encode() + np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _files(content: bytes, folder: str) -> Iterator[tuple[str, int, int]]:
    """The files that weights lie in, each with its size and the time of its last change."""
    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError:
        return  # which onnxruntime will say
    for name in sorted({e.value for tensor in _tensors(graph) for e in tensor.external_data if e.key == "location"}):
        if (file := Path(folder, name)).is_file():
            yield str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield attribute.t
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _processor() -> str:
    """What kernels are chosen by: the processor's features where the system tells them, or else its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()} {features}"
