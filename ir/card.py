"""Cards: what a file in `models/` says of an architecture, and how its names meet a checkpoint's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .config import Config
from .layer import Layer

if TYPE_CHECKING:
    from .definition import Definition
    from .graph import Graph, Param


class Names:
    """A table from our layer paths to a checkpoint's, `*` standing for a number; what no row names keeps its name.

    A row with braces stands for several: `{q,k}` and `{query,key}` pair off. The row that matches most of a path wins, so that the order of
    rows means nothing.
    """

    def __init__(self, table: Mapping[str, str]):
        rows = sorted((row for pair in table.items() for row in _unfolded(*pair)), key=lambda row: -len(row[0]))
        self.rows = [(re.compile(re.escape(ours).replace(r"\*", r"(\d+)") + r"(\..*)?"), theirs) for ours, theirs in rows]

    def key(self, path: str) -> str:
        """The checkpoint's name of one of our paths."""
        for pattern, theirs in self.rows:
            if match := pattern.fullmatch(path):
                *numbers, rest = match.groups()
                for n in numbers:
                    theirs = theirs.replace("*", n, 1)
                return (theirs + (rest or "")).lstrip(".")
        return path


_BRACES = re.compile(r"\{([^{}]*)\}")


def _unfolded(ours: str, theirs: str) -> list[tuple[str, str]]:
    """The rows that one row with braces stands for."""
    a, b = _BRACES.search(ours), _BRACES.search(theirs)
    if a is None or b is None:
        return [(ours, theirs)]
    pairs = zip(a[1].split(","), b[1].split(","), strict=True)
    return [row for x, y in pairs for row in _unfolded(ours.replace(a[0], x, 1), theirs.replace(b[0], y, 1))]


# Other spellings of one weight, by age or by library version: a name's ending now, and what it was.
AGED = (
    (".weight", ".gamma"),
    (".bias", ".beta"),
    (".parametrizations.weight.original0", ".weight_g"),
    (".parametrizations.weight.original1", ".weight_v"),
)


def spellings(param: Param, prefix: str, base: str, also: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """The names under which a checkpoint may hold a weight: its own, other ages', and with or without the base model's prefix."""
    found = [name for key in (param.key, *param.tied) for name in (key, *also.get(key, ()))]
    if prefix:
        found += [k[len(prefix) + 1 :] for k in found if k.startswith(prefix + ".")]
    elif base:
        found += [f"{base}.{k}" for k in found]
    for k in found:
        yield k
        for now, then in AGED:
            if k.endswith(now):
                yield k[: -len(now)] + then


@dataclass(frozen=True)
class Part:
    """One graph of a model that generates: the file it is exported to, the cache it is traced with, and its outputs.

    Of those in `last` only the last position is given. `inputs` are present besides the usual ones, `masks` where caches are padded.
    """

    file: str
    cache: str
    outputs: Sequence[str]
    last: Sequence[str] = ()
    inputs: Sequence[str] = ()
    masks: Sequence[str] = ()

    def graph(self, definition: Definition, inputs: Iterable[str] | None = None, *, padded: bool = False, all_positions: bool = False) -> Graph:
        """The part's graph, for its own inputs unless others are chosen; `padded` where sizes are fixed and masks say what is there.

        With `all_positions` nothing is cut to the last position: several tokens can be judged in one call.
        """
        own = (*definition.usual, *self.inputs, *(self.masks if padded else ()))
        graph = definition.graph(own if inputs is None else inputs, self.outputs, cache=self.cache)
        return _last_position(graph, self.last) if self.last and not all_positions else graph


def _last_position(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph with outputs [batch seq ...] cut to [batch 1 ...]: what is computed for the other rows alone is dead code to `push_slices`."""
    graph = graph.rebuild(lambda node, operands: None)
    with graph.tracing():
        for name in names:
            graph.outputs[name] = graph.outputs[name][:, -1:]
    return graph


GENERATES = (Part("model", "growing", ("logits",), last=("logits",), inputs=("position_ids",)),)
ENCODES_THEN_GENERATES = (
    Part("encoder_model", "once", ("encoder_last_hidden_state",)),
    Part("decoder_model", "growing-slots", ("logits",), last=("logits",), masks=("decoder_attention_mask",)),
)


@dataclass(frozen=True)
class Head:
    """One class of the reference: how it is built, its inputs as type texts, and under which prefix the body's weights lie.

    `inputs` are all it takes, and may depend on the configuration; `usual` are those that are present unless asked otherwise. `parts` are the
    graphs of a head that generates, `names` rows of the name table that only this head has, `flags` arguments that
    are true or left out, with the input types that they change.
    """

    build: Callable[[Any], Layer]
    inputs: Mapping[str, str] | Callable[[Any], Mapping[str, str]]
    usual: Sequence[str] = ()
    prefix: str = ""
    parts: Sequence[Part] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    flags: Callable[[Any], Mapping[str, Mapping[str, str]]] = lambda config: {}

    def inputs_for(self, config: Config) -> dict[str, str]:
        """The inputs for a configuration."""
        return dict(self.inputs(config) if callable(self.inputs) else self.inputs)


@dataclass(frozen=True)
class Card:
    """One architecture: its configuration, heads by the reference's class name, and weight names.

    `also_types` are further values of `model_type`; `base` is the prefix of the body in checkpoints of heads; `also` lists other names of a
    weight; `unused` are globs of weights that checkpoints carry and no head needs; `by_rows` says that what an example gives does not depend on
    the others of its batch.
    """

    model_type: str
    config: type[Config]
    heads: Mapping[str, Head]
    names: Mapping[str, str]
    base: str = ""
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unused: Sequence[str] = ()
    also_types: Sequence[str] = ()
    by_rows: bool = True

    def names_for(self, head: Head) -> Names:
        """The table for one head: `body` stands for where the body's weights lie."""
        prefix = f"{head.prefix}." if head.prefix else ""
        body = {f"body.{ours}": prefix + theirs for ours, theirs in self.names.items()}
        return Names({**self.names, **body, "body": head.prefix, **head.names})


def inputs_of(common: Callable[[Any], Mapping[str, str]], **others: str | Callable[[Any], str]) -> Callable[[Any], dict[str, str]]:
    """The inputs for a configuration: common ones, and others whose types may depend on it."""
    return lambda config: {**common(config), **{k: t(config) if callable(t) else t for k, t in others.items()}}


TASKS = {
    "causal-lm": ("ForCausalLM", "LMHeadModel"),
    "masked-lm": ("ForMaskedLM", "WithLMHeadModel"),
    "sequence-classification": ("ForSequenceClassification",),
    "token-classification": ("ForTokenClassification",),
    "question-answering": ("ForQuestionAnsweringSimple", "ForQuestionAnswering"),
    "multiple-choice": ("ForMultipleChoice",),
    "next-sentence-prediction": ("ForNextSentencePrediction",),
    "pretraining": ("ForPreTraining",),
    "seq2seq-lm": ("ForConditionalGeneration",),
    "image-classification": ("ForImageClassification",),
    "masked-image-modeling": ("ForMaskedImageModeling",),
    "audio-classification": ("ForSequenceClassification",),
    "audio-frame-classification": ("ForAudioFrameClassification",),
    "audio-xvector": ("ForXVector",),
    "ctc": ("ForCTC",),
    "feature-extraction": ("Model",),
    "backbone": ("Backbone",),
    "double-heads": ("DoubleHeadsModel",),
}
