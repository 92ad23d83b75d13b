"""PyTorch: the table against the reference, values and gradients; modules that train, move, copy, compile and export; sessions."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from op_samples import RANDOM_SAMPLES, SAMPLES, Sample, sample_graph

from interlingua.frontends.torch import as_module, program, to_array, to_tensor, weights_of
from interlingua.frontends.torch_table import DTYPES, TORCH
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import InputError, TargetError, UsageError
from interlingua.ir.graph import Graph, Param
from interlingua.ir.initialize import initialize
from interlingua.ir.layer import Layer
from interlingua.ir.layers.basic import BatchNorm, Conv, Dropout, Embedding, LayerNorm, Linear
from interlingua.ir.op import OPS
from interlingua.ir.passes import explicit_causal
from interlingua.ir.reference import reference
from interlingua.ir.table import lower
from interlingua.ir.types import NUMPY_DTYPES
from interlingua.ir.weights import ArrayWeights
from interlingua.runtime.torch import TorchSession

# largest difference from the float64 reference, relative to the largest number of the result
TOLERANCE = {"f64": 1e-11, "f32": 1e-5, "f16": 2e-2, "bf16": 1e-1}
both = pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])


def close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Equal up to a share of the largest finite number, infinities and NaN where they are expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * (finite.max(initial=0) + 1e-3), err_msg=what)


def arguments(sample: Sample, made: Any, symbolic: bool, dtype: str) -> list[torch.Tensor]:
    """Literals and inputs of a sample's program; floats in `dtype`, and requiring gradients if that can be."""
    arrays = [*made.literals.values(), *(sample.inputs(symbolic)[k] for k in made.inputs)]
    tensors = [to_tensor(x, dtype if x.dtype == np.float32 else "") for x in arrays]
    return [x.requires_grad_(sample.gradient and x.is_floating_point()) for x in tensors]


# ---- the table -----------------------------------------------------------------------------------


def test_every_op_has_a_rule_or_a_decomposition():
    assert [op.name for op in OPS.values() if op not in TORCH.rules and op.decomposition is None] == []


@both
@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_values(sample: Sample, symbolic: bool):
    graph = sample_graph(sample, symbolic)
    made, truth = program(graph), reference(graph, sample.inputs(symbolic))
    for dtype in ("f64", "f32", "f16"):
        given = arguments(sample, made, symbolic, dtype)
        results = made.function(None, *given)
        assert results.keys() == truth.keys()
        for k, x in results.items():
            own = graph.outputs[k].type.dtype
            follows = own == "f32" and any(g.dtype == DTYPES[dtype] for g in given)
            assert x.dtype == DTYPES[dtype if follows else own]
            assert x.shape == truth[k].shape
            close(to_array(x), truth[k], TOLERANCE[dtype], f"{k} in {dtype}")


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.gradient], ids=repr)
def test_gradients_against_differences_of_the_reference(sample: Sample):
    """The slope of the NumPy reference along a random direction of all operands, which owes nothing to torch or its table."""
    graph, made, arrays = sample_graph(sample), program(sample_graph(sample)), sample.inputs()
    rng = np.random.default_rng(7)
    truth = reference(graph, arrays)
    weigh = {k: rng.standard_normal(x.shape) for k, x in truth.items() if x.dtype.kind == "f"}
    step = {k: rng.standard_normal(x.shape) for k, x in arrays.items() if x.dtype.kind == "f"}
    gradients = {}
    for dtype in ("f64", "f32"):
        given = arguments(sample, made, False, dtype)
        results = made.function(None, *given)
        total = torch.stack([(results[k] * to_tensor(w, dtype)).sum() for k, w in weigh.items()]).sum()
        leaves = {k: x for k, x in zip(made.inputs, given, strict=True) if x.requires_grad}
        gradients[dtype] = dict(zip(leaves, map(to_array, torch.autograd.grad(total, list(leaves.values()))), strict=True))

    def value(t: float) -> float:
        moved = {k: x.astype(np.float64) + t * step[k] if k in step else x for k, x in arrays.items()}
        made = reference(graph, moved)
        return sum(float((made[k] * w).sum()) for k, w in weigh.items())

    h = 1e-5
    slope = (value(h) - value(-h)) / (2 * h)
    ours = sum(float((gradients["f64"][k] * step[k]).sum()) for k in step)
    assert ours == pytest.approx(slope, rel=1e-6, abs=1e-7)
    for k, x in gradients["f32"].items():
        close(x, gradients["f64"][k], 1e-4, f"gradient of {k} in f32")


@pytest.mark.parametrize("sample", RANDOM_SAMPLES, ids=repr)
def test_random_numbers(sample: Sample):
    made = program(sample_graph(sample))
    torch.manual_seed(3)
    first, second = (made.function(None, *arguments(sample, made, False, "f64"))["y0"].detach() for _ in range(2))
    assert not torch.equal(first, second)
    if sample.op is ops.dropout:
        assert set(first.flatten().tolist()) == {0.0, 1 / (1 - sample.attrs["rate"])}
        assert float(first.mean()) == pytest.approx(1, abs=0.05)
    elif sample.op is ops.random_uniform:
        assert 0 <= float(first.min()) < 0.01
        assert 0.99 < float(first.max()) < 1
        assert float(first.mean()) == pytest.approx(0.5, abs=0.05)
    else:  # attention whose weights are thinned out, the others made up for: right in the mean
        mean = sum(made.function(None, *arguments(sample, made, False, "f64"))["y0"].detach() for _ in range(4000)) / 4000
        whole = Sample(sample.op, (*sample.operands[:6], None), {**sample.attrs, "dropout": 0.0}, "", False)
        close(mean, reference(sample_graph(whole), whole.inputs())["y0"], 0.1)


ATTENTIONS = [s for s in SAMPLES if s.op is ops.attention]


@pytest.mark.parametrize("sample", ATTENTIONS, ids=repr)
def test_attention_is_one_call(sample: Sample):
    names = {n.op.name for n in lower(explicit_causal(sample_graph(sample)), TORCH).live()}
    assert "attention" in names
    assert "softmax" not in names


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "f16"])
@pytest.mark.parametrize("size", [3, 70], ids=["small", "blocked"])
@pytest.mark.parametrize("kind", ["mask", "bias", "mask-bias", "causal-start"])
def test_a_row_that_sees_no_key_is_zero_and_so_is_its_gradient(kind: str, size: int, dtype: str):
    graph = Graph()
    with graph.tracing():
        q, k, v = (graph.input(name, f"f32[2 3 {size} 8]") for name in "qkv")
        mask = graph.input("mask", f"bool[2 1 {size} {size}]") if "mask" in kind else None
        bias = graph.input("bias", f"f32[1 3 {size} {size}]") if "bias" in kind else None
        causal = {"start": -1, "causal": True} if kind == "causal-start" else {}
        graph.outputs = {"y": ops.attention(q, k, v, mask, bias, scale=0.3, **causal)}
    rng = np.random.default_rng(0)
    arrays = {v.name: rng.standard_normal(v.shape) for v in graph.inputs}
    if mask is not None:
        arrays["mask"] = rng.random(mask.shape) < 0.7
        arrays["mask"][:, :, 0] = False
    if kind == "bias":
        arrays["bias"][:, :, 0] = -np.inf
    made = program(graph)
    given = [to_tensor(arrays[k], "" if k == "mask" else dtype).requires_grad_(k != "mask") for k in made.inputs]
    y = made.function(None, *given)["y"]
    if kind != "bias":  # minus infinity in a bias is no mask: NumPy has no number for it
        close(to_array(y), reference(graph, arrays)["y"], TOLERANCE[dtype])
    gradients = torch.autograd.grad(y.square().sum(), [x for x in given if x.requires_grad])
    assert not y[:, :, 0].any()
    assert not gradients[0][:, :, 0].any()
    assert all(torch.isfinite(g).all() for g in gradients)
    assert y[:, :, 1:].abs().min() > 0


def test_equals_keep_their_order_in_long_rows():
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n]")
        values, places = ops.top_k(x, k=3000)
        graph.outputs = {"values": values, "places": places, "order": ops.argsort(x), "down": ops.argsort(x, descending=True)}
    array = np.random.default_rng(0).integers(0, 5, 5000).astype(np.float32)
    made = program(graph).function(None, to_tensor(array))
    for k, x in reference(graph, {"x": array}).items():
        np.testing.assert_array_equal(to_array(made[k]), x)


def test_softplus_is_exact_in_float64_where_torch_gives_up():
    graph = Graph()
    with graph.tracing():
        graph.outputs = {"y": ops.softplus(graph.input("x", "f32[n]"))}
    array = np.linspace(15, 120, 50)
    close(to_array(program(graph).function(None, to_tensor(array))["y"]), reference(graph, {"x": array})["y"], 1e-15)


def test_nearest_is_found_in_integers_unless_powers_of_two():
    for old, new, native in ((2, 82, False), (7, 28, True), (12, 3, True)):
        graph = Graph()
        with graph.tracing():
            graph.outputs = {"y": ops.resize(graph.input("x", f"f32[1 1 {old}]"), sizes=(new,))}
        assert any(n.op is ops.resize for n in lower(graph, TORCH).live()) == native


def test_infinite_ctc_losses_have_no_gradient():
    sample = next(s for s in SAMPLES if s.id == "ctc_loss-impossible")
    made = program(sample_graph(sample))
    given = arguments(sample, made, False, "f32")
    given[0].requires_grad_()
    loss = made.function(None, *given)["y0"]
    assert torch.isinf(loss).tolist() == [False, False, True, False]
    (gradient,) = torch.autograd.grad(torch.where(torch.isinf(loss), 0.0, loss).sum(), given[0])
    assert torch.isfinite(gradient).all()
    assert not gradient[:, 2].any()
    assert gradient[:, 0].any()


def test_what_torch_lacks_is_said():
    graph = Graph()
    with graph.tracing():
        x, w = graph.input("x", "f32[1 2 5 5 5 5]"), graph.input("w", "f32[3 2 1 1 1 1]")
        graph.outputs = {"y": ops.conv(x, w, stride=(1,) * 4, padding=((0, 0),) * 4, dilation=(1,) * 4)}
    with pytest.raises(TargetError, match=r"torch cannot express conv\n  conv in the model: f32\[1 2 5 5 5 5\]"):
        program(graph)


def test_numbers_of_a_graph():
    """Constants and sizes alone, beside tensors, and where torch wants tensors."""
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n]")
        n = ops.size(value=x.shape[0], dtype="f32")
        small = ops.where(ops.less(x, 0.0), 1.0, -2.0)
        graph.outputs = {
            "arithmetic": (n * 3.0 - 1.0) / n,
            "root": ops.sqrt(n) + x,
            "branches": small,
            "bounded": ops.minimum(ops.maximum(x, ops.LOWEST), n / 4.0),
            "wide": ops.broadcast_to(n, shape=(2, 3)),
            "clamped": ops.iota(size=x.shape[0] // 2 + 1) * 2 - 1,
            "power": ops.power(2.0, x) - 2.0 / (x * x + 1.0),
            "scale": n * np.float64(0.5),
        }
    array = np.array([-1.5, 0.25, 3.0])
    made = program(graph)
    for dtype in ("f64", "f32", "f16"):
        results = made.function(None, to_tensor(array, dtype))
        for k, x in reference(graph, {"x": array}).items():
            assert results[k].dtype == (torch.int64 if k == "clamped" else DTYPES[dtype]), k
            close(to_array(results[k]), x, TOLERANCE[dtype], k)


# ---- modules -------------------------------------------------------------------------------------


class Tagger(Layer):
    """Words and a signal: an embedding shared with the output, a convolution, batch norm, dropout, attention and a loss."""

    def __init__(self, n: int = 6):
        self.words = Embedding(11, n)
        self.conv, self.norm, self.after = Conv(3, n, (3,), padding=(1,)), BatchNorm(n), LayerNorm(n, 1e-5)
        self.blocks = [Linear(n, n), Linear(n, n)]
        self.dropout = Dropout(0.5)
        self.words_again = self.words.weight
        self.half = Param(n, init="normal")  # the name of a method of every module
        self.training = Param(n, init="normal")  # the name of its flag
        self.position_ids = Param(1, 9, dtype="i64", init="zeros")

    def forward(self, input_ids, signal, attention_mask=None, labels=None):
        x = self.words(input_ids) + self.half + self.training * ops.literal(value=np.linspace(0, 1, 6))
        x = x + ops.transpose(self.norm(self.conv(signal)), perm=(0, 2, 1))
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        y = ops.rearrange(x, "batch seq (heads head) -> batch heads seq head", heads=2)
        y = ops.attention(y, y, y, mask, scale=0.5, causal=True)
        x = x + self.dropout(self.blocks[0](ops.rearrange(y, "batch heads seq head -> batch seq (heads head)")))
        x = self.after(ops.gelu(self.blocks[1](x)))
        logits = ops.linear(x, self.words_again)
        loss = None if labels is None else ops.cross_entropy(logits * ops.literal(value=np.linspace(1, 2, 11)), labels)
        return {"loss": loss, "logits": logits, "hidden_states": [x]}


USUAL = ("input_ids", "signal")
INPUTS = {"input_ids": "i64[batch seq]", "signal": "f32[batch 3 seq]", "attention_mask": "bool[batch seq]", "labels": "i64[batch seq]"}


def tagger(key: Callable[[str], str] = lambda name: f"tagger.{name}") -> Definition:
    made = Definition(Tagger(), INPUTS, ArrayWeights({}), usual=USUAL, key=key)
    arrays = initialize(made.params, 5)
    rng = np.random.default_rng(1)
    arrays[key("norm.running_mean")] = rng.standard_normal(6).astype(np.float32)
    arrays[key("norm.running_var")] = rng.uniform(0.5, 2, 6).astype(np.float32)
    arrays[key("position_ids")] = np.arange(9)[None]
    made.weights = ArrayWeights(arrays)
    return made


def batch(seed: int = 0, b: int = 3, s: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, s + 1, (b, 1))
    return {
        "input_ids": rng.integers(0, 11, (b, s)),
        "signal": rng.standard_normal((b, 3, s)).astype(np.float32),
        "attention_mask": np.arange(s) < lengths,
        "labels": rng.integers(0, 11, (b, s)),
    }


def tensors(arrays: dict[str, np.ndarray], *names: str) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(arrays[k]) for k in names or arrays}


def test_a_module_computes_what_the_reference_does():
    definition, arrays = tagger(), batch()
    net = as_module(definition).eval()
    for names in (USUAL, (*USUAL, "attention_mask"), tuple(INPUTS)):
        truth = reference(definition.graph(names), {k: arrays[k] for k in names}, definition.weights)
        made = net(**tensors(arrays, *names))
        assert list(made) == list(truth)
        for k, x in truth.items():
            close(to_array(made[k]), x, TOLERANCE["f32"], k)
    assert set(net(**tensors(arrays, *USUAL), labels=None)) == {"logits"}
    assert set(as_module(definition, outputs=["hidden_states.*"])(**tensors(arrays, *USUAL))) == {"hidden_states.0"}


def test_state_has_the_checkpoints_names_and_comes_back():
    definition = tagger()
    net = as_module(definition)
    keys = {p.key for p in definition.params}
    assert set(net.state_dict()) == keys == set(weights_of(net))
    assert "tagger.words.weight" in keys
    assert "tagger.half" in keys
    assert {k for k, _ in net.named_parameters()} == {p.key for p in definition.params if p.trainable}
    assert set(net.state_dict()) - {k for k, _ in net.named_parameters()} == {p.key for p in definition.params if not p.trainable}
    for k, x in weights_of(net).items():
        np.testing.assert_array_equal(x, definition.weights.array(k))
        assert x.dtype == definition.weights.array(k).dtype
    read = weights_of(net)["tagger.half"]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    np.testing.assert_array_equal(read, definition.weights.array("tagger.half"))
    assert not np.shares_memory(definition.weights.array("tagger.half"), to_array(net.state_dict()["tagger.half"]))
    other = as_module(definition)
    assert any(k.startswith("literal") for k, _ in other.named_buffers())  # constant arrays, which are no part of the state
    assert list(other.load_state_dict(net.state_dict())) == [[], []]
    for k, x in weights_of(other).items():
        trained = k in dict(net.named_parameters())
        np.testing.assert_array_equal(x, definition.weights.array(k) + 1 if trained else definition.weights.array(k))


def test_evaluation_uses_running_statistics_and_no_dropout_and_training_both():
    definition, arrays = tagger(), batch()
    net = as_module(definition)
    given = tensors(arrays)
    torch.manual_seed(0)
    assert net.training
    assert not torch.equal(net(**given)["logits"], net(**given)["logits"])
    net.eval()
    before = weights_of(net)
    assert torch.equal(net(**given)["logits"], net(**given)["logits"])
    assert all(np.array_equal(before[k], x) for k, x in weights_of(net).items())


def test_running_statistics_move_as_torchs_own():
    definition, arrays = tagger(), batch()
    net, own = as_module(definition), torch.nn.BatchNorm1d(6)
    state = net.state_dict()
    own.load_state_dict({k: state[f"tagger.norm.{k}"].clone() for k in own.state_dict()})
    conv = torch.nn.functional.conv1d(torch.tensor(arrays["signal"]), state["tagger.conv.weight"], state["tagger.conv.bias"], padding=1)
    own(conv)
    assert "update.tagger.norm.running_mean" not in net(**tensors(arrays, *USUAL))
    for k, x in own.state_dict().items():
        close(state[f"tagger.norm.{k}"], x, TOLERANCE["f32"], k)
    assert int(state["tagger.norm.num_batches_tracked"]) == 1


def test_a_training_step_has_the_slopes_of_the_reference():
    """Gradients of the loss in training mode, dropout off, against differences of the NumPy run of the training graph."""
    layer = Tagger()
    layer.dropout.rate = 0.0
    definition = Definition(layer, INPUTS, ArrayWeights({}))
    arrays = batch()
    definition.weights = ArrayWeights({k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in initialize(definition.params, 5).items()})
    net = as_module(definition, dtype="f64")
    net(**tensors(arrays))["loss"].backward()
    graph = definition.graph(INPUTS, training=True)
    for k, p in net.named_parameters():
        step = np.random.default_rng(2).standard_normal(p.shape)

        def loss(t: float, k: str = k, step: np.ndarray = step) -> float:
            moved = {**definition.weights.arrays, k: definition.weights.array(k) + t * step}
            return float(reference(graph, arrays, ArrayWeights(moved))["loss"])

        assert float((to_array(p.grad) * step).sum()) == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-5, abs=1e-8), k


def test_it_learns():
    arrays = batch()
    net = as_module(tagger())
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = net(**tensors(arrays))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("dtype", ["f64", "f16", "bf16"])
def test_other_floats(dtype: str):
    definition, arrays = tagger(), batch()
    truth = rounded_reference(definition, arrays, dtype)
    moved = as_module(definition).eval()
    moved(**tensors(arrays))  # its constants must follow
    for net in (moved.to(DTYPES[dtype]), as_module(definition, dtype=dtype)):
        made = net.eval()(**tensors(arrays))  # the float32 signal is cast
        assert {x.dtype for x in made.values()} == {DTYPES[dtype]}
        close(to_array(made["logits"]), truth, TOLERANCE[dtype])
        net.train()(**tensors(arrays))["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
        assert weights_of(net)["tagger.half"].dtype == NUMPY_DTYPES[dtype]


def rounded_reference(definition: Definition, arrays: dict[str, np.ndarray], dtype: str) -> np.ndarray:
    """The reference's logits for weights rounded to a dtype."""
    rounded = {k: definition.weights.array(k) for k in definition.weights}
    rounded = {k: x.astype(NUMPY_DTYPES[dtype]).astype(np.float64) if x.dtype == np.float32 else x for k, x in rounded.items()}
    return reference(definition.graph(INPUTS), arrays, ArrayWeights(rounded))["logits"]


def test_bfloat16_checkpoints_are_read():
    definition, arrays = tagger(), batch()
    rounded = {k: definition.weights.array(k) for k in definition.weights}
    definition.weights = ArrayWeights({k: x.astype(NUMPY_DTYPES["bf16"]) if x.dtype == np.float32 else x for k, x in rounded.items()})
    truth = reference(definition.graph(), {k: arrays[k] for k in USUAL}, definition.weights)["logits"]
    made = as_module(definition).eval()(**tensors(arrays, *USUAL))["logits"]
    assert made.dtype == torch.float32
    close(made.detach(), truth, TOLERANCE["f32"])
    stored = weights_of(as_module(definition, dtype="bf16"))
    assert all(np.array_equal(x, definition.weights.array(k)) and x.dtype == definition.weights.array(k).dtype for k, x in stored.items())


def test_copies_have_their_own_weights():
    given = tensors(batch(), *USUAL)
    net = as_module(tagger()).eval()
    before = net(**given)["logits"].detach()
    made = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    made.append(torch.load(file, weights_only=False))
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    for other in made:
        assert torch.equal(other(**given)["logits"], before)
        assert list(other.state_dict()) == list(net.state_dict())
        assert copy.deepcopy(other).train()(**given)["logits"].requires_grad
    assert net(**given)["logits"].abs().sum() == 0
    assert set(made[0](**tensors(batch()))) == {"loss", "logits"}
    with pytest.raises(UsageError, match=r"Tagger was unpickled and runs with inputs input_ids, signal only; got input_ids, signal, attention_mask"):
        made[1](**tensors(batch()))


def test_wrong_inputs_are_named():
    net = as_module(tagger())
    given = tensors(batch(), *USUAL)
    with pytest.raises(InputError, match=r"Tagger has no input 'atention_mask'; did you mean 'attention_mask'\?"):
        net(**given, atention_mask=given["input_ids"])
    with pytest.raises(InputError, match=r"input 'signal' has shape \[3, 7\], expected f32\[batch 3 seq\]"):
        net(input_ids=given["input_ids"], signal=given["signal"][:, 0])
    with pytest.raises(InputError, match=r"input 'input_ids' is of dtype float32, expected i64\[batch seq\]"):
        net(input_ids=given["signal"][:, 0], signal=given["signal"])
    with pytest.raises(InputError, match=r"input 'input_ids' of Tagger is of <class 'numpy.ndarray'>, expected a torch.Tensor"):
        net(input_ids=batch()["input_ids"], signal=given["signal"])
    with pytest.raises(InputError, match=r"input 'signal' has seq=5, but 'input_ids' has seq=7"):
        net(input_ids=given["input_ids"], signal=given["signal"][..., :5])
    torch.testing.assert_close(net.eval()(input_ids=given["input_ids"].int(), signal=given["signal"].double()), net(**given))
    with pytest.raises(UsageError, match="Tagger has no output 'logit'; did you mean 'logits'"):
        as_module(tagger(), outputs=["logit"])(**given)
    assert set(as_module(tagger(), outputs=["loss"])(**tensors(batch()))) == {"loss"}  # which the usual inputs do not give
    with pytest.raises(UsageError, match="dtype='fp16' is not a float dtype; did you mean 'f16'"):
        as_module(tagger(), dtype="fp16")


def test_flags_are_true_or_left_out():
    class Scaled(Layer):
        def forward(self, x, twice=False):
            return {"y": x * 2.0 if twice else x + 0.0}

    net = as_module(Definition(Scaled(), {"x": "f32[n]"}, ArrayWeights({}), flags={"twice": {}}))
    x = torch.ones(3)
    assert [float(net(x=x, **given)["y"][0]) for given in ({}, {"twice": True}, {"twice": False}, {"twice": None})] == [1, 2, 1, 1]


def test_the_source_is_plain_torch():
    net = as_module(tagger())
    source = net.eval().source(*USUAL)
    assert "scaled_dot_product_attention" in source
    assert "is_causal = True" in source
    assert "layer_norm" in source
    assert "dropout(" not in source
    assert "def forward(self, tagger_words_weight" in source
    assert source.count(".dtype") == 1
    assert "dropout(" in net.train().source()
    assert "copy_" in net.source()


def test_functional_calls_and_autocast():
    given = tensors(batch(), *USUAL)
    net = as_module(tagger()).eval()
    zeros = {k: torch.zeros_like(p) for k, p in net.named_parameters()}
    assert torch.func.functional_call(net, zeros, kwargs=given)["logits"].abs().sum() == 0
    assert net(**given)["logits"].abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        low = net(**given)["logits"]
    assert low.dtype == torch.bfloat16
    close(low.detach().double(), net(**given)["logits"].detach(), TOLERANCE["bf16"])


def test_first_use_without_gradients_does_not_forbid_them_later():
    given = tensors(batch())
    net = as_module(tagger())
    with torch.inference_mode():
        net(**given)
    net(**given)["loss"].backward()
    assert all(p.grad is not None for p in net.parameters())


def test_compile():
    """Whole and with its gradients, as graphs; one session below compiles to machine code, which takes its time."""
    given = tensors(batch())
    net = as_module(tagger()).eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given), net(**given))
    compiled(**given)["loss"].backward()
    theirs = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    net(**given)["loss"].backward()
    torch.testing.assert_close(theirs, {k: p.grad for k, p in net.named_parameters()})
    assert set(weights_of(compiled)) == set(net.state_dict())


def test_compile_in_training_moves_statistics():
    net = as_module(tagger())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        compiled(**tensors(batch()))["loss"].backward()
    assert int(net.state_dict()["tagger.norm.num_batches_tracked"]) == 2


def test_export_with_sizes_that_vary():
    # torch.export itself refuses weights that are named as a module's methods are
    net = as_module(tagger(key=lambda name: {"half": "a", "training": "b"}.get(name, name))).eval()
    batch_size, seq = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("seq", min=2, max=64)
    shapes = {"input_ids": {0: batch_size, 1: seq}, "signal": {0: batch_size, 2: seq}}
    exported = torch.export.export(net, (), tensors(batch(), *USUAL), dynamic_shapes=shapes)
    for b, s in ((3, 7), (2, 4), (5, 9)):
        given = tensors(batch(3, b, s), *USUAL)
        torch.testing.assert_close(exported.module()(**given), net(**given), rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"inputs input_ids, signal, labels are met for the first time in torch.export\n  call the module"):
        torch.export.export(net, (), tensors(batch(), *USUAL, "labels"))


# ---- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "compile"), [(None, False), ("f64", False), ("bf16", False), (None, True)])
def test_sessions(dtype: str | None, compile: bool):
    definition, arrays = tagger(), batch()
    graph = definition.graph(INPUTS)
    session = TorchSession(definition, graph, dtype=dtype, compile=compile)
    truth = reference(graph, arrays, definition.weights)
    for k, x in session(**arrays).items():
        assert x.dtype == np.float32
        close(x, truth[k], {None: 1e-5, "f64": 1e-6, "bf16": 0.1}[dtype], k)
    assert repr(session).startswith("<torch session of Tagger on cpu: input_ids: i64[batch seq]")


def test_sessions_say_what_they_cannot():
    definition = tagger()
    with pytest.raises(TargetError, match=r"device 'cuda:7' is not one that this PyTorch can use: .*\n  use 'cpu'"):
        TorchSession(definition, definition.graph(), device="cuda:7")
    with pytest.raises(TargetError, match=r"device 'gpu' is not one"):
        TorchSession(definition, definition.graph(), device="gpu")
    with pytest.raises(UsageError, match="dtype='i8' is not a float dtype"):
        TorchSession(definition, definition.graph(), dtype="i8")
    with pytest.raises(InputError, match="Tagger lacks input 'signal'"):
        TorchSession(definition, definition.graph())(input_ids=batch()["input_ids"])


def test_sessions_take_arrays_that_may_not_be_written_to():
    definition, arrays = tagger(), batch()
    for x in arrays.values():
        x.flags.writeable = False
    session = TorchSession(definition, definition.graph(USUAL))
    assert session(**{k: arrays[k] for k in USUAL})["logits"].shape == (3, 7, 11)
