"""LoRA learns what peft over transformers learns, in every layout, and its checkpoints are PEFT's folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.trained_model import TrainedModel
from megatron_patch.config import PER_KV_HEAD
from megatron_patch.evaluate.scoring import score_file
from megatron_patch.evaluate.sequences import SFT, Reading
from megatron_patch.formats.distcp_metadata import read_dcp_metadata
from megatron_patch.formats.peft_adapter import TARGETS
from megatron_patch.generate.ranks import alone
from megatron_patch.generate.trained import open_model
from megatron_patch.weights.table import BY_KEY
from tests.launching import FINETUNE, GOLDEN, Step, convert, train
from tests.train.test_finetuning_against_hugging_face import BATCH, EPOCHS, LR, MIN_LR, RECORDS, rows, steps_of

peft, optimizers = pytest.importorskip("peft"), pytest.importorskip("peft.optimizers")

EXTRA = 6
# What varies beside the layout: rank, alpha, LoRA+'s ratio, the linear layers, extra rows of vocabulary.
CASES = {
    "one process": (dict(AC="full"), 4, 8, 1, TARGETS, 0),
    "TP2 SP": (dict(processes=2, TP=2, SP="true"), 3, 12, 1, ("q_proj", "v_proj", "down_proj"), 0),
    "TP2, new rows": (dict(processes=2, TP=2), 4, 8, 1, TARGETS, EXTRA),
    "PP2": (dict(processes=2, PP=2), 8, 8, 8, ("k_proj", "o_proj", "up_proj"), 0),
    "DP2 with DO": (dict(processes=2, DO="true", BATCH_SIZE=1), 4, 4, 4, ("o_proj", "gate_proj", "up_proj"), 0),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
    path = tmp_path_factory.mktemp("data") / "data.json"
    path.write_text(json.dumps([records[number] for number in RECORDS], ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[int, Path]:
    """Extra rows of vocabulary → the converted model with so many."""
    folder = tmp_path_factory.mktemp("base")
    return {extra: convert(GOLDEN / "hf_gqa", folder / str(extra), extra=extra) for extra in (0, EXTRA)}


def original(extra: int) -> torch.nn.Module:
    """The Hugging Face folder's model, its vocabulary grown by mean rows."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_gqa", dtype=torch.float32)
    if extra:
        rows = model.get_input_embeddings().weight.shape[0]
        means = [matrix.weight.detach().mean(0) for matrix in (model.get_input_embeddings(), model.lm_head)]
        model.resize_token_embeddings(rows + extra, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[rows:], model.lm_head.weight[rows:] = means
    return model


def reference(folder: Path, ratio: float) -> tuple[list[Step], torch.nn.Module]:
    """peft's own steps from the adapter in `folder`, with torch's AdamW, and the model that they leave.

    A `ratio` other than 1 is LoRA+'s, as peft groups its parameters.
    """
    extra = EXTRA if "modules_to_save" in (folder / "adapter_config.json").read_text() and _saves(folder) else 0
    model = peft.PeftModel.from_pretrained(original(extra), folder, is_trainable=True)
    recipe = dict(lr=LR, betas=(0.9, 0.95), eps=1e-8)
    if ratio == 1:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, weight_decay=0.1, **recipe)
    else:
        optimizer = optimizers.create_loraplus_optimizer(
            model, torch.optim.AdamW, loraplus_lr_ratio=ratio, loraplus_weight_decay=0.1, **recipe
        )
    return steps_of(model, optimizer), model


def _saves(folder: Path) -> bool:
    return bool(json.loads((folder / "adapter_config.json").read_text())["modules_to_save"])


def checkpoint(output: Path) -> Path:
    """The last iteration's folder below OUTPUT_BASEPATH."""
    return max((output / "checkpoint").glob("*/iter_*"))


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_agree_and_peft_reads_what_they_leave(case, data, base, tmp_path):
    arguments, rank, alpha, ratio, targets, extra = CASES[case]
    torch.manual_seed(5)
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]} if extra else {}
    form = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False, **saved
    )
    peft.get_peft_model(original(extra), form).save_pretrained(tmp_path / "adapter")
    got = train(
        FINETUNE, tmp_path / "out", "--lora-adapter", tmp_path / "adapter", "--lora-plus-ratio", ratio,
        TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, LR=LR, MIN_LR=MIN_LR, EPOCH=EPOCHS,
        PRETRAIN_CHECKPOINT_PATH=base[extra], EXTRA_VOCAB_SIZE=extra,
        **{"BATCH_SIZE": BATCH, **arguments},
    )  # fmt: skip
    wanted, trained = reference(tmp_path / "adapter", ratio)
    assert len(got) == len(wanted) == 21 and wanted[-1].loss < wanted[0].loss - 0.5
    for step, (ours, theirs) in enumerate(zip(got, wanted), start=1):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5), f"loss of step {step}"
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4), f"gradient norm of step {step}"
    ours = peft.PeftModel.from_pretrained(original(extra), checkpoint(tmp_path / "out") / "adapter")
    tokens, mask = rows()
    with torch.no_grad():
        logits, truth = ours(input_ids=tokens).logits, trained(input_ids=tokens).logits
    assert (logits - truth).abs().max() < 1e-5 * truth.abs().max()
    assert ours.peft_config["default"].target_modules == set(targets)
    losses = torch.nn.functional.cross_entropy(truth[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    wanted_loss = float((losses * mask[:, 1:]).sum() / mask[:, 1:].sum())
    assert evaluated(checkpoint(tmp_path / "out").parent, data) == pytest.approx(wanted_loss, rel=1e-5)


def evaluated(root: Path, data: Path) -> float:
    """What evaluation says of a LoRA run's checkpoint: the adapter is merged as it is read."""
    opened = open_model(TrainedModel(root, root, None, "fp32", 1, 1, PER_KV_HEAD), alone("cpu"), lambda _: None)
    return score_file(opened.decoder(0, 0), str(data), SFT, Reading(opened.tokenizer, 128, 80, 8, "alpaca", 0.0), 3).loss


def test_a_run_goes_on_in_another_layout_with_the_same_dropout(data, base, tmp_path):
    """What is dropped follows from a sample's place in the run: neither from processes nor from micro-batches."""
    arguments = dict(TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, EPOCH=2, PRETRAIN_CHECKPOINT_PATH=base[0])
    flags, two = ("--lora-rank", 4, "--lora-dropout", 0.2), dict(processes=2, TP=2, SP="true", BATCH_SIZE=BATCH)
    whole = train(FINETUNE, tmp_path / "whole", *flags, **two, **arguments)
    parts, halves = (tmp_path / "parts", *flags), ("--gradient-accumulation-steps", 2)
    assert train(FINETUNE, *parts, "--exit-interval", 4, **two, **arguments) == whole[:4]
    saved = checkpoint(tmp_path / "parts")
    rest = train(FINETUNE, *parts, "--resume-from", saved, *halves, AC="full", BATCH_SIZE=BATCH // 2, **arguments)[4:]
    assert len(whole) == 6
    assert [step.loss for step in rest] == pytest.approx([step.loss for step in whole[4:]], rel=1e-5)
    stored = read_dcp_metadata(checkpoint(tmp_path / "whole")).state_dict_metadata.keys()
    # The frozen weights are the base's, and in no checkpoint of the run.
    assert any(key.endswith("linear_qkv.lora_a") for key in stored) and not stored & BY_KEY.keys()
