"""A broken source is an error that names file and tensor, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.checkpoint.checked_load import load_checked
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import load
from megatron_patch.inspection.checkpoint import describe_checkpoint
from megatron_patch.weights.source import open_source
from megatron_patch.weights.table import places
from tests.weights.models import SMALL, random_weights, write_hf

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    return write_hf(tmp_path / "hf", SMALL, random_weights(SMALL), shards=2)


@pytest.fixture
def native(tmp_path, folder):
    convert(Conversion(folder, tmp_path / "megatron", to_hf=False))
    return tmp_path / "megatron"


def fails(source, to_hf=False, **options):
    """The error of a conversion; nothing may be left beside the source."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(ValueError) as caught:
        convert(Conversion(source, source.parent / "target", to_hf=to_hf, **options))
    assert sorted(source.parent.iterdir()) == before
    return str(caught.value)


def edit_shard(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def truncate(path, by):
    with open(path, "r+b") as stream:
        stream.truncate(path.stat().st_size - by)


def test_truncated_shard(folder):
    truncate(folder / SECOND, 10)
    message = fails(folder)
    assert f"{SECOND} is truncated" in message


def test_shard_cut_inside_its_header(folder):
    with open(folder / FIRST, "r+b") as stream:
        stream.truncate(100)
    assert f"{FIRST} has 100 bytes and no whole safetensors header" in fails(folder)


def test_missing_shard(folder):
    (folder / SECOND).unlink()
    assert f"{SECOND} is missing, and model.safetensors.index.json names it" in fails(folder)


def test_tensor_missing_from_its_shard(folder):
    edit_shard(folder / FIRST, lambda tensors: tensors.pop("model.layers.1.self_attn.q_proj.weight", None))
    edit_shard(folder / SECOND, lambda tensors: tensors.pop("model.layers.1.self_attn.q_proj.weight", None))
    assert "lacks model.layers.1.self_attn.q_proj.weight, which model.safetensors.index.json places there" in fails(folder)


def test_tensor_missing_altogether(tmp_path):
    weights = random_weights(SMALL)
    del weights["model.norm.weight"]
    message = fails(write_hf(tmp_path / "hf", SMALL, weights))
    assert "model.safetensors lacks model.norm.weight" in message


def test_unknown_tensor(folder):
    edit_shard(folder / FIRST, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}))
    message = fails(folder)
    assert FIRST in message and "model.layers.0.self_attn.q_proj.bias" in message and "would be lost" in message


def test_wrong_shape(tmp_path):
    weights = random_weights(SMALL)
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].reshape(16, 24)
    message = fails(write_hf(tmp_path / "hf", SMALL, weights))
    assert "model.safetensors: tensor model.layers.1.mlp.up_proj.weight has shape [16, 24]" in message
    assert "config.json makes it [24, 16]" in message


def test_mixed_dtypes(tmp_path):
    weights = random_weights(SMALL)
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    source = write_hf(tmp_path / "hf", SMALL, weights)
    assert "give --dtype to make them one" in fails(source)
    convert(Conversion(source, tmp_path / "target", to_hf=False, dtype="float32", verify=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_under_verify(tmp_path, value):
    weights = random_weights(SMALL)
    weights["model.layers.1.mlp.down_proj.weight"][11, 3] = value
    source = write_hf(tmp_path / "hf", SMALL, weights)
    message = fails(source, verify=True)
    assert "hf/model.safetensors: tensor model.layers.1.mlp.down_proj.weight holds a NaN or an infinity, in row 11" in message
    convert(Conversion(source, tmp_path / "target", to_hf=False))  # without --verify the bits are carried over


def test_verify_compares_both_sides(tmp_path, folder, monkeypatch):
    """One bit that changes on the way to the disk is found."""
    from megatron_patch.formats import streaming

    pieces = streaming._pieces

    def with_a_flipped_bit(tensor):
        for size, fill in pieces(tensor):

            def fill_and_flip(out, fill=fill):
                fill(out)
                if tuple(tensor.shape) == (24, 16):
                    out[7] ^= 1

            yield size, fill_and_flip

    monkeypatch.setattr(streaming, "_pieces", with_a_flipped_bit)
    assert "gate_proj.weight differs from the source's" in fails(folder, verify=True)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"model_type": "mistral"}, "model_type"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(folder, change, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert said in fails(folder)


def test_truncated_native_file(native):
    name = "__0_0.distcp"
    truncate(native / "release" / name, 300)
    message = fails(native, to_hf=True)
    assert name in message and "is truncated" in message and "tensor " in message


def test_missing_native_file(native):
    (native / "release/__0_0.distcp").unlink()
    assert "__0_0.distcp is missing" in fails(native, to_hf=True)


def test_native_file_of_other_bytes(native):
    path = native / "release/__0_0.distcp"
    path.write_bytes(bytes(path.stat().st_size))
    message = fails(native, to_hf=True)
    assert "__0_0.distcp: the item of tensor embedding.word_embeddings.weight is damaged" in message


def test_native_folder_without_its_metadata(native):
    (native / "release/.metadata").unlink()
    assert "holds no finished checkpoint" in fails(native, to_hf=True)


def test_another_format_of_core_s_is_one_sentence_wherever_it_is_read(native):
    """In conversion, in training that takes the weights, in a run that goes on, and in inspection."""
    release = native / "release"
    (release / "metadata.json").write_text('{"sharded_backend": "zarr", "sharded_backend_version": 1}')
    message = fails(native, to_hf=True)
    assert f"{release / 'metadata.json'} says sharded_backend 'zarr'" in message
    readers = (open_source, describe_checkpoint, lambda path: load_checked(release, {}))
    for read in readers:
        with pytest.raises(UserError) as caught:
            read(native)
        assert str(caught.value) == message


def test_a_native_checkpoint_that_does_not_say_its_model(native):
    """As other programs write it: the size that the user names tells the model, and no other."""
    wanted = {place: load(open_source(native).megatron(place)) for place in places(SMALL)}
    (native / "release/model.json").unlink()
    (native / "config.json").unlink()
    assert "config.json" in fails(native, to_hf=True)
    source = open_source(native, SMALL)
    assert all(torch.equal(load(source.megatron(place)), tensor) for place, tensor in wanted.items())
    with pytest.raises(UserError, match="has shape"):
        open_source(native, replace(SMALL, ffn_hidden_size=SMALL.ffn_hidden_size + 2))


def test_wrong_direction(native, folder):
    assert "is not a Megatron checkpoint" in fails(folder, to_hf=True)
    assert "is not a Hugging Face folder" in fails(native, to_hf=False)


def test_other_extra_vocabulary_than_recorded(native):
    assert "the checkpoint was made with 0" in fails(native, to_hf=True, extra_vocab_size=8)


def test_disk_that_cannot_hold_it(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "make room there" in fails(folder)
