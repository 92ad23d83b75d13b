"""Bombs, every truncation, and flipped bytes: the answer is a CheckpointError, in little time and memory."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import Container, archive, containers, legacy, name, safetensors, state, storage, tensor, value, weight

from interlingua.checkpoints import PickledFile, SafetensorsFile
from interlingua.ir.errors import CheckpointError

# ---- bombs


def refused_cheaply(open_it: Callable[[], object], message: str, megabytes: int = 40, seconds: float = 20) -> None:
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(CheckpointError, match=message):
            open_it()
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < seconds


LAUGHS = b"\x80\x02]q\x00" + b"".join(b"]q" + bytes([i + 1]) + b"(" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(100))


@containers
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\xff.", "holds None without weights"),  # a memo of 4 billion places
        (b"\x80\x02\x8b\x00\x00\x00\x7f" + bytes(1000) + b".", "an integer of 2130706432 bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "malformed"),
        (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "holds a list of 1 without weights"),  # deep
        (b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"Ns.", "as a key"),  # hash() of it would overflow the stack
        (LAUGHS + b".", "holds a list of 2 without weights"),  # 2^100 when printed
        (LAUGHS + b"Q.", "refers to a list of 2"),
        (LAUGHS + b"}b.", "asks to set the state of a list of 2"),
        (b"\x80\x02}(" + value("w") + tensor(size=(0,), extra=b"(" + LAUGHS[2:] + b"t") + b"u.", "is marked a tuple of 101"),
    ],
)
def test_pickle_bombs(tmp_path, container: Container, program, message):
    path = container(tmp_path / "w.bin", program)
    refused_cheaply(lambda: PickledFile(path), message)


def test_a_long_list_cannot_be_copied_again_and_again(tmp_path):
    pairs = b"](" + (value("a") + value(1) + b"\x86") * 20_000 + b"e" + b"q\x00"
    program = b"\x80\x02" + pairs + (name("collections", "OrderedDict") + b"h\x00\x85R") * 20_000 + b"."
    refused_cheaply(lambda: PickledFile(archive(tmp_path / "w.bin", program)), "holds a dict of 0 without weights")


def test_a_pickle_larger_than_any_directory_is_refused(tmp_path):
    program = b"\x80\x02" + b"N0" * (9 << 20) + b"."
    refused_cheaply(lambda: PickledFile(archive(tmp_path / "z.bin", program)), "w/data.pkl has 18874371 bytes, expected at most 16777216")


def test_zip_bombs(tmp_path):
    bomb = {"w/data/0": bytes(64 << 20)}
    path = archive(tmp_path / "w.bin", state(w=tensor((1 << 24,), data=storage(numel=1 << 24))), bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused_cheaply(lambda: PickledFile(path), "member w/data/0 would grow from .* to 67108864 bytes")
    path = archive(tmp_path / "v.bin", b"\x80\x02" + b"N0" * (4 << 20) + b".", compression=zipfile.ZIP_DEFLATED)
    refused_cheaply(lambda: PickledFile(path), "member w/data.pkl would grow")


def test_a_deflated_weight_that_is_not_what_it_says_is_refused_when_read(tmp_path):
    path = archive(tmp_path / "w.bin", state(w=tensor()), {"w/data/0": bytes(range(16))}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("w/data/0")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len("w/data/0") + 4] ^= 0xFF
    path.write_bytes(content)
    file = PickledFile(path)
    with pytest.raises(CheckpointError, match="zip archive is malformed"):
        file.array("w")
    archive(path, state(w=tensor((2,), data=storage(numel=2))), {"w/data/0": bytes(8)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="was changed since it was opened"):
        file.array("w")


def test_a_giant_view_of_one_number_takes_no_memory(tmp_path):
    """PyTorch allows expanded views; the shape is the model's to judge."""
    file = PickledFile(archive(tmp_path / "w.bin", state(w=tensor((1 << 20, 1 << 20), (0, 0)))))
    assert file.spec("w") == ("f32", (1 << 20, 1 << 20))
    tracemalloc.start()
    array = file.array("w")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert array[-1, -1] == 0


# ---- fuzz: every truncation, many flips


def good_files(folder: Path) -> dict[str, Path]:
    header = {
        "__metadata__": {"format": "pt"},
        "a": weight(),
        "b": weight("BF16", (2, 2), (8, 16)),
        "e": weight("I64", (0, 3), (16, 16)),
        "s": weight("U8", (), (16, 17)),
    }
    (folder / "safetensors").write_bytes(safetensors(header, bytes(range(17))))
    program = state(a=tensor((2, 2), (1, 2)), b=tensor((3,), (1,), 1, storage("1", 8, name("torch", "BFloat16Storage"))), c=tensor((0, 2), (2, 1)))
    archive(folder / "zip", program, {"w/data/1": bytes(16), "w/byteorder": b"little"})
    archive(folder / "deflated", program, {"w/data/1": bytes(16), "w/byteorder": b"little"}, zipfile.ZIP_DEFLATED)
    legacy(folder / "legacy", program, ["0", "1"], struct.pack("<q", 4) + bytes(16) + struct.pack("<q", 8) + bytes(16))
    return {p.name: p for p in folder.iterdir()}


def read_all(path: Path, kind: str) -> None:
    """Open and read everything that a user may ask for; the sums touch each byte, so that a bad view would crash."""
    file = SafetensorsFile(path) if kind == "safetensors" else PickledFile(path)
    for key in file:
        try:
            dtype, shape = file.spec(key)
        except CheckpointError as error:
            if "is not supported" not in str(error):
                raise
            continue
        array = file.array(key)
        assert array.shape == shape
        assert np.lib.array_utils.byte_bounds(array)[0] >= 0
        if array.size < 1 << 20:
            array.view(np.uint8 if dtype == "bool" else array.dtype).astype(np.float64).sum() if array.size else None
        place = file.location(key)
        if place is not None:
            assert place.offset + place.length <= path.stat().st_size


def outcome(path: Path, kind: str) -> str:
    try:
        read_all(path, kind)
    except CheckpointError as error:
        return "refused" if str(error).startswith(f"{path}: ") else f"nameless: {error}"
    return "read"


KINDS = ["safetensors", "zip", "deflated", "legacy"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused(tmp_path, kind):
    content = good_files(tmp_path)[kind].read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content)
    assert outcome(path, kind) == "read"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert outcome(path, kind) == "refused", f"cut at {length} of {len(content)}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_no_flipped_byte_ends_in_anything_but_a_checkpoint_error(tmp_path, kind):
    content = good_files(tmp_path)[kind].read_bytes()
    path = tmp_path / "flipped"
    rng = random.Random(0)
    refused = 0
    for position in range(len(content)):
        for replacement in {content[position] ^ 0xFF, content[position] ^ (1 << rng.randrange(8)), rng.randrange(256)}:
            path.write_bytes(content[:position] + bytes([replacement]) + content[position + 1 :])
            refused += outcome(path, kind) == "refused"
    assert refused > len(content) // 3  # the rest are flips of names, paddings and weights


def test_no_flipped_or_shuffled_opcode_escapes_the_pickle_machine(tmp_path):
    """Through the zip format with correct checksums, so that only the machine stands between the bytes and us."""
    program = state(a=tensor((2, 2), (1, 2)), b=tensor((3,), (1,), 1), c=tensor((0, 2), (2, 1)))
    path = tmp_path / "w.bin"
    rng = random.Random(0)
    seen = set()
    for _ in range(3000):
        changed = bytearray(program)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(2, len(changed))
            match rng.randrange(3):
                case 0:
                    changed[at] = rng.randrange(256)
                case 1:
                    del changed[at : at + rng.randint(1, 5)]
                case 2:
                    start = rng.randrange(len(changed))
                    changed[at:at] = changed[start : start + rng.randint(1, 30)]
        archive(path, bytes(changed))
        seen.add(outcome(path, "zip"))
    assert seen == {"refused", "read"}


def test_random_opcodes_are_refused(tmp_path):
    rng = random.Random(1)
    alphabet = b"".join([b"NKMJGX]}()tdaesu012qrhjcQRb.", bytes([0x80, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B, 0x8C, 0x93, 0x94, 0x95])])
    path = tmp_path / "w.bin"
    for _ in range(3000):
        path.write_bytes(bytes(rng.choice(alphabet) for _ in range(rng.randint(1, 60))))
        assert outcome(path, "legacy") == "refused"
