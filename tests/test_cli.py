"""The command line: what each command prints and writes."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from cli_runs import TEXT, names, run, stock
from processing_files import pictures, write
from safetensors.numpy import load_file, save_file

import interlingua as il
from interlingua import models
from interlingua.exporters.artifact import read_manifest
from interlingua.ir.errors import UsageError


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A masked language model's checkpoint that may be changed."""
    return shutil.copytree(stock("bert", "BertForMaskedLM"), tmp_path / "bert")


# ---- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "export", "verify", "run", "show", "models"])
def test_every_example_of_the_help_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sentences.txt").write_text("one\ntwo\n")
    done = run(*filter(None, [command]), "--help")
    examples = re.findall(r"^    interlingua (.*?)(?:   .*)?$", done.out, re.MULTILINE)
    assert done.code == 0
    assert examples
    for example in examples:
        tried = run(*shlex.split(example))
        # all is understood, up to the model, which is not there
        assert tried.code == 0 if example == "models" else "does not exist, expected a folder or a Hugging Face id" in tried.err, example


def test_help_and_import_are_quick_and_light():
    code = "import sys, interlingua.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnx", "onnxruntime", "torch", "huggingface_hub", "rich"} & set(done.stdout.splitlines()[-1].split())
    for code, most in (("import interlingua.cli as c; c.main(['--help'])", 0.5), ("import interlingua", 0.15)):
        # seconds of computing, so that a machine with other work does not count against it
        assert min(_seconds(code) for _ in range(3)) <= most


def _seconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_version_and_no_command():
    assert run("--version").out == f"interlingua {il.__version__}\n"
    assert run().code == 2
    started = subprocess.run([sys.executable, "-m", "interlingua.cli", "--version"], capture_output=True, text=True, check=True)
    assert started.stdout == f"interlingua {il.__version__}\n"


def test_models_lists_every_head_and_a_task_that_chooses_it():
    card, found = None, set()
    for line in run("models").out.splitlines():
        if not line.startswith(" "):
            card = models.card(line.replace("-", "_"))
            continue
        head, *task = line.split()
        found.add((line, head))
        assert not task or models.choose_head(card, {}, task[0])[0] == head
    assert {head for _, head in found} == {head for name in models.names() for head in models.card(name).heads}


# ---- export -------------------------------------------------------------------------------------


def test_export_in_place_and_run_what_was_written(bert: Path):
    before = names(bert)
    done = run("export", bert)
    assert done.code == 0
    assert re.search(
        rf"{bert}/model.onnx  \d+.\d kB  \+ model.safetensors 12\d.\d kB\n  logits: f32\[batch seq 400\]  checked, off by at most \S+e-0[67]\n",
        done.out,
    )
    assert names(bert) == sorted([*before, "interlingua.json", "model.onnx"])
    told = run("run", bert, "--text", TEXT)
    assert told.out == run("run", bert, "--text", TEXT, "--on", "torch").out
    (bert / "model.onnx").write_bytes(b"damaged")
    assert "is not the file that interlingua.json lists" in run("run", bert, "--text", TEXT).err  # so it was the exported graph that ran


def test_export_of_caches_counts_alike_outputs_once(tmp_path: Path):
    done = run("export", stock("t5", "T5ForConditionalGeneration"), tmp_path / "t5")
    assert [g.file for g in read_manifest(tmp_path / "t5")] == ["encoder_model.onnx", "decoder_model.onnx"]
    assert "  present.*.decoder.key: 3 of f32[batch 4 past+decoder_seq 8]  checked" in done.out
    done = run("export", stock("gpt2", "GPT2LMHeadModel"), tmp_path / "gpt2", "--no-cache", "--no-check", "--opset", 18)
    (graph,) = read_manifest(tmp_path / "gpt2")
    assert (list(graph.inputs), graph.details, graph.errors) == (["input_ids", "attention_mask"], {"opset": 18, "by_rows": True}, {})
    assert "checked" not in done.out


@pytest.mark.parametrize("to", ["stablehlo", "saved_model"])
def test_export_to_other_formats(to: str, bert: Path, tmp_path: Path):
    done = run("export", bert, tmp_path / "out", "--to", to, "--output", "logits", "--output", "hidden_states.*")
    assert (done.code, done.out.count("checked, off by at most")) == (0, 2)
    own = run("run", tmp_path / "out", "--text", TEXT, "--head", "masked-lm")
    assert own.out == run("run", bert, "--text", TEXT).out


def test_chosen_inputs_and_heads(bert: Path, tmp_path: Path):
    assert run("export", bert, tmp_path / "out", "--input", "input_ids").code == 0
    assert run("run", tmp_path / "out", "--text", TEXT).out == run("run", bert, "--text", TEXT).out  # a mask of ones says nothing
    texts = ("--text", TEXT, "--text", "the lazy [MASK] jumps over")  # not padded, so that the mask says nothing of them either
    assert run("run", tmp_path / "out", *texts).out == run("run", bert, *texts).out
    assert run("export", stock("bert", "BertForNextSentencePrediction"), tmp_path / "pairs", "--input", "input_ids", "--no-check").code == 0
    done = run("run", tmp_path / "pairs", "--text", "the fox", "--pair", "jumps")
    assert done.code == 2
    told = "BertForNextSentencePrediction takes no 'token_type_ids', without which these inputs mean something else"
    assert f"{told}\n  export it again with --input token_type_ids among others" in done.err


# ---- run ----------------------------------------------------------------------------------------


def test_run_prints_what_the_model_says(bert: Path):
    from interlingua.runtime.processing import processor_for

    model, processor = il.load(bert), processor_for(bert, json.loads((bert / "config.json").read_text()))
    inputs = processor.inputs(text=TEXT)
    logits = il.compile(model, "numpy")(**inputs)["logits"][0, 2]
    scores = np.exp(logits - logits.max())
    best = np.argsort(-scores)[:3]
    rows = [line.split() for line in run("run", bert, "--text", TEXT, "--top-k", 3).out.splitlines()[1:]]
    assert [(int(r[1]), float(r[0])) for r in rows] == [(i, pytest.approx(scores[i] / scores.sum(), abs=1e-4)) for i in best]


@pytest.mark.parametrize("on", ["xla", "torch", "tensorflow", "numpy"])
def test_run_says_the_same_on_every_target(on: str, bert: Path):
    assert run("run", bert, "--text", TEXT, "--on", on).out == run("run", bert, "--text", TEXT).out


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture and a sound."""
    folder = tmp_path_factory.mktemp("media")
    pictures()[0].save(folder / "picture.png")
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((np.sin(np.arange(4000) / 9) * 9000).astype("<i2").tobytes())
    return folder


HEADS: dict[tuple[str, str], tuple[list[str], str]] = {
    ("bert", "BertForQuestionAnswering"): (["--text", "who jumps", "--pair", "the lazy dog jumps"], r" score  start  end  answer\n"),
    ("bert", "BertForMultipleChoice"): (["--text", "the fox", "--pair", "jumps", "--pair", "sleeps"], r"0\.\d{4}       \d  sleeps\n"),
    ("bert", "BertForNextSentencePrediction"): (["--text", "the fox", "--pair", "jumps"], r"is not next +0\.\d{4}"),
    ("bert", "BertModel"): (["--text", "the fox", "--text", "a dog jumps"], r"pooler_output +1  \[32\] .* 1\.0000\n"),
    ("gpt2", "GPT2LMHeadModel"): (["--text", "the quick"], r"generated_text\n.*the quick.{20}"),
    ("gpt2", "GPT2DoubleHeadsModel"): (["--text", "the", "--pair", "fox", "--pair", "fox"], r" score  choice  text\n0\.5000 .*\n0\.5000 "),
    ("t5", "T5ForConditionalGeneration"): (["--text", "the quick"], r"generated_text\n.{5}"),
    ("t5", "T5Model"): (["--text", "the quick"], r"\nlast_hidden_state +\[1 32\]"),
    ("vit", "ViTForImageClassification"): (["--image", "picture.png"], r"LABEL_\d +0\.\d{4}\n"),
    ("wav2vec2", "Wav2Vec2ForCTC"): (["--audio", "sound.wav"], r"text\n"),
}


@pytest.mark.parametrize(("kind", "head"), HEADS, ids=lambda x: x)
def test_run_of_heads(kind: str, head: str, media: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(media)
    arguments, told = HEADS[kind, head]
    done = run("run", stock(kind, head), *arguments)
    assert (done.code, bool(re.search(told, done.out))) == (0, True), done
    assert ("note: sound.wav was resampled from 8000 to 16000 Hz" in done.err) == (kind == "wav2vec2")
    assert "…" not in done.out  # a transcript is not cut, however long
    assert kind != "wav2vec2" or len(done.out) > 80


@pytest.mark.parametrize("to", ["onnx", "stablehlo"])
@pytest.mark.parametrize(("kind", "head"), [("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")])
def test_run_of_exported_caches_writes_what_the_checkpoint_does(kind: str, head: str, to: str, tmp_path: Path):
    folder = write(shutil.copytree(stock(kind, head), tmp_path / head), generation_config={"max_length": 9, "decoder_start_token_id": 0})
    run("export", folder, tmp_path / kind, "--to", to, "--no-check")
    texts = ("--text", "the quick fox", "--text", "she")
    whole = run("run", folder, *texts)
    assert (whole.code, whole.out.count("\n")) == (0, 3)
    assert run("run", tmp_path / kind, *texts).out == whole.out


def test_run_of_one_graph_that_generates(tmp_path: Path):
    """What it was exported to write is what is written, however much the table of a checkpoint would show."""
    for kind, head in (("gpt2", "GPT2LMHeadModel"), ("t5", "T5ForConditionalGeneration")):
        run("export", stock(kind, head), tmp_path / kind, "--generate", 6, "--no-check")
        pipe = il.pipeline(None, stock(kind, head), max_new_tokens=6, do_sample=False, num_beams=1)
        told = run("run", tmp_path / kind, "--text", "the quick fox")
        (text,) = pipe("the quick fox")[0].values()
        assert told.out.splitlines()[1] in (text, repr(text))
        with pytest.raises(UsageError, match=r"writes 6 tokens, the likeliest ones.*expected no 'temperature'"):
            il.pipeline(None, tmp_path / kind)("the", temperature=2.0)


def test_run_of_a_task(tmp_path: Path):
    nli = shutil.copytree(stock("bert", "BertForSequenceClassification"), tmp_path / "nli")
    asked = ("--text", "the fox", "--label", "jumps", "--label", "sleeps")
    done = run("run", nli, "--task", "zero-shot-classification", *asked)
    expected = il.pipeline("zero-shot-classification", nli)("the fox", ["jumps", "sleeps"])
    lines = [f"{label:<6}  {score:.4f}" for label, score in zip(expected["labels"], expected["scores"], strict=True)]
    assert done.out.splitlines()[1:] == lines
    done = run("run", nli, *asked)
    assert (done.code, "got --label, expected --text and --pair: BertForSequenceClassification does text-classification" in done.err) == (2, True)


def test_texts_from_a_file(bert: Path, tmp_path: Path):
    (tmp_path / "texts").write_text(f"{TEXT}\n\n[MASK] dogs\n")
    assert run("run", bert, "--text", f"@{tmp_path}/texts").out == run("run", bert, "--text", TEXT, "--text", "[MASK] dogs").out
    assert "@ user" in run("run", bert, "--text", "@@user [MASK]", "--top-k", 1).out
    assert "cannot be read: No such file or directory; a text that starts with @ is written @@" in run("run", bert, "--text", "@nowhere").err


# ---- verify and show ----------------------------------------------------------------------------


def test_verify(bert: Path, tmp_path: Path):
    done = run("verify", bert, "--on", "onnxruntime", "--on", "numpy", "--output", "logits", "--output", "hidden_states.1")
    assert (done.code, done.out.count(" ok ")) == (0, 8)
    assert "BertForMaskedLM: 8 outputs agree with the float64 reference; worst: " in done.out
    weights = dict(load_file(bert / "model.safetensors"))
    weights["bert.encoder.layer.1.attention.self.key.weight"][3, 4] += 0.5
    save_file(weights, shutil.copytree(bert, tmp_path / "wrong") / "model.safetensors")
    done = run("verify", tmp_path / "wrong", "--against", bert, "--on", "onnxruntime")
    assert (done.code, done.out.count("DIFFERS")) == (1, 2)
    assert "onnxruntime: the first layer that differs is body.blocks.1.attention.layer.k (linear)" in done.out


def test_show(bert: Path):
    from interlingua.ir.text import parse_graph

    model = il.load(bert)
    head, _, text = run("show", bert).out.partition("\n\n")
    assert head.startswith("BertForMaskedLM: 55 nodes, 42 parameters of 30,106 numbers, 0.1 MB\n  in   input_ids: i64[batch seq]\n")
    assert str(parse_graph(text)) == str(model.graph())
    lines = run("show", bert, "--parameters").out.splitlines()
    assert {p.key for p in model.params} <= {line.split()[0] for line in lines if line}
    assert "attentions.1: f32[batch 4 seq seq]" in run("show", bert, "--output", "attentions.*").out


def test_page(bert: Path, tmp_path: Path):
    page = tmp_path / "graph.html"
    assert run("show", bert, "--html", page).out.endswith(f"wrote {page}\n")
    text, graph = page.read_text(), il.load(bert).graph()
    assert text.count('<div class="n">') == len(graph.live()) + len(graph.inputs) + len(graph.outputs)
    assert text.count("<details") == text.count("</details>")
    places = re.findall(r'<details data-place="(.*?)"( open)?>', text)
    assert ("body.blocks", " open") in places  # what one sees first: the layers, folded
    assert ("body.blocks.1", "") in places
    anchors = set(re.findall(r'id="(v.*?)"', text))
    assert set(re.findall(r'href="#(.*?)"', text)) <= anchors
    done = run("show", bert, "--html", page)
    assert (done.code, "already has graph.html" in done.err) == (2, True)
    assert run("show", bert, "--html", page, "--overwrite").code == 0


def test_page_of_large_arrays_stays_small():
    from interlingua.ir import ops
    from interlingua.runtime.showing import page

    class Table(il.Layer):
        def forward(self, x):
            return {"y": x + ops.literal(value=np.arange(40_000.0).reshape(200, 200)), "z": ops.literal(value=[1, 2]) + 1}

    model = il.Model(Table(), {"x": "f32[n 200 200]"})
    text = page(model, model.graph())
    assert len(text) < 8000
    assert "value=40,000 numbers [200 200]" in text
    assert "value=[1, 2]" in text
