"""Latency of float32 models: ours on onnxruntime against the rivals' files there and against PyTorch, in turns in one process."""

from __future__ import annotations

import argparse
import importlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from common import CHECKPOINTS, ORDERS, WORK, Table, checkpoint, in_turns, interlingua, median, open_session, process, ratio, rival
from export import mobius, optimum

Feed = dict[str, np.ndarray]
RNG = np.random.default_rng(0)


def text(batch: int, length: int) -> Feed:
    """Token ids; the first row is padded by a quarter."""
    ids, mask = RNG.integers(1, 30000, (batch, length)), np.ones((batch, length), np.int64)
    mask[0, length - length // 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


@dataclass(frozen=True)
class Work:
    """What is compared: a checkpoint, the output that all sides compute, optimum's task, inputs for a size, and sizes."""

    model: str
    output: str
    task: str
    feed: Callable[..., Feed]
    sizes: Sequence[tuple[int, ...]]


image = lambda batch: {"pixel_values": RNG.standard_normal((batch, 3, 224, 224)).astype(np.float32)}
sound = lambda batch, samples: {"input_values": RNG.standard_normal((batch, samples)).astype(np.float32)}
TEXT = ((1, 16), (1, 128), (8, 128))
WORKS = (
    Work("bert-base", "last_hidden_state", "feature-extraction", text, TEXT),
    Work("bert-base-classifier", "logits", "text-classification", text, TEXT),
    Work("vit-base", "logits", "image-classification", image, ((1,), (8,))),
    Work("resnet-50", "logits", "image-classification", image, ((1,), (8,))),
    Work("wav2vec2-base", "logits", "automatic-speech-recognition", sound, ((1, 16000), (4, 48000))),
)


Run = Callable[[Feed], np.ndarray]
UNPACKED = "interlingua, not packed"
Openers = Mapping[str, Callable[[], Run]]
OPENED = 2.5  # seconds that sessions are used before new ones are opened: equal ones differ by 3 %, by where their weights lie in memory


def on_onnxruntime(work: Work, threads: int) -> Openers:
    """What opens a session for each ONNX file, which is exported where it is not there yet; ours with its weights packed in a folder too."""
    own = WORK / "same-work" / work.model
    chosen = ["--output", work.output, *(x for k in work.feed(*work.sizes[0]) for x in ("--input", k))]
    if not (done := process(interlingua("export", str(checkpoint(work.model)), str(own), "--no-check", "--overwrite", *chosen))).ok:
        raise SystemExit(done.output)
    shutil.rmtree(own / "packed", ignore_errors=True)
    files = {UNPACKED: own / "model.onnx"}
    rivals = {"optimum-onnx": optimum(work.model, work.task)} if rival("optimum-cli") else {}
    if rival("mobius") and work.model == "bert-base":
        rivals["mobius-onnx"] = mobius(work.model)
    for name, (command, folder) in rivals.items():
        if (folder / "model.onnx").exists() or process(command).ok:
            files[name] = folder / "model.onnx"
    if work.model.startswith("bert") and "optimum-onnx" in files and (found := _optimized(files["optimum-onnx"])):
        files["onnxruntime.transformers"] = found
    return {"interlingua": partial(_packed, own, threads, work.output), **{k: partial(runner, x, threads, work.output) for k, x in files.items()}}


def _optimized(file: Path) -> Path | None:
    """optimum's file after onnxruntime's own optimiser for transformers."""
    result = file.with_name("optimized.onnx")
    options = ["--model_type", "bert", "--num_heads", "12", "--hidden_size", "768"]
    command = [str(rival("python")), "-m", "onnxruntime.transformers.optimizer", "--input", str(file), "--output", str(result), *options]
    return result if result.exists() or process(command).ok else None


def runner(file: Path, threads: int, output: str) -> Run:
    """A function that takes the inputs of all sides, in a new session."""
    session = open_session(file, threads)
    names = [x.name for x in session.get_inputs()]
    return lambda feed: session.run([output], {k: feed[k] for k in names})[0]


def _packed(folder: Path, threads: int, output: str) -> Run:
    import interlingua as il

    session = il.open(folder, packed=folder / "packed", threads=threads)
    return lambda feed: session(**feed)[output]


def in_pytorch(work: Work, compiled: bool) -> Run:
    """The reference library's model, eager or through torch.compile."""
    import torch

    head, config = CHECKPOINTS[work.model]
    module = importlib.import_module(f"transformers.models.{config['model_type']}.modeling_{config['model_type']}")
    net = getattr(module, head).from_pretrained(checkpoint(work.model)).eval()
    call = torch.compile(net) if compiled else net

    def run(feed: Feed) -> np.ndarray:
        with torch.inference_mode():
            return call(**{k: torch.from_numpy(x) for k, x in feed.items()})[work.output].numpy()

    return run


def measure(seconds: float = 20, threads: int = 0, names: Sequence[str] = (), compiled: bool = True) -> Table:
    """A row for each model and size: our median, and each rival's time as a multiple of ours (above 1: ours is faster)."""
    columns = [UNPACKED, "optimum-onnx", "onnxruntime.transformers", "mobius-onnx", "PyTorch eager", "torch.compile"]
    table = Table("Latency in float32 (CPU)", ["model", "size", "interlingua", *columns, "best rival"])
    for work in WORKS:
        if names and work.model not in names:
            continue
        modules = {"PyTorch eager": in_pytorch(work, False)} | ({"torch.compile": in_pytorch(work, True)} if compiled else {})
        openers = {**on_onnxruntime(work, threads), **{name: partial(_same, run) for name, run in modules.items()}}
        for size in work.sizes:
            table.rows.append([work.model, " x ".join(map(str, size)), *_row(openers, columns, work, size, seconds, table)])
            print(" | ".join(table.rows[-1]), flush=True)
    table.notes.append(
        f"Medians of runs in turns for {seconds:.0f} s a row, in new sessions every {OPENED:g} s (equal ones differ by 3 %); "
        "in a random order in each round; texts have a padded row; same weights."
    )
    if any(float(row[-1]) < 1 for row in table.rows):
        table.notes.append(
            "Rows below 1: where PyTorch is the faster one, its products of large float32 matrices are faster than onnxruntime's on this processor; "
            "optimum's file, on the same onnxruntime, is the measure of what the graph is worth."
        )
    table.notes.append(
        "interlingua: what `interlingua.open(folder, packed=...)` gives, called as its users call it; not packed: its file in a bare session of "
        "onnxruntime, as the rivals' files are."
    )
    table.notes.append(
        "Columns of rivals: the median of their time divided by ours of the same round, so that a machine whose pace drifts slows both. "
        "A rival whose numbers are wrong is shown in parentheses and is not the best."
    )
    return table


def _same(run: Run) -> Run:
    return run


def _checked(openers: Openers, work: Work, size: tuple[int, ...], feed: Feed, table: Table) -> tuple[list[str], set[str]]:
    """The sides that run, and those of them whose numbers are wrong."""
    live = feed["attention_mask"] == 1 if work.output == "last_hidden_state" else ...
    truth, usable, wrong = openers["interlingua"]()(feed)[live], [], set()
    for name, open in openers.items():
        try:
            apart = float(abs(open()(feed)[live] - truth).max())
        except Exception as error:  # onnxruntime's errors have no common base
            table.notes.append(f"{name}, {work.model} at {size}: fails ({str(error).splitlines()[0][:120]})")
            continue
        usable.append(name)
        if apart > 1e-3:
            wrong.add(name)
            table.notes.append(f"{name}, {work.model} at {size}: its numbers differ by {apart:.1e}: it does not do the same work")
    return usable, wrong


def _row(openers: Openers, columns: Sequence[str], work: Work, size: tuple[int, ...], seconds: float, table: Table) -> list[str]:
    feed = work.feed(*size)
    usable, wrong = _checked(openers, work, size, feed, table)
    found: dict[str, list[float]] = {name: [] for name in usable}
    for _ in range(openings := max(1, round(seconds / OPENED))):
        ORDERS.shuffle(usable)
        calls = {name: partial(openers[name](), feed) for name in usable}
        for call in calls.values():
            call()  # the first is slower
        for name, measured in in_turns(calls, seconds / openings, least=2).items():
            found[name] += measured
    own = found["interlingua"]
    ratios = {name: ratio(times, own) for name, times in found.items()}
    cell = lambda name: "" if name not in ratios else f"({ratios[name]:.3f})" if name in wrong else f"{ratios[name]:.3f}"
    best = min((r for name, r in ratios.items() if not name.startswith("interlingua") and name not in wrong), default=1.0)
    return [f"{median(own) * 1e3:.1f} ms", *map(cell, columns), f"{best:.3f}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(w.model for w in WORKS)}")
    parser.add_argument("--seconds", type=float, default=20, help="for each row")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave torch.compile out")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(**vars(parser.parse_args())))
