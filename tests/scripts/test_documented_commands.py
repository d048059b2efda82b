"""The document's commands, argument for argument, under dash; only paths and MODEL_SIZE are changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from megatron_patch.folders.engine import installed_version
from tests.launching import (
    AS_USERS_HAVE_IT,
    CONVERT,
    ENGINE,
    FINETUNE,
    GOLDEN,
    PRETRAIN,
    ROOT,
    library_warnings,
    long_model,
    run,
    scalars,
    succeed,
)  # fmt: skip

LINE = re.compile(
    r"^ \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\] iteration +(\d+)/ *(\d+) \| consumed samples: +(\d+) \|"
    r" elapsed time per iteration \(ms\): [\d.]+ \| throughput per GPU \(TFLOP/s/GPU\): [\d.]+ \|"
    r" tokens per second per GPU: \d+ \| learning rate: (\d\.\d{6}E-\d\d) \| global batch size: +(\d+) \|"
    r" lm loss: (\d\.\d{6}E[+-]\d\d) \| loss scale: ([\d.]+) \| grad norm: ([\d.]+) \|"
    r" number of skipped iterations: +(\d+) \| number of nan iterations: +(\d+) \|$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A workspace whose path has a space, a quote, `$(touch pwned)` and Chinese in it, with data and a model."""
    folder = tmp_path_factory.mktemp("w") / "工作 区's $(touch pwned)"
    (folder / "llama2-datasets" / "wudao").mkdir(parents=True)
    for suffix in (".bin", ".idx"):
        source = GOLDEN / "data" / ("corpus_text_document" + suffix)
        shutil.copy(source, folder / "llama2-datasets" / "wudao" / ("wudao_llamabpe_text_document" + suffix))
    for name in ("wudao_train.json", "wudao_valid.json"):
        shutil.copy(GOLDEN / "sft" / "alpaca_output.json", folder / "llama2-datasets" / name)
    return folder


@pytest.fixture(scope="module")
def converted(work) -> Path:
    """The document's conversion, `cd` and all, of a model for its 2048 positions."""
    source = long_model(work / "llama2-ckpts" / "llama2-7b-hf")
    target = work / "llama2-ckpts" / "llama2-7b-hf-to-megatron-tp1-pp1"
    output = succeed(run(CONVERT, ENGINE, source, target, 1, 1, "auto", 0, "false", cwd=CONVERT.parent))
    assert f"MEGATRON_PATH {ENGINE} does not exist; the installed megatron-core {installed_version()} is used" in output
    return target


def logged(output: str) -> list[re.Match]:
    return list(LINE.finditer(output))


def test_pretraining_as_documented(work, converted):
    arguments = [
        "dsw", ENGINE, ROOT, "auto", 1, 8, "1e-5", "1e-6", 2048, 80, 0, "fp16", 1, 1, "sel", "true", "false", "false", 100000,
        work / "llama2-datasets/wudao/wudao_llamabpe_text_document", converted, 100000000, 10000,
        f"{work}/output_megatron_llama2/",
    ]  # fmt: skip
    output = succeed(run(PRETRAIN, *arguments, "--exit-interval", 1, cwd=PRETRAIN.parent))
    (first,) = logged(output)
    assert first.groups()[:3] == ("1", "6103", "8") and first[5] == "8"
    assert first[7] == "65536.0" and first[9] == "0"
    # 10000 warm-up tokens are less than one iteration of 16384, so the first one has the whole learning rate.
    assert first[4] == "1.000000E-05"
    name = (
        "dsw-pretrain-megatron-llama-auto-lr-1e-5-bs-1-seqlen-2048-pr-fp16-tp-1-pp-1-ac-sel-do-true-sp-false"
        "-tt-100000000-wt-10000"
    )
    folder = work / "output_megatron_llama2"
    assert (folder / "checkpoint" / name / "latest_checkpointed_iteration.txt").read_text() == "1"
    (log,) = (folder / "log").glob(f"{name}_*/train.log")
    assert [match[0] for match in logged(log.read_text())] == [first[0]]
    for tag in ("lm loss", "learning-rate", "batch-size", "loss-scale", "grad-norm", "iteration-time"):
        assert set(scalars(folder, tag)) == {1}
        assert set(scalars(folder, f"{tag} vs samples")) == {8}
    assert set(scalars(folder, "throughput")) == set(scalars(folder, "mem-max-allocated-bytes")) == {1}
    assert not list(Path.cwd().glob("pwned")) and not (PRETRAIN.parent / "pwned").exists()


def test_finetuning_as_documented(work, converted):
    arguments = [
        "dsw", ENGINE, ROOT, "auto", 1, "1e-5", "1e-6", 2048, 80, 0, "bf16", 1, 1, "sel", "true", "false", "false",
        work / "llama2-datasets/wudao_train.json", work / "llama2-datasets/wudao_valid.json", converted, 2,
        f"{work}/output_megatron_llama2/",
    ]  # fmt: skip
    output = succeed(run(FINETUNE, *arguments, cwd=FINETUNE.parent, job=AS_USERS_HAVE_IT))
    assert library_warnings(output) == []
    assert re.findall(r"iteration +(\d+)/ +22 \|", output) == [str(number) for number in range(1, 23)]
    # A prompt that fills PAD_LEN and an empty answer teach nothing, once an epoch each; their lines leave the loss out.
    assert len(logged(output)) == 18
    assert "2 of 11 samples are longer than 80 tokens and were cut" in output
    name = "dsw-finetune-megatron-llama-auto-lr-1e-5-ep-2-bs-1-seqlen-2048-pr-bf16--do-true-tp-1-ac-sel-sp-false"
    folder = work / "output_megatron_llama2" / "checkpoint" / name
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == "22"
    assert (folder / "iter_0000011").is_dir() and (folder / "iter_0000022").is_dir()
    recorded = json.loads((folder / "iter_0000022" / "run_config.json").read_text())
    assert recorded["epochs"] == 2 and recorded["pad_length"] == 80
    assert len(re.findall(r"validation loss at iteration (11|22) \| lm loss value", output)) == 2


@pytest.mark.parametrize("change", [dict(PR="bf16", SP="true", TP=2), dict(PR="fp16", PP=2, FL="true", AC="full")])
def test_extra_vocabulary_and_another_layout_than_the_conversion_s(change, work, tmp_path):
    from tests.launching import convert, train

    megatron = convert(GOLDEN / "hf_gqa", tmp_path / "gqa", tp=1, pp=2, extra=8)
    got = train(
        PRETRAIN, tmp_path / "out", processes=2, EXTRA_VOCAB_SIZE=8, PRETRAIN_CHECKPOINT_PATH=megatron,
        DATASET_PATH=work / "llama2-datasets/wudao/wudao_llamabpe_text_document", DO="true", **change,
    )  # fmt: skip
    assert len(got) == 20 and got[-1].loss < got[0].loss - 0.5
