"""Sequences beyond max_position_embeddings. Both scripts refuse them and say what to do; with the flag they train.

The new limit stands in the checkpoint's config.json and in the export's.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from transformers import LlamaConfig

from megatron_patch.arguments.training import read
from megatron_patch.llama.model_config import LLAMA_SIZES, read_hf_config
from megatron_patch.llama.position_limit import length_finding, with_positions
from tests.launching import FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, convert, train
from tests.weights.models import SMALL, random_weights, write_hf

CORPUS, SFT = GOLDEN / "data/corpus_text_document", GOLDEN / "sft/alpaca_output.json"
FLAG = "--allow-longer-sequences"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint for 64 positions."""
    return checkpoint(tmp_path_factory.mktemp("model"))


def checkpoint(folder, **config):
    small = replace(SMALL, vocab_size=800, max_position_embeddings=64, **config)
    return convert(write_hf(folder / "hf", small, random_weights(small)), folder / "megatron")


def reading(task, model, tmp_path, *flags, **changed):
    """What the script's arguments come to; SystemExit where they are refused."""
    from megatron_patch.arguments.training import ARGUMENTS

    data = {"DATASET_PATH": CORPUS} if task == "pretrain" else {"TRAIN_DATASET_PATH": SFT, "VALID_DATASET_PATH": SFT}
    defaults = PRETRAIN_ARGUMENTS if task == "pretrain" else FINETUNE_ARGUMENTS
    values = {**defaults, **data, "PRETRAIN_CHECKPOINT_PATH": model, "OUTPUT_BASEPATH": tmp_path, **changed}
    return read(task, [f"{ARGUMENTS[task][name].flag}={value}" for name, value in values.items()] + list(flags))


REFUSED = [
    ("pretrain", dict(SEQ_LEN=65), [], "SEQ_LEN: got '65'"),
    ("pretrain", dict(SEQ_LEN=128, PAD_LEN=65, DATASET_PATH=SFT, TRAIN_TOKENS=9999), [], "PAD_LEN: got '65'"),
    ("finetune", dict(SEQ_LEN=128, PAD_LEN=80), [], "PAD_LEN: got '80'"),
    ("finetune", dict(SEQ_LEN=65, PAD_LEN=64), ["--packing"], "SEQ_LEN: got '65'"),
]
TAKEN = [
    ("pretrain", dict(SEQ_LEN=64, PAD_LEN=999), []),  # indexed data does not use PAD_LEN
    ("finetune", dict(SEQ_LEN=128, PAD_LEN=64), []),  # rows are padded to PAD_LEN
    ("finetune", dict(SEQ_LEN=64, PAD_LEN=64), ["--packing"]),
]


@pytest.mark.parametrize("task, changed, flags, said", REFUSED)
def test_longer_rows_are_refused_or_raise_the_limit(model, tmp_path, capsys, task, changed, flags, said):
    with pytest.raises(SystemExit) as caught:
        reading(task, model, tmp_path, *flags, **changed)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and f"write 64 or less, or add {FLAG}" in error
    found = reading(task, model, tmp_path, *flags, FLAG, **changed)
    assert found.config.model.max_position_embeddings == found.config.sample_length > 64
    assert "max_position_embeddings becomes" in found.notes[-1]


@pytest.mark.parametrize("task, changed, flags", TAKEN)
def test_rows_up_to_the_limit_are_taken(model, tmp_path, task, changed, flags):
    for more in ([], [FLAG]):
        found = reading(task, model, tmp_path, *flags, *more, **changed)
        assert found.config.model.max_position_embeddings == 64 and not any(FLAG in note for note in found.notes)


def test_a_factor_of_scaling_counts():
    linear = replace(LLAMA_SIZES["llama2-7b"], rope_type="linear", rope_factor=4.0)
    assert length_finding(linear, 16384) is None and "write 16384 or less" in length_finding(linear, 16385)
    longer, _ = with_positions(linear, 20000)
    assert longer.max_position_embeddings == 5000 and longer.position_limit == 20000
    dynamic = replace(linear, rope_type="dynamic", rope_factor=2.0)
    assert length_finding(dynamic, 8192) is None and length_finding(dynamic, 8193)
    same, note = with_positions(dynamic, 10000)
    assert same == dynamic and "config.json stays as it is" in note  # its number decides the rotary angles


def test_packing_under_dynamic_scaling(tmp_path, capsys):
    """Beyond the limit transformers takes the longest sample's base, which a row of several samples has not."""
    dynamic = checkpoint(tmp_path, rope_type="dynamic", rope_factor=2.0)
    with pytest.raises(SystemExit):
        reading("finetune", dynamic, tmp_path, "--packing", SEQ_LEN=128, PAD_LEN=64)
    assert "--packing: got 'true'; dynamic rope_scaling goes by a sample's own length" in capsys.readouterr().err
    assert reading("finetune", dynamic, tmp_path, "--packing", SEQ_LEN=64, PAD_LEN=64)
    assert reading("finetune", dynamic, tmp_path, SEQ_LEN=128, PAD_LEN=128)


def test_the_new_limit_is_trained_saved_exported_and_goes_on(model, tmp_path):
    arguments = dict(DATASET_PATH=CORPUS, PRETRAIN_CHECKPOINT_PATH=model, SEQ_LEN=96, TRAIN_TOKENS=4 * 4 * 96, WARMUP_TOKENS=0)
    first = train(PRETRAIN, tmp_path, FLAG, "--exit-interval", 2, **arguments)
    assert first == train(PRETRAIN, tmp_path, FLAG, **arguments)[:2]
    (run,) = (tmp_path / "checkpoint").iterdir()
    assert json.loads((run / "iter_0000004/model.json").read_text())["model"]["max_position_embeddings"] == 96
    back = convert(run, tmp_path / "hf", back=True)
    for folder in (run, back):
        assert read_hf_config(folder).max_position_embeddings == 96
        assert LlamaConfig.from_pretrained(folder).max_position_embeddings == 96
    assert read_hf_config(model).max_position_embeddings == 64  # the user's own file
    reading("pretrain", run, tmp_path / "next", SEQ_LEN=96)  # as the next run's model it needs no flag
