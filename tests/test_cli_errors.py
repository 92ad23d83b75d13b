"""The command line where something is wrong: one clear message, an exit code, nothing half-written; and what it says while it works."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_runs import TEXT, names, run, stock
from oracle_specs import config_json
from processing_files import pictures, write
from safetensors.numpy import load_file, save_file

import interlingua as il
from interlingua.runtime import steps


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A masked language model's checkpoint that may be changed."""
    return shutil.copytree(stock("bert", "BertForMaskedLM"), tmp_path / "bert")


# ---- what bad input gets ------------------------------------------------------------------------

WRONG: dict[str, tuple[str, int, str]] = {
    "flag": ("export {bert} --too onnx", 2, "No such option: --too"),
    "format": ("export {bert} --to onx", 2, "'onx' is unknown; did you mean 'onnx'?"),
    "target": ("run {bert} --text a --on tensorfow", 2, "'tensorfow' is unknown; did you mean 'tensorflow'?"),
    "no folder": ("export {bert}/nowhere", 2, "nowhere' does not exist, expected a folder or a Hugging Face id"),
    "a file": ("export {bert}/config.json", 2, "is a file, expected a folder or a Hugging Face id\n  its folder is "),
    "head": ("export {bert} --head BertForMaskedML", 2, "bert has no head 'BertForMaskedML'; did you mean 'BertForMaskedLM'?"),
    "task": ("export {bert} --head mask-lm", 2, "bert has no head 'mask-lm'; did you mean 'masked-lm'?"),
    "other head": ("export {bert} --head BertForTokenClassification", 1, "missing: classifier.weight\n  missing: classifier.bias"),
    "input": ("export {bert} --input input_id", 2, "BertForMaskedLM has no input 'input_id'; did you mean 'input_ids'?"),
    "output": ("export {bert} --output logit", 2, "BertForMaskedLM has no output 'logit'; did you mean 'logits'?"),
    "opset": ("export {bert} --opset 5", 2, "Invalid value for '--opset': .* 17"),
    "a pass that is none": ("export {bert} --switch-off flaten", 2, "pass 'flaten' is unknown; did you mean 'flatten'"),
    "a pass of another format": ("export {bert} --to stablehlo --switch-off flatten", 2, "it is for ONNX, not for stablehlo"),
    "an unknown scheme": ("export {bert} --quantize int3", 2, "'int3' is unknown"),
    "a budget of nothing": ("export {bert} --max-error 0.1", 2, "expected quantize='int8'"),
    "opset of another format": ("export {bert} --to stablehlo --opset 20", 2, "it is for ONNX, not for stablehlo"),
    "cache": ("export {bert} --cache", 2, "BertForMaskedLM has no caches: only heads that generate have"),
    "an op without a counterpart": (
        "export {ctc} {bert}/ctc --input input_values --input labels",
        1,
        r"ONNX opset 23 cannot express ctc_loss\n  ctc_loss in .*\n  choose another target, or leave out the outputs that need it",
    ),
    "no input": ("run {bert}", 2, "got no input, expected --text"),
    "another kind of input": ("run {bert} --image picture.png", 2, "got --image, expected --text: BertForMaskedLM does fill-mask"),
    "an unknown task": ("run {bert} --task fil-mask", 2, "task 'fil-mask' is unknown; did you mean 'fill-mask'?"),
    "a task of another checkpoint": ("run {bert} --task ner --text a", 1, "saved as BertForMaskedLM, expected .* BertForTokenClassification fits"),
    "no file": ("run {vit} --image nowhere.png", 2, "nowhere.png: no such image file"),
    "no picture": ("run {vit} --image {bert}/config.json", 1, "config.json: not an image"),
    "no sound": ("run {ctc} --audio {bert}/config.json", 1, "config.json: not a WAV file"),
    "nothing to fill in": ("run {bert} --text fox", 2, r"the text has nothing to fill in, expected at least one \[MASK\]"),
    "choices": ("run {bert} --head multiple-choice --text a --pair b", 1, "missing: classifier.weight"),
    "device": ("run {bert} --text a[MASK] --device cuda", 1, "device 'cuda' needs CUDAExecutionProvider"),
    "unknown device": ("run {bert} --text a[MASK] --device gpu", 2, "device 'gpu' is unknown"),
    "no models like this": ("verify {bert} --against {vit}", 2, "vit has no head 'BertForMaskedLM'"),
    "page in a file": ("show {bert} --html {bert}/config.json/page.html", 2, "config.json is a file, expected a folder"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_use(kind: str, bert: Path):
    line, code, told = WRONG[kind]
    before = names(bert)
    places = {"bert": bert, "vit": stock("vit", "ViTForImageClassification"), "ctc": stock("wav2vec2", "Wav2Vec2ForCTC")}
    done = run(*(word.format(**places) for word in line.split()))
    assert (done.code, done.out, names(bert)) == (code, "", before), done
    assert re.search(told, done.err), done.err


def test_a_choosing_head_needs_choices():
    done = run("run", stock("bert", "BertForMultipleChoice"), "--text", "the fox", "--pair", "jumps")
    assert (done.code, "got 1 choices, expected at least two that may continue the text" in done.err) == (2, True)


def test_a_model_of_two_kinds_of_input_needs_both(tmp_path: Path):
    pictures()[0].save(tmp_path / "picture.png")
    done = run("run", stock("clip", "CLIPModel"), "--image", tmp_path / "picture.png")
    assert (done.code, done.err) == (2, "error: sample 0 has image, expected image and candidate_labels\n")
    done = run("run", stock("clip", "CLIPModel"), "--image", tmp_path / "picture.png", "--task", "feature-extraction")
    assert (done.code, done.err) == (2, "error: CLIPModel reads image and text, got image alone\n  give text too, or choose another head\n")


def test_verification_against_another_model(bert: Path, tmp_path: Path):
    il.from_config(config_json("bert", "BertForMaskedLM", {"vocab_size": 400, "hidden_size": 64})).save(tmp_path / "wide")
    done = run("verify", bert, "--against", tmp_path / "wide", "--on", "numpy")
    assert (done.code, done.out) == (2, "")
    assert "wide is another model: bert.embeddings.word_embeddings.weight has shape [400, 64], expected [400, 32]" in done.err


def test_existing_output(bert: Path):
    assert run("export", bert, "--no-check").code == 0
    before = (bert / "model.onnx").stat().st_mtime_ns
    done = run("export", bert)
    assert (done.code, (bert / "model.onnx").stat().st_mtime_ns) == (2, before)
    assert "already has model.onnx\n  overwrite it (--overwrite" in done.err
    assert run("export", bert, "--overwrite").code == 0


def damage(folder: Path, kind: str) -> None:
    """Spoils a checkpoint."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    content, weights = file.read_bytes(), dict(load_file(file))
    match kind:
        case "header beyond the file":
            file.write_bytes((1 << 40).to_bytes(8, "little") + content[8:])
        case "truncated":
            file.write_bytes(content[:-100])
        case "type":
            write(folder, config={**config, "model_type": "birt"})
        case "activation":
            write(folder, config={**config, "hidden_act": "gellu"})
        case "config":
            (folder / "config.json").write_text("{")
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            file.unlink()
        case "weights":
            weights["bert.embeddings.LayerNorm.wieght"] = weights.pop("bert.embeddings.LayerNorm.weight")
            weights["cls.predictions.bias"] = weights["cls.predictions.bias"][:7].copy()
            del weights["bert.encoder.layer.1.output.dense.bias"]
            save_file(weights, file)


DAMAGE = {
    "header beyond the file": (1, r"model.safetensors: .*1099511627776"),
    "truncated": (1, "model.safetensors: .*\n  the file is truncated or corrupt"),
    "type": (2, "config.json: model_type 'birt' is not an architecture known here; did you mean 'bert'?"),
    "activation": (2, "config.json: hidden_act is 'gellu'.* did you mean 'gelu'?"),
    "config": (1, "config.json"),
    "no config": (1, "config.json: no such file, expected the configuration of the model"),
    "no weights": (1, "found: no file of weights"),
    "weights": (
        1,
        "2 weights are missing, 1 misshapen and 1 unknown\n  missing: bert.embeddings.LayerNorm.weight\n"
        "  missing: bert.encoder.layer.1.output.dense.bias\n  misshapen: cls.predictions.bias has shape [7], expected [400]\n"
        "  unknown: bert.embeddings.LayerNorm.wieght\n",
    ),
}


@pytest.mark.parametrize("command", ["export", "verify", "run", "show"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints(kind: str, command: str, bert: Path):
    damage(bert, kind)
    before = names(bert)
    done = run(command, bert, *(["--text", TEXT] if command == "run" else []))
    code, told = DAMAGE[kind]
    assert (done.code, done.out, names(bert)) == (code, "", before), done
    assert re.search(told, done.err) or told in done.err, done.err


def test_a_pickle_with_code_is_refused_and_not_run(bert: Path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(bert / "owned"),)

    (bert / "model.safetensors").unlink()
    with zipfile.ZipFile(bert / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Hostile()}, protocol=2))
        archive.writestr("archive/version", "3")
    done = run("export", bert)
    assert (done.code, (bert / "owned").exists()) == (1, False)
    assert re.search(r"pytorch_model.bin.*mkdir", done.err, re.DOTALL)


@pytest.mark.parametrize(("target", "module"), [("torch", "torch"), ("tensorflow", "tensorflow"), ("xla", "jax")])
def test_a_framework_that_is_not_installed(target: str, module: str, bert: Path):
    code = f"import sys; sys.modules[{module!r}] = None; from interlingua.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(bert), "--text", TEXT, "--on", target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(
        rf"^error: .* needs the extra '{module}', which is not installed\n  run: pip install 'interlingua\[{module}\]'$", done.stderr, re.MULTILINE
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_a_full_disk_leaves_nothing(name: str, bert: Path, tmp_path: Path):
    """The kernel refuses what is larger than a limit, as a full disk does."""
    size = {"model.safetensors": 20_000, "model.onnx": 4_000}[name]
    arguments = ["export", str(bert), *([str(tmp_path / "out")] if name == "model.safetensors" else [])]
    limit = f"import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    code = f"{limit}; from interlingua.cli import main; main()"
    before = names(bert)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the disk is full (File too large), nothing was written" in done.stderr
    assert (names(bert), names(tmp_path)) == (before, ["bert"])


# ---- progress and warnings ----------------------------------------------------------------------


def test_long_work_says_what_it_does(bert: Path, monkeypatch: pytest.MonkeyPatch):
    assert run("export", bert).err == ""
    monkeypatch.setattr(steps, "LATE", 0)
    done = run("export", bert, "--overwrite")
    lines = done.err.splitlines()
    assert f"writing onnx to {bert} ..." in lines
    assert "onnx: computing the float64 reference, padded batch ..." in lines
    assert lines[-1] == "onnx: running what was written ..."


def test_on_a_terminal_progress_is_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(steps, "LATE", 0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    said = steps.Steps()
    said("reading the weights")
    said._timer.join()
    said("checking")
    said.end()
    text = sys.stderr.getvalue()
    assert "reading the weights" in text
    assert text.endswith("\x1b[2K")  # the line is cleared


@pytest.mark.filterwarnings("default")
def test_weights_that_nothing_needs_are_a_warning(bert: Path):
    save_file({**load_file(bert / "model.safetensors"), "bert.decoy": np.zeros(2, np.float32)}, bert / "model.safetensors")
    done = run("show", bert, "--parameters")
    assert (done.code, done.err.count("\n")) == (0, 1)
    assert done.err.startswith("warning: ")
    assert "bert.decoy; they are not used" in done.err
