"""What benchmarks share: checkpoints of real size, whole processes measured, tables, and where they were measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORK = Path(os.environ.get("INTERLINGUA_BENCH_CACHE", ROOT / ".cache" / "bench"))
RIVALS = Path(os.environ.get("INTERLINGUA_BENCH_VENV", ROOT / ".venv-bench")) / "bin"
PACKAGES = ("interlingua", "numpy", "onnx", "onnxruntime")
RIVAL_PACKAGES = ("optimum-onnx", "mobius-onnx", "transformers", "torch", "flax", "tensorflow")
KERNELS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
ORDERS = random.Random(0)  # in which sides are opened and called
os.environ.setdefault("USE_TF", "0")  # else the reference library imports TensorFlow wherever it is installed


@dataclass
class Table:
    """One table of results: texts by row and column, and what must be said about them."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"## {self.title}", "", *map(_row, [self.columns, ["---"] * len(self.columns), *self.rows])]
        return "\n".join([*lines, "", *(f"- {n}" for n in self.notes)]).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass
class Run:
    """One run of a process: seconds from start to end, and the most memory that it and its children held, in MB."""

    seconds: float
    megabytes: float
    ok: bool
    output: str


# A child's peak memory starts at its parent's, so that a small process has to stand between the two.
_LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdout=open(sys.argv[1], "wb"), stderr=subprocess.STDOUT)
_, status, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def process(command: Sequence[str]) -> Run:
    """Runs a command to its end; Python keeps what it compiles, as installed packages have it."""
    output = WORK / "output.txt"
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(output), *command]
    environment = {k: x for k, x in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(launcher, capture_output=True, text=True, check=True, env=environment)
    seconds, peak, code = done.stdout.split()
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Run(float(seconds), int(peak) / scale, code == "0", output.read_text(errors="replace"))


def median(numbers: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(numbers)


def ratio(others: Sequence[float], own: Sequence[float]) -> float:
    """The median, over rounds of calls in turns, of another side's seconds divided by ours: a machine whose pace drifts slows both of a round."""
    return median([other / mine for other, mine in zip(others, own, strict=True)])


def in_turns(calls: Mapping[str, Callable[[], Any]], seconds: float, least: int = 10) -> dict[str, list[float]]:
    """Seconds of each call, in turns for so long and at least `least` times, in a random order in each round.

    A call is slower after some than after others: after torch.compile, whose threads stay awake for a while. So none has a fixed neighbour.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, stop = list(calls), time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[order[0]]) < least:
        ORDERS.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return times


def interlingua(*arguments: str) -> list[str]:
    """The command line of this package, in this environment."""
    script = Path(sys.executable).parent / "interlingua"
    return [*([str(script)] if script.exists() else [sys.executable, "-m", "interlingua.cli"]), *arguments]


def rival(name: str) -> Path | None:
    """A rival's command, where `make bench` has installed it."""
    return RIVALS / name if (RIVALS / name).exists() else None


# by the name of the published checkpoint that has the configuration: a head, and what differs from the defaults of its architecture
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("BertModel", {"model_type": "bert", "hidden_act": "gelu", "vocab_size": 30522, "pad_token_id": 0}),
    "bert-base-classifier": ("BertForSequenceClassification", {"model_type": "bert", "vocab_size": 30522, "pad_token_id": 0}),
    "gpt2": ("GPT2LMHeadModel", {"model_type": "gpt2"}),
    "t5-small": ("T5ForConditionalGeneration", {"model_type": "t5", "decoder_start_token_id": 0}),
    "vit-base": ("ViTForImageClassification", {"model_type": "vit"}),
    "resnet-50": ("ResNetForImageClassification", {"model_type": "resnet"}),
    "wav2vec2-base": ("Wav2Vec2ForCTC", {"model_type": "wav2vec2"}),
}


def checkpoint(name: str) -> Path:
    """A checkpoint of real size with random weights, written once."""
    folder = WORK / name
    if not (folder / "model.safetensors").exists():
        import interlingua as il

        head, config = CHECKPOINTS[name]
        il.from_config(config, head).save(folder, overwrite=True)
    return folder


def bert_base() -> Path:
    """bert-base without a head: 438 MB."""
    return checkpoint("bert-base")


def open_session(file: Path, threads: int = 0, entries: Mapping[str, str] | None = None) -> Any:
    """An onnxruntime session as all sides get it: idle threads sleep, or the session that waits would slow the one that runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for key, value in {"session.intra_op.allow_spinning": "0", **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def machine() -> Iterator[str]:
    """Where and with what it was measured, a line each."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    memory = next((f"{int(line.split()[1]) >> 20} GB" for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "unknown memory")
    yield f"{cpu}, {os.cpu_count()} cores, {memory}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield f"instructions that kernels are chosen by: {', '.join(instructions()) or 'unknown'}"
    yield ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    if rivals := _rival_versions():
        yield "rivals: " + ", ".join(f"{name} {version}" for name, version in rivals.items())
    if hasattr(os, "getloadavg"):
        yield f"load average at the start {os.getloadavg()[0]:.1f}: more than 0.5 means that something else was running"


def instructions() -> list[str]:
    """Those of `KERNELS` that the processor has, where the system tells."""
    flags = next((line.split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    return [k for k in KERNELS if k in flags]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "from its sources"


def _rival_versions() -> Mapping[str, Any]:
    if rival("python") is None:
        return {}
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {RIVAL_PACKAGES}}}))"
    done = subprocess.run([str(rival("python")), "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}
