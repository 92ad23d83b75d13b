"""Which outputs and inputs a model has: on demand, by configuration, left out; and what sessions of every target say of inputs that do not fit."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle_specs import SPECS, config_json

import interlingua as il
from interlingua.ir.errors import CheckpointError, ConfigError, InputError, MissingExtraError, UsageError
from interlingua.ir.reference import reference
from interlingua.model import Model
from interlingua.runtime.samples import make_samples
from interlingua.runtime.session import Session

COMPILED = ["numpy", "onnxruntime", "xla", "torch", "tensorflow"]
EXPORTED = ["onnx", "stablehlo", "saved_model"]
ROOT = tempfile.TemporaryDirectory(prefix="interlingua-tests-")

Arrays = dict[str, np.ndarray]


@functools.cache
def bert(**config: Any) -> Model:
    return il.from_config(config_json("bert", "BertForTokenClassification", config), "BertForTokenClassification", seed=5)


@functools.cache
def session(model: Model, target: str, inputs: tuple[str, ...] | None = None, outputs: tuple[str, ...] | None = None) -> Session:
    """A session of each target, made once: the tests below do not change them."""
    if target in COMPILED:
        return il.compile(model, target, inputs=inputs, outputs=outputs)
    folder = Path(ROOT.name) / f"{target}-{abs(hash((model, inputs, outputs)))}"
    model.export(folder, target, inputs=inputs, outputs=outputs, check=False)
    return il.open(folder)


def text(batch: int = 3, length: int = 9, seed: int = 0) -> Arrays:
    """Tokens with the last row padded."""
    generator = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length - 3 :] = 0
    return {
        "input_ids": generator.integers(5, 99, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 3, (batch, length)),
    }


def agree(made: Arrays, true: Arrays) -> None:
    assert list(made) == list(true)
    for k, x in true.items():
        np.testing.assert_allclose(made[k], x, rtol=0, atol=1e-5 * max(1, np.abs(x).max()), err_msg=k)


# ---- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", COMPILED + EXPORTED)
def test_outputs_on_demand(target: str):
    wanted = ("hidden_states.[02]", "logits", "attentions")
    made = session(bert(), target, None, wanted)(**text())
    assert sorted(made) == ["attentions.0", "attentions.1", "hidden_states.0", "hidden_states.2", "logits"]
    true = reference(bert().graph(None, wanted), text(), bert().weights)
    agree({k: made[k] for k in true}, true)
    np.testing.assert_allclose(made["attentions.1"].sum(-1), 1, atol=1e-5)
    assert np.all(made["attentions.0"][-1, ..., -3:] == 0)  # nobody looks at padding


def test_outputs_by_name():
    plain = bert().graph()
    assert list(plain.outputs) == ["logits"]
    every = bert().graph(None, ["*"])
    assert [k for k in every.outputs if k.startswith("hidden")] == ["hidden_states.0", "hidden_states.1", "hidden_states.2"]
    assert len(bert().graph(None, ["hidden_states.0"]).live()) < len(plain.live()) / 2  # what is not needed is not computed
    with pytest.raises(UsageError, match=r"has no output 'hidden_state\.\*'; did you mean 'hidden_states\.\d'\?"):
        bert().graph(None, ["hidden_state.*"])
    with pytest.raises(UsageError, match=r"has no output 'hidden_states\.3'; did you mean"):
        il.compile(bert(), "numpy", outputs=["hidden_states.3"])


@pytest.mark.parametrize("target", ["numpy", "torch", "onnx"])
def test_outputs_that_the_configuration_asks_for(target: str):
    both = {"output_hidden_states": True, "output_attentions": True}
    model = bert(**both)
    made = session(model, target)(**text())
    assert sorted(made) == ["attentions.0", "attentions.1", "hidden_states.0", "hidden_states.1", "hidden_states.2", "logits"]
    agree(made, reference(bert().graph(None, list(made)), text(), bert().weights))
    assert list(session(bert(output_attentions=True), target).outputs) == ["logits", "attentions.0", "attentions.1"]
    assert list(session(model, target, None, ("logits",)).outputs) == ["logits"]  # but asking for some is asking for no others


@pytest.mark.parametrize(("field", "value"), [("output_hidden_states", "yes"), ("output_attentions", 3)])
def test_a_configuration_that_asks_for_nonsense(field: str, value: Any):
    with pytest.raises(ConfigError, match=field):
        il.from_config({**config_json("bert", "BertModel", {}), field: value})


# ---- inputs left out ----------------------------------------------------------------------------

SAME: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "all seen, one type": ({"attention_mask": 1, "token_type_ids": 0}, ("input_ids",)),
    "counted positions": ({"attention_mask": 1, "token_type_ids": 0, "position_ids": np.arange(9)}, ("input_ids",)),
    "types alone": ({"attention_mask": 1}, ("input_ids", "token_type_ids")),
}


@pytest.mark.parametrize("target", COMPILED + EXPORTED)
@pytest.mark.parametrize("kind", SAME)
def test_inputs_left_out(kind: str, target: str):
    """An optional input that is left out means what the reference makes of that."""
    filled, given = SAME[kind]
    arrays = {k: x for k, x in text().items() if k in given}
    whole = text() | {k: np.broadcast_to(x, (3, 9)).astype(np.int64) for k, x in filled.items()}
    made = session(bert(), target, given)(**arrays)
    agree(made, reference(bert().graph(list(whole)), whole, bert().weights))


@pytest.mark.parametrize("target", COMPILED)
def test_embeddings_in_place_of_tokens(target: str):
    model, arrays = bert(), text()
    words = model.weights.array("bert.embeddings.word_embeddings.weight")[arrays["input_ids"]]
    given = {"inputs_embeds": words, **{k: arrays[k] for k in ("attention_mask", "token_type_ids")}}
    agree(session(model, target, tuple(given))(**given), reference(model.graph(), arrays, model.weights))


@pytest.mark.parametrize("target", COMPILED + EXPORTED)
def test_a_row_that_sees_nothing(target: str):
    """Where a row is all padding, every target makes the same finite numbers of it."""
    arrays = text()
    arrays["attention_mask"][1] = 0
    wanted = ("logits", "hidden_states.1", "attentions.0")
    made = session(bert(), target, None, wanted)(**arrays)
    assert np.all(made["attentions.0"][1] == 0)
    agree(made, reference(bert().graph(None, wanted), arrays, bert().weights))


# ---- inputs that do not fit ---------------------------------------------------------------------

MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"input_id": np.ones((3, 9), int)}, "BertForTokenClassification has no input 'input_id'; did you mean 'input_ids'?"),
    "missing": ({"input_ids": None}, "BertForTokenClassification lacks input 'input_ids': i64[batch seq]; it takes "),
    "rank": ({"input_ids": np.ones(9, int)}, "input 'input_ids' has shape [9], expected i64[batch seq]"),
    "dtype": ({"input_ids": np.ones((3, 9))}, "input 'input_ids' is of dtype float64, expected i64[batch seq]"),
    "text": ({"input_ids": np.full((3, 9), "fox")}, "input 'input_ids' is of dtype <U3, expected i64[batch seq]"),
    "ragged": ({"input_ids": [[5, 6], [7]]}, "input 'input_ids' is no array: "),
    "batch": ({"attention_mask": np.ones((2, 9), int)}, "input 'attention_mask' has batch=2, but 'input_ids' has batch=3"),
    "length": ({"token_type_ids": np.ones((3, 8), int)}, "input 'token_type_ids' has seq=8, but 'input_ids' has seq=9"),
    "positions": (text(3, 65), "BertForTokenClassification: seq is 65, expected at most 64: the model has no positions beyond"),
}


@pytest.mark.parametrize("target", COMPILED + EXPORTED)
@pytest.mark.parametrize("kind", MISFITS)
def test_inputs_that_do_not_fit(kind: str, target: str):
    changes, told = MISFITS[kind]
    with pytest.raises(InputError) as error:
        session(bert(), target)(**{**text(), **changes})
    assert told in str(error.value)
    agree(session(bert(), target)(**text()), reference(bert().graph(), text(), bert().weights))  # the session goes on


@functools.cache
def sound(head: str) -> Model:
    return il.from_config(config_json("wav2vec2", head, {}), head, seed=5)


@pytest.mark.parametrize("target", ["numpy", "onnxruntime", "torch", "onnx"])
@pytest.mark.parametrize("head", ["Wav2Vec2ForCTC", "Wav2Vec2ForXVector"])
def test_too_few_samples(head: str, target: str):
    least = sound(head).graph().bounds["samples"]
    assert least == {"Wav2Vec2ForCTC": 60, "Wav2Vec2ForXVector": 300}[head]
    opened = session(sound(head), target)
    given = lambda n: {"input_values": np.ones((1, n), np.float32), "attention_mask": np.ones((1, n), np.int64)}
    assert opened(**given(least))["logits"].shape == {"Wav2Vec2ForCTC": (1, 1, 33), "Wav2Vec2ForXVector": (1, 12)}[head]
    with pytest.raises(InputError, match=rf"^input 'input_values' has samples={least - 1}, expected at least {least}$"):
        opened(**given(least - 1))


def test_numbers_that_are_lists_and_other_dtypes_of_the_kind():
    opened, arrays = session(bert(), "onnxruntime"), text(1, 4)
    expected = opened(**arrays)["logits"]
    np.testing.assert_array_equal(opened(**{k: x.astype(np.int32) for k, x in arrays.items()})["logits"], expected)
    np.testing.assert_array_equal(opened(**{k: x.tolist() for k, x in arrays.items()})["logits"], expected)
    np.testing.assert_array_equal(opened(**{**arrays, "attention_mask": arrays["attention_mask"] == 1})["logits"], expected)


@pytest.mark.parametrize("inputs", [["attention_mask"], ["token_type_ids"], []])
def test_inputs_that_say_nothing_by_themselves(inputs: list[str]):
    told = f"BertForTokenClassification cannot be built for {inputs[0] if inputs else 'nothing'} alone: .*\n  left out are input_ids"
    with pytest.raises(InputError, match=told):
        bert().graph(inputs)


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind in SPECS for head in SPECS[kind].heads], ids=lambda x: x)
def test_made_up_inputs_fit_every_head(kind: str, head: str):
    """Verification draws ids within their tables, sizes within their bounds and masks that fit."""
    model = il.from_config(config_json(kind, head, {}), head)
    small, padded = make_samples(model.graph(), model.config)
    for sample in (small, padded):
        made = il.compile(model, "numpy", dtype="f32")(**sample.arrays)
        assert all(np.isfinite(x[np.broadcast_to(sample.mask(model.graph().outputs[k].type), x.shape)]).all() for k, x in made.items())
    assert {k: x.shape for k, x in small.arrays.items()} != {k: x.shape for k, x in padded.arrays.items()}
    assert any((x == 0).any() for k, x in padded.arrays.items() if "mask" in k) or "attention_mask" not in padded.arrays


# ---- opening and compiling ----------------------------------------------------------------------


def test_open_of_what_cannot_be_opened(tmp_path: Path):
    with pytest.raises(UsageError, match="nowhere does not exist, expected an exported model"):
        il.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no interlingua\.json, expected a folder that `interlingua export` wrote"):
        il.open(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be loaded by onnxruntime"):
        il.open(tmp_path / "model.onnx")


def test_open_of_one_graph_among_several(tmp_path: Path):
    model = il.from_config(config_json("t5", "T5ForConditionalGeneration", {}), "T5ForConditionalGeneration")
    model.export(tmp_path, check=False)
    with pytest.raises(
        UsageError, match=r"has encoder_model\.onnx \(onnx\), decoder_model\.onnx \(onnx\), expected just one.*\n  name the file to open"
    ):
        il.open(tmp_path)
    with pytest.raises(UsageError, match="expected stablehlo"):
        il.open(tmp_path, target="stablehlo")
    by_name, by_file = il.open(tmp_path, name="encoder_model"), il.open(tmp_path / "encoder_model.onnx")
    assert by_name.inputs == by_file.inputs
    assert list(by_name.inputs) == ["input_ids", "attention_mask"]


def test_compile_of_unknown_targets_and_devices(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="target 'onnxruntme' is unknown; did you mean 'onnxruntime'"):
        il.compile(bert(), "onnxruntme")
    for target in COMPILED:
        with pytest.raises((UsageError, NotImplementedError), match="device 'abacus'"):
            il.compile(bert(), target, device="abacus")
    assert issubclass(MissingExtraError, ImportError)  # so `except ImportError` works as for any module
