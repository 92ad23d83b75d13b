"""Graphs: how they are traced, merged, pruned and rebuilt, what their text says, and how a table runs them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_samples import RANDOM_SAMPLES, SAMPLES, Sample, sample_graph

from interlingua.ir import ops
from interlingua.ir.definition import Definition, check_inputs
from interlingua.ir.errors import InputError, InterlinguaError, ShapeError, TargetError, UsageError
from interlingua.ir.graph import Graph, Param
from interlingua.ir.layer import Layer
from interlingua.ir.op import OPS
from interlingua.ir.reference import reference
from interlingua.ir.sizes import symbol
from interlingua.ir.table import Table, lower, run
from interlingua.ir.text import parse_graph, print_graph
from interlingua.ir.weights import ArrayWeights


class Dense(Layer):
    def __init__(self, n: int, m: int):
        self.weight, self.bias = Param(m, n), Param(m, init="zeros")

    def forward(self, x):
        return ops.linear(x, self.weight, self.bias)


class Mlp(Layer):
    def __init__(self, n: int, m: int):
        self.up, self.down = Dense(n, m), Dense(m, n)

    def forward(self, x):
        return {"output": self.down(ops.gelu(self.up(x)))}


class SelfAttention(Layer):
    def __init__(self, n: int, heads: int):
        self.norm = Param(n, init="ones")
        self.q, self.k, self.v, self.out = (Dense(n, n) for _ in range(4))
        self.heads = heads

    def forward(self, x, attention_mask=None):
        y = ops.rms_norm(x, self.norm, eps=1e-6)
        q, k, v = (ops.rearrange(part(y), "batch seq (heads n) -> batch heads seq n", heads=self.heads) for part in (self.q, self.k, self.v))
        mask = None if attention_mask is None else ops.cast(attention_mask, dtype="bool")[:, None, None, :]
        y = ops.attention(q, k, v, mask, scale=0.5, causal=True)
        return {"hidden": x + self.out(ops.rearrange(y, "batch heads seq n -> batch seq (heads n)"))}


def define(layer: Layer, **inputs: str) -> Definition:
    definition = Definition(layer, inputs, ArrayWeights({}))
    rng = np.random.default_rng(0)
    definition.weights.arrays.update({p.key: rng.standard_normal(p.shape).astype(np.float32) for p in definition.params})
    return definition


def dedent(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


# ---- the text form ------------------------------------------------------------------------------


def test_the_text_of_a_multilayer_perceptron():
    text = dedent("""
        inputs
          x: f32[batch seq>=2 4]
        params
          up.weight: f32[8 4]
          up.bias: f32[8] init="zeros"
          down.weight: f32[4 8]
          down.bias: f32[4] init="zeros"
        nodes
          %0: f32[batch seq 8] = linear(x, up.weight, up.bias)  # up
          %1: f32[batch seq 8] = gelu(%0)
          %2: f32[batch seq 4] = linear(%1, down.weight, down.bias)  # down
        outputs
          output: %2
        """)
    graph = define(Mlp(4, 8), x="f32[batch seq>=2 4]").graph()
    assert print_graph(graph) == str(graph) == text
    assert print_graph(parse_graph(text)) == text


def test_the_text_of_an_attention_block():
    graph = define(SelfAttention(6, 2), x="f32[batch seq 6]", attention_mask="i64[batch seq]").graph()
    assert print_graph(graph) == dedent("""
        inputs
          x: f32[batch seq 6]
          attention_mask: i64[batch seq]
        params
          norm: f32[6] init="ones"
          q.weight: f32[6 6]
          q.bias: f32[6] init="zeros"
          k.weight: f32[6 6]
          k.bias: f32[6] init="zeros"
          v.weight: f32[6 6]
          v.bias: f32[6] init="zeros"
          out.weight: f32[6 6]
          out.bias: f32[6] init="zeros"
        nodes
          %0: f32[batch seq 6] = rms_norm(x, norm) {eps=1e-06}
          %1: f32[batch seq 6] = linear(%0, q.weight, q.bias)  # q
          %2: f32[batch seq 2 3] = reshape(%1) {shape=(batch, seq, 2, 3)}
          %3: f32[batch 2 seq 3] = transpose(%2) {perm=(0, 2, 1, 3)}
          %4: f32[batch seq 6] = linear(%0, k.weight, k.bias)  # k
          %5: f32[batch seq 2 3] = reshape(%4) {shape=(batch, seq, 2, 3)}
          %6: f32[batch 2 seq 3] = transpose(%5) {perm=(0, 2, 1, 3)}
          %7: f32[batch seq 6] = linear(%0, v.weight, v.bias)  # v
          %8: f32[batch seq 2 3] = reshape(%7) {shape=(batch, seq, 2, 3)}
          %9: f32[batch 2 seq 3] = transpose(%8) {perm=(0, 2, 1, 3)}
          %10: bool[batch seq] = cast(attention_mask) {dtype="bool"}
          %11: bool[batch 1 1 seq] = reshape(%10) {shape=(batch, 1, 1, seq)}
          %12: f32[batch 2 seq 3] = attention(%3, %6, %9, %11) {scale=0.5, causal=True}
          %13: f32[batch seq 2 3] = transpose(%12) {perm=(0, 2, 1, 3)}
          %14: f32[batch seq 6] = reshape(%13) {shape=(batch, seq, 6)}
          %15: f32[batch seq 6] = linear(%14, out.weight, out.bias)  # out
          %16: f32[batch seq 6] = add(x, %15)
        outputs
          hidden: %16
        """)


def everything() -> Graph:
    """A graph with one of everything that a text has to say."""
    graph = Graph()
    graph.training = True
    scale = Param(4, trainable=False)
    scale.name, scale.key = "norm.scale", "bn.running_var"
    table, nameless = Param(9, 4, init="normal"), Param(3, dtype="i64")
    table.name = table.key = "x"  # the name of an input
    places = Param(2, 3, dtype="i64", init=np.arange(6).reshape(2, 3))
    places.name = places.key = "places"
    with graph.tracing():
        x = graph.input("x", "f32[batch seq>=3 4]")
        index = graph.input("past.0.key", "i64[batch]")
        graph.limit(symbol("seq") + 1, 512, "no more positions")
        graph.bounds["hidden"] = 7
        graph.path = "blocks.0"
        parts = ops.split(x * scale, axis=2, sizes=(1, 3))
        small = ops.literal(value=np.array([[0.1, -1 / 3, 1e-30, float("inf")]], np.float32))
        large = ops.literal(value=np.arange(100, dtype=np.int64).reshape(25, 4))
        odd = ops.literal(value=ops.Literal(np.array([0.1, 0.2])), dtype="f32")
        rows = ops.take(table, index + nameless[0])
        drawn = ops.dropout(rows, graph.random_key(), rate=0.5, site=graph.random_site())
        last = ops.top_k(ops.constant(value=float("-inf"), dtype="f32") + ops.pad(drawn, low=(0, 0), high=(0, 1), value=-0.0), k=2)
        graph.outputs = {"first": parts[0], "second.0": parts[1], "small": small, "large": large, "odd": odd}
        graph.outputs |= {"buffer": ops.take(places, index), "values": last[0], "places": last[1]}
    graph.path = ""
    return graph


def test_everything_that_a_graph_says_survives_its_text():
    graph = everything()
    text = print_graph(graph)
    for part in (
        "training\nsize hidden>=7\nsize seq+1<=512: no more positions\n",
        "  x: f32[batch seq>=3 4]\n  past.0.key: i64[batch]\n  random_key: u32[2]\n",
        '  norm.scale: f32[4] key="bn.running_var" trainable=False\n',
        '  x\': f32[9 4] key="x" init="normal"\n',
        '  param: i64[3] key="" trainable=False\n',
        '  places: i64[2 3] init=literal("',
        "  %1: f32[batch seq 1], %1.1: f32[batch seq 3] = split(%0) {axis=2, sizes=(1, 3)}  # blocks.0\n",
        '{value=[[0.1, -0.33333334, 1e-30, inf]], dtype="f32"}',
        '{value=-inf, dtype="f32"}',
        "high=(0, 1), value=-0.0}",
        "  second.0: %1.1\n",
    ):
        assert part in text
    twin = parse_graph(text)
    assert print_graph(twin) == text
    assert (twin.training, twin.bounds, twin.limits, twin.sites) == (True, graph.bounds, graph.limits, 1)
    assert [n.path for n in twin.live()] == [n.path for n in graph.live()]
    assert [(p.key, str(p.init), p.trainable) for p in twin.params()] == [(p.key, str(p.init), p.trainable) for p in graph.params()]
    feed = {"x": np.ones((2, 3, 4)), "past.0.key": np.array([1, 0]), "random_key": np.array([1, 2], np.uint32)}
    arrays = {"bn.running_var": np.full(4, 2.0), "x": np.arange(36.0).reshape(9, 4), "": np.arange(3), "places": np.arange(6).reshape(2, 3)}
    weights = ArrayWeights(arrays)
    found, expected = reference(twin, feed, weights), reference(graph, feed, weights)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("sample", [*SAMPLES, *RANDOM_SAMPLES], ids=repr)
def test_every_op_survives_its_text(sample: Sample, symbolic: bool):
    graph = sample_graph(sample, symbolic)
    twin = parse_graph(print_graph(graph))
    assert print_graph(twin) == print_graph(graph)
    found, expected = reference(twin, sample.inputs(symbolic)), reference(graph, sample.inputs(symbolic))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_text_without_data_is_short_and_says_what_it_lacks():
    graph = everything()
    text = print_graph(graph, data=False)
    assert "literals" not in text
    assert len(text) < len(print_graph(graph))
    with pytest.raises(UsageError, match=r"line \d+, column \d+: the numbers of literal \w+ are missing; print with data=True"):
        parse_graph(text)


GOOD = dedent("""
    inputs
      x: f32[n 4]
      i: i64[n]
    params
      w: f32[8 4]
    nodes
      %0: f32[n 8] = linear(x, w)
      %1: f32[n 8] = softmax(%0) {axis=1}  # head
    outputs
      y: %1
    """)
BAD = [
    ("an op that is not known", "softmax(%0)", "sofmax(%0)", r"line 8, column 18: op 'sofmax' is not known; did you mean 'softmax'\?"),
    ("a value that is not defined", "softmax(%0)", "softmax(%7)", r"line 8, column 26: %7 is not defined above"),
    ("a misspelt input", "linear(x, w)", "linear(x, v)", r"line 7, column 28: v is not defined above"),
    ("a wrong type", "%0: f32[n 8]", "%0: f32[n 9]", r"line 7, column 7: %0 is declared f32\[n 9\], but linear gives f32\[n 8\]"),
    ("operands that do not fit", "w: f32[8 4]", "w: f32[8 5]", r"line 7, column 3: linear: weight has k=5, expected 4"),
    ("a type that is none", "x: f32[n 4]", "x: float[n 4]", r"line 2, column 6: type 'float\[n 4\]' is not of the form"),
    ("a size that is none", "x: f32[n 4]", "x: f32[n** 4]", r"line 2, column 6: size 'n\*\*' is not an expression"),
    ("a missing bracket", "linear(x, w)", "linear(x, w", r"line 7, column 29: expected ',' or '\)', found the end of the line"),
    ("no equals sign", "= softmax", "softmax", r"line 8, column 15: expected '=', found ' softmax"),
    ("an unknown attribute", "{axis=1}", "{axes=1}", r"line 8, column 31: softmax has no attribute 'axes'; did you mean 'axis'\?"),
    ("an attribute that is no value", "{axis=1}", "{axis=print(1)}", r"line 8, column 36: size 'print\(1\)' is not an expression"),
    ("attributes that are no Python", "{axis=1}", "{axis=)}", r"line 8, column 3\d: attributes cannot be read"),
    ("an open brace", "{axis=1}", "{axis=1", r"line 8, column 45: expected '}', found the end of the line"),
    ("too many operands", "softmax(%0)", "softmax(%0, x)", r"line 8, column 32: softmax has 2 operands, expected at most 1: x"),
    ("a name twice", "i: i64[n]", "x: i64[n]", r"line 3, column 3: x is defined twice"),
    ("an unknown section", "outputs", "output", r"line 9, column 1: expected a section, found 'output'; did you mean 'outputs'\?"),
    ("a row before any section", "inputs\n", "", r"line 1, column 1: expected one of inputs, params, nodes, outputs, literals before it"),
    ("rubbish at the end", "i: i64[n]", "i: i64[n] !", r"line 3, column 12: expected the end of the line, found ' !'"),
    ("an output that is nothing", "y: %1", "y: z", r"line 10, column 6: z is not defined above"),
    ("results that are too many", "%0: f32[n 8] =", "%0: f32[n 8], %9: f32[] =", r"line 7, column 3: linear gives 1 results, expected 2"),
    ("a bound that is none", "inputs\n", "size n**2<=4: why\ninputs\n", r"line 1, column 6: size 'n\*\*2' is not an expression"),
]


@pytest.mark.parametrize(("old", "new", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_errors_of_a_text_name_line_and_column(old: str, new: str, message: str):
    assert print_graph(parse_graph(GOOD)) == GOOD
    assert old in GOOD
    with pytest.raises(UsageError, match="graph text, " + message):
        parse_graph(GOOD.replace(old, new))


def test_an_attribute_that_is_missing_is_named():
    with pytest.raises(UsageError, match=r"line 5, column 30: transpose lacks attribute 'perm'"):
        parse_graph("inputs\n  x: f32[2 3]\n\nnodes\n  %0: f32[3 2] = transpose(x)")


@pytest.mark.parametrize("row", ["0123: i64[2] = eJwDAAAAAAE=", "0123: i64[2] = ####", "0123: i64[2] = eJxjYIAARigNAAAYAAI="])
def test_numbers_that_are_damaged_are_refused(row: str):
    with pytest.raises(UsageError, match=r"line 2, column 18: (the numbers of i64\[2\] cannot be read|the numbers are those of|expected numbers)"):
        parse_graph(f"literals\n  {row}\n")


# ---- graphs -------------------------------------------------------------------------------------


def test_equal_nodes_are_merged_and_unequal_ones_are_not():
    graph = Graph()
    x = graph.input("x", "f32[n 4]")
    with graph.tracing():
        assert ops.exp(x) is ops.exp(x)
        assert x + 1.0 is x + 1.0
        assert ops.literal(value=np.ones(3)) is ops.literal(value=np.ones(3))
        assert ops.literal(value=np.ones(3)) is not ops.literal(value=np.zeros(3))
        assert ops.softmax(x, axis=0) is not ops.softmax(x, axis=1)
        assert ops.sum(x, axis=[0, 1]) is ops.sum(x, axis=(0, 1))


def test_numbers_take_the_dtype_of_the_operand_beside_them():
    graph = Graph()
    with graph.tracing():
        for dtype in ("f32", "f16", "i32", "i64"):
            x = graph.input(dtype, f"{dtype}[n]")
            for made in (x + 1, 1 + x, ops.maximum(x, 2), ops.where(x < 3, x, 0), x * symbol("n")):
                assert made.type.dtype == dtype
        assert (graph.inputs[0] / 2).type.dtype == "f32"
        assert (1.0 - graph.inputs[1]).type.dtype == "f16"


def test_dead_nodes_and_unread_inputs_are_pruned():
    graph = Graph()
    with graph.tracing():
        x, y = graph.input("x", "f32[n]"), graph.input("y", "f32[n]")
        ops.exp(y)
        graph.outputs = {"z": ops.tanh(x)}
    assert [v.name for v in graph.inputs] == ["x", "y"]
    pruned = graph.pruned()
    assert [v.name for v in pruned.inputs] == ["x"]
    assert [n.op.name for n in pruned.nodes] == ["tanh"]


def test_a_rebuilt_graph_keeps_paths_taps_and_what_it_was_told():
    graph = define(Mlp(4, 8), x="f32[n>=3 4]").graph()
    doubled = graph.rebuild(lambda n, xs: ops.linear(*xs) * 2.0 if n.op is ops.linear else None)
    assert [(n.op.name, n.path) for n in doubled.live()] == [
        ("linear", "up"),
        ("constant", "up"),
        ("mul", "up"),
        ("gelu", ""),
        ("linear", "down"),
        ("mul", "down"),
    ]
    assert doubled.taps["up"].node.op is ops.mul
    assert doubled.bounds == {"n": 3}
    assert [n.op.name for n in graph.live()] == ["linear", "gelu", "linear"]  # the old graph is as it was


def test_a_graph_cut_at_a_tap_computes_just_that():
    definition = define(Mlp(4, 8), x="f32[n 4]")
    graph = definition.graph()
    cut = graph.with_outputs({"up": graph.taps["up"]})
    assert [p.name for p in cut.params()] == ["up.weight", "up.bias"]
    x = np.ones((2, 4))
    w, b = (definition.weights.array(f"up.{k}") for k in ("weight", "bias"))
    np.testing.assert_allclose(reference(cut, {"x": x}, definition.weights)["up"], x @ w.T.astype(float) + b, rtol=1e-12)


def test_shared_layers_and_parameters_have_one_name():
    class Tied(Layer):
        def __init__(self):
            self.embed = Param(5, 4)
            self.blocks = [Dense(4, 4)] * 2
            self.heads = {"a": Dense(4, 2)}
            self.decoder = self.embed

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return {"logits": ops.linear(x, self.decoder), "a": self.heads["a"](x)}

    definition = Definition(Tied(), {"x": "f32[n 4]"}, ArrayWeights({}), key=lambda name: f"model.{name}")
    assert [p.name for p in definition.params] == ["embed", "blocks.0.weight", "blocks.0.bias", "heads.a.weight", "heads.a.bias"]
    assert definition.params[0].key == "model.embed"
    assert list(definition.graph(outputs=["a"]).outputs) == ["a"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: d.graph(["y"]), InputError, "Mlp has no input 'y'"),
        (lambda d: d.graph(outputs=["outputs"]), UsageError, r"Mlp has no output 'outputs'; did you mean 'output'\?"),
        (lambda d: check_inputs(d.graph(), {"x": np.ones((3, 5), np.float32)}), InputError, r"input 'x' has 5 on axis 1, expected f32\[n 4\]"),
        (lambda d: check_inputs(d.graph(), {"x": np.ones(4, np.float32)}), InputError, r"input 'x' has shape \[4\], expected f32\[n 4\]"),
        (lambda d: check_inputs(d.graph(), {"x": np.ones((3, 4), int)}), InputError, r"input 'x' is of dtype int64, expected f32\[n 4\]"),
        (lambda d: check_inputs(d.graph(), {"x": np.ones((1, 4), np.float32)}), InputError, "input 'x' has n=1, expected at least 2"),
        (lambda d: check_inputs(d.graph(), {}), InputError, r"lacks input 'x': f32\[n 4\]"),
        (lambda d: check_inputs(d.graph(), {"x": 1, "z": 2}), InputError, "has no input 'z'"),
    ],
)
def test_requests_that_do_not_fit_are_named(call: Callable[[Definition], Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        call(define(Mlp(4, 8), x="f32[n>=2 4]"))


def test_values_refuse_python_control_flow():
    graph = Graph()
    x = graph.input("x", "f32[n]")
    with pytest.raises(InterlinguaError, match=r"x: f32\[n\] has no truth value while a graph is traced; use ops.where"):
        bool(x)
    with pytest.raises(InterlinguaError, match=r"cannot be iterated while a graph is traced; use ops.split"):
        list(x)


# ---- tables -------------------------------------------------------------------------------------


def test_a_decomposition_that_leads_back_to_its_op_is_named(monkeypatch):
    monkeypatch.setattr(ops.erf, "decomposition", lambda x: ops.erf(ops.tanh(x)))
    table = Table("toy", {ops.tanh: ops.tanh.reference})
    graph = Graph()
    with graph.tracing():
        graph.outputs = {"y": ops.erf(graph.input("x", "f32[n]"))}
    with pytest.raises(InterlinguaError, match=r"toy: decomposing erf never ends, expected a decomposition into simpler ops"):
        lower(graph, table)


def test_a_table_lowers_what_it_lacks_and_names_what_it_cannot():
    graph = define(Mlp(4, 8), x="f32[n 4]").graph()
    table = Table("toy", {op: op.reference for op in (ops.linear, ops.mul, ops.add, ops.constant, ops.erf)})
    assert {n.op.name for n in lower(graph, table).live()} == {"linear", "mul", "add", "constant", "erf"}
    del table.rules[ops.erf]
    with pytest.raises(TargetError, match=r"toy cannot express erf\n  erf in the model: f32\[n 8\]\n  choose another target"):
        lower(graph, table)


def test_a_rule_serves_only_its_domain():
    table = Table("toy", {op: op.reference for op in OPS.values() if op.decomposition is None})
    table.native(ops.softmax, when=lambda n: n.attrs["axis"] == 1)(ops.softmax.reference)
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n 4]")
        graph.outputs = {"a": ops.softmax(x, axis=1), "b": ops.softmax(x, axis=0)}
    assert [n.attrs["axis"] for n in lower(graph, table).live() if n.op is ops.softmax] == [1]


def test_sizes_are_read_off_the_values_that_carry_them():
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n 2*m]")
        pairs = ops.reshape(x, shape=(symbol("n"), symbol("m"), 2))
        graph.outputs = {"rows": ops.iota(size=symbol("n") + symbol("m")), "pairs": pairs, "m": ops.size(value=symbol("m"))}
    with pytest.raises(InterlinguaError, match="size m is carried by no value of the graph"):
        reference(graph, {"x": np.zeros((3, 8))})
    graph.input("y", "f32[m]")
    found = reference(graph, {"x": np.zeros((3, 8)), "y": np.zeros(4)})
    assert found["pairs"].shape == (3, 4, 2)
    assert len(found["rows"]) == 7
    assert found["m"] == 4


def test_values_are_dropped_after_their_last_use():
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n]")
        y = x
        for _ in range(6):
            y = ops.exp(y) + 1.0
        graph.outputs = {"y": y}
    alive: set[int] = set()
    most = []

    class Tracked:
        def __init__(self):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    table = Table("tracked", dict.fromkeys(OPS.values(), lambda *xs, **attrs: Tracked()), size_of=None)
    run(graph, table, {x: None}, observe=lambda node, results: most.append(len(alive)))
    assert max(most) <= 4


def test_the_reference_runs_in_the_float_asked_for():
    definition = define(Mlp(4, 8), x="f32[n 4]")
    x = {"x": np.ones((2, 4), np.float32)}
    wide, narrow = (reference(definition.graph(), x, definition.weights, float=f)["output"] for f in ("f64", "f32"))
    assert (wide.dtype, narrow.dtype) == (np.float64, np.float32)
    assert 0 < np.abs(wide - narrow).max() < 1e-5


def test_a_shape_error_in_a_layer_names_the_layer():
    class Wrong(Layer):
        def __init__(self):
            self.inner = Dense(4, 4)

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(ShapeError, match=r"linear: weight has k=4, expected 5\n(.*\n)+  in: inner \(tests/test_ir.py:\d+\)"):
        define(Wrong(), x="f32[n 5]").graph()
