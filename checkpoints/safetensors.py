"""safetensors files by their header alone; the format is https://huggingface.co/docs/safetensors, section Format."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

from .files import DAMAGED, Entry, WeightFile, brief, c_strides

MAX_HEADER = 100_000_000  # the format's own limit

# dtype -> (ours, bits); those that we lack keep the format's name, so that a file is readable as long as the model does not use them
DTYPES = {
    "F64": ("f64", 64), "F32": ("f32", 32), "F16": ("f16", 16), "BF16": ("bf16", 16),
    "I64": ("i64", 64), "I32": ("i32", 32), "I16": ("i16", 16), "I8": ("i8", 8),
    "U32": ("u32", 32), "U8": ("u8", 8), "BOOL": ("bool", 8),
    "U64": ("U64", 64), "U16": ("U16", 16), "C64": ("C64", 64),
    "F8_E5M2": ("F8_E5M2", 8), "F8_E4M3": ("F8_E4M3", 8), "F8_E8M0": ("F8_E8M0", 8),
    "F8_E4M3FNUZ": ("F8_E4M3FNUZ", 8), "F8_E5M2FNUZ": ("F8_E5M2FNUZ", 8),
    "F6_E2M3": ("F6_E2M3", 6), "F6_E3M2": ("F6_E3M2", 6), "F4": ("F4", 4),
}  # fmt: skip


class SafetensorsFile(WeightFile):
    """The weights of one safetensors file; opening it reads and checks the header and touches no weight.

    Raises CheckpointError naming the file, the weight, what it has and what was expected, for every way in which a header can be wrong.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self.metadata: dict[str, str] = {}
        size = os.path.getsize(self.path)
        text = self._header(size)
        header = self._parsed(text)
        self.metadata = self._checked_metadata(header.pop("__metadata__", {}))
        begin = 8 + len(text)
        ranges = {key: self._add(key, value, begin, size - begin) for key, value in header.items()}
        self._check_cover(ranges, size - begin)

    def _header(self, size: int) -> bytes:
        if size < 8:
            raise self.error(f"has {size} bytes, expected at least the 8 that give the length of the header", DAMAGED)
        with open(self.path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise self.error(f"header is {length} bytes long, expected at most {MAX_HEADER}", DAMAGED)
            if length > size - 8:
                raise self.error(f"header is {length} bytes long, expected at most the {size - 8} bytes that follow", DAMAGED)
            return file.read(length)

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise self.error(f"header is not valid JSON: {error}", DAMAGED) from error
        if not isinstance(header, dict):
            raise self.error(f"header is {brief(header)}, expected an object", DAMAGED)
        return header

    def _checked_metadata(self, metadata: Any) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self.error(f"header has __metadata__ {brief(metadata)}, expected an object of strings", DAMAGED)
        return metadata

    def _add(self, key: str, value: Any, begin: int, data: int) -> tuple[int, int]:
        """Check one weight and keep it; its range in the data."""
        if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
            raise self.error(f"weight {brief(key)} is {brief(value)}, expected an object with dtype, shape and data_offsets", DAMAGED)
        name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(name, str) or name not in DTYPES:
            raise self.error(f"weight {brief(key)} has unknown dtype {brief(name)}; known: {', '.join(DTYPES)}")
        dtype, bits = DTYPES[name]
        self.check_shape(key, shape, max(1, bits // 8))
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int for o in offsets) or not 0 <= offsets[0] <= offsets[1]:
            raise self.error(f"weight {brief(key)} has data_offsets {brief(offsets)}, expected [begin, end] with 0 <= begin <= end", DAMAGED)
        if offsets[1] > data:
            raise self.error(f"weight {brief(key)} ends at byte {brief(offsets[1])} of the data, expected at most {data}", DAMAGED)
        entry = Entry(dtype, max(1, bits // 8), tuple(shape), c_strides(tuple(shape), max(1, bits // 8)), begin + offsets[0])
        expected = -(-entry.nbytes * bits // (8 * entry.itemsize))
        if offsets[1] - offsets[0] != expected:
            raise self.error(f"weight {brief(key)} has {offsets[1] - offsets[0]} bytes, expected {expected} for {name} {shape}", DAMAGED)
        self.entries[key] = entry
        return offsets[0], offsets[1]

    def _check_cover(self, ranges: dict[str, tuple[int, int]], data: int) -> None:
        """The format wants every byte of the data to belong to exactly one weight."""
        reached, before = 0, None
        for key, (begin, end) in sorted(ranges.items(), key=lambda item: item[1]):
            if begin < reached:
                raise self.error(
                    f"weight {brief(key)} begins at byte {begin} of the data, inside weight {brief(before)}, which ends at {reached}", DAMAGED
                )
            if begin > reached:
                raise self.error(
                    f"weight {brief(key)} begins at byte {begin} of the data, expected {reached}: the bytes between belong to none", DAMAGED
                )
            reached, before = end, key
        if reached != data:
            raise self.error(f"has {data} bytes of data, expected {reached}: the last {data - reached} belong to no weight", DAMAGED)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"name {brief(key)} occurs twice")
        result[key] = value
    return result
