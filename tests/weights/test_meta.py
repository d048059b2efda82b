"""Meta's own files: the same model as the Hugging Face folder they were made from, by transformers' forward pass."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_patch.arguments.conversion import Conversion, read
from megatron_patch.conversion.convert import convert
from megatron_patch.formats import lazy
from megatron_patch.llama.model_config import LLAMA_SIZES, read_hf_config
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN
from tests.weights.metas_files import write_meta
from tests.weights.models import assert_same, hf_tensor, read_hf


def model(groups=8, layers=2):
    """16 wide heads over `groups` KV heads, every dimension different."""
    torch.manual_seed(groups)
    config = LlamaConfig(
        vocab_size=96, hidden_size=128, intermediate_size=208, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=groups, rms_norm_eps=1e-6, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    for name, parameter in made.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    return made.to(torch.bfloat16)


@pytest.mark.parametrize("shards, groups, generation", [(1, 16, 1), (2, 16, 2), (8, 8, 2), (1, 8, 2)])
def test_the_same_model_as_hugging_faces(tmp_path, shards, groups, generation, monkeypatch):
    monkeypatch.setattr(lazy, "PIECE_BYTES", 1000)  # three rows: heads of q and k are cut at any row
    original = model(groups)
    folder = write_meta(tmp_path / "meta/llama-2", original, shards, generation)
    (tmp_path / "meta/tokenizer.model").write_bytes((GOLDEN / "hf_mha/tokenizer.model").read_bytes())  # its place
    summary = convert(Conversion(folder, tmp_path / "mg", to_hf=False, verify=True))
    convert(Conversion(tmp_path / "mg", tmp_path / "back", to_hf=True, verify=True))
    assert_same(read_hf(tmp_path / "back"), dict(original.state_dict()))
    assert (tmp_path / "back/tokenizer.model").read_bytes() == (GOLDEN / "hf_mha/tokenizer.model").read_bytes()
    assert "positions" in summary.notes[0] and ("2048" if generation == 1 else "4096") in summary.notes[0]
    tokens = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    reference = LlamaForCausalLM(original.config)
    reference.load_state_dict(original.state_dict())
    with torch.no_grad():
        wanted = reference(tokens).logits
        got = LlamaForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)(tokens).logits
    assert torch.equal(got, wanted)


def test_embedding_that_is_shared_by_rows(tmp_path):
    """As from LLaMA-3's code on; the tensors' own shapes tell."""
    original = model()
    convert(Conversion(write_meta(tmp_path / "meta", original, 4, rows_of_embedding=True), tmp_path / "mg", to_hf=False))
    got = hf_tensor(open_source(tmp_path / "mg"), "model.embed_tokens.weight")
    assert torch.equal(got, original.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "params, generation, name, positions",
    [
        ({}, 1, None, 2048),
        ({}, 2, None, 4096),
        ({}, 0, None, 2048),  # no frequencies at all
        ({}, 1, "llama2-7b", 4096),
        ({}, 2, "llama-7b", 4096),  # the documented name, which serves both generations
        ({}, 1, "llama-7b", 2048),
        ({"n_kv_heads": 8}, 0, None, 4096),
        ({"rope_theta": 1000000}, 0, None, 16384),
    ],
)
def test_position_limit_is_told_by_what_differs_or_by_the_named_size(tmp_path, params, generation, name, positions):
    folder = write_meta(tmp_path / "meta", model(16 if "n_kv_heads" not in params else 8), 1, generation, **params)
    source = open_source(folder, LLAMA_SIZES.get(name))
    assert source.config.max_position_embeddings == positions and str(positions) in source.notes[0]


def test_a_config_json_beside_params_json_decides(tmp_path):
    folder, original = write_meta(tmp_path / "meta", model(), 2), model()
    original.config.max_position_embeddings = 1234
    original.config.save_pretrained(folder)
    convert(Conversion(folder, tmp_path / "mg", to_hf=False))
    assert read_hf_config(tmp_path / "mg").max_position_embeddings == 1234 == open_source(folder).config.max_position_embeddings


def test_numbers_of_the_configuration(tmp_path):
    config = open_source(write_meta(tmp_path / "meta", model(), 2)).config
    got = (config.hidden_size, config.ffn_hidden_size, config.vocab_size, config.num_query_groups, config.norm_epsilon)
    assert got == (128, 208, 96, 8, 1e-6)


def edited(tmp_path, change):
    folder = write_meta(tmp_path / "meta", model(), 2)
    change(folder)
    with pytest.raises(ValueError) as caught:
        open_source(folder)
    return str(caught.value)


def edit_tensors(number, edit):
    def change(folder):
        path = folder / f"consolidated.{number:02d}.pth"
        tensors = torch.load(path)
        edit(tensors)
        torch.save(tensors, path)

    return change


def edit_params(**params):
    def change(folder):
        path = folder / "params.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | params))

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda folder: (folder / "consolidated.00.pth").unlink(), "consolidated.00.pth is missing"),
        (lambda folder: (folder / "consolidated.01.pth").unlink(), "there must be 2"),
        (lambda folder: (folder / "params.json").unlink(), "params.json is missing"),
        (lambda folder: (folder / "params.json").write_text("version https://git-lfs.github.com/spec/v1\n"), "LFS pointer"),
        (lambda folder: (folder / "consolidated.01.pth").write_text("version https://git-lfs.github.com/spec/v1"), "LFS pointer"),
        (edit_tensors(1, lambda tensors: tensors.pop("norm.weight")), "consolidated.01.pth lacks norm.weight"),
        (edit_tensors(0, lambda tensors: tensors.update(x=torch.zeros(2, 2))), "does not have: x"),
        (edit_tensors(0, lambda tensors: tensors.update({"rope.freqs": 1e6 ** -(torch.arange(4) / 4)})), "rope_theta 1e+06"),
        (edit_params(n_kv_heads=4), "attention.wk.weight has shape [64, 128], and it must be [32, 128]"),
        (edit_params(n_layers=3), "lacks layers.2."),
        (edit_params(n_layers=10**9), "lacks layers.999999999."),
        (edit_params(rope_theta="1e4"), "rope_theta is '1e4'"),
        (edit_params(vocab_size=95), "vocab_size is 95"),
        (edit_params(dim=0), "dim is 0"),
        (edit_params(n_heads="16"), "n_heads is '16'"),
        (edit_params(norm_eps=float("nan")), "norm_eps is nan"),
        (edit_params(moe={"num_experts": 8}), "moe"),
        (edit_params(use_scaled_rope=True), "use_scaled_rope"),
    ],
)
def test_what_is_missing_or_contradicts_is_said(tmp_path, change, said):
    assert said in edited(tmp_path, change)


def test_the_script_takes_the_folder(tmp_path, capsys):
    folder = write_meta(tmp_path / "meta", model(), 2)
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    flags = ["--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=1", "--extra-vocab-size=0", "--model-name=auto"]
    arguments = ["--megatron-path=none", f"--source={folder}", f"--target={tmp_path}/mg", "--mg2hf=false", *flags]
    with pytest.raises(SystemExit):
        read(arguments)
    assert f"{tmp_path}/tokenizer.model is a Git LFS pointer" in capsys.readouterr().err
    (tmp_path / "tokenizer.model").unlink()
    assert read(arguments).source == folder
