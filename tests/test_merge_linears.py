"""Products of one value with several weights: merged where nothing else reads the weights, and equal."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import build, check, names

import interlingua as il
from interlingua.exporters.onnx import passes_for, prepare
from interlingua.ir import ops
from interlingua.ir.graph import Graph, Param
from interlingua.ir.op import Op
from interlingua.ir.passes import merge_linears
from interlingua.ir.weights import ArrayWeights


def stored(*shape: int, dtype: str = "f32", name: str) -> Param:
    param = Param(*shape, dtype=dtype)
    param.name = param.key = name
    return param


def three(op: Op, axis: int, *, biases: str = "yyy") -> tuple[Graph, ArrayWeights]:
    """A value times three weights of 4, 2 and 3 outputs, some with a bias."""
    rng = np.random.default_rng(0)
    shapes = {f"w{i}": (n, 6) if axis == 0 else (6, n) for i, n in enumerate((4, 2, 3))} | {f"b{i}": (n,) for i, n in enumerate((4, 2, 3))}
    params = {k: stored(*shape, name=k) for k, shape in shapes.items()}
    graph = build(lambda x: tuple(op(x, params[f"w{i}"], params[f"b{i}"] if biases[i] == "y" else None) for i in range(3)), "f32[b s 6]")
    return graph, ArrayWeights({k: rng.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()})


@pytest.mark.parametrize(("op", "axis"), [(ops.linear, 0), (ops.affine, 1)], ids=["linear", "affine"])
@pytest.mark.parametrize(("biases", "products"), [("yyy", 1), ("nnn", 1), ("yny", 2)])
def test_products_of_one_value_are_merged(op: Op, axis: int, biases: str, products: int):
    graph, weights = three(op, axis, biases=biases)
    merged = merge_linears(graph)
    assert names(merged).count(op.name) == products
    check(graph, merged, {"x0": np.random.default_rng(1).standard_normal((2, 3, 6))}, weights)


def test_what_is_read_elsewhere_or_is_no_weight_is_not_merged():
    tied, other, third = (stored(4, 6, name=f"w{i}") for i in range(3))
    for make in (
        lambda x, y: (ops.linear(x, tied), ops.linear(x, other), ops.tanh(tied)),  # one alone is left
        lambda x, y: (ops.linear(x, tied), ops.linear(x, tied)[:, :1], ops.linear(y, other)),
        lambda x, y: (ops.linear(x, ops.tanh(tied)), ops.linear(x, ops.tanh(other))),
        lambda x, y: (ops.linear(x, tied), ops.affine(x, stored(6, 4, name="turned"))),
        lambda x, y: (ops.linear(x, tied), ops.linear(y, third)),
    ):
        graph = build(make, "f32[b s 6]", "f32[b s 6]")
        assert names(merge_linears(graph)) == names(graph)


def test_layers_with_a_cache_are_merged_and_others_are_not():
    model = il.from_config(
        {"model_type": "t5", "d_model": 16, "d_kv": 4, "num_heads": 4, "d_ff": 8, "num_layers": 2, "vocab_size": 30},
        head="T5ForConditionalGeneration",
    )
    encoder, decoder = (part.graph(model) for part in model.card.heads[model.head].parts)
    products = [sum(n.op is ops.linear for n in prepare(g).live()) for g in (encoder, decoder)]
    assert products == [2 * 6 + 4, 2 * 8 + 1 - 2 - 1], "the encoder as it is; the last block's queries are those of one row, keys and values of all"
    assert merge_linears not in passes_for(decoder, ["merge_linears"])
