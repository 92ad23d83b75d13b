"""What an export writes: valid files for sizes never seen, caches that agree with the whole, weights where they were, and checks that find faults."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_runs import names, run, stock
from oracle_specs import SPECS, config_json

import interlingua as il
from interlingua.checkpoints.safetensors import SafetensorsFile
from interlingua.exporters import onnx as onnx_exporter, stablehlo
from interlingua.exporters.graphs import graphs_of
from interlingua.ir.errors import CheckpointError, ParityError
from interlingua.ir.reference import reference
from interlingua.ir.sizes import bind
from interlingua.model import Model
from interlingua.runtime.ort import OnnxSession
from interlingua.runtime.samples import make_sample
from interlingua.runtime.session import Session
from interlingua.runtime.verify import verify_artifact

Arrays = dict[str, np.ndarray]


def tiny(kind: str, head: str, config: dict[str, Any] | None = None) -> Model:
    return il.from_config(config_json(kind, head, config or {}), head, seed=3)


def close(made: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray]) -> None:
    assert set(made) == set(true)
    for k, x in true.items():
        assert made[k].shape == x.shape, k
        np.testing.assert_allclose(made[k], x, rtol=0, atol=2e-5 * max(1, np.abs(x).max()), err_msg=k)


# ---- valid, and for all sizes -------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPECS)
def test_files_are_valid_and_take_sizes_never_seen(kind: str, tmp_path: Path):
    model = tiny(kind, next(h for h in SPECS[kind].heads if h.endswith("Model")))
    model.export(tmp_path, check=False)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = il.open(tmp_path)
    named = {n for t in session.inputs.values() for n in t.names()}
    assert any("batch" in n for n in named)
    for batch, scale in ((2, 1.2), (5, 2.3)):
        arrays = make_sample(model.graph(), "", batch, scale, model.config, seed=batch).arrays
        close(session(**arrays), reference(model.graph(), arrays, model.weights))


@pytest.mark.parametrize("opset", [17, 21, 24])
def test_generating_heads_at_other_opsets(opset: int, tmp_path: Path):
    tiny("t5", "T5ForConditionalGeneration").export(tmp_path, opset=opset)  # checked
    for file in ("encoder_model.onnx", "decoder_model.onnx"):
        onnx.checker.check_model(str(tmp_path / file), full_check=True)


# ---- caches -------------------------------------------------------------------------------------


def steps(session: Session, ids: str, tokens: np.ndarray, first: int, given: Callable[[int], Arrays]) -> Iterator[np.ndarray]:
    """The last logits of `first` tokens at once and of the others one by one, each with the keys and values of those before."""
    old = {k: t for k, t in session.inputs.items() if "past" in t.names() and "past_key_values" in k}
    past = {k: np.zeros(bind(t.shape, {"batch": len(tokens), "past": 0}), np.float32) for k, t in old.items()}
    start = 0
    for stop in range(first, tokens.shape[1] + 1):
        made = session(**{ids: tokens[:, start:stop]}, **given(stop), **past)
        yield made.pop("logits")
        past = {k.replace("present.", "past_key_values."): x for k, x in made.items()}
        start = stop


def opened(model: Model, target: str, folder: Path) -> Callable[[str], Any]:
    """Sessions of the graphs of a head that generates, by stem."""
    if target in ("onnx", "stablehlo"):
        model.export(folder, target, check=False)
        return lambda stem: il.open(folder, name=stem)
    graphs = graphs_of(model, "onnx", None, None, None)
    return lambda stem: il.compile(model, target, graph=graphs[stem])


TARGETS = ["onnx", "stablehlo", "numpy", "torch"]


@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_gpt2_step_by_step(target: str, first: int, tmp_path: Path):
    model = tiny("gpt2", "GPT2LMHeadModel")
    tokens = np.random.default_rng(0).integers(5, 99, (2, 7))
    mask = np.ones_like(tokens)
    mask[1, :2] = 0
    whole = reference(model.graph(), {"input_ids": tokens, "attention_mask": mask}, model.weights)["logits"]
    session = opened(model, target, tmp_path)("model")
    places = lambda stop: np.arange(0 if stop == first else stop - 1, stop) + np.zeros((2, 1), int)
    given = lambda stop: {"attention_mask": mask[:, :stop], "position_ids": places(stop)}
    made = np.concatenate(list(steps(session, "input_ids", tokens, first, given)), axis=1)
    assert made.shape == (2, 8 - first, 99)  # no call gives the logits of other positions than its last
    live = mask[:, first - 1 :, None] == 1
    close({"logits": made * live}, {"logits": whole[:, first - 1 :] * live})


@pytest.mark.parametrize("target", TARGETS)
def test_t5_step_by_step_with_one_run_of_the_encoder(target: str, tmp_path: Path):
    model = tiny("t5", "T5ForConditionalGeneration")
    generator = np.random.default_rng(1)
    words, tokens = generator.integers(5, 99, (2, 6)), generator.integers(5, 99, (2, 5))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    given = {"input_ids": words, "attention_mask": mask}
    whole = reference(model.graph(), {**given, "decoder_input_ids": tokens}, model.weights)["logits"]
    session = opened(model, target, tmp_path)
    encoded = {k.replace("present.", "past_key_values."): x for k, x in session("encoder_model")(**given).items() if "present." in k}
    decoder = session("decoder_model")
    assert "input_ids" not in decoder.inputs
    own = lambda stop: {"decoder_attention_mask": np.ones((2, stop), int)} if "decoder_attention_mask" in decoder.inputs else {}
    made = list(steps(decoder, "decoder_input_ids", tokens, 2, lambda stop: {"attention_mask": mask, **own(stop), **encoded}))
    close({"logits": np.concatenate(made, axis=1)}, {"logits": whole[:, 1:]})


def test_the_decoder_has_no_weight_of_the_encoder(tmp_path: Path):
    tiny("t5", "T5ForConditionalGeneration").export(tmp_path, check=False)
    read = lambda stem: onnx.load(tmp_path / f"{stem}.onnx", load_external_data=False).graph.initializer
    held = {stem: {x.name for x in read(stem)} for stem in ("encoder_model", "decoder_model")}
    assert not [k for k in held["decoder_model"] if k.startswith("encoder.") or "EncDecAttention.k" in k or "EncDecAttention.v" in k]
    assert "decoder.block.2.layer.1.EncDecAttention.k.weight" in held["encoder_model"]


# ---- weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of which the weights are most, as they are of real ones."""
    sizes = {"vocab_size": 9000, "d_model": 256, "d_kv": 64, "d_ff": 1024}
    folder = tmp_path_factory.mktemp("t5")
    tiny("t5", "T5ForConditionalGeneration", sizes).save(folder)
    return folder


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*"))


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
def test_encoder_and_decoder_share_their_weights(to: str, large: Path, tmp_path: Path):
    il.load(large).export(tmp_path / "out", to, check=False)
    assert len([p for p in names(tmp_path / "out") if p.endswith(to)]) == 2
    assert size(tmp_path / "out") <= 1.02 * size(large)


def test_in_place_no_weight_is_copied_or_read(large: Path, monkeypatch: pytest.MonkeyPatch):
    before = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in large.iterdir()}
    model = il.load(large)
    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsFile, "array", lambda self, key: pytest.fail(f"{key} was read"))
        model.export(check=False)
    after = {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in large.iterdir()}
    added = {name: after.pop(name)[2] for name in set(after) - set(before)}
    assert after == before
    assert set(added) == {"encoder_model.onnx", "decoder_model.onnx", "interlingua.json"}
    assert sum(added.values()) < 0.01 * size(large)
    tensors = [x for f in added if f.endswith(".onnx") for x in onnx.load(large / f, load_external_data=False).graph.initializer]
    assert sum(len(x.raw_data) for x in tensors) < 2000  # constants
    assert {e.value for x in tensors for e in x.external_data if e.key == "location"} == {"model.safetensors"}


# ---- checks -------------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A masked language model's checkpoint that may be changed."""
    return shutil.copytree(stock("bert", "BertForMaskedLM"), tmp_path / "bert")


def test_verification_finds_a_wrong_weight_beside_an_artifact(bert: Path, tmp_path: Path):
    model, out = il.load(bert), tmp_path / "out"
    model.export(out, check=False)
    assert verify_artifact(lambda: il.open(out), model.graph(), model, "onnx").ok
    at = il.load(out).weights.location("bert.encoder.layer.0.output.dense.weight")
    np.memmap(at.file, np.float32, "r+", at.offset, (at.length // 4,))[100] += 0.2
    report = verify_artifact(lambda: il.open(out), model.graph(), model, "onnx")
    assert not report.ok
    with pytest.raises(ParityError, match=r"onnx: logits is off by .*, allowed"):
        report.check()


def test_verification_finds_a_wrong_node_in_an_artifact(bert: Path, tmp_path: Path):
    model, file = il.load(bert), tmp_path / "out" / "model.onnx"
    model.export(file.parent, check=False)
    proto = onnx.load(file, load_external_data=False)
    next(a for n in proto.graph.node if n.op_type == "LayerNormalization" for a in n.attribute if a.name == "epsilon").f = 0.1
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=r"is not the file that interlingua.json lists"):
        il.open(file.parent)
    assert not verify_artifact(lambda: OnnxSession(str(file), model.graph()), model.graph(), model, "onnx").ok


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_wrong_file_never_appears(to: str, in_place: bool, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right, program = onnx_exporter.to_proto, stablehlo.as_program

    def wrong(*given: Any, **options: Any) -> onnx.ModelProto:
        proto = right(*given, **options)
        node = next(n for n in proto.graph.node if n.op_type == "Gelu")
        node.op_type = "Relu"
        node.ClearField("attribute")
        return proto

    def spoiled(graph: Any) -> Any:
        run, params = program(graph)
        return lambda weights, inputs: [x * 1.01 for x in run(weights, inputs)], params

    monkeypatch.setattr(onnx_exporter, "to_proto", wrong)
    monkeypatch.setattr(stablehlo, "as_program", spoiled)
    before = names(bert)
    done = run("export", bert, *([] if in_place else [tmp_path / "out"]), "--to", to)
    assert (done.code, done.out) == (1, "")
    assert f"2 of 2 outputs differ from the float64 reference by more than rounding\n  {to}: logits is off by " in done.err
    assert (names(bert), names(tmp_path)) == (before, ["bert"])
