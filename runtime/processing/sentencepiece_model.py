"""Reading a sentencepiece model file (`spiece.model`) without the sentencepiece library.

The file is one protocol buffer message, `ModelProto` of sentencepiece_model.proto. A few of its fields describe the model completely, so it is
read by hand here and run by the tokenizers library, which every install has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...ir.errors import CheckpointError

UNIGRAM, BPE = 1, 2
CONTROL, USER_DEFINED = 3, 4


@dataclass
class SentencePieceModel:
    """The pieces in the order of their ids, each with its log probability and kind, and the compiled normalisation rules."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = UNIGRAM
    unk_id: int = 0
    unk_piece: str = "<unk>"
    charsmap: bytes = b""


def read_model(path: Path) -> SentencePieceModel:
    """The model in a sentencepiece file; CheckpointError where the file is cut short or something else."""
    model = SentencePieceModel()
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                model.pieces.append(_piece(_bytes(value)))
            elif number == 2:
                trainer = dict(_fields(_bytes(value)))
                model.model_type = _int(trainer.get(3, UNIGRAM))
                model.unk_id = _int(trainer.get(40, 0))
                model.unk_piece = _bytes(trainer.get(45, b"<unk>")).decode("utf-8")
            elif number == 3:
                model.charsmap = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: not a sentencepiece model: {error}") from error
    if not 0 <= model.unk_id < len(model.pieces):
        raise CheckpointError(f"{path}: not a sentencepiece model: {len(model.pieces)} pieces, unknown piece is number {model.unk_id}")
    return model


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))
    return _bytes(fields.get(1, b"")).decode("utf-8"), score, _int(fields.get(3, 1))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field of bytes holds a number")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a numeric field holds bytes")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) pairs of one protocol buffer message: numbers for varints, raw bytes for every other wire type."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + size > len(data):
            raise ValueError(f"field {key >> 3} of {size} bytes at byte {position} ends beyond the {len(data)} bytes there are")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError(f"ends inside a number at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number of more than ten bytes at byte {position}")
