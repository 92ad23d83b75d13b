"""Pipelines whose answers are written token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints.files import read_json
from ..ir.errors import InputError, UsageError
from ..ir.sizes import Dim
from .generating.in_graph import SEQUENCES
from .generating.options import Options, warn_of_what_is_not_applied
from .generation import Generator
from .pipeline import Pipeline
from .processing.text import TextProcessor
from .session import Session

# what the reference's pipelines ask for where neither the checkpoint nor the call does
LENGTH = 256
SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 50}
SEARCHED = {"num_beams": 4}
GLOBAL_LENGTH = 20  # the reference's `max_length` where nobody sets one
OWN = ("max_length", "return_full_text", "return_tensors", "clean_up_tokenization_spaces", "truncation", "prefix")


class Written:
    """An exported graph that generates by itself, in a generator's place: how much it writes, and that it takes the likeliest, is settled."""

    def __init__(self, session: Session, folder: Path, config: Mapping[str, Any]):
        self.session, self.folder, self.config = session, folder, config
        self.name, self.target = session.name, session.target
        length = session.outputs[SEQUENCES].shape[1]
        self.encoder = None if isinstance(length, Dim) else session  # without one the prompt is part of what comes out
        self.new = int(length.bind({str(k): 0 for k in length.names()})) if isinstance(length, Dim) else int(length) - 1
        self.text_processor = TextProcessor.from_folder(folder, config)

    def generate(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """The graph's sequences i64[batch tokens]."""
        return self.session(input_ids=input_ids, attention_mask=attention_mask)[SEQUENCES]


class Writing(Pipeline):
    """A task whose answer is new text: `generator` writes it.

    `asked` is the task as it was spelt, "translation_en_to_de", by which config.json may hold a prefix and options.
    """

    def __init__(self, task: str, asked: str, generator: Generator | Written, batch_size: int | None, options: Mapping[str, Any]):
        self.generator = generator
        self._begin(task, generator.name, generator.target, batch_size, options)
        if self._continues != (generator.encoder is None):
            has, needs = ("no encoder", "with one") if self._continues is False else ("an encoder", "without one")
            raise UsageError(f"{generator.name} has {has}, expected a model {needs} for the task {task!r}")
        stated = generator.config.get("task_specific_params") or {}
        if asked == "translation":
            asked = next((k for k in stated if k.startswith("translation")), asked)
        own = dict(stated.get(asked) or {})
        self.prefix = own.pop("prefix", generator.config.get("prefix")) or ""
        self.defaults = self._defaults(own)

    @property
    def _continues(self) -> bool:
        return self.task == "text-generation"

    @property
    def takes(self) -> frozenset[str]:
        """Text alone."""
        return frozenset({"text"})

    def known_options(self) -> list[str]:
        """The names of the options of generation, and of what is made of its tokens."""
        return [*OWN[1:]] if isinstance(self.generator, Written) else [*(f.name for f in fields(Options)), *OWN]

    def _check(self, given: Mapping[str, Any]) -> None:
        if isinstance(self.generator, Written) and (fixed := [k for k in given if k in (f.name for f in fields(Options))]):
            told = f"{self.generator.name} writes {self.generator.new} tokens, the likeliest ones, as it was exported to, expected no {fixed[0]!r}"
            raise UsageError(f"{told}\n  export it without `generate` for graphs that are asked step by step")
        super()._check(given)

    def _defaults(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call that asks for none."""
        if isinstance(self.generator, Written):
            return {}
        known = {f.name for f in fields(Options)}
        made: dict[str, Any] = dict(SAMPLED if self._continues else SEARCHED)
        path = self.generator.folder / "generation_config.json" if self.generator.folder else None
        stated = read_json(path, "what generation is asked for") if path and path.exists() else self.generator.config
        made |= {k: stated[k] for k in ("top_k",) if k in made and stated.get(k) is not None}
        if stated.get("max_length") not in (None, GLOBAL_LENGTH):  # all else that it asks for the reference's pipelines put their own above
            made["max_length"] = own.get("max_length", stated["max_length"])
        warn_of_what_is_not_applied(own, "config.json, in its task_specific_params,")
        return made | {k: x for k, x in own.items() if k in known}

    def _shaped(self, answers: list[Any], inputs: Any, single: bool, options: Mapping[str, Any]) -> Any:
        if single:
            return answers[0]
        return answers if self._continues else [answer[0] for answer in answers]

    def _answers(self, samples: Sequence[Mapping[str, Any]], options: Mapping[str, Any], batch_size: int | None) -> list[Any]:
        texts = [sample["text"] for sample in samples]
        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            raise InputError(f"sample {wrong[0]} is of type {type(texts[wrong[0]]).__name__}, expected str")
        chosen = {**self.defaults, **options}
        if chosen.get("num_beams", 1) > 1 and "do_sample" not in options:
            chosen = {k: x for k, x in chosen.items() if k not in SAMPLED or k in options}
        self.notes, size = [], 1 if isinstance(self.generator, Written) else batch_size or 1
        return [answer for start in range(0, len(texts), size) for answer in self._written(texts[start : start + size], chosen)]

    def _written(self, texts: Sequence[str], chosen: Mapping[str, Any]) -> list[Any]:
        own = {k: chosen[k] for k in OWN if k in chosen}
        text, prefix = self.generator.text_processor, own.get("prefix", self.prefix)
        side = "left" if self.generator.encoder is None else "right"
        cut = "longest_first" if own.get("truncation") else None
        given = text.inputs([prefix + one for one in texts], padding_side=side, truncation=cut)
        self.notes += given.notes
        ids, mask = given["input_ids"], given["attention_mask"]
        if isinstance(self.generator, Written):
            made = self.generator.generate(ids, mask)
        else:
            options: dict[str, Any] = {k: x for k, x in chosen.items() if k not in OWN}
            options["max_new_tokens"] = self._room(chosen, ids.shape[1], self.generator)
            made = self.generator.generate(ids, mask, **options)
        return [[self._record(texts[i], ids[i][mask[i] == 1], self._tokens(row, mask[i]), own)] for i, row in enumerate(made)]

    def _tokens(self, row: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A row without what filled its prompt up."""
        return row[len(mask) - int(mask.sum()) :] if self._continues else row

    def _room(self, chosen: Mapping[str, Any], prompt: int, generator: Generator) -> int:
        """The number of new tokens: what was asked for, else as many of the default as the model has places for."""
        prompt = prompt if self._continues else 1
        if "max_new_tokens" in chosen:
            return chosen["max_new_tokens"]
        if "max_length" in chosen:
            if (new := chosen["max_length"] - prompt) < 1:
                raise InputError(f"max_length is {chosen['max_length']} and the prompt has {prompt} tokens, expected room for new ones")
            return new
        most = generator.decoder.most
        return max(1, min(LENGTH, most[0] - prompt)) if most else LENGTH

    def _record(self, prompt: str, ids: np.ndarray, tokens: np.ndarray, own: Mapping[str, Any]) -> dict[str, Any]:
        name = self._kind.name_of_text
        if own.get("return_tensors"):
            return {f"{name}_token_ids": tokens.tolist()}
        text = self.generator.text_processor
        text = replace(text, clean_up=own.get("clean_up_tokenization_spaces", self._continues))
        if not self._continues:
            return {f"{name}_text": text.decode(tokens)}
        new = text.decode(tokens)[len(text.decode(ids)) :]
        return {f"{name}_text": prompt + new if own.get("return_full_text", True) else new}
