"""TensorFlow's table against the reference: values and gradients, kernel by kernel and compiled by XLA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from op_samples import RANDOM_SAMPLES, SAMPLES, Sample, sample_graph

from interlingua.frontends.tensorflow import as_function
from interlingua.frontends.tensorflow_table import DTYPES, TF, TF_XLA, TensorflowTable, static_shape
from interlingua.ir import ops
from interlingua.ir.graph import Graph
from interlingua.ir.op import OPS, Op
from interlingua.ir.reference import reference
from interlingua.ir.table import lower, run

# largest difference from the float64 reference, relative to the largest number of the result
TOLERANCE = {"f64": 1e-11, "f32": 1e-5, "f16": 2e-2, "bf16": 1e-1}


def close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Equal up to a share of the largest finite number, infinities and NaN where they are expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, what
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * (finite.max(initial=0) + 1e-3), err_msg=what)


both = pytest.mark.parametrize("table", [TF, TF_XLA], ids=["kernels", "xla"])


def _conv(id: str, x: str, weight: str, *, groups: int = 1, op: Op = ops.conv, **attrs: Any) -> Sample:
    rng = np.random.default_rng(len(id))
    shapes = [tuple(map(int, text.split())) for text in (x, weight)]
    n = len(shapes[0]) - 2
    usual = {"stride": (1,) * n, "padding": ((0, 0),) * n, "dilation": (1,) * n, "groups": groups}
    usual |= {"output_padding": (0,) * n} if op is ops.conv_transpose else {}
    operands = (*(rng.standard_normal(s).astype(np.float32) for s in shapes), None)
    return Sample(op, operands, usual | attrs, id, True)


# convolutions that TensorFlow's kernels refuse, or refuse to differentiate, each in its own way
CONVOLUTIONS = [
    _conv("grouped-dilated", "2 4 9 8", "6 2 3 2", groups=2, dilation=(2, 3)),
    _conv("strided-dilated", "2 4 9 11", "5 4 3 2", stride=(2, 1), dilation=(2, 3)),
    _conv("depthwise-doubled", "2 3 9 8", "6 1 3 2", groups=3, padding=((1, 0), (0, 1))),
    _conv("depthwise-two-strides", "2 3 9 8", "3 1 3 2", groups=3, stride=(2, 3)),
    _conv("depthwise-strided-dilated", "2 3 9 8", "3 1 3 2", groups=3, stride=(2, 2), dilation=(2, 2)),
    _conv("depthwise-1d-dilated", "2 3 11", "3 1 3", groups=3, dilation=(2,)),
    _conv("depthwise-1d-large", "2 3 90", "3 1 70", groups=3, stride=(3,)),
    _conv("3d", "2 3 5 6 7", "4 3 2 3 2", stride=(1, 2, 1), padding=((1, 0), (0, 0), (0, 1))),
    _conv("3d-grouped-dilated", "2 4 5 6 7", "4 2 2 3 2", groups=2, dilation=(2, 1, 3)),
    _conv("3d-depthwise", "2 3 5 6 4", "3 1 2 3 2", groups=3),
    _conv("transposed-depthwise", "2 3 5 4", "3 1 3 2", groups=3, stride=(2, 2), op=ops.conv_transpose),
    _conv("transposed-3d", "2 3 3 4 2", "3 5 2 3 2", stride=(1, 2, 1), op=ops.conv_transpose),
    _conv("transposed-more-output", "2 3 5", "3 4 3", dilation=(3,), output_padding=(2,), op=ops.conv_transpose),
]


def test_every_op_has_a_rule_or_a_decomposition():
    assert [op.name for op in OPS.values() if op not in TF.rules and op.decomposition is None] == []


class Job:
    """A sample as a function of tensors that gives values and, where it is differentiable, gradients of a weighted sum of them."""

    def __init__(self, sample: Sample, symbolic: bool, table: TensorflowTable):
        self.sample, self.table = sample, table
        self.graph = sample_graph(sample, symbolic)
        self.low = lower(self.graph, table)
        self.arrays = sample.inputs(symbolic)
        self.truth = reference(self.graph, self.arrays)
        rng = np.random.default_rng(7)
        self.weigh = {k: rng.standard_normal(x.shape) for k, x in self.truth.items() if x.dtype.kind == "f"} if sample.gradient else {}
        self.step = {v.name: rng.standard_normal(self.arrays[v.name].shape) for v in self.low.inputs if v.type.dtype == "f32" and v.name != "carrier"}

    def dtype(self, dtype: str) -> Any:
        return DTYPES[self.table.float if dtype == "f32" else dtype]

    @property
    def tensors(self) -> list[Any]:
        return [tf.cast(self.arrays[v.name], self.dtype(v.type.dtype)) for v in self.low.inputs]

    @property
    def spec(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec(static_shape(v.shape), self.dtype(v.type.dtype)) for v in self.low.inputs]

    def __call__(self, tensors: Sequence[Any]) -> dict[str, Any]:
        return run(self.low, self.table, dict(zip(self.low.inputs, tensors, strict=True)))

    def weighted(self, values: dict[str, Any]) -> Any:
        return sum(tf.reduce_sum(values[k] * tf.cast(w, values[k].dtype)) for k, w in self.weigh.items())

    def check(self, values: dict[str, Any], gradients: dict[str, Any]) -> None:
        """Values against the reference, gradients against its slope along a random direction of all operands."""
        for k, x in self.truth.items():
            close(values[k], x, TOLERANCE[self.table.float], f"{self.sample} {k}")
            assert values[k].dtype == self.dtype(self.graph.outputs[k].type.dtype)
        if self.weigh:
            ours = sum(float((np.asarray(gradients[k], np.float64) * d).sum()) for k, d in self.step.items())
            size = sum(float(np.abs(np.asarray(gradients[k], np.float64) * d).sum()) for k, d in self.step.items())
            limit = 1e-6 if self.table.float == "f64" else 1e-4
            assert ours == pytest.approx(self.slope(), abs=limit * (size + 0.1)), self.sample

    def slope(self, h: float = 1e-5) -> float:
        def value(t: float) -> float:
            moved = {k: x.astype(np.float64) + t * self.step[k] if k in self.step else x for k, x in self.arrays.items()}
            made = reference(self.graph, moved)
            return sum(float((made[k] * w).sum()) for k, w in self.weigh.items())

        return (value(h) - value(-h)) / (2 * h)


def evaluate(jobs: list[Job], function: Any) -> None:
    """Checks jobs that one function of all their tensors computes, under a tape as in training."""
    xss = [job.tensors for job in jobs]
    with tf.GradientTape() as tape:
        tape.watch(xss)
        values = function(xss)
        total = sum(job.weighted(v) for job, v in zip(jobs, values, strict=True))
    made = tape.gradient(total, xss, unconnected_gradients=tf.UnconnectedGradients.ZERO) if any(job.weigh for job in jobs) else xss
    for job, v, gradients in zip(jobs, values, made, strict=True):
        dense = {x.name: tf.convert_to_tensor(g) for x, g in zip(job.low.inputs, gradients, strict=True)}  # of a lookup it is a sparse one
        job.check(v, dense)


@pytest.mark.parametrize("sample", [*SAMPLES, *CONVOLUTIONS], ids=repr)
def test_values_and_gradients(sample: Sample):
    job = Job(sample, False, TF.in_float("f64"))
    evaluate([job], lambda xss: [job(xss[0])])


def _families() -> dict[str, list[Sample]]:
    """Samples by op, for one compilation each; of those that are decomposed a few stand for all."""
    families: dict[str, list[Sample]] = {}
    for sample in SAMPLES:
        rows = families.setdefault(sample.op.name, [])
        native = sample.op in {n.op for n in lower(sample_graph(sample), TF).live()}
        if native or len(rows) < 3:
            rows.append(sample)
    return families


FAMILIES = {**_families(), "convolutions": CONVOLUTIONS}


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_with_symbolic_sizes(family: str, table: TensorflowTable):
    jobs = [Job(s, bool(s.types), table) for s in FAMILIES[family]]
    compute = lambda xss: [job(xs) for job, xs in zip(jobs, xss, strict=True)]
    function = tf.function(compute, input_signature=[[job.spec for job in jobs]], autograph=False, jit_compile=table is TF_XLA)
    evaluate(jobs, lambda xss: function.get_concrete_function()(*[x for xs in xss for x in xs]))


def compute(table: TensorflowTable, build: Any, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of the graph that `build(**values)` makes, all sizes left open, by that table's way of compiling."""
    graph = graph_of(build, **arrays)
    function = as_function(graph, {}, table, jit_compile=table.rules[ops.conv] is TF_XLA.rules[ops.conv])
    made = function.get_concrete_function()(*[tf.constant(arrays[v.name]) for v in graph.inputs])
    return {k: x.numpy() for k, x in made.items()}


def graph_of(build: Any, **arrays: np.ndarray) -> Graph:
    graph = Graph()
    names = {np.dtype(t.as_numpy_dtype): name for name, t in DTYPES.items()}
    with graph.tracing():
        values = {k: graph.input(k, f"{names[x.dtype]}[{' '.join(f'{k}{i}' for i in range(x.ndim))}]") for k, x in arrays.items()}
        graph.outputs = build(**values)
    return graph


@both
def test_equals_keep_their_order_in_long_rows_and_zero_has_no_sign(table: TensorflowTable):
    def build(x):
        values, places = ops.top_k(x, k=3000)
        order = {"order": ops.argsort(x), "down": ops.argsort(x, descending=True)}
        return {"values": values, "places": places, **order, "most": ops.argmax(x, axis=0), "least": ops.argmin(x, axis=0)}

    x = np.random.default_rng(0).integers(0, 5, 5000).astype(np.float32)
    x[x == 0] *= np.where(np.arange((x == 0).sum()) % 2, 1, -1)
    for k, truth in reference(graph_of(build, x=x), {"x": x}).items():
        np.testing.assert_array_equal(compute(table, build, x=x)[k], truth, err_msg=k)


@both
def test_nearest_neighbours_are_found_in_integers(table: TensorflowTable):
    news = (49, 82, 98, 103)
    for old in (2, 7, 41):
        x = np.arange(old, dtype=np.float32)[None, None]
        made = compute(table, lambda x: {str(new): ops.resize(x, sizes=(new,)) for new in news}, x=x)
        for new in news:
            np.testing.assert_array_equal(made[str(new)][0, 0], np.arange(new) * old // new)


def test_sizes_that_tensorflow_loses_are_known_from_the_graph():
    graph = graph_of(lambda x: {"y": ops.slice_(x, axis=1, start=x.shape[1] - 4, stop=x.shape[1])}, x=np.zeros((2, 9), np.float32))
    assert as_function(graph, {}).get_concrete_function().output_shapes["y"].as_list() == [None, 4]


@both
def test_products_whose_sizes_are_all_open(table: TensorflowTable):
    x = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    close(compute(table, lambda x: {"y": ops.linear(x, x)}, x=x)["y"], x @ x.T, TOLERANCE["f32"])


@pytest.mark.parametrize("float", ["f32", "bf16", "f16"])
def test_a_row_that_sees_no_key_is_zero_and_so_is_its_gradient(float: str):
    sample = next(s for s in SAMPLES if s.id == "attention-mask-rows")
    job = Job(sample, False, TF.in_float(float))
    q, k, v, mask = job.tensors
    with tf.GradientTape() as tape:
        tape.watch((q, k, v))
        y = job((q, k, v, mask))["y0"]
    gradients = tape.gradient(y, (q, k, v))
    blind = np.logical_not(mask.numpy().any(-1))[:, 0]
    assert blind.any()
    wide = [np.asarray(x, np.float64) for x in (y, *gradients)]
    close(wide[0], job.truth["y0"], TOLERANCE[float])
    for x in wide[:2]:
        assert not x.swapaxes(1, 2)[blind].any()
    assert all(np.isfinite(x).all() for x in wide)


@pytest.mark.parametrize("id", ["ctc_loss-repeated", "conv-2d-groups", "gelu-0", "layer_norm-0", "resize-linear-up", "sort-float"])
@pytest.mark.parametrize("float", ["bf16", "f16"])
def test_narrow_floats(id: str, float: str):
    job = Job(next(s for s in SAMPLES if s.id == id), False, TF.in_float(float))
    made = job(job.tensors)
    for k, x in job.truth.items():
        assert made[k].dtype == job.dtype(job.graph.outputs[k].type.dtype)
        close(tf.cast(made[k], tf.float64), x, TOLERANCE[float])


@pytest.mark.parametrize("sample", RANDOM_SAMPLES, ids=repr)
def test_random_numbers(sample: Sample):
    graph = sample_graph(sample)
    tensors = [tf.constant(sample.inputs()[v.name]) for v in graph.inputs]
    plain, compiled = (as_function(graph, {}, t, jit_compile=t is TF_XLA).get_concrete_function()(*tensors)["y0"] for t in (TF, TF_XLA))
    close(plain, compiled, TOLERANCE["f32"])  # one generator
    other = as_function(graph, {}).get_concrete_function()(*tensors[:-1], tensors[-1] + 1)["y0"]
    assert not np.allclose(plain, other)
    if sample.op is ops.dropout:
        assert set(np.unique(plain)) == {0, np.float32(1 / (1 - sample.attrs["rate"]))}
        assert float(tf.reduce_mean(plain)) == pytest.approx(1, abs=0.05)
    elif sample.op is ops.random_uniform:
        assert 0 <= float(tf.reduce_min(plain)) < 0.01
        assert 0.99 < float(tf.reduce_max(plain)) < 1
        assert float(tf.reduce_mean(plain)) == pytest.approx(0.5, abs=0.05)


def test_draws_of_one_key_differ_by_site():
    def build(key):
        return {str(site): ops.random_uniform(key, shape=(1000,), site=site) for site in range(3)}

    drawn = list(compute(TF, build, key=np.array([1, 2], np.uint32)).values())
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.15
