"""Tensors of safetensors files: the library's values if it reads the file, a sentence if it does not."""

from __future__ import annotations

import json
import struct

import numpy
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import load
from megatron_patch.formats.safetensors_files import read_safetensors
from tests.weights.models import SMALL, random_weights, write_hf


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def write(path, header, size):
    """A file with this header (an object, or text that is written as it is) and `size` different bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    data = numpy.arange(size // 4 + 1, dtype=numpy.float32).tobytes()[:size]
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


SOUND = {
    "in another order": ({"b": entry([2], 8, 16), "a": entry([2], 0, 8)}, 16),
    "none": ({}, 0),
    "empty ones": ({"a": entry([0, 4], 0, 0), "b": entry([2], 0, 8), "c": entry([0], 8, 8)}, 8),
    "a number": ({"a": entry([], 0, 4)}, 4),
    "notes": ({"__metadata__": {"format": "pt"}, "a": entry([1, 2], 0, 8)}, 8),
    "dtypes": ({"a": entry([3], 0, 6, "BF16"), "b": entry([2], 6, 10, "F16"), "c": entry([1], 10, 14)}, 14),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_the_library_reads(kind, tmp_path):
    path = write(tmp_path / "x.safetensors", *SOUND[kind])
    truth, found = load_file(path), read_safetensors(path)[0]
    assert truth.keys() == found.keys()
    for name, tensor in truth.items():
        assert tuple(found[name].shape) == tuple(tensor.shape) and found[name].dtype == tensor.dtype
        if tensor.dim():
            bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
            assert torch.equal(load(found[name]).view(bits), tensor.view(bits))


FAULTS = {
    "negative": ({"a": entry([2], -8, 0), "b": entry([2], 0, 8)}, 8),
    "twice": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8),
    "overlap": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
    "gap": ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20),
    "gap at the start": ({"a": entry([2], 4, 12)}, 12),
    "more behind": ({"a": entry([2], 0, 8)}, 12),
    "truncated": ({"a": entry([2], 0, 8)}, 4),
    "length": ({"a": entry([3], 0, 8)}, 8),
    "backwards": ({"a": entry([2], 8, 0)}, 8),
    "behind 2^64": ({"a": entry([1 << 62, 4], 0, 0)}, 0),
    "negative shape": ({"a": entry([-2, -1], 0, 8)}, 8),
    "a fraction": ({"a": entry([2.0], 0, 8)}, 8),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, 8),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8),
    "unknown dtype": ({"a": entry([2], 0, 8, "F33")}, 8),
    "a list": ([], 8),
    "text": ("abc", 8),
    "nothing": (None, 8),
    "a number for a tensor": ({"a": 1}, 8),
    "notes that are numbers": ({"__metadata__": {"a": 1}, "a": entry([2], 0, 8)}, 8),
    "deep": (b'{"a":' * 10_000, 8),
    "no text": (b"\xff\xfe{}", 8),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_library_refuses(fault, tmp_path):
    path = write(tmp_path / "x.safetensors", *FAULTS[fault])
    with pytest.raises(SafetensorError), safe_open(path, framework="pt"):
        pass
    with pytest.raises(UserError, match="x.safetensors") as caught:
        read_safetensors(path)
    assert len(str(caught.value)) < 500


def test_a_dtype_that_is_no_weight_s(tmp_path):
    with pytest.raises(UserError, match="tensor a has dtype I64; allowed are BF16, F16, F32"):
        read_safetensors(write(tmp_path / "x.safetensors", {"a": entry([1], 0, 8, "I64")}, 8))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("offsets", [[-512, 0], [0, 512]])
def test_conversion_refuses_offsets_that_are_anothers(offsets, verify, tmp_path):
    """A header that gives a norm the bytes of the header itself, or those of another tensor."""
    folder = write_hf(tmp_path / "hf", SMALL, random_weights(SMALL))
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    place = header["model.layers.1.self_attn.q_proj.weight"]
    assert place["data_offsets"][1] - place["data_offsets"][0] == 512
    place["data_offsets"] = offsets
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    with pytest.raises(UserError, match="model.safetensors has a damaged header"):
        convert(Conversion(folder, tmp_path / "target", to_hf=False, verify=verify))
    assert not (tmp_path / "target").exists() and [path.name for path in tmp_path.iterdir()] == ["hf"]
