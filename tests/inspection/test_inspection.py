import json
import os
import pickle
import random
import shutil
import types
from pathlib import Path

import numpy
import pytest

from megatron_patch.cli.inspection import main
from megatron_patch.formats.distcp_metadata import read_dcp_metadata

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def shown(capsys, *argv):
    assert main([str(a) for a in argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("ending", ["", ".bin", ".idx"])
def test_an_indexed_dataset(capsys, ending):
    out = shown(capsys, f"{GOLDEN}/data/corpus_text_document{ending}", "--tokenizer-folder", GOLDEN / "hf_mha")
    assert "47 documents, 47 sequences, 3528 tokens, uint16" in out
    assert "ids from 2 to 799" in out and "within the tokenizer's vocabulary of 800" in out
    assert "47 of the first 47 documents end with the end token 2" in out
    assert "document 0, 34 tokens, all of them learnt: Every student measures many small batches" in out
    assert "         16 to 31                10 ####" in out


def test_a_fine_tuning_file_with_its_mask(capsys):
    path = GOLDEN / "sft" / "alpaca_output.json"
    out = shown(capsys, path, "--tokenizer-folder", GOLDEN / "hf_mha", "--max-padding-length", 80)
    assert "11 samples; fields: instruction (11), input (10), output (11)" in out
    assert "### Response:⟦Hello!</s>⟧" in out and "2 of 11 samples are longer than 80" in out
    assert '"instruction": "Say hello."' in shown(capsys, path)


def test_what_cannot_be_read_is_a_sentence(capsys, tmp_path):
    assert main([str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    shutil.copy(GOLDEN / "data" / "corpus_text_document.idx", tmp_path / "x.idx")
    assert main([str(tmp_path / "x")]) == 2
    assert "there is no" in capsys.readouterr().err


@pytest.fixture
def of_2023(tmp_path):
    """A copy of an original checkpoint, and a function that adds entries to its first rank's file."""
    import torch

    root = shutil.copytree(GOLDEN / "megatron_2023" / "september" / "mha_tp1_pp1", tmp_path / "megatron")
    path = root / "release" / "mp_rank_00" / "model_rng.pt"

    def add(**entries):
        with torch.serialization.safe_globals([types.SimpleNamespace]):
            content = torch.load(path, weights_only=True)
        torch.save({**content, **entries}, path)

    # megatron-core, once another test has imported it, allows numpy's classes in the whole process.
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield root, add
    torch.serialization.add_safe_globals(others)


def test_a_training_checkpoint_of_2023_with_random_state(capsys, of_2023):
    """As Megatron-LM saved it, numpy's state among it; the converter reads it too."""
    root, add = of_2023
    add(rng_state=[{"random_rng_state": random.getstate(), "np_rng_state": numpy.random.get_state()}])
    out = shown(capsys, root)
    assert "release (the 2023 layout)" in out and "1 files, checkpoint version 3.0" in out
    assert "language_model.embedding.word_embeddings.weight  (800, 64)  torch.float16" in out


def test_a_checkpoint_of_2023_cannot_run_code(capsys, of_2023, tmp_path):
    root, add = of_2023
    _Attack.target = tmp_path / "pwned"
    add(more=_Attack())
    assert main([str(root)]) == 2
    assert "was refused and not run" in capsys.readouterr().err and not _Attack.target.exists()


class _Attack:
    def __reduce__(self):
        return os.mkdir, (str(_Attack.target),)


def native(folder, metadata):
    state = folder / "iter_0000010"
    state.mkdir()
    (state / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    (state / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "latest_checkpointed_iteration.txt").write_text("10")
    return state


def test_a_torch_dist_checkpoint(capsys, tmp_path):
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    chunks = [ChunkStorageMetadata(torch.Size([i * 400, 0]), torch.Size([400, 64])) for i in range(2)]
    weight = TensorStorageMetadata(TensorProperties(torch.bfloat16), torch.Size([800, 64]), chunks)
    entries = {"embedding.weight": weight, "optimizer.state.exp_avg": weight, "rng": BytesStorageMetadata()}
    places = [MetadataIndex(key, chunk.offsets) for key in list(entries)[:2] for chunk in chunks] + [MetadataIndex("rng")]
    infos = {place: _StorageInfo("__0_0.distcp", 9 * number, 9) for number, place in enumerate(places)}
    state = native(tmp_path, Metadata(entries, storage_data=infos))
    (state / "__0_0.distcp").write_bytes(bytes(9 * len(places)))
    shutil.copy(GOLDEN / "hf_mha" / "config.json", tmp_path)
    out = shown(capsys, tmp_path)
    assert "iter_0000010 (torch_dist)" in out and "num_hidden_layers 4" in out
    assert "1 model tensors, 51200 numbers; 1 optimizer tensors; 1 other objects" in out
    assert "embedding.weight  (800, 64)  torch.bfloat16  2 chunks" in out


def test_recorded_arguments_under_odd_names(capsys, of_2023):
    root, add = of_2023
    add(args=types.SimpleNamespace(**{"num_layers": 4, "hidden\nsize": "6\n4"}))
    vars_with_a_number = types.SimpleNamespace(num_layers=4)
    vars(vars_with_a_number)[7] = 1
    assert "recorded arguments: hidden\\nsize 6\\n4, num_layers 4\n" in shown(capsys, root)
    add(args=vars_with_a_number)
    assert "recorded arguments: num_layers 4\n" in shown(capsys, root)
    add(args=7)
    assert "recorded arguments: \n" in shown(capsys, root)


def test_a_checkpoint_s_metadata_cannot_run_code(capsys, tmp_path):
    _Attack.target = tmp_path / "pwned"
    state = native(tmp_path, {"state_dict_metadata": _Attack()})
    with pytest.raises(ValueError, match="posix.mkdir, which no checkpoint needs"):
        read_dcp_metadata(state)
    assert main([str(tmp_path)]) == 2
    assert not _Attack.target.exists()
