"""Latency of exported bert-base on onnxruntime, ours and the rivals' files in turns in one process."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from common import WORK, Table, bert_base, in_turns, interlingua, median, open_session, process
from export import MOBIUS, OPTIMUM, commands

OUTPUT = "last_hidden_state"
SIZES = ((1, 16), (1, 128), (8, 128))
RIVALS = {"optimum-onnx": OPTIMUM, "mobius-onnx": MOBIUS}
OWN = WORK / "same-work"


def files() -> dict[str, Path]:
    """The models that are compared, exported where they are not there yet; ours has the one output that all have."""
    model = bert_base()
    command = interlingua("export", str(model), str(OWN), "--to", "onnx", "--no-check", "--overwrite", "--output", OUTPUT)
    if not (done := process(command)).ok:
        raise SystemExit(done.output)
    for name, (command, folder, _) in commands(model).items():
        if name in RIVALS and not (folder / "model.onnx").exists():
            process(command)
    return {"interlingua": OWN / "model.onnx"} | {k: f / "model.onnx" for k, f in RIVALS.items() if (f / "model.onnx").exists()}


def measure(seconds: float = 30, threads: int = 0) -> Table:
    """A row for each size: medians, and the ratio of the rival's to ours (above 1: ours is faster)."""
    import numpy as np

    sessions = {name: open_session(file, threads) for name, file in files().items()}
    others = [name for name in sessions if name != "interlingua"]
    table = Table(
        "Latency of bert-base on onnxruntime (CPU)",
        ["batch x tokens", "interlingua", *(c for name in others for c in (name, f"{name} / interlingua"))],
    )
    rng = np.random.default_rng(0)
    for batch, length in SIZES:
        inputs = {"input_ids": rng.integers(1, 30000, (batch, length)), "attention_mask": np.ones((batch, length), np.int64)}
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        inputs["attention_mask"][0, length - length // 4 :] = 0
        truth = sessions["interlingua"].run([OUTPUT], inputs)[0][inputs["attention_mask"] == 1]
        usable = {"interlingua": sessions["interlingua"]}
        for name in others:
            problem = _difference(sessions[name], inputs, truth)
            if problem:
                table.notes.append(f"{name} at {batch} x {length}: {problem}")
            if problem != "fails":
                usable[name] = sessions[name]
        times = in_turns({name: partial(session.run, [OUTPUT], inputs) for name, session in usable.items()}, seconds)
        own = median(times["interlingua"])
        cells = [f"{own * 1e3:.1f} ms"]
        for name in others:
            theirs = median(times[name]) if name in times else None
            cells += ["fails", ""] if theirs is None else [f"{theirs * 1e3:.1f} ms", f"{theirs / own:.3f}"]
        table.rows.append([f"{batch} x {length}", *cells])
    table.notes.append(f"Medians of runs in turns for {seconds:.0f} s a size, the order reversed in each round; one row is padded; same weights.")
    return table


def _difference(session: Any, inputs: dict[str, Any], truth: Any) -> str:
    """What is wrong with a session's numbers at unpadded positions, or the empty text."""
    try:
        made = session.run([OUTPUT], inputs)[0][inputs["attention_mask"] == 1]
    except Exception:  # onnxruntime's errors have no common base
        return "fails"
    error = float(abs(made - truth).max())
    return f"its numbers differ by {error:.1e}: it does not do the same work" if error > 1e-3 else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="for each size")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(**vars(parser.parse_args())))
