"""Reading WAV files: integer and float samples of any usual width, plain and extensible headers.

The standard library's `wave` reads neither float samples nor, before Python 3.12, extensible headers, so the chunks are walked here.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .files import MediaError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN = 0xFFFFFFFF  # what programs write that stream to a pipe and never learn the size; some leave 0 in both places
RATES = range(1000, 400_001)  # Hz, of any recorder; beyond, a few bytes of a corrupt header would ask for gigabytes of filter or of samples
ADVICE = "\n  convert it, for instance: ffmpeg -i INPUT -ar 16000 -ac 1 OUTPUT.wav"


class Format(NamedTuple):
    """The `fmt ` chunk of a WAV file: how its samples are written."""

    code: int
    channels: int
    rate: int
    bits: int


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples float32 [samples channels] between -1 and 1, and their rate in Hz; MediaError where the file is corrupt or holds something else."""
    data = path.read_bytes()
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        kind = "empty" if not data else "not a WAV file"
        raise MediaError(f"{path}: {kind}; expected RIFF/WAVE with PCM or float samples{ADVICE}")
    streamed = (UNKNOWN, 0) if struct.unpack_from("<I", data, 4)[0] in (UNKNOWN, 0) else (UNKNOWN,)
    form: Format | None = None
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"fmt ":
            form = _format(data[position : position + size], path)
        elif name == b"data":
            if form is None:
                raise MediaError(f"{path}: corrupt WAV file: samples come before their format (the 'fmt ' chunk)")
            size = len(data) - position if size in streamed else size
            if position + size > len(data):
                raise MediaError(f"{path}: cut short: {size} bytes of samples announced, {len(data) - position} there")
            return _samples(data[position : position + size], form, path), form.rate
        position += size + size % 2  # chunks begin at even offsets
    raise MediaError(f"{path}: corrupt WAV file: no samples (no 'data' chunk)")


def _format(chunk: bytes, path: Path) -> Format:
    if len(chunk) < 16:
        raise MediaError(f"{path}: corrupt WAV file: format chunk of {len(chunk)} bytes, expected at least 16")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == EXTENSIBLE and len(chunk) >= 26:
        (code,) = struct.unpack_from("<H", chunk, 24)
    known = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
    if code not in known or bits not in known[code]:
        raise MediaError(f"{path}: samples of WAV format {code} with {bits} bits, expected PCM of 8, 16, 24 or 32 bits or float of 32 or 64{ADVICE}")
    if not channels or rate not in RATES:
        raise MediaError(f"{path}: corrupt WAV file: {channels} channels at {rate} Hz, expected {RATES[0]} to {RATES[-1]} Hz")
    return Format(code, channels, rate, bits)


def _samples(data: bytes, form: Format, path: Path) -> np.ndarray:
    frame = form.channels * form.bits // 8
    if len(data) % frame:
        raise MediaError(
            f"{path}: corrupt WAV file: {len(data)} bytes of samples of {form.channels} x {form.bits} bits, expected a multiple of {frame}"
        )
    if form.code == FLOAT:
        samples = np.frombuffer(data, f"<f{form.bits // 8}")
    elif form.bits == 8:
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif form.bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4")[:, 0] / 2**31
    else:
        samples = np.frombuffer(data, f"<i{form.bits // 8}") / 2 ** (form.bits - 1)
    return samples.astype(np.float32).reshape(-1, form.channels)
