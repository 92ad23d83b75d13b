"""A prompt's first pass through gpt2: ours, which gives the last position's scores, and optimum's file, in turns in one process."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
from common import WORK, Table, checkpoint, in_turns, interlingua, median, open_session, process, rival
from export import optimum

SIZES = ((1, 64), (1, 512), (4, 128))


def feed(session: Any, batch: int, length: int) -> dict[str, np.ndarray]:
    """A prompt without a past, for the inputs that a session has."""
    ids = np.random.default_rng(0).integers(1, 50000, (batch, length))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(length), (batch, 1))}
    past = np.zeros((batch, 12, 0, 64), np.float32)
    return {x.name: given.get(x.name, past) for x in session.get_inputs()}


def measure(seconds: float = 8, threads: int = 0) -> Table:
    """A row for each size: medians, and optimum's as a multiple of ours."""
    table = Table("Prefill of gpt2 on onnxruntime (CPU)", ["batch x tokens", "interlingua", "optimum-onnx", "optimum-onnx / interlingua"])
    own = WORK / "own" / "gpt2"
    if not (done := process(interlingua("export", str(checkpoint("gpt2")), str(own), "--to", "onnx", "--no-check", "--overwrite"))).ok:
        raise SystemExit(done.output)
    sessions = {"interlingua": open_session(own / "model.onnx", threads)}
    if rival("optimum-cli"):
        command, folder = optimum("gpt2", "text-generation-with-past")
        if (folder / "model.onnx").exists() or process(command).ok:
            sessions["optimum-onnx"] = open_session(folder / "model.onnx", threads)
    worst = 0.0
    for batch, length in SIZES:
        feeds = {name: feed(session, batch, length) for name, session in sessions.items()}
        last = {name: session.run(["logits"], feeds[name])[0][:, -1] for name, session in sessions.items()}
        worst = max(worst, *(float(abs(x - last["interlingua"]).max()) for x in last.values()))
        calls = {name: partial(session.run, None, feeds[name]) for name, session in sessions.items()}
        times = {name: median(found) for name, found in in_turns(calls, seconds).items()}
        theirs = times.get("optimum-onnx")
        rest = ["", ""] if theirs is None else [f"{theirs * 1e3:.0f} ms", f"{theirs / times['interlingua']:.2f}"]
        table.rows.append([f"{batch} x {length}", f"{times['interlingua'] * 1e3:.0f} ms", *rest])
    table.notes.append(f"All caches and the scores that a next token is chosen from, which agree to {worst:.1e}.")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="for each size")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(**vars(parser.parse_args())))
