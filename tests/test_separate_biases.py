"""Biases before gelu: added apart, equal, and fused with it where onnxruntime loads the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import build, check, names

from interlingua.exporters.onnx import prepare, to_proto
from interlingua.ir import ops
from interlingua.ir.graph import Graph, Param
from interlingua.ir.passes import separate_biases
from interlingua.ir.weights import ArrayWeights, Location

FEED = {"x0": np.random.default_rng(1).standard_normal((2, 3, 6))}


def stored(*shape: int, name: str) -> Param:
    param = Param(*shape)
    param.name = param.key = name
    return param


WEIGHTS = ArrayWeights({k: np.random.default_rng(0).standard_normal(s).astype(np.float32) for k, s in {"w": (8, 6), "t": (6, 8), "b": (8,)}.items()})
WEIGHT, TURNED, BIAS = stored(8, 6, name="w"), stored(6, 8, name="t"), stored(8, name="b")


def activated(approximate: bool = False, turned: bool = False) -> Graph:
    product = (lambda x: ops.affine(x, TURNED, BIAS)) if turned else lambda x: ops.linear(x, WEIGHT, BIAS)
    return build(lambda x: ops.gelu(product(x), approximate=approximate), "f32[b s 6]")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("approximate", [False, True])
def test_a_bias_before_gelu_is_added_apart(approximate: bool, turned: bool):
    graph = activated(approximate, turned)
    after = separate_biases(graph)
    assert names(after.pruned()) == [names(graph)[0], "add", "gelu"]
    check(graph, after, FEED, WEIGHTS)


def test_others_stay():
    for make in (
        lambda x: ops.tanh(ops.linear(x, WEIGHT, BIAS)),
        lambda x: ops.gelu(ops.linear(x, WEIGHT)),
        lambda x: ((y := ops.linear(x, WEIGHT, BIAS)), ops.gelu(y)),  # the sum would be made twice
        ops.gelu,
    ):
        graph = build(make, "f32[b s 6]")
        assert names(separate_biases(graph).pruned()) == names(graph)


@pytest.mark.parametrize(("approximate", "kernel"), [(False, "BiasGelu"), (True, "FastGelu")])
def test_onnxruntime_adds_it_where_it_computes_gelu(approximate: bool, kernel: str, tmp_path: Path):
    graph = prepare(activated(approximate))
    (tmp_path / "weights").write_bytes(b"".join(WEIGHTS.array(k).tobytes() for k in ("w", "b")))
    model = to_proto(graph, WEIGHTS, place={"w": Location("weights", 0, 192), "b": Location("weights", 192, 32)}.__getitem__)
    onnx.save(model, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "loaded.onnx"), 4
    ort.InferenceSession(tmp_path / "model.onnx", options)
    nodes = {node.op_type: node for node in onnx.load(tmp_path / "loaded.onnx").graph.node}
    assert "Add" not in nodes
    assert len(nodes[kernel].input) == len(nodes["Gemm"].input) == 2
