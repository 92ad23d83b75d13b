"""StableHLO files: one program for CPU, CUDA and TPU with symbolic sizes, its weights beside it.

A file is what `jax.export` serialises: StableHLO in its portable form and the calling convention, which `jax.export.deserialize` reads
(https://docs.jax.dev/en/latest/export/export.html). The program takes weights, then inputs, by place; `interlingua.json` lists both in order.
Programs for CUDA and TPU are lowered here and not run here: that needs the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..frontends.jax import as_program
from ..frontends.jax_table import JAX, jax, native_dtype
from ..ir import ops
from ..ir.atomic import atomic_folder
from ..ir.definition import Definition
from ..ir.errors import MissingExtraError, TargetError, UsageError, nearest
from ..ir.graph import Graph, Param, Value
from ..ir.passes import push_slices
from ..ir.sizes import bind
from ..ir.table import lower
from ..ir.types import Type
from ..ir.weights import Weights
from .artifact import GraphFile, WeightFiles, graph_file, write_manifest

PLATFORMS = ("cpu", "cuda", "tpu")

Check = Callable[[Mapping[str, Path], Path, Path], Mapping[str, Mapping[str, Any]]]


def export(
    definition: Definition,
    folder: str | os.PathLike[str],
    *,
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    name: str = "model",
    graphs: Mapping[str, Graph] | None = None,
    weights: Weights | None = None,
    head: str = "",
    overwrite: bool = False,
    check: Check | None = None,
) -> list[GraphFile]:
    """Writes `folder`/`name`.stablehlo and `interlingua.json`, and returns what they list; weights are arguments, referred to where they lie.

    `graphs`, by file stem, stand in for the definition's graph of those `inputs` and `outputs`, and `weights` for its weights; several graphs share
    them. `check(files, staging, folder)` is called before anything appears and returns errors by stem and output, to be noted, or raises; the
    staging folder has an `interlingua.json` by then.

    Raises UsageError for an unknown platform and for an existing output unless `overwrite`, TargetError for what StableHLO cannot express; then
    nothing is left.
    """
    folder, weights = Path(folder), definition.weights if weights is None else weights
    graphs = {name: definition.graph(inputs, outputs)} if graphs is None else dict(graphs)
    made = {stem: to_exported(graph, platforms) for stem, graph in graphs.items()}
    files = WeightFiles(weights, (p.key for _, params in made.values() for p in params), folder, [f"{stem}.stablehlo" for stem in graphs])
    entries = {stem: describe(definition, graph, stem, made[stem][1], files, platforms, head=head) for stem, graph in graphs.items()}
    names = [*(e.file for e in entries.values()), *files.written]
    fresh = not any(os.path.lexists(folder / n) for n in names)  # then only interlingua.json is replaced, which keeps what it lists
    with atomic_folder(folder, names=names, removes=files.unread, overwrite=overwrite or fresh) as staging:
        for stem, (exported, _) in made.items():
            (staging / entries[stem].file).write_bytes(_serialized(exported))
        files.write(staging)
        write_manifest(staging, folder, list(entries.values()))
        if check is not None:
            for stem, errors in check({k: staging / e.file for k, e in entries.items()}, staging, folder).items():
                entries[stem].errors = dict(errors)
            write_manifest(staging, folder, list(entries.values()))
    return list(entries.values())


def describe(
    definition: Definition, graph: Graph, stem: str, params: Sequence[Param], files: WeightFiles, platforms: Sequence[str], *, head: str = ""
) -> GraphFile:
    """The entry of `interlingua.json`: its details list each weight as the program takes them, `type` as stored, at `offset` in `file`."""
    rows = []
    for param in params:
        dtype, shape = files.weights.spec(param.key)
        at = files.places[param.key]
        rows.append({"name": param.key, "type": str(Type(dtype, shape)), "file": at.file, "offset": at.offset})
    details = {"platforms": list(platforms), "jax": jax.__version__, "limits": {str(d): k for d, k in graph.limits.items()}, "weights": rows}
    sizes = files.files(p.key for p in params)
    return graph_file(graph, f"{stem}.stablehlo", "stablehlo", model=definition.name, head=head, details=details, weights=sizes)


def to_exported(graph: Graph, platforms: Sequence[str] = PLATFORMS) -> tuple[Any, list[Param]]:
    """The graph as a `jax.export.Exported` that takes (weights, inputs), and the parameters in the order of the weights."""
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UsageError(f"platform {platform!r} is unknown{nearest(platform, PLATFORMS)}")
    graph = push_slices(graph)  # before its sizes are named: what it asks of them depends on what is left
    program, params = as_program(graph)
    try:
        with jax.enable_x64(False):  # the file does not depend on a setting of this process
            sizes = symbolic_sizes(graph)
            specs = [[_spec(v, sizes) for v in values] for values in (params, graph.inputs)]
            return jax.export.export(jax.jit(program), platforms=tuple(platforms))(*specs), params
    except jax.errors.InconclusiveDimensionOperation as error:
        raise TargetError(
            f"StableHLO with symbolic sizes: {str(error).splitlines()[0]}\n"
            "  give the sizes a least value in the model's inputs (f32[batch samples>=400]), or leave out the outputs that need it (outputs=[...])"
        ) from error


def symbolic_sizes(graph: Graph) -> dict[str, Any]:
    """JAX's sizes for the names of our own, constrained by the least and largest values that the graph knows.

    JAX's are at least 1; a size that may be 0 is one less than such a size.
    """
    names = sorted(set().union(*(v.type.names() for v in graph.inputs)))
    free = [n for n in names if graph.bounds.get(n, 1) < 1]

    def sizes(*constraints: str) -> dict[str, Any]:
        symbols = [f"{n}_and_1" if n in free else n for n in names]
        made = jax.export.symbolic_shape(",".join(symbols), constraints=constraints) if names else ()
        return {n: size - 1 if n in free else size for n, size in zip(names, made, strict=True)}

    plain = sizes()  # whose text is JAX's own notation
    least = [f"{plain[n]} >= {k}" for n, k in graph.bounds.items() if k > 1 and n in plain]
    most = [f"{bind(d, plain, JAX.minimum, JAX.maximum)} <= {k}" for d, (k, _) in graph.limits.items() if d.names() <= plain.keys()]
    known = [*least, *most, *_unproven(graph, sizes(*least, *most))]
    return sizes(*known)


def _unproven(graph: Graph, sizes: Mapping[str, Any]) -> list[str]:
    """What holds of sizes where JAX cannot tell: none is negative, and an axis that is read or written by index is not empty."""
    nodes = lower(graph, JAX).live()
    least = dict.fromkeys((d for node in nodes for v in node.outputs for d in v.shape), 0)
    read = [(node.inputs[0], node.attrs["axis"]) for node in nodes if node.op in (ops.take, ops.gather, ops.scatter)]
    least |= {x.shape[axis]: 1 for x, axis in read if x is not None}
    found: dict[str, None] = {}
    for d, n in least.items():
        size = bind(d, sizes, JAX.minimum, JAX.maximum)
        try:
            _ = size >= n
        except jax.errors.InconclusiveDimensionOperation:
            found[f"{size} >= {n}"] = None
    return list(found)


def _spec(value: Value, sizes: Mapping[str, Any]) -> Any:
    return jax.ShapeDtypeStruct(bind(value.shape, sizes, JAX.minimum, JAX.maximum), native_dtype(value.type.dtype))


def _serialized(exported: Any) -> bytes:
    try:
        return bytes(exported.serialize())
    except ImportError as error:  # jax needs flatbuffers for this alone
        raise MissingExtraError("jax", "a StableHLO file") from error
