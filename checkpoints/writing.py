"""Writing the Hugging Face layout, which transformers loads unchanged."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.atomic import atomic_folder
from ..ir.errors import ShapeError, UsageError
from .checkpoint import LAYOUTS

if TYPE_CHECKING:
    import numpy as np

_, _SINGLE, _INDEX = LAYOUTS[0]


def save(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] = {"format": "pt"},
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    extra_files: Mapping[str, str | os.PathLike[str]] = {},
) -> list[Path]:
    """Write `config.json` and the weights as safetensors, all or nothing; the files written.

    Weights keep their names and dtypes, one file up to `max_shard_bytes`, else shards and an index. `weights` may compute its arrays on demand: one
    shard is in memory at a time. `extra_files` maps names in `folder` to files that are copied there (tokenizers). Other files in `folder` stay.

    Raises UsageError where the output exists and `overwrite` is false, or where a dtype or the configuration cannot be written; InterlinguaError
    where the disk is full.
    """
    plan, total = _plan(weights, max_shard_bytes)
    texts = {"config.json": _json(dict(config), "config")}
    if len(plan) > 1:
        texts[_INDEX] = _json(
            {"metadata": {"total_size": total}, "weight_map": {key: name for name, keys in plan.items() for key in sorted(keys)}}, "index"
        )
    names = [*texts, *plan, *extra_files]
    with atomic_folder(folder, names=names, removes=_replaced(Path(folder)), overwrite=overwrite) as staging:
        for name, source in extra_files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, staging / name)
        for name, text in texts.items():
            (staging / name).write_text(text, "utf-8")
        for name, keys in plan.items():
            _write_shard(staging / name, {key: weights[key] for key in keys}, dict(metadata))
            shutil.copymode(staging / "config.json", staging / name)  # safetensors makes files that only their owner can read
    return [Path(folder) / name for name in names]


def _plan(weights: Mapping[str, np.ndarray], limit: int) -> tuple[dict[str, list[str]], int]:
    """Which file holds which weights, and the bytes of all."""
    from ..ir.types import dtype_of

    shards: list[list[str]] = [[]]
    filled = total = 0
    for key in weights:
        array = weights[key]
        try:
            dtype_of(array.dtype)
        except ShapeError as error:
            raise UsageError(f"weight {key!r}: {error}") from None
        if filled + array.nbytes > limit and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += array.nbytes
        total += array.nbytes
    if len(shards) == 1:
        return {_SINGLE: shards[0]}, total
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": keys for i, keys in enumerate(shards, 1)}, total


def _replaced(folder: Path) -> list[str]:
    """Weights of an earlier save, which a reader would prefer or mix up with the new ones."""
    return [
        p.name
        for p in folder.glob("model*.safetensors*")
        if p.name in (_SINGLE, _INDEX) or re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", p.name)
    ]


def _write_shard(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({key: np.asarray(array, order="C") for key, array in arrays.items()}, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # the only trace of the errno
        if number is None:
            raise UsageError(f"{path.name} cannot be written: {error}") from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot be written as JSON: {error}") from error
