"""Files made to deceive: whatever is in them, the answer is a CheckpointError that says what is wrong, and nothing runs."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from checkpoint_files import Container, archive, call, containers, legacy, name, plain, safetensors, state, storage, tensor, value, weight

from interlingua.checkpoints import PickledFile, SafetensorsFile
from interlingua.ir.errors import CheckpointError

# ---- safetensors


EIGHT = bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1234567", "has 7 bytes, expected at least the 8"),
        (safetensors({}, length=3), "header is 3 bytes long, expected at most the 2 bytes that follow"),
        (safetensors({}, length=2**63), "header is 9223372036854775808 bytes long, expected at most 100000000"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html></html>", "bytes long, expected at most"),
        (safetensors(b"{"), "header is not valid JSON"),
        (safetensors(b"\xff\xfe{}"), "header is not valid JSON"),
        (safetensors("{}".encode("utf-16-le")), "header is not valid JSON"),
        (safetensors(b"[" * 200_000), "header is not valid JSON"),
        (safetensors(b'{"x":' + b"9" * 5000 + b"}"), "header is not valid JSON"),
        (safetensors(b""), "header is not valid JSON"),
        (safetensors([1]), r"header is \[1\], expected an object"),
        (safetensors(b'{"x":{},"x":{}}'), "name 'x' occurs twice"),
        (safetensors(b'{"x":{"dtype":"F32","dtype":"F16"}}'), "name 'dtype' occurs twice"),
        (safetensors({"__metadata__": {"a": 1}}), "__metadata__ a dict of 1, expected an object of strings"),
        (safetensors({"__metadata__": None}), "__metadata__ None"),
        (safetensors({"x": 3}), "weight 'x' is 3, expected an object with dtype, shape and data_offsets"),
        (safetensors({"x": {"dtype": "F32"}}), "weight 'x' is a dict of 1"),
        (safetensors({"x": weight("F31")}, EIGHT), "weight 'x' has unknown dtype 'F31'; known: F64, F32, F16, BF16"),
        (safetensors({"x": weight(None)}, EIGHT), "weight 'x' has unknown dtype None"),
        (safetensors({"x": weight(["F32"])}, EIGHT), "weight 'x' has unknown dtype"),
        (safetensors({"x": weight(shape=(-2,))}, EIGHT), r"weight 'x' has shape \[-2\], expected a list of sizes"),
        (safetensors({"x": weight(shape=(2.0,))}, EIGHT), r"weight 'x' has shape \[2.0\]"),
        (safetensors({"x": weight(shape=(True, 2))}, EIGHT), r"weight 'x' has shape \[True, 2\]"),
        (safetensors({"x": weight(shape=("2",))}, EIGHT), r"weight 'x' has shape \['2'\]"),
        (safetensors({"x": weight(shape=2)}, EIGHT), "weight 'x' has shape 2,"),
        (safetensors({"x": weight(shape=(0, 2**63), offsets=(0, 0))}), "weight 'x' has shape"),
        (safetensors({"x": weight(shape=(2**40, 2**40))}, EIGHT), "more than an array can hold"),
        (safetensors({"x": weight(shape=(0, 2**40, 2**40), offsets=(0, 0))}), "more than an array can hold"),
        (safetensors({"x": weight(shape=(1,) * 65, offsets=(0, 4))}, bytes(4)), "has 65 dimensions, expected at most 64"),
        (safetensors({"x": weight(offsets=(-8, 0))}, EIGHT), r"weight 'x' has data_offsets \[-8, 0\], expected \[begin, end\]"),
        (safetensors({"x": weight(offsets=(8, 0))}, EIGHT), r"data_offsets \[8, 0\]"),
        (safetensors({"x": weight(offsets=(0, 8, 8))}, EIGHT), r"data_offsets \[0, 8, 8\]"),
        (safetensors({"x": weight(offsets=(0.0, 8.0))}, EIGHT), r"data_offsets \[0.0, 8.0\]"),
        (safetensors({"x": weight(offsets=None)}, EIGHT), "data_offsets None"),
        (safetensors({"x": weight(offsets=(0, 16), shape=(4,))}, EIGHT), "weight 'x' ends at byte 16 of the data, expected at most 8"),
        (safetensors({"x": weight(offsets=(2**70, 2**70 + 8))}, EIGHT), "weight 'x' ends at byte 1180591620717411303432"),
        (safetensors({"x": weight(shape=(3,))}, EIGHT), r"weight 'x' has 8 bytes, expected 12 for F32 \[3\]"),
        (safetensors({"x": weight("F4", (3,), (0, 1))}, bytes(1)), r"weight 'x' has 1 bytes, expected 2 for F4 \[3\]"),
        (
            safetensors({"x": weight(), "y": weight(offsets=(4, 12))}, bytes(12)),
            "weight 'y' begins at byte 4 of the data, inside weight 'x', which ends at 8",
        ),
        (safetensors({"x": weight(), "y": weight()}, EIGHT), "inside weight"),
        (safetensors({"x": weight(offsets=(4, 12))}, bytes(12)), "weight 'x' begins at byte 4 of the data, expected 0"),
        (safetensors({"x": weight()}, bytes(12)), "has 12 bytes of data, expected 8: the last 4 belong to no weight"),
        (safetensors({"x" * 10_000: weight("F31")}, EIGHT), r"weight 'x{200}'\.\.\. has unknown dtype"),
        (safetensors({"x" * 10_000: 1, "y": weight()}, EIGHT), r"weight 'x{200}'\.\.\. is 1"),
        (safetensors({"x": weight()}, bytes(7)), "weight 'x' ends at byte 8 of the data, expected at most 7"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 600


def test_files_that_cannot_be_opened_are_named(tmp_path):
    for kind in (SafetensorsFile, PickledFile):
        with pytest.raises(CheckpointError, match="nothing: cannot be read: No such file"):
            kind(tmp_path / "nothing")
        with pytest.raises(CheckpointError, match="is not a plain file, expected weights"):
            kind(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a plain file, expected weights"):
        SafetensorsFile(tmp_path / "pipe")


# ---- pickles, written opcode by opcode so that they can say what no library would


@containers
def test_the_handwritten_files_are_otherwise_good(tmp_path, container: Container):
    """Else the refusals below would prove nothing."""
    file = PickledFile(container(tmp_path / "w.bin", state(w=tensor(), t=tensor((2, 2), (1, 2)))))
    assert file.array("w").tolist() == [0, 0, 0, 0]
    assert file.array("t").shape == (2, 2)


class Evil:
    """What an attacker saves: to unpickle it is to run a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def ways(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Every way in which a pickle gets at code, and what is said to it."""
    command = value(f"touch {marker}")
    ordered = name("collections", "OrderedDict")
    run, not_needed = "asks to run {}, which is refused", "pickle opcode {} at byte"
    return {
        "eval": (state(w=call(name("builtins", "eval"), value(f"open({str(marker)!r}, 'w')"))), run.format("builtins.eval")),
        "getattr": (state(w=call(name("builtins", "getattr"), name("torch", "Size"), value("__class__"))), run.format("builtins.getattr")),
        "torch.load": (state(w=call(name("torch", "load"), value("other.bin"))), run.format("torch.load")),
        "dotted": (b"\x80\x04" + value("collections") + value("OrderedDict.clear") + b"\x93.", run.format("collections.OrderedDict.clear")),
        "stack global": (b"\x80\x04" + value("os") + value("system") + b"\x93" + command + b"\x85R.", run.format("os.system")),
        "stack global of numbers": (b"\x80\x04" + value(1) + value(2) + b"\x93.", "asks to run .*which is refused"),
        "inst": (b"(" + command + b"ios\nsystem\n.", run.format("os.system")),
        "inst allowed": (b"(icollections\nOrderedDict\n.", not_needed.format("'i'")),
        "obj": (b"(" + ordered + b"o.", not_needed.format("0x6f")),
        "newobj": (ordered + b")\x81.", not_needed.format("0x81")),
        "newobj ex": (ordered + b")}\x92.", not_needed.format("0x92")),
        "extension": (b"\x82\x01.", not_needed.format("0x82")),
        "call of a value": (value("os.system") + command + b"\x85R.", "asks to call 'os.system', which is refused"),
        "call of a dtype": (name("torch", "float32") + command + b"\x85R.", r"asks to call \('f32', 4\), which is refused"),
        "call of a tensor": (tensor() + command + b"\x85R.", "asks to call a Tensor of 6, which is refused"),
        "arguments that are no tuple": (ordered + value([1]) + b"R.", "asks to call a function, which is refused"),
        "state of a function": (name("torch", "Size") + value({"__code__": 1}) + b"b.", "asks to set the state of a function, which is refused"),
        "state of a tensor": (tensor() + value({"a": 1}) + b"b.", "asks to set the state of a Tensor of 6, which is refused"),
        "state that is no dict": (ordered + b")R" + value((1, {"b": 2})) + b"b.", "asks to set the state of a dict of 0, which is refused"),
        "persistent id in text": (b"Pos.system\n.", not_needed.format("0x50")),
        "persistent object": (b"(" + value("module") + value("os") + b"tQ.", r"refers to \('module', 'os'\)"),
        "persistent storage of no type": (b"(" + b"".join(map(value, ("storage", "FloatStorage", "0", "cpu", 4))) + b"tQ.", "refers to"),
        "buffers": (b"\x97.", not_needed.format("0x97")),
        "protocol 0": (b"cos\nsystem\n(S'touch x'\ntR.", run.format("os.system")),
    }


@pytest.mark.parametrize("container", [archive, legacy, plain], ids=["zip", "legacy", "plain"])
@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_refused_by_name_and_never_run(tmp_path, container, protocol):
    marker = tmp_path / "marker"
    program = pickle.dumps({"w": Evil(marker)}, protocol=protocol)
    with pytest.raises(CheckpointError) as caught:
        PickledFile(container(tmp_path / "w.bin", program))
    assert not marker.exists(), "the code ran"
    if protocol >= 2:  # before, the opcodes of plain values are refused already
        assert "asks to run posix.system, which is refused" in str(caught.value) or "asks to run nt.system" in str(caught.value)
        assert "nothing was executed; ask its publisher for safetensors" in str(caught.value)
    pickle.loads(program)
    assert marker.exists(), "the same bytes do run where Python's own pickle reads them"


@pytest.mark.parametrize("container", [archive, legacy, plain], ids=["zip", "legacy", "plain"])
@pytest.mark.parametrize("way", ways(Path("x")))
def test_every_way_to_code_is_closed(tmp_path, container, way):
    marker = tmp_path / "marker"
    program, message = ways(marker)[way]
    with pytest.raises(CheckpointError, match=message) as caught:
        PickledFile(container(tmp_path / "w.bin", program))
    assert "refers to" in message or "nothing was executed" in str(caught.value)
    assert not marker.exists()


def test_setting_state_leaves_the_builders_alone(tmp_path):
    """A pickle that could change what a name stands for would change the next file's reading."""
    program = name("collections", "OrderedDict") + value({"__call__": 1, "__setstate__": 2}) + b"b."
    with pytest.raises(CheckpointError, match="asks to set the state of a function, which is refused"):
        PickledFile(archive(tmp_path / "w.bin", program))
    assert list(PickledFile(archive(tmp_path / "v.bin", state(w=tensor())))) == ["w"]


@containers
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (state(w=tensor((5,))), "weight 'w' ends at byte 20 of storage '0', which has 16"),
        (state(w=tensor(offset=1)), "weight 'w' ends at byte 20 of storage '0'"),
        (state(w=tensor((2, 2), (3, 1))), "weight 'w' ends at byte 20 of storage '0'"),
        (state(w=tensor((2,), (2**61,))), "weight 'w' ends at byte"),
        (state(w=tensor((2,), (2**63,))), "weight 'w' has strides"),
        (state(w=tensor((4,), (-1,), 3)), r"weight 'w' has strides \(-1\), expected 1 that are not negative"),
        (state(w=tensor((4,), (1, 1))), r"weight 'w' has strides \(1, 1\), expected 1"),
        (state(w=tensor((4,), 1)), "weight 'w' has strides 1"),
        (state(w=tensor((4,), (1.0,))), r"weight 'w' has strides \(1.0\)"),
        (state(w=tensor((-4,))), r"weight 'w' has shape \(-4\)"),
        (state(w=tensor((True,))), r"weight 'w' has shape \(True\)"),
        (state(w=tensor("4")), "weight 'w' has shape '4'"),
        (state(w=tensor((2**32, 2**32), (0, 0))), "more than an array can hold"),
        (state(w=tensor((1,) * 65, (1,) * 65)), "has 65 dimensions"),
        (state(w=tensor(offset=-1)), "weight 'w' begins at element -1"),
        (state(w=tensor(offset="0")), "weight 'w' begins at element '0'"),
        (state(w=tensor(data=value(3))), "weight 'w' is no tensor over a storage"),
        (state(w=tensor(data=storage(kind=name("torch", "UntypedStorage")))), "weight 'w' is no tensor over a storage"),
        (state(w=tensor(extra=value({"neg": True}))), "weight 'w' is marked a dict of 1"),
        (state(w=tensor(data=storage(numel=-4))), "refers to"),
        (state(w=tensor(data=storage(numel="4"))), "refers to"),
        (state(w=tensor(data=storage(key=0))), "refers to"),
        (state(w=tensor(data=storage(tail=(("other", 0, 4),)))), "refers to"),
        (state(w=tensor(), v=tensor((2,), data=storage(numel=2))), "storage '0' has 2 elements of f32 in one place, 4 of f32 in another"),
        (state(w=tensor(), v=tensor(data=storage(key="1"))), "storage '1' "),
        (state(w=value(3)), "holds a dict of 1 without weights"),
        (state(), "holds a dict of 0 without weights"),
        (b"\x80\x02" + tensor() + b".", "without weights, expected a dict from name to tensor"),
        (b"\x80\x02" + value([1]) + b".", r"holds \[1\] without weights"),
        (b"\x80\x02}(" + value(3) + tensor() + b"u.", "has a weight named 3, expected a string"),
        (b"\x80\x02}(" + value((1, 2)) + tensor() + b"u.", "as a key"),
        (b"\x80\x02}" + tensor() + b"u.", "no mark where one was expected"),
        (b"\x80\x02}(" + tensor() + b"u.", "malformed"),
        (b"\x80\x02h\x07.", "malformed"),
        (b"\x80\x02.", "malformed"),
        (b"\x80\x02(.", "malformed"),
        (b"\x80\x02" + value([]) + value(1) + value(2) + b"s.", "malformed"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "malformed"),
        (b"\x80\x02X\xff\xff\xff\xffabc", "pickle ends at byte"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc", "pickle ends at byte"),
        (call(name("torch._utils", "_rebuild_tensor_v2")) + b".", "malformed"),
    ],
)
def test_tensors_that_lie(tmp_path, container: Container, program, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        PickledFile(container(tmp_path / "w.bin", program))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("numel", [5, 2**40, 2**62, 2**70])
def test_storages_beyond_the_file_are_refused(tmp_path, numel):
    program = state(w=tensor((4,), data=storage(numel=numel)))
    with pytest.raises(CheckpointError, match="storage '0' has 16 bytes, expected"):
        PickledFile(archive(tmp_path / "z.bin", program))
    if numel < 2**63:
        with pytest.raises(CheckpointError, match="storage '0' has 16 bytes, expected"):
            PickledFile(legacy(tmp_path / "l.bin", program, tail=struct.pack("<q", numel) + bytes(16)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ["0", "0"]}, "expected a list of different names"),
        ({"keys": [0]}, "expected a list of different names"),
        ({"keys": {"0": 1}}, "expected a list of different names"),
        ({"keys": ["0", "1"]}, "lists storage '1', which no tensor refers to"),
        ({"keys": []}, "storage '0' is missing, expected 16 bytes"),
        ({"tail": struct.pack("<q", -4) + bytes(16)}, "storage '0' has -4 elements, expected 4"),
        ({"tail": bytes(7)}, "ends before storage '0'"),
        ({"tail": struct.pack("<q", 4) + bytes(15)}, "storage '0' has 15 bytes, expected 16"),
        ({"magic": 17}, "begins with 17, expected what torch.save writes"),
        ({"magic": {"w": 1}}, "begins with a dict of 1, expected what torch.save writes"),
    ],
)
def test_legacy_directories_that_lie(tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        PickledFile(legacy(tmp_path / "w.bin", state(w=tensor()), **options))


def test_a_tar_archive_of_old_is_named(tmp_path):
    import tarfile

    (tmp_path / "pickle").write_bytes(b"")
    with tarfile.open(tmp_path / "w.bin", "w") as file:
        file.add(tmp_path / "pickle", "pickle")
    with pytest.raises(CheckpointError, match=r"is a tar archive of PyTorch 0\.1"):
        PickledFile(tmp_path / "w.bin")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"v/data.pkl": b"."}, "has 2 members data.pkl, expected one"),
        ({"w/constants.pkl": b"."}, "is a TorchScript program"),
        ({"w/byteorder": b"middle"}, "has byteorder b'middle'"),
        ({"w/byteorder": b"x" * 17}, "member w/byteorder has 17 bytes, expected at most 16"),
        ({"w/data/0": bytes(15)}, "storage '0' has 15 bytes, expected 16"),
    ],
)
def test_zip_members_that_lie(tmp_path, members, message):
    with pytest.raises(CheckpointError, match=message):
        PickledFile(archive(tmp_path / "w.bin", state(w=tensor()), members))


def test_storage_names_reach_no_other_file(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    for key in ("../../secret", str(tmp_path / "secret"), "", "../data.pkl\0"):
        with pytest.raises(CheckpointError, match="has no member"):
            PickledFile(archive(tmp_path / "w.bin", state(w=tensor(data=storage(key=key)))))


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's, when the file is written
def test_zip_directories_that_lie(tmp_path):
    path = tmp_path / "w.bin"
    program = state(w=tensor())
    archive(path, program)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("w/data.pkl", program)
    with pytest.raises(CheckpointError, match="has two members of the same name"):
        PickledFile(path)

    good = archive(path, program).read_bytes()
    entry = good.index(b"PK\x01\x02", good.index(b"w/version"))  # the directory begins here, at w/data.pkl
    second = good.index(b"PK\x01\x02", entry + 1)  # w/data/0

    def patched(position: int, form: str, *values: int) -> bytes:
        content = bytearray(good)
        struct.pack_into(form, content, position, *values)
        return bytes(content)

    for content, message in [
        (patched(second + 8, "<H", 1), "member w/data/0 is encrypted"),
        (patched(second + 10, "<H", 12), "member w/data/0 is compressed by method 12"),
        (patched(second + 20, "<I", 9), "member w/data/0 has 9 bytes, expected 16"),
        (patched(second + 20, "<II", 2**31, 2**31), "member w/data/0 ends at byte .*, after the end of the file"),
        (patched(second + 42, "<I", 3), "member w/data/0 has no header at byte 3"),
        (patched(second + 42, "<I", 2**31), "member w/data/0 has no header at byte"),
        (patched(entry + 16, "<I", 0), r"zip archive is malformed \(BadZipFile: Bad CRC-32"),
        (good[:-1], r"zip archive is malformed \(BadZipFile"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            PickledFile(path)
