"""ONNX by way of TensorFlow and tf2onnx: a second path, independent of `exporters.onnx`, whose numbers can be compared with the first one's."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..frontends.tensorflow import as_function, variables_of
from ..frontends.tensorflow_table import TF, tf
from ..ir import ops
from ..ir.atomic import atomic_file
from ..ir.definition import Definition
from ..ir.errors import MissingExtraError, TargetError
from ..ir.graph import Graph
from ..ir.types import NUMPY_DTYPES

OPSET = 18  # the newest that tf2onnx 1.17 writes
OPSETS = range(13, OPSET + 1)
LARGEST = 2 << 30  # bytes: tf2onnx freezes weights into one protocol buffer


def _floor_divide(x: Any, y: Any) -> Any:
    """Rounded down also below zero, where tf2onnx's division of integers rounds towards zero."""
    x, y = tf.where(y < 0, -x, x), tf.abs(y)
    return tf.where(x < 0, -((-x - 1) // y) - 1, tf.maximum(x, 0) // y)


def _remainder(x: Any, y: Any) -> Any:
    return x - _floor_divide(x, y) * y


TF_ONNX = TF.derive("tensorflow for tf2onnx", {ops.floor_divide: _floor_divide, ops.remainder: _remainder})
for _op in (ops.gelu, ops.elu):
    del TF_ONNX.rules[_op]  # TensorFlow computes them by Erfc and Expm1, which tf2onnx lacks; their decompositions do without


def export(
    definition: Definition,
    path: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes one ONNX file, weights inside, with the definition's names of inputs and outputs.

    Raises TargetError for an opset or op that tf2onnx lacks, or more than 2 GiB of weights; UsageError for an existing file unless `overwrite`.
    """
    with atomic_file(path, overwrite=overwrite) as file:
        file.write_bytes(to_proto(definition, definition.graph(inputs, outputs), opset=opset).SerializeToString())


def to_proto(definition: Definition, graph: Graph, *, opset: int = OPSET) -> Any:
    """The graph as an `onnx.ModelProto`; errors as for `export`."""
    try:
        import tf2onnx
    except ModuleNotFoundError:
        raise MissingExtraError("tensorflow", "ONNX through tf2onnx") from None
    if opset not in OPSETS:
        raise TargetError(f"opset {opset} is not written through tf2onnx, expected {OPSETS[0]} to {OPSETS[-1]}\n  choose opset {OPSET}")
    params = graph.params()
    total = sum(math.prod(p.shape) * NUMPY_DTYPES[p.type.dtype].itemsize for p in params)
    if total >= LARGEST:
        raise TargetError(f"{definition.name} has {total} bytes of weights, tf2onnx takes less than {LARGEST}\n  use the direct ONNX export")
    function = as_function(graph, variables_of(definition.weights, params), TF_ONNX)
    with _quiet(logging.getLogger("tf2onnx")):
        proto, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=opset)
    _check_ops(proto, definition.name)
    return proto


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it lacks is raised, not logged
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_ops(proto: Any, name: str) -> None:
    """TargetError for TensorFlow ops that tf2onnx left as they were."""
    import onnx

    known = {s.name for s in onnx.defs.get_all_schemas()}
    if left := sorted({n.op_type for n in proto.graph.node if n.domain == "" and n.op_type not in known}):
        raise TargetError(f"tf2onnx cannot express {', '.join(left)} of {name}\n  leave out the outputs that need it (outputs=[...])")
