"""TensorFlow modules, their training, sessions, SavedModels, and ONNX by way of tf2onnx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from op_samples import SAMPLES, sample_graph

from interlingua.exporters import onnx_from_tensorflow, saved_model
from interlingua.frontends.tensorflow import as_module, weights_of
from interlingua.frontends.tensorflow_table import DTYPES
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import CheckpointError, InputError, MissingExtraError, TargetError, UsageError
from interlingua.ir.graph import Graph, Param, current
from interlingua.ir.layer import Layer
from interlingua.ir.layers.basic import BatchNorm, Conv, Dropout, Embedding, LayerNorm, Linear
from interlingua.ir.reference import reference
from interlingua.ir.weights import ArrayWeights
from interlingua.runtime.tensorflow import TensorflowSession, open_saved_model

# largest difference from the float64 reference, relative to the largest number of the result
TOLERANCE = {"f64": 1e-11, "f32": 1e-5, "bf16": 1e-1}


def close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Equal up to a share of the largest number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * (np.abs(expected).max(initial=0) + 1e-3), err_msg=what)


# ---- modules -------------------------------------------------------------------------------------


class Tagger(Layer):
    """Words and a signal: an embedding shared with the output, a convolution, batch norm, dropout twice, attention and a loss."""

    def __init__(self, n: int = 6):
        self.words = Embedding(11, n)
        self.conv, self.norm, self.after = Conv(3, n, (3,), padding=(1,)), BatchNorm(n), LayerNorm(n, 1e-5)
        self.blocks = [Linear(n, n), Linear(n, n)]
        self.dropout = Dropout(0.5)
        self.words_again = self.words.weight
        self.position_ids = Param(1, 9, dtype="i64", init=0)

    def forward(self, input_ids, signal, attention_mask=None, labels=None):
        x = self.dropout(self.words(input_ids)) + ops.transpose(self.norm(self.conv(signal)), perm=(0, 2, 1))
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        y = ops.rearrange(x, "batch seq (heads head) -> batch heads seq head", heads=2)
        y = ops.attention(y, y, y, mask, scale=0.5, causal=True)
        x = x + self.dropout(self.blocks[0](ops.rearrange(y, "batch heads seq head -> batch seq (heads head)")))
        x = self.after(ops.gelu(self.blocks[1](x)))
        logits = ops.linear(x, self.words_again)
        # the logarithms of probabilities, so that the loss of a sequence is one of alignments
        lengths = lambda n: ops.broadcast_to(ops.size(value=n), shape=(logits.shape[0],))
        aligned = lambda: ops.ctc_loss(ops.transpose(ops.log_softmax(logits), perm=(1, 0, 2)), labels, lengths(logits.shape[1]), lengths(1), blank=0)
        loss = None if labels is None else ops.cross_entropy(logits, labels) + ops.mean(aligned(), axis=0)
        return {"loss": loss, "logits": logits, "hidden_states": [x]}


USUAL = ("input_ids", "signal")
INPUTS = {"input_ids": "i64[batch seq]", "signal": "f32[batch 3 seq]", "attention_mask": "bool[batch seq]", "labels": "i64[batch seq]"}


def tagger(layer: Layer | None = None) -> Definition:
    made = Definition(layer or Tagger(), INPUTS, ArrayWeights({}), usual=USUAL, key=lambda name: f"tagger.{name}", name="Tagger")
    rng = np.random.default_rng(1)
    draw = lambda p: rng.uniform(0.5, 1.5, p.shape) if "norm" in p.key else rng.standard_normal(p.shape) * 0.4
    arrays = {p.key: draw(p).astype(np.float32) for p in made.params if p.type.dtype == "f32"}
    made.weights = ArrayWeights(arrays | {"tagger.position_ids": np.arange(9)[None], "tagger.norm.num_batches_tracked": np.array(4)})
    return made


def batch(seed: int = 0, b: int = 3, s: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.arange(s) < rng.integers(2, s + 1, (b, 1))
    signal = rng.standard_normal((b, 3, s)).astype(np.float32)
    return {"input_ids": rng.integers(0, 11, (b, s)), "signal": signal, "attention_mask": mask, "labels": rng.integers(1, 11, (b, s))}


def usual(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: arrays[k] for k in USUAL}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_module_computes_what_the_reference_does(jit_compile: bool):
    definition, arrays = tagger(), batch()
    net = as_module(definition, jit_compile=jit_compile)
    for names in (USUAL, tuple(INPUTS)):
        truth = reference(definition.graph(names), {k: arrays[k] for k in names}, definition.weights)
        made = net(**{k: arrays[k] for k in names})
        assert list(made) == list(truth)
        for k, x in truth.items():
            close(made[k], x, TOLERANCE["f32"], k)
    small = batch(1, 1, 2)
    close(net(**usual(small), labels=None)["logits"], reference(definition.graph(), usual(small), definition.weights)["logits"], TOLERANCE["f32"])
    tensors = {"input_ids": tf.constant(arrays["input_ids"], tf.int32), "signal": tf.Variable(arrays["signal"])}
    assert set(as_module(definition, outputs=["hidden_states.*"], jit_compile=False)(**tensors)) == {"hidden_states.0"}


def test_variables_have_the_checkpoints_names_and_come_back(tmp_path: Path):
    definition = tagger()
    net = as_module(definition)
    assert isinstance(net, tf.Module)
    assert list(net.weights) == [p.key for p in definition.params]
    trained = {p.key for p in definition.params if p.trainable}
    assert {v.name.removesuffix(":0") for v in net.trainable_variables} == trained
    assert {v.name.removesuffix(":0") for v in net.variables} - trained == {p.key for p in definition.params if not p.trainable}
    for k, x in weights_of(net).items():
        np.testing.assert_array_equal(x, definition.weights.array(k))
        assert x.dtype == definition.weights.array(k).dtype
    saved = tf.train.Checkpoint(net).save(str(tmp_path / "net"))
    for v in net.trainable_variables:
        v.assign_add(tf.ones_like(v))
    np.testing.assert_array_equal(weights_of(net)["tagger.words.weight"], definition.weights.array("tagger.words.weight") + 1)
    tf.train.Checkpoint(net).restore(saved).assert_consumed()
    np.testing.assert_array_equal(weights_of(net)["tagger.words.weight"], definition.weights.array("tagger.words.weight"))


def test_names_that_tensorflow_refuses_are_kept_as_keys():
    definition = Definition(Linear(2, 3), {"x": "f32[n 2]"}, ArrayWeights({}), key=lambda name: f"_a b:{name}")
    definition.weights = ArrayWeights({p.key: np.ones(p.shape, np.float32) for p in definition.params})
    net = as_module(definition, jit_compile=False)
    assert set(weights_of(net)) == {"_a b:weight", "_a b:bias"}
    np.testing.assert_array_equal(net(x=[[1.0, 2.0]])["output"], [[4, 4, 4]])


def test_what_does_not_fit_is_said():
    definition, arrays = tagger(), batch()
    net = as_module(definition, jit_compile=False)
    with pytest.raises(InputError, match=r"Tagger has no input 'input_id'; did you mean 'input_ids'\?"):
        net(input_id=arrays["input_ids"])
    with pytest.raises(InputError, match="input 'signal' has seq=6, but 'input_ids' has seq=7"):
        net(input_ids=arrays["input_ids"], signal=arrays["signal"][:, :, :6])
    with pytest.raises(InputError, match="input 'input_ids' is of dtype float32, expected"):
        net(input_ids=tf.cast(arrays["input_ids"], tf.float32), signal=arrays["signal"])
    with pytest.raises(UsageError, match=r"Tagger has no output 'logit'; did you mean 'logits'\?"):
        as_module(definition, outputs=["logit"])(**usual(arrays))
    with pytest.raises(UsageError, match="dtype='f8' is not a float dtype"):
        as_module(definition, dtype="f8")


@pytest.mark.parametrize("dtype", ["f64", "bf16"])
def test_a_module_of_another_float(dtype: str):
    definition, arrays = tagger(), batch()
    net = as_module(definition, dtype=dtype, jit_compile=False)
    assert net.weights["tagger.conv.weight"].dtype == DTYPES[dtype]
    assert net.weights["tagger.position_ids"].dtype == tf.int64
    made = net(**arrays)["logits"]
    assert made.dtype == DTYPES[dtype]
    close(tf.cast(made, tf.float64), reference(definition.graph(INPUTS), arrays, definition.weights)["logits"], TOLERANCE[dtype])


def test_a_module_inside_another_function_has_sizes_left_open():
    definition, arrays = tagger(), batch()
    net = as_module(definition, jit_compile=False)
    spec = {"input_ids": tf.TensorSpec([None, None], tf.int64), "signal": tf.TensorSpec([None, 3, None], tf.float32)}
    made = tf.function(lambda given: net(**given)["logits"] * 2, input_signature=[spec])(usual(arrays))
    np.testing.assert_allclose(made, net(**usual(arrays))["logits"] * 2, rtol=1e-5, atol=1e-6)


def test_training_drops_anew_in_each_call_and_evaluation_does_not():
    arrays = batch()
    net = as_module(tagger(), jit_compile=False)
    run_once = lambda: net(training=True, **arrays)["logits"].numpy()
    tf.random.set_seed(3)
    first, second = run_once(), run_once()
    tf.random.set_seed(3)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(net(**arrays)["logits"], net(**arrays)["logits"], rtol=0, atol=0)
    before = weights_of(net)
    net(**arrays)
    assert all(np.array_equal(before[k], x) for k, x in weights_of(net).items())
    fresh = as_module(tagger(), jit_compile=False)
    np.testing.assert_array_equal(fresh(training=True, **arrays)["logits"], first)


def test_running_statistics_move():
    definition, arrays = tagger(), batch()
    net = as_module(definition)
    made = net(training=True, **usual(arrays))
    assert not [k for k in made if k.startswith("update.")]
    graph = definition.graph(training=True)
    weights = definition.weights
    truth = reference(graph, usual(arrays) | {"random_key": np.array([1, 2], np.uint32)}, weights)
    moved = [k for k in truth if k.startswith("update.")]
    assert len(moved) == 3
    for k in moved:
        close(net.weights[k.removeprefix("update.")], truth[k], TOLERANCE["f32"], k)
        assert not np.array_equal(weights_of(net)[k.removeprefix("update.")], weights.array(k.removeprefix("update.")))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_training_step_has_the_slopes_of_the_reference(jit_compile: bool):
    """Gradients of the loss in training mode, dropout off, against differences of the NumPy run of the training graph."""
    layer = Tagger()
    layer.dropout.rate = 0.0
    definition, arrays = tagger(layer), batch()
    net = as_module(definition, dtype="f64", jit_compile=jit_compile)
    with tf.GradientTape() as tape:
        loss = net(training=True, **arrays)["loss"]
    keys = [p.key for p in definition.params if p.trainable]
    gradients = dict(zip(keys, tape.gradient(loss, [net.weights[k] for k in keys]), strict=True))
    graph = definition.graph(INPUTS, training=True)
    for k, g in gradients.items():
        step = np.random.default_rng(2).standard_normal(tuple(g.shape))

        def value(t: float, k: str = k, step: np.ndarray = step) -> float:
            moved = {**definition.weights.arrays, k: definition.weights.array(k) + t * step}
            return float(reference(graph, arrays, ArrayWeights(moved))["loss"])

        slope = (value(1e-5) - value(-1e-5)) / 2e-5
        assert float((tf.convert_to_tensor(g).numpy() * step).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), k


def test_it_learns():
    arrays = batch()
    net = as_module(tagger(), jit_compile=False)
    tf.random.set_seed(0)
    losses = []
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = net(training=True, **arrays)["loss"]
        for variable, gradient in zip(net.trainable_variables, tape.gradient(loss, net.trainable_variables), strict=True):
            variable.assign_sub(0.1 * tf.convert_to_tensor(gradient))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < losses[0] / 2


# ---- sessions and SavedModels --------------------------------------------------------------------


class Cached(Layer):
    """Attention over the keys of earlier calls."""

    def forward(self, x):
        q = ops.rearrange(x, "batch seq (heads head) -> batch heads seq head", heads=2)
        k, v = current().cache.extend(q, q)
        return {"y": ops.attention(q, k, v, scale=0.5, causal=True)}


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_sessions(dtype: str):
    definition, arrays = tagger(), batch()
    graph = definition.graph(INPUTS)
    session = TensorflowSession(definition, graph, dtype=dtype, jit_compile=dtype == "f32")
    for given in (arrays, batch(1, 2, 5)):
        for k, x in reference(graph, given, definition.weights).items():
            made = session(**given)[k]
            assert made.dtype == np.float32
            close(made, x, TOLERANCE["f32"], k)
    with pytest.raises(InputError, match="Tagger lacks input 'signal'"):
        session(input_ids=arrays["input_ids"])


def test_a_growing_cache_is_not_compiled_for_each_length():
    definition = Definition(Cached(), {"x": "f32[batch seq 4]"}, ArrayWeights({}))
    graph = definition.graph(cache="growing")
    session = TensorflowSession(definition, graph)
    assert not session._function.function_def.attr["_XlaMustCompile"].b
    assert TensorflowSession(definition, definition.graph())._function.function_def.attr["_XlaMustCompile"].b
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((2, 5, 4)).astype(np.float32)
    past = {"key": np.zeros((2, 2, 0, 2), np.float32), "value": np.zeros((2, 2, 0, 2), np.float32)}
    rows = []
    for part in (whole[:, :3], whole[:, 3:4], whole[:, 4:]):
        made = session(x=part, **{f"past_key_values.0.{k}": v for k, v in past.items()})
        past = {k: made[f"present.0.{k}"] for k in past}
        rows.append(made["y"])
    close(np.concatenate(rows, 2), reference(definition.graph(), {"x": whole})["y"], TOLERANCE["f32"])


def test_devices_that_are_not_there():
    definition = tagger()
    with pytest.raises(TargetError, match=r"device 'cuda' is not there: TensorFlow [\d.]+ sees CPU:0"):
        TensorflowSession(definition, definition.graph(), "cuda")
    with pytest.raises(UsageError, match="device 'cpuu' is unknown to TensorFlow sessions; did you mean 'cpu'"):
        TensorflowSession(definition, definition.graph(), "cpuu")


LOAD = """
import sys, json, numpy as np, tensorflow as tf
sys.modules["interlingua"] = None
loaded = tf.saved_model.load(sys.argv[1])
given = np.load(sys.argv[2])
made = loaded.signatures["serving_default"](**{k: tf.constant(given[k]) for k in given.files})
np.savez(sys.argv[3], **{k: v.numpy() for k, v in made.items()})
print(json.dumps(sorted(loaded.weights)))
"""


def test_a_saved_model_runs_in_another_process_without_our_code(tmp_path: Path):
    definition, arrays = tagger(), batch(2, 2, 5)
    names = [*INPUTS]
    entries = saved_model.export(definition, tmp_path / "out", inputs=names, outputs=["hidden_states", "loss"])
    assert entries[0].outputs == {"hidden_states.0": "f32[batch seq 6]", "loss": "f32[]"}
    np.savez(tmp_path / "in.npz", **arrays)
    arguments = [str(tmp_path / "out"), str(tmp_path / "in.npz"), str(tmp_path / "made.npz")]
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    graph = definition.graph(names, ["hidden_states", "loss"])
    truth = reference(graph, arrays, definition.weights)
    made = np.load(tmp_path / "made.npz")
    assert sorted(made.files) == sorted(truth)
    for k, x in truth.items():
        close(made[k], x, TOLERANCE["f32"], k)
    assert "tagger.words.weight" in done.stdout
    for jit_compile in (False, True):
        session = open_saved_model(tmp_path / "out", jit_compile=jit_compile)
        assert {k: str(t) for k, t in session.inputs.items()} == INPUTS
        for k, x in truth.items():
            close(session(**arrays)[k], x, TOLERANCE["f32"], k)


def test_a_saved_model_is_whole_or_not_there(tmp_path: Path):
    definition = tagger()

    def fails(files: Any, staging: Path, folder: Path) -> Any:
        assert files["model"].parent == staging
        assert not (folder / "saved_model.pb").exists()
        raise RuntimeError("wrong numbers")

    with pytest.raises(RuntimeError, match="wrong numbers"):
        saved_model.export(definition, tmp_path / "out", check=fails)
    assert list(tmp_path.iterdir()) == []
    entries = saved_model.export(definition, tmp_path / "out", check=lambda *_: {"model": {"logits": 0.5}})
    assert entries[0].errors == {"logits": 0.5}
    with pytest.raises(UsageError, match="already has"):
        saved_model.export(definition, tmp_path / "out")
    other = {k: x + 1 if x.dtype == np.float32 else x for k, x in definition.weights.arrays.items()}
    saved_model.export(definition, tmp_path / "out", weights=ArrayWeights(other), overwrite=True)
    made = open_saved_model(tmp_path / "out" / "saved_model.pb", jit_compile=False)(**usual(batch()))
    close(made["logits"], reference(definition.graph(), usual(batch()), ArrayWeights(other))["logits"], TOLERANCE["f32"])


def test_damaged_and_foreign_saved_models(tmp_path: Path):
    saved_model.export(tagger(), tmp_path / "out")
    (tmp_path / "out" / "interlingua.json").unlink()
    foreign = open_saved_model(tmp_path / "out", jit_compile=False)
    assert foreign(**usual(batch()))["logits"].shape == (3, 7, 11)
    assert str(foreign.outputs["logits"]) == "f32[logits_0 logits_1 11]"
    (tmp_path / "out" / "saved_model.pb").write_bytes(b"\x0a\xff")
    with pytest.raises(CheckpointError, match="cannot be loaded by TensorFlow"):
        open_saved_model(tmp_path / "out")
    tf.saved_model.save(tf.Module(), str(tmp_path / "bare"))
    with pytest.raises(CheckpointError, match="has no signature 'serving_default'"):
        open_saved_model(tmp_path / "bare")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        open_saved_model(tmp_path / "nowhere")


# ---- ONNX by way of tf2onnx ----------------------------------------------------------------------


def onnx_run(proto: bytes | str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(proto)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: arrays[i.name] for i in session.get_inputs()}), strict=True))


@pytest.mark.parametrize("opset", [13, 18])
def test_onnx_through_tf2onnx(tmp_path: Path, opset: int):
    definition = tagger()
    names = [*USUAL, "attention_mask"]
    outputs = ["logits", "hidden_states.*"]
    onnx_from_tensorflow.export(definition, tmp_path / "model.onnx", opset=opset, inputs=names, outputs=outputs)
    for arrays in (batch(), batch(1, 1, 2)):
        made = onnx_run(str(tmp_path / "model.onnx"), arrays)
        truth = reference(definition.graph(names, outputs), arrays, definition.weights)
        assert set(made) == {"logits", "hidden_states.0"}
        for k, x in truth.items():
            close(made[k], x, TOLERANCE["f32"], k)
    with pytest.raises(UsageError, match=r"already has model\.onnx"):
        onnx_from_tensorflow.export(definition, tmp_path / "model.onnx", inputs=names)


WORKED_ROUND = ["floor_divide-signs", "remainder-signs", "floor_divide-i32", "elu-alpha", "gelu-0", "gelu-tanh", "conv-2d-groups", "top_k-ties"]


@pytest.mark.parametrize("id", WORKED_ROUND)
def test_what_tf2onnx_gets_wrong_is_worked_round(id: str):
    sample = next(s for s in SAMPLES if s.id == id)
    graph, arrays = sample_graph(sample, True), sample.inputs(True)
    definition = Definition(Layer(), {}, ArrayWeights({}))
    made = onnx_run(onnx_from_tensorflow.to_proto(definition, graph).SerializeToString(), arrays)
    for k, x in reference(graph, arrays).items():
        close(made[k], x, TOLERANCE["f32"], k)


def test_what_tf2onnx_lacks_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    definition = tagger()
    drawn = Graph()
    with drawn.tracing():
        drawn.outputs = {"y": ops.random_uniform(drawn.random_key(), shape=(3,), site=0)}
    with pytest.raises(TargetError, match=r"tf2onnx cannot express .*StatelessRandomUniformFullIntV2 of Tagger"):
        onnx_from_tensorflow.to_proto(definition, drawn)
    with pytest.raises(TargetError, match="opset 23 is not written through tf2onnx, expected 13 to 18"):
        onnx_from_tensorflow.export(definition, tmp_path / "model.onnx", opset=23)
    monkeypatch.setattr(onnx_from_tensorflow, "LARGEST", 500)
    with pytest.raises(TargetError, match="bytes of weights, tf2onnx takes less than 500"):
        onnx_from_tensorflow.export(definition, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_tensorflow_the_extra_is_named():
    code = "import sys; sys.modules['tensorflow'] = None\nimport interlingua.frontends.tensorflow"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{MissingExtraError.__name__}: the TensorFlow frontend needs the extra 'tensorflow', which is not installed" in done.stderr
