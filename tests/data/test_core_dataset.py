"""megatron-core's GPTDataset on our pairs with our tokenizer: nothing that is data may be taken for padding."""

import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_patch.records.indexed import write_index


def test_every_label_counts_and_is_the_next_token(tokenizer, tmp_path):
    stream = np.random.default_rng(0).integers(0, 800, 4001).astype(np.uint16)  # with the special ids 0, 1 and 2
    stream.tofile(tmp_path / "pair.bin")
    with open(tmp_path / "pair.idx", "wb") as file:
        write_index(file, np.array([1500, 1, 2500], dtype=np.int32), stream.dtype)
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=100, blend=([str(tmp_path / "pair")], None), split="1,0,0",
        path_to_cache=str(tmp_path / "cache"), tokenizer=tokenizer, reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [None, None, None], lambda: True, config).build()[0]
    rows = [dataset[i] for i in range(len(dataset))]
    assert all(row["loss_mask"].min() == 1 for row in rows) and len(rows) == 40
    assert all((row["tokens"][1:] == row["labels"][:-1]).all() for row in rows)
    seen = np.concatenate([row["labels"].numpy() for row in rows])
    assert {0, 1, 2} <= set(seen.tolist()), "ids that a padding id could hide are there to be learnt"
