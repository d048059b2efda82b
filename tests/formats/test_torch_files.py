"""`pytorch_model.bin` and 2023 `.pt` files: what torch reads, and what is refused before torch is asked."""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict

import numpy
import pytest
import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import FileTensor, load
from megatron_patch.formats.torch_files import read_torch_file
from tests.checkpoint.test_checked_load import OBJECTS, archive_of


def test_what_real_files_hold(tmp_path):
    """State dicts of modules, parameters, arguments, random states, views and bytes, as torch reads them."""
    base, marked = torch.randn(6, 8), torch.randn(4)
    marked.partition_dim = 0  # as Megatron marks its parameters
    content = {
        "marked": marked,
        "state": torch.nn.Linear(3, 5).state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "views": OrderedDict(rows=base[2:4], columns=base[:, :4]),
        "args": argparse.Namespace(lr=1e-4, dtype=torch.bfloat16, shape=torch.Size([2, 3]), names=("a", None)),
        "rng": [random.getstate(), numpy.random.get_state(), torch.get_rng_state(), b"bytes", bytearray(b"more"), {1, 2}],
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1.0, "params": [0]}]},
    }
    path = tmp_path / "model_optim_rng.pt"
    torch.save(content, path)
    found = read_torch_file(path)
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


def test_an_array_of_addresses(tmp_path):
    path = tmp_path / "model_rng.pt"
    torch.save({"model": _Array()}, path)
    with pytest.raises(UserError, match="calls numpy.dtype as no checkpoint does"):
        read_torch_file(path)
