"""What this project loads of a checkpoint that megatron-core wrote is, bit for bit, what core loads of it."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

import codecs
import io
import shutil
import signal
import zipfile
from collections import OrderedDict

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from megatron_patch.checkpoint import checked_load
from megatron_patch.checkpoint.checked_load import load_checked
from megatron_patch.errors import UserError
from megatron_patch.formats.distcp import read_item, read_part
from megatron_patch.formats.distcp_metadata import read_dcp_metadata
from megatron_patch.formats.progress import Progress
from tests.formats.attacks import Payload, edit_metadata, saved

pytestmark = pytest.mark.usefixtures("alone")


def whole(key, data):
    return ShardedTensor.from_rank_offsets(key, data)


def part(key, data, shape, offset):
    """`data` is the part from `offset` on of a tensor of `shape`, cut in no regular grid."""
    return ShardedTensor(key, data, data.dtype, tuple(data.shape), shape, offset, axis_fragmentations=None, replica_id=0)


DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int16, torch.int64, torch.uint8, torch.bool)


def content(value):
    """A state of every kind; `value` makes a tensor of a shape and dtype."""
    return {
        "dtypes": {str(dtype): whole(f"t.{dtype}", value((3, 5), dtype)) for dtype in DTYPES},
        "layers": whole("layers", value((2, 4, 6), torch.float32)),
        "row": whole("row", value((7,), torch.bfloat16)),
        "transposed": whole("transposed", value((6, 4), torch.float32).t()),
        "object": ShardedObject("object", {"steps": (1, 2.5, "x", None), "seed": value((4,), torch.uint8)}, (1, 1), (0, 0)),
        "common": {"rate": 1e-3, "groups": [{"step": 7}], 3: "three"},
    }


def random(shape, dtype):
    return torch.testing.make_tensor(shape, dtype=dtype, device="cpu")


def empty(shape, dtype):
    return torch.zeros(shape, dtype=dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("core") / "iter_0000001"
    path.mkdir()
    dist_checkpointing.save(content(random), str(path))
    return path


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def flat(value, name=""):
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: found for place, item in pairs for key, found in flat(item, f"{name}.{place}").items()}
    return {name: value}


def test_all_of_it(folder):
    truth, found = flat(dist_checkpointing.load(content(empty), str(folder))), flat(load_checked(folder, content(empty)))
    assert truth.keys() == found.keys() and len(truth) > 15
    for name, value in truth.items():
        assert torch.equal(value, found[name]) if isinstance(value, torch.Tensor) else value == found[name], name
    assert sum(isinstance(value, torch.Tensor) and bool(value.any()) for value in found.values()) > 10


def test_common_values_among_the_objects(tmp_path):
    """As core 0.19 writes them, without common.pt."""
    state = content(random)
    state["common_state"] = ShardedObject("common_state", {"common": state["common"]}, (1,), (0,))
    dist_checkpointing.save(state, str(tmp_path))
    (tmp_path / "common.pt").unlink(missing_ok=True)
    assert load_checked(tmp_path, content(empty))["common"] == state["common"]


def test_parts_of_it(folder, monkeypatch):
    """Another cut than that of the file: rows, columns, a block of one layer, and the transposed one.

    What is read is counted, byte for byte.
    """
    progress = []

    def shown_here(what: str, total: int) -> Progress:
        progress.append((Progress(what, total), total))
        return progress[-1][0]

    monkeypatch.setattr(checked_load, "Progress", shown_here)

    def asked():
        return {
            "rows": part("layers", torch.zeros(2, 2, 6), (2, 4, 6), (0, 1, 0)),
            "block": part("layers", torch.zeros(1, 3, 2), (2, 4, 6), (1, 1, 3)),
            "end": part("row", torch.zeros(3, dtype=torch.bfloat16), (7,), (4,)),
            "turned": part("transposed", torch.zeros(2, 3), (4, 6), (1, 2)),
        }

    truth = dist_checkpointing.load(asked(), str(folder), validate_access_integrity=False)
    found = checked_load.load_tensors(folder, read_dcp_metadata(folder), asked())
    for name in asked():
        assert truth[name].any() and torch.equal(truth[name], found[name]), name
    ((shown, total),) = progress
    assert shown.done == total == sum(tensor.data.nbytes for tensor in asked().values())


@pytest.mark.parametrize(
    "state, said",
    [
        ({"row": whole("row", torch.zeros(8))}, r"row has shape \[7\] there, and \[8\] in this run"),
        ({"x": whole("nothing", torch.zeros(8))}, "nothing"),
        ({"x": whole("object/shard_0.0_1.1", torch.zeros(8))}, "is a BytesStorageMetadata there"),
        ({"x": ShardedObject("other", None, (1, 1), (0, 0))}, "not found in the checkpoint.*'other'"),
    ],
)
def test_what_it_does_not_hold(folder, state, said):
    with pytest.raises(UserError, match=said) as caught:
        load_checked(folder, state)
    assert str(folder) in str(caught.value)


def replace_object(folder, content):
    (folder / "planted.distcp").write_bytes(content)

    def edit(metadata):
        (index,) = (index for index in metadata.storage_data if index.fqn.startswith("object/"))
        info = metadata.storage_data[index]
        info.relative_path, info.offset, info.length = "planted.distcp", 0, len(content)

    edit_metadata(folder, edit)


def rezipped(content, compression=zipfile.ZIP_STORED, rename=None, more=()):
    """The same archive as another zip; `more` are records that replace others, or come behind them."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", compression) as new:
        for name in old.namelist():
            if name not in more:
                new.writestr(rename(name) if rename else name, old.read(name))
        for name in more:
            new.writestr(name, more[name])
    return made.getvalue()


class Calls:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times):
    value = [0]
    for _ in range(times):
        value = [value, value]
    return value


def with_attribute():
    value = OrderedDict(a=1)
    value.keys = 7
    return value


OBJECTS = {
    "zeros": (saved([Calls(bytearray, 1 << 40)]), "calls __builtin__.bytearray as no checkpoint does"),
    "a slow codec": (saved([Calls(codecs.encode, "x", "punycode")]), "calls _codecs.encode as no checkpoint does"),
    "its own codec": (saved([Calls(codecs.encode, "x")]), "calls _codecs.encode as no checkpoint does"),
    "bytes by it": (saved([Calls(bytearray, "x", "punycode")]), "calls __builtin__.bytearray as no checkpoint does"),
    "hashes of one kind": (saved([Calls(set, [(-1,), (-2,)])]), "calls __builtin__.set as no checkpoint does"),
    "digits": (saved([Calls(complex, "1" * 100)]), "calls __builtin__.complex as no checkpoint does"),
    "a signal of no number": (saved([Calls(signal.Signals, 9999)]), "calls signal.Signals as no checkpoint does"),
    "a class": (saved([io.BytesIO]), "names _io.BytesIO, which no checkpoint needs"),
    "a tensor of a shape alone": (saved([Calls(torch.Tensor, 1 << 36)]), "calls torch.Tensor, which no checkpoint needs"),
    "deep": (saved([nested(120)]), "nested deeper"),
    "2^50 values": (saved([doubled(50)]), "nested deeper, or holds more values"),
    "an attribute": (saved([with_attribute()]), "calls collections.OrderedDict as no checkpoint does"),
    "compressed": (rezipped(saved([bytes(1000)]), zipfile.ZIP_DEFLATED), "is compressed"),
    "no archive": (b"\x80\x02]q\x00.", "is no archive of torch.save"),
    "before 1.6": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is no archive of torch.save"),
    "no list": (saved({"a": 1}), "is no list of 1"),
    "two": (saved([None, None]), "is no list of 1"),
    "without values": (rezipped(saved([1]), rename=lambda name: name.replace("data.pkl", "other.pkl")), "whole pickle"),
    "a storage cut": (rezipped(saved([torch.zeros(8)]), rename=lambda name: name.replace("data/0", "data/1")), "has no bytes"),
    "two folders": (rezipped(saved([1]), more={"other/data.pkl": b"."}), "not those of one folder"),
    "names in two cases": (rezipped(saved([1]), more={"archive/DATA.PKL": b"."}), "has a record twice"),
    "another order of bytes": (rezipped(saved([1]), more={"archive/byteorder": b"big"}), "are not little-endian"),
}


def test_objects_that_run_code(copied, tmp_path):
    replace_object(copied, saved([Payload(tmp_path / "trace")]))
    with pytest.raises(UserError, match="planted.distcp: object object.* calls posix.mkdir, which no checkpoint needs"):
        load_checked(copied, {"object": ShardedObject("object", None, (1, 1), (0, 0))})
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_that_take_more_than_they_have(kind, copied):
    made, said = OBJECTS[kind]
    replace_object(copied, made)
    with pytest.raises(UserError, match=said) as caught:
        load_checked(copied, {"object": ShardedObject("object", None, (1, 1), (0, 0))})
    assert "planted.distcp" in str(caught.value) or "object" in str(caught.value)


def archive_of(shape, stride, start, numel, size):
    """torch's archive of a float tensor with these words about itself, and `size` bytes."""
    made = io.BytesIO()
    torch.save(torch.zeros(size // 4), made)
    with zipfile.ZipFile(made) as archive:
        pickled = archive.read("archive/data.pkl")
    number = lambda value: b"\x8a\x08" + value.to_bytes(8, "little", signed=True)  # noqa: E731
    several = lambda values: b"(" + b"".join(map(number, values)) + b"t"  # noqa: E731
    head = pickled[: pickled.index(b"X\x03\x00\x00\x00cpu") + 10]
    tail = b"\x89ccollections\nOrderedDict\n)RtR."
    text = head + number(numel) + b"tQ" + number(start) + several(shape) + several(stride) + tail
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", text)
        archive.writestr("archive/data/0", bytes(size))
        archive.writestr("archive/version", "3")
    return out.getvalue()


def test_the_archive_that_these_words_describe_is_torchs(tmp_path):
    made = archive_of((2, 3), (3, 1), 2, 8, 32)
    assert torch.load(io.BytesIO(made), weights_only=True).shape == (2, 3)
    path = tmp_path / "x.distcp"
    path.write_bytes(made)
    with open(path, "rb") as stream:
        item = read_item(stream, path, "x", 0, len(made), (2, 3))
        assert read_part(stream, path, "x", item, (slice(1, 2), slice(0, 3))).shape == (1, 3)


@pytest.mark.parametrize(
    "shape, stride, start, numel",
    [
        ((2, 3), (3, 1), 3, 8),  # one element behind the end
        ((2, 3), (3, 1), -1, 8),
        ((2, 3), (-3, 1), 4, 8),
        ((2, 3), (4, 2), 0, 8),
        ((-2, -3), (3, 1), 0, 8),
        ((2, 3), (3, 1), 0, 1 << 40),  # a storage larger than its record
        ((2, 3), (3, 1), 0, -8),
        ((1 << 40, 3), (0, 1), 0, 8),  # one row a trillion times
        ((2, 3), (3,), 0, 8),
    ],
)
def test_numbers_that_lead_out_of_the_item(shape, stride, start, numel, tmp_path):
    made = archive_of(shape, stride, start, numel, 32)
    path = tmp_path / "x.distcp"
    path.write_bytes(made)
    with open(path, "rb") as stream, pytest.raises(UserError, match="x.distcp: the item of tensor x is damaged"):
        read_item(stream, path, "x", 0, len(made), shape)
