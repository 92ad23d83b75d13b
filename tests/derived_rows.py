"""Sample cases of every card that has no hand-written spec, derived from the card: heads, sizes, inputs, edges and variants.

A, B      every head with the inputs it usually has (A), and with all that it has (B; not `tiny.RARE`), padded on one side and on the other
E         every head at batch 1 and the shortest length, without masks
variants  each allowed value of each field that changes the computation, and each rare input, on a head that shows it; the heads take turns
REFUSED   values that the card refuses: the error must name the field

Nothing here imports a framework or runs the reference. A card that cannot be read is in BROKEN and costs nobody else their rows.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import oracle
import tiny
from oracle import Case, derived_case
from oracle_specs import SPECS

from interlingua import models
from interlingua.ir.card import Card
from interlingua.ir.config import PROBLEMS, Config
from interlingua.ir.errors import ConfigError

# fields that are not varied: those that every configuration has, and cross attention, which has a row of its own with an encoder's states
_COMMON = {f.name for f in dataclasses.fields(Config)} - {"tie_word_embeddings"} | {"add_cross_attention"}
_LANGUAGE = ("ForMaskedLM", "WithLMHeadModel", "LMHeadModel", "ForCausalLM", "Decoder", "ForPreTraining")
_CAUSAL = ("ForCausalLM", "BertLMHeadModel", "GenerationDecoder")
# the heads that show a field, by endings of class names; other fields show on every head, and the heads take turns
_SHOWN: dict[str, tuple[str, ...]] = {
    "tie_word_embeddings": _LANGUAGE,
    "is_decoder": ("Model", "Encoder"),
    "summary": ("ForSequenceClassification", "ForMultipleChoice"),
    "classifier": ("ForSequenceClassification",),
    "pooler": ("ForSequenceClassification",),
}
_ACTIVATIONS = ("relu", "gelu_new", "silu")  # of 18, which hand-written rows try one by one


@dataclass(frozen=True)
class Derived:
    """One sample of a card: a head, its size (0 is A), what to change in the tiny configuration, and options of its inputs.

    Options are those of `tiny.draw` and `give` or `drop`, names of inputs.
    """

    name: str
    head: str
    id: str
    size: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.head}-{self.id}"

    def case(self) -> Case:
        """The reference's run of this row."""
        card, values = models.card(self.name), self.values()
        config, own = card.config.read(values), tiny.own(card)
        drawn = tiny.draw(card, self.head, config, self.size, self.given(config), self.inputs)
        labels = {k: drawn.pop(k) for k in tiny.LABELS if k in drawn}
        given = labels if labels or self.head in tiny.ALWAYS_LOSS else None
        with own.repair():
            if any(values.get(k) == v for k, v in own.silent.items()):
                request = {"spec": "", "model_type": card.model_type, "head": self.head, "config": values, "inputs": {"attentions": False}, "seed": 0}
                return oracle._cached(request, drawn, given)
            return derived_case(self.head, card.model_type, values, drawn, given)

    def values(self) -> dict[str, Any]:
        """The fields of config.json that are not the reference's defaults."""
        return values(models.card(self.name), self.head, self.size, self.config)

    def given(self, config: Config) -> list[str]:
        """The names of the inputs, labels among them."""
        card = models.card(self.name)
        head, own = card.heads[self.head], tiny.own(card)
        types = head.inputs_for(config)
        if "give" in self.inputs:
            names = [*self.inputs["give"], *(k for k in types if k in tiny.LABELS)]
        else:
            names = [k for k in types if k in (head.usual or types) or k in tiny.LABELS or (self.size and k not in tiny.RARE)]
            names += [k for k in own.given(self.head) if k not in names]
        left = {*self.inputs.get("drop", ()), *own.left_out(self.head)}
        return [k for k in names if k in types and k not in left]

    def has_loss(self) -> bool:
        """Whether the reference has a loss for this row."""
        config = models.card(self.name).config.read(self.values())
        return self.head in tiny.ALWAYS_LOSS or any(k in tiny.LABELS for k in self.given(config))


def values(card: Card, head: str, size: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny configuration of a head at a size, with changes."""
    names = {f.name for f in dataclasses.fields(card.config)}
    common = {ours: theirs for theirs, ours in card.config.aliases.items()}
    own = tiny.own(card)
    made = {n: tiny.SIZES[k][size] for n in sorted(names) if (k := n if n in tiny.SIZES else common.get(n, n)) in tiny.SIZES}
    made |= {n: pair[size] for n, pair in own.config.items()}
    if "ForQuestionAnswering" in head:
        made["num_labels"] = 2
    if head.endswith(_CAUSAL) and "is_decoder" in names:
        made["is_decoder"] = True
    if head.endswith("ForSequenceClassification") and card.config().pad_token_id is None:
        made["pad_token_id"] = 0  # by which decoders find the last word
    for ending, fields in own.heads.items():
        made |= fields if head.endswith(ending) else {}
    return {"model_type": card.model_type, **made, **changes}


@dataclass
class Rows:
    """All rows of one card, and values that it refuses: (head, values, field)."""

    cases: list[Derived]
    edges: list[Derived]
    variants: list[Derived]
    refused: list[tuple[str, str, dict[str, Any], str]]


@cache
def rows(name: str) -> Rows:
    """The rows of the card in a file of `models/`."""
    card = models.card(name)
    own = tiny.own(card)
    heads = [h for h in card.heads if not own.skipped(h)]
    cases = [Derived(name, h, "AB"[size], size) for size in (0, 1) for h in heads]
    edge = {"batch": 1, "length": 1, "pad": "none", "drop": ("attention_mask", "token_type_ids"), **own.edge}
    made = Rows(cases, [Derived(name, h, "E", 0, {}, edge) for h in heads], [], [])
    if heads:
        _vary(made, name, card, heads)
    for row in made.cases:  # a card whose configuration or inputs cannot be read is broken now, not in each test
        row.has_loss()
    return made


def _vary(made: Rows, name: str, card: Card, heads: list[str]) -> None:
    turn = 0
    for field_name, id, change in changes(card):
        shown = [h for h in heads if h.endswith(next((v for k, v in _SHOWN.items() if field_name.startswith(k)), ("",)))]
        if not shown:
            continue
        if len(shown) == len(heads):
            shown = [heads[turn % len(heads)]]
            turn += 1
        try:
            card.config.read(values(card, shown[0], 0, change))
        except ConfigError:
            made.refused.append((name, shown[0], change, field_name))
            continue
        made.variants += [Derived(name, head, id, 0, change) for head in shown]
    made.variants += _inputs(name, card, heads)
    for head in (h for h in heads if h.endswith("ForSequenceClassification")):
        made.variants.append(Derived(name, head, "one-label", 0, {"num_labels": 1}))
        made.variants += [Derived(name, head, kind, 0, {"problem_type": kind}) for kind in (PROBLEMS[0], PROBLEMS[2])]


def changes(card: Card) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(field, id, the change) for each other value of each field that changes the computation."""
    own, hints = tiny.own(card), {f.name: f for f in dataclasses.fields(card.config)}
    start = {n: f.default for n, f in hints.items() if f.default is not dataclasses.MISSING} | {n: v[0] for n, v in own.config.items()}
    for n in hints:
        if n in _COMMON and n not in own.vary:
            continue
        for value in own.vary.get(n, _others(hints[n], start.get(n))):
            beside = {k: v for k, v in own.beside.get(n, {}).items() if k in hints}
            yield n, f"{n}-{value}".replace(" ", ""), {n: value, **beside}


def _others(f: Any, start: Any) -> tuple[Any, ...]:
    allowed = f.metadata.get("allowed")
    if allowed is not None:
        if len(allowed) == 1:
            return (not start,) if isinstance(start, bool) else ("another",) if isinstance(start, str) else ()
        others = tuple(a for a in allowed if a != start)
        return tuple(a for a in others if a in _ACTIVATIONS) if set(_ACTIVATIONS) <= set(allowed) else others
    if isinstance(start, bool):
        return (not start,)
    if isinstance(start, float) and "drop" not in f.name:
        return (0.02,) if "eps" in f.name else (start / 2 + 0.1,)
    return ()


def _inputs(name: str, card: Card, heads: list[str]) -> Iterator[Derived]:
    """Rare inputs: positions, vectors in place of tokens, no mask, an encoder's states."""
    bare, cross = heads[0], {"is_decoder": True, "add_cross_attention": True}
    types = card.heads[bare].inputs_for(card.config.read(values(card, bare, 0, {})))
    usual = [k for k in card.heads[bare].usual or types if k in types and k not in tiny.RARE and k not in tiny.LABELS]
    usual = [k for k in usual if k not in tiny.own(card).left_out(bare)]
    if "position_ids" in types:
        yield Derived(name, bare, "positions", 0, {}, {"give": (*usual, "position_ids")})
    if "inputs_embeds" in types:
        yield Derived(name, bare, "vectors", 0, {}, {"give": ("inputs_embeds", *(k for k in usual if k != "input_ids"))})
    if "attention_mask" in usual:
        yield Derived(name, bare, "unmasked", 0, {}, {"drop": ("attention_mask",), "pad": "none"})
    fields = {f.name: f.metadata.get("allowed", (True,)) for f in dataclasses.fields(card.config)}
    if "is_decoder" in fields and True in fields.get("add_cross_attention", ()):
        head = next((h for h in heads if h.endswith(_CAUSAL)), bare)
        memory = ("encoder_hidden_states", "encoder_attention_mask")
        yield Derived(name, head, "cross", 0, cross, {"give": (*usual, *memory)})


def public_heads(name: str) -> set[str]:
    """The public classes of the reference with a forward pass of their own, in the module that has the card's heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference library's own
        transformers = importlib.import_module("transformers")
        module = importlib.import_module(getattr(transformers, next(iter(models.card(name).heads))).__module__)
        found = {k for k in module.__all__ if inspect.isclass(kind := getattr(module, k)) and issubclass(kind, transformers.PreTrainedModel)}
    return {k for k in found if "pretrained" not in k.lower()}


BROKEN: dict[str, Exception] = {}
NAMES = [n for n in models.names() if n not in SPECS or n in os.environ.get("INTERLINGUA_DERIVE", "").split(",")]


def _all() -> Rows:
    made = Rows([], [], [], [])
    for name in NAMES:
        try:
            found = rows(name)
        except Exception as error:  # whatever is wrong with a card that is being written
            BROKEN[name] = error
            continue
        for part in dataclasses.fields(Rows):
            getattr(made, part.name).extend(getattr(found, part.name))
    return made


DERIVED = _all()
