"""JSON data in a run: what is held out, what stops it before it starts, and that it is known by its content."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_patch.config import Options
from megatron_patch.data.finetune import finetune_run_data
from megatron_patch.data.json_pretrain import json_run_data, json_split
from megatron_patch.data_paths import parse_data
from megatron_patch.errors import UserError
from tests.launching import (
    FINETUNE,
    FINETUNE_ARGUMENTS,
    GOLDEN,
    PRETRAIN,
    PRETRAIN_ARGUMENTS,
    convert,
    run,
    run_forked,
    scalars,
    succeed,
)
from tests.tiny import tiny_config

SAMPLES = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
LONG = {"instruction": "many " * 200, "output": "word"}  # no answer within PAD_LEN
EMPTY = {"instruction": "say nothing", "output": ""}


@pytest.fixture
def configured(tmp_path):
    def make(task, train, valid=SAMPLES, **options):
        for name, records in (("train", train), ("valid", valid)):
            (tmp_path / name).write_text(json.dumps(records), encoding="utf-8")  # no ending: known by its content
        config = tiny_config(
            task=task, output_path=str(tmp_path / "out"), train_data_path=str(tmp_path / "train"),
            valid_data_path=str(tmp_path / "valid"), seq_length=256, pad_length=80,
        )  # fmt: skip
        return replace(config, epochs=1, options=Options(tokenizer_path=str(GOLDEN / "hf_mha"), **options))

    return make


@pytest.mark.parametrize(
    ("samples", "split", "train", "valid"),
    [
        (1000, "98,2,0", range(980), range(980, 1000)),
        (11, "98,2,0", range(10), range(10, 11)),
        (1, "98,2,0", range(1), range(1, 1)),
        (2, "1,99,0", range(1), range(1, 2)),
        (11, "100", range(11), range(11, 11)),
        (100, "80,10,10", range(80), range(80, 90)),
    ],
)
def test_the_held_out_part_is_the_split_s_and_never_trained_on(samples, split, train, valid):
    assert json_split(samples, split) == (train, valid)


@pytest.mark.parametrize("packing", [False, True])
def test_pre_training_learns_and_evaluates_two_parts_of_the_file(configured, alone, packing):
    said = []
    data = json_run_data(configured("pretrain", SAMPLES, split="70,30,0", packing=packing), alone, said.append)
    assert "samples 1 to 8 of 11 are trained on, and 3 are held out (number 9 to 11, in the order of the file" in said[-1]
    assert said[-1].endswith("evaluated on every 100 iterations.")
    (begin,) = {int(row["tokens"][1]) for row in data.train}
    assert begin == 305, "`instruction`, the first piece of the original's prompt for pre-training"
    seen = [{i for group in part.groups for i in group} for part in (data.train, data.validation[0].data)]
    assert seen == [set(range(8)), {8, 9, 10}]
    (valid,) = data.validation
    assert valid.batches == valid.plan.batches_per_pass == -(-len(valid.data) // 2)


def test_pre_training_holds_out_a_part_of_each_of_several_files(configured, alone, tmp_path):
    config, said = configured("pretrain", SAMPLES, valid=SAMPLES[:4], split="70,30,0"), []
    source = parse_data(f"3 {tmp_path}/train 1 {tmp_path}/valid")
    data = json_run_data(replace(config, train_data=source), alone, said.append)
    assert [len(part) for part in data.train.parts] == [8, 3] and data.plan.blend.counts == (8, 3)
    assert [(part.name, len(part.data)) for part in data.validation] == [("train", 3), ("valid", 1)]
    assert f"{tmp_path}/valid: samples 1 to 3 of 4 are trained on" in "".join(said)


def test_every_batch_of_an_evaluation_has_something_learnt(configured, alone):
    """Two of 30 held-out samples teach something. Batches without them would show a loss of 0."""
    records = [*SAMPLES[:3], *[LONG] * 15, SAMPLES[0], *[EMPTY] * 13, SAMPLES[1]]
    data = json_run_data(configured("pretrain", records, split="10,90,0", eval_iters=1), alone, lambda _: None)
    (valid,) = data.validation
    assert [i for group in valid.data.groups for i in group] == [18, 32] and valid.batches == 1
    assert all(row["loss_mask"].any() for row in valid.data)


def test_a_template_can_be_chosen_for_pre_training_too(configured, alone):
    chosen = json_run_data(configured("pretrain", SAMPLES, template="alpaca"), alone, lambda _: None).train
    tuned = finetune_run_data(configured("finetune", SAMPLES), alone, lambda _: None).train
    assert all((chosen[i]["tokens"] == tuned[i]["tokens"]).all() for i in range(len(chosen)))


@pytest.mark.parametrize("task", ["finetune", "pretrain"])
def test_what_answers_end_in_is_said_once(configured, alone, task, tmp_path):
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copy(GOLDEN / "hf_mha" / name, tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    config, said = configured(task, SAMPLES), []
    config = replace(config, options=replace(config.options, tokenizer_path=str(tmp_path)))
    data = (finetune_run_data if task == "finetune" else json_run_data)(config, alone, said.append)
    assert sum("name different end tokens" in line for line in said) == 1
    assert data.train[0]["labels"][data.train[0]["loss_mask"] == 1][-1] == 5


@pytest.mark.parametrize("task", ["finetune", "pretrain"])
@pytest.mark.parametrize("records", [[LONG] * 3, [EMPTY] * 3, [LONG, EMPTY]], ids=["cut", "empty", "both"])
def test_nothing_to_learn_is_an_error_before_the_start(configured, alone, task, records):
    build = finetune_run_data if task == "finetune" else json_run_data
    words = "PAD_LEN of [0-9]+ .*keeps 95 % of them whole" if LONG in records else "have no answer that is not empty"
    with pytest.raises(UserError, match=rf"train: .*{words}"):
        build(configured(task, records), alone, lambda _: None)


def test_validation_without_anything_learnt_is_said_and_skipped(configured, alone):
    said = []
    data = finetune_run_data(configured("finetune", SAMPLES, valid=[LONG]), alone, said.append)
    assert data.validation == () and said[-1].endswith("Evaluation is skipped.")
    data = json_run_data(configured("pretrain", [*SAMPLES, LONG]), alone, said.append)
    assert data.validation == () and "Evaluation is skipped." in said[-1] and len(data.train) == 11


def test_one_file_for_both_parts_is_reported_once(configured, alone):
    said, config = [], configured("finetune", SAMPLES)
    finetune_run_data(replace(config, valid_data=config.train_data), alone, said.append)
    assert "11 samples in 11 sequences" in said[0] and len(said) == len(set(said))


def test_a_run_evaluates_on_what_it_held_out(tmp_path):
    """With LR 0 the validation loss is transformers' on the original's own ids and mask of the last record."""
    from transformers import AutoModelForCausalLM

    data = tmp_path / "data.txt"
    data.write_text("\n".join(json.dumps(SAMPLES[i], ensure_ascii=False) for i in (0, 1, 2, 7, 8)), encoding="utf-8")
    values = {
        **PRETRAIN_ARGUMENTS, "PRETRAIN_CHECKPOINT_PATH": convert(GOLDEN / "hf_gqa", tmp_path / "megatron"), "DATASET_PATH": data,
        "SEQ_LEN": 80, "PAD_LEN": 80, "LR": 0, "MIN_LR": 0, "GLOBAL_BATCH_SIZE": 2, "TRAIN_TOKENS": 4 * 2 * 80,
        "WARMUP_TOKENS": 0, "OUTPUT_BASEPATH": tmp_path / "out",
    }  # fmt: skip
    output = succeed(run_forked(PRETRAIN, *values.values(), "--num-workers", 0, "--eval-interval", 2, processes=1))
    assert "samples 1 to 4 of 5 are trained on, and 1 are held out (number 5," in output
    losses = scalars(tmp_path / "out", "lm loss validation")
    original = np.load(GOLDEN / "sft" / "pretrain_pad80.npz")
    ids, mask = (torch.from_numpy(original[key][8:9]) for key in ("input_ids", "loss_mask"))
    labels = ids.masked_fill(mask == 0, -100)
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_gqa", dtype=torch.float32)
    wanted = model(ids.masked_fill(ids == 800, 0), labels=labels).loss.item()
    assert losses == pytest.approx({2: wanted, 4: wanted}, rel=1e-5)


def test_a_script_ends_with_status_2_where_nothing_would_be_learnt(tmp_path):
    values = {
        **FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", "TRAIN_DATASET_PATH": GOLDEN / "sft" / "alpaca_output.json", "PAD_LEN": 4,
        "VALID_DATASET_PATH": GOLDEN / "sft" / "alpaca_output.json", "OUTPUT_BASEPATH": tmp_path,
    }  # fmt: skip
    result = run(FINETUNE, *values.values(), "--tokenizer-path", GOLDEN / "hf_mha", processes=1)
    assert result.returncode == 2, result.stdout[-3000:]
    assert "none of its 11 samples has an answer within 4 tokens, so there is nothing to learn" in result.stdout
    assert "Traceback" not in result.stdout and " iteration " not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("rank 0 was the first") and "elastic" not in result.stdout
