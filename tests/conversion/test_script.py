"""model_convertor.sh as users call it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from tests.launching import CONVERT, ENGINE, GOLDEN, PRETRAIN, ROOT, run, run_forked, succeed, without_torch
from tests.weights.models import assert_same, read_hf

HF = GOLDEN / "hf_gqa"


def test_documented_command_both_ways(tmp_path):
    """A path with spaces, quotes, `$`, `;`, a glob and Chinese in it; called from the script's own folder."""
    odd = tmp_path / "模型 a'b\"c; $HOME *"
    shell = {"shell": shutil.which("dash") or "sh", "cwd": CONVERT.parent}
    there = succeed(run(CONVERT, ENGINE, HF, odd / "megatron", 2, 2, "auto", 0, "false", "--verify", **shell))
    assert f"MEGATRON_PATH {ENGINE} does not exist; the installed megatron-core" in there
    assert "31 tensors, 39 compared with the source, 0.6 MB in 1 file," in there and "peak memory" in there
    offered, command = there.splitlines()[-2:]
    assert offered == "Next, with your own DATASET_PATH, OUTPUT_BASEPATH:"
    words = shlex.split(command)
    assert (
        words[1] == str(PRETRAIN)
        and len(words) == 26
        and words[22] == str(odd / "megatron")
        and words[12:16] == ["0", "bf16", "2", "2"]
    )
    assert (odd / "megatron/latest_checkpointed_iteration.txt").read_text() == "release"
    assert json.loads((odd / "megatron/release/model.json").read_text())["tensor_model_parallel_size"] == 2
    for source in (odd / "megatron", odd / "megatron/release"):
        back = odd / f"back of {source.name}"
        out = succeed(run(CONVERT, ENGINE, source, back, 1, 1, "auto", 0, "true", **shell))
        assert "AutoModelForCausalLM.from_pretrained" in out
        assert_same(read_hf(back), read_hf(HF))


def test_all_findings_at_once_without_torch(tmp_path):
    result = run(CONVERT, ENGINE, "/nowhere", "", 0, "two", "llama-8b", -1, "yes", job=without_torch(tmp_path))
    assert result.returncode == 2 and "7 argument errors" in result.stdout
    for label in ("$2 SOURCE_CKPT_PATH", "$3 TARGET_CKPT_PATH", "$4 TP", "$5 PP", "$6 MN", "$7 EXTRA_VOCAB_SIZE", "$8 mg2hf"):
        assert label in result.stdout


def test_wrong_count_prints_the_list():
    result = run(CONVERT, ENGINE, HF)
    assert result.returncode == 2 and "TARGET_CKPT_PATH=$3" in result.stdout and "takes 8 arguments and got 2" in result.stdout


@pytest.mark.parametrize(
    "tp, pp, name, extra, said",
    [
        (4, 1, "auto", 0, "$4 TP: got '4'; it must divide the 2 KV groups: write one of 1, 2."),
        (1, 3, "auto", 0, "$5 PP: got '3'; it must divide the 4 layers: write one of 1, 2, 4."),
        (1, 1, "llama2-7b", 0, "$6 MN: got 'llama2-7b'; num_layers is 4 where that size has 32"),
    ],
)
def test_what_does_not_go_with_the_model(tmp_path, tp, pp, name, extra, said):
    result = run_forked(CONVERT, ENGINE, HF, tmp_path / "target", tp, pp, name, extra, "false")
    assert result.returncode == 2 and said in result.stdout, result.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--dtype", "fp8"], "--dtype: got 'fp8'; it takes one of bfloat16, float16, float32"),
        (["--max-shard-size", "big"], "it takes a size such as 5GB or 500MB"),
        (["--no-such-flag"], "--no-such-flag: got '--no-such-flag'; there is no such flag: remove it"),
    ],
)
def test_flags(tmp_path, flags, said):
    result = run_forked(CONVERT, ENGINE, HF, tmp_path / "target", 1, 1, "auto", 0, "false", *flags)
    assert result.returncode == 2 and said in result.stdout


def test_source_inside_the_target(tmp_path):
    folder = shutil.copytree(HF, tmp_path / "all/hf")
    result = run_forked(CONVERT, ENGINE, folder, tmp_path / "all", 1, 1, "auto", 0, "false", "--overwrite")
    assert result.returncode == 2 and "the source is in it, and must stay" in result.stdout


def test_arguments_are_checked_without_torch():
    code = "import megatron_patch.cli.convert, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_verify_logits(tmp_path):
    out = succeed(run_forked(CONVERT, ENGINE, HF, tmp_path / "megatron", 1, 1, "auto", 32, "false", "--verify-logits"))
    assert "Logits agree with transformers' to" in out


def test_verify_logits_finds_another_models_config(tmp_path):
    """Weights are carried over bit for bit; the rotary base that they were trained with is not in them."""
    convert(Conversion(HF, tmp_path / "megatron", to_hf=False))
    description = tmp_path / "megatron/release/model.json"
    content = json.loads(description.read_text())
    content["model"]["rotary_base"] = 20000.0
    description.write_text(json.dumps(content))
    with pytest.raises(UserError, match="logits differ by up to"):
        convert(Conversion(tmp_path / "megatron", tmp_path / "back", to_hf=True, verify_logits=True))
    assert not (tmp_path / "back").exists()
