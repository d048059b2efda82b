"""`pytorch_model.bin` and 2023 `.pt` files: what torch reads, and what is refused before torch is asked."""

from __future__ import annotations

import argparse
import errno
import pickle
import random
import signal
import struct
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch

from megatron_patch.errors import UserError
from megatron_patch.formats import torch_files
from megatron_patch.formats.lazy import FileTensor, load
from megatron_patch.formats.torch_files import load_object, read_torch_file
from tests.checkpoint.test_checked_load import OBJECTS, archive_of


def test_what_real_files_hold(tmp_path, monkeypatch):
    """State dicts of modules, parameters, arguments, random states, views and bytes. torch reads no file meanwhile."""
    monkeypatch.setattr(torch, "load", None)
    base, marked = torch.randn(6, 8), torch.randn(4)
    marked.partition_dim = 0  # as Megatron marks its parameters
    content = {
        "marked": marked,
        "state": torch.nn.Linear(3, 5).state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "views": OrderedDict(rows=base[2:4], columns=base[:, :4]),
        "args": argparse.Namespace(lr=1e-4, dtype=torch.bfloat16, shape=torch.Size([2, 3]), names=("a", None)),
        "rng": [
            random.getstate(),
            numpy.random.get_state(),
            torch.get_rng_state(),
            b"bytes",
            bytearray(b"more"),
            {1, 2},
            bytearray(),
            1 + 2j,
        ],
        "plain": [signal.SIGTERM, Path("/a/b"), torch.device("cpu"), torch.strided, numpy.asfortranarray([[1.5, 2], [3, 4]])],
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1.0, "params": [0]}]},
    }
    path = tmp_path / "model_optim_rng.pt"
    torch.save(content, path)
    found = read_torch_file(path)
    assert found["plain"][:4] == content["plain"][:4] and numpy.array_equal(found["plain"][4], content["plain"][4])
    assert found.keys() == content.keys() and found["optimizer"] == content["optimizer"] and found["args"] == content["args"]
    assert found["rng"][0] == content["rng"][0] and found["rng"][3:] == content["rng"][3:]
    assert numpy.array_equal(found["rng"][1][1], content["rng"][1][1]) and torch.equal(found["rng"][2], content["rng"][2])
    tensors = {"parameter": content["parameter"].detach(), "marked": marked}
    for group in ("state", "views"):
        for name, tensor in content[group].items():
            tensors[f"{group}.{name}"] = tensor
    for name, tensor in tensors.items():
        place = found
        for part in name.split("."):
            place = place[part]
        assert isinstance(place, FileTensor) or name == "views.columns"
        assert torch.equal(load(place), tensor), name


def local(name, data):
    """A record of a zip."""
    head = (20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4s5H3I2H", b"PK\3\4", *head) + name + data


def listed(name, data, offset, extra=b"", comment=b""):
    """Its entry in the directory."""
    head = (20, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), len(extra), len(comment), 0, 0, 0, offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *head) + name + extra + comment


def two_in_one(place):
    """A file with two directories: one at its end, and one inside a record, to which a locator leads that lies in the
    last entry's `place`, its extra field or its comment.
    """
    ours, torchs = ({"archive/data.pkl": pickle.dumps({"who": who}, 2), "archive/version": b"3\n"} for who in ("us", "torch"))
    out, entries, hidden = b"", [], b""
    for name, data in ours.items():
        entries.append((name.encode(), data, len(out)))
        out += local(name.encode(), data)
    start, inside, directory = len(out) + 30 + len(b"archive/pad"), b"", b""
    for name, data in torchs.items():
        directory += listed(name.encode(), data, start + len(inside))
        inside += local(name.encode(), data)
    size, at = len(directory), start + len(inside)
    hidden = inside + directory + struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, size, at)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at + size, 1)
    extra = struct.pack("<HH", 0x4246, len(locator)) + locator
    last = listed(b"archive/pad", hidden, len(out), **{place: extra if place == "extra" else locator})
    out += local(b"archive/pad", hidden)
    directory = b"".join(listed(*entry) for entry in entries) + last
    return out + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(directory), len(out), 0)


def far_away():
    """A file whose second record is said to begin at byte 2⁶³, as only a 64-bit extra field can say."""
    name, data = b"archive/data.pkl", pickle.dumps({}, 2)
    out = local(name, data)
    extra = struct.pack("<HHQ", 1, 8, 1 << 63)
    directory = listed(name, data, 0) + listed(b"archive/version", b"3\n", 0xFFFFFFFF, extra=extra)
    return out + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 2, 2, len(directory), len(out), 0)


REFUSED = {name: made for name, (made, said) in OBJECTS.items() if name not in ("no archive", "before 1.6", "no list", "two")}
REFUSED |= {
    "behind its storage": archive_of((2, 3), (3, 1), 3, 8, 32),
    "a storage larger than its bytes": archive_of((2, 3), (3, 1), 0, 1 << 40, 32),
    "a negative stride": archive_of((2, 3), (-3, 1), 4, 8, 32),
    "a row a trillion times": archive_of((1 << 40, 3), (0, 1), 0, 8, 32),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_before_torch_is_asked(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(REFUSED[kind])
    with pytest.raises(UserError, match="pytorch_model.bin"):
        read_torch_file(path)


class _Array:
    """An array whose dtype has flags that tell numpy that its bytes are pointers to objects."""

    def __reduce__(self):
        return numpy.core.multiarray._reconstruct, (numpy.ndarray, (0,), b"b"), (1, (1,), _Dtype(), False, b"\x41" * 8)


class _Dtype:
    def __reduce__(self):
        return numpy.dtype, ("V8", False, True), (3, "|", None, None, None, 8, 1, 63)


@pytest.mark.parametrize("place", ["comment", "extra"])
def test_one_file_that_is_two(place, tmp_path):
    """zipfile finds one directory in it, and torch another, to which a locator of 64 bits points."""
    path, made = tmp_path / "model_rng.pt", two_in_one(place)
    path.write_bytes(made)
    assert torch.load(path, weights_only=True) == {"who": "torch"}
    for found in (lambda: read_torch_file(path), lambda: load_object(path, made, "the file")):
        with pytest.raises(UserError, match="model_rng.pt is damaged"):
            found()


def test_a_record_that_no_file_can_hold(tmp_path):
    path = tmp_path / "model_rng.pt"
    path.write_bytes(far_away())
    for found in (lambda: read_torch_file(path), lambda: load_object(path, far_away(), "the file")):
        with pytest.raises(UserError, match="model_rng.pt.* is damaged .*'archive/version' overlaps another"):
            found()


def test_a_file_that_the_disk_refuses_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "pytorch_model.bin"
    torch.save({}, path)
    monkeypatch.setattr(torch_files, "read_archive", lambda _: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(OSError, match="Stale file handle: '.*pytorch_model.bin'"):
        read_torch_file(path)


def test_an_array_of_addresses(tmp_path):
    path = tmp_path / "model_rng.pt"
    torch.save({"model": _Array()}, path)
    with pytest.raises(UserError, match="calls numpy.dtype as no checkpoint does"):
        read_torch_file(path)
