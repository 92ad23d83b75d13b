"""StableHLO artifacts and sessions on XLA: symbolic sizes for three platforms, weights beside the program, no model code where they run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from op_samples import RANDOM_SAMPLES, SAMPLES, SIZES, Sample, sample_graph
from safetensors.numpy import save_file

from interlingua.checkpoints.safetensors import SafetensorsFile
from interlingua.exporters import stablehlo
from interlingua.frontends.jax import evaluate
from interlingua.frontends.jax_table import JAX, native_dtype
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import CheckpointError, InputError, TargetError, UsageError
from interlingua.ir.graph import Graph, Param, current
from interlingua.ir.initialize import initialize
from interlingua.ir.layer import Layer
from interlingua.ir.layers import Embedding, LayerNorm, Linear
from interlingua.ir.reference import reference
from interlingua.ir.sizes import Dim, bind, maximum, minimum
from interlingua.ir.table import lower
from interlingua.ir.weights import ArrayWeights
from interlingua.runtime.xla import compile_xla, open_stablehlo, open_staged

EVERY_SAMPLE = sorted([*SAMPLES, *RANDOM_SAMPLES], key=lambda s: s.op.name)
BY_OP = {name: list(rows) for name, rows in itertools.groupby(EVERY_SAMPLE, key=lambda s: s.op.name)}


def grown(sample: Sample, graph: Graph, times: int) -> dict[str, np.ndarray]:
    """The sample's inputs, every named size that many times as large."""
    arrays = sample.inputs(symbolic=True)
    return {v.name: np.tile(arrays[v.name], [times if isinstance(d, Dim) else 1 for d in v.shape]) for v in graph.inputs}


@pytest.mark.parametrize("op", BY_OP)
def test_an_op_with_symbolic_sizes(op: str) -> None:
    """All samples of an op in one program for all platforms, written to bytes and back, at two sizes."""
    rows = BY_OP[op]
    graphs = [sample_graph(s, symbolic=True) for s in rows]
    lowered = [lower(g, JAX) for g in graphs]
    sizes = dict(zip(SIZES, jax.export.symbolic_shape(",".join(SIZES)), strict=True))
    spec = lambda v: jax.ShapeDtypeStruct(bind(v.shape, sizes, JAX.minimum, JAX.maximum), native_dtype(v.type.dtype))
    program = jax.jit(lambda inputs: [evaluate(g, {}, x) for g, x in zip(lowered, inputs, strict=True)])
    made = jax.export.export(program, platforms=stablehlo.PLATFORMS)([{v.name: spec(v) for v in g.inputs} for g in graphs])
    read = jax.export.deserialize(made.serialize())
    assert read.platforms == ("cpu", "cuda", "tpu")
    run = jax.jit(read.call)
    for times in (1, 2):
        inputs = [grown(s, g, times) for s, g in zip(rows, graphs, strict=True)]
        for row, graph, given, outputs in zip(rows, graphs, inputs, run(jax.tree.map(jnp.asarray, inputs)), strict=True):
            if not row.random:
                for k, want in reference(graph, given).items():
                    assert outputs[k].shape == want.shape, row
                    scale = np.abs(want, where=np.isfinite(want), out=np.zeros(want.shape)).max(initial=1.0) if want.dtype.kind == "f" else 0
                    np.testing.assert_allclose(outputs[k], want, rtol=2e-5, atol=2e-6 * scale, err_msg=str(row))


class Encoder(Layer):
    """Tokens, positions out of a table, masked attention, a tied output and a buffer of integers."""

    def __init__(self, n: int = 8) -> None:
        self.words, self.places, self.norm = Embedding(11, n), Param(20, n, init="normal"), LayerNorm(n, 1e-5)
        self.qkv, self.out = Linear(n, 3 * n), Linear(n, n)
        self.order = Param(11, dtype="i64", init="zeros")

    def forward(self, input_ids, attention_mask=None):
        x = self.norm(self.words(input_ids) + self.places[: input_ids.shape[1]])
        heads = ops.rearrange(self.qkv(x), "batch seq (part heads head) -> part batch heads seq head", part=3, heads=2)
        q, k, v = (heads[i] for i in range(3))
        mask = None if attention_mask is None else ops.not_(ops.equal(attention_mask, 0))[:, None, None]
        mixed = ops.attention(q, k, v, mask, scale=0.5, causal=True)
        x = x + self.out(ops.rearrange(mixed, "batch heads seq head -> batch seq (heads head)"))
        logits = ops.linear(x, self.words.weight)
        return {"logits": logits, "best": ops.take(self.order, ops.argmax(logits, axis=2), axis=0)}


def encoder() -> Definition:
    inputs = {"input_ids": "i64[batch seq]", "attention_mask": "i64[batch seq]"}
    model = Definition(Encoder(), inputs, ArrayWeights({}), name="Encoder")
    model.weights = ArrayWeights(initialize(model.params, 2) | {"order": np.arange(11)[::-1].copy()})
    return model


def ids(batch: int, seq: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seq)
    return {"input_ids": rng.integers(0, 11, (batch, seq)), "attention_mask": (np.arange(seq) >= np.arange(batch)[:, None] % seq).astype(np.int64)}


def agrees(made: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert {k: x.dtype for k, x in made.items()} == {"logits": np.float32, "best": np.int64}
    np.testing.assert_allclose(made["logits"], want["logits"], rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(made["best"], want["best"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    stablehlo.export(encoder(), folder)
    return folder


ELSEWHERE = """
import sys
import numpy as np
from interlingua.runtime.xla import open_stablehlo
session = open_stablehlo(sys.argv[1])
cases = np.load(sys.argv[2])
for i in range(2):
    made = session(input_ids=cases[f"{i}.input_ids"], attention_mask=cases[f"{i}.attention_mask"])
    np.testing.assert_allclose(made["logits"], cases[f"{i}.logits"], rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(made["best"], cases[f"{i}.best"])
loaded = [m for m in sys.modules if m.startswith(("interlingua.models", "interlingua.frontends", "interlingua.ir.ops", "interlingua.ir.layers"))]
assert not loaded, loaded
print("ran")
"""


def test_an_artifact_runs_in_a_process_without_model_code(exported: Path, tmp_path: Path) -> None:
    model, cases = encoder(), {}
    for i, (batch, seq) in enumerate([(2, 5), (3, 13)]):
        given = ids(batch, seq)
        cases |= {f"{i}.{k}": x for k, x in {**given, **reference(model.graph(), given, model.weights)}.items()}
    np.savez(tmp_path / "cases.npz", **cases)
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, exported, tmp_path / "cases.npz"], capture_output=True, text=True, check=False)
    assert done.stdout == "ran\n", done.stderr


@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (4, 20), (3, 7)])
def test_one_program_serves_all_sizes(exported: Path, batch: int, seq: int) -> None:
    model, given = encoder(), ids(batch, seq)
    want = reference(model.graph(), given, model.weights)
    agrees(open_stablehlo(exported)(**given), want)
    agrees(compile_xla(model)(**given), want)


def test_the_program_is_portable_and_holds_no_weights(exported: Path) -> None:
    program = jax.export.deserialize(bytearray((exported / "model.stablehlo").read_bytes()))
    (entry,) = json.loads((exported / "interlingua.json").read_text())["graphs"]
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(a) for a in program.in_avals[-2:]] == ["int32[batch,seq]", "int32[batch,seq]"]
    rows = entry["details"]["weights"]
    assert sorted(r["name"] for r in rows) == sorted(p.key for p in encoder().params)
    assert [r["type"].split("[")[1] for r in rows] == [" ".join(map(str, a.shape)) + "]" for a in program.in_avals[:-2]]
    assert entry["inputs"] == {"input_ids": "i64[batch seq]", "attention_mask": "i64[batch seq]"}
    assert entry["outputs"] == {"logits": "f32[batch seq 11]", "best": "i64[batch seq]"}
    program, _ = stablehlo.to_exported(Definition(Linear(600, 500), {"x": "f32[n 600]"}, ArrayWeights({})).graph())
    assert len(program.serialize()) < 30_000


def stored(tmp_path: Path) -> Definition:
    """The encoder with weights in a checkpoint, half of them in half precision, each at an offset that is no multiple of its size."""
    arrays = encoder().weights.arrays
    arrays = {k: x.astype(jnp.bfloat16) if k.startswith("qkv") else x for k, x in arrays.items()}
    save_file({"a": np.zeros(3, np.uint8), **arrays}, tmp_path / "model.safetensors")
    model = encoder()
    model.weights = SafetensorsFile(tmp_path / "model.safetensors")
    return model


def test_weights_in_the_folder_are_referred_to_in_place(tmp_path: Path) -> None:
    model = stored(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    stablehlo.export(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["interlingua.json", "model.safetensors", "model.stablehlo"]
    assert (tmp_path / "model.safetensors").read_bytes() == before
    agrees(open_stablehlo(tmp_path)(**ids(2, 6)), reference(model.graph(), ids(2, 6), model.weights))


def test_weights_elsewhere_come_along(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    model = stored(tmp_path / "from")
    stablehlo.export(model, tmp_path / "to")
    (tmp_path / "from" / "model.safetensors").unlink()
    again = stored(tmp_path / "from")
    agrees(open_stablehlo(tmp_path / "to")(**ids(2, 6)), reference(again.graph(), ids(2, 6), again.weights))


def test_inputs_and_outputs_are_chosen(tmp_path: Path) -> None:
    model, given = encoder(), {"input_ids": ids(2, 5)["input_ids"]}
    stablehlo.export(model, tmp_path, inputs=["input_ids"], outputs=["logits"], platforms=["cpu"], name="short")
    session = open_stablehlo(tmp_path / "short.stablehlo")
    assert (list(session.inputs), list(session.outputs)) == (["input_ids"], ["logits"])
    want = reference(model.graph(["input_ids"], ["logits"]), given, model.weights)["logits"]
    np.testing.assert_allclose(session(**given)["logits"], want, rtol=1e-5, atol=2e-6)
    rows = json.loads((tmp_path / "interlingua.json").read_text())["graphs"][0]["details"]["weights"]
    assert "order" not in [r["name"] for r in rows]


class Sized(Layer):
    """Sizes that come out of the ordinary: the least and largest of two, floors, one that may be 0, one of a least value, and two forms of one."""

    def __init__(self) -> None:
        self.table = Param(40, 2)

    def forward(self, x, y, z, marks):
        n, m = x.shape[0], y.shape[0]
        least, most = (ops.iota(size=f(n, m)) for f in (minimum, maximum))
        current().bounds["past"] = 0
        together = ops.concat(x, z, axis=0)
        ends = ops.sum(y[3:] - y[: m - 3], axis=0)
        half, every = x[: n // 2], self.table[1 : n + 1 : 2]  # no proof that the table is long enough
        pooled = y[None, None]
        for kernel in (3, 2):
            pooled = ops.max_pool(pooled, kernel=(kernel,), stride=(2,), padding=((0, 0),))
        marked = ops.reshape(ops.where(marks, pooled, 0.0)[0] * x[:, 0:1], shape=(n * marks.shape[0],))
        return {"least": least, "most": most, "together": together, "ends": ends, "half": half, "every": every, "marked": marked}


def test_sizes_out_of_the_ordinary(tmp_path: Path) -> None:
    inputs = {"x": "f32[n 2]", "y": "f32[m>=7]", "z": "f32[past 2]", "marks": "bool[(m-1)//4]"}
    model = Definition(Sized(), inputs, ArrayWeights({"table": np.arange(80, dtype=np.float32).reshape(40, 2)}))
    stablehlo.export(model, tmp_path)
    session, rng = open_stablehlo(tmp_path), np.random.default_rng(0)
    for n, m, past in [(3, 8, 0), (9, 7, 5)]:
        shapes = {"x": (n, 2), "y": (m,), "z": (past, 2)}
        given = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} | {"marks": np.arange((m - 1) // 4) == 0}
        made = session(**given)
        for k, want in reference(model.graph(), given, model.weights).items():
            assert made[k].shape == want.shape
            np.testing.assert_allclose(made[k], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match=r"input 'y' has m=3, expected at least 7"):
        session(x=np.zeros((2, 2)), y=np.zeros(3), z=np.zeros((1, 2)), marks=np.zeros(0, bool))
    program, _ = stablehlo.to_exported(model.graph())
    with pytest.raises(ValueError, match=r"m - 7 >= 0|m >= 7"):
        program.call([model.weights.array("table")], [jnp.zeros((2, 2)), jnp.zeros(3), jnp.zeros((1, 2)), jnp.zeros(0, bool)])


def test_the_most_of_a_size_is_kept(tmp_path: Path) -> None:
    class Limited(Layer):
        def __init__(self) -> None:
            self.table = Param(6, 2)

        def forward(self, x):
            current().limit(x.shape[0], 6, "the table ends there")
            return x + self.table[: x.shape[0]]

    model = Definition(Limited(), {"x": "f32[n 2]"}, ArrayWeights({"table": np.ones((6, 2), np.float32)}))
    stablehlo.export(model, tmp_path)
    session = open_stablehlo(tmp_path)
    assert session(x=np.ones((6, 2)))["output"].sum() == 24
    with pytest.raises(InputError, match=r"n is 7, expected at most 6: .*the table ends there"):
        session(x=np.ones((7, 2)))


# ---- sessions -----------------------------------------------------------------------------------


class Step(Layer):
    """A cache of fixed length that is written at a place."""

    def forward(self, cache, new, position):
        cache = ops.update(cache, new, position, axis=1)
        return {"cache": cache, "total": ops.sum(cache, axis=(1, 2))}


def test_a_loop_stays_on_the_device_and_gives_its_buffers_away() -> None:
    inputs = {"cache": "f32[batch 16 4]", "new": "f32[batch 1 4]", "position": "i64[]"}
    session = compile_xla(Definition(Step(), inputs, ArrayWeights({})), donate=["cache"])
    mine = np.zeros((2, 16, 4), np.float32)
    cache = session.put("cache", mine)
    for i in range(3):
        old = cache
        made = session.on_device({"cache": cache, "new": session.put("new", np.full((2, 1, 4), i + 1.0)), "position": session.put("position", i)})
        cache = made["cache"]
        assert old.is_deleted()
    np.testing.assert_array_equal(made["total"], [24, 24])
    assert not mine.any()
    assert session(cache=mine, new=np.ones((2, 1, 4)), position=np.array(3))["total"].tolist() == [4, 4]
    assert not mine.any()


def test_a_set_of_sizes_is_compiled_once() -> None:
    session = compile_xla(encoder())
    for batch, seq in [(2, 5), (2, 5), (3, 5), (2, 5)]:
        session(**ids(batch, seq))
    assert session._compiled._cache_size() == 2


def test_an_integer_that_32_bits_do_not_hold_is_refused(exported: Path) -> None:
    session, given = open_stablehlo(exported), ids(2, 5)
    given["attention_mask"][0, 0] = 2**31
    with pytest.raises(InputError, match=r"input 'attention_mask' has 2147483648, expected -2147483648 to 2147483647"):
        session(**given)
    with pytest.raises(InputError, match=r"input 'input_ids' is of dtype float64"):
        session(input_ids=np.zeros((1, 2)), attention_mask=np.ones((1, 2), np.int64))


@pytest.mark.parametrize("device", ["cuda", "tpu:1", "cpu:99"])
def test_a_device_that_is_not_here(exported: Path, device: str) -> None:
    with pytest.raises(TargetError, match=rf"device '{device}' is not here; JAX .* has cpu:0"):
        open_stablehlo(exported, device=device)
    with pytest.raises(TargetError, match=rf"device '{device}' is not here"):
        compile_xla(encoder(), device=device)


def test_a_device_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"device 'cdua' is unknown to XLA sessions; did you mean 'cuda'"):
        compile_xla(encoder(), device="cdua")
    with pytest.raises(UsageError, match=r"device 'cpu:one' is unknown"):
        compile_xla(encoder(), device="cpu:one")


def test_a_session_in_another_float() -> None:
    model, given = encoder(), ids(2, 5)
    want = reference(model.graph(), given, model.weights)["logits"]
    errors = {}
    for dtype in ("f32", "bf16", "f64"):
        with jax.enable_x64(dtype == "f64"):
            made = compile_xla(model, dtype=dtype)(**given)["logits"]
        assert made.dtype == np.float32
        errors[dtype] = np.abs(made - want).max()
    assert errors["f64"] < 1e-7 < errors["f32"] * 10 < 1e-4 < errors["bf16"] < 0.1
    with pytest.raises(UsageError, match=r"dtype 'f64' is off in this process\n  run: jax.config.update"):
        compile_xla(model, dtype="f64")
    with pytest.raises(UsageError, match=r"dtype 'bf61' is not a float; did you mean 'bf16'"):
        compile_xla(model, dtype="bf61")


def test_a_platform_that_was_left_out(tmp_path: Path) -> None:
    stablehlo.export(encoder(), tmp_path, platforms=["cuda"])
    with pytest.raises(TargetError, match=r"model.stablehlo was lowered for cuda, not for cpu\n  export it again"):
        open_stablehlo(tmp_path)
    with pytest.raises(UsageError, match=r"platform 'cdua' is unknown; did you mean 'cuda'"):
        stablehlo.export(encoder(), tmp_path / "new", platforms=["cdua"])
    assert not (tmp_path / "new").exists()


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    stablehlo.export(encoder(), tmp_path)
    before = (tmp_path / "model.stablehlo").read_bytes()
    with pytest.raises(UsageError, match=r"already has"):
        stablehlo.export(encoder(), tmp_path, outputs=["logits"])
    assert (tmp_path / "model.stablehlo").read_bytes() == before
    stablehlo.export(encoder(), tmp_path, outputs=["logits"], overwrite=True)
    assert list(open_stablehlo(tmp_path).outputs) == ["logits"]


def test_a_check_sees_the_program_before_it_is_there(tmp_path: Path) -> None:
    model = stored(tmp_path)

    def check(files: Any, staging: Path, folder: Path) -> dict[str, Any]:
        assert not (folder / "model.stablehlo").exists()
        agrees(open_staged(files["model"], [staging, folder])(**ids(2, 4)), reference(model.graph(), ids(2, 4), model.weights))
        return {"model": {"logits": 1e-7}}

    (entry,) = stablehlo.export(model, tmp_path, check=check)
    assert entry.errors == {"logits": 1e-7}
    assert json.loads((tmp_path / "interlingua.json").read_text())["graphs"][0]["errors"] == {"logits": 1e-7}

    def fail(*_: Any) -> dict[str, Any]:
        raise InputError("wrong numbers")

    with pytest.raises(InputError, match="wrong numbers"):
        stablehlo.export(model, tmp_path / "other", check=fail)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", ["program", "hash", "rows", "row", "weights"])
def test_a_damaged_artifact_is_named(tmp_path: Path, damage: str) -> None:
    stablehlo.export(encoder(), tmp_path)
    manifest = json.loads((tmp_path / "interlingua.json").read_text())
    entry = manifest["graphs"][0]
    match damage:
        case "program" | "hash":
            (tmp_path / "model.stablehlo").write_bytes(b"no program at all")
            entry["sha256"] = "" if damage == "program" else entry["sha256"]
        case "rows":
            entry["details"]["weights"].pop()
        case "row":
            entry["details"]["weights"][0]["offset"] = 10**9
        case "weights":
            (tmp_path / "model.interlingua.safetensors").unlink()
    (tmp_path / "interlingua.json").write_text(json.dumps(manifest))
    expected = {
        "program": "model.stablehlo is not a program that jax",
        "hash": "sha256 differs",
        "rows": "unlike what interlingua.json lists",
        "row": "of interlingua.json cannot be read",
        "weights": "model.interlingua.safetensors is missing",
    }
    with pytest.raises(CheckpointError, match=expected[damage]):
        open_stablehlo(tmp_path)
