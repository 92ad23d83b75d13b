"""Passes: they keep what a graph means, its types, inputs, outputs and layer paths; and they do what they are for."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from graphs import build, check, names
from op_samples import SAMPLES, Sample, sample_graph

import interlingua as il
from interlingua.ir import ops
from interlingua.ir.errors import InterlinguaError, ShapeError, UsageError
from interlingua.ir.graph import Graph, Param, Value
from interlingua.ir.op import OPS, Op
from interlingua.ir.passes import (
    absorb_projections,
    explicit_causal,
    flatten,
    fold_constants,
    fold_scales,
    merge_linears,
    optimize,
    push_slices,
    roll,
    separate_biases,
    without,
)
from interlingua.ir.passes.fold_constants import REWRITES
from interlingua.ir.signature import Signature
from interlingua.ir.sizes import symbol
from interlingua.ir.text import print_graph
from interlingua.ir.weights import ArrayWeights
from interlingua.runtime.showing import pass_lines

PASSES = [push_slices, explicit_causal, absorb_projections, fold_scales, merge_linears, flatten, fold_constants, separate_biases, roll]
each_pass = pytest.mark.parametrize("change", PASSES, ids=lambda p: p.__name__)


def dedent(text: str) -> str:
    return textwrap.dedent(text).lstrip("\n")


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_passes_keep_every_op(sample: Sample, symbolic: bool):
    graph = sample_graph(sample, symbolic)
    for passes in (*([p] for p in PASSES), PASSES):
        check(graph, optimize(graph, passes), sample.inputs(symbolic))


# ---- slices -------------------------------------------------------------------------------------

NOT_SLICED = """
constant literal size iota random_uniform dropout sort argsort loop while_loop ctc_loss
dequantize round_range quantized_linear dynamic_quantized_linear
"""  # leaves, draws, and ops that nobody slices


def sliced(sample: Sample, symbolic: bool) -> Iterator[Graph]:
    """A graph for each axis of a sample's results, of which all but the first index is read."""
    types = [v.type for v in sample_graph(sample, symbolic).outputs.values()]
    for axis in range(max(t.rank for t in types)):
        if any(axis < t.rank and t.shape[axis] not in (0, 1) for t in types):
            graph = sample_graph(sample, symbolic)
            results = {k: v for k, v in graph.outputs.items() if axis < v.rank and v.shape[axis] not in (0, 1)}
            with graph.tracing():
                graph.outputs = {k: ops.slice_(v, axis=axis, start=1, stop=v.shape[axis]) for k, v in results.items()}
            yield graph


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("sample", [s for s in SAMPLES if not s.random], ids=repr)
def test_a_part_of_any_result_is_that_part(sample: Sample, symbolic: bool):
    for graph in sliced(sample, symbolic):
        check(graph, push_slices(graph), sample.inputs(symbolic))


def test_slices_reach_the_operands_of_each_op():
    """Every op lets through a slice along some axis, or is known not to; a new op must be put somewhere."""
    through = set()
    for sample in SAMPLES:
        for graph in sliced(sample, False):
            after = push_slices(graph).live()
            if after[-1].op is sample.op and any(n.op is ops.slice_ for n in after[:-1]):
                through.add(sample.op.name)
    assert set(OPS) - through == set(NOT_SLICED.split())


@pytest.mark.parametrize("causal", [False, True])
def test_rows_that_nobody_reads_are_not_computed(causal: bool):
    """Of the last block only one position is computed, but for its keys and values."""
    bert = {"model_type": "bert", "num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
    gpt2 = {"model_type": "gpt2", "n_layer": 3, "n_embd": 8, "n_head": 2, "vocab_size": 30}
    model = il.from_config(gpt2, "GPT2LMHeadModel") if causal else il.from_config(bert, "BertForSequenceClassification")
    graph = model.graph(["input_ids", "attention_mask"], ["logits"])
    if causal:
        with graph.tracing():
            logits = graph.outputs["logits"]
            graph.outputs = {"logits": ops.slice_(logits, axis=1, start=logits.shape[1] - 1, stop=logits.shape[1])}
    after = optimize(graph)
    wide = [n for n in after.live() if n.op in (ops.linear, ops.affine) and "seq" in map(str, n.type.shape)]
    last = [n.path for n in wide if "blocks.2" in n.path]
    assert all(path.endswith(("attention.layer.k", "attention.layer.v", "qkv")) for path in last), last
    assert not [n for n in after.live() if n.op in (ops.tanh, ops.gelu) and n.path.startswith("body.blocks.2") and "seq" in map(str, n.type.shape)]
    ids = np.random.default_rng(0).integers(1, 30, (2, 7))
    check(graph, after, {"input_ids": ids, "attention_mask": np.array([[1] * 7, [1] * 5 + [0] * 2])}, model.weights)


# ---- random graphs ------------------------------------------------------------------------------


class RandomGraph:
    """A graph of some twenty random nodes over [batch seq n] values, symbolic or not, and what to feed it."""

    def __init__(self, seed: int):
        self.rng, self.graph, self.params = np.random.default_rng(seed), Graph(), {}
        batch, seq = (symbol("batch"), symbol("seq")) if seed % 2 else (2, 3)
        self.lead = (batch, seq)
        with self.graph.tracing():
            self.values = [self.graph.input(name, f"f32[{batch} {seq} 6]") for name in ("a", "b")]
            self.mask = ops.cast(self.graph.input("mask", f"i64[{batch} {seq}]"), dtype="bool")
            steps = [getattr(self, name) for name in dir(self) if name.startswith("_") and not name.startswith("__")]
            for i in range(20):
                self.graph.path = f"step.{i}"
                self.values += steps[self.rng.integers(len(steps))](self.any())
            outputs = [self.values[-1], self.any(), self.any()]
            if seed % 3:  # some are read in part
                outputs = [ops.slice_(v, axis=1, start=seq - 1, stop=seq) for v in outputs[: seed % 3]] + outputs[seed % 3 :]
        self.graph.outputs = {f"y{i}": v for i, v in enumerate(outputs)}
        self.feed = {k: self.rng.standard_normal((2, 3, 6)) for k in ("a", "b")} | {"mask": np.array([[1, 1, 0], [1, 1, 1]])}
        self.weights = ArrayWeights(self.params)

    def any(self) -> Value:
        return self.values[self.rng.integers(len(self.values))]

    def like(self, x: Value) -> Value:
        return next(v for v in self.values[self.rng.integers(len(self.values)) :] + self.values if v.type == x.type)

    def param(self, *shape: int) -> Param:
        p = Param(*shape)
        p.name = p.key = f"p{len(self.params)}"
        self.params[p.key] = (self.rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return p

    def _unary(self, x: Value) -> list[Value]:
        return [[ops.tanh, ops.gelu, ops.sigmoid, ops.relu, lambda y: ops.softmax(y, axis=int(self.rng.integers(3)))][self.rng.integers(5)](x)]

    def _binary(self, x: Value) -> list[Value]:
        return [[lambda a, b: a + b, lambda a, b: a * b, ops.maximum][self.rng.integers(3)](x, self.like(x))]

    def _number(self, x: Value) -> list[Value]:
        return [[x + 0.0, x * 1.0, x - 0.5, x / 2.0, 1.0 - x][self.rng.integers(5)]]

    def _bias(self, x: Value) -> list[Value]:
        return [x + self.param(x.shape[-1]), x * self.param(1, 1, x.shape[-1])]

    def _linear(self, x: Value) -> list[Value]:
        m = int(self.rng.choice([4, 6]))
        return [ops.linear(x, self.param(m, x.shape[-1]), self.param(m))]

    def _affine(self, x: Value) -> list[Value]:
        return [ops.affine(x, self.param(x.shape[-1], 6))]

    def _norm(self, x: Value) -> list[Value]:
        n = x.shape[-1]
        return [ops.layer_norm(x, self.param(n), self.param(n), eps=1e-5), ops.rms_norm(x, self.param(n), eps=1e-5)]

    def _chunks(self, x: Value) -> list[Value]:
        axis = int(self.rng.choice([1, 2]))
        if axis == 1:
            return [ops.concat(ops.slice_(x, axis=1, start=1, stop=x.shape[1]), x[:, :1], axis=1)]
        half = x.shape[2] // 2
        a, b = ops.split(x, axis=2, sizes=(half, half))
        return [ops.concat(b, a * ops.sigmoid(b), axis=2), ops.mean(x, axis=2, keep=True) + x]

    def _turned(self, x: Value) -> list[Value]:
        y = ops.transpose(ops.transpose(x, perm=(1, 0, 2)) * 0.5, perm=(1, 0, 2))
        return [y, ops.reshape(ops.reshape(x, shape=(*self.lead, 2, x.shape[2] // 2)), shape=x.shape)]

    def _masked(self, x: Value) -> list[Value]:
        return [ops.where(self.mask[:, :, None], x, 0.0), ops.where(ops.less(x, self.like(x)), x, self.like(x))]

    def _attention(self, x: Value) -> list[Value]:
        q, k, v = (ops.rearrange(ops.linear(x, self.param(6, x.shape[-1])), "b s (h n) -> b h s n", h=2) for _ in range(3))
        mask = [None, self.mask[:, None, None, :]][self.rng.integers(2)]
        if self.rng.integers(3) == 0:
            q = q[:, :, -1:] if isinstance(q.shape[2], int) else ops.slice_(q, axis=2, start=q.shape[2] - 1, stop=q.shape[2])
        y = ops.attention(q, k, v, mask, scale=0.6, causal=bool(self.rng.integers(2)))
        y = ops.broadcast_to(y, shape=(*y.shape[:2], self.lead[1], 3)) if y.shape[2] == 1 else y
        return [ops.rearrange(y, "b h s n -> b s (h n)")]

    def _folded(self, x: Value) -> list[Value]:
        table = ops.literal(value=self.rng.standard_normal((5, x.shape[2])).astype(np.float32))
        row = ops.take(ops.exp(table), ops.iota(size=3) + 1, axis=0)
        return [x + ops.sum(row, axis=0), x * ops.cast(ops.size(value=self.lead[0]), dtype="f32")]


@pytest.mark.parametrize("seed", range(60))
def test_passes_keep_random_graphs(seed: int):
    case = RandomGraph(seed)
    for passes in (*([p] for p in PASSES), PASSES, [fold_constants, flatten, fold_constants, explicit_causal, flatten]):
        check(case.graph, optimize(case.graph, passes), case.feed, case.weights)


@pytest.mark.parametrize("seed", range(20))
@each_pass
def test_a_pass_leaves_nothing_to_itself(change: Callable[[Graph], Graph], seed: int):
    once = change(RandomGraph(seed).graph).pruned()
    assert names(change(once)) == names(once)


def test_passes_are_switched_off_by_name():
    assert without(PASSES, ["flatten"]) == tuple(p for p in PASSES if p is not flatten)
    assert without(PASSES, []) == tuple(PASSES)
    with pytest.raises(UsageError, match="pass 'flaten' is unknown; did you mean 'flatten'"):
        without(PASSES, ["flaten"])


def test_what_each_pass_changes_is_told():
    def make(x, y):
        return ops.slice_(ops.tanh(ops.linear(x, y) + 0.0), axis=1, start=0, stop=1)

    lines = pass_lines(build(make, "f32[b s 6]", "f32[4 6]"), PASSES)
    assert [line.split()[0] for line in lines] == ["traced", *(p.__name__ for p in PASSES)]
    told = dict(zip(("traced", *(p.__name__ for p in PASSES)), lines, strict=True))
    assert "5 nodes" in told["traced"]
    assert "4 results of another size" in told["push_slices"]
    assert "nothing changed" in told["explicit_causal"]
    assert "-1 add, -1 constant" in told["fold_constants"]
    assert "+2 reshape" in told["flatten"]


# ---- causality ----------------------------------------------------------------------------------


def layers(*, mask: bool = False, bias: bool = False, start: bool = False, rows: str = "s", count: int = 3) -> Graph:
    types = [f"f32[b 4 {rows} 6]", "f32[b 4 s 6]", "bool[b 1 1 s]", f"f32[1 4 {rows} s]", "i64[]"]

    def make(q, k, m, h, first):
        for _ in range(count):
            q = ops.attention(q, k, k, m if mask else None, h if bias else None, first if start else None, scale=0.5, causal=True)
        return q

    return build(make, *types)


@pytest.mark.parametrize(
    ("options", "causal", "masked", "expected"),
    [
        ({}, True, False, []),
        ({"mask": True}, False, True, ["and", "less_equal"]),
        ({"bias": True}, False, True, ["less_equal"]),
        ({"start": True}, False, True, ["less_equal"]),
        ({"mask": True, "bias": True, "start": True, "rows": "r"}, False, True, ["and", "less_equal"]),
        ({"rows": "r"}, False, True, ["less_equal"]),
        ({"rows": "1"}, False, False, []),
        ({"rows": "1", "mask": True}, False, True, []),
        ({"rows": "1", "start": True}, False, True, ["less_equal"]),
    ],
    ids=lambda x: "-".join(x) or "square" if isinstance(x, dict) else "",
)
def test_causality_becomes_one_mask_for_all_layers(options: dict[str, Any], causal: bool, masked: bool, expected: list[str]):
    graph = explicit_causal(layers(**options))
    found = [n for n in graph.live() if n.op is ops.attention]
    assert len(found) == 3
    assert {n.attrs["causal"] for n in found} == {causal}
    assert len({n.inputs[3] for n in found}) == 1
    assert (found[0].inputs[3] is not None) == masked
    assert all(n.inputs[5] is None for n in found)
    assert sorted(n for n in names(graph) if n in ("and", "less_equal")) == expected


def test_one_row_and_one_key_need_no_causality():
    (node,) = explicit_causal(build(lambda q: ops.attention(q, q, q, scale=0.5, causal=True), "f32[4 1 6]")).live()
    assert (node.attrs["causal"], node.inputs[3]) == (False, None)


def test_causal_attention_weights_and_dropout_are_kept():
    def make(q, k, m, key):
        return ops.attention_weights(q, k, m, scale=0.5, causal=True), ops.attention(q, k, k, m, key=key, scale=0.5, causal=True, dropout=0.1, site=4)

    graph = explicit_causal(build(make, "f32[b 4 s 6]", "f32[b 4 s 6]", "bool[b 1 1 s]", "u32[2]"))
    weights, values = [n for n in graph.live() if "scale" in n.attrs]
    assert weights.inputs[2] is values.inputs[3]
    assert (values.attrs["dropout"], values.attrs["site"], values.inputs[6].name) == (0.1, 4, "x3")


def test_an_explicit_causal_mask_in_print():
    graph = build(lambda q, k: ops.attention(q, k, k, scale=0.5, causal=True), "f32[4 r 6]", "f32[4 s 6]")
    assert print_graph(fold_constants(explicit_causal(graph))) == dedent("""
        inputs
          x0: f32[4 r 6]
          x1: f32[4 s 6]
        nodes
          %0: i64[s] = iota() {size=s}  # layer
          %1: i64[1 s] = reshape(%0) {shape=(1, s)}  # layer
          %2: i64[r] = iota() {size=r}  # layer
          %3: i64[] = size() {value=s-1*r}  # layer
          %4: i64[r] = add(%2, %3)  # layer
          %5: i64[r 1] = reshape(%4) {shape=(r, 1)}  # layer
          %6: bool[r s] = less_equal(%1, %5)  # layer
          %7: bool[1 r s] = reshape(%6) {shape=(1, r, s)}  # layer
          %8: f32[4 r 6] = attention(x0, x1, x1, %7) {scale=0.5}  # layer
        outputs
          y0: %8
        """)


# ---- flattening ---------------------------------------------------------------------------------


def mlp(x: Value, count: int) -> Value:
    for _ in range(count):
        up, down, scale = Param(12, 6), Param(6, 12), Param(6)
        x = x + ops.linear(ops.gelu(ops.linear(ops.layer_norm(x, scale, eps=1e-5), up)), down)
    return x


@pytest.mark.parametrize("count", [1, 4])
def test_a_stack_of_layers_is_flattened_once(count: int):
    graph = flatten(build(lambda x: mlp(ops.linear(x, Param(6, 6)), count), "f32[b s 6]"))
    assert names(graph).count("reshape") == 2
    assert all(n.type.rank == 2 for n in graph.live()[:-1])


def test_a_flattened_block_in_print():
    def make(x, w, v, position):
        a, b = ops.split(ops.linear(x, w), axis=2, sizes=(4, 4))
        return ops.softmax(ops.affine(a * ops.silu(b), v) + x, axis=-1) + position, ops.sum(a, axis=2), ops.max(b, axis=1)

    graph = flatten(build(make, "f32[b s 6]", "f32[8 6]", "f32[4 6]", "f32[1 s 6]"))
    assert print_graph(graph.pruned()) == dedent("""
        inputs
          x0: f32[b s 6]
          x1: f32[8 6]
          x2: f32[4 6]
          x3: f32[1 s 6]
        nodes
          %0: f32[b*s 6] = reshape(x0) {shape=(b*s, 6)}  # layer
          %1: f32[b*s 8] = linear(%0, x1)  # layer
          %2: f32[b*s 4], %2.1: f32[b*s 4] = split(%1) {axis=1, sizes=(4, 4)}  # layer
          %3: f32[b s 4] = reshape(%2.1) {shape=(b, s, 4)}  # layer
          %4: f32[b*s 4] = silu(%2.1)  # layer
          %5: f32[b*s 4] = mul(%2, %4)  # layer
          %6: f32[b*s 6] = affine(%5, x2)  # layer
          %7: f32[b*s 6] = add(%6, %0)  # layer
          %8: f32[b*s 6] = softmax(%7) {axis=1}  # layer
          %9: f32[b s 6] = reshape(%8) {shape=(b, s, 6)}  # layer
          %10: f32[b s 6] = add(%9, x3)  # layer
          %11: f32[b*s] = sum(%2) {axis=1}  # layer
          %12: f32[b s] = reshape(%11) {shape=(b, s)}  # layer
          %13: f32[b 4] = max(%3) {axis=1}  # layer
        outputs
          y0: %10
          y1: %12
          y2: %13
        """)


def kept_flat(call: Callable[..., Any], *types: str) -> bool:
    """Whether `call`, on operands that were matrices before they became [b s n], works on the matrices."""

    batch, seq = symbol("b"), symbol("s")

    def make(*xs):
        return call(*[ops.reshape(x, shape=(batch, seq, x.shape[1])) if x.shape[:1] == (batch * seq,) else x for x in xs])

    nodes = [n for n in flatten(build(make, *types)).live() if n.op is not ops.reshape]
    return all(v is None or v.rank <= 2 for n in nodes for v in n.inputs)


REDUCTIONS = ("sum", "mean", "max", "min", "logsumexp", "argmax", "argmin")
LAST_AXIS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    **{n: (lambda x, n=n: OPS[n](x, axis=2), ["f32[b*s 6]"]) for n in (*REDUCTIONS, "cumsum", "flip")},
    **{n: (lambda x, n=n: OPS[n](x, axis=-1), ["f32[b*s 6]"]) for n in ("softmax", "log_softmax", "argsort", "sort")},
    **{n: (lambda x, n=n: OPS[n](x, axis=2, keep=True), ["bool[b*s 6]"]) for n in ("any", "all")},
    "concat": (lambda *xs: ops.concat(*xs, axis=2), ["f32[b*s 6]", "f32[b*s 4]"]),
    "split": (lambda x: ops.split(x, axis=2, sizes=(2, 4)), ["f32[b*s 6]"]),
    "slice": (lambda x: ops.slice_(x, axis=2, start=1, stop=5, step=2), ["f32[b*s 6]"]),
    "roll": (lambda x: ops.roll(x, axis=2, shift=2), ["f32[b*s 6]"]),
    "window": (lambda x, i: ops.window(x, i, axis=2, length=2), ["f32[b*s 6]", "i64[]"]),
    "update": (lambda x, new, i: ops.update(x, new, i, axis=2), ["f32[b*s 6]", "f32[b*s 2]", "i64[]"]),
    "take": (lambda x, i: ops.take(x, i, axis=2), ["f32[b*s 6]", "i64[3]"]),
    "gather": (lambda x, i: ops.gather(x, i, axis=2), ["f32[b*s 6]", "i64[b*s 3]"]),
    "scatter": (lambda x, i, new: ops.scatter(x, i, new, axis=2), ["f32[b*s 6]", "i64[b*s 3]", "f32[b*s 3]"]),
}
ROWS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "linear": (ops.linear, ["f32[b*s 6]", "f32[4 6]", "f32[4]"]),
    "affine": (ops.affine, ["f32[b*s 6]", "f32[6 4]"]),
    "layer_norm": (lambda *xs: ops.layer_norm(*xs, eps=1e-5), ["f32[b*s 6]", "f32[6]", "f32[6]"]),
    "rms_norm": (lambda *xs: ops.rms_norm(*xs, eps=1e-5), ["f32[b*s 6]", "f32[6]"]),
    "round_blocks": (lambda x: ops.round_blocks(x, block=4), ["f32[b*s 6]"]),
}
# ops in which rows meet, or which have no rows
OTHERS = """
constant literal size iota random_uniform dropout reshape transpose broadcast_to pad matmul top_k attention attention_weights rotary one_hot conv
conv_transpose max_pool average_pool resize ctc_loss group_norm batch_norm embedding loop while_loop
dequantize quantized_linear round_range dynamic_quantized_linear
"""


def elementwise() -> dict[str, Op]:
    signatures = {n: op for n, op in OPS.items() if isinstance(op.rule, Signature) and "axis" not in op.attributes}
    return {n: op for n, op in signatures.items() if op.rule.wants and all(dims == ["*b"] for _, dims, _ in op.rule.wants)}


def test_each_op_is_known_to_keep_rows_apart_or_not():
    assert set(OPS) == {*elementwise(), *LAST_AXIS, *ROWS, *OTHERS.split()}
    assert set(LAST_AXIS) == {n for n, op in OPS.items() if "axis" in op.attributes}


@pytest.mark.parametrize("name", elementwise())
def test_reshapes_sink_below_ops_on_elements(name: str):
    op = OPS[name]
    types = [f"{ {'int': 'i64', 'bool': 'bool'}.get(kind, 'f32') }[b*s 6]" for kind, _, _ in op.rule.wants]
    attrs = {"dtype": "i64"} if name == "cast" else {}
    assert kept_flat(lambda *xs: op(*xs, **attrs), *types)
    if len(types) == 2:
        assert kept_flat(lambda *xs: op(*xs, **attrs), types[0], types[1].replace("b*s ", ""))
        assert kept_flat(lambda *xs: op(*xs, **attrs), types[0].replace("b*s 6", ""), types[1])
        assert not kept_flat(lambda *xs: op(*xs, **attrs), types[0], types[1].replace("b*s", "s"))


@pytest.mark.parametrize("name", [*LAST_AXIS, *ROWS])
def test_reshapes_sink_below_ops_on_rows(name: str):
    call, types = {**LAST_AXIS, **ROWS}[name]
    assert kept_flat(call, *types)


def test_reshapes_stay_above_ops_between_rows():
    for op, axis in [(ops.sum, 1), (ops.softmax, 0), (ops.mean, (1, 2)), (ops.cumsum, -2)]:
        assert not kept_flat(lambda x, op=op, axis=axis: op(x, axis=axis), "f32[b*s 6]")
    assert not kept_flat(lambda x, y: ops.concat(x, y, axis=1), "f32[b*s 6]", "f32[b 2 6]")
    assert not kept_flat(lambda x, i: ops.take(x, i, axis=2), "f32[b*s 6]", "i64[b s 3]")


# ---- folding ------------------------------------------------------------------------------------


def test_what_is_known_is_computed_once():
    def make(x):
        angles = ops.cast(ops.iota(size=4), dtype="f32")[:, None] * ops.literal(value=np.array([1.0, 0.5, 0.1]))
        return x + ops.concat(ops.sin(angles), ops.cos(angles), axis=1), x * ops.sqrt(ops.constant(value=2.0, dtype="f32"))

    graph = build(make, "f32[n 4 6]")
    folded = fold_constants(graph)
    assert names(folded) == ["literal", "add", "constant", "mul"]
    check(graph, folded, {"x0": np.ones((2, 4, 6))})
    assert folded.live()[2].attrs["value"] == 2.0**0.5


def test_what_is_too_large_symbolic_or_random_is_not_computed():
    def make(x, key):
        mask = ops.causal_mask(300, 300)
        drawn = ops.random_uniform(ops.literal(value=np.array([1, 2]), dtype="u32"), shape=(4,), site=0)
        two = ops.constant(value=1.0, dtype="f32") * 2.0
        return ops.where(mask, x, 0.0), ops.iota(size=symbol("n")) + 1, drawn, ops.broadcast_to(two, shape=(50,))

    graph = fold_constants(build(make, "f32[300 300]", "u32[2]"))
    assert {"less_equal", "iota", "random_uniform", "broadcast_to"} <= set(names(graph))
    assert "mul" not in names(graph)
    assert "less_equal" not in names(fold_constants(build(make, "f32[300 300]", "u32[2]"), most=90000))


IDENTITIES: list[tuple[str, Callable[..., Any], list[str], list[str]]] = [
    ("x + 0", lambda x: x + 0.0, ["f32[n 4]"], []),
    ("0 + x", lambda x: 0.0 + x, ["f32[n 4]"], []),
    ("x - 0", lambda x: x - 0, ["i64[n 4]"], []),
    ("0 - x", lambda x: 0.0 - x, ["f32[n 4]"], ["constant", "sub"]),
    ("x * 1", lambda x: x * 1.0, ["f32[n 4]"], []),
    ("1 * x", lambda x: 1 * x, ["i64[n 4]"], []),
    ("x / 1", lambda x: x / 1.0, ["f32[n 4]"], []),
    ("1 / x", lambda x: 1.0 / x, ["f32[n 4]"], ["constant", "div"]),
    ("x // 1", lambda x: x // 1, ["i64[n 4]"], []),
    ("x ** 1", lambda x: ops.power(x, 1.0), ["f32[n 4]"], []),
    ("x * ones", lambda x: x * ops.literal(value=np.ones(4)), ["f32[n 4]"], []),
    ("x + zeros that broadcast", lambda x: x + ops.literal(value=np.zeros((2, 1))), ["f32[4]"], ["literal", "add"]),
    ("x + an almost zero", lambda x: x + ops.literal(value=np.array([0.0, 1e-30])), ["f32[n 2]"], ["literal", "add"]),
    ("x and true", lambda x: x & ops.literal(value=np.array(True)), ["bool[n]"], []),
    ("false or x", lambda x: ops.literal(value=np.array(False)) | x, ["bool[n]"], []),
    ("x xor false", lambda x: x ^ ops.literal(value=np.array(False)), ["bool[n]"], []),
    ("where true", lambda x, y: ops.where(np.array([True, True]), x, y), ["f32[n 2]", "f32[n 2]"], []),
    ("where false", lambda x, y: ops.where(np.array([False, False]), x, y), ["f32[n 2]", "f32[n 2]"], []),
    ("where some", lambda x, y: ops.where(np.array([False, True]), x, y), ["f32[n 2]", "f32[n 2]"], ["literal", "where"]),
    ("not not x", lambda x: ~~x, ["bool[n]"], []),
    ("minus minus x", lambda x: ops.negative(ops.negative(x)), ["f32[n]"], []),
    ("reshape of reshape", lambda x: ops.reshape(ops.reshape(x, shape=(2, 2, 6)), shape=(4, 6)), ["f32[4 2 3]"], ["reshape"]),
    ("reshape there and back", lambda x: ops.reshape(ops.reshape(x, shape=(6, 4)), shape=(4, 6)), ["f32[4 6]"], []),
    ("transposed twice", lambda x: ops.transpose(ops.transpose(x, perm=(1, 2, 0)), perm=(2, 0, 1)), ["f32[a b c]"], []),
    ("turned twice", lambda x: ops.transpose(ops.transpose(x, perm=(1, 2, 0)), perm=(1, 2, 0)), ["f32[a b c]"], ["transpose"]),
    ("turned and swapped", lambda x: ops.transpose(ops.transpose(x, perm=(1, 2, 0)), perm=(1, 0, 2)), ["f32[a b c]"], ["transpose"]),
    ("transposed not at all", lambda x: ops.transpose(x, perm=(0, 1)), ["f32[a b]"], []),
    ("cast to itself", lambda x: ops.cast(x, dtype="f32"), ["f32[n]"], []),
    ("cast by way of i64", lambda x: ops.cast(ops.cast(x, dtype="i64"), dtype="f32"), ["bool[n]"], ["cast"]),
    ("cast by way of i64 that rounds", lambda x: ops.cast(ops.cast(x, dtype="i64"), dtype="f32"), ["f32[n]"], ["cast", "cast"]),
    ("broadcast to itself", lambda x: ops.broadcast_to(x, shape=x.shape), ["f32[n 4]"], []),
    ("the whole", lambda x: ops.slice_(x, axis=0, start=0, stop=x.shape[0]), ["f32[n 4]"], []),
    ("every other of one", lambda x: ops.slice_(x, axis=0, start=0, stop=1, step=2), ["f32[1 4]"], ["slice"]),
    ("a part", lambda x: ops.slice_(x, axis=0, start=1, stop=3), ["f32[4]"], ["slice"]),
    ("concat of one", lambda x: ops.concat(x, axis=0), ["f32[n]"], []),
    ("concat of two", lambda x: ops.concat(x, x, axis=0), ["f32[n]"], ["concat"]),
    ("padding by nothing", lambda x: ops.pad(x, low=(0, 0), high=(0, 0)), ["f32[n 4]"], []),
    ("padding by a size", lambda x: ops.pad(x, low=(0, 0), high=(x.shape[0], 0)), ["f32[n 4]"], ["pad"]),
    ("rolled by nothing", lambda x: ops.roll(x, axis=0, shift=0), ["f32[n 4]"], []),
    ("dropout of nothing", lambda x, key: ops.dropout(x, key, rate=0.0, site=0), ["f32[n 4]", "u32[2]"], []),
]


@pytest.mark.parametrize(("make", "types", "expected"), [row[1:] for row in IDENTITIES], ids=[row[0] for row in IDENTITIES])
def test_what_changes_nothing_is_left_out(make: Callable[..., Any], types: list[str], expected: list[str]):
    graph = build(make, *types)
    folded = fold_constants(graph)
    assert names(folded) == expected
    sizes = {"n": 3, "a": 2, "b": 3, "c": 4}
    rng = np.random.default_rng(0)
    feed = {v.name: rng.integers(0, 2, [sizes.get(str(d), d) for d in v.shape]) for v in graph.inputs}
    kinds = {"bool": bool, "i64": np.int64, "f32": float, "u32": np.uint32}
    check(graph, folded, {v.name: feed[v.name].astype(kinds[v.type.dtype]) for v in graph.inputs})


def test_every_rewrite_has_an_identity_that_needs_it():
    used = set()
    for _, make, types, _ in IDENTITIES:
        for node in build(make, *types).live():
            used |= {node.op}
    assert {op.name for op in REWRITES} <= {op.name for op in used}


# ---- optimize -----------------------------------------------------------------------------------


def test_passes_run_in_order_and_the_default_folds_masks():
    graph = optimize(build(lambda q, k: ops.attention(q, k, k, scale=0.5, causal=True), "f32[4 2 6]", "f32[4 3 6]"))
    assert names(graph) == ["literal", "attention"]
    np.testing.assert_array_equal(graph.live()[0].attrs["value"].array, [[[True, True, False], [True, True, True]]])


def widened(graph: Graph) -> Graph:
    graph = graph.rebuild(lambda node, operands: None)
    with graph.tracing():
        graph.outputs = {k: ops.cast(v, dtype="f64") for k, v in graph.outputs.items()}
    return graph


def misshapen(graph: Graph) -> Graph:
    return graph.rebuild(lambda node, operands: ops.reshape(operands[0], shape=(5,)))


def broken(graph: Graph) -> Graph:
    raise KeyError("x")


def weighted(graph: Graph) -> Graph:
    extra = Param(4)
    extra.name = "extra"
    return graph.rebuild(lambda node, operands: ops.tanh(operands[0]) + extra)


def blind(graph: Graph) -> Graph:
    graph = graph.rebuild(lambda node, operands: None)
    graph.inputs = []
    return graph


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (widened, InterlinguaError, r"pass widened changed the outputs, expected them as they were\n  y0: f32\[n 4\] before, f64\[n 4\] after"),
        (blind, InterlinguaError, r"pass blind changed the inputs, expected them as they were\n  x0: f32\[n 4\] before, absent after"),
        (misshapen, ShapeError, r"pass misshapen: reshape: f32\[n 4\] has not the size of \[5\]"),
        (broken, InterlinguaError, "pass broken failed: KeyError: 'x'"),
        (weighted, InterlinguaError, r"pass weighted made the parameter extra: f32\[4\], expected only those that were there"),
    ],
)
def test_an_error_names_its_pass(change: Callable[[Graph], Graph], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        optimize(build(ops.tanh, "f32[n 4]"), [fold_constants, change])
