"""There and back gives every tensor back, bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig, read_hf_config
from megatron_patch.weights.source import open_source
from megatron_patch.weights.table import join, split
from tests.launching import GOLDEN
from tests.weights.models import SMALL, TOKENIZER_FILES, assert_same, random_weights, read_hf, write_hf


def there_and_back(folder, source, verify=True, **options):
    convert(Conversion(source, folder / "megatron", to_hf=False, verify=verify, **options))
    options.pop("dtype", None)
    convert(Conversion(folder / "megatron", folder / "back", to_hf=True, verify=verify, **options))
    return folder / "back"


def reduced(name: str) -> LlamaConfig:
    """The named size with its true numbers of heads, groups and layers, and small heads, ffn and vocabulary."""
    size = LLAMA_SIZES[name]
    heads = size.num_attention_heads
    return replace(size, hidden_size=2 * heads, kv_channels=2, ffn_hidden_size=6 * heads, vocab_size=16 * heads)


@pytest.mark.parametrize("name", [name for name in LLAMA_SIZES if name != "tiny"])
def test_every_size(name, tmp_path):
    config = reduced(name)
    weights = random_weights(config)
    layout = {"llama-30b": (4, 4), "llama2-70b": (8, 8)}.get(name, (2, 4))
    back = there_and_back(
        tmp_path,
        write_hf(tmp_path / "hf", config, weights, shards=3),
        tensor_model_parallel_size=layout[0],
        pipeline_model_parallel_size=layout[1],
        verify=False,
    )
    assert_same(read_hf(back), weights)
    assert read_hf_config(back) == config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_is_kept(dtype, tmp_path):
    weights = random_weights(SMALL, dtype)
    back = there_and_back(tmp_path, write_hf(tmp_path / "hf", SMALL, weights))
    assert_same(read_hf(back), weights)
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_dtype_on_request(tmp_path):
    weights = random_weights(SMALL, torch.float32)
    back = there_and_back(tmp_path, write_hf(tmp_path / "hf", SMALL, weights), dtype="bfloat16")
    assert_same(read_hf(back), {name: tensor.bfloat16() for name, tensor in weights.items()})
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_values_beyond_float16_are_refused(tmp_path):
    weights = random_weights(SMALL)
    weights["model.norm.weight"][3] = 1e5
    source = write_hf(tmp_path / "hf", SMALL, weights)
    with pytest.raises(ValueError, match="decoder.final_layernorm.weight holds values above 65504"):
        there_and_back(tmp_path, source, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_new_rows_are_the_mean_and_come_back(tmp_path):
    weights = random_weights(SMALL, torch.float16)
    back = there_and_back(tmp_path, write_hf(tmp_path / "hf", SMALL, weights), extra_vocab_size=8)
    wanted = dict(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        mean = weights[name].double().mean(dim=0)
        got = read_hf(back)[name][40:]
        assert got.shape == (8, 16)
        torch.testing.assert_close(got.double(), mean.expand(8, -1), rtol=2**-11, atol=1e-7)
        wanted[name] = torch.cat([weights[name], got])
    assert_same(read_hf(back), wanted)
    assert read_hf_config(back).vocab_size == 48
    assert open_source(tmp_path / "megatron").extra_vocab_size == 8


def test_small_shards_and_their_index(tmp_path):
    weights = random_weights(SMALL)
    back = there_and_back(tmp_path, write_hf(tmp_path / "hf", SMALL, weights), max_file_bytes=2000)
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights)
    assert set(index["weight_map"].values()) == {path.name for path in back.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    assert len(list((tmp_path / "megatron/release").glob("*.distcp"))) > 3
    assert_same(read_hf(back), weights)


def test_bin_files(tmp_path):
    back = there_and_back(tmp_path, GOLDEN / "hf_mha_bin")
    assert_same(read_hf(back), read_hf(GOLDEN / "hf_mha"))


def test_sharded_bin_files(tmp_path):
    weights = random_weights(SMALL, torch.float16)
    folder = write_hf(tmp_path / "hf", SMALL, weights)
    (folder / "model.safetensors").unlink()
    whole = torch.cat([weights["lm_head.weight"], weights["lm_head.weight"]])
    weights["lm_head.weight"] = whole[40:]  # a view into a larger storage, as torch.save keeps it
    wide = torch.cat([weights["model.layers.1.mlp.down_proj.weight"]] * 2, dim=1)
    weights["model.layers.1.mlp.down_proj.weight"] = wide[:, :24]  # rows of it are not contiguous
    where = {}
    for number in (1, 2):
        part = {name: tensor for place, (name, tensor) in enumerate(weights.items()) if place % 2 == number - 1}
        torch.save(part, folder / f"pytorch_model-{number:05d}-of-00002.bin")
        where |= dict.fromkeys(part, f"pytorch_model-{number:05d}-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(read_hf(there_and_back(tmp_path, folder)), weights)


def test_transformers_opens_the_result(tmp_path):
    back = there_and_back(tmp_path, GOLDEN / "hf_gqa")
    tokens = torch.arange(5, 45)[None]
    with torch.no_grad():
        got, wanted = (AutoModelForCausalLM.from_pretrained(path)(tokens).logits for path in (back, GOLDEN / "hf_gqa"))
    assert torch.equal(got, wanted)
    texts = "今天天气很好, and the weather stays fine.\n"
    assert AutoTokenizer.from_pretrained(back)(texts) == AutoTokenizer.from_pretrained(GOLDEN / "hf_gqa")(texts)
    assert (back / "tokenizer.json").is_file() and not (tmp_path / "megatron" / "tokenizer.json").exists()
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        assert (back / name).read_bytes() == (GOLDEN / "hf_gqa" / name).read_bytes()


def test_a_tokenizer_model_that_cannot_be_read_ends_no_conversion(tmp_path):
    source = write_hf(tmp_path / "hf", SMALL, random_weights(SMALL))
    (source / "tokenizer.model").write_bytes(b"another program's")
    convert(Conversion(source, tmp_path / "megatron", to_hf=False))
    (note,) = convert(Conversion(tmp_path / "megatron", tmp_path / "back", to_hf=True)).notes
    assert note.startswith("no tokenizer.json was made: ") and "is not a SentencePiece model" in note


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fused_qkv_against_a_reshaped_copy(groups):
    """The order that megatron-core documents for its packed projection, made with reshapes alone."""
    from tests.conversion.in_memory import InMemory

    config = replace(SMALL, num_query_groups=groups)
    q, k, v = (torch.randn(rows, 16) for rows in (16, 4 * groups, 4 * groups))
    wanted = torch.cat([q.view(groups, -1, 16), k.view(groups, -1, 16), v.view(groups, -1, 16)], dim=1).reshape(-1, 16)
    fused = join(config, "qkv", [InMemory(part) for part in (q, k, v)])
    got = torch.empty(fused.shape)
    fused.read(0, fused.shape[0], got)
    assert torch.equal(got, wanted)
    parts = split(config, "qkv", fused)
    for part, original in zip(parts, (q, k, v)):
        out = torch.empty(part.shape[0] - 1, 16)
        part.read(1, part.shape[0], out)  # from the second row on: reads need not begin at a head
        assert torch.equal(out, original[1:])


def test_another_rotary_base_comes_back(tmp_path):
    """CodeLLaMA's rope_theta, from config.json through the Megatron folder, where training reads it, and back."""
    source = tmp_path / "hf"
    shutil.copytree(GOLDEN / "hf_gqa", source)
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**content, "rope_theta": 1000000.0}))
    convert(Conversion(source, tmp_path / "megatron", to_hf=False))
    assert read_hf_config(tmp_path / "megatron").rotary_base == 1e6
    convert(Conversion(tmp_path / "megatron", tmp_path / "back", to_hf=True))
    assert read_hf_config(tmp_path / "back") == read_hf_config(source)
