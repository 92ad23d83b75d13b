"""ONNX artifacts in half precision: every float is half, weights take half the bytes, and numbers agree as far as rounding allows, no further."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from cli_runs import run, stock
from derived_rows import values
from onnx import TensorProto, helper
from oracle_specs import config_json

import interlingua as il
from interlingua import models, ops
from interlingua.exporters import onnx as onnx_exporter
from interlingua.exporters.half_precision import HalfWeights, fitted, in_float, rounded_run
from interlingua.ir.errors import CheckpointError, ParityError, TargetError, UsageError
from interlingua.ir.graph import Graph
from interlingua.ir.reference import reference
from interlingua.ir.types import NUMPY_DTYPES
from interlingua.ir.weights import ArrayWeights
from interlingua.model import Model
from interlingua.runtime.ort import OnnxSession
from interlingua.runtime.samples import make_samples
from interlingua.runtime.verify import HALF_FACTOR, Truth

MODELS = {
    "bert": "BertForMaskedLM",
    "resnet": "ResNetForImageClassification",
    "gpt2": "GPT2LMHeadModel",
    "t5": "T5ForConditionalGeneration",
    "wav2vec2": "Wav2Vec2ForCTC",
}
HALVES = ("f16", "bf16")
EPSILON = {"f16": 2.0**-10, "bf16": 2.0**-7}
each_model = pytest.mark.parametrize("kind", MODELS)
each_half = pytest.mark.parametrize("half", HALVES)


@functools.cache
def tiny(kind: str) -> Model:
    return il.from_config(config_json(kind, MODELS[kind], {}), MODELS[kind], seed=3)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "interlingua.json").read_text())["graphs"]


# ---- artifacts ----------------------------------------------------------------------------------


@each_half
@each_model
def test_every_float_is_half_and_the_check_agrees(kind: str, half: str, tmp_path: Path):
    made = tiny(kind).export(tmp_path, dtype=half)
    element = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[half]
    for graph, listed in zip(made, manifest(tmp_path), strict=True):
        types = {**listed["inputs"], **listed["outputs"]}
        assert half in {t.split("[")[0] for t in types.values()}
        assert not [t for t in types.values() if t.startswith("f32")]
        proto = onnx.load(tmp_path / graph.file, load_external_data=False).graph
        assert {x.data_type for x in proto.initializer if x.external_data} <= {element, TensorProto.INT64}
        assert {v.type.tensor_type.elem_type for v in (*proto.input, *proto.output)} <= {element, TensorProto.INT64}
        onnx.checker.check_model(str(tmp_path / graph.file), full_check=True)
        assert 0 < max(listed["errors"].values()) < 8 * EPSILON[half]  # of outputs whose magnitudes are 0.1 to 4


@each_model
def test_errors_are_those_of_the_reference(kind: str, tmp_path: Path):
    """The figures in interlingua.json are distances from float64, and of the size of half precision: not smaller, as float32's are."""
    model = tiny(kind)
    made = model.export(tmp_path, dtype="f16", cache=False)[0]
    session = il.open(tmp_path)
    for sample in make_samples(model.graph(), model.config):
        true = reference(model.graph(), sample.arrays, model.weights)
        for k, x in session(**sample.arrays).items():
            assert x.dtype == np.float16
            live = np.broadcast_to(sample.mask(session.outputs[k]), x.shape)
            error = np.abs(x.astype(np.float64) - true[k])[live].max()
            assert 1e-3 * EPSILON["f16"] * np.abs(true[k]).max() < error <= made.errors[k]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_weights_take_half_the_bytes(kind: str, tmp_path: Path):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "n_embd": 64}
    model = il.from_config(config_json(kind, MODELS[kind], sizes), MODELS[kind], seed=3)
    bytes_of = {d: sum(model.export(tmp_path / d, dtype=d, check=False)[0].weights.values()) for d in ("f32", *HALVES)}
    assert max(bytes_of["f16"], bytes_of["bf16"]) <= 0.51 * bytes_of["f32"]


def test_a_session_takes_half_and_single_floats(tmp_path: Path):
    tiny("resnet").export(tmp_path, dtype="f16")
    session = il.open(tmp_path)
    assert str(session.inputs["pixel_values"]) == "f16[batch 3 height width]"
    image = np.random.default_rng(0).standard_normal((2, 3, 40, 40)).astype(np.float16)
    made = [session(pixel_values=image.astype(d))["logits"] for d in (np.float16, np.float32, np.float64)]
    for x in made:
        np.testing.assert_array_equal(x, made[0])


def test_funnel_opens(tmp_path: Path):
    """Its float16 files end onnxruntime's process where all of its optimisers run, so it is opened in one of its own."""
    card = models.card("funnel")
    il.from_config(values(card, "FunnelBaseModel", 0, {}), "FunnelBaseModel", seed=3).export(tmp_path, dtype="f16", check=False)
    told = f"import interlingua as il; print(il.open({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "f16[" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("opset", [17, 21])
def test_other_opsets(opset: int, tmp_path: Path):
    tiny("t5").export(tmp_path, dtype="f16", opset=opset)  # checked
    onnx.checker.check_model(str(tmp_path / "decoder_model.onnx"), full_check=True)


def test_a_checkpoint_in_that_float_is_referred_to_where_it_lies(tmp_path: Path):
    source = tiny("bert")
    source.save(tmp_path)
    il.load(tmp_path).export(tmp_path, dtype="f16")
    assert (tmp_path / "model.interlingua.safetensors").exists()
    half = tmp_path / "half"
    source.with_weights({p.key: source.weights.array(p.key).astype(np.float16) for p in source.params}).save(half)
    made = il.load(half).export(half, dtype="f16")
    assert list(made[0].weights) == ["model.safetensors"]
    assert not (half / "model.interlingua.safetensors").exists()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_generated_tokens_are_those_of_float32(kind: str, tmp_path: Path):
    model = il.from_config(config_json(kind, MODELS[kind], {}), MODELS[kind], seed=3)
    model = model.with_weights({p.key: model.weights.array(p.key) * (4 if p.rank > 1 else 1) for p in model.params})  # so that choices differ
    prompts = np.random.default_rng(1).integers(5, 97, (3, 6))
    mask = np.ones_like(prompts)
    mask[1, :2] = 0
    mask = mask if kind == "gpt2" else mask[:, ::-1].copy()
    options = {"max_new_tokens": 8, "do_sample": False} | ({} if kind == "gpt2" else {"decoder_start_token_id": 0})
    texts = []
    for dtype in ("f32", "f16"):
        model.export(tmp_path / dtype, dtype=dtype)
        made = il.generator(tmp_path / dtype)
        texts.append([made.generate(prompts, mask, num_beams=beams, **options) for beams in (1, 2)])
    assert len(np.unique(texts[0][0][:, -8:])) > 4
    for single, half in zip(*texts, strict=True):
        np.testing.assert_array_equal(half, single)


# ---- what is wrong is refused -------------------------------------------------------------------


def _wrong_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    right = HalfWeights.array

    def wrong(self: HalfWeights, key: str) -> np.ndarray:
        array = right(self, key)
        return array[::-1] if key.endswith("layer.0.output.dense.weight") else array

    monkeypatch.setattr(HalfWeights, "array", wrong)


def _wrong_element(monkeypatch: pytest.MonkeyPatch) -> None:
    right = HalfWeights.array

    def wrong(self: HalfWeights, key: str) -> np.ndarray:
        array = right(self, key).copy()
        if key.endswith("layer.0.output.dense.weight"):
            array[2, 3] += 0.5
        return array

    monkeypatch.setattr(HalfWeights, "array", wrong)


def _wrong_op(monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx_exporter.to_proto

    def wrong(*given: Any, **options: Any) -> onnx.ModelProto:
        proto = right(*given, **options)
        node = next(n for n in proto.graph.node if n.op_type == "Gelu")
        node.op_type = "Relu"
        node.ClearField("attribute")
        return proto

    monkeypatch.setattr(onnx_exporter, "to_proto", wrong)


def _low_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that lose four bits more."""
    right = HalfWeights.array
    coarse = lambda x: x.astype(np.float32).astype(ml_dtypes.float8_e4m3fn if x.dtype == np.float16 else ml_dtypes.float4_e2m1fn).astype(x.dtype)
    monkeypatch.setattr(HalfWeights, "array", lambda self, key: coarse(right(self, key)))


@each_half
@pytest.mark.parametrize("fault", [_wrong_weight, _wrong_element, _wrong_op, _low_precision])
def test_a_fault_is_refused(fault: Callable[[pytest.MonkeyPatch], None], half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    with pytest.raises(ParityError, match=r"onnx: logits is off by .*, allowed"):
        tiny("bert").export(tmp_path / "out", dtype=half)
    assert not list(tmp_path.iterdir())


def holder(weights: Any) -> Any:
    """What exporters and references ask of a model."""
    return SimpleNamespace(name="a graph", weights=weights, by_rows=False)


@each_half
def test_the_unit_of_a_half_float_is_what_rounding_to_it_does(half: str):
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n]")
        graph.outputs = {"y": x * 3.0}
    sample = make_samples(graph)[0]
    truth = Truth(graph, sample, holder(ArrayWeights({})), half)
    true = sample.arrays["x"].astype(np.float64) * 3
    round = lambda a: a.astype(NUMPY_DTYPES[half]).astype(np.float64)
    error = np.abs(round(3 * round(sample.arrays["x"])) - true).max()
    assert truth.unit["y"] == max(error, EPSILON[half] * np.abs(true).max())
    assert truth.rows("onnx", {"y": true.astype(np.float32)})[0].limit == HALF_FACTOR * truth.unit["y"]


def test_numbers_that_forbid_are_the_largest_ones(tmp_path: Path):
    class Scores(il.Layer):
        def forward(self, x, live):
            return {"y": ops.where(live, x, -1e30)}

    model = il.Model(Scores(), inputs={"x": "f32[batch n]", "live": "bool[batch n]"}, seed=0)
    assert model.export(tmp_path / "out", dtype="f16")[0].errors["y"] < 4 * EPSILON["f16"]


def test_overflow_is_named(tmp_path: Path):
    class Wide(il.Layer):
        def forward(self, x):
            return {"y": ops.sqrt(ops.sum(x * 300.0 * (x * 300.0), axis=-1))}

    model = il.Model(Wide(), inputs={"x": "f32[batch n]"}, seed=0)
    with pytest.raises(ParityError, match=r"y overflows f16, the model \((mul|sum)\) being the first that does"):
        model.export(tmp_path / "out", dtype="f16")
    assert not list(tmp_path.iterdir())
    model.export(tmp_path / "out", dtype="bf16")


def test_a_weight_beyond_the_range_is_named(tmp_path: Path):
    model = il.Model(il.layers.Linear(3, 2), inputs={"x": "f32[batch 3]"}, seed=0)
    model.weights = ArrayWeights({"weight": np.array([[1, 2, 3], [4, 7e4, 6]], np.float32), "bias": np.zeros(2, np.float32)})
    with pytest.raises(TargetError, match=r"weight 'weight' has 7e\+04, f16 holds 6.55e\+04 at most"):
        model.export(tmp_path / "out", dtype="f16")
    assert not list(tmp_path.iterdir())


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": "fp16"}, r"dtype 'fp16' is no float that files are written in; did you mean '\w*f16'\?"),
        ({"dtype": "f64"}, r"dtype 'f64' is no float"),
        ({"dtype": "f16", "quantize": "int8"}, r"dtype='f16' and quantize='int8' are given, expected one of the two"),
        ({"dtype": "bf16", "to": "stablehlo"}, r"il.compile\(model, 'xla', dtype='bf16'\)"),
        ({"dtype": "f16", "to": "saved_model"}, r"il.compile\(model, 'tensorflow', dtype='f16'\)"),
        ({"dtype": "f16", "generate": 4}, r"generate=4 and dtype are given, expected one of the two"),
    ],
)
def test_wrong_options(options: dict[str, Any], told: str, tmp_path: Path):
    with pytest.raises(UsageError, match=told):
        tiny("gpt2").export(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_float32_is_what_is_done_without(tmp_path: Path):
    for name, options in {"left_out": {}, "asked": {"dtype": "f32"}}.items():
        tiny("bert").export(tmp_path / name, check=False, **options)
    assert (tmp_path / "left_out" / "model.onnx").read_bytes() == (tmp_path / "asked" / "model.onnx").read_bytes()


def test_command_line(tmp_path: Path):
    place = stock("bert", "BertForMaskedLM")
    done = run("export", place, tmp_path / "out", "--dtype", "f16")
    assert done.code == 0, done.err
    assert "logits: f16[batch seq 400]  checked, off by at most " in done.out
    wrong = run("export", place, tmp_path / "other", "--dtype", "float16")
    assert (wrong.code, "f16" in wrong.err) == (2, True)
    assert run("export", place, tmp_path / "other", "--dtype", "f16", "--to", "stablehlo").code == 2
    answers = run("run", tmp_path / "out", "--task", "fill-mask", "--text", "the [MASK] fox")
    assert answers.code == 0, answers.err


# ---- graphs -------------------------------------------------------------------------------------


def test_constants_stay_within_the_range():
    with np.errstate(over="ignore"):
        made = fitted([-1e30, 1e-12, 0.0, -np.inf, 2.5], "f16").astype(np.float16)
    np.testing.assert_array_equal(made, np.array([-65504, 2.0**-24, 0, -np.inf, 2.5], np.float16))
    assert np.isfinite(fitted(np.finfo(np.float32).min, "bf16").astype(ml_dtypes.bfloat16))


def masked() -> Graph:
    """A mask of a large number, a number of rows in float64, and angles of places, on an input and a weight."""
    graph = Graph()
    with graph.tracing():
        x, live = graph.input("x", "f32[n]"), graph.input("live", "bool[n]")
        places = ops.cast(ops.iota(size=x.shape[0]), dtype="f32")
        angles = ops.sin(places * 3.0)
        double = ops.cast(ops.cast(x, dtype="f64") * ops.cast(places, dtype="f64"), dtype="f32")
        graph.outputs = {"masked": ops.where(live, x, -1e30) + 1.0, "angles": x * angles, "double": double, "places": angles}
    return graph


def test_what_depends_on_no_float_is_exact(tmp_path: Path):
    graph = masked()
    graphs, weights = in_float({"model": graph}, ArrayWeights({}), "f16")
    types = {k: str(v.type) for k, v in graphs["model"].outputs.items()}
    assert types == dict.fromkeys(types, "f16[n]")
    assert {n.type.dtype for n in graphs["model"].live() if n.op is ops.sin} == {"f32"}
    assert "f64" in {n.type.dtype for n in graphs["model"].live()}
    onnx_exporter.export(holder(weights), tmp_path, graphs=graphs, weights=weights)
    n = 3000  # beyond 2048 half floats do not count
    x, live = np.random.default_rng(0).standard_normal(n).astype(np.float16), np.arange(n) % 3 > 0
    got, true = il.open(tmp_path)(x=x, live=live), reference(graph, {"x": x, "live": live})
    for k in ("angles", "places", "double"):
        np.testing.assert_allclose(got[k], true[k], rtol=4 * EPSILON["f16"], atol=1e-6, err_msg=k)
    np.testing.assert_array_equal(got["masked"][~live], np.float16(-65504))
    noisy, overflow = rounded_run(graph, {"x": x, "live": live}, ArrayWeights({}), "f16")
    assert overflow == ""
    np.testing.assert_allclose(noisy["angles"], true["angles"], rtol=4 * EPSILON["f16"], atol=1e-6)
    np.testing.assert_array_equal(noisy["masked"][~live], np.float32(-65504))


def test_the_bodies_of_loops(tmp_path: Path):
    body, outer = Graph(), Graph()
    with body.tracing():
        x, w = body.input("x", "f32[n]"), body.input("w", "f32[]")
        body.outputs = {"again": ops.constant(value=True, dtype="bool"), "x": ops.maximum(x * w + 0.25, -1e30)}
    with outer.tracing():
        x, w = outer.input("x", "f32[n]"), outer.input("w", "f32[]")
        outer.outputs = {"y": ops.while_loop(ops.constant(value=True, dtype="bool"), x, w, body=body, carries=1, most=3)}
    graphs, weights = in_float({"model": outer}, ArrayWeights({}), "f16")
    onnx_exporter.export(holder(weights), tmp_path, graphs=graphs, weights=weights)
    given = {"x": np.linspace(-1, 1, 5, dtype=np.float16), "w": np.float16(0.5)}
    got = il.open(tmp_path)(**given)["y"]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, reference(outer, given)["y"], rtol=0, atol=EPSILON["f16"])


def test_conversion_reads_one_weight_at_a_time():
    arrays = {"a": np.ones((4, 4), np.float32), "b": np.arange(3), "c": np.full(2, 1 / 3, np.float64)}
    weights = HalfWeights(ArrayWeights(arrays), ["a", "c"], "bf16")
    assert [weights.spec(k)[0] for k in "abc"] == ["bf16", "i64", "bf16"]
    assert [weights.array(k).dtype for k in "abc"] == [NUMPY_DTYPES["bf16"], np.int64, NUMPY_DTYPES["bf16"]]
    assert (list(weights), len(weights), "a" in weights, "d" in weights, weights.location("a")) == (["a", "b", "c"], 3, True, False, None)


# ---- bfloat16 on onnxruntime --------------------------------------------------------------------


def test_no_kernels_for_bf16_is_said(tmp_path: Path):
    tiny("bert").export(tmp_path, dtype="bf16")
    with pytest.raises(CheckpointError, match=r"onnxruntime has hardly any kernels for bf16 on CPUs: .* dtype='f16'"):
        il.open(tmp_path)


def test_bf16_arrays_go_in_and_out():
    types = [helper.make_tensor_value_info(k, TensorProto.BFLOAT16, ["n"]) for k in "xy"]
    graph = helper.make_graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=0)], "twice", types[:1], types[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    made = OnnxSession(model.SerializeToString())(x=np.array([1.5, 2.0], np.float32))["y"]
    assert made.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(made.astype(np.float32), [1.5, 2.0, 1.5, 2.0])
