"""The coverage page of the text encoders: python tests/coverage_page.py [--rows RoBERTa,ELECTRA] [--quick] [--tokenizers]

Measures each row of the wave and writes docs/coverage.md. Results are kept in .cache/coverage.json, so that it can be run in pieces: rows that are
named are measured anew, without `--rows` those that have no result. `--quick` takes one of the two sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("USE_TF", "0")

import numpy as np
from derived_rows import Derived, public_heads, rows
from oracle import REFERENCE
from parity_table import Error, case_errors, greatest
from targets import FRAMEWORKS, gradients, load

from interlingua import models

TESTS = Path(__file__).parent
PAGE, CACHE = TESTS.parent / "docs" / "coverage.md", TESTS.parent / ".cache" / "coverage.json"
TARGETS = ("torch", "tensorflow", "jax", "onnx", "stablehlo")


@dataclass(frozen=True)
class Entry:
    """A row of the page: the card that reads its checkpoints, what its configuration has otherwise, and which tokenizer it ships."""

    card: str
    tokenizer: str
    config: dict[str, Any] = field(default_factory=dict)


_FAIRSEQ = {"max_position_embeddings": 40, "layer_norm_eps": 1e-5}
_BORT = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5, "intermediate_size": 24, "num_hidden_layers": 3}
ENTRIES: dict[str, Entry] = {
    "ALBERT": Entry("albert", "albert"),
    "BERTweet": Entry("roberta", "Bertweet", {**_FAIRSEQ, "max_position_embeddings": 34}),
    "BERT For Sequence Generation": Entry("bert_generation", "bert-generation"),
    "BigBird-RoBERTa": Entry("big_bird", "big_bird"),
    "BORT": Entry("bert", "roberta", _BORT),
    "CamemBERT": Entry("camembert", "camembert"),
    "CANINE": Entry("canine", "Canine"),
    "ConvBERT": Entry("convbert", "convbert"),
    "Data2VecText": Entry("data2vec_text", "roberta"),
    "DeBERTa": Entry("deberta", "deberta"),
    "DeBERTa-v2": Entry("deberta_v2", "deberta-v2"),
    "DistilBERT": Entry("distilbert", "distilbert"),
    "DPR": Entry("dpr", "dpr"),
    "ELECTRA": Entry("electra", "electra"),
    "FlauBERT": Entry("flaubert", "Flaubert"),
    "FNet": Entry("fnet", "fnet"),
    "Funnel Transformer": Entry("funnel", "funnel"),
    "I-BERT": Entry("ibert", "roberta"),
    "Longformer": Entry("longformer", "longformer"),
    "LUKE": Entry("luke", "luke"),
    "mLUKE": Entry("luke", "mluke", {**_FAIRSEQ, "max_position_embeddings": 50}),
    "Megatron-BERT": Entry("megatron_bert", "bert"),
    "MobileBERT": Entry("mobilebert", "mobilebert"),
    "MPNet": Entry("mpnet", "mpnet"),
    "Nyströmformer": Entry("nystromformer", "albert"),
    "PhoBERT": Entry("roberta", "Phobert", _FAIRSEQ),
    "QDQBert": Entry("qdqbert", "bert"),
    "RemBERT": Entry("rembert", "rembert"),
    "RetriBERT": Entry("retribert", "retribert"),
    "RoBERTa": Entry("roberta", "roberta"),
    "RoFormer": Entry("roformer", "RoFormer"),
    "Splinter": Entry("splinter", "splinter"),
    "SqueezeBert": Entry("squeezebert", "squeezebert"),
    "XLM": Entry("xlm", "XLM"),
    "XLM-RoBERTa": Entry("xlm_roberta", "xlm-roberta"),
    "XLM-RoBERTa-XL": Entry("xlm_roberta_xl", "xlm-roberta"),
    "XLNet": Entry("xlnet", "xlnet"),
    "YOSO": Entry("yoso", "albert"),
}
Result = dict[str, Any]


def measure(entry: Entry, quick: bool) -> Result:
    """Greatest errors of a row on each target and of its gradients, and how many of the reference's heads it has."""
    samples = [replace(row, config=dict(entry.config)) for row in rows(entry.card).cases if row.id == "A" or not quick]
    found: dict[str, list[Error]] = {name: [] for name in (*TARGETS, "gradient")}
    for row in samples:
        print(f"  {row}", file=sys.stderr, flush=True)
        for target, error in case_errors(row.case(), TARGETS, quick=True).items():
            found[target].append(error)
        if row.id == "A" and row.has_loss():
            found["gradient"].append(gradient_error(row))
    heads = {row.head for row in samples}
    return {name: greatest(errors) for name, errors in found.items()} | {"heads": [len(heads), len(public_heads(entry.card))], "cases": len(samples)}


def gradient_error(row: Derived) -> Error:
    """The greatest error of a weight's gradient over the three frameworks."""
    sample = row.case()
    model, truth = load(sample), sample.training
    errors = []
    for framework in FRAMEWORKS:
        _, made = gradients(model, framework, {**sample.inputs, **(sample.labels or {})}, truth.losses, by_op=True)
        apart = {key: float(np.abs(made[key] - true).max(initial=0)) for key, true in truth.gradients.items()}
        errors += [(error / truth.tolerance(key), error) for key, error in apart.items()]
    return greatest(errors)


def measure_stored() -> Result:
    """QDQBert against the stored outputs of its reference; a tenth of an output's deviation is allowed."""
    import test_qdqbert

    found: dict[str, list[Error]] = {target: [] for target in TARGETS}
    for head in test_qdqbert.HEADS:
        print(f"  {head}", file=sys.stderr, flush=True)
        for target in TARGETS:
            found[target].append(stored_error(head, target))
    total = len(models.card("qdqbert").heads)
    return {target: greatest(errors) for target, errors in found.items()} | {"heads": [len(test_qdqbert.HEADS), total], "cases": total}


def stored_error(head: str, target: str) -> Error:
    """The greatest error of one stored case, padding left out."""
    import tempfile

    import test_qdqbert

    import interlingua as il

    inputs, outputs = test_qdqbert._stored(head)
    model = il.load(test_qdqbert.DATA / head, head)
    with tempfile.TemporaryDirectory() as folder:
        if target in ("onnx", "stablehlo"):
            model.export(folder, to=target, inputs=list(inputs), outputs=list(outputs), check=False)
            session = il.open(folder)
        else:
            options = {"jit_compile": False} if target == "tensorflow" else {}
            session = il.compile(model, {"jax": "xla"}.get(target, target), inputs=list(inputs), outputs=list(outputs), **options)
        made = session(**inputs)
    mask = inputs["attention_mask"].reshape(-1, inputs["attention_mask"].shape[-1]).astype(bool)
    errors = []
    for name, true in outputs.items():
        apart = np.abs(made[name] - true)
        apart = apart[mask] if true.shape[:2] == mask.shape else apart
        errors.append((float(apart.max() / (0.1 * true.std())), float(apart.max())))
    return greatest(errors)


def measure_tokenizers() -> dict[str, list[int]]:
    """tokenizer -> how many of its tests pass, and how many there are."""
    report = CACHE.with_name("tokenizers.xml")
    files = [str(TESTS / name) for name in ("test_tokenizers.py", "test_word_tokenizers.py")]
    subprocess.run([sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *files], cwd=TESTS.parent, check=False)
    names = sorted({entry.tokenizer for entry in ENTRIES.values()}, key=len, reverse=True)
    found: dict[str, list[int]] = {name: [0, 0] for name in names}
    for test in xml.etree.ElementTree.parse(report).iter("testcase"):
        id = (test.get("name") or "").partition("[")[2].rstrip("]")
        name = next((n for n in names if id == n or id.startswith(f"{n}-")), None)
        if name:
            found[name][0] += not list(test)  # a child says that it failed or was skipped
            found[name][1] += 1
    return found


def page(results: dict[str, Result], tokenizers: dict[str, list[int]]) -> str:
    """The results as Markdown."""
    lines = ["# Coverage of the text encoders", "", "Written by `make coverage`; nothing here is written by hand.", ""]
    lines += ["| row | card | heads | " + " | ".join(TARGETS) + " | gradient | tokenizer |", "|---" * (5 + len(TARGETS)) + "|"]
    for name, entry in ENTRIES.items():
        result = results.get(name, {})
        cells = [_cell(result.get(column)) for column in (*TARGETS, "gradient")]
        heads = "/".join(map(str, result.get("heads", ["not measured"])))
        passed = "/".join(map(str, tokenizers.get(entry.tokenizer, ["not measured"])))
        lines.append(f"| {name} | {entry.card} | {heads} | {' | '.join(cells)} | {passed} |")
    cases = sum(result["cases"] for result in results.values())
    return "\n".join([*lines, "", _NOTE.format(cases=cases, reference=REFERENCE), ""])


_NOTE = """Errors are the greatest over all heads and main outputs of {cases} cases against transformers {reference}: as a share of what is allowed
(1e-5 of the output's magnitude, or five times the reference's own float32 error; for a gradient 1e-4 of the tensor's greatest, or of a thousandth
of the norm), and absolute. 1.00 is the limit. QDQBert rounds to eight bits: its limit is a tenth of an output's deviation, against stored cases of
a reference that is not on PyPI, its gradients are compared by `tests/test_qdqbert.py`. Heads are those measured, of the reference's public classes.
Tokenizers: tests that pass, of those that compare this row's kind with the reference's over thousands of texts and pairs and allow no difference.

A row that shares a card is another checkpoint of that architecture, measured with its own configuration."""


def _cell(error: list[float] | None) -> str:
    return "" if error is None else f"{error[0]:.2f} ({error[1]:.0e})"


def main(arguments: Iterable[str] | None = None) -> None:
    """Measures what is asked for and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="names of rows, or of cards, with commas between")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tokenizers", action="store_true", help="run the tokenizers' tests anew")
    options = parser.parse_args(arguments)
    stored = json.loads(CACHE.read_text()) if CACHE.exists() else {"rows": {}, "tokenizers": {}}
    asked = set(filter(None, options.rows.split(",")))
    chosen = [n for n, e in ENTRIES.items() if (asked & {n, e.card} if asked else n not in stored["rows"])]
    for name in chosen:
        print(name, file=sys.stderr, flush=True)
        try:
            stored["rows"][name] = measure_stored() if name == "QDQBert" else measure(ENTRIES[name], options.quick)
        except Exception as error:  # a row that fails has no result, and costs no other row its own
            print(f"  not measured: {error!r:.300}", file=sys.stderr)
            stored["rows"].pop(name, None)
        _keep(stored)
    if options.tokenizers or not (asked or stored["tokenizers"]):
        stored["tokenizers"] = measure_tokenizers()
        _keep(stored)


def _keep(stored: dict[str, Any]) -> None:
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    CACHE.write_text(json.dumps(stored))
    PAGE.write_text(page(stored["rows"], stored["tokenizers"]))


if __name__ == "__main__":
    main()
