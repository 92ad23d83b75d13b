"""Export to ONNX as a whole process: seconds, memory, and bytes written."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from common import WORK, Run, Table, checkpoint, interlingua, median, open_session, process, rival

TASKS = {
    "bert-base": "feature-extraction",
    "gpt2": "text-generation-with-past",
    "t5-small": "text2text-generation-with-past",
    "vit-base": "image-classification",
}


def optimum(name: str, task: str) -> tuple[list[str], Path]:
    """optimum-onnx's command for a checkpoint, and the folder that it writes."""
    folder = WORK / "optimum" / name
    options = ["--task", task, "--library-name", "transformers", "--no-post-process"]
    return [str(rival("optimum-cli")), "export", "onnx", "--model", str(checkpoint(name)), *options, str(folder)], folder


def mobius(name: str) -> tuple[list[str], Path]:
    """mobius-onnx's command for a checkpoint, and the folder that it writes."""
    folder = WORK / "mobius" / name
    return [str(rival("mobius")), "build", "--config", str(checkpoint(name)), str(folder)], folder


def commands(name: str) -> dict[str, tuple[list[str], Path, int]]:
    """What is measured: (command, folder it writes to, repetitions), by exporter."""
    model, own = checkpoint(name), WORK / "own" / name
    found = {
        "interlingua, in place": (interlingua("export", str(model), "--to", "onnx", "--no-check", "--overwrite"), model, 5),
        "interlingua, in place, numbers checked": (interlingua("export", str(model), "--to", "onnx", "--overwrite"), model, 2),
        "interlingua, to another folder": (interlingua("export", str(model), str(own), "--to", "onnx", "--no-check", "--overwrite"), own, 3),
    }
    if rival("optimum-cli"):
        found["optimum-onnx"] = (*optimum(name, TASKS[name]), 2)
    if rival("mobius"):
        found["mobius-onnx"] = (*mobius(name), 2)
    return found


def measure(names: Sequence[str] = tuple(TASKS)) -> Table:
    """A row for each checkpoint and exporter, medians of its runs, and how many times what our export in place takes."""
    columns = ["checkpoint", "exporter", "seconds", "x ours", "peak memory", "x ours", "written", "session loads in"]
    table = Table("Export to ONNX (whole process)", columns)
    for name in names:
        own: Run | None = None
        for exporter, (command, folder, times) in commands(name).items():
            made = _measured(command, folder, times, in_place=folder == checkpoint(name))
            if isinstance(made, str):
                table.rows.append([name, exporter, "failed", *[""] * 5])
                table.notes.append(f"{exporter}, {name}: {made}")
                continue
            run, written, load = made
            own = own or run
            ratios = [f"{run.seconds / own.seconds:.1f}", f"{run.megabytes / own.megabytes:.1f}"]
            sizes = [f"{run.seconds:.2f} s", ratios[0], f"{run.megabytes:.0f} MB", ratios[1], f"{written / 1e6:.1f} MB", f"{load:.2f} s"]
            table.rows.append([name, exporter, *sizes])
    table.notes.append("Configurations of the published checkpoints with random weights in float32; medians; memory is the largest resident set.")
    table.notes.append("gpt2 and t5-small are exported with caches by all; a session loads all graphs of the folder.")
    return table


def _measured(command: Sequence[str], folder: Path, times: int, in_place: bool) -> tuple[Run, int, float] | str:
    """(median run, bytes written, seconds to load), or the last line of what went wrong."""
    if not in_place:
        shutil.rmtree(folder, ignore_errors=True)
    given = {p.name for p in folder.glob("*.safetensors")} | {"config.json"} if in_place else set()
    runs = [process(command) for _ in range(times)]
    if not all(r.ok for r in runs):
        return (runs[-1].output.strip().splitlines() or ["it says nothing"])[-1]
    files = [p for p in folder.rglob("*") if p.is_file()]
    start = time.perf_counter()
    kept = [open_session(p) for p in files if p.suffix == ".onnx"]
    load = time.perf_counter() - start
    del kept
    middle = Run(median([r.seconds for r in runs]), median([r.megabytes for r in runs]), True, "")
    return middle, sum(p.stat().st_size for p in files if p.name not in given), load


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(parser.parse_args().names))
