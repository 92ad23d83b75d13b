"""Export of bert-base to ONNX as a whole process: seconds, memory, and bytes written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from common import WORK, Run, Table, bert_base, interlingua, median, open_session, process, rival

OWN = WORK / "own"
OPTIMUM, MOBIUS = WORK / "optimum", WORK / "mobius"


def commands(model: Path) -> dict[str, tuple[list[str], Path, int]]:
    """What is measured: (command, folder it writes to, repetitions), by name."""
    found = {
        "interlingua, in place": (interlingua("export", str(model), "--to", "onnx", "--no-check", "--overwrite"), model, 5),
        "interlingua, in place, numbers checked": (interlingua("export", str(model), "--to", "onnx", "--overwrite"), model, 3),
        "interlingua, to another folder": (interlingua("export", str(model), str(OWN), "--to", "onnx", "--no-check", "--overwrite"), OWN, 3),
    }
    if optimum := rival("optimum-cli"):
        options = ["--task", "feature-extraction", "--library-name", "transformers"]
        found["optimum-onnx"] = ([str(optimum), "export", "onnx", "--model", str(model), *options, str(OPTIMUM)], OPTIMUM, 2)
    if mobius := rival("mobius"):
        found["mobius-onnx"] = ([str(mobius), "build", "--config", str(model), str(MOBIUS)], MOBIUS, 2)
    return found


def measure() -> Table:
    """A row for each exporter, medians of its runs."""
    model = bert_base()
    table = Table("Export of bert-base to ONNX (whole process)", ["exporter", "seconds", "peak memory", "written", "session loads in"])
    for name, (command, folder, times) in commands(model).items():
        if folder != model:
            shutil.rmtree(folder, ignore_errors=True)
        weights = {p.name for p in folder.glob("*.safetensors")} if folder == model else set()
        runs = [process(command) for _ in range(times)]
        if not all(r.ok for r in runs):
            table.rows.append([name, "failed", *[""] * 3])
            table.notes.append(f"{name}: {runs[-1].output.strip().splitlines()[-1]}")
            continue
        written = sum(p.stat().st_size for p in folder.iterdir() if p.name not in weights | {"config.json"})
        table.rows.append([name, *_medians(runs), f"{written / 1e6:.1f} MB", f"{_load(folder / 'model.onnx'):.2f} s"])
    table.notes.append("bert-base's configuration with random weights, 438 MB of float32; medians; peak memory is the largest resident set.")
    return table


def _medians(runs: Sequence[Run]) -> list[str]:
    return [f"{median([r.seconds for r in runs]):.2f} s", f"{median([r.megabytes for r in runs]):.0f} MB"]


def _load(file: Path) -> float:
    start = time.perf_counter()
    open_session(file)
    return time.perf_counter() - start


if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure())
