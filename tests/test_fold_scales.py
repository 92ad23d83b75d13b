"""Factors and shifts beside layers become part of their weights: the same numbers from fewer nodes, and nothing where it would cost something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import interlingua as il
from interlingua.exporters.onnx import PASSES, to_proto
from interlingua.exporters.onnx_table import OnnxTable
from interlingua.exporters.onnx_tape import Tape
from interlingua.ir import ops
from interlingua.ir.graph import Graph, Param, Value
from interlingua.ir.passes import optimize
from interlingua.ir.passes.fold_scales import LAYERS, fold_scales
from interlingua.ir.reference import reference
from interlingua.ir.table import lower
from interlingua.ir.text import print_graph
from interlingua.ir.weights import ArrayWeights, Location
from interlingua.runtime.ort import OnnxSession

LENGTHS = {"b": 3, "s": 5, "h": 7, "w": 6}


class Case:
    """A graph of what `make(case, x0, x1, ...)` returns, with parameters that it asks the case for, and random numbers for all."""

    def __init__(self, make: Callable[..., Any], *types: str, training: bool = False):
        self.rng, self.graph, self.arrays = np.random.default_rng(0), Graph(), {}
        self.graph.training, self.graph.path = training, "layer"
        with self.graph.tracing():
            made = make(self, *[self.graph.input(f"x{i}", t) for i, t in enumerate(types)])
        self.graph.outputs |= {f"y{i}": v for i, v in enumerate(made if isinstance(made, tuple) else (made,))}

    def param(self, *shape: int, dtype: str = "f32") -> Param:
        """A new parameter of positive numbers."""
        p = Param(*shape, dtype=dtype)
        p.name = p.key = f"p{len(self.arrays)}"
        self.arrays[p.key] = self.rng.uniform(0.5, 2, shape) if p.type.dtype == "f32" else self.rng.integers(1, 100, shape)
        return p

    def signed(self, *shape: int) -> Param:
        """A new parameter of numbers of either sign."""
        p = self.param(*shape)
        self.arrays[p.key] = self.rng.standard_normal(shape)
        return p

    def outputs(self, graph: Graph) -> dict[str, np.ndarray]:
        """In float64, on the same inputs each time."""
        rng = np.random.default_rng(1)
        draw = {"i64": lambda n: rng.integers(0, 4, n), "f32": rng.standard_normal}
        feed = {v.name: draw[v.type.dtype]([LENGTHS.get(str(d), d) for d in v.shape]) for v in self.graph.inputs}
        return reference(graph, feed, ArrayWeights(self.arrays))

    def folded(self) -> Graph:
        """The graph after the pass, which must mean the same."""
        after = optimize(self.graph, [fold_scales])
        expected, found = self.outputs(self.graph), self.outputs(after)
        for name, want in expected.items():
            np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-12 * np.abs(want).max(), err_msg=name)
        assert all(n.path for n in after.live())
        return after


def at_run_time(graph: Graph) -> list[str]:
    """The ops that need an input."""
    moving, names = set(graph.inputs), []
    for node in graph.live():
        if any(v in moving for v in node.inputs):
            moving.update(node.outputs)
            names.append(node.op.name)
    return names


# ---- what is folded -----------------------------------------------------------------------------

Apply = Callable[[Case, Value, bool], Value]


def conv(*weight: int, groups: int = 1, **changes: Any) -> Apply:
    n = len(weight) - 2
    attrs = {"stride": (2,) * n, "padding": ((1, 2),) * n, "dilation": (1,) * n, "groups": groups, **changes}
    return lambda c, x, bias: ops.conv(x, c.signed(*weight), c.signed(weight[0]) if bias else None, **attrs)


def conv_transpose(*weight: int, groups: int = 1) -> Apply:
    n = len(weight) - 2
    attrs = {"stride": (2,) * n, "padding": ((1, 0),) * n, "output_padding": (1,) * n, "dilation": (1,) * n, "groups": groups}
    return lambda c, x, bias: ops.conv_transpose(x, c.signed(*weight), c.signed(weight[1] * groups) if bias else None, **attrs)


# (type of the operand, layer, axis of the channels): all take 6 channels
APPLIED: dict[str, tuple[str, Apply, int]] = {
    "linear": ("f32[b s 6]", lambda c, x, bias: ops.linear(x, c.signed(4, 6), c.signed(4) if bias else None), 2),
    "linear-rows": ("f32[b 6]", lambda c, x, bias: ops.linear(x, c.signed(4, 6), c.signed(4) if bias else None), 1),
    "linear-row": ("f32[6]", lambda c, x, bias: ops.linear(x, c.signed(4, 6), c.signed(4) if bias else None), 0),
    "linear-one": ("f32[b 6]", lambda c, x, bias: ops.linear(x, c.signed(1, 6), c.signed(1) if bias else None), 1),
    "affine": ("f32[b s 6]", lambda c, x, bias: ops.affine(x, c.signed(6, 4), c.signed(4) if bias else None), 2),
    "affine-rows": ("f32[b 6]", lambda c, x, bias: ops.affine(x, c.signed(6, 4), c.signed(4) if bias else None), 1),
    "conv-1d": ("f32[b 6 h]", conv(4, 6, 3), 1),
    "conv-2d": ("f32[b 6 h w]", conv(4, 6, 3, 2), 1),
    "conv-groups": ("f32[b 6 h w]", conv(4, 3, 3, 2, groups=2), 1),
    "conv-depthwise": ("f32[b 6 h w]", conv(12, 1, 3, 2, groups=6, dilation=(2, 1)), 1),
    "transposed-1d": ("f32[b 6 h]", conv_transpose(6, 4, 3), 1),
    "transposed-2d": ("f32[b 6 h w]", conv_transpose(6, 4, 3, 2), 1),
    "transposed-groups": ("f32[b 6 h w]", conv_transpose(6, 2, 3, 2, groups=3), 1),
}
each_layer = pytest.mark.parametrize("layer", APPLIED)
with_bias = pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])


def by_channel(c: Case, y: Value, axis: int) -> Value:
    return c.signed(y.shape[axis], *(1,) * (y.rank - 1 - axis))


def norm(c: Case, y: Value) -> Value:
    n = y.shape[1]
    return ops.batch_norm(y, c.signed(n), c.signed(n), c.signed(n), c.param(n), eps=1e-5)


# what is done to a result y, whose channels lie on an axis a
AFTER: dict[str, Callable[[Case, Value, int], Value]] = {
    "times-channels": lambda c, y, a: y * by_channel(c, y, a),
    "channels-times": lambda c, y, a: by_channel(c, y, a) * y,
    "by-channels": lambda c, y, a: y / c.param(y.shape[a], *(1,) * (y.rank - 1 - a)),
    "plus-channels": lambda c, y, a: y + by_channel(c, y, a),
    "minus-channels": lambda c, y, a: y - by_channel(c, y, a),
    "times-number": lambda c, y, a: y * 0.3,
    "by-number": lambda c, y, a: y / 0.3,
    "number-plus": lambda c, y, a: 0.3 + y,
    "minus-number": lambda c, y, a: y - 0.3,
    "times-parameter": lambda c, y, a: c.signed(*(1,) * y.rank) * y,
    "times-computed": lambda c, y, a: y * (ops.tanh(by_channel(c, y, a)) + 1.0),
    "times-literal": lambda c, y, a: y * ops.literal(value=np.linspace(1, 2, y.shape[a]).reshape(-1, *(1,) * (y.rank - 1 - a))),
}
BEFORE: dict[str, Callable[[Case, Value, int], Value]] = {k: AFTER[k] for k in AFTER if k.startswith(("times", "by", "channels-times"))}


@with_bias
@each_layer
@pytest.mark.parametrize("step", AFTER)
def test_what_follows_a_layer_is_folded(step: str, layer: str, bias: bool):
    type, apply, axis = APPLIED[layer]
    case = Case(lambda c, x: AFTER[step](c, apply(c, x, bias), axis), type)
    assert at_run_time(case.folded()) == at_run_time(case.graph)[:1]


@with_bias
@each_layer
@pytest.mark.parametrize("step", BEFORE)
def test_factors_before_a_layer_are_folded(step: str, layer: str, bias: bool):
    type, apply, axis = APPLIED[layer]
    case = Case(lambda c, x: apply(c, BEFORE[step](c, x, axis), bias), type)
    assert at_run_time(case.folded()) == at_run_time(case.graph)[1:]


@with_bias
@pytest.mark.parametrize("layer", [k for k, (_, _, axis) in APPLIED.items() if axis == 1])
def test_batch_normalisation_is_folded(layer: str, bias: bool):
    type, apply, _ = APPLIED[layer]
    case = Case(lambda c, x: norm(c, apply(c, x, bias)), type)
    assert at_run_time(case.folded()) == at_run_time(case.graph)[:1]


def test_all_layers_are_tried():
    assert {at_run_time(Case(lambda c, x, a=apply: a(c, x, False), type).graph)[0] for type, apply, _ in APPLIED.values()} == {o.name for o in LAYERS}


@pytest.mark.parametrize("seed", range(20))
def test_chains_are_folded_whole(seed: int):
    """Layers with some steps before and after each, between activations."""
    rng = np.random.default_rng(seed)
    image = bool(seed % 2)
    axis = 1 if image else 2

    def make(c: Case, x: Value) -> Value:
        for _ in range(3):
            for step in rng.choice(sorted(BEFORE), rng.integers(3)):
                x = BEFORE[step](c, x, axis)
            n, out, bias = x.shape[axis], 12, bool(rng.integers(2))
            x = (
                conv(out, n // 2, 3, 1, groups=2, stride=(1, 1))(c, x, bias)
                if image
                else ops.linear(x, c.signed(out, n), c.signed(out) if bias else None)
            )
            for step in rng.choice(sorted(AFTER) + ["norm"] * 5 * image, rng.integers(4)):
                x = norm(c, x) if step == "norm" else AFTER[step](c, x, axis)
            x = ops.tanh(x)
        return x

    case = Case(make, "f32[b 6 h w]" if image else "f32[b s 6]")
    assert at_run_time(case.folded()) == ["conv" if image else "linear", "tanh"] * 3


def test_factors_between_layers_belong_to_one_of_them():
    def make(c: Case, x: Value) -> Value:
        tied = c.signed(6, 6)
        either = ops.linear(ops.linear(x, c.signed(6, 6)) * 0.5, c.signed(6, 6))
        first = ops.linear(ops.linear(either, c.signed(6, 6)) * 0.5, tied)
        neither = ops.linear(first * 2.0, tied)
        return ops.linear(ops.linear(neither, tied) * 3.0, c.signed(4, 6))

    assert at_run_time(Case(make, "f32[b s 6]").folded()) == ["linear"] * 4 + ["mul"] + ["linear"] * 3


def test_a_weight_that_is_computed_is_scaled():
    """Weight normalisation: the direction is read twice, but for one weight."""

    def make(c: Case, x: Value) -> Value:
        v, size = c.signed(4, 6, 3), c.param(4, 1, 1)
        weight = v * (size / ops.sqrt(ops.sum(v * v, axis=(1, 2), keep=True)))
        return norm(c, ops.conv(x, weight, stride=(1,), padding=((1, 1),), dilation=(1,)))

    assert at_run_time(Case(make, "f32[b 6 h]").folded()) == ["conv"]


def test_weights_may_share_a_vector():
    """Only matrices are worth not holding twice."""

    def make(c: Case, x: Value) -> Value:
        share = c.signed(6)
        return ops.linear(ops.linear(x, c.signed(6, 6) * share) * share, c.signed(6, 6) * share) * 2.0

    assert at_run_time(Case(make, "f32[b s 6]").folded()) == ["linear", "linear"]


def test_a_folded_layer_in_print():
    def make(c: Case, x: Value) -> Value:
        y = ops.conv(x, c.signed(4, 3, 2), stride=(1,), padding=((0, 0),), dilation=(1,), groups=2)
        c.graph.path = "norm"
        return norm(c, y)

    text = print_graph(Case(make, "f32[b 6 h]").folded().pruned()).splitlines()
    assert text[text.index("nodes") + 1 :] == [
        '  %0: f32[] = constant() {value=1e-05, dtype="f32"}  # norm',
        "  %1: f32[4] = add(p4, %0)  # norm",
        "  %2: f32[4] = sqrt(%1)  # norm",
        "  %3: f32[4] = div(p1, %2)  # norm",
        "  %4: f32[4] = negative(p3)  # norm",
        "  %5: f32[4 1 1] = reshape(%3) {shape=(4, 1, 1)}  # norm",
        "  %6: f32[4 3 2] = mul(p0, %5)  # norm",
        "  %7: f32[4] = mul(%4, %3)  # norm",
        "  %8: f32[4] = add(%7, p2)  # norm",
        "  %9: f32[b 4 h-1] = conv(x0, %6, %8) {stride=(1,), padding=((0, 0),), dilation=(1,), groups=2}  # layer",
        "outputs",
        "  y0: %9",
    ]


# ---- what is left -------------------------------------------------------------------------------


def _twice(y: Value) -> tuple[Value, Value]:
    return y * 0.5, ops.tanh(y)


def _tied(c: Case, ids: Value) -> Value:
    table = c.signed(4, 6)
    return ops.linear(ops.take(table, ids, axis=0) * 0.5, table) * 2.0


def _tied_by_view(c: Case, ids: Value) -> Value:
    table = c.signed(4, 6)
    return ops.affine(ops.take(table, ids, axis=0) * 0.5, ops.transpose(table, perm=(1, 0))) * 2.0


def _two_layers(c: Case, x: Value) -> tuple[Value, Value]:
    weight = c.signed(4, 6)
    return ops.linear(x, weight) * 2.0, ops.linear(ops.tanh(x), weight) * 3.0


def _shown(c: Case, x: Value) -> tuple[Value, Value]:
    weight = c.signed(4, 6)
    return ops.linear(x, weight) * 2.0, weight


def _quantised(c: Case, x: Value) -> Value:
    return ops.quantized_linear(x, c.param(4, 1, 16, dtype="u8"), c.param(4, 1), bits=8) * 2.0


def _own_statistics(c: Case, x: Value) -> Value:
    y = ops.linear(x, c.signed(4, 6))
    return ops.batch_norm(y, c.signed(4), c.signed(4), *ops.batch_statistics(y), eps=1e-5)


KEPT: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "tied to a table": (_tied, ["i64[b s]"]),
    "tied to a table that is turned": (_tied_by_view, ["i64[b s]"]),
    "a weight that is an output": (_shown, ["f32[b s 6]"]),
    "two layers of one weight": (_two_layers, ["f32[b s 6]"]),
    "a result read twice": (lambda c, x: _twice(ops.linear(x, c.signed(4, 6))), ["f32[b s 6]"]),
    "a result that is an output": (lambda c, x: (y := ops.linear(x, c.signed(4, 6)), y * 0.5), ["f32[b s 6]"]),
    "a square": (lambda c, x: (y := ops.linear(x, c.signed(4, 6))) * y, ["f32[b s 6]"]),
    "another axis": (lambda c, x: ops.linear(x, c.signed(4, 6)) * c.signed(5, 1), ["f32[b 5 6]"]),
    "another axis of an image": (lambda c, x: conv(6, 6, 3, 3, stride=(1, 1), padding=((1, 1),) * 2)(c, x, True) * c.signed(6), ["f32[b 6 h 6]"]),
    "two axes": (lambda c, x: ops.linear(x, c.signed(4, 6)) * c.signed(5, 4), ["f32[b 5 6]"]),
    "a result that is repeated": (lambda c, x: ops.linear(x, c.signed(1, 6)) * c.signed(4), ["f32[b s 6]"]),
    "a new axis": (lambda c, x: ops.linear(x, c.signed(4, 6)) * c.signed(1, 1, 4), ["f32[b 6]"]),
    "normalised along another axis": (lambda c, x: norm(c, ops.linear(x, c.signed(4, 6))), ["f32[b 5 6]"]),
    "a factor that is an input": (lambda c, x, f: ops.linear(x, c.signed(4, 6)) * f, ["f32[b s 6]", "f32[4]"]),
    "statistics that are inputs": (
        lambda c, x, m: ops.batch_norm(ops.linear(x, c.signed(4, 6)), c.signed(4), c.signed(4), m, c.param(4), eps=1e-5),
        ["f32[b 6]", "f32[4]"],
    ),
    "statistics of the batch": (_own_statistics, ["f32[b 6]"]),
    "a factor that is a size": (lambda c, x: ops.linear(x, c.signed(4, 6)) / ops.cast(ops.size(value=x.shape[1]), dtype="f32"), ["f32[b s 6]"]),
    "a weight that is an input": (lambda c, x, w: ops.linear(x, w, c.signed(4)) * 0.5, ["f32[b s 6]", "f32[4 6]"]),
    "a bias that is an input": (lambda c, x, b: ops.linear(x, c.signed(4, 6), b) * 0.5, ["f32[b s 6]", "f32[4]"]),
    "a rounded weight": (lambda c, x: ops.linear(x, ops.round_(c.signed(4, 6) * 10.0)) * 0.1, ["f32[b s 6]"]),
    "a weight of integers": (lambda c, x: ops.linear(x, ops.cast(c.param(4, 6, dtype="i8"), dtype="f32")) * 0.1, ["f32[b s 6]"]),
    "a product of integers": (lambda c, x: ops.linear(x, c.param(4, 6, dtype="i64")) * 3, ["i64[b s 6]"]),
    "quantised": (_quantised, ["f32[b s 16]"]),
    "a number divided by a result": (lambda c, x: 2.0 / ops.linear(x, c.signed(4, 6)), ["f32[b s 6]"]),
    "a number minus a result": (lambda c, x: 2.0 - ops.linear(x, c.signed(4, 6)), ["f32[b s 6]"]),
    "a number divided by an operand": (lambda c, x: ops.linear(2.0 / x, c.signed(4, 6)), ["f32[b s 6]"]),
    "a shift before": (lambda c, x: ops.linear(x + 2.0, c.signed(4, 6)), ["f32[b s 6]"]),
    "normalised before": (lambda c, x: conv(4, 6, 3)(c, norm(c, x), True), ["f32[b 6 h]"]),
    "an operand that others read": (lambda c, x: (ops.linear(y := x * 2.0, c.signed(4, 6)), ops.tanh(y)), ["f32[b s 6]"]),
    "another axis of an operand": (lambda c, x: ops.linear(x * c.signed(5, 1), c.signed(4, 6)), ["f32[b 5 6]"]),
    "an operand that is repeated": (lambda c, x: ops.linear(x * c.signed(6), c.signed(4, 6)), ["f32[b s 1]"]),
    "a factor before that is an input": (lambda c, x, f: ops.linear(x * f, c.signed(4, 6)), ["f32[b s 6]", "f32[6]"]),
    "an activation between": (lambda c, x: ops.tanh(ops.linear(ops.tanh(x * 2.0), c.signed(4, 6))) * 0.5, ["f32[b s 6]"]),
    "what is computed from weights alone": (lambda c, x: x + ops.linear(c.signed(5, 6), c.signed(4, 6)) * 0.5, ["f32[b 5 4]"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_folded_or_would_cost_more_is_left(name: str):
    make, types = KEPT[name]
    case = Case(make, *types)
    assert print_graph(case.folded().pruned()) == print_graph(case.graph.pruned())


def test_graphs_for_training_are_left():
    make = lambda c, x: norm(c, conv(4, 6, 3)(c, x, True)) * 0.5
    assert at_run_time(Case(make, "f32[b 6 h]").folded()) == ["conv"]
    assert at_run_time(Case(make, "f32[b 6 h]", training=True).folded()) == ["conv", "batch_norm", "mul"]


# ---- a model ------------------------------------------------------------------------------------

RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [8, 16], "depths": [2, 1], "num_labels": 3}


@pytest.fixture(scope="module", params=["bottleneck", "basic"])
def resnet(request: pytest.FixtureRequest) -> tuple[Graph, ArrayWeights]:
    """A graph with weights whose statistics are not those of an untrained model."""
    model = il.from_config({**RESNET, "layer_type": request.param}, "ResNetForImageClassification")
    rng = np.random.default_rng(0)
    graph = model.graph(["pixel_values"], ["logits", "hidden_states.*"])
    draw = lambda p: rng.uniform(0.5, 2, p.shape) if p.rank == 1 else rng.standard_normal(p.shape) / np.sqrt(np.prod(p.shape[1:]))
    return graph, ArrayWeights({p.key: draw(p).astype(np.float32) for p in graph.params()})


@pytest.fixture(scope="module")
def image() -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(1).standard_normal((2, 3, 37, 32)).astype(np.float32)}


WITHOUT = tuple(p for p in PASSES if p is not fold_scales)


def test_a_resnet_has_no_batch_normalisation_left(resnet: Any, image: dict[str, np.ndarray]):
    graph, weights = resnet
    after = optimize(graph, (*WITHOUT, fold_scales))
    assert "batch_norm" in at_run_time(graph)
    assert set(at_run_time(after)) == {"conv", "relu", "max_pool", "add", "mean", "reshape", "linear"}
    assert {n.path for n in after.live() if n.op is ops.conv} == {n.path for n in graph.live() if n.op is ops.conv}
    expected, found = reference(graph, image, weights), reference(after, image, weights)
    for name, want in expected.items():
        np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-12 * np.abs(want).max(), err_msg=name)


def test_a_resnet_on_onnxruntime(resnet: Any, image: dict[str, np.ndarray], tmp_path: Path):
    """The numbers are as good as without the pass, and what became part of weights is computed when the file is loaded."""
    graph, weights = resnet
    expected, errors = reference(graph, image, weights), []
    for passes in (WITHOUT, (*WITHOUT, fold_scales)):
        prepared = lower(optimize(graph, passes), OnnxTable(Tape(23)))
        proto = to_proto(prepared, weights, place=lambda key: Location("memory", 0, 0))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "loaded.onnx"), 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        arrays = {p.key: weights.array(p.key) for p in prepared.params()}
        session = OnnxSession(proto.SerializeToString(), graph, threads=1, initializers=arrays, session_options=options)
        found = session(**image)
        errors.append(max(float(np.abs(found[k] - want).max() / np.abs(want).max()) for k, want in expected.items()))
        session.close()
    assert max(errors) < 1e-5, errors
    loaded = {n.op_type for n in onnx.load(tmp_path / "loaded.onnx").graph.node}
    assert loaded == {"Conv", "Relu", "MaxPool", "Add", "ReduceMean", "Reshape", "Gemm"}
