"""Quantised bert-base (int8) against our own in float32 and optimum's int8; gpt2 decoding with small weights against our own in float32."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import WORK, Table, bert_base, in_turns, instructions, median, open_session, process, ratio, rival
from export import optimum

SIZES = ((1, 16), (1, 128), (8, 128))
WEIGHTS = ("int8-weights", "int4-weights")
PAST, STEPS = 64, 32
OWN = WORK / "quantized"
RIVALS = ("avx2", "avx512_vnni")  # what optimum quantises for: weights are unsigned, or signed and of 8 bits
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}  # whose defaults are the 124M parameters


def export(model: Any, schemes: tuple[str, ...]) -> dict[str, Path]:
    """A model in float32 and in schemes."""
    from interlingua.runtime.quantization import export_quantized

    found = {}
    for scheme in ("float32", *schemes):
        folder = OWN / f"{model.name}-{scheme}"
        write = model.export if scheme == "float32" else partial(export_quantized, model, scheme=scheme)
        write(folder, check=False, overwrite=True)
        found[scheme] = folder / "model.onnx"
    return found


def optimums() -> dict[str, Path]:
    """optimum's int8 files of its own export of bert-base."""
    if not rival("optimum-cli"):
        return {}
    command, exported = optimum("bert-base", "feature-extraction")
    if not (exported / "model.onnx").exists() and not process(command).ok:
        return {}
    alone, found = OWN / "optimum", {}
    alone.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "config.json"):  # its command quantises all files of a folder, and others lie there
        shutil.copyfile(exported / name, alone / name)
    for target in RIVALS:
        file = OWN / f"optimum-{target}" / "model_quantized.onnx"
        options = ["--onnx_model", str(alone), f"--{target}", "--output", str(file.parent)]
        if file.exists() or process([str(rival("optimum-cli")), "onnxruntime", "quantize", *options]).ok:
            found[target] = file
    return found


def dynamic(seconds: float = 6, threads: int = 0) -> list[list[str]]:
    """bert-base at each size: a row for each."""
    import interlingua as il

    files = export(il.load(bert_base()), ("int8",)) | optimums()
    sessions = {name: open_session(file, threads) for name, file in files.items()}
    rng, rows = np.random.default_rng(0), []
    for batch, length in SIZES:
        ids = rng.integers(1, 30000, (batch, length))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        calls = {
            name: partial(session.run, ["last_hidden_state"], {x.name: feed[x.name] for x in session.get_inputs()})
            for name, session in sessions.items()
        }
        made = {name: call()[0] for name, call in calls.items()}
        far = {name: f"{np.abs(x - made['float32']).max() / np.abs(made['float32']).max():.1e}" for name, x in made.items()}
        times = in_turns(calls, seconds)
        theirs = [f"{ratio(times[x], times['int8']):.2f} ({far[x]})" if x in times else "" for x in RIVALS]
        rows.append(row(f"bert-base int8, {batch} x {length}", times["float32"], times["int8"], far["int8"], "", *theirs))
    return rows


def row(name: str, plain: list[float], small: list[float], *rest: str) -> list[str]:
    """A row of the table."""
    return [name, f"{median(plain) * 1e3:.2f} ms", f"{median(small) * 1e3:.2f} ms", f"{ratio(plain, small):.2f}", *rest]


def error(file: Path) -> str:
    """What `quantization.json` says of the outputs but for the caches."""
    errors = json.loads((file.parent / "quantization.json").read_text(encoding="utf-8"))["errors"]["model"]
    return f"{max(e for name, e in errors.items() if not name.startswith('present')):.1e}"


def decode(seconds: float = 6, threads: int = 0) -> list[list[str]]:
    """gpt2 with one token after a past of others: a row for each scheme."""
    import interlingua as il

    files = export(il.from_config(GPT2, "GPT2LMHeadModel", seed=0), WEIGHTS)
    sessions = {name: open_session(file, threads) for name, file in files.items()}
    feed = step_feed(sessions["float32"], PAST)
    times = in_turns({name: partial(session.run, None, feed) for name, session in sessions.items()}, seconds)
    losses = surprise(sessions)
    rows = []
    for name in WEIGHTS:
        change = f"{np.exp(losses[name] - losses['float32']):.4f}"
        rows.append(row(f"gpt2 {name}, 1 token after {PAST}", times["float32"], times[name], error(files[name]), change, "", ""))
    return rows


def step_feed(session: Any, past: int) -> dict[str, np.ndarray]:
    """One token after `past` others with random keys and values."""
    from interlingua.ir.sizes import bind, parse_size

    rng, sizes = np.random.default_rng(0), {"batch": 1, "seq": 1, "past": past}
    feed = {}
    for x in session.get_inputs():
        shape = [bind(parse_size(str(d)), sizes) for d in x.shape]
        if x.type == "tensor(float)":
            feed[x.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feed[x.name] = np.ones(shape, np.int64) * (past if x.name == "position_ids" else 1)
    return feed


def surprise(sessions: Mapping[str, Any]) -> dict[str, float]:
    """The mean negative log probability that each session gives to a text which the float32 one draws."""
    rng = np.random.default_rng(1)
    feeds = {name: step_feed(session, 0) for name, session in sessions.items()}
    lost = dict.fromkeys(sessions, 0.0)
    for step in range(STEPS):
        logs = {}
        for name, session in sessions.items():
            made = dict(zip([x.name for x in session.get_outputs()], session.run(None, feeds[name]), strict=True))
            logits = made.pop("logits")[0, -1].astype(np.float64)
            logs[name] = logits - np.logaddexp.reduce(logits)
            feeds[name] |= {k.replace("present", "past_key_values"): x for k, x in made.items()}
        token = int(rng.choice(len(logs["float32"]), p=np.exp(logs["float32"])))
        for name, feed in feeds.items():
            lost[name] -= logs[name][token] / STEPS
            now = {"input_ids": [[token]], "attention_mask": np.ones((1, step + 2)), "position_ids": [[step + 1]]}
            feed |= {k: np.asarray(now[k], np.int64) for k in now if k in feed}
    return lost


def measure(seconds: float = 6, threads: int = 0) -> Table:
    """Medians, ratios to float32, and errors."""
    columns = ["model", "float32", "quantised", "float32 / quantised", "output error", "perplexity / float32's"]
    columns += [f"optimum-onnx for {x} / ours (its error)" for x in RIVALS]
    table = Table("Quantised models on onnxruntime (CPU)", columns)
    table.rows = dynamic(seconds, threads) + decode(seconds, threads)
    table.notes = [
        "Weights are random, of real size. Output error: the greatest difference from the float32 file on the measured input (gpt2: from float64, "
        "as its export reports), divided by the output's greatest magnitude.",
        f"Perplexity over {STEPS} tokens that the float32 model draws. Embedding and tied head are quantised too.",
        f"Medians of runs in turns for {seconds:.0f} s, in a random order in each round.",
    ]
    if not {"avx_vnni", "avx512_vnni"} & set(instructions()):
        table.notes.append(
            "This processor has no VNNI: onnxruntime adds products of bytes in 16 bits, which weights of 8 bits overflow (the error in the last "
            "column) and ours, of 7 bits, cannot."
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6, help="for each row")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(**vars(parser.parse_args())))
