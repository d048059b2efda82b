"""What a global batch is cut into, and how its rows are padded, changes nothing that is learnt."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.launching import FINETUNE, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, convert, run_forked, scalars, succeed, train

CORPUS = GOLDEN / "data" / "corpus_text_document"
ROW = 160  # PAD_LEN, which no sample exceeds


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    """Samples of unequal length; the longest have 100 characters in a field."""
    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("sft") / "samples.json"
    path.write_text(json.dumps([{name: text and text[:100] for name, text in one.items()} for one in records]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model for rows of 512 tokens."""
    folder = tmp_path_factory.mktemp("megatron")
    source = shutil.copytree(GOLDEN / "hf_gqa", folder / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return convert(source, folder / "gqa")


@pytest.fixture
def finetune(sft, checkpoint):
    def run(output, *flags, **changed):
        paths = dict(TRAIN_DATASET_PATH=sft, VALID_DATASET_PATH=sft, PRETRAIN_CHECKPOINT_PATH=checkpoint, SEQ_LEN=512)
        return train(FINETUNE, output, *flags, **{**paths, "PAD_LEN": ROW, **changed})

    return run


def assert_same(got, wanted):
    assert len(got) == len(wanted) > 1
    for ours, theirs in zip(got, wanted):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)


def test_accumulation_data_parallelism_and_padding_do_not_change_learning(finetune, tmp_path):
    whole = finetune(tmp_path / "whole", BATCH_SIZE=4)
    assert len(whole) == 2 * 3, "11 samples in batches of 4: the last, incomplete one is trained on too"
    assert_same(finetune(tmp_path / "replicas", processes=2, BATCH_SIZE=2), whole)
    parts = finetune(tmp_path / "parts", "--gradient-accumulation-steps", 4, BATCH_SIZE=1)
    assert_same(parts, whole)
    assert_same(finetune(tmp_path / "padded", BATCH_SIZE=4, PAD_LEN=ROW + 16), whole)


def test_accumulation_equals_one_micro_batch(sft, checkpoint, tmp_path):
    """Samples of unequal length as pre-training data, where GLOBAL_BATCH_SIZE and BATCH_SIZE differ."""
    common = dict(
        DATASET_PATH=sft, PRETRAIN_CHECKPOINT_PATH=checkpoint, SEQ_LEN=512, PAD_LEN=ROW,
        TRAIN_TOKENS=6 * 4 * 512, WARMUP_TOKENS=0,
    )  # fmt: skip
    whole = train(PRETRAIN, tmp_path / "whole", BATCH_SIZE=4, **common)
    assert_same(train(PRETRAIN, tmp_path / "parts", BATCH_SIZE=1, **common), whole)


def test_validation_takes_every_sample_once(finetune, tmp_path):
    """The mean over the file's learnt tokens, which batches of another size give too."""
    losses = []
    for size in (3, 4):
        output = tmp_path / str(size)
        finetune(output, BATCH_SIZE=size, LR="0", MIN_LR="0", EPOCH=1)
        losses.append(scalars(output, "lm loss validation"))
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-6)


def test_packing_gives_the_same_loss_per_token(finetune, tmp_path):
    """Several samples in a row, attention kept apart and positions restarted, against one sample a row."""
    losses = []
    for name, flags in (("apart", ()), ("packed", ("--packing",))):
        finetune(tmp_path / name, *flags, BATCH_SIZE=2, LR="0", MIN_LR="0", EPOCH=1)
        losses += scalars(tmp_path / name, "lm loss validation").values()
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_an_empty_validation_split_is_said_and_skipped(tmp_path):
    values = {**PRETRAIN_ARGUMENTS, "MODEL_SIZE": "tiny", "DATASET_PATH": CORPUS, "OUTPUT_BASEPATH": tmp_path}
    flags = ["--split", "100,0,0", "--eval-interval", 1, "--exit-interval", 2, "--num-workers", 0]
    output = succeed(run_forked(PRETRAIN, *values.values(), *flags, processes=1))
    assert "the split 100,0,0 leaves no validation data; evaluation is skipped" in output
    assert "validation loss" not in output


def test_a_weighted_blend_of_indexed_data_trains(tmp_path):
    for name in ("one", "two"):
        for suffix in (".bin", ".idx"):
            shutil.copy(f"{CORPUS}{suffix}", tmp_path / f"{name}{suffix}")
    blend = f"0.3 {tmp_path / 'one'} 0.7 {tmp_path / 'two'}"
    got = train(PRETRAIN, tmp_path / "out", MODEL_SIZE="tiny", DATASET_PATH=blend, processes=2, DO="true")
    assert len(got) == 20 and got[-1].loss < got[0].loss - 0.5
