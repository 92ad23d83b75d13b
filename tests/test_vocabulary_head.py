"""The head of a decoder apart from its graph: whatever it leaves out, the greatest score and its word are those of float32."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import test_generation as generation
from test_pipelines import PACKAGE, needs_minilm

import interlingua as il
from interlingua.runtime import vocabulary_head
from interlingua.runtime.ort import OnnxSession, OrtSession
from interlingua.runtime.vocabulary_head import VocabularyHead

RNG = np.random.default_rng(0)
WORDS, SIZE = 3000, 96
KINDS = ("even", "outliers in states", "outliers in weights", "rows alike", "a bias", "zeros", "one far away")


def head(weight: np.ndarray, bias: np.ndarray | None = None) -> VocabularyHead:
    return VocabularyHead("states", weight, bias, partial(OnnxSession, threads=1))


def case(kind: str, rows: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """A weight, a bias and states."""
    weight, states, bias = RNG.standard_normal((WORDS, SIZE)), RNG.standard_normal((rows, SIZE)), None
    if kind == "outliers in states":
        states[:, ::17] *= 300
    if kind == "outliers in weights":
        weight[::5, 3] *= 50
        weight[1::7] *= 1e-4
    if kind == "rows alike":
        weight[1::2] = weight[::2] * (1 + 1e-3 * RNG.standard_normal((WORDS // 2, SIZE)))
    if kind == "a bias":
        bias = (5 * RNG.standard_normal(WORDS)).astype(np.float32)
    if kind == "zeros":
        weight[::3] = 0
        states[1:2] = 0
    if kind == "one far away":
        weight[7] = 1000 * states[0]
    return weight.astype(np.float32), bias, states.astype(np.float32)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_greatest_scores_are_those_of_float32(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary_head, "FEW", 1)
    left = []
    for _ in range(20):
        weight, bias, states = case(kind, rows)
        made, true = head(weight, bias).greatest(states), states.astype(np.float64) @ weight.T + (0 if bias is None else bias)
        looked = np.isfinite(made)
        noise = 2e-6 * np.linalg.norm(states, axis=1, keepdims=True) * np.linalg.norm(weight, axis=1)
        assert (np.abs(made - true)[looked] <= noise[looked] + 1e-30).all()
        best = true.max(1, keepdims=True)
        assert looked[true + noise >= best].all() or kind == "zeros"  # none that could be the greatest is left out
        assert (np.take_along_axis(true, made.argmax(1)[:, None], 1) >= best - noise.max()).all()
        left.append(looked.mean())
    assert np.mean(left) < (0.5 if kind == "zeros" else 0.1)  # or everything is looked at, and nothing is tested


def test_without_its_margin_it_would_be_wrong(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary_head, "FEW", 1)
    cases = [case("rows alike", 4) for _ in range(20)]
    right = lambda: [
        np.take_along_axis(x @ w.T, head(w).greatest(x).argmax(1)[:, None], 1) >= (x @ w.T).max(1, keepdims=True) - 1e-4 for w, _, x in cases
    ]
    assert np.all(right())
    real = vocabulary_head._in_bytes
    monkeypatch.setattr(vocabulary_head, "_in_bytes", lambda weight: real(weight) | {"doubts": np.zeros((2, len(weight)))})
    assert not np.all(right())


def test_all_scores_where_bytes_tell_nothing():
    """Words that are all alike are scored in one product, and after some steps nothing else is tried."""
    weight = np.ones((WORDS, SIZE), np.float32) + 1e-5 * RNG.standard_normal((WORDS, SIZE)).astype(np.float32)
    alike, states = head(weight), RNG.standard_normal((2, SIZE)).astype(np.float32)
    for _ in range(vocabulary_head.TRIALS + 3):
        np.testing.assert_allclose(alike.greatest(states), states @ weight.T, rtol=1e-5, atol=1e-4)
    assert alike.tried == vocabulary_head.TRIALS
    many = head(case("even", 1)[0])
    assert np.isfinite(many.greatest(RNG.standard_normal((vocabulary_head.MOST_ROWS + 1, SIZE)).astype(np.float32))).all()
    assert many.tried == 0


@needs_minilm
def test_few_words_are_left_of_trained_ones():
    """Trained rows differ in length and share a direction, as random ones do not."""
    model = il.load(Path(find_spec(PACKAGE).origin).parent / "model")  # type: ignore[arg-type, union-attr]
    ids = RNG.integers(1000, 20000, (4, 12))
    states = il.compile(model)(input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))["last_hidden_state"]
    weight, states = np.asarray(model.weights.array("embeddings.word_embeddings.weight"), np.float32), states.reshape(-1, states.shape[-1])
    trained = head(weight)
    made = np.concatenate([trained.greatest(x[None]) for x in states])
    assert (made.argmax(1) == (states.astype(np.float64) @ weight.T).argmax(1)).all()
    assert np.isfinite(made).sum(1).max() < 100
    assert trained.missed == 0


# ---- in a generator -----------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of tiny models are cut off too, and words looked at again however many they are."""
    monkeypatch.setattr(vocabulary_head, "LEAST", 1)
    monkeypatch.setattr(vocabulary_head, "FEW", 1)


def made(kind: str, exported: bool, folder: Path) -> Any:
    """A generator, in memory or of exported files, whose head is apart."""
    model = il.load(generation.folder(kind))
    if exported:
        model.export(folder, check=False)
    found = il.generator(folder if exported else model)
    assert found.decoder.session.head is not None
    return found


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("exported", [False, True], ids=["in memory", "exported"])
@pytest.mark.parametrize("kind", generation.KINDS)
def test_tokens_are_the_reference_s(kind: str, exported: bool, tmp_path: Path):
    found, (ids, mask) = made(kind, exported, tmp_path), generation.prompts(kind)
    for case, options in generation.CASES.items():
        tokens = found.generate(ids, mask, max_new_tokens=generation.NEW, eos_token_id=None, **options)
        true = generation.expected(kind, ids, mask, eos_token_id=None, **options)
        np.testing.assert_array_equal(tokens, true, err_msg=case)
    assert (found.decoder.session.head.tried, found.decoder.session.head.missed) == (generation.NEW, 0)  # greedy steps alone
    drawn = [x.generate(ids, mask, max_new_tokens=generation.NEW, do_sample=True, seed=3) for x in (found, generation.ours(kind))]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_what_an_assistant_guesses_is_judged_at_once(kind: str):
    found = il.generator(il.load(generation.folder(kind)), assistant=il.load(generation.guessing(kind, 0.02)))
    (ids, mask), head = generation.prompts(kind, 1), found.decoder.session.head
    tokens = found.generate(ids, mask, max_new_tokens=generation.NEW, eos_token_id=None)
    np.testing.assert_array_equal(tokens, generation.expected(kind, ids, mask, eos_token_id=None))
    assert 1 < head.tried < generation.NEW
    drawn = [x.generate(ids, mask, max_new_tokens=generation.NEW, do_sample=True, seed=3) for x in (found, generation.ours(kind))]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.usefixtures("small")
def test_a_head_whose_weight_lies_in_memory():
    """One that nothing else reads leaves the session with its layer."""
    model = il.from_config({"model_type": "t5", **generation.SIZES, "tie_word_embeddings": False}, head="T5ForConditionalGeneration")
    found, ids = il.generator(model), generation.prompts("t5")[0]
    assert found.decoder.session.head is not None
    for beams in (1, 2):
        true = il.generator(model, "torch").generate(ids, max_new_tokens=5, num_beams=beams)
        np.testing.assert_array_equal(found.generate(ids, max_new_tokens=5, num_beams=beams), true)


@pytest.mark.usefixtures("small")
def test_a_session_without_its_head_gives_the_same_outputs():
    model = il.load(generation.folder("gpt2"))
    graph, inputs = model.graph(), dict(zip(("input_ids", "attention_mask"), generation.prompts("gpt2"), strict=True))
    whole, apart = OrtSession(model, graph), OrtSession(model, graph, apart="logits")
    assert apart.head is not None
    assert [x.name for x in apart.ort.get_outputs()] == [apart.head.states]
    np.testing.assert_allclose(apart(**inputs)["logits"], whole(**inputs)["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small")
def test_what_is_no_layer_of_float32_stays(tmp_path: Path):
    """A head in half precision, one whose weights are not there, one that is too small, and outputs that no head makes."""
    model = il.load(generation.folder("gpt2"))
    model.export(tmp_path / "half", check=False, dtype="f16")
    half = onnx.load(tmp_path / "half" / "model.onnx", load_external_data=False)
    assert VocabularyHead.cut(half, "logits", str(tmp_path / "half"), {}, OnnxSession) is None
    assert OrtSession(model, model.graph(outputs=["hidden_states.1"]), apart="hidden_states.1").head is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_head, "LEAST", 1 << 22)
        assert OrtSession(model, model.graph(), apart="logits").head is None
    model.export(tmp_path, check=False)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    before = proto.SerializeToString()
    assert VocabularyHead.cut(proto, "logits", str(tmp_path / "half"), {}, OnnxSession) is None  # weights are not there: onnxruntime says so
    assert VocabularyHead.cut(proto, "present.0.key", str(tmp_path), {}, OnnxSession) is None
    assert proto.SerializeToString() == before


def _layer(**changed: Any) -> onnx.ModelProto:
    """A model of one linear layer after another node, whose weight says that it lies in a file."""
    at = {"location": "weights", "offset": "0", **changed}
    text = '<ir_version: 8, opset_import: ["": 17]> m (float[n, 4] x) => (float[n, 6] logits) { y = Abs(x) logits = Gemm<transB = 1>(y, w) }'
    model = onnx.parser.parse_model(text)
    tensor = model.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=(6, 4), data_location=onnx.TensorProto.EXTERNAL)
    for key, value in at.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return model


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "changed", [{"location": None}, {"location": "../weights"}, {"offset": "x"}, {"offset": "-4"}, {"offset": "8"}, {"location": "no"}], ids=str
)
def test_hostile_places_of_weights_are_left_to_onnxruntime(changed: dict[str, Any], tmp_path: Path):
    inside = tmp_path / "inside"
    inside.mkdir()
    for folder in (tmp_path, inside):
        (folder / "weights").write_bytes(bytes(6 * 4 * 4))
    assert VocabularyHead.cut(_layer(), "logits", str(inside), {}, OnnxSession) is not None
    model = _layer(**changed)
    before = model.SerializeToString()
    assert VocabularyHead.cut(model, "logits", str(inside), {}, OnnxSession) is None
    assert model.SerializeToString() == before


@pytest.mark.usefixtures("small")
def test_what_is_asked_for_beside_the_logits_stays(tmp_path: Path):
    (tmp_path / "weights").write_bytes(bytes(6 * 4 * 4))
    model = _layer()
    model.graph.output.add(name="y").type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    assert VocabularyHead.cut(model, "logits", str(tmp_path), {}, OnnxSession) is None
    empty = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> m (float[n] x) => (float[n] logits) { logits = Reshape() }')
    assert VocabularyHead.cut(empty, "logits", str(tmp_path), {}, OnnxSession) is None
