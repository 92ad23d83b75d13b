"""Greedy generation, batch 1: ours on onnxruntime, PyTorch eager and optimum, each in a process of its own, in turns."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import WORK, Table, checkpoint, in_turns, median, process, rival
from export import optimum

# optimum's session as it is shipped, and with other settings for threads that wait: they sleep, or stay awake while a step runs, as ours do
OPTIMUM = {
    "optimum-onnx": {},
    "optimum-onnx, asleep": {"session.intra_op.allow_spinning": "0"},
    "optimum-onnx, awake": {"session.force_spinning_stop": "1"},
}
OWN, ASSISTED = "{}", "{}, guessed ahead by itself in int8"  # rows of a model
TASKS = {"gpt2": "text-generation-with-past", "t5-small": "text2text-generation-with-past"}

# Reads prompts, a line each, and answers with tokens.
_WORKER = """
import json, sys, torch, transformers
settings, folder, sequence, new, threads = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]), int(sys.argv[5])
transformers.logging.set_verbosity_error()
if threads:
    torch.set_num_threads(threads)
if settings is not None:
    import onnxruntime
    from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    model = (ORTModelForSeq2SeqLM if sequence else ORTModelForCausalLM).from_pretrained(folder, session_options=options)
else:
    model = (transformers.AutoModelForSeq2SeqLM if sequence else transformers.AutoModelForCausalLM).from_pretrained(folder).eval()
said = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    ids = torch.tensor(json.loads(line))
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None)
    print(json.dumps(made.tolist()), file=said, flush=True)
"""


def worker(settings: dict[str, str] | None, folder: Path, model: str, new: int, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function that generates in a process of the rivals' environment, or of this one where there is none: optimum with settings, else PyTorch."""
    arguments = [json.dumps(settings), str(folder), str(int(model.startswith("t5"))), str(new), str(threads)]
    command = [str(rival("python") or sys.executable), "-c", _WORKER, *arguments]
    log = (WORK / f"{'torch' if settings is None else 'optimum'}.log").open("w")
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert child.stdin is not None
    assert child.stdout is not None

    def generate(ids: np.ndarray, given: Any = child.stdin, answers: Any = child.stdout) -> np.ndarray:
        given.write(json.dumps(ids.tolist()) + "\n")
        given.flush()
        if not (line := answers.readline()):
            raise SystemExit(f"{folder.name} failed: see {log.name}")
        return np.array(json.loads(line))

    return generate


def rivals(model: str, new: int, threads: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Those that are installed."""
    found = {"PyTorch eager": worker(None, checkpoint(model), model, new, threads)}
    if rival("optimum-cli"):
        command, folder = optimum(model, TASKS[model])
        if folder.exists() or process(command).ok:
            found |= {name: worker(settings, folder, model, new, threads) for name, settings in OPTIMUM.items()}
    return found


def own(model: Any, new: int, threads: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Ours, alone and with an assistant: the same weights in bytes."""
    import interlingua as il

    generators = {OWN: il.generator(model, threads=threads), ASSISTED: il.generator(model, threads=threads, assistant="int8-weights")}
    return {row: partial(g.generate, max_new_tokens=new, eos_token_id=None) for row, g in generators.items()}


def weights_of_a_step(model: Any) -> int:
    """The bytes of weights that one step reads: those of the graph that decodes, without tables of which it takes single rows."""
    graph = model.card.heads[model.head].parts[-1].graph(model)
    read = {v for node in graph.nodes if node.op.name not in ("take", "embedding") for v in node.inputs}
    return sum(4 * math.prod(p.shape) for p in graph.params() if p in read)  # float32


def memory_speed(threads: int, megabytes: int = 512) -> float:
    """Bytes a second that threads read in dot products of vectors far larger than any cache, the best of ten; more streams can read more."""
    parts = np.ones((threads, 2, megabytes * 125_000 // threads), np.float32)

    def read() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: float(part[0] @ part[1]), parts))
        return parts.nbytes / (time.perf_counter() - start)

    return max(read() for _ in range(10))


def measure(seconds: float = 60, threads: int = 0, prompt: int = 64, new: int = 64) -> Table:
    """Two rows for each model: our tokens a second, alone and with an assistant, each rival's, and ours as a multiple of them."""
    import interlingua as il

    columns = ["PyTorch eager", *OPTIMUM]
    table = Table(
        f"Greedy generation, {prompt} + {new} tokens, batch 1 (CPU)", ["model", "interlingua", *(c for k in columns for c in (k, "interlingua / it"))]
    )
    speed_of_dots = memory_speed(threads or os.cpu_count() or 1)
    for name in TASKS:
        ids, model = np.random.default_rng(0).integers(5, 30000, (1, prompt)), il.load(checkpoint(name))
        calls = {**own(model, new, threads), **rivals(name, new, threads)}
        first = {side: call(ids) for side, call in calls.items()}
        for side, made in first.items():
            if not np.array_equal(made, first[OWN]):
                table.notes.append(f"{name}: {side.format(name)} gives other tokens than ours alone")
        speed = {side: new / median(times) for side, times in in_turns({k: partial(c, ids) for k, c in calls.items()}, seconds).items()}
        table.notes.append(
            f"{name}: a step of the float32 graph has {weights_of_a_step(model) / 1e6:.0f} MB of weights; "
            f"dot products of long vectors read {speed_of_dots / 1e9:.0f} GB/s here"
        )
        for row in (OWN, ASSISTED):
            pairs = [(f"{speed[k]:.1f}", f"{speed[row] / speed[k]:.2f}") if k in speed else ("", "") for k in columns]
            table.rows.append([row.format(name), f"{speed[row]:.1f}", *(x for pair in pairs for x in pair)])
    table.notes.append(
        "Ours looks for likeliest words in a matrix of bytes first and scores those that are left in float32 (docs/design.md, Generation), "
        "so that its tokens are those of float32 and a step reads less than all weights. With `assistant='int8-weights'` the same weights in bytes "
        "guess: the model reads five guesses at a time and keeps those that are its own tokens, still those of float32. optimum is shown as it is "
        "shipped, and with threads that sleep or stay awake as its user could set them; it cannot take an assistant (its caches have no `crop`)."
    )
    table.notes.append(
        "Tokens a second with the prompt's time in it: medians of whole calls in turns. All give the same tokens unless said otherwise."
    )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each model")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(**vars(parser.parse_args())))
