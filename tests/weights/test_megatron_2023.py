"""Checkpoints that the original converters wrote, read back to the Hugging Face folders they came from."""

from __future__ import annotations

import argparse
import shutil
import types

import pytest
import torch

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN
from tests.weights.models import assert_same, megatron_tensor, read_hf

SEPTEMBER = ["september/mha_tp1_pp1", "september/mha_tp2_pp2", "september/gqa_tp2_pp2"]
FOLDERS = [*SEPTEMBER, "october/mha_tp2_pp1", "october/gqa_tp2_pp1"]


def original(name):
    return read_hf(GOLDEN / ("hf_gqa" if "gqa" in name else "hf_mha"))


def copied(name, folder):
    return shutil.copytree(GOLDEN / "megatron_2023" / name, folder / "source")


def change(path, edit):
    """Load one rank's file, `edit` its content in place, save it again."""
    with torch.serialization.safe_globals([types.SimpleNamespace]):
        content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


@pytest.mark.parametrize("name", FOLDERS)
def test_back_to_hugging_face(name, tmp_path):
    convert(Conversion(GOLDEN / "megatron_2023" / name, tmp_path / "hf", to_hf=True, verify=True))
    assert_same(read_hf(tmp_path / "hf"), original(name))
    assert (tmp_path / "hf/tokenizer.model").is_file()


@pytest.mark.parametrize("name", FOLDERS)
def test_without_config_json(name, tmp_path):
    """Shapes come from the tensors and the recorded arguments; what is assumed is said."""
    folder = copied(name, tmp_path)
    (folder / "config.json").unlink()
    summary = convert(Conversion(folder, tmp_path / "hf", to_hf=True))
    assert_same(read_hf(tmp_path / "hf"), original(name))
    assert "rope_theta 10000.0" in summary.notes[0]


def test_training_folder_by_number(tmp_path):
    """iter_0000100, model_optim_rng.pt, argparse's namespace, optimizer state beside the weights."""
    folder = copied("september/mha_tp2_pp2", tmp_path)
    (folder / "release").rename(folder / "iter_0000100")
    (folder / "latest_checkpointed_iteration.txt").write_text("100")

    def as_after_training(content):
        content["args"] = argparse.Namespace(**vars(content["args"]))
        content["optimizer"] = {"state": {0: torch.ones(3)}}
        content["iteration"] = 100

    for rank in (folder / "iter_0000100").iterdir():
        change(rank / "model_rng.pt", as_after_training)
        (rank / "model_rng.pt").rename(rank / "model_optim_rng.pt")
    for given in (folder, folder / "iter_0000100"):
        target = tmp_path / f"hf-{given.name}"
        convert(Conversion(given, target, to_hf=True))
        assert_same(read_hf(target), original("mha"))


def test_extra_rows_and_padding(tmp_path):
    """padded_vocab_size counts rows beyond orig_vocab_size; EXTRA_VOCAB_SIZE says how many are not padding."""
    folder = copied("september/mha_tp1_pp1", tmp_path)

    def append(content):
        embedding = content["model"]["language_model"]["embedding"]["word_embeddings"]
        head = content["model"]["language_model"]["output_layer"]
        for holder, value in ((embedding, 3.0), (head, 5.0)):
            holder["weight"] = torch.cat([holder["weight"], torch.full((6, 64), value, dtype=torch.float16)])
        content["args"].padded_vocab_size = 806

    change(folder / "release/mp_rank_00/model_rng.pt", append)
    summary = convert(Conversion(folder, tmp_path / "hf", to_hf=True, extra_vocab_size=4))
    got, wanted = read_hf(tmp_path / "hf"), original("mha")
    for name, value in (("model.embed_tokens.weight", 3.0), ("lm_head.weight", 5.0)):
        wanted[name] = torch.cat([wanted[name], torch.full((4, 64), value, dtype=torch.float16)])
    assert_same(got, wanted)
    assert "2 rows of vocabulary padding beyond 804 are left out" in summary.notes[0]


def test_one_megatron_tensor(tmp_path):
    source = open_source(GOLDEN / "megatron_2023/october/gqa_tp2_pp1")
    same = open_source(GOLDEN / "hf_gqa")
    for key in ("self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"):
        key = f"decoder.layers.{key}"
        assert torch.equal(megatron_tensor(source, key, 3), megatron_tensor(same, key, 3))


def test_missing_rank_is_named(tmp_path):
    folder = copied("september/mha_tp2_pp2", tmp_path)
    shutil.rmtree(folder / "release/mp_rank_00_001")
    with pytest.raises(ValueError, match="mp_rank_00_001 is missing"):
        convert(Conversion(folder, tmp_path / "hf", to_hf=True))


def test_biases_that_would_be_lost_are_refused(tmp_path):
    folder = copied("september/mha_tp1_pp1", tmp_path)

    def edit(content):
        content["model"]["language_model"]["encoder"]["layers.2.input_layernorm.bias"][5] = 0.5

    change(folder / "release/mp_rank_00/model_rng.pt", edit)
    with pytest.raises(ValueError, match=r"model_rng.pt: layers.2.input_layernorm.bias is not zero"):
        convert(Conversion(folder, tmp_path / "hf", to_hf=True))


def test_unknown_tensor_is_named(tmp_path):
    folder = copied("september/mha_tp1_pp1", tmp_path)

    def edit(content):
        content["model"]["language_model"]["encoder"]["layers.0.mlp.router.weight"] = torch.ones(4, 4)

    change(folder / "release/mp_rank_00/model_rng.pt", edit)
    with pytest.raises(ValueError, match="layers.0.mlp.router.weight"):
        convert(Conversion(folder, tmp_path / "hf", to_hf=True))
