"""Sessions of one checkpoint on onnxruntime: how long loading takes, and how much memory of its own each further session holds."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from common import WORK, Table, checkpoint, interlingua, open_session, process, rival
from export import optimum

WAYS = ("packed", "not packed", "packed in a folder")  # by onnxruntime when a session is opened; not at all; once, and mapped by all sessions


def anonymous() -> float:
    """MB of memory that no file backs: mapped weights do not count, they are shared by all who map them."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Anonymous"].split()[0]) / 1024


def one(file: str, count: int, way: str) -> dict[str, list[float]]:
    """Seconds to load and MB held for each of `count` sessions, opened one after another, each run once."""
    import numpy as np

    import interlingua as il

    ids = np.ones((1, 16), np.int64)
    feed = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0}
    sessions, seconds, memory = [], [], []
    for _ in range(count):
        start = time.perf_counter()
        if way == "packed in a folder":
            session = il.open(file, packed=WORK / "packed").ort
        else:
            session = open_session(Path(file), entries={"session.disable_prepacking": "1"} if way == "not packed" else {})
        seconds.append(time.perf_counter() - start)
        session.run(None, {x.name: feed[x.name] for x in session.get_inputs()})
        sessions.append(session)
        memory.append(anonymous())
    return {"seconds": seconds, "memory": memory}


def measure(count: int = 2) -> Table:
    """A row for each file and way of loading it."""
    columns = ["file", "first loads in", "process with one", f"process with {count}", "x one", "each further session"]
    table = Table("Sessions of bert-base on onnxruntime (memory that no file backs)", columns)
    model = checkpoint("bert-base")
    if not (done := process(interlingua("export", str(model), "--to", "onnx", "--no-check", "--overwrite"))).ok:
        raise SystemExit(done.output)
    files = {f"interlingua, {way}": (model / "model.onnx", way) for way in WAYS}
    if rival("optimum-cli"):
        command, folder = optimum("bert-base", "feature-extraction")
        if (folder / "model.onnx").exists() or process(command).ok:
            files["optimum-onnx, packed"] = folder / "model.onnx", WAYS[0]
    for name, (file, way) in files.items():
        if way == "packed in a folder":
            shutil.rmtree(WORK / "packed", ignore_errors=True)
            process([sys.executable, str(Path(__file__)), "--one", str(file), "1", way])  # which packs
        done = process([sys.executable, str(Path(__file__)), "--one", str(file), str(count), way])
        if not done.ok:
            raise SystemExit(done.output)
        made = json.loads(done.output.splitlines()[-1])
        first, last = made["memory"][0], made["memory"][-1]
        held = [f"{mb:.0f} MB" for mb in (first, last, (last - first) / max(count - 1, 1))]
        table.rows.append([name, f"{made['seconds'][0]:.2f} s", *held[:2], f"{last / first:.2f}", held[2]])
    table.notes += [
        "packed: onnxruntime copies each weight into the order that its kernels read, anew for each session.",
        "not packed: sessions read the same pages of one file, and are slower.",
        "packed in a folder: `interlingua.open(folder, packed=...)`, after the first use has written the file, which all sessions map.",
    ]
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--one", nargs=3, metavar=("FILE", "COUNT", "WAY"), help="one measurement, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]), given.one[2])))
    else:
        WORK.mkdir(parents=True, exist_ok=True)
        print(measure(given.count))
