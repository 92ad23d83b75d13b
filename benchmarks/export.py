"""Export to ONNX as a whole process: seconds, memory, and bytes written."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import WORK, Run, Table, checkpoint, interlingua, median, open_session, process, rival

OWN = "interlingua, in place"
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


def commands(name: str) -> dict[str, tuple[list[str], Path]]:
    """What is measured: (command, folder it writes to), by exporter; the first is what others are compared with."""
    model, own = checkpoint(name), WORK / "own" / name
    found = {
        OWN: (interlingua("export", str(model), "--to", "onnx", "--no-check", "--overwrite"), model),
        "interlingua, in place, numbers checked": (interlingua("export", str(model), "--to", "onnx", "--overwrite"), model),
        "interlingua, to another folder": (interlingua("export", str(model), str(own), "--to", "onnx", "--no-check", "--overwrite"), own),
    }
    if rival("optimum-cli"):
        found["optimum-onnx"] = optimum(name, TASKS[name])
    if rival("mobius"):
        found["mobius-onnx"] = mobius(name)
    return found


def measure(names: Sequence[str] = tuple(TASKS), rounds: int = 3) -> Table:
    """A row for each checkpoint and exporter: medians of its runs, and how many times what our export in place takes."""
    columns = ["checkpoint", "exporter", "seconds", "x ours", "peak memory", "x ours", "written", "session loads in"]
    table = Table("Export to ONNX (whole process)", columns)
    for name in names:
        given = commands(name)
        for _, folder in given.values():
            if folder != checkpoint(name):
                shutil.rmtree(folder, ignore_errors=True)
        made = _in_turns({exporter: command for exporter, (command, _) in given.items()}, rounds)
        for exporter, pairs in made.items():
            if failed := next((run for run, _ in pairs if not run.ok), None):
                table.rows.append([name, exporter, "failed", *[""] * 5])
                table.notes.append(f"{exporter}, {name}: {(failed.output.strip().splitlines() or ['it says nothing'])[-1]}")
                continue
            seconds, memory = median([run.seconds for run, _ in pairs]), median([run.megabytes for run, _ in pairs])
            longer = median([run.seconds / own.seconds for run, own in pairs])
            larger = median([run.megabytes / own.megabytes for run, own in pairs])
            written, load = _result(given[exporter][1], in_place=given[exporter][1] == checkpoint(name))
            sizes = [f"{seconds:.2f} s", f"{longer:.1f}", f"{memory:.0f} MB", f"{larger:.1f}", f"{written / 1e6:.1f} MB", f"{load:.2f} s"]
            table.rows.append([name, exporter, *sizes])
    table.notes.append("Configurations of the published checkpoints with random weights in float32; memory is the largest resident set.")
    table.notes.append(
        f"Medians of {rounds} rounds of all in turns, ours in place before and after each: a ratio is to the mean of these two, so that a machine "
        "whose pace drifts slows both."
    )
    table.notes.append("gpt2 and t5-small are exported with caches by all; a session loads all graphs of the folder.")
    return table


def _in_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[tuple[Run, Run]]]:
    """For each exporter its runs, each with the mean of those of the first one before and after it."""
    for command in commands.values():
        process(command)  # what was compiled or read for the first time is at hand then
    made: dict[str, list[tuple[Run, Run]]] = {name: [] for name in commands}
    own = process(commands[OWN])
    for _ in range(rounds):
        for name, command in commands.items():
            if name == OWN:
                made[OWN].append((own, own))
                continue
            before, run, own = own, process(command), process(commands[OWN])
            made[name].append((run, Run((before.seconds + own.seconds) / 2, (before.megabytes + own.megabytes) / 2, True, "")))
    return made


def _result(folder: Path, in_place: bool) -> tuple[int, float]:
    """(bytes written, seconds to load) of what a folder has."""
    given = {p.name for p in folder.glob("*.safetensors")} | {"config.json"} if in_place else set()
    files = [p for p in folder.rglob("*") if p.is_file()]
    start = time.perf_counter()
    kept = [open_session(p) for p in files if p.suffix == ".onnx"]
    load = time.perf_counter() - start
    del kept
    return sum(p.stat().st_size for p in files if p.name not in given), load


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    WORK.mkdir(parents=True, exist_ok=True)
    print(measure(parser.parse_args().names))
