"""A run that was stopped and started again learns the same, bit for bit, as one that never stopped."""

from __future__ import annotations

import pytest

from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, run, succeed, train

CORPUS = GOLDEN / "data" / "corpus_text_document"
LAYOUTS = {
    "DP2 with DO": dict(processes=2, DO="true"),
    "DP2 TP2 with DO in bf16": dict(processes=4, TP=2, DO="true", PR="bf16"),
    "TP2 PP2": dict(processes=4, TP=2, PP=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_after_a_stop_are_the_same_bits(layout, tmp_path):
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, **LAYOUTS[layout])
    whole = train(PRETRAIN, tmp_path / "whole", **arguments)
    first = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 10, **arguments)
    assert len(whole) == 20 and first == whole[:10]
    both = train(PRETRAIN, tmp_path / "parts", **arguments)
    assert both[10:] == whole[10:]


def test_optimizer_state_moves_to_another_number_of_replicas(tmp_path):
    """Sharded over three processes, whose parts end amid rows, then over two, then over one."""
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, DO="true", GLOBAL_BATCH_SIZE=6, TRAIN_TOKENS=12 * 6 * 32)
    whole = train(PRETRAIN, tmp_path / "whole", processes=1, **arguments)
    for processes in (3, 2, 1):
        parts = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 4, processes=processes, **arguments)
    assert len(parts) == len(whole) == 12
    assert [step.loss for step in parts] == pytest.approx([step.loss for step in whole], rel=1e-5)


def test_a_run_of_the_same_name_with_other_arguments_is_refused(tmp_path):
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, OUTPUT_BASEPATH=tmp_path)
    first = {**PRETRAIN_ARGUMENTS, **arguments}
    succeed(run(PRETRAIN, *first.values(), "--num-workers", 0, "--exit-interval", 1, processes=1))
    other = run(PRETRAIN, *{**first, "MIN_LR": "1e-5"}.values(), processes=1)
    assert other.returncode == 2
    assert "min_lr was 0.0001 and is 1e-05" in other.stdout
