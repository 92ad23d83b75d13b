"""Artifacts that are missing, damaged, in the way or half made; and sessions of them on onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from interlingua.exporters.artifact import MANIFEST, SIDE_FILE, GraphFile, find_graph, graph_file, read_manifest
from interlingua.exporters.onnx import export
from interlingua.ir import ops
from interlingua.ir.definition import Definition
from interlingua.ir.errors import CheckpointError, InputError, InterlinguaError, ParityError, TargetError, UsageError
from interlingua.ir.graph import Graph, Param
from interlingua.ir.layer import Layer
from interlingua.ir.layers.basic import Linear
from interlingua.ir.weights import ArrayWeights, Location
from interlingua.runtime.ort import OnnxSession, OrtSession, open_onnx, open_staged

STATUS = Path("/proc/self/status")


class Small(Layer):
    """A linear layer."""

    def __init__(self) -> None:
        self.linear = Linear(4, 3)

    def forward(self, x):
        return {"y": self.linear(x)}


WEIGHTS = {"linear.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "linear.bias": np.ones(3, np.float32)}
X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X @ WEIGHTS["linear.weight"].T + 1


def small(scale: float = 1) -> Definition:
    return Definition(Small(), {"x": "f32[batch>=2 4]"}, ArrayWeights({k: x * np.float32(scale) for k, x in WEIGHTS.items()}), name="Small")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(small(), tmp_path / "out", head="Head")
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    content["graphs"][0] |= changes
    (folder / MANIFEST).write_text(json.dumps(content))


# ---- what is written ----------------------------------------------------------------------------


def test_the_manifest_says_what_is_there(folder: Path):
    assert names(folder) == [MANIFEST, SIDE_FILE, "model.onnx"]
    (entry,) = read_manifest(folder)
    assert (entry.file, entry.target, entry.model, entry.head, entry.details) == ("model.onnx", "onnx", "Small", "Head", {"opset": 23})
    assert (entry.inputs, entry.outputs) == ({"x": "f32[batch>=2 4]"}, {"y": "f32[batch 3]"})
    assert entry.weights == {SIDE_FILE: (folder / SIDE_FILE).stat().st_size}
    np.testing.assert_allclose(open_onnx(folder)(x=X)["y"], Y)


def test_limits_and_ignored_inputs_travel():
    graph = Graph()
    with graph.tracing():
        x = graph.input("x", "f32[batch seq>=3]")
        graph.limit(x.shape[1] + 1, 9, "the table has 9 rows")
        graph.outputs = {"y": ops.relu(x)}
    graph.ignored = frozenset({"token_type_ids"})
    again = graph_file(graph, "model.onnx", "onnx").graph()
    assert (again.limits, again.bounds, again.ignored) == (graph.limits, {"seq": 3}, {"token_type_ids"})
    assert {v.name: v.type for v in again.inputs} == {"x": x.type}
    assert again.outputs["y"].type == graph.outputs["y"].type


def test_existing_output_is_kept_unless_it_may_be_overwritten(folder: Path):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UsageError, match=r"already has model.interlingua.safetensors and 1 more\n  overwrite it"):
        export(small(2), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    export(small(2), folder, overwrite=True)
    np.testing.assert_allclose(open_onnx(folder)(x=X)["y"], Y * 2)


def test_a_second_artifact_joins_the_first(folder: Path):
    for factor, name in enumerate(("second", "third"), 2):
        export(small(factor), folder, name=name)
    assert [g.file for g in read_manifest(folder)] == ["model.onnx", "second.onnx", "third.onnx"]
    for factor, name in enumerate(("model", "second", "third"), 1):
        np.testing.assert_allclose(open_onnx(folder, name=name)(x=X)["y"], Y * factor)
    (folder / "model.onnx").unlink()
    export(small(4), folder, name="second", overwrite=True)  # in the file that nobody reads any more
    assert [g.file for g in read_manifest(folder)] == ["second.onnx", "third.onnx"]
    assert read_manifest(folder)[0].weights.keys() == {SIDE_FILE}
    np.testing.assert_allclose(open_onnx(folder, name="second")(x=X)["y"], Y * 4)
    np.testing.assert_allclose(open_onnx(folder, name="third")(x=X)["y"], Y * 3)


def test_weights_that_a_graph_of_the_folder_reads_are_shared_or_left_alone(tmp_path: Path):
    def stored(factor: float) -> Definition:
        file = tmp_path / f"{factor}" / "w.bin"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"".join((WEIGHTS[k] * np.float32(factor)).tobytes() for k in WEIGHTS))

        class Stored(ArrayWeights):
            def location(self, key):
                return Location(str(file), 0 if key == "linear.weight" else 48, WEIGHTS[key].nbytes)

        return Definition(Small(), {"x": "f32[batch 4]"}, Stored(WEIGHTS), name="Small")

    out = tmp_path / "out"
    for factor, name in ((1, "first"), (2, "other"), (1, "equal")):
        export(stored(factor), out, name=name)
    assert [list(g.weights) for g in read_manifest(out)] == [["w.bin"], ["w.copy1.bin"], ["w.bin"]]
    for factor, name in ((1, "first"), (2, "other"), (1, "equal")):
        np.testing.assert_allclose(open_onnx(out, name=name)(x=X)["y"], Y * factor)
    export(small(3), out, name="other", overwrite=True)
    assert {"w.copy1.bin", SIDE_FILE} <= {*names(out)}  # the first may be anybody's
    export(stored(1), out, name="other", overwrite=True)
    assert SIDE_FILE not in names(out)
    assert [list(g.weights) for g in read_manifest(out)] == [["w.bin"]] * 3


def test_weights_of_an_earlier_export_are_not_lost(folder: Path):
    """Weights that lie in the file that is written anew, beside others that live in memory."""
    content = (folder / SIDE_FILE).read_bytes()
    place = content.index(WEIGHTS["linear.weight"].tobytes())

    class Stored(ArrayWeights):
        def location(self, key):
            return Location(str(folder / SIDE_FILE), place, 48) if key == "linear.weight" else None

    definition = Definition(Small(), {"x": "f32[batch 4]"}, Stored(WEIGHTS | {"linear.bias": np.full(3, 5, np.float32)}), name="Small")
    export(definition, folder, overwrite=True)
    np.testing.assert_allclose(open_onnx(folder)(x=X)["y"], Y + 4)


def test_a_link_is_copied_whoever_gives_it(tmp_path: Path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "bytes").write_bytes(b"".join(WEIGHTS[k].tobytes() for k in WEIGHTS))
    (tmp_path / "w.bin").symlink_to(tmp_path / "far" / "bytes")

    class Linked(ArrayWeights):
        def location(self, key):
            return Location(str(tmp_path / "w.bin"), 0 if key == "linear.weight" else 48, WEIGHTS[key].nbytes)

    export(Definition(Small(), {"x": "f32[batch 4]"}, Linked(WEIGHTS)), tmp_path)
    assert names(tmp_path) == ["far", MANIFEST, "model.onnx", "w.bin", "w.copy1.bin"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    np.testing.assert_allclose(open_onnx(tmp_path)(x=X)["y"], Y)


@pytest.mark.parametrize("existing", [False, True])
def test_failed_export_leaves_nothing(existing: bool, tmp_path: Path):
    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "keep").write_text("kept")

    def wrong(files: Any, staging: Path, folder: Path) -> Any:
        assert sorted(files) == ["model"]
        assert files["model"].exists()
        raise ParityError("the numbers are wrong")

    with pytest.raises(ParityError, match="the numbers are wrong"):
        export(small(), out, check=wrong)
    assert names(tmp_path) == (["out"] if existing else [])
    assert not existing or names(out) == ["keep"]


def test_a_check_runs_what_is_about_to_appear(tmp_path: Path):
    """Before anything is in place, from staged files and from weights that stay where they are; its errors are noted."""
    definition = small()

    def measured(files: Any, staging: Path, folder: Path) -> Any:
        session = open_staged(files["model"], [staging, folder], definition.graph())
        return {"model": {"y": float(np.abs(session(x=X)["y"] - Y).max())}}

    export(definition, tmp_path / "out", check=measured)
    assert read_manifest(tmp_path / "out")[0].errors == {"y": 0.0}


def test_export_imports_no_framework_and_no_runtime():
    code = """
import sys
from interlingua.exporters import onnx
heavy = {"torch", "tensorflow", "jax", "onnxruntime", "onnx_ir", "transformers", "sympy", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is read -------------------------------------------------------------------------------


def test_nothing_to_open(tmp_path: Path, folder: Path):
    with pytest.raises(UsageError, match=rf"{tmp_path}/nowhere does not exist, expected an exported model: a folder with {MANIFEST}"):
        open_onnx(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=f"has no {MANIFEST}, expected a folder that `interlingua export` wrote"):
        open_onnx(tmp_path)
    with pytest.raises(UsageError, match=r"has model.onnx \(onnx\), expected stablehlo"):
        find_graph(folder, "stablehlo")
    with pytest.raises(UsageError, match=r"has model.onnx \(onnx\), expected onnx decoder_model"):
        open_onnx(folder, name="decoder_model")


DAMAGED = {
    "not json": ("{", "is not valid JSON: Expecting property name"),
    "a list": ("[]", r"is not of the form \{format, graphs\}"),
    "newer": ('{"format": 2, "graphs": []}', "has format 2, expected at most 1\n  a newer interlingua wrote it"),
    "no fields": ('{"format": 1, "graphs": [{"file": "model.onnx"}]}', "graph 0 has not the fields file, inputs, outputs, target"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_manifest(kind: str, folder: Path):
    text, error = DAMAGED[kind]
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=f"{MANIFEST}.*{error}"):
        open_onnx(folder)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"inputs": []}, "graph 0 has inputs=.*, expected an object"),
        ({"target": 5}, "graph 0 has target=5, expected text"),
        ({"ignored": "x"}, "graph 0 has ignored='x', expected a list"),
        ({"file": "../model.onnx"}, r"has file '\.\./model.onnx', expected the name of a file in the same folder"),
        ({"weights": {"../secret": 1}}, r"has file '\.\./secret', expected the name of a file in the same folder"),
        ({"inputs": {"x": "float[2]"}}, r"graph 0: type 'float\[2\]' is not of the form"),
        ({"limits": {"batch": [3]}}, "graph 0: not enough values to unpack"),
    ],
)
def test_manifest_that_says_nonsense(changes: dict[str, Any], error: str, folder: Path):
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=error):
        open_onnx(folder)


def test_files_that_are_not_what_was_written(folder: Path):
    side = folder / SIDE_FILE
    content = side.read_bytes()
    side.write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match=rf"{SIDE_FILE} has {len(content) - 4} bytes, expected {len(content)} for model.onnx\n  restore it"):
        open_onnx(folder)
    side.unlink()
    with pytest.raises(CheckpointError, match=f"{SIDE_FILE} is missing; model.onnx needs it"):
        open_onnx(folder)
    side.write_bytes(content)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"model.onnx is not the file that interlingua.json lists: its sha256 differs"):
        open_onnx(folder / "model.onnx")


def test_files_that_onnxruntime_refuses(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=rf"model.onnx cannot be loaded by onnxruntime {onnxruntime.__version__}: "):
        open_onnx(tmp_path / "model.onnx")


def test_onnx_files_of_others(tmp_path: Path):
    """What an ONNX file declares is enough: sizes without a name, or with one that is no expression, are any size."""
    info = onnx.helper.make_tensor_value_info
    ends = [info("x", 1, ["batch size", None, 2])], [info("y", 1, ["batch size", None, 2])]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", *ends)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), tmp_path / "their.onnx")
    session = open_onnx(tmp_path / "their.onnx")
    assert session.name == "their"
    np.testing.assert_array_equal(session(x=-np.ones((3, 4, 2)))["y"], np.zeros((3, 4, 2)))
    with pytest.raises(InputError, match="input 'x' has 3 on axis 2, expected"):
        session(x=np.zeros((3, 4, 3)))


# ---- sessions -----------------------------------------------------------------------------------


def test_a_session_checks_its_inputs(folder: Path):
    for session in (open_onnx(folder), OrtSession(small(), small().graph())):
        np.testing.assert_allclose(session(x=X.astype(np.float64))["y"], Y)
        with pytest.raises(InputError, match=r"input 'x' has batch=1, expected at least 2"):
            session(x=X[:1])
        with pytest.raises(InputError, match="Small has no input 'y'"):
            session(x=X, y=X)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_device_that_is_not_here(device: str):
    provider = "TensorrtExecutionProvider" if device == "tensorrt" else "CUDAExecutionProvider"
    assert provider not in onnxruntime.get_available_providers()
    with pytest.raises(TargetError, match=f"device '{device}' needs {provider}, onnxruntime .* has .*CPUExecutionProvider\n  run: pip "):
        OrtSession(small(), small().graph(), device)


@pytest.mark.parametrize(("device", "error"), [("gpu", "cpu"), ("cuda:x", ""), ("cuda:", ""), ("tensor", "tensorrt")])
def test_an_unknown_device(device: str, error: str):
    with pytest.raises(UsageError, match=f"device '{device}' is unknown to onnxruntime sessions.*{error}"):
        OrtSession(small(), small().graph(), device)


def test_options_reach_onnxruntime():
    session = OrtSession(small(), small().graph(), threads=1, session_options={"session.disable_prepacking": "1"})
    options = session.ort.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    own = onnxruntime.SessionOptions()
    own.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = OrtSession(small(), small().graph(), session_options=own)
    assert session.ort.get_session_options().graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with pytest.raises(CheckpointError, match="Small cannot be loaded by onnxruntime"):
        OrtSession(small(), small().graph(), session_options={"session.intra_op_thread_affinities": "nonsense"}, threads=4)


def test_a_run_that_fails_says_where():
    graph = Graph()
    with graph.tracing():
        graph.outputs = {"y": ops.take(graph.input("x", "f32[n]"), graph.input("index", "i64[k]"))}
    definition = Definition(Small(), {}, ArrayWeights({}), name="Taker")
    with pytest.raises(InterlinguaError, match=r"^Taker failed in onnxruntime .*: Non-zero .*'Gather'.*indices element out of data bounds"):
        OrtSession(definition, graph)(x=np.zeros(2, np.float32), index=np.array([7]))


def test_weights_are_mapped_from_their_file(tmp_path: Path):
    """A session of a model in a file reads that file and makes no copy of it."""
    if not STATUS.exists():
        pytest.skip("memory is read from Linux's /proc")
    table = np.ones((1 << 20, 16), np.float32)  # 64 MB
    graph, param = Graph(), Param(*table.shape)
    param.key = "table"
    table.tofile(tmp_path / "weights")

    class Stored(ArrayWeights):
        def location(self, key):
            return Location(str(tmp_path / "weights"), 0, table.nbytes)

    with graph.tracing():
        graph.outputs = {"y": ops.take(param, graph.input("index", "i64[n]"))}
    before = resident()
    session = OrtSession(Definition(Small(), {}, Stored({"table": table})), graph)
    np.testing.assert_array_equal(session(index=np.array([3]))["y"], np.ones((1, 16)))
    assert resident() - before < table.nbytes / 4


def resident() -> int:
    """The bytes of memory that this process holds for itself."""
    return int(STATUS.read_text().split("RssAnon:")[1].split()[0]) << 10


def test_an_entry_has_what_a_session_needs():
    entry = GraphFile("model.onnx", "onnx", {"x": "f32[batch 4]"}, {"y": "f32[batch 3]"})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        OnnxSession("nowhere.onnx", entry.graph())
