"""ONNX: every op on the opsets that we write, whole graphs at several sizes, weights in place, artifacts that lie, sessions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def
from op_samples import RANDOM_SAMPLES, SAMPLES, Sample, sample_graph

from interlingua.checkpoints import Checkpoint
from interlingua.exporters.artifact import MANIFEST, SIDE_FILE
from interlingua.exporters.onnx import IR_VERSIONS, export, prepare, to_proto
from interlingua.exporters.onnx_table import RULES
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import CheckpointError, TargetError, UsageError
from interlingua.ir.graph import Graph, Param
from interlingua.ir.initialize import initialize
from interlingua.ir.layer import Layer
from interlingua.ir.layers.basic import LayerNorm, Linear
from interlingua.ir.op import OPS
from interlingua.ir.reference import reference
from interlingua.ir.sizes import bind, maximum, minimum
from interlingua.ir.types import NUMPY_DTYPES, dtype_of
from interlingua.ir.weights import ArrayWeights, Location
from interlingua.runtime.ort import OnnxSession, OrtSession, open_onnx

OPSETS = (17, 20, 23, 24)
TOLERANCE = {"f32": 1e-5, "f16": 2e-3}
NOWHERE = ArrayWeights({})
WITHOUT = {"random_uniform", "ctc_loss"}  # neither is an operator of ONNX nor made of such


def proto_of(graph: Graph, opset: int = 23, weights: Any = NOWHERE) -> onnx.ModelProto:
    return to_proto(prepare(graph, opset), weights, opset=opset, place=lambda key: Location("w", 0, 0))


def kinds(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


def agree(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], types: Mapping[str, Any]) -> None:
    """Shapes and dtypes as the graph says, numbers as the reference has them."""
    assert actual.keys() == expected.keys()
    for k, want in expected.items():
        assert actual[k].shape == want.shape
        assert dtype_of(actual[k].dtype) == types[k].dtype
        if want.dtype.kind == "f":
            largest = np.abs(want[np.isfinite(want)]).max(initial=0)
            np.testing.assert_allclose(actual[k].astype(np.float64), want, rtol=0, atol=TOLERANCE[types[k].dtype] * max(1, largest))
        else:
            np.testing.assert_array_equal(actual[k], want)


# ---- the table ----------------------------------------------------------------------------------


def test_every_op_has_a_rule_or_a_decomposition():
    assert {op.name for op in OPS.values() if op not in RULES and op.decomposition is None} == WITHOUT


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.op.name not in WITHOUT], ids=repr)
def test_samples(sample: Sample, symbolic: bool):
    graph = sample_graph(sample, symbolic)
    expected = reference(graph, sample.inputs(symbolic))
    for opset in OPSETS:
        proto = proto_of(graph, opset)
        onnx.checker.check_model(proto, full_check=True)
        session = OnnxSession(proto.SerializeToString(), graph, threads=1)
        agree(session(**sample.inputs(symbolic)), expected, session.outputs)


@pytest.mark.parametrize("sample", [*RANDOM_SAMPLES, *(s for s in SAMPLES if s.op.name in WITHOUT)], ids=repr)
def test_what_onnx_cannot_express_is_named(sample: Sample):
    names = "|".join(WITHOUT)
    with pytest.raises(TargetError, match=rf"^ONNX opset 23 cannot express ({names})\n(.|\n)* in the model: (.|\n)*choose another target"):
        prepare(sample_graph(sample))


@pytest.mark.parametrize("opset", [16, 25, 0])
def test_unknown_opset(opset: int):
    with pytest.raises(TargetError, match=f"opset {opset} is not written, expected one of 17 to 24\n  choose opset 23"):
        prepare(sample_graph(SAMPLES[0]), opset)


@pytest.mark.parametrize("opset", IR_VERSIONS)
def test_file_format_is_that_of_the_opset(opset: int):
    proto = proto_of(sample_graph(SAMPLES[0]), opset)
    assert proto.ir_version == onnx.helper.find_min_ir_version_for(proto.opset_import)
    assert proto.producer_name == "interlingua"


NATIVE = [
    (ops.attention, "attention-plain", "Attention", 23),
    (ops.rotary, "rotary-halves", "RotaryEmbedding", 23),
    (ops.rms_norm, "rms_norm-0", "RMSNormalization", 23),
    (ops.layer_norm, "layer_norm-0", "LayerNormalization", 17),
    (ops.gelu, "gelu-0", "Gelu", 20),
    (ops.group_norm, "group_norm-0", "InstanceNormalization", 17),
]


@pytest.mark.parametrize(("op", "id", "kind", "since"), NATIVE, ids=lambda x: x if isinstance(x, str) else "")
def test_composites_are_single_nodes_with_a_kernel(op: Any, id: str, kind: str, since: int):
    """The registry of the installed onnxruntime says what runs natively; an operator without a kernel is expanded into dozens."""
    sample = next(s for s in SAMPLES if s.id == id)
    registered = {k.op_name for k in get_all_opkernel_def() if k.provider == "CPUExecutionProvider"}
    assert kind in registered
    for opset in OPSETS:
        assert kinds(proto_of(sample_graph(sample), opset))[kind] == (opset >= since)


def test_sizes_are_computed_once():
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[batch seq 12]")
        parts = [ops.transpose(ops.reshape(ops.mul(x, float(i)), shape=(x.shape[0] * x.shape[1], 3, 4)), perm=(1, 0, 2)) for i in range(4)]
        whole = [ops.broadcast_to(ops.sum(p, axis=(0, 2))[None, :], shape=(3, x.shape[0] * x.shape[1])) for p in parts]
    graph.outputs = {f"y{i}": y for i, y in enumerate(whole)}
    proto = proto_of(graph)
    assert kinds(proto)["Shape"] == kinds(proto)["Concat"] == 1, kinds(proto)  # the size is read off a result, not multiplied


@pytest.mark.parametrize(("a", "b"), [(7, 2), (2, 7), (3, 3), (0, 2), (9, 4)])
def test_arithmetic_on_sizes_rounds_down(a: int, b: int):
    graph = Graph()
    with graph.tracing():
        x, y = graph.input("x", "f32[a 2]"), graph.input("y", "f32[b 2]")
        m, n = x.shape[0], y.shape[0]
        sizes = [m * n + 3, (m - 2 * n) // 3, (m - n) // (n + 1), minimum(m, n) * 2, maximum(2, m - 1), -5 // (n + 1)]
        graph.outputs = {f"y{i}": ops.size(value=d, dtype="i64") for i, d in enumerate(sizes)}
    session = OnnxSession(proto_of(graph).SerializeToString(), graph)
    expected = [a * b + 3, (a - 2 * b) // 3, (a - b) // (b + 1), min(a, b) * 2, max(2, a - 1), -5 // (b + 1)]
    made = session(x=np.zeros((a, 2)), y=np.zeros((b, 2)))
    assert [int(made[f"y{i}"]) for i in range(len(expected))] == expected


@pytest.mark.parametrize("past", [0, 1, 4])
def test_reshapes_of_what_is_empty(past: int):
    """Beside a size of 0 none can be inferred, and a 0 that is computed does not mean that a size is copied."""
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[past seq 4]")
        m, n, _ = x.shape
        graph.outputs = {
            "rows": ops.reshape(x, shape=(m, n * 4)),
            "swapped": ops.reshape(x, shape=(n, m, 4)),
            "flat": ops.reshape(x, shape=(m * n * 4,)),
        }
        graph.outputs["split"] = ops.reshape(x, shape=(n, m, 2, 2))
    proto = proto_of(graph)
    x = np.arange(past * 20, dtype=np.float32).reshape(past, 5, 4)
    session = OnnxSession(proto.SerializeToString(), graph)
    agree(session(x=x), reference(graph, {"x": x}), session.outputs)


# ---- attention ----------------------------------------------------------------------------------

SEEN = {
    "none": (None, None),
    "keys": ("bool[batch 1 1 seq]", None),
    "rows": ("bool[batch 1 seq seq]", None),
    "shared-rows": ("bool[seq seq]", None),
    "heads": ("bool[batch 4 seq seq]", None),
    "bias": (None, "f32[1 4 seq seq]"),
    "keys-bias": ("bool[batch 1 1 seq]", "f32[1 4 seq seq]"),
    "heads-bias": ("bool[batch 4 1 seq]", "f32[batch 1 1 seq]"),
}


def attention_graph(mask: str | None, bias: str | None, kv_heads: int = 4, value: int = 3) -> Graph:
    """Attention on what layers make of [batch seq heads*size]."""
    graph = Graph()
    with graph.tracing():
        head = lambda name, heads, n: ops.rearrange(graph.input(name, f"f32[batch seq {heads * n}]"), "b s (h d) -> b h s d", h=heads)
        q, k, v = head("q", 4, 6), head("k", kv_heads, 6), head("v", kv_heads, value)
        given = [None if t is None else graph.input(n, t) for n, t in (("mask", mask), ("bias", bias))]
        for m in given:
            assert m is None or m.rank in (2, 4)
        wide = [m if m is None or m.rank == 4 else ops.expand_dims(m, 0, 1) for m in given]
        y = ops.attention(q, k, v, *wide, scale=0.4)
        graph.outputs = {"y": ops.rearrange(y, "b h s d -> b s (h d)")}
    return graph


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("opset", [22, 23, 24])
@pytest.mark.parametrize("seen", SEEN)
def test_attention_of_layers(seen: str, opset: int, kv_heads: int):
    """Rows that see no key give zeros; from opset 23 on nothing is transposed unless each head has a mask of its own."""
    graph = attention_graph(*SEEN[seen], kv_heads=kv_heads)
    proto, rng = proto_of(graph, opset), np.random.default_rng(0)
    sizes = {"batch": 2, "seq": 5}
    inputs = {v.name: rng.standard_normal(bind(v.shape, sizes)).astype(np.float32) for v in graph.inputs}
    if "mask" in inputs:
        inputs["mask"] = inputs["mask"] < 0.4
        inputs["mask"][..., min(1, inputs["mask"].shape[-2] - 1), :] = False
    session = OnnxSession(proto.SerializeToString(), graph, threads=1)
    expected = reference(graph, inputs)
    agree(session(**inputs), expected, session.outputs)
    if "mask" in inputs:
        unseen = np.broadcast_to(~inputs["mask"].any(-1), (2, 4, 5)).transpose(0, 2, 1)
        assert unseen.any()
        assert not session(**inputs)["y"].reshape(2, 5, 4, 3)[unseen].any()
    if opset >= 23:
        assert kinds(proto)["Attention"] == 1
        assert kinds(proto)["Transpose"] == (4 if "heads" in seen else 0)
        assert seen != "none" or kinds(proto)["Reshape"] == 0


@pytest.mark.parametrize("seen", ["keys", "rows", "heads-bias"])
def test_zeros_do_not_depend_on_the_runtime(seen: str):
    """Runtimes that are older than the rule that a row without any key is zero give something finite for finite masks: the graph makes that zero."""
    graph = attention_graph(*SEEN[seen])
    proto = proto_of(graph)
    at, node = next((i, n) for i, n in enumerate(proto.graph.node) if n.op_type == "Attention")
    mean = onnx.helper.make_node("Add", ["attention", "seven"], [node.output[0]])
    node.output[0] = "attention"
    proto.graph.node.insert(at + 1, mean)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.full((), 7, np.float32), "seven"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info(node.input[3], onnx.TensorProto.FLOAT, None))
    session = OnnxSession(proto.SerializeToString(), graph)
    x = {v.name: np.zeros(bind(v.shape, {"batch": 1, "seq": 2}), NUMPY_DTYPES[v.type.dtype]) for v in graph.inputs}
    assert not session(**x)["y"].any()
    assert (session(**x | {"mask": ~x["mask"]})["y"] == 7).all()
    assert np.isfinite(np.asarray(session.ort.run([node.input[3]], x)[0])).all()


def test_keys_that_all_of_a_batch_share():
    """The operator does not broadcast a batch: the decomposition does."""
    graph = Graph()
    with graph.tracing():
        q, k, v = graph.input("q", "f32[batch 2 seq 4]"), graph.input("k", "f32[batch 2 keys 4]"), graph.input("v", "f32[1 2 keys 4]")
        graph.outputs = {"y": ops.attention(q, k, v, scale=0.5)}
    rng = np.random.default_rng(0)
    inputs = {v.name: rng.standard_normal(bind(v.shape, {"batch": 3, "seq": 2, "keys": 5})) for v in graph.inputs}
    session = OnnxSession(proto_of(graph).SerializeToString(), graph)
    agree(session(**inputs), reference(graph, inputs), session.outputs)


def test_layers_share_one_mask():
    graph = Graph()
    with graph.tracing():
        x, mask = graph.input("x", "f32[batch 2 seq 4]"), graph.input("mask", "bool[batch 1 1 seq]")
        for _ in range(5):
            x = ops.attention(x, x, x, mask, scale=0.5)
    graph.outputs = {"y": x}
    found = kinds(proto_of(graph))
    assert (found["Attention"], found["Expand"], found["ReduceMax"]) == (5, 1, 1)


# ---- whole graphs -------------------------------------------------------------------------------


class Block(Layer):
    """A pre-norm transformer block with causal attention and a cache."""

    def __init__(self, n: int):
        self.norm, self.q, self.k, self.v, self.out = LayerNorm(n, 1e-5), Linear(n, n), Linear(n, n, bias=False), Linear(n, n), Linear(n, n)

    def forward(self, x, mask):
        h = self.norm(x)
        q, k, v = (ops.rearrange(f(h), "b s (h d) -> b h s d", h=2) for f in (self.q, self.k, self.v))
        from interlingua.ir.graph import current

        k, v = current().cache.extend(k, v, "")
        y = ops.attention(q, k, v, mask, scale=0.5, causal=True)
        return ops.add(x, self.out(ops.gelu(ops.rearrange(y, "b h s d -> b s (h d)"))))


class Decoder(Layer):
    """Two blocks over embedded words, with tied output weights."""

    def __init__(self):
        self.words, self.blocks, self.norm = Param(11, 8, init="normal"), [Block(8), Block(8)], LayerNorm(8, 1e-5)

    def forward(self, input_ids, attention_mask=None):
        x = ops.take(self.words, input_ids)
        mask = None if attention_mask is None else ops.not_(ops.equal(attention_mask, 0))[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return {"logits": ops.linear(self.norm(x), self.words), "mean": ops.mean(x, axis=1)}


INPUTS = {"input_ids": "i64[batch seq]", "attention_mask": "i64[batch keys]"}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return initialize(Definition(Decoder(), INPUTS, NOWHERE).params, seed)


def decoder(weights: Any = None) -> Definition:
    return Definition(Decoder(), INPUTS, weights or ArrayWeights(arrays()), name="Decoder")


def words(batch: int, seq: int, past: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seq)
    mask = np.ones((batch, past + seq), np.int64)
    mask[0, : (past + seq) // 3] = 0
    return {"input_ids": rng.integers(0, 11, (batch, seq)), "attention_mask": mask}


def saved(folder: Path, weights: Mapping[str, np.ndarray] | None = None) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file(dict(weights or arrays()), folder / "model.safetensors")
    return Checkpoint(folder)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("opset", OPSETS)
def test_one_file_for_all_sizes(opset: int, tmp_path: Path):
    definition = decoder(saved(tmp_path))
    export(definition, tmp_path, opset=opset)
    session = open_onnx(tmp_path)
    for batch, seq in [(2, 5), (1, 1), (3, 8)]:
        agree(session(**words(batch, seq)), reference(definition.graph(), words(batch, seq), definition.weights), session.outputs)


@pytest.mark.parametrize("opset", [17, 23])
def test_one_graph_serves_prefill_and_decode(opset: int):
    """A cache that is empty first: the same numbers as without a cache, and as the reference."""
    definition = decoder()
    graph = definition.graph(cache="growing")
    session, whole = OrtSession(definition, graph, opset=opset), OrtSession(definition, definition.graph(), opset=opset)
    given = words(2, 6)
    past = {f"past_key_values.{i}.{x}": np.zeros((2, 2, 0, 4), np.float32) for i in range(2) for x in ("key", "value")}
    logits = []
    for start, stop in [(0, 3), (3, 4), (4, 6)]:
        now = {"input_ids": given["input_ids"][:, start:stop], "attention_mask": given["attention_mask"][:, :stop]} | past
        made = session(**now)
        agree(made, reference(graph, now, definition.weights), session.outputs)
        past = {k.replace("present", "past_key_values"): x for k, x in made.items() if k.startswith("present")}
        logits.append(made["logits"])
    live = given["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.concatenate(logits, 1)[live], whole(**given)["logits"][live], atol=1e-5)


def test_the_file_reads_well(tmp_path: Path):
    export(decoder(saved(tmp_path)), tmp_path)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    dims = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    assert {v.name: dims(v) for v in proto.graph.input} == {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]}
    assert {v.name: dims(v) for v in proto.graph.output} == {"logits": ["batch", "seq", 11], "mean": ["batch", 8]}
    gemm = next(n for n in proto.graph.node if "blocks.1.q.weight" in n.input)
    assert gemm.name == gemm.output[0] == "blocks.1.q/Gemm"
    assert {p.key: p.value for p in gemm.metadata_props} == {"layer": "blocks.1.q"}
    assert len({n.name for n in proto.graph.node}) == len(proto.graph.node)
    assert [(x.type, x.i) for x in gemm.attribute if x.name == "transB"] == [(onnx.AttributeProto.INT, 1)]
    used = {x for n in proto.graph.node for x in n.input}
    assert all(t.name in used for t in proto.graph.initializer)


def test_outputs_that_are_inputs_weights_or_one_another():
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[n]")
        y = ops.add(x, 1.0)
    graph.outputs = {"a": y, "b": y, "c": x}
    session = OnnxSession(proto_of(graph).SerializeToString(), graph)
    made = session(x=np.array([1.0, 2.0]))
    assert {k: list(v) for k, v in made.items()} == {"a": [2, 3], "b": [2, 3], "c": [1, 2]}
    graph.outputs = {"x": y}
    with pytest.raises(UsageError, match="the name 'x' is that of two inputs, outputs or weights"):
        proto_of(graph)


# ---- weights ------------------------------------------------------------------------------------


def references(folder: Path, file: str = "model.onnx") -> dict[str, tuple[str, int, int]]:
    proto = onnx.load(folder / file, load_external_data=False)
    found = {}
    for t in proto.graph.initializer:
        if t.data_location == onnx.TensorProto.EXTERNAL:
            at = {e.key: e.value for e in t.external_data}
            found[t.name] = (at["location"], int(at["offset"]), int(at["length"]))
    return found


def check(folder: Path, definition: Definition, file: str = "model.onnx") -> None:
    """The file passes the checker, and onnxruntime gives the reference's numbers for it."""
    onnx.checker.check_model(str(folder / file), full_check=True)
    session = open_onnx(folder / file)
    agree(session(**words(2, 5)), reference(definition.graph(), words(2, 5), definition.weights), session.outputs)


def test_in_place(tmp_path: Path):
    definition = decoder(saved(tmp_path))
    before = digest(tmp_path / "model.safetensors")
    export(definition, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", MANIFEST, "model.onnx", "model.safetensors"]
    assert digest(tmp_path / "model.safetensors") == before
    assert (tmp_path / "model.onnx").stat().st_size < 40_000
    content = (tmp_path / "model.safetensors").read_bytes()
    for key, (file, offset, length) in references(tmp_path).items():
        assert file == "model.safetensors"
        assert content[offset : offset + length] == definition.weights.array(key).tobytes()
    check(tmp_path, definition)


def test_elsewhere_the_checkpoint_is_copied(tmp_path: Path):
    definition = decoder(saved(tmp_path / "from"))
    export(definition, tmp_path / "to")
    assert digest(tmp_path / "to" / "model.safetensors") == digest(tmp_path / "from" / "model.safetensors")
    shutil.rmtree(tmp_path / "from")
    shutil.move(tmp_path / "to", tmp_path / "moved")
    check(tmp_path / "moved", decoder())


def test_weights_in_memory_and_on_disk(tmp_path: Path):
    """Only what lives in memory is written, to a file of its own that other libraries read."""

    class Mixed(ArrayWeights):
        def location(self, key):
            return stored.location(key) if key != "words" else None

    stored = saved(tmp_path)
    definition = decoder(Mixed(arrays() | {"words": arrays(1)["words"]}))
    export(definition, tmp_path)
    side = safetensors.numpy.load_file(tmp_path / SIDE_FILE)
    assert list(side) == ["words"]
    np.testing.assert_array_equal(side["words"], arrays(1)["words"])
    assert {file for file, *_ in references(tmp_path).values()} == {"model.safetensors", SIDE_FILE}
    check(tmp_path, definition)
    export(decoder(Mixed(arrays())), tmp_path, overwrite=True)
    check(tmp_path, decoder())


def test_shards(tmp_path: Path):
    weights = list(arrays().items())
    index = {}
    for i in range(2):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors.numpy.save_file(dict(weights[i::2]), tmp_path / name)
        index |= dict.fromkeys(dict(weights[i::2]), name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text("{}")
    export(decoder(Checkpoint(tmp_path)), tmp_path)
    assert {k: file for k, (file, *_) in references(tmp_path).items()} == index
    check(tmp_path, decoder())
    export(decoder(Checkpoint(tmp_path)), tmp_path / "other")
    check(tmp_path / "other", decoder())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
def test_weights_of_other_floats_are_cast_in_the_graph(dtype: Any, tmp_path: Path):
    narrow = {k: x.astype(dtype) for k, x in arrays().items()}
    definition = decoder(saved(tmp_path, narrow))
    export(definition, tmp_path)
    assert not (tmp_path / SIDE_FILE).exists()
    check(tmp_path, definition)
    session = OrtSession(definition, definition.graph())
    agree(session(**words(1, 3)), reference(definition.graph(), words(1, 3), definition.weights), session.outputs)


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_links_are_never_referred_to(link: str, tmp_path: Path):
    """A hub's cache holds links, which readers of ONNX refuse: the file itself is copied, and the link stays."""
    (tmp_path / "blobs").mkdir()
    saved(tmp_path / "blobs")
    blob = tmp_path / "blobs" / "0a1b2c"
    os.rename(tmp_path / "blobs" / "model.safetensors", blob)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (os.symlink if link == "symbolic" else os.link)(blob, folder / "model.safetensors")
    export(decoder(Checkpoint(folder)), folder)
    assert (folder / "model.safetensors").samefile(blob)
    assert {file for file, *_ in references(folder).values()} == {"model.copy1.safetensors"}
    check(folder, decoder())
    export(decoder(Checkpoint(folder)), tmp_path / "other")
    assert {file for file, *_ in references(tmp_path / "other").values()} == {"model.safetensors"}
    check(tmp_path / "other", decoder())


def test_several_graphs_share_the_weights(tmp_path: Path):
    definition = decoder(saved(tmp_path / "from"))
    graphs = {"first_model": definition.graph(outputs=["logits"]), "second_model": definition.graph(outputs=["mean"])}
    folder = tmp_path / "to"
    export(definition, folder, graphs=graphs, head="causal-lm")
    assert sorted(p.name for p in folder.iterdir()) == ["first_model.onnx", MANIFEST, "model.safetensors", "second_model.onnx"]
    for name, output in (("first_model", "logits"), ("second_model", "mean")):
        made = open_onnx(folder, name=name)(**words(1, 4))
        np.testing.assert_allclose(made[output], reference(definition.graph(), words(1, 4), definition.weights)[output], atol=1e-5)
    with pytest.raises(UsageError, match=r"has first_model.onnx \(onnx\), second_model.onnx \(onnx\), expected just one onnx\n  name the file"):
        open_onnx(folder)


def test_a_weight_of_another_shape_is_an_error():
    wrong = decoder(ArrayWeights(arrays() | {"words": np.zeros((11, 9), np.float32)}))
    with pytest.raises(CheckpointError, match=r"weight 'words' has shape \[11, 9\], expected f32\[11 8\]"):
        OrtSession(wrong, wrong.graph())
