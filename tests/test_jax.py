"""The JAX table against the float64 reference, op by op with gradients, and a definition as a pure function."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from op_samples import RANDOM_SAMPLES, SAMPLES, Sample, sample_graph

from interlingua.frontends.jax import as_function, evaluate, weights_of
from interlingua.frontends.jax_table import JAX
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import InputError
from interlingua.ir.graph import Graph, Param, current
from interlingua.ir.initialize import initialize
from interlingua.ir.layer import Layer
from interlingua.ir.layers import BatchNorm, Dropout, Linear
from interlingua.ir.reference import reference
from interlingua.ir.table import lower
from interlingua.ir.weights import ArrayWeights

BY_OP = {name: list(rows) for name, rows in itertools.groupby(sorted(SAMPLES, key=lambda s: s.op.name), key=lambda s: s.op.name)}
Arrays = dict[str, Any]


def floats(arrays: Arrays) -> Arrays:
    return {k: x for k, x in arrays.items() if x.dtype.kind == "f"}


def widened(sample: Sample) -> Arrays:
    return {k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in sample.inputs().items()}


def slope(graph: Graph, inputs: Arrays, along: Arrays, weights: Arrays) -> float:
    """How fast the weighted sum of the reference's outputs grows when the inputs move along a direction, by central differences."""
    step = 1e-5

    def total(t: float) -> float:
        moved = {k: x + t * along[k] if k in along else x for k, x in inputs.items()}
        made = reference(graph, moved)
        return sum(float((w * made[k]).sum()) for k, w in weights.items())

    return (total(step) - total(-step)) / (2 * step)


def values_and_gradients(graph: Graph, sample: Sample, inputs: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    if not sample.gradient:
        return evaluate(graph, {}, inputs), {}

    def total(moving: Arrays) -> tuple[Any, Arrays]:
        made = evaluate(graph, {}, {**inputs, **moving})
        return sum((w * made[k]).sum() for k, w in weights.items()), made

    (_, made), gradients = jax.value_and_grad(total, has_aux=True)(floats(inputs))
    return made, gradients


@pytest.mark.parametrize("op", BY_OP)
def test_an_op_and_its_gradients(op: str) -> None:
    """All samples of an op in one compilation, in float64, so that 1e-10 is asked of values and 1e-6 of slopes."""
    rows, rng = BY_OP[op], np.random.default_rng(0)
    graphs, inputs = [sample_graph(s) for s in rows], [widened(s) for s in rows]
    truth = [reference(g, x) for g, x in zip(graphs, inputs, strict=True)]
    weights = [{k: rng.standard_normal(r.shape) for k, r in floats(t).items()} for t in truth]
    along = [{k: rng.standard_normal(x.shape) for k, x in floats(i).items()} for i in inputs]
    lowered = [lower(g, JAX) for g in graphs]
    with jax.enable_x64(True):
        run = jax.jit(lambda inputs, weights: [values_and_gradients(*row) for row in zip(lowered, rows, inputs, weights, strict=True)])
        made = [(weights_of(values), weights_of(gradients)) for values, gradients in run(inputs, weights)]
    for i, (values, gradients) in enumerate(made):
        assert list(values) == list(truth[i]), rows[i]
        for k, want in truth[i].items():
            got = values[k]
            assert got.shape == want.shape, rows[i]
            assert got.dtype == want.dtype or got.dtype.kind == want.dtype.kind == "f", rows[i]
            tolerance = (1e-10, 1e-12) if got.dtype == np.float64 else (0, 0)
            np.testing.assert_allclose(got, want, *tolerance, err_msg=str(rows[i]))
        if rows[i].gradient:
            assert set(gradients) == set(along[i])
            got = sum(float((along[i][k] * g).sum()) for k, g in gradients.items())
            np.testing.assert_allclose(got, slope(graphs[i], inputs[i], along[i], weights[i]), 1e-6, 1e-7, err_msg=str(rows[i]))


@pytest.mark.parametrize("sample", [s for s in RANDOM_SAMPLES if s.op is not ops.attention], ids=str)
def test_random_numbers_are_those_of_the_key_and_the_place(sample: Sample) -> None:
    key, *_ = (k for k, x in sample.inputs().items() if x.dtype == np.uint32)
    graph = lower(sample_graph(sample), JAX)
    draw = lambda words: np.asarray(evaluate(graph, {}, {**sample.inputs(), key: np.uint32(words)})["y0"])
    once = draw([3, 5])
    np.testing.assert_array_equal(once, draw([3, 5]))
    assert (once != draw([3, 6])).mean() > 0.2
    expected = 1.0 if sample.op is ops.dropout else 0.5
    assert abs(once.mean() - expected) < 4 * once.std() / np.sqrt(once.size)
    if sample.op is ops.dropout:
        assert set(np.unique(once)) == {np.float32(0), np.float32(1 / 0.75)}
    else:
        assert 0 <= once.min() < 1e-3 < 0.999 < once.max() < 1
        np.testing.assert_allclose(once.var(), 1 / 12, rtol=0.05)


def test_places_draw_different_numbers() -> None:
    graphs = [lower(sample_graph(s), JAX) for s in RANDOM_SAMPLES if s.op is ops.random_uniform]
    first, second = (np.asarray(evaluate(g, {}, RANDOM_SAMPLES[0].inputs())["y0"]) for g in graphs)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_attention_drops_weights() -> None:
    (sample,) = (s for s in RANDOM_SAMPLES if s.op is ops.attention)
    graph = lower(sample_graph(sample), JAX)
    inputs, keys = sample.inputs(), jax.random.split(jax.random.PRNGKey(0), 1000)
    made = jax.jit(jax.vmap(lambda key: evaluate(graph, {}, {**inputs, "x6": key})["y0"]))(keys)
    with_none = sample_graph(Sample(sample.op, sample.operands[:3], {"scale": sample.attrs["scale"]}, "none", True))
    want = reference(with_none, {k: inputs[k] for k in ("x0", "x1", "x2")})["y0"]
    assert np.abs(np.asarray(made[0]) - want).max() > 0.2
    np.testing.assert_allclose(made.mean(0), want, atol=0.1)


def graph_of(build: Any, **inputs: str) -> Graph:
    graph = Graph()
    with graph.tracing():
        graph.outputs = {"y": build(**{k: graph.input(k, t) for k, t in inputs.items()})}
    return lower(graph, JAX)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("how", ["attention", "weights", "where"])
def test_a_row_without_any_key_is_zero_and_its_gradient_finite(dtype: str, how: str) -> None:
    def masked(x, mask):
        if how == "attention":
            return ops.attention(x, x, x, mask, scale=0.5)
        if how == "weights":
            return ops.attention_weights(x, x, mask, scale=0.5)
        return ops.where(ops.any(mask, axis=-1, keep=True), ops.softmax(ops.where(mask, ops.matmul(x, x), ops.LOWEST)), 0.0)

    graph = graph_of(masked, x="f32[2 4 4]", mask="bool[1 4 4]")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4)), dtype)
    mask = np.tril(np.ones((4, 4), bool))[None] & (np.arange(4) != 1)[:, None]
    total = lambda x: (lambda y: (jnp.sum(y * y), y))(evaluate(graph, {}, {"x": x, "mask": mask})["y"])
    with jax.debug_nans(True):  # no step on the way makes a NaN either
        (_, y), gradient = jax.value_and_grad(total, has_aux=True)(x)
    assert y.dtype == gradient.dtype == dtype
    assert not np.asarray(y[:, 1], np.float32).any()
    assert np.asarray(y[:, [0, 2, 3]], np.float32).all(-1).any()
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_gradients_at_the_corner_are_those_of_the_field() -> None:
    """What torch gives at zero: no slope for relu, half of it for softplus."""
    at_zero = lambda op: jax.grad(lambda x: evaluate(graph_of(op, x="f32[1]"), {}, {"x": x})["y"][0])(jnp.zeros(1))[0]
    assert (at_zero(ops.relu), at_zero(ops.softplus), at_zero(ops.elu)) == (0.0, 0.5, 1.0)


def test_pooling_differentiates_under_jit() -> None:
    graph = graph_of(lambda x: ops.max_pool(x, kernel=(2,), stride=(2,), padding=((0, 0),)), x="f32[1 1 4]")
    gradient = jax.jit(jax.grad(lambda x: evaluate(graph, {}, {"x": x})["y"].sum()))(jnp.array([[[1.0, 3.0, 4.0, 2.0]]]))
    np.testing.assert_array_equal(gradient, [[[0, 1, 1, 0]]])


# ---- a definition as a function -----------------------------------------------------------------


class Net(Layer):
    """Convolution, batch norm, dropout, an integer table and a loss on demand."""

    def __init__(self, rate: float = 0.0) -> None:
        self.up, self.norm, self.drop, self.down = Linear(6, 5), BatchNorm(5), Dropout(rate), Linear(5, 3)
        self.order = Param(3, dtype="i64")

    def forward(self, x, shift=None, labels=None):
        x = x if shift is None else x + shift
        x = self.drop(ops.relu(self.norm(self.up(x))))
        logits = ops.take(self.down(x), self.order, axis=1)
        return {"logits": logits, "loss": None if labels is None else ops.cross_entropy(logits, labels)}


def net(rate: float = 0.0) -> Definition:
    layer = Net(rate)
    inputs = {"x": "f32[batch 6]", "shift": "f32[batch 1]", "labels": "i64[batch]"}
    made = Definition(layer, inputs, ArrayWeights({}), usual=["x"], name="Net")
    weights = initialize(made.params, 1) | {"order": np.array([2, 0, 1]), "norm.running_mean": np.linspace(-1, 1, 5, dtype=np.float32)}
    made.weights = ArrayWeights(weights)
    return made


@pytest.fixture
def inputs() -> Arrays:
    rng = np.random.default_rng(3)
    return {"x": rng.standard_normal((4, 6)).astype(np.float32), "labels": np.array([0, 2, 1, -100])}


def test_the_function_agrees_for_each_set_of_inputs(inputs: Arrays) -> None:
    model = net()
    fn, params = as_function(model)
    run = jax.jit(fn)
    for given in ({"x": inputs["x"]}, inputs, {**inputs, "shift": np.full((4, 1), 0.25, np.float32)}):
        want = reference(model.graph(given), given, model.weights)
        got = run(params, **given)
        assert set(got) == set(want)
        for k in want:
            np.testing.assert_allclose(got[k], want[k], rtol=2e-6, atol=1e-6)
    assert set(fn(params, x=inputs["x"], shift=None, labels=None)) == {"logits"}
    assert set(as_function(model, outputs=["loss"])[0](params, **inputs)) == {"loss"}


def test_params_are_what_is_trained(inputs: Arrays) -> None:
    model = net()
    fn, params = as_function(model)
    assert set(params) == {"up.weight", "up.bias", "norm.weight", "norm.bias", "down.weight", "down.bias"}
    gradients = jax.jit(jax.grad(lambda p: fn(p, **inputs)["loss"]))(params)
    graph = model.graph(inputs)
    for key, gradient in gradients.items():
        direction = np.random.default_rng(5).standard_normal(gradient.shape)

        def loss(t: float, key: str = key, direction: np.ndarray = direction) -> float:
            moved = {**model.weights.arrays, key: model.weights.arrays[key].astype(np.float64) + t * direction}
            return float(reference(graph, inputs, ArrayWeights(moved))["loss"])

        np.testing.assert_allclose((direction * gradient).sum(), (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=2e-5, atol=1e-6)


def test_training_moves_the_statistics(inputs: Arrays) -> None:
    model = net()
    train, params, state = as_function(model, training=True)
    assert set(state) == {"order", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    outputs, moved = jax.jit(train)(params, state, None, **inputs)
    want = reference(model.graph(inputs, training=True), inputs, model.weights)
    for k, x in {**outputs, **{f"update.{k}": x for k, x in moved.items() if k != "order"}}.items():
        np.testing.assert_allclose(x, want[k], rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(moved["order"], state["order"])
    assert {k: x.dtype for k, x in moved.items()} == {k: x.dtype for k, x in state.items()}
    # what was trained is evaluated by giving the state, which otherwise is the model's own
    fn, _ = as_function(model)
    after = ArrayWeights({**model.weights.arrays, **weights_of(params, moved)})
    evaluated = fn({**params, **moved}, x=inputs["x"])["logits"]
    np.testing.assert_allclose(evaluated, reference(model.graph(), inputs, after)["logits"], rtol=1e-5, atol=1e-6)
    assert np.abs(evaluated - fn(params, x=inputs["x"])["logits"]).max() > 1e-3


def test_training_steps_scan_and_learn(inputs: Arrays) -> None:
    train, params, state = as_function(net(rate=0.1), training=True)

    def step(carry, key):
        params, state = carry
        loss = lambda p: (lambda made, state: (made["loss"], state))(*train(p, state, key, **inputs))
        (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return (jax.tree.map(lambda w, g: w - 0.5 * g, params, gradients), state), value

    (trained, moved), losses = jax.jit(lambda *a: jax.lax.scan(step, a, jax.random.split(jax.random.key(0), 60)))(params, state)
    assert losses[-5:].mean() < 0.6 * losses[0]
    assert moved["norm.num_batches_tracked"] == 60
    assert set(weights_of(trained, moved)) == {p.key for p in net().params}


def test_dropout_wants_a_key(inputs: Arrays) -> None:
    train, params, state = as_function(net(rate=0.5), training=True)
    first, again, other = (train(params, state, k, **inputs)[0]["loss"] for k in (jax.random.key(1), jax.random.PRNGKey(1), jax.random.key(2)))
    assert first == again != other
    with pytest.raises(InputError, match=r"key is None, but the model draws random numbers in training"):
        train(params, state, None, **inputs)
    with pytest.raises(InputError, match=r"key has \[4\] words, expected \[2\]"):
        train(params, state, jax.random.key(1, impl="rbg"), **inputs)


def test_vmap_over_models_and_over_inputs(inputs: Arrays) -> None:
    fn, params = as_function(net())
    two = jax.tree.map(lambda x: jnp.stack((x, 2 * x)), params)
    made = jax.jit(jax.vmap(lambda p, x: fn(p, x=x)["logits"], in_axes=(0, None)))(two, inputs["x"])
    np.testing.assert_allclose(made[1], fn(jax.tree.map(lambda x: 2 * x, params), x=inputs["x"])["logits"], rtol=1e-5)
    rows = jax.jit(jax.vmap(lambda x: fn(params, x=x[None])["logits"][0]))(inputs["x"])
    np.testing.assert_allclose(rows, made[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_a_narrower_float_is_computed_in(dtype: str, inputs: Arrays) -> None:
    model = net()
    fn, params = as_function(model, dtype=dtype)
    wanted = {"bf16": jnp.bfloat16, "f16": jnp.float16}[dtype]
    assert {x.dtype for x in params.values()} == {jnp.dtype(wanted)}
    made = fn(params, **inputs)
    assert made["logits"].dtype == made["loss"].dtype == wanted
    want = reference(model.graph(inputs), inputs, model.weights)["logits"]
    assert 0 < np.abs(np.asarray(made["logits"], np.float64) - want).max() < 0.05
    train, params, state = as_function(model, training=True, dtype=dtype)
    assert {k: x.dtype for k, x in train(params, state, None, **inputs)[1].items()} == {k: x.dtype for k, x in state.items()}


def test_a_stored_narrow_weight_becomes_the_graphs_float() -> None:
    model = net()
    model.weights = ArrayWeights({k: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x for k, x in model.weights.arrays.items()})
    _, params = as_function(model)
    assert {x.dtype for x in params.values()} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(params["up.weight"], model.weights.arrays["up.weight"].astype(np.float32))


def test_what_does_not_fit_is_named(inputs: Arrays) -> None:
    fn, params = as_function(net())
    with pytest.raises(InputError, match=r"Net has no input 'label'; did you mean 'labels'"):
        fn(params, x=inputs["x"], label=inputs["labels"])
    with pytest.raises(InputError, match=r"Net has no parameter 'up.wieght'; did you mean 'up.weight'"):
        fn({**params, "up.wieght": 0}, x=inputs["x"])
    with pytest.raises(InputError, match=r"params of Net lack down.bias; give all that as_function returned"):
        fn({k: x for k, x in params.items() if k != "down.bias"}, x=inputs["x"])
    with pytest.raises(InputError, match=r"input 'x' has 5 on axis 1, expected f32\[batch 6\]"):
        jax.jit(fn)(params, x=inputs["x"][:, :5])
    with pytest.raises(InputError, match=r"input 'labels' has batch=3, but 'x' has batch=4"):
        fn(params, x=inputs["x"], labels=inputs["labels"][:3])


def test_weights_travel_unchanged() -> None:
    model = net()
    _, params, state = as_function(model, training=True)
    back = weights_of(params, state)
    assert set(back) == set(model.weights)
    for k, x in back.items():
        np.testing.assert_array_equal(x, model.weights.array(k))


def test_instructions_carry_the_path_of_their_layer(inputs: Arrays) -> None:
    class Outer(Layer):
        def __init__(self) -> None:
            self.first, self.second = Linear(6, 4), Linear(4, 2)

        def forward(self, x):
            assert current().path == ""
            return self.second(self.first(x))

    layer = Outer()
    model = Definition(layer, {"x": "f32[batch 6]"}, ArrayWeights({}))
    model.weights = ArrayWeights(initialize(model.params))
    fn, params = as_function(model)
    text = jax.jit(fn).lower(params, x=inputs["x"]).as_text(debug_info=True)
    assert "first/" in text
    assert "second/" in text


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from test_jax import net
from interlingua.frontends.jax import as_function
fn, params = as_function(net())
x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
split = {k: jax.device_put(p, NamedSharding(mesh, P("d") if p.shape[0] % 2 == 0 else P())) for k, p in params.items()}
out = jax.jit(lambda p, x: fn(p, x=x)["logits"])(split, jax.device_put(x, NamedSharding(mesh, P("d"))))
assert len(out.sharding.device_set) == 2, out.sharding
np.testing.assert_allclose(out, fn(params, x=x)["logits"], rtol=1e-5, atol=1e-6)
"""
WITHOUT_JAX = """
import sys
sys.modules["jax"] = None
from interlingua.ir.errors import MissingExtraError
try:
    import interlingua.frontends.jax
except MissingExtraError as error:
    assert "the JAX frontend needs the extra 'jax'" in str(error) and "pip install 'interlingua[jax]'" in str(error), error
else:
    raise AssertionError("no error")
from interlingua.runtime.xla import compile_xla, find_device
try:
    find_device("cpu")
except MissingExtraError as error:
    assert "a session on XLA needs the extra 'jax'" in str(error), error
else:
    raise AssertionError("no error")
"""


@pytest.mark.parametrize("script", [SHARDED, WITHOUT_JAX], ids=["sharded", "without-jax"])
def test_in_a_process_of_its_own(script: str, subprocess_environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, "-c", script], check=True, env=subprocess_environment)


@pytest.fixture
def subprocess_environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
