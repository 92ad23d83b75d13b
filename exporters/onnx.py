"""ONNX files, written straight from the graph: nothing is traced, no framework is imported, no weight is read that lies in a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from ..ir.atomic import atomic_folder
from ..ir.cache import continues
from ..ir.definition import Definition
from ..ir.errors import CheckpointError, TargetError, UsageError
from ..ir.graph import Graph, Param, Value
from ..ir.passes import STANDARD, Pass, absorb_projections, flatten, fold_scales, merge_linears, optimize, separate_biases, without
from ..ir.table import lower, run, with_bodies
from ..ir.types import Type
from ..ir.weights import Location, Weights
from .artifact import GraphFile, WeightFiles, graph_file, write_manifest
from .half_precision import within_range
from .onnx_table import OnnxTable
from .onnx_tape import DATA_TYPES, Tape, every

# opset -> version of the file format that came with it (https://github.com/onnx/onnx/blob/main/docs/Versioning.md)
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12}
OPSET = 23  # the oldest that has attention, rotary positions and RMS normalisation as ops

PASSES = (*STANDARD, absorb_projections, fold_scales, merge_linears, flatten, separate_biases)

Check = Callable[[Mapping[str, Path], Path, Path], Mapping[str, Mapping[str, Any]]]


def export(
    definition: Definition,
    folder: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    switch_off: Iterable[str] = (),
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    name: str = "model",
    graphs: Mapping[str, Graph] | None = None,
    weights: Weights | None = None,
    head: str = "",
    overwrite: bool = False,
    check: Check | None = None,
) -> list[GraphFile]:
    """Writes `folder`/`name`.onnx and `interlingua.json`, and returns what they list; weights are referred to where they lie.

    `graphs`, by file stem, stand in for the definition's graph of those `inputs` and `outputs`, and `weights` for its weights; several graphs share
    them. `switch_off` names passes that are left out. `check(files, staging, folder)` is called before anything appears: with the graph files by
    stem, in the staging folder that becomes part of `folder`; it returns errors by stem and output, to be noted, or raises.

    Raises UsageError for an existing output unless `overwrite`, TargetError for an opset or op that cannot be written; then nothing is left.
    """
    folder, weights = Path(folder), definition.weights if weights is None else weights
    graphs = {name: definition.graph(inputs, outputs)} if graphs is None else dict(graphs)
    prepared = {stem: prepare(graph, opset, switch_off) for stem, graph in graphs.items()}
    files = WeightFiles(weights, (p.key for g in prepared.values() for p in g.params()), folder, [f"{stem}.onnx" for stem in graphs])
    entries = {stem: _entry(definition, graph, stem, opset, files, prepared[stem], head) for stem, graph in graphs.items()}
    names = [*(e.file for e in entries.values()), *files.written]
    fresh = not any(os.path.lexists(folder / n) for n in names)  # then only interlingua.json is replaced, which keeps what it lists
    with atomic_folder(folder, names=names, removes=files.unread, overwrite=overwrite or fresh) as staging:
        for stem, graph in prepared.items():
            proto = to_proto(graph, weights, opset=opset, place=files.places.__getitem__, name=definition.name)
            (staging / entries[stem].file).write_bytes(proto.SerializeToString())
        files.write(staging)
        if check is not None:
            for stem, errors in check({k: staging / e.file for k, e in entries.items()}, staging, folder).items():
                entries[stem].errors = dict(errors)
        write_manifest(staging, folder, list(entries.values()))
    return list(entries.values())


def _entry(definition: Definition, graph: Graph, stem: str, opset: int, files: WeightFiles, prepared: Graph, head: str) -> GraphFile:
    weights = files.files(p.key for p in prepared.params())
    details = {"opset": opset, **({"by_rows": True} if definition.by_rows else {})}
    return graph_file(graph, f"{stem}.onnx", "onnx", model=definition.name, head=head, details=details, weights=weights)


def prepare(graph: Graph, opset: int = OPSET, switch_off: Iterable[str] = ()) -> Graph:
    """The graph as it is written: optimised by the passes that are not switched off, and lowered to what the opset has."""
    if opset not in IR_VERSIONS:
        raise TargetError(f"opset {opset} is not written, expected one of {min(IR_VERSIONS)} to {max(IR_VERSIONS)}\n  choose opset {OPSET}")
    passes = passes_for(graph, switch_off)
    return within_range(lower(optimize(with_bodies(graph, lambda body: optimize(body, passes)), passes), OnnxTable(Tape(opset))))


def passes_for(graph: Graph, switch_off: Iterable[str] = ()) -> tuple[Pass, ...]:
    """The passes of a graph, but for those that are switched off.

    Linear layers are merged in graphs that continue from a cache, a row or so at a time. For many rows it costs more to take the result apart than
    one product saves, and sessions that read weights from their file alone would hold the merged ones in memory.
    """
    passes = without(PASSES, switch_off)
    return passes if continues(graph) else tuple(p for p in passes if p is not merge_linears)


def to_proto(graph: Graph, weights: Weights, *, opset: int = OPSET, place: Callable[[str], Location], name: str = "model") -> ModelProto:
    """A prepared graph as an ONNX model whose parameters are external data, each at `place(key)`."""
    _check_names(graph)
    tape = Tape(opset, graph.bounds, [*(v.name for v in graph.inputs), *graph.outputs, *(p.key for p in graph.params())])
    feed = _Feed(graph, weights, tape, place)

    made = run(graph, OnnxTable(tape), feed, observe=tape.learned)
    _name_outputs(tape, made)
    nodes, constants = tape.live(graph.outputs)
    proto = helper.make_graph(
        nodes,
        name,
        [_info(v.name, v.type) for v in graph.inputs],
        [_info(k, v.type) for k, v in graph.outputs.items()],
        [*feed.initializers, *constants],
    )
    versions = {"": opset, **dict.fromkeys(sorted({n.domain for n in nodes if n.domain}), 1)}
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSIONS[opset], producer_name="interlingua")


class _Feed(dict):
    """Names of inputs, and of parameters when they are read: then they become initializers, and are cast where they are stored in another dtype."""

    def __init__(self, graph: Graph, weights: Weights, tape: Tape, place: Callable[[str], Location]):
        super().__init__({v: v.name for v in graph.inputs})
        self.weights, self.tape, self.place = weights, tape, place
        self.initializers: list[TensorProto] = []
        for v in graph.inputs:
            tape.learn(v, v.name)

    def __missing__(self, param: Value) -> str:
        if not isinstance(param, Param):
            raise KeyError(f"nothing is fed for {param!r}")
        dtype, shape = self.weights.spec(param.key)
        if dtype not in DATA_TYPES:
            raise TargetError(f"weight {param.key!r} is of dtype {dtype}, which ONNX graphs are not written with; known: {', '.join(DATA_TYPES)}")
        if shape != param.shape:
            raise CheckpointError(f"weight {param.key!r} has shape {list(shape)}, expected {param.type}")
        tensor = TensorProto(name=param.key, data_type=DATA_TYPES[dtype], dims=shape, data_location=TensorProto.EXTERNAL)
        for k, v in zip(("location", "offset", "length"), self.place(param.key), strict=True):
            tensor.external_data.add(key=k, value=str(v))
        self.initializers.append(tensor)
        self.tape.path = param.name.rpartition(".")[0]
        self[param] = param.key if dtype == param.type.dtype else self.tape("Cast", param.key, to=DATA_TYPES[param.type.dtype])
        return self[param]


def _check_names(graph: Graph) -> None:
    given = [v.name for v in graph.inputs] + list(graph.outputs) + [p.key for p in graph.params()]
    if twice := [n for n in dict.fromkeys(given) if given.count(n) > 1]:
        raise UsageError(f"the name {twice[0]!r} is that of two inputs, outputs or weights, expected different ones in an ONNX graph")


def _name_outputs(tape: Tape, made: Mapping[str, str]) -> None:
    """Gives results the names of outputs; one that is an input, a weight or another output too is copied."""
    by_node = {name for node in tape.nodes for name in node.output}
    renamed: dict[str, str] = {}
    tape.path = ""
    for output, name in made.items():
        if name in by_node and name not in renamed:
            renamed[name] = output
    for node in every(tape.nodes):
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in renamed:
                    names[i] = renamed[name]
    for output, name in made.items():
        if renamed.get(name) != output:
            tape.nodes.append(NodeProto(op_type="Identity", name=tape.unique("Identity"), input=[renamed.get(name, name)], output=[output]))


def _info(name: str, type: Type) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, DATA_TYPES[type.dtype], [d if isinstance(d, int) else str(d) for d in type.shape])
