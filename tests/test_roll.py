"""Repeated blocks as one loop: the same numbers, gradients and draws as block by block, in a graph that does not grow with depth."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import interlingua as il
from interlingua.frontends.jax import as_function, evaluate, weights_of
from interlingua.frontends.jax_table import JAX
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import ShapeError, UsageError
from interlingua.ir.graph import Graph, Param, Value
from interlingua.ir.initialize import initialize
from interlingua.ir.layer import Layer
from interlingua.ir.layers import Dropout, LayerNorm, Linear
from interlingua.ir.op import OPS
from interlingua.ir.passes import optimize
from interlingua.ir.passes.roll import roll
from interlingua.ir.reference import reference
from interlingua.ir.table import Table, lower
from interlingua.ir.text import parse_graph, print_graph
from interlingua.ir.weights import ArrayWeights
from interlingua.model import Model
from interlingua.runtime.samples import make_samples

Arrays = dict[str, Any]
UNROLLED = Table("no loop", {op: op.reference for op in OPS.values() if op is not ops.loop})

_TEXT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20, "vocab_size": 40}
_IMAGE = {**_TEXT, "image_size": 16, "patch_size": 8}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {**_TEXT, "max_position_embeddings": 24}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 20, "num_layers": 3, "num_heads": 2, "num_decoder_layers": 4},
    ),
    "vit": ("ViTForImageClassification", _IMAGE),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 6], "num_heads": [2, 2], "window_size": 2},
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {**_TEXT, "num_hidden_layers": 4, "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2]}
        | {"num_conv_pos_embeddings": 7, "num_conv_pos_embedding_groups": 2},
    ),
    "resnet": ("ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [3, 4], "layer_type": "basic"}),
}


@functools.cache
def model(kind: str, **changes: Any) -> Model:
    head, config = CONFIGS[kind]
    return il.from_config({"model_type": kind, **config, **{k: list(x) if isinstance(x, tuple) else x for k, x in changes.items()}}, head, seed=3)


def loops(graph: Graph) -> dict[str, int]:
    """Path and count of each loop."""
    return {n.path: n.attrs["count"] for n in graph.live() if n.op is ops.loop}


def summary(graph: Graph) -> Counter[Any]:
    """What there is to compute, and where: ops, layer paths and attributes, in no order."""
    return Counter((n.op.name, n.path, str(sorted(n.attrs.items(), key=str)), str([v.type for v in n.outputs])) for n in graph.live())


def check(graph: Graph, weights: Any, feeds: list[Arrays]) -> Graph:
    """The rolled graph: as `optimize` wants a pass to be, equal in float64, the same when unrolled, and equal to its text."""
    rolled = optimize(graph, [roll])
    assert list(rolled.outputs) == list(graph.outputs)
    assert summary(lower(rolled, UNROLLED)) == summary(graph)
    text = print_graph(rolled)
    assert print_graph(parse_graph(text)) == text
    for feed in feeds:
        found, expected = reference(rolled, feed, weights), reference(graph, feed, weights)
        for name in expected:
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, atol=1e-12, err_msg=name)
    return rolled


ROWS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("bert", {}, {"body.blocks": 3}),
    ("bert", {"training": True}, {"body.blocks": 3}),
    ("gpt2", {"outputs": ["*"]}, {"body.blocks": 4}),
    ("gpt2", {"outputs": ["logits", "hidden_states.2"]}, {"body.blocks": 4}),
    ("gpt2", {"cache": "growing"}, {"body.blocks": 4}),
    ("t5", {"outputs": ["*"]}, {"body.encoder.blocks": 3, "body.decoder.blocks": 4}),
    ("t5", {"training": True}, {"body.encoder.blocks": 3, "body.decoder.blocks": 4}),
    ("vit", {}, {"body.blocks": 3}),
    ("swin", {}, {"body.encoder.stages.1": 3}),  # pairs of blocks: every second one shifts its windows
    ("swin", {"training": True}, {"body.encoder.stages.1": 3}),
    ("wav2vec2", {}, {"body.blocks": 4}),
    ("wav2vec2", {"training": True}, {"body.blocks": 3}),  # the choice to skip the last block leads to no other block
    ("resnet", {}, {"body.stages.1": 3}),  # the first block of a stage has a shortcut of its own where the width changes
    ("resnet", {"training": True}, {"body.stages.0": 3, "body.stages.1": 3}),
]


@pytest.mark.parametrize(
    ("kind", "options", "expected"), ROWS, ids=[f"{k}-{'-'.join(map(str, o)) or 'plain'}-{i}" for i, (k, o, _) in enumerate(ROWS)]
)
def test_rolled_means_unrolled(kind: str, options: dict[str, Any], expected: dict[str, int]):
    source = model(kind)
    graph = source.graph(**options)
    feeds = [sample.arrays for sample in make_samples(graph, source.config)]
    assert expected.items() <= loops(check(graph, source.weights, feeds)).items()


# ---- what makes a loop, and what does not -------------------------------------------------------


OFFSET = Param(6)


class Stack(Layer):
    """Blocks in a row, on x [rows 6]."""

    def __init__(self, blocks: list[Layer], each: bool = False):
        self.blocks, self.each, self.offset = blocks, each, OFFSET

    def forward(self, x):
        states = [ops.sin(x)]
        for block in self.blocks:
            states.append(block(*states) if self.each else block(states[-1]))
        return {"output": states[-1], "states": states[1:]}


class Block(Layer):
    """What `function(self, x, ...)` makes of x, with a norm, a linear layer and a number for each block."""

    def __init__(self, function: Any, number: float = 1.0, n: int = 6):
        self.norm, self.linear, self.function, self.number = LayerNorm(n, 1e-5), Linear(n, n), function, number

    def forward(self, *xs):
        return self.function(self, *xs)


def stack(function: Any, count: int = 4, each: bool = False, **options: Any) -> Definition:
    layer = Stack([Block(function, 1 / (i + 2)) for i in range(count)], each)
    made = Definition(layer, {"x": "f32[rows 6]"}, ArrayWeights({}), name="Stack", **options)
    made.weights = ArrayWeights({k: x + 0.1 for k, x in initialize(made.params, 1).items()})
    return made


def residual(block: Block, x: Value) -> Value:
    return x + ops.tanh(block.linear(block.norm(x)))


def feed(rows: int = 3) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal((rows, 6))}


def test_a_loop_reads_as_text():
    rolled = roll(stack(lambda b, x: ops.tanh(b.linear(x)), 3).graph(outputs=["output"]))
    assert (
        print_graph(rolled)
        == """\
inputs
  x: f32[rows 6]
params
  blocks.0.linear.weight: f32[6 6]
  blocks.1.linear.weight: f32[6 6]
  blocks.2.linear.weight: f32[6 6]
  blocks.0.linear.bias: f32[6] init="zeros"
  blocks.1.linear.bias: f32[6] init="zeros"
  blocks.2.linear.bias: f32[6] init="zeros"
nodes
  %0: f32[rows 6] = sin(x)
  %1: f32[rows 6] = loop(%0, blocks.0.linear.weight, blocks.1.linear.weight, blocks.2.linear.weight, blocks.0.linear.bias, blocks.1.linear.bias, \
blocks.2.linear.bias) {carries=1, shared=0, count=3}  # blocks
    inputs
      carried.0: f32[rows 6]
      blocks.*.linear.weight: f32[6 6]
      blocks.*.linear.bias: f32[6]
    nodes
      %0: f32[rows 6] = linear(carried.0, blocks.*.linear.weight, blocks.*.linear.bias)  # blocks.*.linear
      %1: f32[rows 6] = tanh(%0)  # blocks.*
    outputs
      0: %1
outputs
  output: %1
"""
    )


FUNCTIONS: dict[str, tuple[Any, int]] = {
    "residual": (residual, 4),
    "no parameter": (lambda b, x: ops.tanh(x * 0.5), 4),
    "a number of its own": (lambda b, x: residual(b, x * b.number), 4),
    "ops before what is its own": (lambda b, x: residual(b, ops.relu(x) + ops.sin(x)), 4),
    "a parameter for all": (lambda b, x: residual(b, x + OFFSET), 4),
    "two ways": (lambda b, x: ops.concat(*ops.split(residual(b, x), axis=1, sizes=(2, 4)), axis=1), 4),
    "shared with the first": (lambda b, x: residual(b, x) + ops.broadcast_to(ops.cast(ops.iota(size=6), dtype="f32"), shape=x.shape), 4),
    "sizes that nothing in the block shows": (lambda b, x: residual(b, x) * ops.size(value=x.shape[0] * 2, dtype="f32"), 4),
    "alternating": (lambda b, x: ops.sigmoid(residual(b, x)) if round(1 / b.number) % 2 else residual(b, x), 0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_block_may_do(name: str):
    function, count = FUNCTIONS[name]
    source = stack(function)
    graph = source.graph(outputs=["*"])
    rolled = check(graph, source.weights, [feed()])
    assert loops(rolled) == ({"blocks": count} if count else {})
    if not count:
        assert rolled is graph


def test_alternating_blocks_are_rolled_in_pairs():
    source = stack(FUNCTIONS["alternating"][0], 7)
    rolled = check(source.graph(), source.weights, [feed()])
    (loop,) = (n for n in rolled.live() if n.op is ops.loop)
    assert loop.attrs["count"] == 3
    assert {n.path for n in loop.attrs["body"].live()} == {f"blocks.2*{i}{rest}" for i in ("", "+1") for rest in ("", ".norm", ".linear")}
    assert {n.path for n in rolled.live()} == {"", "blocks", "blocks.6", "blocks.6.norm", "blocks.6.linear"}


def test_what_later_blocks_read_is_no_part_of_the_first():
    """Each block reads the state before it and the first one's result, which is computed before the loop."""
    source = stack(lambda b, *xs: residual(b, xs[-1]) + (0.5 * xs[1] if len(xs) > 1 else 0.0), 6, each=True)
    rolled = check(source.graph(outputs=["*"]), source.weights, [feed()])
    assert loops(rolled) == {"blocks": 5}


def test_blocks_that_read_all_earlier_ones_stay_as_they_are():
    source = stack(lambda b, *xs: residual(b, sum(x * (0.5 / (len(xs) - i)) for i, x in enumerate(xs))), 6, each=True)
    graph = source.graph()
    assert roll(graph) is graph


def test_fewer_than_three_blocks_stay_as_they_are():
    graph = stack(residual, 2).graph()
    assert roll(graph) is graph
    graph = model("gpt2").graph(outputs=["logits", "attentions.1"])  # one block has more to do than its neighbours
    assert roll(graph) is graph


def test_random_blocks():
    """Blocks of random ops on two values, some shared, some of their own."""
    unary = [ops.tanh, ops.sigmoid, ops.relu, ops.gelu, ops.softmax]
    binary = [ops.add, ops.mul, ops.maximum]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        plan = [(rng.integers(4), rng.integers(5), rng.integers(100), rng.integers(100)) for _ in range(8)]

        def function(block: Block, x: Value, plan: Any = plan) -> Value:
            values = [block.linear(x), x, x * block.number]
            for kind, which, i, j in plan:
                a, b = values[i % len(values)], values[j % len(values)]
                made = [unary[which], block.linear, block.norm, functools.partial(binary[which % 3], b)][kind](a)
                values.append(made)
            return values[-1] + block.norm(values[-2])

        source = stack(function, 3 + seed % 3)
        rolled = check(source.graph(outputs=["*"] if seed % 2 else ["output"]), source.weights, [feed()])
        assert sum(loops(rolled).values()) >= 3, seed


def test_the_graph_does_not_grow_with_depth():
    """What stands for compile time: nodes of the graph, and equations of its gradient in JAX."""
    counts = []
    for depth in (12, 24):
        source = model("gpt2", n_layer=depth)
        rolled = roll(source.graph(outputs=["*"]))
        fn, params = as_function(source, outputs=["logits"], roll=True)
        ids = jnp.zeros((1, 5), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda p, fn=fn, ids=ids: fn(p, input_ids=ids)["logits"].sum())(params)
        body = next(n.attrs["body"] for n in rolled.live() if n.op is ops.loop)
        counts.append((len(rolled.live()), len(body.live()), len(jaxpr.eqns)))
    assert counts[0] == counts[1]


# ---- the op ---------------------------------------------------------------------------------------


def body_of(make: Any, *types: str) -> Graph:
    body = Graph()
    with body.tracing():
        made = make(*[body.input(f"x{i}", t) for i, t in enumerate(types)])
    body.outputs = {str(i): v for i, v in enumerate(made)}
    return body


JOINED = body_of(lambda x, y: (ops.concat(x, y, axis=0),), "f32[2]", "f32[2]")
STRAY = body_of(lambda x, y: (x + Param(2),), "f32[2]", "f32[2]")


@pytest.mark.parametrize(
    ("types", "options", "message"),
    [
        (["f32[2]", "f32[2]"], {"count": 3}, r"loop: 2 operands, expected 4: carries, shared ones, and 3 for each other input of body"),
        (["f32[2]", "f32[2]", "f32[3]"], {"count": 2}, r"loop: operand 2 is f32\[3\], expected f32\[2\], which body takes there"),
        (["f32[2]", "f32[2]"], {"count": 0}, r"loop: count=0 and carries=1, expected 1 or more and 0 to 1"),
        (["f32[2]", "f32[2]"], {"count": 1, "body": JOINED}, r"body gives f32\[4\], expected what it carries: f32\[2\]"),
        (["f32[2]", "f32[2]"], {"count": 1, "body": STRAY}, r"body reads a parameter by itself"),
    ],
)  # fmt: skip
def test_a_loop_that_does_not_fit_says_why(types: list[str], options: dict[str, Any], message: str):
    graph, add = Graph(), body_of(lambda x, y: (x + y,), "f32[2]", "f32[2]")
    with graph.tracing(), pytest.raises(ShapeError, match=message):
        ops.loop(*[graph.input(f"x{i}", t) for i, t in enumerate(types)], **{"body": add, "carries": 1, "shared": 0, **options})


def test_errors_in_the_text_of_a_body_name_its_place():
    text = print_graph(roll(stack(lambda b, x: ops.tanh(b.linear(x)), 3).graph(outputs=["output"])))
    line = 1 + text.splitlines().index("      %1: f32[rows 6] = tanh(%0)  # blocks.*")
    with pytest.raises(UsageError, match=rf"line {line}, column 25: op 'tan' is not known; did you mean 'tanh'\?"):
        parse_graph(text.replace("tanh(", "tan("))
    with pytest.raises(UsageError, match=r"line 5, column 5: tanh has no body"):
        parse_graph("inputs\n  x: f32[2]\nnodes\n  %0: f32[2] = tanh(x)\n    inputs\noutputs\n  y: %0\n")


# ---- JAX ------------------------------------------------------------------------------------------

GRADIENTS = [("bert", True), ("gpt2", True), ("t5", False), ("swin", False), ("resnet", True)]  # and whether in training mode

SMALLER: dict[str, dict[str, Any]] = {"swin": {"depths": (6,), "num_heads": (2,)}, "t5": {"num_decoder_layers": 3}}


def inputs_for(source: Model) -> Arrays:
    return make_samples(source.graph([*source.usual, "labels"], ["loss"]), source.config, seed=1)[0].arrays


def loss_and_gradients(source: Model, inputs: Arrays, training: bool, roll: bool) -> tuple[Arrays, Arrays]:
    """The loss (and the new state) and its gradient, in float64; compiled without XLA's slow optimisations."""
    fn, params, *state = as_function(source, outputs=["loss"], training=training, dtype="f64", roll=roll)
    key = [jax.random.key(5)] if training else []

    def loss(params: Arrays) -> tuple[Any, Any]:
        made = fn(params, *state, *key, **inputs)
        out, new = made if training else (made, {})
        return out["loss"], {**out, **new}

    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    (_, made), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quick)(params)
    return weights_of(made), weights_of(gradients)


def close(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for k in expected:
        np.testing.assert_allclose(found[k], expected[k], 1e-8, 1e-10, err_msg=k)


@pytest.mark.parametrize(("kind", "training"), GRADIENTS, ids=str)
def test_gradients_are_those_of_unrolled_blocks(kind: str, training: bool):
    """In training too: each block draws what it drew, so that the two agree with dropout."""
    source = model(kind, **SMALLER.get(kind, {}))
    inputs = inputs_for(source)
    with jax.enable_x64(True):
        (found, slopes), (made, gradients) = (loss_and_gradients(source, inputs, training, roll) for roll in (True, False))
    close(found, made)
    close(slopes, gradients)
    assert max(float(np.abs(g).max()) for g in gradients.values()) > 1e-4


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_rolled_function_runs_in_any_float(dtype: str):
    """Also where numbers differ from block to block: these are Python's, and take the float of the run."""
    source = stack(lambda b, x: residual(b, x * b.number))
    (fn, params), (plain, apart) = as_function(source, dtype=dtype, roll=True), as_function(source, dtype=dtype)
    x = jnp.asarray(feed()["x"], dtype={"f32": "float32", "bf16": "bfloat16"}[dtype])
    found, expected = fn(params, x=x)["output"], plain(apart, x=x)["output"]
    assert found.dtype == expected.dtype == params["blocks.*.linear.weight"].dtype
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=1e-6 if dtype == "f32" else 0.05)


def test_caches_go_through_a_loop_in_jax():
    """What comes in and goes out for each block, by its checkpoint's own parameters."""
    source = model("gpt2")
    graph = source.graph(cache="growing")
    rolled, arrays = lower(roll(graph), JAX), make_samples(graph, source.config)[1].arrays
    found = jax.jit(lambda weights: evaluate(rolled, weights, arrays))({p.key: source.weights.array(p.key) for p in graph.params()})
    for k, want in reference(graph, arrays, source.weights).items():
        np.testing.assert_allclose(found[k], want, atol=1e-5, err_msg=k)


def test_joined_parameters_have_the_names_of_all_and_come_apart_again():
    source = model("t5")
    _, params = as_function(source, roll=True)
    assert params["encoder.block.*.layer.0.SelfAttention.q.weight"].shape == (3, 8, 16)
    assert not [k for k in params if ".block." in k and "*" not in k and "relative" not in k]
    apart = weights_of(params)
    assert apart.keys() == {p.key for p in source.params}
    for p in source.params:
        np.testing.assert_array_equal(apart[p.key], source.weights.array(p.key), err_msg=p.key)
    np.testing.assert_array_equal(il.from_jax(params, source).weights.array("shared.weight"), source.weights.array("shared.weight"))


def test_blocks_draw_different_numbers():
    """Each block drops a quarter of what is given to each: other elements in each, and as many as it should."""
    layer = Stack([Drops() for _ in range(4)])
    source = Definition(layer, {"x": "f32[rows 6]"}, ArrayWeights({}), name="Drops")
    source.weights = ArrayWeights({p.key: np.ones(6, np.float32) for p in source.params})
    fn, params, state = as_function(source, outputs=["states"], training=True, roll=True)
    x = jnp.full((4000, 6), np.pi / 2)
    jaxpr = str(jax.make_jaxpr(fn)(params, state, jax.random.key(0), x=x))
    states = [np.asarray(s) for s in fn(params, state, jax.random.key(0), x=x)[0].values()]
    assert jaxpr.count("scan[") == 1
    kept = [b - a > 0 for a, b in itertools.pairwise([np.ones_like(states[0]), *states])]
    for i, k in enumerate(kept):
        assert abs(k.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / k.size)
        for other in kept[:i]:
            assert abs(np.corrcoef(k.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(k.size)


class Drops(Layer):
    """x increased by ones of which a quarter is dropped."""

    def __init__(self) -> None:
        self.one, self.drop = Param(6), Dropout(0.25)

    def forward(self, x):
        return x + self.drop(ops.broadcast_to(self.one, shape=x.shape))


def test_a_rolled_function_exports_with_sizes_unknown():
    fn, params = as_function(model("gpt2"), roll=True)
    batch, seq = jax.export.symbolic_shape("b, s")
    shaped = jax.export.export(jax.jit(lambda p, ids: fn(p, input_ids=ids)["logits"]))(params, jax.ShapeDtypeStruct((batch, seq), jnp.int32))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 7)), jnp.int32)
    np.testing.assert_allclose(shaped.call(params, ids), fn(params, input_ids=ids)["logits"], atol=1e-5)


def test_the_program_of_a_gradient_does_not_grow_with_depth():
    """What stands for XLA's compile time: instructions of the training gradient, to the letter the same."""
    sizes = []
    for depth in (12, 24):
        fn, params, state = as_function(model("gpt2", n_layer=depth), outputs=["loss"], training=True, roll=True)
        ids = jnp.ones((1, 5), jnp.int32)
        loss = lambda p, fn=fn, state=state, ids=ids: fn(p, state, jax.random.key(0), input_ids=ids, labels=ids)[0]["loss"]
        sizes.append(jax.jit(jax.grad(loss)).lower(params).as_text().count("\n"))
    assert sizes[0] == sizes[1]
