"""Verification must fail where a fault is planted, and name the layer: one wrong weight, and one wrong rule of each op family, on every target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

import interlingua as il
from interlingua import layers, ops
from interlingua.ir.errors import ParityError
from interlingua.ir.graph import Node
from interlingua.ir.op import Op
from interlingua.ir.table import Table

TARGETS = ("numpy", "onnxruntime", "torch", "tensorflow", "xla")


class Stem(il.Layer):
    """An image as a sequence."""

    def __init__(self, n: int):
        self.conv, self.norm = layers.Conv(3, n, (3, 3), padding=(1, 1)), layers.BatchNorm(n)

    def forward(self, image):
        x = ops.relu(self.norm(self.conv(image)))
        x = ops.max_pool(x, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)))
        return ops.rearrange(x, "batch n rows columns -> batch (rows columns) n")


class Everything(il.Layer):
    """A small model with an op of each family."""

    def __init__(self, n: int = 8):
        self.stem, self.words = Stem(n), layers.Embedding(11, n)
        norm = lambda: layers.LayerNorm(n, 1e-5)
        self.blocks = [layers.Block(layers.PreNorm, norm, layers.Attention(n, 2), layers.Mlp(n, 16, "gelu")) for _ in range(2)]
        self.last = layers.RMSNorm(n, 1e-5)
        self.head = layers.Linear(n, 3)

    def forward(self, image, ids):
        x = ops.concat(self.words(ids), self.stem(image), axis=1)
        x, _ = layers.run_blocks(self.blocks, x)
        return {"logits": self.head(ops.mean(self.last(x), axis=1)), "wide": ops.tanh(ops.pad(x, low=(0, 1, 0), high=(0, 0, 0)))}


@pytest.fixture(scope="module")
def model() -> il.Model:
    return il.Model(Everything(), inputs={"image": "f32[batch 3 6 6]", "ids": "i64[batch seq]"}, seed=3)


@pytest.mark.parametrize("target", TARGETS)
def test_right_model_passes(model: il.Model, target: str):
    report = il.verify(model, [target])
    assert report.ok, str(report)
    assert {r.output for r in report.rows} == {"logits", "wide"}
    assert {r.sample for r in report.rows} == {"batch 1", "padded batch"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", ["stem.norm.running_var", "blocks.0.attention.layer.k.weight", "blocks.1.mlp.layer.down.bias", "head.weight"])
def test_wrong_weight(model: il.Model, target: str, key: str):
    weights = {p.key: np.array(model.weights.array(p.key)) for p in model.params}
    weights[key].flat[weights[key].size // 2] += 0.1
    report = il.verify(model.with_weights(weights), [target], truth=model)
    assert not report.ok
    assert report.first[target].startswith(key.rsplit(".", 1)[0] + " ("), report.first
    with pytest.raises(ParityError, match="the first layer that differs is " + key.rsplit(".", 1)[0]):
        report.check()


# Each family with the ops that may stand for it on a target: a composite where it is native there, else a part of its decomposition.
FAMILIES: dict[str, list[Op]] = {
    "elementwise": [ops.add],
    "activation": [ops.gelu, ops.erf],
    "reduction": [ops.mean, ops.sum],
    "shape": [ops.concat, ops.pad],
    "indexing": [ops.take, ops.embedding],
    "linear": [ops.linear, ops.affine, ops.matmul],
    "convolution": [ops.conv],
    "pooling": [ops.max_pool],
    "normalization": [ops.layer_norm, ops.rms_norm, ops.batch_norm, ops.sqrt],
    "attention": [ops.attention, ops.softmax, ops.max],
}


@pytest.mark.parametrize(
    "target", [t for t in TARGETS if t != "numpy"]
)  # NumPy's rules are the truth itself: tests/test_ops.py holds them to torch's
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_rule(model: il.Model, monkeypatch: pytest.MonkeyPatch, target: str, family: str):
    for op in FAMILIES[family]:
        hit: dict[int, list[str]] = {}
        with monkeypatch.context() as patch:
            patch.setattr(Table, "apply", _spoiled(op, hit))
            report = il.verify(model, [target])
        if hit:
            break
    assert hit, f"no op of {family} is run on {target}"
    assert not report.ok
    first = list(hit.values())[-1][0]  # of the last program, in which layers are watched: what passes make of weights may stand elsewhere in others
    assert report.first[target].split(" (")[0] == (first or "the model"), (report.first, hit)


def _spoiled(op: Op, hit: dict[int, list[str]]) -> Any:
    """`Table.apply` with the results of one op off by a hundredth; `hit` gets the paths of the nodes that were spoiled, of each table in turn."""
    right, tables = Table.apply, []

    def apply(self: Table, node: Node, operands: Iterable[Any], attrs: Mapping[str, Any]) -> Any:
        made = right(self, node, operands, attrs)
        if node.op is not op or node.type.dtype != "f32":
            return made
        tables.append(self)  # kept, so that no other gets its id
        hit.setdefault(id(self), []).append(node.path)
        tape = getattr(self, "tape", None)
        return made * 1.01 if tape is None else tape("Mul", made, tape.constant(1.01, "f32"))

    return apply


def test_same_seed_same_inputs(model: il.Model):
    assert str(il.verify(model, ["numpy"], seed=5)) == str(il.verify(model, ["numpy"], seed=5))
    assert str(il.verify(model, ["numpy"], seed=5)) != str(il.verify(model, ["numpy"], seed=6))


def test_second_way_to_onnx(model: il.Model):
    """ONNX through TensorFlow and tf2onnx shares no rule with our exporter, and agrees with the same reference."""
    assert il.verify(model, ["tf2onnx"]).check().ok
