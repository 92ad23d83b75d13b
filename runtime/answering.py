"""From raw text, images or sound to a readable answer, with a checkpoint or an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import resolve
from ..checkpoints.files import read_json
from ..exporters.artifact import MANIFEST, GraphFile, read_manifest
from ..ir.card import TASKS
from ..ir.definition import Definition
from ..ir.errors import InputError, UsageError
from ..ir.sizes import bind
from ..ir.types import NUMPY_DTYPES
from ..models import choose_head, find
from .processing import Answer, Inputs, answer, processor_for
from .session import Session
from .targets import compile, open

Arrays = Mapping[str, np.ndarray]
Progress = Callable[[str], None]
Load = Callable[[str, str | None], Definition]

FORMATS = {"onnxruntime": "onnx", "xla": "stablehlo", "tensorflow": "saved_model"}  # what an export writes for a target
CHAIN = ("encoder_model", "decoder_model")  # the second reads what the first makes
PLACES = "position_ids"
PLAIN = {"attention_mask": 1, "token_type_ids": 0}  # filled with this, an input says what leaving it out says
_KINDS = {"input_ids": "text", "pixel_values": "image", "input_values": "audio"}
_NEXT_TOKEN = "these are the likeliest tokens at the next place: one step, as a single run of the model gives it"


@dataclass(frozen=True)
class Ran:
    """One run on raw input: the answer, the head and the target that gave it, and `notes` on what was done to the input and what the answer is."""

    answer: Answer
    head: str
    target: str
    notes: list[str]


def run_raw(
    place: str,
    load: Load,
    on: str | None = None,
    *,
    head: str | None = None,
    device: str = "cpu",
    top_k: int = 5,
    progress: Progress = lambda text: None,
    **raw: Any,
) -> Ran:
    """The readable answer of a model for `text`, `pair`, `image` or `audio`.

    `place` is a checkpoint's folder or hub id, or a folder that an export wrote; `on` is by default what that was exported for, else onnxruntime.
    Graphs that the folder has for the target and `head` are run without model code; where it has none, the model that `load(folder, head)` gives
    is compiled. For a head that chooses, `pair` holds the continuations of one text. Errors: InputError for inputs that the model does not take,
    UsageError for a folder that cannot be run, and those of loading and running.
    """
    folder = Path(resolve(place))
    config = read_json(folder / "config.json", "the configuration of the model")
    processor = processor_for(folder, config)
    if head in TASKS:
        head = choose_head(find(config, str(folder / "config.json")), config, head)[0]
    progress(f"reading {place}")
    on, graphs = _exported(folder, on, head)
    source = _Artifact(folder, graphs, device) if graphs else _Checkpoint(load(str(folder), head), on, device)
    inputs = processor.inputs(**_arguments(raw, source.takes), **(source.habits if raw.get("text") else {}))
    _complete(inputs, source.name, source.usual, config)
    progress(f"running {source.name} on {on}")
    found = answer(source.name, config, inputs, source.run(_taken(inputs, source)), processor, top_k)
    notes = [_NEXT_TOKEN] if found.task in ("causal-lm", "conditional-generation") else []
    return Ran(found, source.name, on, inputs.notes + notes)


class _Checkpoint:
    """A model that is compiled for the inputs that come."""

    def __init__(self, model: Definition, on: str, device: str):
        self.model, self.on, self.device = model, on, device
        self.name, self.takes, self.usual = model.name, model.inputs, model.usual
        self.habits: dict[str, str] = {}

    def run(self, inputs: Arrays) -> Arrays:
        return compile(self.model, self.on, device=self.device, inputs=list(inputs))(**inputs)


class _Artifact:
    """Exported graphs, each of which reads the inputs and what those before it made."""

    def __init__(self, folder: Path, graphs: Sequence[GraphFile], device: str):
        self.folder, self.graphs, self.device = folder, graphs, device
        self.name = graphs[-1].head or graphs[-1].model
        inputs = {k: type for g in reversed(graphs) for k, type in g.inputs.items()}
        self.takes, self.usual = {**{k: "" for g in graphs for k in g.ignored}, **inputs}, tuple(inputs)
        self.habits = {"padding_side": "left"} if PLACES in inputs and "past_key_values.0.key" in inputs else {}  # the last position alone is given

    def run(self, inputs: Arrays) -> Arrays:
        known, made = dict(inputs), {}
        for graph in self.graphs:
            place = self.folder if graph.target == "saved_model" else self.folder / graph.file
            session = open(place, target=graph.target, device=self.device)
            past = {k: _no_past(k, session, inputs) for k in session.inputs if k.startswith("past_key_values.") and k not in known}
            made = session(**{k: x for k, x in {**known, **past}.items() if k in session.inputs})
            known |= {k.replace("present.", "past_key_values.", 1): x for k, x in made.items()}
        return made


def _no_past(name: str, session: Session, inputs: Arrays) -> np.ndarray:
    """Keys or values of earlier calls before the first call: none."""
    type = session.inputs[name]
    return np.zeros(bind(type.shape, {"batch": len(next(iter(inputs.values()))), "past": 0}), NUMPY_DTYPES[type.dtype])


def _exported(folder: Path, on: str | None, head: str | None) -> tuple[str, list[GraphFile]]:
    """The target, and the graphs to run there in turn; none where the checkpoint itself is to be compiled."""
    known = read_manifest(folder) if (folder / MANIFEST).exists() else []
    fitting = [g for g in known if head in (None, g.head)]
    on = on or next((target for target, kind in FORMATS.items() if any(g.target == kind for g in fitting)), "onnxruntime")
    graphs = {Path(g.file).stem: g for g in fitting if g.target == FORMATS.get(on)}
    if len(graphs) == 1 or "model" in graphs:
        return on, [graphs.get("model") or next(iter(graphs.values()))]
    if set(CHAIN) <= set(graphs):
        return on, [graphs[stem] for stem in CHAIN]
    if known and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        have = ", ".join(f"{g.file} ({g.head} for {g.target})" for g in known)
        wanted = f"one graph of {head or 'a head'} for {on}, or a checkpoint"
        raise UsageError(f"{folder} has {have}, expected {wanted}\n  choose --on and --head to fit, or export the model anew")
    return on, []


def _arguments(raw: Mapping[str, Any], takes: Mapping[str, str]) -> dict[str, Any]:
    """What the processor is called with: for a head that chooses, the pairs are the continuations of its one text."""
    given = {k: v for k, v in raw.items() if v is not None}
    if "[batch choices" not in takes.get("input_ids", ""):
        return given
    texts, choices = given.pop("text", []), given.pop("pair", [])
    if len(texts) != 1 or len(choices) < 2:
        raise InputError(
            f"got {len(texts)} texts and {len(choices)} pairs, expected one text and the choices that may continue it as pairs\n"
            "  pass --text '...' --pair '...' --pair '...'"
        )
    return {**given, "text": texts[0], "choices": choices}


def _complete(inputs: Inputs, name: str, usual: Sequence[str], config: Mapping[str, Any]) -> None:
    """Adds what raw input does not say and every run has; InputError where a kind of input that the model reads was not given."""
    given = [kind for k, kind in _KINDS.items() if k in inputs]
    if lacking := [kind for k, kind in _KINDS.items() if k in usual and k not in inputs]:
        raise InputError(
            f"{name} reads {' and '.join(given + lacking)}, got {' and '.join(given)} alone\n  pass --{lacking[0]} too, or choose another head"
        )
    if "decoder_input_ids" in usual:
        start = config.get("decoder_start_token_id")
        if start is None:
            raise UsageError("config.json: decoder_start_token_id is missing, expected the id of the token that decoding starts with")
        inputs["decoder_input_ids"] = np.full((len(next(iter(inputs.values()))), 1), start, np.int64)
    if "decoder_attention_mask" in usual:
        inputs["decoder_attention_mask"] = np.ones_like(inputs["decoder_input_ids"])
    if PLACES in usual and PLACES not in inputs:
        inputs[PLACES] = np.maximum(np.cumsum(inputs["attention_mask"], axis=-1) - 1, 0)
    if "mc_token_ids" in usual:  # each choice is judged by its last token
        mask = inputs["attention_mask"]
        inputs["mc_token_ids"] = mask.shape[-1] - 1 - np.argmax(mask[..., ::-1], axis=-1)


def _taken(inputs: Inputs, source: _Checkpoint | _Artifact) -> Arrays:
    """The inputs without those that the source does not take and that say nothing; InputError for one that says something."""
    for k, x in inputs.items():
        if k not in source.takes and not (k in PLAIN and np.all(x == PLAIN[k])):
            way_out = f"run them one at a time, or export it with --input {k}"
            raise InputError(f"{source.name} takes no {k!r}, without which these inputs mean something else\n  {way_out}")
    return {k: x for k, x in inputs.items() if k in source.takes}
