"""Verification: every target against the float64 run of the unoptimised graph, per output and, on a miss, per layer.

An error is counted in units of float32 rounding noise: the error that the same graph makes in NumPy float32. One factor per target says how
many units are rounding; more is a fault. An artifact in half precision is counted in units of what rounding the weights and the result of every
op to that float does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..exporters.half_precision import fitted, rounded_run, spacing
from ..ir import ops
from ..ir.definition import Definition
from ..ir.errors import ParityError
from ..ir.graph import Graph, Value
from ..ir.reference import reference
from ..ir.types import KINDS
from .samples import Sample, make_samples
from .session import Session
from .targets import compile, installed

# Units of float32 rounding noise that a target may be off by: its kernels sum in other orders and use other approximations of exp and erf.
FACTORS = {
    "numpy": 2.0,
    "onnxruntime": 20.0,
    "onnx": 20.0,
    "xla": 20.0,
    "stablehlo": 20.0,
    "torch": 20.0,
    "tensorflow": 20.0,
    "saved_model": 20.0,
    "tf2onnx": 20.0,
}
FLOOR = 4 * float(np.finfo(np.float32).eps)  # of an output's magnitude: no output is held to less than this
# Units of half precision: its rounding outweighs how kernels differ, but kernels that fuse or split ops round in other places.
HALF_FACTOR = 4.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One output of one target on one sample: its greatest error over live positions, and the most that rounding explains."""

    target: str
    sample: str
    output: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether rounding explains the error; NaN is never explained."""
        return self.error <= self.limit


@dataclass
class Report:
    """What verification found: a row for each target, sample and output, and for each failing target the first layer that differs."""

    model: str
    rows: list[Row] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every error is explained by rounding."""
        return all(r.ok for r in self.rows)

    def check(self) -> Report:
        """This report; ParityError where an error is more than rounding."""
        if not self.ok:
            raise ParityError(str(self))
        return self

    def errors(self, target: str) -> dict[str, float]:
        """The greatest error of each output on a target."""
        found: dict[str, float] = {}
        for r in self.rows:
            if r.target == target:
                found[r.output] = max(r.error, found.get(r.output, 0.0))
        return found

    def __str__(self) -> str:
        bad = [r for r in self.rows if not r.ok]
        if not bad:
            worst = max(self.rows, key=lambda r: r.error / r.limit, default=None)
            rest = f"; worst: {worst.output} on {worst.target}, {worst.error:.1e} of {worst.limit:.1e} allowed" if worst else ""
            return f"{self.model}: {len(self.rows)} outputs agree with the float64 reference{rest}"
        lines = [f"{self.model}: {len(bad)} of {len(self.rows)} outputs differ from the float64 reference by more than rounding"]
        lines += [f"  {r.target}: {r.output} is off by {r.error:.1e}, allowed {r.limit:.1e} ({r.sample})" for r in bad[:8]]
        lines += [f"  {target}: the first layer that differs is {place}" for target, place in self.first.items()]
        return "\n".join(lines)


class Truth:
    """The float64 run of a graph on a sample, and what float32, or a half float, makes of it.

    What is beyond the half float's range counts as its largest number. Raises ParityError where an output is finite in float64 and not there.
    """

    def __init__(self, graph: Graph, sample: Sample, definition: Definition, float: str = "f32"):
        self.sample, self.types, self.float = sample, {k: v.type for k, v in graph.outputs.items()}, float
        self.outputs = reference(graph, sample.arrays, definition.weights)
        if float == "f32":
            noisy = reference(graph, sample.arrays, definition.weights, float="f32")
            self.unit = {k: max(self.error(k, noisy[k]), FLOOR * max(1.0, self._scale(k))) for k in self.outputs}
            return
        self.outputs = {k: fitted(x, float) if x.dtype.kind == "f" else x for k, x in self.outputs.items()}
        noisy, overflow = rounded_run(graph, sample.arrays, definition.weights, float)
        self.unit = {k: max(self.error(k, noisy[k]), spacing(float) * self._scale(k)) for k in self.outputs}
        if overflow and (bad := [k for k, unit in self.unit.items() if not np.isfinite(unit)]):
            raise ParityError(f"{definition.name}: {bad[0]} overflows {float}, {overflow} being the first that does\n  choose dtype 'bf16' or 'f32'")

    def _scale(self, name: str) -> float:
        """The greatest magnitude of an output."""
        live = np.where(self.sample.mask(self.types[name]), self.outputs[name], 0)
        finite = np.abs(live[np.isfinite(live)]) if live.dtype.kind == "f" else np.abs(live)
        return float(finite.max(initial=0))

    def error(self, name: str, array: np.ndarray) -> float:
        """The greatest difference over live positions; infinite for another shape, NaN where only one side has one."""
        true = self.outputs[name]
        if array.shape != true.shape:
            return float("inf")
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.where(np.isnan(true) & np.isnan(array) | (true == array), 0, np.abs(array.astype(np.float64) - true))
        return float(np.max(np.where(self.sample.mask(self.types[name]), apart, 0), initial=0))

    def rows(self, target: str, outputs: Mapping[str, np.ndarray]) -> list[Row]:
        """A row for each output."""
        factor = FACTORS[target] if self.float == "f32" else HALF_FACTOR
        return [Row(target, self.sample.name, k, self.error(k, outputs[k]), factor * self.unit[k]) for k in self.types]


def verify(
    model: Definition,
    targets: Sequence[str] | None = None,
    *,
    device: str = "cpu",
    inputs: Iterable[str] | None = None,
    outputs: Iterable[str] | None = None,
    truth: Definition | None = None,
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> Report:
    """Runs a model on every installed target (or those named) at two sizes, one padded, and reports the errors.

    `truth` is the model to be compared with, by default the same one: another with the same graph shows where two sets of weights differ.
    """
    targets = [t for t in installed() if t != "numpy"] if targets is None else list(targets)
    graph = model.graph(inputs, outputs)
    report, samples, truth = Report(model.name), make_samples(graph, getattr(model, "config", None), seed), truth or model
    truths = [Truth(graph, sample, truth) for sample in samples]
    for target in targets:
        progress(f"{target}: compiling and running {model.name}")
        session = _reference_session(model, graph, device) if target == "numpy" else compile(model, target, device=device, graph=graph)
        rows = [row for t in truths for row in t.rows(target, session(**t.sample.arrays))]
        report.rows += rows
        if not all(r.ok for r in rows):
            progress(f"{target}: looking for the first layer that differs")
            worst = next(t for t in truths if any(not r.ok for r in rows if r.sample == t.sample.name))
            report.first[target] = first_difference(model, graph, target, worst.sample, truth, device)
    return report


def _reference_session(model: Definition, graph: Graph, device: str) -> Session:
    return compile(model, "numpy", device=device, graph=graph, dtype="f32")


_MOVES = {ops.reshape, ops.transpose, ops.broadcast_to, ops.constant, ops.literal, ops.size, ops.iota}


def with_taps(graph: Graph) -> Graph:
    """The graph with what each op computes as an output, named by layer and op, in the order of computation."""
    outputs: dict[str, Value] = {}
    ends = {v: k for k, v in graph.outputs.items()}
    for node in graph.live():
        for v in node.outputs:
            if (node.op in _MOVES and v not in ends) or v.type.dtype not in KINDS["float"]:
                continue
            name = f"{node.path or ends.get(v, 'the model')} ({node.op.name})"
            again = sum(k == name or k.startswith(f"{name} #") for k in outputs)
            outputs[f"{name} #{again + 1}" if again else name] = v
    return graph.with_outputs(outputs)


def first_difference(model: Definition, graph: Graph, target: str, sample: Sample, truth: Definition, device: str = "cpu") -> str:
    """The first layer, in the order of computation, whose result differs by more than rounding, and by how much."""
    tapped = with_taps(graph)
    right = Truth(tapped, sample, truth)
    session = _reference_session(model, tapped, device) if target == "numpy" else compile(model, target, device=device, graph=tapped)
    return describe_first(right.rows(target, session(**sample.arrays)))


def describe_first(rows: Sequence[Row]) -> str:
    """The first failing row as text."""
    bad = next((r for r in rows if not r.ok), None)
    if bad is None:
        return "none: the difference vanishes when layers are watched, so it lies in how the target joins them"
    return f"{bad.output} (off by {bad.error:.1e}, allowed {bad.limit:.1e})"


def verify_artifact(
    open: Callable[[], Session],
    graph: Graph,
    model: Definition,
    target: str,
    *,
    float: str = "f32",
    seed: int = 0,
    progress: Progress = lambda text: None,
) -> Report:
    """A session of an artifact in that float against the model that it was made from; `graph` is the model's own.

    The reference is run before the session is opened, so that the two never hold their weights at the same time.
    """
    report, truths = Report(model.name), []
    for sample in make_samples(graph, getattr(model, "config", None), seed):
        progress(f"{target}: computing the float64 reference, {sample.name}")
        truths.append(Truth(graph, sample, model, float))
    if float != "f32":  # of an output of few numbers the noise in one sample may be small by chance
        unit = {k: max(truth.unit[k] for truth in truths) for k in graph.outputs}
        for truth in truths:
            truth.unit = unit
    progress(f"{target}: running what was written")
    session = open()
    for truth in truths:
        report.rows += truth.rows(target, session(**truth.sample.arrays))
    return report
