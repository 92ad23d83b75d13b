"""The architectures: one file each, found by its name. The registry is this folder."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from ..ir.card import TASKS, Card, Head
from ..ir.errors import ConfigError, UsageError, nearest


@cache
def names() -> tuple[str, ...]:
    """The files of this folder that hold a card, by name."""
    return tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem != "__init__"))


@cache
def card(name: str) -> Card:
    """The card in the file of that name."""
    return importlib.import_module(f".{name}", __name__).CARD


def find(config: dict[str, Any], where: str = "config.json") -> Card:
    """The card for a parsed config.json; ConfigError with the nearest known name where there is none."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"{where}: model_type is {model_type!r}, expected the name of an architecture; known: {', '.join(names())}")
    if (direct := model_type.replace("-", "_")) in names():
        return card(direct)
    for name in names():
        if model_type in card(name).also_types:
            return card(name)
    note = "\n  the checkpoint ships its own code (auto_map), which is never run" if "auto_map" in config else ""
    raise ConfigError(f"{where}: model_type {model_type!r} is not an architecture known here{nearest(model_type, names())}{note}")


def choose_head(card: Card, config: dict[str, Any], head: str | None) -> tuple[str, Head]:
    """The head asked for by class name or task slug, else the one that the checkpoint names in `architectures`, else the bare model."""
    if head is None:
        named = [a for a in config.get("architectures") or [] if a in card.heads]
        bare = next((h for h in card.heads if h.endswith("Model") and not h.endswith("LMHeadModel")), next(iter(card.heads)))
        head = named[0] if named else bare
        if (config.get("architectures") or []) and not named:
            wanted = config["architectures"][0]
            hint = nearest(wanted, card.heads)
            raise UsageError(f"architectures names {wanted!r}, which {card.model_type} has no head for{hint}\n  choose one: head='...'")
    elif head in TASKS:
        fitting = [h for h in card.heads if h.endswith(TASKS[head])]
        if head == "feature-extraction":
            fitting = [h for h in fitting if not h.endswith(("LMHeadModel", "DoubleHeadsModel"))]
        if not fitting:
            raise UsageError(f"{card.model_type} has no head for {head!r}; it has {', '.join(card.heads)}")
        head = fitting[0]
    elif head not in card.heads:
        raise UsageError(f"{card.model_type} has no head {head!r}{nearest(head, [*card.heads, *TASKS])}")
    return str(head), card.heads[str(head)]
