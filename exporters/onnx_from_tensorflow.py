"""ONNX by way of TensorFlow and tf2onnx: a second path, independent of `exporters.onnx`, whose numbers can be compared with the first one's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..frontends.tensorflow import as_function, variables_of
from ..frontends.tensorflow_table import TF
from ..ir import ops
from ..ir.atomic import atomic_file
from ..ir.definition import Definition
from ..ir.errors import MissingExtraError, TargetError
from ..ir.graph import Graph

OPSETS = (13, 18)  # what tf2onnx 1.17 writes; below 13 it has no int64 where we need it
_LARGEST = 2 << 30  # bytes: tf2onnx freezes weights into one protocol buffer

# what tf2onnx has no rule for is decomposed
TF_ONNX = TF.derive("tensorflow for tf2onnx", {})
del TF_ONNX.rules[ops.gelu]


def export(
    definition: Definition,
    path: str | os.PathLike[str],
    *,
    opset: int = 18,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes one ONNX file, weights inside, with the definition's input and output names.

    Raises TargetError for an opset or op that tf2onnx lacks, or more than 2 GiB of weights; UsageError for an existing file unless `overwrite`.
    """
    with atomic_file(path, overwrite=overwrite) as file:
        file.write_bytes(to_proto(definition, definition.graph(inputs, outputs), opset=opset).SerializeToString())


def to_proto(definition: Definition, graph: Graph, *, opset: int = 18) -> Any:
    """The graph as an `onnx.ModelProto`; errors as for `export`."""
    try:
        import tf2onnx
    except ModuleNotFoundError:
        raise MissingExtraError("tensorflow", "ONNX through tf2onnx") from None
    function = as_function(graph, variables_of(definition, graph.params()), TF_ONNX)
    proto, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=opset)
    return proto
