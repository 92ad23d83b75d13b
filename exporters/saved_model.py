"""TensorFlow SavedModels: the graph with its weights, for `tf.saved_model.load` and TensorFlow Serving, without any of our code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..frontends.tensorflow import as_function, variables_of
from ..frontends.tensorflow_table import tf
from ..ir.atomic import atomic_folder
from ..ir.definition import Definition
from ..ir.graph import Graph
from ..ir.weights import Weights
from .artifact import GraphFile, graph_file, write_manifest
from .onnx import Check

FILE, SIGNATURE = "saved_model.pb", "serving_default"
_WEIGHTS = ("variables/variables.index", "variables/variables.data-00000-of-00001")


def export(
    definition: Definition,
    folder: str | os.PathLike[str],
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    graph: Graph | None = None,
    weights: Weights | None = None,
    head: str = "",
    overwrite: bool = False,
    check: Check | None = None,
) -> list[GraphFile]:
    """Writes a SavedModel and `interlingua.json`, and returns what that lists.

    Its signature `serving_default` has the graph's inputs and outputs under their own names and with sizes left open; variables lie in `weights` by
    checkpoint name. It is not bound to XLA, so that every runtime of TensorFlow serves it. `graph` stands in for the definition's graph of those
    `inputs` and `outputs`, `weights` for its weights. `check(files, staging, folder)` is called before anything appears, with the file as "model";
    it returns errors by stem and output, to be noted, or raises.

    Raises UsageError for an existing output unless `overwrite`; then nothing is written.
    """
    folder = Path(folder)
    graph = definition.graph(inputs, outputs) if graph is None else graph
    module: Any = tf.Module()
    module.weights = variables_of(definition.weights if weights is None else weights, graph.params())
    function = as_function(graph, module.weights)
    details = {"signature": SIGNATURE, "tensorflow": tf.__version__}
    entry = graph_file(graph, FILE, "saved_model", model=definition.name, head=head, weights=dict.fromkeys(_WEIGHTS, 0), details=details)
    names = [FILE, "fingerprint.pb", *_WEIGHTS]
    fresh = not any(os.path.lexists(folder / n) for n in names)  # then only interlingua.json is replaced, which keeps what it lists
    with atomic_folder(folder, names=names, overwrite=overwrite or fresh) as staging:
        tf.saved_model.save(module, str(staging), signatures={SIGNATURE: function.get_concrete_function()})
        if check is not None:
            entry.errors = dict(check({"model": staging / FILE}, staging, folder).get("model", {}))
        write_manifest(staging, folder, [entry])
    return [entry]
