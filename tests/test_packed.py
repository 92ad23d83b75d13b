"""Weights that are packed in a folder: the same numbers as without, one copy for all sessions, and never those of another model."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from oracle_specs import config_json

import interlingua as il
from interlingua.exporters.artifact import GraphFile
from interlingua.ir import ops
from interlingua.ir.errors import CheckpointError, UsageError
from interlingua.ir.sizes import symbol
from interlingua.ir.types import Type
from interlingua.model import Model
from interlingua.runtime import row_groups
from interlingua.runtime.ort import OnnxSession
from interlingua.runtime.packed import WEIGHTS
from interlingua.runtime.row_groups import divisible

CASES = {
    "bert": ("bert", "BertForSequenceClassification", {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}, {}),
    "bert in int8": (
        "bert",
        "BertForSequenceClassification",
        {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4},
        {"quantize": "int8"},
    ),
    "bert in half": ("bert", "BertForMaskedLM", {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}, {"dtype": "f16"}),
    "gpt2 in int4": ("gpt2", "GPT2LMHeadModel", {"n_embd": 64, "n_head": 4}, {"quantize": "int4-weights"}),
    "resnet": ("resnet", "ResNetForImageClassification", {}, {}),
    "wav2vec2": ("wav2vec2", "Wav2Vec2ForCTC", {}, {}),
}


def model(kind: str) -> Model:
    type, head, config, _ = CASES[kind]
    return il.from_config(config_json(type, head, config), head, seed=3)


def exported(kind: str, folder: Path) -> Path:
    options: dict[str, Any] = {"cache": False} if kind.startswith("gpt2") else {}
    model(kind).export(folder, check=False, **CASES[kind][3], **options)
    return folder


def inputs(session: Any, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for name, type in session.inputs.items():
        shape = tuple(d if isinstance(d, int) else {"batch": 2, "samples": 400}.get(str(d), 8) for d in type.shape)
        made[name] = rng.integers(0, 2, shape) if type.dtype.startswith(("i", "u")) else rng.standard_normal(shape).astype(np.float32)
    return made


@pytest.mark.parametrize("kind", CASES)
def test_outputs_are_the_same_bits(kind: str, tmp_path: Path):
    folder, store = exported(kind, tmp_path / "exported"), tmp_path / "store"
    plain = il.open(folder)
    given = inputs(plain)
    expected = plain(**given)
    for _ in range(2):  # the first packs, the second maps
        session = il.open(folder, packed=store)
        for k, x in session(**given).items():
            np.testing.assert_array_equal(x, expected[k], err_msg=k)
    assert len(list(store.iterdir())) == 1


def test_a_generator_gives_the_same_tokens(tmp_path: Path):
    model = il.from_config(config_json("gpt2", "GPT2LMHeadModel", {"n_embd": 64, "n_head": 4}), "GPT2LMHeadModel", seed=3)
    model.export(tmp_path, check=False)
    ids = np.array([[5, 6, 7]])
    expected = il.generator(tmp_path).generate(ids, max_new_tokens=8, eos_token_id=None)
    np.testing.assert_array_equal(il.generator(tmp_path, packed=tmp_path / "store").generate(ids, max_new_tokens=8, eos_token_id=None), expected)
    np.testing.assert_array_equal(il.generator(model, packed=tmp_path / "memory").generate(ids, max_new_tokens=8, eos_token_id=None), expected)


def test_other_weights_are_packed_anew(tmp_path: Path):
    folder, store = exported("bert", tmp_path / "exported"), tmp_path / "store"
    given = inputs(il.open(folder))
    before = il.open(folder, packed=store)(**given)["logits"]
    head = CASES["bert"][1]
    il.from_config(config_json("bert", head, CASES["bert"][2]), head, seed=4).export(folder, check=False, overwrite=True)
    after = il.open(folder, packed=store)(**given)["logits"]
    np.testing.assert_array_equal(after, il.open(folder)(**given)["logits"])
    assert abs(after - before).max() > 1e-3
    in_memory = {seed: il.compile(il.from_config(config_json("bert", head, CASES["bert"][2]), head, seed=seed), packed=store) for seed in (3, 4)}
    np.testing.assert_allclose(in_memory[3](**given)["logits"], before, atol=1e-6)
    np.testing.assert_allclose(in_memory[4](**given)["logits"], after, atol=1e-6)


def test_an_interrupted_packing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, store = exported("bert", tmp_path / "exported"), tmp_path / "store"

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("No space left on device")

    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(CheckpointError, match="No space left"):
        il.open(folder, packed=store)
    assert not list(store.iterdir())
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    il.open(folder, packed=store)


def test_another_process_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, store = exported("bert", tmp_path / "exported"), tmp_path / "store"
    il.open(folder, packed=store)
    (made,) = store.iterdir()
    kept = made.rename(tmp_path / "made by the other")

    def late(self: Path, target: Path) -> Path:
        shutil.copytree(kept, made)
        return rename(self, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", late)
    il.open(folder, packed=store)
    assert list(store.iterdir()) == [made]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_damaged_files_are_named(share: float, tmp_path: Path):
    folder, store = exported("bert", tmp_path / "exported"), tmp_path / "store"
    il.open(folder, packed=store)
    file = next(store.glob(f"*/{WEIGHTS}"))
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(CheckpointError, match=r"(?s)store.*onnxruntime.*delete that folder"):
        il.open(folder, packed=store)


def test_what_cannot_be_packed_says_why(tmp_path: Path):
    folder = exported("bert", tmp_path / "exported")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="no folder that can be written to"):
        il.open(folder, packed=tmp_path / "file")
    with pytest.raises(UsageError, match="session_options as a mapping"):
        il.open(folder, packed=tmp_path / "store", session_options=onnxruntime.SessionOptions())
    with pytest.raises(UsageError, match="device='cpu'"):
        il.open(folder, packed=tmp_path / "store", device="cuda")
    (folder / "model.interlingua.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError):
        il.open(folder, packed=tmp_path / "store")
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").iterdir())


# Opens a second session of what was packed, and prints the MB of its own that it holds.
_SECOND = """
import sys
from pathlib import Path
import numpy as np
import interlingua as il
def anonymous():
    return next(int(l.split()[1]) for l in Path("/proc/self/smaps_rollup").read_text().splitlines() if l.startswith("Anonymous")) / 1024
sessions = []
for _ in range(2):
    before = anonymous()
    sessions.append(il.open(sys.argv[1], packed=sys.argv[2], threads=1))
    sessions[-1](input_ids=np.ones((1, 8), np.int64), attention_mask=np.ones((1, 8), np.int64))
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the memory of a process is read as Linux tells it")
def test_a_second_session_holds_no_weights(tmp_path: Path):
    large = {"hidden_size": 512, "intermediate_size": 8192, "num_attention_heads": 4}
    head = "BertForSequenceClassification"
    model = il.from_config(config_json("bert", head, large), head)
    model.export(tmp_path / "exported", check=False, inputs=["input_ids", "attention_mask"])
    weights = (tmp_path / "exported" / "model.interlingua.safetensors").stat().st_size / 2**20
    il.open(tmp_path / "exported", packed=tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", _SECOND, str(tmp_path / "exported"), str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    assert weights > 70
    assert float(done.stdout) < weights / 10


_FREED = """
import ctypes
from pathlib import Path
from interlingua.runtime.packed import return_freed_memory
def anonymous():
    return next(int(l.split()[1]) for l in Path("/proc/self/smaps_rollup").read_text().splitlines() if l.startswith("Anonymous")) / 1024
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [library.malloc(100_000) for _ in range(400)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[::2]:  # what lies between keeps them
    library.free(block)
before = anonymous()
return_freed_memory()
print(before - anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", _FREED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 15  # MiB, of 19


@pytest.mark.parametrize("kind", ["bert", "resnet"])
@pytest.mark.parametrize(("batch", "threads"), [(1, 2), (4, 2), (5, 2), (7, 3), (12, 3), (3, 4)])
def test_groups_of_rows_give_what_the_batch_gives(kind: str, batch: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_groups, "TOKENS", 20)  # two rows of 8
    monkeypatch.setattr(row_groups, "VALUES", 3 * 8)
    runs: list[int] = []
    run = OnnxSession._run
    monkeypatch.setattr(OnnxSession, "_run", lambda self, arrays: runs.append(len(next(iter(arrays.values())))) or run(self, arrays))
    folder = exported(kind, tmp_path / "exported")
    given = {k: np.concatenate([x] * 6)[:batch] for k, x in inputs(il.open(folder)).items()}
    first = next(iter(given))
    given[first] = given[first] + np.arange(batch, dtype=given[first].dtype).reshape(-1, *[1] * (given[first].ndim - 1))
    expected = il.open(folder)(**given)
    runs.clear()
    made = il.open(folder, packed=tmp_path / "store", threads=threads)(**given)
    grouped = batch // (2 * threads) * threads
    assert sorted(runs) == sorted([2] * grouped + [batch - 2 * grouped] * (batch > 2 * grouped))
    for k, x in made.items():
        np.testing.assert_allclose(x, expected[k], atol=1e-6, err_msg=k)


class Centred(il.Layer):
    """Rows less their mean, which all of the batch has a part in."""

    def forward(self, x):
        return {"y": x - ops.mean(x, axis=0, keep=True)}


@pytest.mark.parametrize("exported", [True, False])
def test_a_model_of_ones_own_is_not_divided_unless_it_may_be(exported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_groups, "TOKENS", 1)
    model = il.Model(Centred(), {"x": "f32[batch 4]"}, name="centred")
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    if exported:
        model.export(tmp_path / "out")
        session = lambda **options: il.open(tmp_path / "out", packed=tmp_path / "store", threads=2, **options)
    else:
        session = lambda **options: il.compile(model, packed=tmp_path / "store", threads=2, **options)
    np.testing.assert_allclose(session()(x=x)["y"], x - x.mean(0), atol=1e-6)
    assert np.abs(session(by_rows=True)(x=x)["y"] - (x - x.mean(0))).max() > 1  # what it was told is not so


def test_rows_that_may_depend_on_one_another_are_not_divided():
    batch, length = symbol("batch"), symbol("seq")
    tokens, scores = Type("i64", (batch, length)), Type("f32", (batch, 3))
    graph = lambda inputs, outputs: GraphFile("", "", {k: str(t) for k, t in inputs.items()}, {k: str(t) for k, t in outputs.items()}).graph()
    assert divisible(graph({"ids": tokens}, {"scores": scores}))
    assert divisible(graph({"image": Type("f32", (batch, 3, 8, 8))}, {"scores": scores}))
    assert not divisible(graph({"ids": tokens}, {"likeness": Type("f32", (batch, batch))}))
    assert not divisible(graph({"ids": tokens}, {"mean": Type("f32", (3,))}))
    assert not divisible(graph({"ids": tokens, "table": Type("f32", (length, 3))}, {"scores": scores}))


def test_a_relative_folder_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_groups, "TOKENS", 8)
    folder = exported("bert", tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    session = il.open(folder, packed="store", threads=2)
    monkeypatch.chdir(tmp_path.parent)
    given = inputs(session)
    for k, x in session(**given).items():  # which opens the session of one thread
        np.testing.assert_allclose(x, il.open(folder)(**given)[k], atol=1e-6)
