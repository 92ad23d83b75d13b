"""Quantised exports: how far their outputs are from the model's, layer by layer, and which layers must stay as they are for a budget to hold.

An error is the greatest absolute difference of an output from the float64 reference of the model, divided by the output's greatest magnitude.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..exporters import onnx
from ..exporters.artifact import copy_companions
from ..exporters.graphs import graphs_of
from ..exporters.quantization import LEAST, REPORT, Quantized, Scheme, quantizable, quantize, scheme_of, size_of
from ..ir import ops
from ..ir.errors import ParityError, UsageError
from ..ir.graph import Graph
from ..ir.op import OPS
from ..ir.passes import optimize
from ..ir.reference import reference
from ..ir.table import Table, lower
from .ort import OrtSession, open_staged
from .samples import Sample, given_sample, make_samples
from .session import Session
from .verify import FACTORS, Report, Truth

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..exporters.artifact import GraphFile

    Progress = Callable[[str], None]

Model = Any  # interlingua.Model, which stands above this package
Errors = dict[str, dict[str, float]]  # by graph and output
Inputs = Mapping[str, Any]
ROUNDINGS = 2.0  # what a kernel may make of activations: nothing, or another rounding of those that lie in the middle


class Quality:
    """The float64 outputs of a model on samples, against which quantised ones are measured.

    Samples are made up unless given as inputs by name; given ones serve the graphs whose inputs they have.
    """

    def __init__(self, model: Model, graphs: Mapping[str, Graph], samples: Sequence[Inputs] | None = None):
        self.model = model
        self.graphs = {stem: optimize(graph) for stem, graph in graphs.items()}
        self.samples = {stem: _samples(model, graph, samples) for stem, graph in graphs.items()}
        self.truths = {stem: [Distance(graph, s, model) for s in self.samples[stem]] for stem, graph in graphs.items()}

    def quantized(self, scheme: Scheme, layers: Collection[str]) -> Quantized:
        """The model with those layers quantised."""
        return Quantized(self.model.name, *quantize(self.graphs, self.model.weights, scheme, layers))

    def measure(self, scheme: Scheme, layers: Collection[str]) -> Errors:
        """The errors on onnxruntime with those layers quantised."""
        made = self.quantized(scheme, layers)
        return {stem: self.errors(stem, OrtSession(made, graph)) for stem, graph in made.graphs.items()}  # type: ignore[arg-type]

    def errors(self, stem: str, session: Session) -> dict[str, float]:
        """The greatest error of each output of a session over the samples."""
        return _worst([truth.errors(session(**truth.sample.arrays)) for truth in self.truths[stem]])


class Distance(Truth):
    """The float64 run of a graph on a sample, and how far outputs are from it as a share of its magnitude."""

    def __init__(self, graph: Graph, sample: Sample, model: Model):
        self.sample, self.types = sample, {k: v.type for k, v in graph.outputs.items()}
        self.outputs = reference(graph, sample.arrays, model.weights)
        self.largest = {k: self._largest(k) for k in self.types}

    def _largest(self, name: str) -> float:
        live = np.where(self.sample.mask(self.types[name]), np.abs(self.outputs[name]), 0)
        return float(live[np.isfinite(live)].max(initial=0)) or 1.0

    def errors(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The error of each output, as a share of its greatest magnitude."""
        return {k: self.error(k, outputs[k]) / self.largest[k] for k in self.types}


class _Exact(Truth):
    """The float64 run of a quantised graph; a target may be off by rounding, and by what rounding activations to bytes does to an output."""

    def __init__(self, graph: Graph, sample: Sample, made: Quantized, target: str):
        super().__init__(graph, sample, made)  # type: ignore[arg-type]
        unrounded = reference(_without_rounding(graph), sample.arrays, made.weights)
        for k in self.unit:
            self.unit[k] += self.error(k, unrounded[k]) * ROUNDINGS / FACTORS[target]


_INTEGER = (ops.quantized_linear, ops.dynamic_quantized_linear)
_ROUNDING = (ops.round_blocks, ops.round_range)


def _without_rounding(graph: Graph) -> Graph:
    """A quantised graph in which activations stay as they are."""
    rest = Table("all but integer products", {op: op.reference for op in OPS.values() if op not in _INTEGER})
    return lower(graph, rest).rebuild(lambda node, operands: operands[0] if node.op in _ROUNDING else None)


def _samples(model: Model, graph: Graph, given: Sequence[Inputs] | None) -> list[Sample]:
    if given is None:
        return make_samples(graph, getattr(model, "config", None))
    names = [v.name for v in graph.inputs]
    fitting = [given_sample(graph, f"sample {i}", {k: np.asarray(x[k]) for k in names}) for i, x in enumerate(given) if set(names) <= set(x)]
    if not fitting:
        raise UsageError(f"no sample has all of the inputs {', '.join(names)} of {model.name}\n  give one that has, or leave samples out")
    return fitting


def _worst(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for errors in found:
        for k, e in errors.items():
            worst[k] = float(np.maximum(e, worst.get(k, 0.0)))  # NaN stays
    return worst


def _greatest(errors: Errors) -> float:
    return float(np.max([e for found in errors.values() for e in found.values()], initial=0.0))


# ---- which layers -------------------------------------------------------------------------------


def sensitivity(
    model: Model,
    scheme: str = "int8",
    samples: Sequence[Inputs] | None = None,
    *,
    layers: Collection[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    cache: bool | None = None,
) -> dict[str, float]:
    """For each layer the greatest error of any output when that layer alone is quantised, on onnxruntime; the most sensitive layer comes first.

    `layers` are globs; `samples` inputs by name, made up where none are given.
    """
    quality = Quality(model, graphs_of(model, "onnx", inputs, outputs, cache), samples)
    return _sensitivity(quality, scheme_of(scheme), list(quantizable(quality.graphs.values(), layers)), lambda text: None)


def _sensitivity(quality: Quality, scheme: Scheme, layers: Sequence[str], progress: Progress) -> dict[str, float]:
    found = {}
    for i, layer in enumerate(layers, 1):
        progress(f"measuring layer {i} of {len(layers)}, {layer}")
        found[layer] = _greatest(quality.measure(scheme, [layer]))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _within(quality: Quality, scheme: Scheme, layers: Sequence[str], max_error: float, progress: Progress) -> tuple[list[str], dict[str, float]]:
    """The layers that can be quantised within the budget, and what each costs by itself: the most sensitive ones are left out, as few as will do."""
    progress(f"measuring {scheme.name} on {len(layers)} layers")
    if _greatest(quality.measure(scheme, layers)) <= max_error:
        return list(layers), {}
    alone = _sensitivity(quality, scheme, layers, progress)
    order = list(alone)[::-1]
    fits, misses = 0, len(order)
    while misses - fits > 1:
        count = (fits + misses) // 2
        progress(f"measuring {scheme.name} on the {count} least sensitive layers")
        if _greatest(quality.measure(scheme, order[:count])) <= max_error:
            fits = count
        else:
            misses = count
    if fits == 0:
        least = f"\n  the least sensitive layer, {order[0]}, gives {alone[order[0]]:.1e} by itself"
        raise ParityError(
            f"{quality.model.name}: {scheme.name} cannot hold max_error={max_error:g}, whichever of {len(order)} layers is left out{least}"
        )
    return order[:fits], alone


# ---- export -------------------------------------------------------------------------------------


def export_quantized(
    model: Model,
    folder: str | os.PathLike[str],
    scheme: str = "int8",
    *,
    max_error: float | None = None,
    layers: Collection[str] | None = None,
    samples: Sequence[Inputs] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    cache: bool | None = None,
    all_positions: bool = False,
    check: bool = True,
    overwrite: bool = False,
    progress: Progress = lambda text: None,
    **options: Any,
) -> list[GraphFile]:
    """Writes a model as ONNX with quantised layers, and `quantization.json`, which says which and how far the outputs are off.

    `scheme` is int8 (activations and weights, for throughput), int8-weights or int4-weights (for decoding); `layers` are globs of the layers that
    may be quantised. With `max_error` layers stay in float32, the most sensitive ones first, until no output's error is greater. With `check` the
    artifact must compute just what its integers say. The artifact holds all of its weights, in a file of its own.

    Raises ParityError where the budget cannot be held or the numbers are wrong, and what `export` raises; then nothing is left behind.
    """
    plan, graphs = scheme_of(scheme), graphs_of(model, "onnx", inputs, outputs, cache, all_positions)
    if not overwrite and (there := next((f"{stem}.onnx" for stem in graphs if os.path.lexists(Path(folder, f"{stem}.onnx"))), "")):
        raise UsageError(f"output {folder} already has {there}\n  overwrite it (--overwrite, overwrite=True) or choose another place")
    quality = Quality(model, graphs, samples)
    able = list(quantizable(quality.graphs.values(), layers))
    if not able:
        raise UsageError(f"{model.name} has no layer that can be quantised, expected linear layers or embeddings of {LEAST} weights or more")
    chosen, alone = (able, {}) if max_error is None else _within(quality, plan, able, max_error, progress)
    made = quality.quantized(plan, chosen)
    report = {"scheme": plan.name, "max_error": max_error, "quantized": sorted(chosen), "kept": sorted(set(able) - set(chosen))}
    report |= {"bytes": _bytes(quality, made), "sensitivity": alone}

    def finish(files: Mapping[str, Path], staging: Path, folder: Path) -> Errors:
        copy_companions(model, staging, folder)
        errors = _check(quality, made, files, [staging, folder], check, progress)
        if max_error is not None and not _greatest(errors) <= max_error:
            raise ParityError(f"{model.name}: {plan.name} as written is off by {_greatest(errors):.1e}, expected at most {max_error:g}")
        (staging / REPORT).write_text(json.dumps(report | {"errors": errors}, indent=1) + "\n", encoding="utf-8")
        return errors

    progress(f"writing {plan.name} to {folder}")
    return onnx.export(model, folder, graphs=made.graphs, weights=made.weights, head=model.head, overwrite=overwrite, check=finish, **options)


def _bytes(quality: Quality, made: Quantized) -> dict[str, int]:
    """The size of all weights, before and after."""
    keys = lambda graphs: {p.key for graph in graphs.values() for p in graph.params()}
    return {"float": size_of(quality.model.weights, keys(quality.graphs)), "quantized": size_of(made.weights, keys(made.graphs))}


def _check(quality: Quality, made: Quantized, files: Mapping[str, Path], folders: Sequence[Path], check: bool, progress: Progress) -> Errors:
    """The errors of graphs as written; ParityError where they do not compute what their integers say."""
    errors: Errors = {}
    for stem, graph in made.graphs.items():
        report = Report(f"{quality.model.name}, {stem} as quantised")
        if check:
            progress(f"onnx: computing the float64 reference of {stem} as quantised")
        truths = [_Exact(graph, sample, made, "onnx") for sample in quality.samples[stem] if check]
        progress(f"onnx: running {stem} as written")
        session = open_staged(files[stem], folders, quality.graphs[stem])
        for truth in truths:
            report.rows += truth.rows("onnx", session(**truth.sample.arrays))
        report.check()
        errors[stem] = quality.errors(stem, session)
    return errors
