"""Every op: its type rule, its reference, its decomposition and its errors; references are held against PyTorch in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_samples import RANDOM_SAMPLES, SAMPLES, SIZES, Sample, sample_graph

from interlingua.ir import ops
from interlingua.ir.errors import InterlinguaError, ShapeError
from interlingua.ir.graph import Graph
from interlingua.ir.op import OPS
from interlingua.ir.ops.numeric import erf
from interlingua.ir.reference import reference
from interlingua.ir.sizes import bind
from interlingua.ir.table import Table, lower
from interlingua.ir.types import NUMPY_DTYPES, Type

EVERY = [*SAMPLES, *RANDOM_SAMPLES]
PRIMITIVES = Table("primitives", {op: op.reference for op in OPS.values() if op.decomposition is None})
both = pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=repr)


def test_every_op_has_a_sample():
    assert set(OPS) - {s.op.name for s in SAMPLES} == {"random_uniform"}  # its numbers are the target's own; its statistics are tested below
    assert len({s.id for s in EVERY}) == len(EVERY)


def test_every_op_says_what_it_means():
    assert [op.name for op in OPS.values() if not (op.__doc__ or "").strip().endswith(".")] == []


def same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal up to float64 rounding, and of equal dtypes."""
    assert actual.keys() == expected.keys()
    for k in expected:
        assert actual[k].dtype == expected[k].dtype
        np.testing.assert_allclose(actual[k], expected[k], rtol=1e-12, atol=1e-12, err_msg=k)


@both
@pytest.mark.parametrize("sample", EVERY, ids=repr)
def test_the_type_rule_says_what_the_reference_gives(sample: Sample, symbolic: bool):
    graph = sample_graph(sample, symbolic)
    found = reference(graph, sample.inputs(symbolic), float="f32")
    for name, value in graph.outputs.items():
        assert found[name].shape == bind(value.shape, SIZES)
        assert found[name].dtype == NUMPY_DTYPES[value.type.dtype]


@both
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.op.decomposition], ids=repr)
def test_a_decomposition_means_its_op(sample: Sample, symbolic: bool):
    graph = sample_graph(sample, symbolic)
    lowered = lower(graph, PRIMITIVES)
    assert all(n.op.decomposition is None for n in lowered.live())
    assert {k: v.type for k, v in lowered.outputs.items()} == {k: v.type for k, v in graph.outputs.items()}
    same(reference(lowered, sample.inputs(symbolic)), reference(graph, sample.inputs(symbolic)))


@every_sample
def test_symbolic_and_static_samples_mean_the_same(sample: Sample):
    same(reference(sample_graph(sample, True), sample.inputs(True)), reference(sample_graph(sample), sample.inputs()))


@pytest.mark.parametrize("sample", [s for s in SAMPLES if sum(x is not None and x.dtype == np.float32 for x in s.operands) > 1], ids=repr)
def test_no_op_mixes_dtypes(sample: Sample):
    types = [None if x is None else Type.of(x) for x in sample.operands]
    for i in [i for i, t in enumerate(types) if t is not None and t.dtype == "f32"]:
        mixed = [Type("f16", t.shape) if t is not None and j == i else t for j, t in enumerate(types)]
        graph = Graph()
        values = [None if t is None else graph.input(f"x{j}", t) for j, t in enumerate(mixed)]
        with graph.tracing(), pytest.raises(ShapeError, match=r"f16|f32"):
            sample.op(*values, **sample.attrs)


# ---- errors -------------------------------------------------------------------------------------

REFUSED: list[tuple[str, Callable[..., Any], list[str], str]] = [
    ("exp of integers", ops.exp, ["i64[2]"], "x is i64, expected float"),
    ("division of integers", ops.div, ["i64[2]", "i64[2]"], "x is i64, expected float"),
    ("floor division of floats", ops.floor_divide, ["f32[2]", "f32[2]"], "x is f32, expected int"),
    ("a test that is a number", ops.where, ["f32[2]", "f32[2]", "f32[2]"], "test is f32, expected bool"),
    ("logic on numbers", ops.and_, ["i64[2]", "i64[2]"], "x is i64, expected bool"),
    ("a float added to integers", lambda x: x + 0.5, ["i64[2]"], r"the number 0.5 is not of dtype i64; cast first"),
    ("sizes that do not broadcast", ops.add, ["f32[2 3]", "f32[2]"], "3 does not broadcast with 2"),
    ("names that do not broadcast", ops.add, ["f32[n]", "f32[m]"], "n does not broadcast with m"),
    ("a mean of integers", lambda x: ops.mean(x, axis=0), ["i64[2]"], r"x is i64\[2\], expected float"),
    ("a sum of truths", lambda x: ops.sum(x, axis=0), ["bool[2]"], r"x is bool\[2\], expected numbers"),
    ("an axis too far", lambda x: ops.max(x, axis=2), ["f32[2 3]"], r"axis=2 is none of f32\[2 3\]"),
    ("a weight of another width", ops.linear, ["f32[2 5]", "f32[7 4]"], "weight has k=4, expected 5"),
    ("a bias of another width", ops.linear, ["f32[2 4]", "f32[7 4]", "f32[4]"], "bias has m=4, expected 7"),
    ("a scale of another width", lambda x, s: ops.layer_norm(x, s, eps=1e-5), ["f32[b s 768]", "f32[512]"], "scale has n=512, expected 768"),
    ("a scalar that is normed", lambda x: ops.layer_norm(x, eps=1e-5), ["f32[]"], r"x has rank 0, expected \[\*b n\]"),
    ("a float index", ops.take, ["f32[5 2]", "f32[3]"], "index is f32.*expected an integer dtype"),
    ("an axis from the right", lambda x, i: ops.take(x, i, axis=-1), ["f32[5 2]", "i64[3]"], "axis=-1 is none of"),
    ("indices of another shape", lambda x, i: ops.gather(x, i, axis=1), ["f32[2 5]", "i64[3 4]"], "expected the sizes of"),
    ("new values of another shape", lambda *x: ops.scatter(*x, axis=1),
     ["f32[2 5]", "i64[2 3]", "f32[2 4]"], r"new is f32\[2 4\], expected f32\[2 3\]"),
    ("an unknown reduction", lambda *x: ops.scatter(*x, axis=1, reduce="max"),
     ["f32[2 5]", "i64[2 3]", "f32[2 3]"], "reduce='max', expected 'set' or 'add'"),
    ("a reshape to another size", lambda x: ops.reshape(x, shape=(7,)), ["f32[2 3]"], r"f32\[2 3\] has not the size of \[7\]"),
    ("an order that drops an axis", lambda x: ops.transpose(x, perm=(0, 0)), ["f32[2 3]"], r"perm=\(0, 0\) does not order the axes"),
    ("parts that are too few", lambda x: ops.split(x, axis=0, sizes=(1, 1)), ["f32[3]"], r"parts \(1, 1\) do not make up axis 0"),
    ("one part", lambda x: ops.split(x, axis=0, sizes=(3,)), ["f32[3]"], r"parts \(3,\), expected two or more"),
    ("a slice past the end", lambda x: ops.slice_(x, axis=0, start=1, stop=5), ["f32[3]"], "stop=5 lies beyond axis 0"),
    ("a slice backwards", lambda x: ops.slice_(x, axis=0, start=2, stop=1), ["f32[3]"], "start=2 lies behind stop=1"),
    ("a slice from the right", lambda x: ops.slice_(x, axis=0, start=-2, stop=3), ["f32[3]"], "start=-2 counts from the left"),
    ("a window too wide", lambda x, i: ops.window(x, i, axis=0, length=4), ["f32[3]", "i64[]"], "length=4 exceeds axis 0"),
    ("an update of other sizes", lambda *x: ops.update(*x, axis=0), ["f32[5 2]", "f32[3 4]", "i64[]"], r"new is f32\[3 4\], expected the sizes of"),
    ("a fractional start", lambda *x: ops.update(*x, axis=0), ["f32[5]", "f32[3]", "f32[]"], r"start is f32\[\], expected an integer without axes"),
    ("a mirror too deep", lambda x: ops.pad(x, low=(3,), high=(0,), mode="reflect"), ["f32[3]"], "too short to be mirrored"),
    ("an unknown padding", lambda x: ops.pad(x, low=(3,), high=(0,), mode="wrap"), ["f32[3]"], "mode='wrap', expected"),
    ("a roll by too much", lambda x: ops.roll(x, axis=0, shift=4), ["f32[3]"], "shift=4, expected 0 to 3"),
    ("more than there are", lambda x: ops.top_k(x, k=4), ["f32[3]"], "k=4 exceeds the last size 3"),
    ("unequal joints", lambda *x: ops.concat(*x, axis=0), ["f32[2 3]", "f32[2 4]"], r"operand 1 is f32\[2 4\], expected the sizes of"),
    ("joints of two dtypes", lambda *x: ops.concat(*x, axis=0), ["f32[2]", "i64[2]"], r"operand 1 is i64\[2\], expected f32"),
    ("heads that do not group", lambda *x: ops.attention(*x, scale=1.0),
     ["f32[6 s d]", "f32[4 t d]", "f32[4 t d]"], "q has 6 heads, expected a multiple of the 4"),
    ("values of other keys", lambda *x: ops.attention(*x, scale=1.0), ["f32[4 s d]", "f32[4 t d]", "f32[4 r d]"], "v has k=r, expected t"),
    ("a mask of numbers", lambda *x: ops.attention(*x, scale=1.0), [*["f32[4 s d]"] * 3, "f32[1 s s]"], "mask is f32, expected bool"),
    ("dropout without a key", lambda *x: ops.attention(*x, scale=1.0, dropout=0.1), ["f32[4 s d]"] * 3, "key is missing"),
    ("an odd width turned", lambda *x: ops.rotary(*x), ["f32[2 s 5]", "f32[s 2]", "f32[s 2]"], "expected an even last size"),
    ("angles of more rows", lambda *x: ops.rotary(*x), ["f32[1 s 4]", "f32[2 s 2]", "f32[2 s 2]"], "expected to broadcast|does not broadcast"),
    ("a kernel too large", lambda *x: ops.conv(*x, stride=(1,), padding=((0, 0),), dilation=(3,)),
     ["f32[1 2 6]", "f32[4 2 3]"], "too small for a kernel of 3"),
    ("one stride for two axes", lambda *x: ops.conv(*x, stride=(1,), padding=((0, 0),) * 2, dilation=(1, 1)),
     ["f32[1 2 6 6]", "f32[4 2 3 3]"], "stride=.* has 1 entries"),
    ("channels that do not fit", lambda *x: ops.conv(*x, stride=(1,), padding=((0, 0),), dilation=(1,)),
     ["f32[1 3 6]", "f32[4 2 3]"], "x has 3 channels, expected 2 x 1 groups"),
    ("pooled integers", lambda x: ops.max_pool(x, kernel=(2,), stride=(1,), padding=((0, 0),)), ["i64[1 3 6]"], "expected float"),
    ("an unknown resampling", lambda x: ops.resize(x, sizes=(3,), mode="area"), ["f32[1 3 6]"], "mode='area', expected"),
    ("groups that do not divide", lambda *x: ops.group_norm(*x, groups=4, eps=1e-5),
     ["f32[1 6 5]", "f32[6]", "f32[6]"], "6 channels do not divide into 4 groups"),
    ("statistics of other channels", lambda *x: ops.batch_norm(*x, eps=1e-5),
     ["f32[1 6 5]", *["f32[6]"] * 3, "f32[5]"], r"variance is f32\[5\], expected \[6\]"),
    ("a missing operand", lambda x: ops.add(x), ["f32[2]"], "missing a required argument: 'y'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "types", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_op_refuses_what_does_not_fit(call: Callable[..., Any], types: list[str], message: str):
    graph = Graph()
    values = [graph.input(f"x{i}", t) for i, t in enumerate(types)]
    with graph.tracing(), pytest.raises(ShapeError, match=message):
        call(*values)


def test_a_type_error_names_operands_and_place():
    graph = Graph()
    x, weight = graph.input("x", "f32[batch 4]"), graph.input("weight", "f32[8 5]")
    graph.path = "blocks.0.mlp"
    with graph.tracing(), pytest.raises(ShapeError) as error:
        ops.linear(x, weight)
    lines = str(error.value).splitlines()
    assert lines[:3] == ["linear: weight has k=5, expected 4", "  x: f32[batch 4]  x", "  weight: f32[8 5]  weight"]
    assert lines[3].startswith("  in: blocks.0.mlp (tests/test_ops.py:")


def test_an_op_outside_of_a_trace_says_so():
    with pytest.raises(InterlinguaError, match="outside of a trace"):
        ops.iota(size=3)


# ---- randomness ---------------------------------------------------------------------------------


def test_random_numbers_are_uniform_and_follow_key_and_site():
    draw = lambda key, site: ops.random_uniform.reference(np.array(key, np.uint32), shape=(20000,), site=site)
    x = draw([3, 5], 0)
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 0.5) < 4 / math.sqrt(12 * x.size)
    assert np.abs(np.histogram(x, 10, (0, 1))[0] / x.size - 0.1).max() < 0.02
    np.testing.assert_array_equal(x, draw([3, 5], 0))
    for other in (draw([3, 5], 1), draw([3, 6], 0), draw([4, 5], 0)):
        assert abs(np.corrcoef(x, other)[0, 1]) < 0.05


@pytest.mark.parametrize("sample", [s for s in RANDOM_SAMPLES if "rate" in s.attrs], ids=repr)
def test_dropout_drops_a_share_and_keeps_the_mean(sample: Sample):
    lowered = lower(sample_graph(sample), PRIMITIVES)
    for graph in (sample_graph(sample), lowered):
        y = reference(graph, sample.inputs())["y0"]
        rate = sample.attrs["rate"]
        assert set(np.unique(y).tolist()) == {0.0, 1 / (1 - rate)}
        assert abs((y == 0).mean() - rate) < 4 * math.sqrt(rate * (1 - rate) / y.size)
    same(reference(lowered, sample.inputs()), reference(sample_graph(sample), sample.inputs()))


def test_attention_dropout_drops_weights():
    (sample,) = [s for s in RANDOM_SAMPLES if s.op is ops.attention]
    q, k, _, *_, key = sample.operands
    plain = ops.attention_weights.reference(q, k, scale=sample.attrs["scale"])
    # values that are the identity show the weights
    eye = np.broadcast_to(np.eye(k.shape[-2]), (*k.shape[:-1], k.shape[-2]))
    found = ops.attention.reference(q, k, eye, key=key, **sample.attrs)
    dropped = found == 0
    assert 0.1 < dropped.mean() < 0.4
    np.testing.assert_allclose(found[~dropped], plain[~dropped] / (1 - sample.attrs["dropout"]), rtol=1e-6)
    lowered = reference(lower(sample_graph(sample), PRIMITIVES), sample.inputs())
    same(lowered, reference(sample_graph(sample), sample.inputs()))


# ---- an independent truth -----------------------------------------------------------------------


def test_erf_is_exact_to_float64():
    x = np.concatenate([np.linspace(-7, 7, 4001), np.array([0.0, -0.0, 1e-300, 1e-10, 0.5, 27.0, np.inf, -np.inf])])
    np.testing.assert_allclose(erf(x), [math.erf(a) for a in x], rtol=5e-16, atol=0)


NOT_IN_TORCH = {"cast", "constant", "literal", "size", "iota", "dropout", "one_hot"}  # leaves and changes of dtype


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.op.name not in NOT_IN_TORCH], ids=repr)
def test_a_reference_agrees_with_torch(sample: Sample):
    torch = pytest.importorskip("torch")
    from torch_truth import TRUTH

    wide = [None if x is None else x.astype(np.float64) if x.dtype == np.float32 else x for x in sample.operands]
    expected = TRUTH[sample.op.name](*[None if x is None else torch.tensor(x) for x in wide], **sample.attrs)
    expected = expected if isinstance(expected, (tuple, list)) else (expected,)
    found = reference(sample_graph(sample), sample.inputs())
    for y, want in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(y, want.numpy(), rtol=1e-11, atol=1e-12)


def test_one_hot_and_cast_by_hand():
    index = np.array([2, -1, 0, 3])
    np.testing.assert_array_equal(ops.one_hot.reference(index, size=3), [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(ops.cast.reference(np.array([-1.7, 0.0, 1.7]), dtype="i64"), [-1, 0, 1])
    np.testing.assert_array_equal(ops.cast.reference(np.array([-1.7, 0.0, 1.7]), dtype="bool"), [True, False, True])


@pytest.mark.parametrize("dtype", ["u8", "i64", "f32", "bool"])
def test_descending_order_holds_for_every_dtype(dtype: str):
    x = np.array([0, 3, 1, 3, 0, 1]).astype(NUMPY_DTYPES[dtype])
    order = sorted(range(6), key=lambda i: -int(x[i]))
    np.testing.assert_array_equal(ops.argsort.reference(x, descending=True), order)
    np.testing.assert_array_equal(ops.top_k.reference(x, k=4)[1], order[:4])


def test_nearest_resampling_takes_whole_steps_exactly():
    for old, new in [(3, 9), (7, 49), (5, 30), (9, 6), (41, 82)]:
        x = np.arange(old, dtype=np.float32)[None, None]
        expected = [i * old // new for i in range(new)]
        np.testing.assert_array_equal(ops.resize.reference(x, sizes=(new,), mode="nearest")[0, 0], expected)
