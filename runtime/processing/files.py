"""Reading the small files beside a checkpoint, and what raw input becomes on its way to a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir.errors import CheckpointError, ConfigError, InterlinguaError, UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding


class MediaError(InterlinguaError, ValueError):
    """An image or audio file that is corrupt, or of a format that is not read."""


class Inputs(dict[str, np.ndarray]):
    """Model inputs by name, with what a readable answer needs to know of where they came from.

    `texts[i]` is the i-th text with its pair (or None). Row r of the text inputs is `encodings[r]` (the tokens, unpadded, with offsets into the text)
    and belongs to text `samples[r]`: a long text may have several rows. `notes` says in words what was cut or converted.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None):
        super().__init__(arrays or {})
        self.texts: list[tuple[str, str | None]] = []
        self.encodings: list[Encoding] = []
        self.samples: list[int] = []
        self.notes: list[str] = []

    def merge(self, other: Inputs) -> None:
        """Take over the arrays, texts and notes of inputs of another kind (CLIP: images beside texts)."""
        self.update(other)
        for name in ("texts", "encodings", "samples", "notes"):
            getattr(self, name).extend(getattr(other, name))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; CheckpointError where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value


def read_optional(path: Path) -> dict[str, Any]:
    """The object in a JSON file, `{}` where there is no such file."""
    return read_json(path) if path.is_file() else {}


def check_kinds(settings: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], source: Path) -> None:
    """ConfigError for the first setting whose value is of none of the kinds that it may have; null counts as left out."""
    for name, allowed in kinds.items():
        value = settings.get(name)
        if value is not None and not isinstance(value, allowed):
            expected = " or ".join(kind.__name__ for kind in allowed)
            raise ConfigError(f"{source}: {name}={value!r}, expected {expected}")


def preprocessor_settings(folder: Path, part: str, what: str) -> dict[str, Any]:
    """What preprocessor_config.json, or `part` of the newer processor_config.json, says; UsageError where neither is there."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return read_json(path)
    nested = read_optional(folder / "processor_config.json").get(part)
    if isinstance(nested, dict):
        return nested
    raise UsageError(
        f"{path}: no such file; it says how {what}, which no default can know\n"
        "  copy preprocessor_config.json from the checkpoint that this one was made from, or pass the arrays themselves"
    )


def existing(path: str | Path, what: str) -> Path:
    """The path of an existing file; UsageError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such {what} file" if not path.is_dir() else f"{path}: is a folder, expected {what} file")
    return path
