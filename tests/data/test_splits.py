"""Shares of indexed data: core's index builder looks for ever for an epoch of a part that has no token."""

import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import pytest

from megatron_patch.data.indexed_pretrain import indexed_run_data
from megatron_patch.data.splits import usable_split
from megatron_patch.errors import UserError
from tests.data.test_pretrain import ALONE, write_pair
from tests.tiny import tiny_config


def built(prefix, output):
    """The data of a run and what it says; only for splits that `usable_split` was seen to mend."""
    said = []
    return indexed_run_data(tiny_config(train_data_path=prefix, output_path=str(output)), ALONE, said.append), said


def test_documents_without_tokens_are_no_validation_data(tmp_path):
    prefix = write_pair(tmp_path / "pair", [50] * 98 + [0, 0])
    assert usable_split("98,2,0", [prefix]) == "98,0,0"
    data, said = built(prefix, tmp_path / "out")
    assert data.validation == () and said == ["  the split 98,2,0 leaves no validation data; evaluation is skipped"]
    assert len(data.train) * 16 + 1 >= 4 * 2 * 16


def test_one_token_is_enough_for_a_part_and_is_said(tmp_path):
    prefix = write_pair(tmp_path / "pair", [50] * 98 + [0, 1])
    data, said = built(prefix, tmp_path / "out")
    assert set(data.validation[0].data[0]["tokens"].tolist()) == {(50 * 98) % 700 + 3}
    few = "the split 98,2,0 gives validation 1 token, fewer than one sample of 17, so each sample repeats them"
    assert said == [f"  {prefix}: {few}"]


def test_a_part_whose_epochs_would_fill_the_memory_is_none(tmp_path):
    """1,000 samples of 2,048 tokens from one token (and 100,000 empty documents) would be 2 million epochs."""
    prefix = write_pair(tmp_path / "pair", [50] * 1_000_000 + [0] * 100_000 + [1])
    asked = dict(sequence_length=2048, samples=(1000, 1000, 0))
    assert usable_split("10,1,0", [prefix], **asked) == "10,0,0"
    with pytest.raises(UserError, match="the 100000 documents .* to training hold 1 token, too few for"):
        usable_split("1,10,0", [write_pair(tmp_path / "other", [1] + [0] * 99_999 + [50] * 1_000_000)], **asked)


def test_shares_are_rounded_as_core_rounds_them(tmp_path):
    """Half of three documents are two, so that validation has the empty one alone."""
    assert usable_split("50,50,0", [write_pair(tmp_path / "pair", [50, 50, 0])]) == "50,0,0"


def test_in_a_blend_each_part_needs_tokens(tmp_path):
    whole, empty = write_pair(tmp_path / "whole", [50] * 100), write_pair(tmp_path / "empty", [50] * 98 + [0, 0])
    assert usable_split("98,2,0", [whole, empty]) == "98,0,0"
    with pytest.raises(UserError, match="empty: the 2 documents that the split 0.2,1,0"):
        usable_split("0.2,1,0", [whole, write_pair(tmp_path / "empty", [0] * 2 + [50] * 10)])


def test_no_token_for_training_is_an_error(tmp_path):
    prefix = write_pair(tmp_path / "pair", [0] * 98 + [50, 50])
    with pytest.raises(UserError, match="pair: the 98 documents that the split 98,2,0 gives to training hold no tokens"):
        usable_split("98,2,0", [prefix])
    nothing = write_pair(tmp_path / "nothing", [0] * 100)
    with pytest.raises(ValueError, match="nothing.idx lists no tokens"):
        usable_split("98,2,0", [nothing])


def test_what_is_left_of_a_split_is_looked_at_again(tmp_path):
    """Without the test part, validation begins at document 5 of 10 instead of 4, and that one alone had tokens."""
    prefix = write_pair(tmp_path / "pair", [50] * 4 + [50] + [0] * 5)
    assert usable_split("4.4,4,1.6", [prefix]) == "4.4,0,0"


@pytest.mark.parametrize("split", ["98000000,2000000,0", "0.0000098,0.0000002", "98e6,2e6,0"])
def test_shares_of_any_size_reach_core_as_they_are(tmp_path, split):
    """core reads digits and points only: 9.8e+07 would be four shares."""
    prefix = write_pair(tmp_path / "pair", [50] * 100)
    config = tiny_config(train_data_path=prefix, output_path=str(tmp_path / "out"))
    object.__setattr__(config.options, "split", split)
    data = indexed_run_data(config, ALONE, pytest.fail)
    assert (data.train.indices.tolist(), data.validation[0].data.indices.tolist()) == (list(range(98)), [98, 99])
