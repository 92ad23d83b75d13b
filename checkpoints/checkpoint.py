"""A folder of weights and configuration in the Hugging Face layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ir.errors import CheckpointError, UsageError
from ..ir.weights import Location
from .files import WeightFile, brief, read_json, suggestion

if TYPE_CHECKING:
    import numpy as np

# what is looked for, in this order: format, the file that holds all weights, the file that says which shard holds which
LAYOUTS = (
    ("safetensors", "model.safetensors", "model.safetensors.index.json"),
    ("pickle", "pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_FOREIGN = {"tf_model.h5": "TensorFlow", "model.ckpt.index": "TensorFlow", "flax_model.msgpack": "Flax", "flax_model.msgpack.index.json": "Flax"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ot", ".npz", ".onnx"}


class Checkpoint:
    """The weights and configuration of a local folder, read as they are. Implements `Weights`.

    Opening it reads file headers only. Raises UsageError where the folder does not exist, CheckpointError where it holds no weights that can be
    read, or corrupt ones.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(f"checkpoint {self.folder}: {'a file' if self.folder.exists() else 'does not exist'}, expected a folder")
        self.format, self.files, self._homes = self._open()

    def _open(self) -> tuple[str, list[Path], dict[str, WeightFile]]:
        for kind, single, index in LAYOUTS:
            if os.path.lexists(self.folder / single):
                file = _reader(kind)(self.folder / single)
                return kind, [file.path], dict.fromkeys(file, file)
            if os.path.lexists(self.folder / index):
                return kind, *self._sharded(kind, self.folder / index)
        raise CheckpointError(f"checkpoint {self.folder} holds no weights that can be read{self._instead()}")

    def _sharded(self, kind: str, index: Path) -> tuple[list[Path], dict[str, WeightFile]]:
        homes = read_index(index)
        names = sorted(set(homes.values()))
        if missing := [name for name in names if not (self.folder / name).exists()]:
            raise CheckpointError(
                f"{index}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}\n  download the checkpoint again"
            )
        shards = {name: _reader(kind)(self.folder / name) for name in names}
        if absent := [f"{brief(key)} from {name}" for key, name in homes.items() if key not in shards[name]]:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            raise CheckpointError(f"{index}: weights are missing from their shard: {', '.join(absent[:5])}{more}\n  download the checkpoint again")
        return [shard.path for shard in shards.values()], {key: shards[name] for key, name in homes.items()}

    def _instead(self) -> str:
        """What there is instead of weights, and what was looked for."""
        looked = "\n  looked for: " + ", ".join(name for _, *names in LAYOUTS for name in names)
        names = sorted(p.name for p in self.folder.iterdir())
        foreign = [name for name in names if name in _FOREIGN]
        if foreign:
            convert = "\n  convert it once with transformers 4: from_pretrained(folder, from_tf=True or from_flax=True), then save_pretrained(folder)"
            return f", only those of {_FOREIGN[foreign[0]]} ({foreign[0]}){looked}{convert}"
        found = [name for name in names if Path(name).suffix in _WEIGHT_SUFFIXES]
        return f"{looked}\n  found: {', '.join(found[:10]) or 'no file of weights'}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __contains__(self, key: object) -> bool:
        return key in self._homes

    def __len__(self) -> int:
        return len(self._homes)

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Our dtype and the shape as stored; CheckpointError where the name is unknown or the dtype is one that we lack."""
        return self._home(key).spec(key)

    def array(self, key: str) -> np.ndarray:
        """The weight as stored, read-only and mapped from its file where its bytes lie plain in it."""
        return self._home(key).array(key)

    def location(self, key: str) -> Location | None:
        """Where the bytes lie in the real file behind any links; None where they do not lie there plain and in order."""
        return self._home(key).location(key)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`; CheckpointError where it is missing or malformed."""
        return read_json(self.folder / "config.json", "the configuration of the model")

    @property
    def has_remote_code(self) -> bool:
        """Whether the checkpoint comes with Python code of its own (`auto_map`), which is never run."""
        return bool(self.config.get("auto_map"))

    def _home(self, key: str) -> WeightFile:
        if key not in self._homes:
            raise CheckpointError(f"checkpoint {self.folder}: no weight {brief(key)}{suggestion(key, self._homes)}")
        return self._homes[key]


def read_index(index: Path) -> dict[str, str]:
    """Which shard holds which weight, as an index file says; CheckpointError where it is malformed or points out of its folder."""
    homes = read_json(index, "which shard holds which weight").get("weight_map")
    if not isinstance(homes, dict) or not all(isinstance(name, str) for name in homes.values()):
        raise CheckpointError(f"{index}: weight_map is {brief(homes)}, expected an object from weight to file name")
    if not homes:
        raise CheckpointError(f"{index}: weight_map is empty, expected weights")
    for name in set(homes.values()):
        if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
            raise CheckpointError(f"{index}: shard {brief(name)} is refused, expected the name of a file in the same folder")
    return homes


def _reader(kind: str) -> type[WeightFile]:
    if kind == "safetensors":
        from .safetensors import SafetensorsFile

        return SafetensorsFile
    from .pickled import PickledFile

    return PickledFile
