"""Evaluation on indexed data against transformers: which samples each evaluation takes, and their mean loss."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import pytest
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from transformers import AutoModelForCausalLM

from megatron_patch.data.tokenizer import load_tokenizer
from tests.launching import GOLDEN, PRETRAIN, convert, scalars, train

CORPUS = GOLDEN / "data" / "corpus_text_document"
LENGTH, BATCH, STEPS, EVERY, BATCHES = 32, 4, 6, 2, 2
EVALUATIONS = STEPS // EVERY


def validation_samples(cache) -> torch.Tensor:
    """[evaluations · batches · 4, 33]: the validation samples that core deals out, in order."""
    config = GPTDatasetConfig(
        random_seed=1234, sequence_length=LENGTH, blend=([str(CORPUS)], None), split="50,50,0",
        tokenizer=load_tokenizer(GOLDEN / "hf_mha"), reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False, path_to_cache=str(cache),
    )  # fmt: skip
    # One evaluation more than there are: core is asked for one at the end beside those on the way.
    sizes = [STEPS * BATCH, (EVALUATIONS + 1) * BATCHES * BATCH, 0]
    _, data, _ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    rows = [torch.cat([data[i]["tokens"], data[i]["labels"][-1:]]) for i in range(EVALUATIONS * BATCHES * BATCH)]
    return torch.stack(rows)


def test_each_evaluation_goes_on_in_the_validation_data(tmp_path):
    """With a learning rate of 0 the model stays as it is, so only the samples make the losses differ."""
    samples = validation_samples(tmp_path / "cache").split(BATCHES * BATCH)
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_mha", dtype=torch.float32)
    with torch.no_grad():
        wanted = [
            torch.nn.functional.cross_entropy(model(part[:, :-1]).logits.flatten(0, 1), part[:, 1:].flatten()).item()
            for part in samples
        ]
    assert len(set(wanted)) == EVALUATIONS, "evaluations on the same samples could not be told apart"
    flags = ("--split", "50,50,0", "--eval-interval", EVERY, "--eval-iters", BATCHES)
    train(
        PRETRAIN, tmp_path / "out", *flags, DATASET_PATH=CORPUS, LR="0", MIN_LR="0", TRAIN_TOKENS=STEPS * BATCH * LENGTH,
        WARMUP_TOKENS=0, PRETRAIN_CHECKPOINT_PATH=convert(GOLDEN / "hf_mha", tmp_path / "megatron"),
    )  # fmt: skip
    got = scalars(tmp_path / "out", "lm loss validation")
    assert list(got) == [EVERY * place for place in range(1, EVALUATIONS + 1)]
    assert list(got.values()) == pytest.approx(wanted, rel=1e-5)
    (run,) = (tmp_path / "out/checkpoint").iterdir()
    assert (run / f"iter_{STEPS:07d}").is_dir(), "at the end a checkpoint, however long SAVE_INTERVAL is"
