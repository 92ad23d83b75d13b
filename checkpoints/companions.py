"""The small files beside the weights: tokenizer, processor, generation and sentence-embedding settings."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..ir.errors import ConfigError, nearest
from .files import read_json

COMPANIONS = (
    "tokenizer*.json",
    "*.model",
    "vocab.*",
    "entity_vocab.json",
    "merges.txt",
    "bpe.codes",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_MODULES = ("Transformer", "Pooling", "Normalize")


def companion_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths, relative to a checkpoint's folder, of the small files that its model is used with."""
    folder = Path(folder)
    found = [p.relative_to(folder).as_posix() for depth in ("*", "*/config.json") for p in folder.glob(depth) if p.is_file()]
    return sorted(name for name in found if any(fnmatchcase(name, pattern) for pattern in COMPANIONS))


def sentence_modules(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], bool] | None:
    """The Pooling configuration of a sentence-transformers checkpoint and whether its vectors are normalised; None for other checkpoints.

    Raises ConfigError for a module that is not among Transformer, Pooling and Normalize.
    """
    path = Path(folder) / "modules.json"
    if not path.is_file():
        return None
    pooling: dict[str, Any] | None = None
    normalize = False
    for module in read_json(path, "a list of modules", kind=list):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1] if isinstance(module, dict) else ""
        if kind not in _MODULES:
            raise ConfigError(f"{path}: module {kind!r} is not supported{nearest(kind, _MODULES)}")
        if kind == "Pooling":
            pooling = read_json(path.parent / str(module.get("path", "1_Pooling")) / "config.json", "a Pooling configuration")
        normalize |= kind == "Normalize"
    return None if pooling is None else (pooling, normalize)
