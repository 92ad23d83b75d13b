"""Making a pipeline: which head a task needs, and whether an exported graph or the checkpoint runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import resolve, sentence_modules
from ..checkpoints.files import read_json
from ..exporters.artifact import MANIFEST, GraphFile, read_manifest
from ..ir.card import TASKS as HEADS
from ..ir.definition import Definition
from ..ir.errors import CheckpointError, InputError, UsageError
from ..models import choose_head, find
from .generating.in_graph import SEQUENCES
from .generation import generator, generator_for
from .pipeline import Pipeline
from .processing.answers import Answer
from .processing.processor import processor_for
from .processing.tasks import TASKS, ending, task_name, task_of
from .sources import FORMATS, Compiled, Opened, Source, exported
from .targets import open
from .writing import Writing, Written

Load = Callable[..., Definition]  # (folder, head), and init_missing
FEATURES = ("feature-extraction", "image-feature-extraction", "sentence-similarity")
Progress = Callable[[str], None]


def make(
    task: str | None,
    place: Any,
    load: Load,
    on: str | None = None,
    *,
    head: str | None = None,
    device: str = "cpu",
    batch_size: int | None = None,
    session: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
    **options: Any,
) -> Pipeline:
    """See `interlingua.pipeline`. `load(folder, head)` reads a checkpoint; without a task the head's is taken, by default that of config.json."""
    name = None if task is None else task_name(task)
    progress(f"reading {place}")
    choice = _Choice(place, load, on, head, device, session or {})
    if name is None:
        name = choice.own_task()
    progress(f"preparing {name}")
    if TASKS[name].generates:
        return Writing(name, task or name, choice.writer(name), batch_size, options)
    processor = processor_for(choice.folder, choice.config)
    return Pipeline(name, choice.source(name), processor, batch_size, options)


# ---- for people ---------------------------------------------------------------------------------

_SAID = {"question": "text", "source_sentence": "text", "context": "pair", "text_pair": "pair", "choices": "pair", "sentences": "pair"}
_SAID["candidate_labels"] = "label"
# what a table shows beside what a program gets: all outputs, and text that is the same each time
_SHOWN = {"truncation": True, "output": "*", "return_tensors": True}
_WRITTEN = {"do_sample": False}


def answer_table(
    task: str | None, place: str, load: Load, on: str | None, *, top_k: int, progress: Progress, head: str | None, device: str, **raw: Any
) -> tuple[Answer, list[str]]:
    """The answers as a table, and notes on what was done to the inputs: `raw` lists hold `text`, `pair`, `label`, `image` and `audio`."""
    pipe = make(task, place, load, on, head=head, device=device, progress=progress)
    wanted = _WRITTEN if TASKS[pipe.task].generates else {**_SHOWN, "top_k": top_k}
    options = {k: x for k, x in wanted.items() if k in pipe.known_options()}
    if pipe.task == "zero-shot-image-classification" and raw["label"] is None and raw["text"]:
        raw, options["hypothesis_template"] = {**raw, "label": raw["text"], "text": None}, "{}"
    samples = samples_of(pipe, {k: x for k, x in raw.items() if x is not None})
    progress(f"running {pipe.name} on {pipe.target}")
    found = pipe(samples, **options)
    return Answer.of([found] if len(samples) == 1 and pipe.task in ("fill-mask", "question-answering") else found), pipe.notes


def samples_of(pipe: Pipeline, given: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Samples of lists that belong together; InputError where they do not fit the task."""
    task = TASKS[pipe.task]
    part_of = {_SAID.get(k, k): k for k in task.parts if k not in ("text", "image", "audio") or k in pipe.takes}
    said = " and ".join(f"--{k}" for k in part_of)
    if wrong := [k for k in given if k not in part_of]:
        raise InputError(f"got --{' and --'.join(wrong)}, expected {said}: {pipe.name} does {pipe.task}")
    shared = {part_of[k]: x for k, x in given.items() if part_of[k] in task.shared}
    each = {part_of[k]: x for k, x in given.items() if part_of[k] not in task.shared}
    if len({len(x) for x in each.values()}) != 1:
        raise InputError(f"got {', '.join(f'{len(x)} of --{k}' for k, x in given.items()) or 'no input'}, expected {said}, one for each of the other")
    return [{**shared, **dict(zip(each, values, strict=True))} for values in zip(*each.values(), strict=True)]


# ---- what runs ----------------------------------------------------------------------------------


class _Choice:
    """A checkpoint, an exported folder or a loaded model, and what was asked for of it."""

    def __init__(self, place: Any, load: Load, on: str | None, head: str | None, device: str, session: Mapping[str, Any]):
        self.load, self.on, self.device, self.session = load, on, device, session
        self.model = place if isinstance(place, Definition) else None
        if self.model is None:
            self.folder = Path(resolve(str(place)))
            self.config = read_json(self.folder / "config.json", "the configuration of the model")
        elif folder := getattr(place, "folder", None):
            self.folder, self.config = Path(folder), dict(getattr(place, "values", {}))
        else:
            told = f"{self.model.name} comes from no folder, expected one with the files of its tokenizer"
            raise UsageError(f"{told}\n  save it beside them and name the folder")
        self.head = choose_head(self._card(), self.config, head)[0] if head in HEADS else head
        self.outputs: list[str] | None = None

    def _card(self) -> Any:
        return find(self.config, str(self.folder / "config.json"))

    def own_task(self) -> str:
        """The task of the head that was asked for, else of what was exported for the target, else of config.json's."""
        heads = [g.head for g in self._graphs() if g.head] if self.model is None else [self.model.name]
        self.head = self.head or (heads[0] if heads else choose_head(self._card(), self.config, None)[0])
        return task_of(self.head, processor_for(self.folder, self.config).modalities)

    def writer(self, name: str) -> Any:
        """The generator of a head that generates."""
        common = {"device": self.device, **self.session}
        if self.model is not None:
            return generator(self.model, self.on, **common)
        graphs = self._graphs()
        alone = next((g for g in graphs if SEQUENCES in g.outputs and self.head in (None, g.head)), None)
        if alone is not None and len(graphs) == 1:
            return Written(open(self.folder / alone.file, target=alone.target, **common), self.folder, self.config)
        return generator_for(str(self.folder), self._loaded(name), self.on, head=self.head, **common)

    def _graphs(self) -> list[GraphFile]:
        """The exported graphs for the target."""
        graphs = read_manifest(self.folder) if self.model is None and (self.folder / MANIFEST).exists() else []
        return [g for g in graphs if g.target in (FORMATS.values() if self.on is None else [FORMATS.get(self.on)])]

    def source(self, name: str) -> Source:
        """What runs for a task."""
        task = TASKS[name]
        if self.model is None:
            on, graph = exported(self.folder, self.on, lambda g: self._fits(g, name), self.head or f"a head for {name}")
            if graph is not None:
                return Opened(self.folder, graph, on, self.device, self.session)
            if name == "sentence-similarity" and sentence_modules(self.folder) is None:
                told = f"{self.folder} has no modules.json, which says how sentences are embedded, expected a sentence-transformers checkpoint"
                raise UsageError(f"{told}\n  choose another one, or make vectors of your own with the task 'feature-extraction'")
            self.model, self.on = self._loaded(name)(str(self.folder), self.head), on
        if task.endings and name not in FEATURES and ending(self.model.name) not in task.endings:
            raise UsageError(f"{self.model.name} does not fit the task {name!r}, expected a class that ends in {' or '.join(task.endings)}")
        return Compiled(self.model, self.on or "onnxruntime", self.device, self.outputs, self.session)

    def _fits(self, graph: GraphFile, name: str) -> bool:
        task = TASKS[name]
        if self.head is not None and graph.head != self.head:
            return False
        return ending(graph.head) in task.endings or task.output in graph.outputs or (name in FEATURES and self.head is not None)

    def _loaded(self, name: str) -> Load:
        """`load` with the head that the task needs, and an error that says so where the checkpoint lacks it."""

        def load(folder: str, head: str | None) -> Definition:
            wanted = head or self._head_for(name)
            try:
                return self.load(folder, wanted)
            except CheckpointError as error:
                missing = [line for line in str(error).splitlines() if line.strip().startswith("missing: ")]
                if head or not missing:
                    raise
                if name in FEATURES:
                    return self._body(folder, wanted, name)
                saved = ", ".join(self.config.get("architectures") or []) or "a model without a head"
                told = f"{folder} was saved as {saved}, expected a checkpoint that {wanted} fits, for the task {name!r}"
                raise CheckpointError("\n".join([told, *missing])) from None

        return load

    def _body(self, folder: str, wanted: str, name: str) -> Definition:
        """The body of a checkpoint of a head, complete but for what its own head does without (a pooler), which is then not among the outputs."""
        own = choose_head(self._card(), self.config, None)[0]
        self.load(folder, own)  # so that all that is missing is the difference of the two heads
        self.outputs = [TASKS[name].output]
        return self.load(folder, wanted, init_missing=True)

    def _head_for(self, name: str) -> str:
        """The head with which the checkpoint does a task: its own where that fits."""
        card, task = self._card(), TASKS[name]
        own = [h for h in self.config.get("architectures") or [] if h in card.heads and ending(h) in task.endings]
        others = [h for e in task.endings for h in card.heads if ending(h) == e] if name not in FEATURES else []
        return own[0] if own else others[0] if others else choose_head(card, self.config, task.head)[0]
