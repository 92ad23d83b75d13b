"""What the rest of the house asks of a set of weights, so that no exporter needs checkpoint code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np


class Location(NamedTuple):
    """Where the bytes of a weight lie: little-endian, C order, `length` bytes from `offset` in `file`."""

    file: str
    offset: int
    length: int


class Weights(Protocol):
    """A mapping from checkpoint name to array whose entries are read only when asked for."""

    def __iter__(self) -> Iterator[str]: ...
    def __contains__(self, key: object) -> bool: ...
    def __len__(self) -> int: ...

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Our dtype (`f32`, `bf16`, ...) and shape as stored."""
        ...

    def array(self, key: str) -> np.ndarray:
        """The weight as stored, mapped from its file where there is one; never to be written to."""
        ...

    def location(self, key: str) -> Location | None:
        """Where the bytes lie in a plain file, or None where they live in memory only."""
        ...


class ArrayWeights:
    """Weights that live in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = dict(arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __contains__(self, key: object) -> bool:
        return key in self.arrays

    def __len__(self) -> int:
        return len(self.arrays)

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Our dtype and shape."""
        from .types import dtype_of

        array = self.arrays[key]
        return dtype_of(array.dtype), tuple(array.shape)

    def array(self, key: str) -> np.ndarray:
        """The array itself."""
        return self.arrays[key]

    def location(self, key: str) -> Location | None:
        """None: there is no file."""
        return None


class SelectedWeights:
    """The weights that a model reads: a source's under the model's own keys, and new arrays for those that the source lacks."""

    def __init__(self, source: Weights, stored: Mapping[str, str], new: Mapping[str, np.ndarray] | None = None):
        self.source, self.stored, self.new = source, dict(stored), ArrayWeights(new or {})

    def __iter__(self) -> Iterator[str]:
        yield from self.stored
        yield from self.new

    def __contains__(self, key: object) -> bool:
        return key in self.stored or key in self.new

    def __len__(self) -> int:
        return len(self.stored) + len(self.new)

    def spec(self, key: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape as stored."""
        return self.source.spec(self.stored[key]) if key in self.stored else self.new.spec(key)

    def array(self, key: str) -> np.ndarray:
        """The weight as stored."""
        return self.source.array(self.stored[key]) if key in self.stored else self.new.array(key)

    def location(self, key: str) -> Location | None:
        """Where the bytes lie, for those of the source."""
        return self.source.location(self.stored[key]) if key in self.stored else None
