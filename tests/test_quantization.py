"""Quantised exports: what is written computes what its integers say, is as small as it should be, and its errors are those that are reported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from oracle_specs import config_json

import interlingua as il
from interlingua.exporters import quantization as exporter
from interlingua.exporters.artifact import WeightFiles
from interlingua.exporters.graphs import graphs_of
from interlingua.exporters.quantization import (
    LEAST,
    REPORT,
    SCHEMES,
    Quantized,
    QuantizedWeights,
    quantizable,
    quantize,
    quantize_blocks,
    quantize_channels,
)
from interlingua.ir import ops
from interlingua.ir.errors import ParityError, UsageError
from interlingua.ir.graph import Graph, Param
from interlingua.ir.reference import reference
from interlingua.ir.weights import ArrayWeights
from interlingua.model import Model
from interlingua.runtime.ort import OrtSession
from interlingua.runtime.quantization import Distance, export_quantized, sensitivity
from interlingua.runtime.samples import Sample, make_samples

RNG = np.random.default_rng(0)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def tiny(kind: str) -> Model:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    type, head, config = {
        "bert": ("bert", "BertForSequenceClassification", small),
        "tagger": ("bert", "BertForTokenClassification", small),
        "gpt2": ("gpt2", "GPT2LMHeadModel", {"n_embd": 64, "n_head": 4}),
        "vit": ("vit", "ViTForImageClassification", small),
        "t5": ("t5", "T5ForConditionalGeneration", {"d_model": 64, "d_ff": 128}),
    }[kind]
    return il.from_config(config_json(type, head, config), head, seed=3)


each_model = pytest.mark.parametrize("kind", ["bert", "tagger", "gpt2", "vit"])


# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "block"), [(8, 16), (8, 128), (4, 16), (4, 32)])
@pytest.mark.parametrize("n", [16, 64, 100])
def test_blocks_are_packed_and_read_again(bits: int, block: int, n: int):
    rows = normal(5, n)
    stored, scale = quantize_blocks(rows, bits, block)
    back = ops.dequantize.reference(stored, scale, bits=bits, size=n)
    step = np.abs(scale).repeat(block, -1)[:, :n]
    assert back.shape == rows.shape
    # half a step, and at 4 bits a whole one where +8 does not exist
    assert np.all(np.abs(back - rows) <= step * (1.0 if bits == 4 else 0.5) + 1e-6)
    again, same_scale = quantize_blocks(back, bits, block)
    np.testing.assert_array_equal(again, stored)
    np.testing.assert_allclose(same_scale, scale, rtol=1e-6)


def test_four_bits_by_hand():
    rows = np.zeros((1, 16), np.float32)
    rows[0, :4] = [-8, 7, 1, 0]
    stored, scale = quantize_blocks(rows, 4, 16)
    assert scale.tolist() == [[1.0]]
    assert stored[0, 0].tolist() == [0 | 15 << 4, 9 | 8 << 4, *[8 | 8 << 4] * 6]  # the first of two in the low half; 8 stands for zero
    assert quantize_blocks(-rows, 4, 16)[1].tolist() == [[-1.0]]  # the largest magnitude is -8 whatever its sign


def test_channels_by_hand():
    stored, scale = quantize_channels(np.array([[64.0, -31.4], [0.0, 0.0], [-4.0, 0.15625]], np.float32))
    assert stored.tolist() == [[64, 0, -64], [-31, 0, 2]]  # halves go to even: 2.5 to 2
    np.testing.assert_allclose(scale, [1, 0, 4 / 64], rtol=1e-6)


def test_large_weights_are_quantised_in_parts(monkeypatch: pytest.MonkeyPatch):
    rows = normal(9, 40)
    whole = *quantize_blocks(rows, 4, 16), *quantize_channels(rows)
    monkeypatch.setattr(exporter, "_CHUNK", 80)
    for part, all_at_once in zip((*quantize_blocks(rows, 4, 16), *quantize_channels(rows)), whole, strict=True):
        np.testing.assert_array_equal(part, all_at_once)


def test_weights_stored_in_half_precision():
    rows = normal(6, 40).astype(ml_dtypes.bfloat16)
    for made in (lambda x: quantize_blocks(x, 8, 32), lambda x: quantize_blocks(x, 4, 32), quantize_channels):
        for half, wide in zip(made(rows), made(rows.astype(np.float32)), strict=True):
            np.testing.assert_array_equal(half, wide)


def test_a_model_without_large_matrices_is_refused(tmp_path: Path):
    model = il.from_config(config_json("bert", "BertModel", {}), "BertModel", seed=3)
    with pytest.raises(UsageError, match="BertModel has no layer that can be quantised, expected linear layers or embeddings of 4096 weights"):
        export_quantized(model, tmp_path / "out")


def test_activations_are_rounded_as_the_operators_say():
    x = normal(3, 40)
    low, high = min(0, x.min()), max(0, x.max())
    step = (high - low) / 255
    zero = round(float(-low / step))
    expected = (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(ops.round_range.reference(x), expected, rtol=1e-6)
    blocks = [
        np.round(b / np.abs(b).max(-1, keepdims=True) * 127) / 127 * np.abs(b).max(-1, keepdims=True) for b in (x[:, :16], x[:, 16:32], x[:, 32:])
    ]
    np.testing.assert_allclose(ops.round_blocks.reference(x, block=16), np.concatenate(blocks, -1), rtol=1e-6)


def product(scheme: str, lead: str, turned: bool, bias: bool) -> tuple[Graph, ArrayWeights]:
    """One layer of 100 inputs and 72 outputs."""
    arrays = {"layer.weight": normal(100, 72) if turned else normal(72, 100), "layer.bias": normal(72)}
    weight, shift = Param(*arrays["layer.weight"].shape), Param(72)
    for param, name in ((weight, "layer.weight"), (shift, "layer.bias")):
        param.name = param.key = name
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", f"f32[{lead} 100]")
        graph.outputs = {"y": (ops.affine if turned else ops.linear)(x, weight, shift if bias else None)}
    return graph, ArrayWeights(arrays)


@each_scheme
@pytest.mark.parametrize(("lead", "turned", "bias"), [("n", False, True), ("b s", True, True), ("b s", False, False)])
def test_a_layer_on_onnxruntime_is_its_reference(scheme: str, lead: str, turned: bool, bias: bool):
    graph, weights = product(scheme, lead, turned, bias)
    graphs, stored = quantize({"model": graph}, weights, SCHEMES[scheme], ["layer"])
    made = Quantized("layer", graphs, stored)
    session = OrtSession(made, graphs["model"], threads=1)  # type: ignore[arg-type]
    for rows in (1, 3, 20):
        x = normal(*([2] if lead == "b s" else []), rows, 100)
        found, expected = session(x=x)["y"], reference(graphs["model"], {"x": x}, stored)["y"]
        plain = reference(graph, {"x": x}, weights)["y"]
        # rounding activations moves numbers by 1e-2; one that lies in the middle may go to the other side
        off = np.abs(found - expected) / np.abs(expected).max()
        assert np.mean(off) < 1e-5, "the kernel does not round as the reference does"
        assert np.max(off) < 5e-3
        assert 1e-4 < np.abs(found - plain).max() / np.abs(plain).max() < (0.2 if scheme == "int4-weights" else 0.04)


def test_the_greatest_bytes_do_not_overflow():
    """As sums of two products would in the kernel for x86 processors without VNNI, which the processor that this runs on may have."""
    largest = quantize_channels(np.array([[1.0, 1.0], [-1.0, -1.0]], np.float32))[0].astype(int)
    assert np.abs(largest.sum(0) * 255).max() < 1 << 15
    graph, weights = product("int8", "n", False, False)
    even = ArrayWeights({k: np.ones_like(weights.array(k)) for k in weights})
    graphs, stored = quantize({"model": graph}, even, SCHEMES["int8"], ["layer"])
    session = OrtSession(Quantized("layer", graphs, stored), graphs["model"], threads=1)  # type: ignore[arg-type]
    np.testing.assert_allclose(session(x=np.ones((20, 100), np.float32))["y"], 100, rtol=1e-6)


# ---- which weights ------------------------------------------------------------------------------


def test_a_weight_with_another_reader_stays():
    graph, wide, small = Graph(), Param(64, 64), Param(8, 64)
    both = Param(64, 64)
    for name, p in {"wide": wide, "small": small, "both": both}.items():
        p.name = p.key = f"{name}.weight"
    with graph.tracing():
        x = graph.input("x", "f32[n 64]")
        graph.outputs = {"y": ops.linear(ops.linear(x, wide) + ops.linear(x, both) + ops.sum(both, axis=0), small)}
    assert small.shape[0] * small.shape[1] < LEAST
    assert list(quantizable([graph])) == ["wide"]
    with pytest.raises(UsageError, match="no layer 'wid' can be quantised; did you mean 'wide'"):
        quantizable([graph], ["wid"])


def test_a_tied_table_is_stored_once_and_read_by_both():
    model = tiny("gpt2")
    graphs = graphs_of(model, "onnx", None, None, None)
    for scheme in SCHEMES.values():
        made, weights = quantize(graphs, model.weights, scheme, quantizable(graphs.values()))
        keys = {p.key for p in made["model"].params()}
        assert not keys & weights.replaced
        tied = [k for k in keys if k.startswith(("transformer.wte.weight", "wte.weight"))]
        assert len(tied) == 2
        readers = [n.op.name for n in made["model"].live() if any(isinstance(v, Param) and v.key == sorted(tied)[0] for v in n.inputs)]
        assert sorted(readers) == ["quantized_linear", "take"]


def test_weights_answer_for_what_they_replace():
    graph, weights = product("int8", "n", False, True)
    _, stored = quantize({"model": graph}, weights, SCHEMES["int8"], ["layer"])
    assert isinstance(stored, QuantizedWeights)
    assert list(stored) == ["layer.bias", "layer.weight.q8", "layer.weight.scale"]
    assert len(stored) == 3
    assert "layer.weight" not in stored
    assert "layer.weight.q8" in stored
    assert stored.spec("layer.weight.q8") == ("i8", (100, 72))
    for key in stored:
        dtype, shape = stored.spec(key)
        array = stored.array(key)
        assert (array.shape, array.dtype) == (shape, {"i8": np.int8, "f32": np.float32}[dtype])
        assert stored.location(key) is None


# ---- artifacts ----------------------------------------------------------------------------------


def bits_expected(model: Model, scheme: str) -> int:
    """Bytes of the weights of an artifact, computed from the model's types alone."""
    total, plan = 0, SCHEMES[scheme]
    graphs = graphs_of(model, "onnx", None, None, None)
    chosen = set(quantizable(graphs.values()).values())
    tables = {n.inputs[0] for g in graphs.values() for n in g.live() if n.op in (ops.take, ops.embedding)}
    affine = {n.inputs[1] for g in graphs.values() for n in g.live() if n.op is ops.affine}
    for p in {p for g in graphs.values() for p in g.params()}:
        count = int(np.prod(p.shape))
        if p not in chosen:
            total += 4 * count
        elif plan.dynamic and p not in tables:
            total += count + 4 * p.shape[1 if p in affine else 0]
        else:
            rows, n = p.shape[::-1] if p in affine else p.shape
            blocks = -(-n // plan.block) if n > plan.block else 1
            total += rows * blocks * 4 + rows * n * plan.bits // 8
    return total


def error(session: Any, model: Model, graph: Graph) -> dict[str, float]:
    """Measured again: the greatest difference over live positions, divided by the greatest magnitude there."""
    worst: dict[str, float] = {}
    for sample in make_samples(graph, model.config):
        true, found = reference(graph, sample.arrays, model.weights), session(**sample.arrays)
        for name, v in graph.outputs.items():
            live = np.broadcast_to(sample.mask(v.type), true[name].shape)
            here = np.abs(found[name] - true[name])[live].max() / np.abs(true[name])[live].max()
            worst[name] = max(worst.get(name, 0.0), float(here))
    return worst


def test_padding_counts_neither_as_error_nor_as_magnitude():
    graph = Graph()
    with graph.tracing():
        graph.outputs = {"y": ops.negative(graph.input("x", "f32[batch seq]"))}
    x = np.array([[1.0, -4.0, 2.0], [3.0, 900.0, 900.0]])
    sample = Sample("padded", {"x": x}, {"seq": np.array([3, 1])}, {"batch": 2, "seq": 3})
    off = np.array([[0.0, 0.5, 0.1], [0.2, 70.0, 70.0]])
    assert Distance(graph, sample, SimpleNamespace(weights=None)).errors({"y": off - x}) == pytest.approx({"y": 0.5 / 4})


@each_scheme
@each_model
def test_an_artifact_is_small_and_reports_its_error(kind: str, scheme: str, tmp_path: Path):
    model = tiny(kind)
    entries = export_quantized(model, tmp_path / "out", scheme)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    graph = graphs_of(model, "onnx", None, None, None)["model"]
    found = error(il.open(tmp_path / "out"), model, graph)
    assert report["errors"]["model"] == pytest.approx(found, rel=1e-6)
    assert entries[0].errors == report["errors"]["model"]
    assert 1e-5 < max(found.values()) < (0.4 if scheme == "int4-weights" else 0.06)
    assert report["kept"] == []
    assert report["scheme"] == scheme

    side = tmp_path / "out" / "model.interlingua.safetensors"
    assert [f.name for f in (tmp_path / "out").glob("*.safetensors")] == [side.name]
    with side.open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    assert side.stat().st_size - header == report["bytes"]["quantized"] == bits_expected(model, scheme)
    assert report["bytes"]["float"] == 4 * sum(int(np.prod(p.shape)) for p in graph.params())


def test_graphs_of_an_encoder_and_a_decoder_share_weights(tmp_path: Path):
    export_quantized(tiny("t5"), tmp_path / "out", "int8-weights")
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert set(report["errors"]) == {"encoder_model", "decoder_model"}
    both = [onnx.load(tmp_path / "out" / f"{stem}.onnx", load_external_data=False) for stem in report["errors"]]
    shared = {t.name for t in both[0].graph.initializer} & {t.name for t in both[1].graph.initializer}
    assert any(name.endswith(".q8") for name in shared)


def test_other_graphs_of_the_folder_leave_it_as_it_is(tmp_path: Path):
    model = tiny("gpt2")
    model.export(tmp_path, quantize="int8-weights", cache=False)
    given = {k: np.arange(6).reshape(1, 6) for k in il.open(tmp_path).inputs}
    before = il.open(tmp_path)(**given)["logits"]
    for options in ({"to": "stablehlo", "cache": False}, {"generate": 3}):
        model.export(tmp_path, check=False, overwrite=True, **options)
        np.testing.assert_array_equal(il.open(tmp_path / "model.onnx")(**given)["logits"], before)
        assert (tmp_path / REPORT).exists()
    model.export(tmp_path, check=False, overwrite=True)
    assert not (tmp_path / REPORT).exists()


def test_only_layers_that_are_named(tmp_path: Path):
    export_quantized(tiny("bert"), tmp_path / "out", "int8", layers=["*.attention.*"])
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    assert report["quantized"]
    assert all(".attention." in name for name in report["quantized"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph.node]
    assert kinds.count("MatMulInteger") == len(report["quantized"])
    assert kinds.count("DynamicQuantizeLinear") < len(report["quantized"])  # queries, keys and values round their operand once
    assert "Gemm" in kinds


# ---- budgets ------------------------------------------------------------------------------------


def test_sensitivity_is_the_error_of_one_layer_alone(tmp_path: Path):
    model = tiny("bert")
    found = sensitivity(model, "int4-weights", layers=["*.attention.*"])
    assert list(found.values()) == sorted(found.values(), reverse=True)
    layer = list(found)[1]
    export_quantized(model, tmp_path / "out", "int4-weights", layers=[layer])
    assert json.loads((tmp_path / "out" / REPORT).read_text())["errors"]["model"]["logits"] == pytest.approx(found[layer], rel=1e-6)


def test_a_tight_budget_keeps_the_most_sensitive_layers(tmp_path: Path):
    model = tiny("bert")
    export_quantized(model, tmp_path / "all", "int4-weights")
    whole = json.loads((tmp_path / "all" / REPORT).read_text())["errors"]["model"]["logits"]
    export_quantized(model, tmp_path / "some", "int4-weights", max_error=whole / 2)
    report = json.loads((tmp_path / "some" / REPORT).read_text())
    graph = graphs_of(model, "onnx", None, None, None)["model"]
    assert max(error(il.open(tmp_path / "some"), model, graph).values()) <= whole / 2
    assert report["kept"]
    assert report["quantized"]
    alone = report["sensitivity"]
    assert min(alone[k] for k in report["kept"]) >= max(alone[k] for k in report["quantized"])
    with pytest.raises(UsageError, match=r"already has model\.onnx"):
        export_quantized(model, tmp_path / "some")
    assert json.loads((tmp_path / "some" / REPORT).read_text()) == report
    export_quantized(model, tmp_path / "loose", "int4-weights", max_error=whole * 1.01)
    assert json.loads((tmp_path / "loose" / REPORT).read_text())["kept"] == []


def test_a_budget_that_cannot_be_held_is_refused(tmp_path: Path):
    with pytest.raises(ParityError, match=r"int8 cannot hold max_error=1e-09, whichever of 15 layers is left out\n  the least sensitive layer, "):
        export_quantized(tiny("bert"), tmp_path / "out", "int8", max_error=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_the_samples_that_are_given_are_the_ones_measured(tmp_path: Path):
    model = tiny("bert")
    ids = np.array([[5, 6, 7, 8, 9]])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids), "labels": np.array([0])}
    export_quantized(model, tmp_path / "out", samples=[given])
    arrays = {k: x for k, x in given.items() if k != "labels"}
    true = reference(model.graph(), arrays, model.weights)["logits"]
    found = np.abs(il.open(tmp_path / "out")(**arrays)["logits"] - true).max() / np.abs(true).max()
    assert json.loads((tmp_path / "out" / REPORT).read_text())["errors"]["model"]["logits"] == pytest.approx(found, rel=1e-6)
    with pytest.raises(UsageError, match="no sample has all of the inputs input_ids, "):
        export_quantized(model, tmp_path / "other", samples=[{"input_ids": ids}])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_of_given_samples_does_not_count(side: str, tmp_path: Path):
    """Where it is at the end of rows; elsewhere nothing says what is padding."""
    model = tiny("tagger")
    ids, mask = np.random.default_rng(0).integers(1, 40, (2, 19)), np.ones((2, 19), np.int64)
    mask[:, :16] = 0
    mask = mask if side == "left" else mask[:, ::-1].copy()
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    export_quantized(model, tmp_path, samples=[arrays])
    true, live = reference(model.graph(), arrays, model.weights)["logits"], mask == 1 if side == "right" else np.ones_like(mask) == 1
    found = np.abs(il.open(tmp_path)(**arrays)["logits"] - true)[live].max() / np.abs(true[live]).max()
    assert json.loads((tmp_path / REPORT).read_text())["errors"]["model"]["logits"] == pytest.approx(found, rel=1e-6)


def test_a_report_goes_with_what_it_reports_on(tmp_path: Path):
    model = tiny("bert")
    model.export(tmp_path, quantize="int8", check=False)
    assert (tmp_path / REPORT).exists()
    with pytest.raises(UsageError, match="already has"):
        model.export(tmp_path, check=False)
    assert (tmp_path / REPORT).exists()
    model.export(tmp_path, overwrite=True, check=False)
    assert not (tmp_path / REPORT).exists()


# ---- faults -------------------------------------------------------------------------------------


@each_scheme
@each_model
def test_a_wrong_scale_is_found(kind: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The artifact is written with one scale that is wrong, and the reference read with the right one."""
    honest, writes = QuantizedWeights.array, WeightFiles.write
    model = tiny(kind)
    layer = next(name for name in quantizable(graphs_of(model, "onnx", None, None, None).values()) if "mlp" in name)
    weight = next(p for p in model.params if p.name == f"{layer}.weight")
    wrong = f"{weight.key}.scale"

    def write(self: Any, staging: Path) -> None:
        monkeypatch.setattr(QuantizedWeights, "array", lambda s, k: honest(s, k) * 2 if k == wrong else honest(s, k))
        writes(self, staging)
        monkeypatch.setattr(QuantizedWeights, "array", honest)

    monkeypatch.setattr(WeightFiles, "write", write)
    with pytest.raises(ParityError, match="as quantised"):
        export_quantized(model, tmp_path / "out", scheme)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["int9", "INT8-weigths"])
def test_an_unknown_scheme(name: str, tmp_path: Path):
    with pytest.raises(UsageError, match=f"quantisation '{name}' is unknown"):
        export_quantized(tiny("bert"), tmp_path, name)
