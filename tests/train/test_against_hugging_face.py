"""Twenty steps of every layout learn what LlamaForCausalLM learns from the same weights and batches."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.launching import GOLDEN, PRETRAIN, Step, convert, train

STEPS, WARMUP, LENGTH, BATCH = 20, 2, 32, 4
LR, MIN_LR = 1e-3, 1e-4
CORPUS = GOLDEN / "data" / "corpus_text_document"

LAYOUTS = {
    "one process": dict(processes=1),
    "TP2": dict(processes=2, TP=2),
    "PP2": dict(processes=2, PP=2),
    "DP2 with DO": dict(processes=2, DO="true"),
    "TP2 with SP": dict(processes=2, TP=2, SP="true"),
    "TP2 PP2 with DO and SP": dict(processes=4, TP=2, PP=2, DO="true", SP="true"),
    "AC full": dict(processes=1, AC="full", FL="true"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """The golden models in Megatron form, converted at another layout than any run's."""
    folder = tmp_path_factory.mktemp("megatron")
    return {name: convert(GOLDEN / name, folder / name, tp=2, pp=4) for name in ("hf_mha", "hf_gqa")}


@functools.lru_cache
def batches() -> list[torch.Tensor]:
    """The global batches [4, 33] that core's GPTDataset deals out, in order."""
    import megatron_patch.core.device  # noqa: F401, I001
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from megatron_patch.data.tokenizer import load_tokenizer

    config = GPTDatasetConfig(
        random_seed=1234, sequence_length=LENGTH, blend=([str(CORPUS)], None), split="98,2,0",
        tokenizer=load_tokenizer(GOLDEN / "hf_mha"), reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, create_attention_mask=False, path_to_cache=tempfile.mkdtemp(),
    )  # fmt: skip
    data, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [STEPS * BATCH, 0, 0], lambda: True, config).build()
    rows = [torch.cat([data[i]["tokens"], data[i]["labels"][-1:]]) for i in range(STEPS * BATCH)]
    return list(torch.stack(rows).split(BATCH))


def learning_rate(step: int) -> float:
    """Linear warm-up from 0, then linear decay; `step` counts from 0."""
    if step <= WARMUP:
        return LR * step / WARMUP
    return MIN_LR + (LR - MIN_LR) * (STEPS - step) / (STEPS - WARMUP)


@functools.lru_cache
def reference(name: str | Path) -> list[Step]:
    """Of a golden folder by name, or of another by its path.

    transformers and torch, the recipe written out: AdamW 0.9/0.95, decay 0.1 but not on norms, clip 1.0."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    found = []
    for step, batch in enumerate(batches()):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(Step(loss.item(), norm.item()))
    return found


@pytest.mark.parametrize("model", ["hf_mha", "hf_gqa"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_steps_agree(layout, model, checkpoints, tmp_path):
    got = train(PRETRAIN, tmp_path / "out", DATASET_PATH=CORPUS, PRETRAIN_CHECKPOINT_PATH=checkpoints[model], **LAYOUTS[layout])
    wanted = reference(model)
    assert len(got) == STEPS
    assert wanted[-1].loss < wanted[0].loss - 0.5, "the reference itself must learn, or agreement says little"
    for step, (ours, theirs) in enumerate(zip(got, wanted), start=1):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4), f"loss of step {step}"
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3), f"gradient norm of step {step}"


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 4.0}, {"type": "dynamic", "factor": 2.0}])
def test_twenty_steps_agree_with_scaled_positions(scaling, tmp_path):
    """Rows of 32 tokens on a model for 24 positions, so that dynamic scaling does something."""
    folder = shutil.copytree(GOLDEN / "hf_gqa", tmp_path / "hf")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"rope_scaling": scaling, "max_position_embeddings": 24}))
    model = convert(folder, tmp_path / "megatron")
    got = train(PRETRAIN, tmp_path / "out", DATASET_PATH=CORPUS, PRETRAIN_CHECKPOINT_PATH=model, processes=1)
    assert [step.loss for step in got] == pytest.approx([step.loss for step in reference(folder)], rel=1e-4)
    assert abs(got[-1].loss - reference("hf_gqa")[-1].loss) > 1e-3, "the scaling must be there, or agreement says little"
    (run,) = (tmp_path / "out/checkpoint").iterdir()
    back = json.loads((convert(run, tmp_path / "back", back=True) / "config.json").read_text())
    assert back["rope_scaling"] == scaling and back["max_position_embeddings"] == 24
