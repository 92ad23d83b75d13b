"""Which graphs a model is exported as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.errors import UsageError
from ..ir.graph import Graph

Model = Any  # interlingua.Model, which stands above this package


def graphs_of(
    model: Model,
    to: str,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    cache: bool | None = None,
    all_positions: bool = False,
) -> dict[str, Graph]:
    """The graphs that a model is exported as, by file stem."""
    head = model.card.heads[model.head] if model.card else None
    chosen = inputs is not None or outputs is not None
    wanted = (not chosen and to != "saved_model") if cache is None else cache
    if wanted and to == "saved_model":
        raise UsageError(f"a SavedModel holds one graph without caches\n  export {model.name} to onnx or stablehlo for caches")
    if not (wanted and head and head.parts):
        if cache:
            raise UsageError(f"{model.name} has no caches: only heads that generate have")
        if all_positions:
            raise UsageError("all_positions is given, expected graphs with caches beside it: others give all positions anyway")
        return {"model": model.graph(inputs, outputs)}
    return {part.file: part.graph(model, inputs, padded=to == "stablehlo", all_positions=all_positions) for part in head.parts}
