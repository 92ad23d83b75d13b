"""Attention of one query row without keys and values: equal, and only where nothing is computed twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import build, check, names

import interlingua as il
from interlingua.exporters.onnx import prepare
from interlingua.ir import ops
from interlingua.ir.graph import Graph, Param, Value
from interlingua.ir.passes import absorb_projections
from interlingua.ir.weights import ArrayWeights

RNG = np.random.default_rng(0)
HEADS, SIZE, WIDTH = 3, 4, 10  # values are as wide as keys


def stored(name: str, *shape: int) -> Param:
    param = Param(*shape)
    param.name = param.key = name
    return param


def in_heads(x: Value, name: str, heads: int = HEADS, bias: bool = True) -> Value:
    y = ops.linear(x, stored(f"{name}.weight", heads * SIZE, WIDTH), stored(f"{name}.bias", heads * SIZE) if bias else None)
    return ops.transpose(ops.reshape(y, shape=(*x.shape[:2], heads, SIZE)), perm=(0, 2, 1, 3))


def attention(*masks: str, rows: int = 1, biases: bool = True, **options: Any) -> Graph:
    """A graph of attention on x0 [b s WIDTH] from its first rows; masks are types of further inputs, booleans and a bias."""

    def make(x: Value, *given: Value) -> Value:
        q, k, v = in_heads(x[:, :rows], "q"), in_heads(x, "k", bias=biases), in_heads(x, "v", bias=biases)
        named = {"mask" if m.type.dtype == "bool" else "bias": m for m in given}
        return ops.attention(q, k, v, **named, scale=0.5, **options)

    return build(make, f"f32[b s {WIDTH}]", *masks)


def weights(graph: Graph) -> ArrayWeights:
    return ArrayWeights({p.key: RNG.standard_normal(p.shape).astype(np.float32) for p in graph.params()})


def feed(graph: Graph) -> dict[str, np.ndarray]:
    sizes = {"b": 2, "s": 5}
    made = {}
    for v in graph.inputs:
        shape = tuple(d if isinstance(d, int) else d.bind(sizes) for d in v.shape)
        made[v.name] = RNG.random(shape) < 0.6 if v.type.dtype == "bool" else RNG.standard_normal(shape)
        if v.type.dtype == "bool":
            made[v.name].reshape(-1, 5)[1:2] = False  # a row, of another head or another example, that sees no key
    return made


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(
    "masks",
    [(), ("bool[b 1 1 s]",), ("bool[b 3 1 s]",), ("bool[1 1 1 s]",), ("f32[1 3 1 s]",), ("f32[b 3 1 s]", "bool[b 1 1 s]"), ("f32[1 1 1 s]",)],
    ids=" ".join,
)
def test_one_query_needs_no_keys(masks: tuple[str, ...], biases: bool):
    graph = attention(*masks, biases=biases)
    absorbed = absorb_projections(graph)
    assert names(absorbed).count("linear") == 1  # the query's
    for _ in range(5):
        check(graph, absorbed, feed(graph), weights(graph))
    assert names(absorb_projections(absorbed)) == names(absorbed)


def test_what_would_be_computed_twice_or_is_no_projection_stays():
    def read_elsewhere(x: Value) -> tuple[Value, Value]:
        k = in_heads(x, "k")
        return ops.attention(in_heads(x[:, :1], "q"), k, in_heads(x, "v"), scale=1.0), k

    def of_two(x: Value, y: Value) -> Value:
        return ops.attention(in_heads(x[:, :1], "q"), in_heads(x, "k"), in_heads(y, "v"), scale=1.0)

    def shared(x: Value) -> Value:
        return ops.attention(in_heads(x[:, :1], "q"), in_heads(x, "k", 1), in_heads(x, "v", 1), scale=1.0)

    def turned(x: Value) -> Value:
        return ops.attention(in_heads(x[:, :1], "q"), ops.tanh(in_heads(x, "k")), in_heads(x, "v"), scale=1.0)

    wide = f"f32[b s {WIDTH}]"
    graphs = [build(make, wide) for make in (read_elsewhere, shared, turned)]
    for graph in (*graphs, build(of_two, wide, wide), attention(rows=2), attention(causal=True), build(shared, f"f32[b 1 {WIDTH}]")):
        assert names(absorb_projections(graph)) == names(graph)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_classifier_s_last_block_makes_no_keys(kind: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8}
    head = {"bert": "BertForSequenceClassification", "vit": "ViTForImageClassification"}[kind]
    model = il.from_config({"model_type": kind, **sizes, **({"vocab_size": 30} if kind == "bert" else {"image_size": 8, "patch_size": 4})}, head=head)
    made = [n.path.rpartition(".")[2] for n in prepare(model.graph()).live() if n.op is ops.linear and ".attention." in n.path]
    assert made == ["q", "k", "v", "out", "q", "out"]
