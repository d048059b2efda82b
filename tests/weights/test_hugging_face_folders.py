"""Hugging Face folders as people have them: what is read from each, or the sentence it gets."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from megatron_patch.arguments.conversion import Conversion, read
from megatron_patch.conversion.convert import convert
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.llama.model_config import read_hf_config
from megatron_patch.weights.source import open_source
from tests.weights.models import SMALL, assert_same, random_weights, read_hf, write_hf

WEIGHTS = random_weights(SMALL)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 9976578928\n"


@pytest.fixture
def folder(tmp_path):
    return write_hf(tmp_path / "hf", SMALL, WEIGHTS, shards=2)


@pytest.fixture
def bare(tmp_path):
    """config.json and a tokenizer alone."""
    return without_weights(write_hf(tmp_path / "hf", SMALL, WEIGHTS))


def without_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()
    return folder


def halves(weights):
    names = list(weights)
    return [{name: weights[name] for name in part} for part in (names[: len(names) // 2], names[len(names) // 2 :])]


def write_bin(folder, index=True):
    """Two .bin shards with an index, or without."""
    where = {}
    for number, part in enumerate(halves(WEIGHTS), start=1):
        torch.save(part, folder / f"pytorch_model-{number:05d}-of-00002.bin")
        where |= dict.fromkeys(part, f"pytorch_model-{number:05d}-of-00002.bin")
    if index:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def converted(folder):
    """The weights after a conversion both ways, and the notes of the way there."""
    target = folder.parent / "mg"
    summary = convert(Conversion(folder, target, to_hf=False))
    convert(Conversion(target, folder.parent / "back", to_hf=True))
    return read_hf(folder.parent / "back"), " ".join(summary.notes)


def checked(folder, capsys):
    """What the script's check of its arguments says about `folder`."""
    flags = ["--tensor-model-parallel-size=1", "--pipeline-model-parallel-size=1", "--extra-vocab-size=0", "--model-name=auto"]
    with pytest.raises(SystemExit):
        read(["--megatron-path=none", f"--source={folder}", f"--target={folder}-mg", "--mg2hf=false", *flags])
    return capsys.readouterr().err


def sentence(folder, capsys):
    """What a conversion of `folder` says; the script's check of arguments and the reader of the files must agree."""
    with pytest.raises(ValueError) as caught:
        open_source(folder)
    assert str(caught.value) in checked(folder, capsys)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_without_an_index_are_read(folder, ending):
    if ending == "bin":
        write_bin(without_weights(folder), index=False)
    else:
        (folder / "model.safetensors.index.json").unlink()
    assert_same(converted(folder)[0], WEIGHTS)


def test_a_shard_missing_without_an_index(folder, capsys):
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "model-00001-of-00002.safetensors is missing" in sentence(folder, capsys)


def test_names_that_count_nothing(bare, capsys):
    for name in ("model-00000-of-00000.safetensors", "model-00003-of-00002.safetensors"):
        (bare / name).write_bytes(b"")
    assert "holds no weights" in sentence(bare, capsys)


def test_two_models_shards_without_an_index(folder, capsys):
    (folder / "model.safetensors.index.json").unlink()
    save_file(WEIGHTS, folder / "model-00001-of-00001.safetensors")
    assert "two models' shards" in sentence(folder, capsys)


def test_a_tensor_in_two_shards_without_an_index(folder):
    (folder / "model.safetensors.index.json").unlink()
    save_file(WEIGHTS, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="00002-of-00002.safetensors holds .* and so does"):
        open_source(folder)


def test_bin_beside_a_left_over_index(folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_bin(folder)
    got, notes = converted(folder)
    assert_same(got, WEIGHTS)
    assert "read from pytorch_model.bin.index.json" in notes and "model.safetensors.index.json names files that are not" in notes


def test_bin_beside_pointers(folder):
    """As `git clone` without LFS leaves it, with one set of files then downloaded."""
    for path in folder.glob("*.safetensors"):
        path.write_text(POINTER)
    write_bin(folder)
    got, notes = converted(folder)
    assert_same(got, WEIGHTS)
    assert "model.safetensors.index.json was passed over" in notes and "Git LFS pointer" in notes


def test_safetensors_come_before_bin(folder):
    torch.save({name: tensor + 1 for name, tensor in WEIGHTS.items()}, folder / "pytorch_model.bin")
    got, notes = converted(folder)
    assert_same(got, WEIGHTS)
    assert "pytorch_model.bin was not read" in notes


def test_an_adapter(bare, capsys):
    """Where a whole model is read, the sentence says who merges it; the converter asks for the base."""
    (bare / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 16)}
    save_file(lora, bare / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"holds an adapter, no whole model: .* with model_convertor.sh none"):
        open_source(bare)
    (bare / "config.json").unlink()  # as peft writes it
    with pytest.raises(ValueError, match="holds an adapter, no whole model"):
        open_source(bare)
    assert "names no base: write --base" in checked(bare, capsys)


@pytest.mark.parametrize(
    "name, said",
    [
        ("llama-2-7b.Q4_K_M.gguf", "GGUF"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("last.ckpt", ".ckpt"),
        ("quantize_config.json", "GPTQ"),
        ("quant_config.json", "AWQ"),
        ("weights.safetensors", "weights.safetensors has another name"),
    ],
)
def test_weights_of_other_programs(bare, capsys, name, said):
    (bare / name).write_text("{}")
    assert said in sentence(bare, capsys)


def test_gguf_alone(tmp_path, capsys):
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf/model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in sentence(tmp_path / "gguf", capsys)


@pytest.mark.parametrize(
    "quantization, said",
    [
        ({"quant_method": "gptq", "bits": 4}, "of gptq"),
        ({"quant_method": "awq"}, "of awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "of bitsandbytes, 4 bits"),
        ({"load_in_8bit": True}, "of bitsandbytes, 8 bits"),
    ],
)
def test_quantized_models_are_named(folder, capsys, quantization, said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    assert said in sentence(folder, capsys)


@pytest.mark.parametrize("ending", [".qweight", ".SCB"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_quantized_tensors_without_a_word_in_config_json(bare, kind, ending):
    name = "model.layers.0.self_attn.q_proj"
    tensors = {name + ".weight": torch.zeros(4, 4, dtype=torch.int8), name + ending: torch.zeros(4, dtype=torch.int32)}
    if kind == "bin":
        torch.save(tensors, bare / "pytorch_model.bin")
    else:
        save_file(tensors, bare / "model.safetensors")
    with pytest.raises(ValueError, match="holds a quantized model"):
        open_source(bare)


@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", "model.safetensors.index.json", "config.json"])
@pytest.mark.parametrize("content, said", [(POINTER, "is a Git LFS pointer"), ("", "is empty")])
def test_files_that_stand_for_others(folder, capsys, name, content, said):
    (folder / name).write_text(content)
    assert f"{name} {said}" in sentence(folder, capsys)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer_config.json"])
def test_a_tokenizer_that_is_a_pointer_is_not_copied(folder, name):
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer"):
        convert(Conversion(folder, folder.parent / "mg", to_hf=False))
    assert not (folder.parent / "mg").exists()


@pytest.mark.parametrize("name", ["tokenizer.model", "config.json"])
def test_a_pointer_is_not_exported_or_trained_with(folder, name):
    convert(Conversion(folder, folder.parent / "mg", to_hf=False))
    (folder.parent / "mg" / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer"):
        convert(Conversion(folder.parent / "mg", folder.parent / "back", to_hf=True))
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer"):
        load_tokenizer(folder.parent / "mg") if name == "tokenizer.model" else read_hf_config(folder.parent / "mg")


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_a_cut_bin(bare, kept):
    torch.save(WEIGHTS, bare / "pytorch_model.bin")
    whole = (bare / "pytorch_model.bin").read_bytes()
    (bare / "pytorch_model.bin").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"pytorch_model.bin (is|has)") as caught:
        open_source(bare)
    assert "copy" in str(caught.value) and "Errno" not in str(caught.value)


def test_bin_of_other_bytes(bare):
    (bare / "pytorch_model.bin").write_text("<!DOCTYPE html><html>Access denied</html>")
    with pytest.raises(ValueError, match="is no file that torch.save wrote"):
        open_source(bare)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "a\0"])
def test_an_index_that_leads_out_of_its_folder(folder, capsys, name):
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(content))
    assert "no plain file name; it was refused" in sentence(folder, capsys)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", "[" * 9999]
)
def test_an_index_that_is_none(folder, capsys, content):
    (folder / "model.safetensors.index.json").write_text(content)
    assert "is no index of shards" in sentence(folder, capsys)


def test_an_index_of_files_that_are_not_there(bare, capsys):
    (bare / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}))
    assert "x.safetensors, y.safetensors are missing, and model.safetensors.index.json names them" in sentence(bare, capsys)


def test_names_under_a_wrapper_or_without_their_own(tmp_path):
    wrapped = write_hf(tmp_path / "wrapped", SMALL, WEIGHTS)
    save_file({"module." + name: tensor for name, tensor in WEIGHTS.items()}, wrapped / "model.safetensors")
    with pytest.raises(ValueError, match=r"begin with 'module\.'"):
        open_source(wrapped)
    base = {name: tensor for name, tensor in WEIGHTS.items() if name != "lm_head.weight"}
    save_file({name.removeprefix("model."): tensor for name, tensor in base.items()}, wrapped / "model.safetensors")
    with pytest.raises(ValueError, match=r"lack 'model\.'"):
        open_source(wrapped)
    save_file(base, wrapped / "model.safetensors")
    with pytest.raises(ValueError, match="lacks lm_head.weight; it is the output layer"):
        open_source(wrapped)


def test_a_folder_of_the_hub_cache(tmp_path, capsys):
    write_hf(tmp_path / "models--meta--llama/snapshots/0a1b", SMALL, WEIGHTS)
    said = checked(tmp_path / "models--meta--llama", capsys)
    assert f"write {tmp_path}/models--meta--llama/snapshots/0a1b" in said
