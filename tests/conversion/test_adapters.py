"""Adapters merged by the converter. The truth is PEFT's: its files, and the logits that it computed with them.

`tests/golden/adapter_gqa` was saved by peft 0.21.2 over hf_gqa in fp32: every linear layer, random A and B.
`peft_logits.safetensors` holds tokens [1, 40] and the last 8 rows of `PeftModel`'s logits. Other adapters are made of
it, and compared with float64.
"""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.cli import inspection
from megatron_patch.conversion.convert import convert
from megatron_patch.folders.adapter_base import base_of, find_adapter
from megatron_patch.weights.source import open_source
from megatron_patch.weights.table import BY_KEY, EMBEDDING, Place
from tests.launching import CONVERT, ENGINE, GOLDEN, PRETRAIN, run_forked, succeed, train
from tests.launching import convert as convert_by_script
from tests.weights.models import assert_same, read_hf

ADAPTER, BASE = GOLDEN / "adapter_gqa", GOLDEN / "hf_gqa"
CORPUS = GOLDEN / "data" / "corpus_text_document"
PREFIX = "base_model.model."


def adapter(folder, tensors=None, **changed):
    """The golden adapter with other tensors, and with other values in adapter_config.json."""
    folder.mkdir(parents=True)
    config = json.loads((ADAPTER / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(BASE)} | changed))
    save_file(tensors or load_file(ADAPTER / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    return folder


def merged(folder, **options):
    """What the converter makes of an adapter's folder: the Hugging Face tensors, in fp32."""
    convert(Conversion(folder, folder.parent / "merged", to_hf=True, **{"dtype": "float32"} | options))
    return read_hf(folder.parent / "merged")


def expected(folder, scale=6 / 4):
    """The same in float64, out of the files."""
    tensors = load_file(folder / "adapter_model.safetensors")
    wanted = {name: tensor.double() for name, tensor in read_hf(BASE).items()}
    wanted |= {
        name.removeprefix(PREFIX).replace(".base_layer", ""): t.double() for name, t in tensors.items() if "lora" not in name
    }
    for name, b in tensors.items():
        if ".lora_B" in name:
            weight = name.removeprefix(PREFIX).replace(".lora_B", "")
            wanted[weight] = wanted[weight] + scale * (b.double() @ tensors[name.replace("lora_B", "lora_A")].double())
    return wanted


def assert_near(got, wanted, **close):
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name].double(), tensor, **{"rtol": 1e-6, "atol": 1e-6} | close, msg=name)


def test_peft_s_logits_come_out_of_a_merged_folder(tmp_path):
    summary = convert(Conversion(ADAPTER, tmp_path / "hf", to_hf=True, base=BASE, dtype="float32", verify=True))
    assert summary.verified == 39 and "28 modules (rank 4, alpha 6) was merged into" in summary.notes[0]
    truth = load_file(ADAPTER / "peft_logits.safetensors")
    with torch.no_grad():
        got = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(truth["tokens"]).logits[:, -8:]
    torch.testing.assert_close(got, truth["logits"], rtol=0, atol=1e-5 * float(truth["logits"].abs().max()))
    assert_near(read_hf(tmp_path / "hf"), expected(ADAPTER))


def test_towards_megatron_from_a_megatron_base(tmp_path):
    """All four ways give the same bits: out of either base, straight or through a Megatron checkpoint."""
    wanted = merged(adapter(tmp_path / "own"))
    convert(Conversion(BASE, tmp_path / "base", to_hf=False))
    for name, base in (("a", None), ("b", tmp_path / "base")):
        target = tmp_path / f"megatron {name}"
        convert(Conversion(tmp_path / "own", target, to_hf=False, dtype="float32", base=base, verify=True))
        convert(Conversion(target, tmp_path / f"back {name}", to_hf=True))
        assert_same(read_hf(tmp_path / f"back {name}"), wanted)
    convert(Conversion(tmp_path / "own", tmp_path / "straight", to_hf=True, dtype="float32", base=tmp_path / "base"))
    assert_same(read_hf(tmp_path / "straight"), wanted)


def test_a_sum_is_rounded_once(tmp_path):
    """To bfloat16, whose half step is 2⁻⁸ at most; over float16, the base's dtype, some would be 2⁻⁸ + 2⁻¹¹ off."""
    got = merged(adapter(tmp_path / "own"), dtype="bfloat16")
    assert {tensor.dtype for tensor in got.values()} == {torch.bfloat16}
    assert_near(got, expected(tmp_path / "own"), rtol=2**-8 * (1 + 1e-4), atol=1e-7)


def test_modules_kept_whole_with_more_rows_and_rslora(tmp_path):
    """Three tokens were added; the output layer has an adapter and is kept whole, as PEFT writes that."""
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    tensors |= {
        PREFIX + "model.embed_tokens.weight": torch.randn(803, 64),
        PREFIX + "lm_head.base_layer.weight": torch.randn(803, 64),
    }
    tensors |= {PREFIX + "lm_head.lora_A.weight": torch.randn(4, 64), PREFIX + "lm_head.lora_B.weight": torch.randn(803, 4)}
    own = adapter(tmp_path / "own", tensors, use_rslora=True, modules_to_save=["embed_tokens"])
    shutil.copy(GOLDEN / "hf_mha/tokenizer_config.json", own / "tokenizer.json")
    assert_near(merged(own), expected(own, scale=6 / math.sqrt(4)))
    assert json.loads((tmp_path / "merged/config.json").read_text())["vocab_size"] == 803
    assert (tmp_path / "merged/tokenizer.json").exists() and not (tmp_path / "merged/tokenizer.model").exists()
    for given in (0, 3):  # EXTRA_VOCAB_SIZE: their number, or 0
        convert(Conversion(own, tmp_path / "megatron", to_hf=False, extra_vocab_size=given, overwrite=True))
        made = open_source(tmp_path / "megatron")
        assert made.extra_vocab_size == 3 and made.megatron(Place(BY_KEY[EMBEDDING], None)).shape[0] == 803
    with pytest.raises(ValueError, match="EXTRA_VOCAB_SIZE is 5, and the checkpoint was made with 3; write 3, or 0"):
        convert(Conversion(own, tmp_path / "other", to_hf=False, extra_vocab_size=5))


def test_a_training_run_s_checkpoint(tmp_path):
    """Trained by the script over a checkpoint with three more rows: merged, or written alone, as its files say.

    On one node a disk of its own has all of it.
    """
    lengths = {"TRAIN_TOKENS": 2 * 4 * 32, "WARMUP_TOKENS": 4 * 32, "EXTRA_VOCAB_SIZE": 3, "DATASET_PATH": CORPUS}
    base = convert_by_script(BASE, tmp_path / "base", extra=3)
    train(PRETRAIN, tmp_path / "out", "--lora-rank", 4, "--local-output", "true", PRETRAIN_CHECKPOINT_PATH=base, **lengths)
    (run,) = (tmp_path / "out/checkpoint").iterdir()
    own, given = run / "iter_0000002/adapter", (ENGINE, run)
    succeed(run_forked(CONVERT, *given, tmp_path / "hf", 1, 1, "auto", 0, "true", "--dtype", "float32"))
    assert_near(read_hf(tmp_path / "hf"), expected(own, scale=2))
    assert not torch.equal(read_hf(tmp_path / "hf")["lm_head.weight"][:800], read_hf(BASE)["lm_head.weight"].float())
    out = succeed(run_forked(CONVERT, *given, tmp_path / "alone", 1, 1, "auto", 0, "true", "--adapter-only", "--base", BASE))
    assert "peft.PeftModel.from_pretrained(base_model" in out
    assert_same(load_file(tmp_path / "alone/adapter_model.safetensors"), load_file(own / "adapter_model.safetensors"))
    config = json.loads((own / "adapter_config.json").read_text())
    assert json.loads((tmp_path / "alone/adapter_config.json").read_text()) == config | {"base_model_name_or_path": str(BASE)}
    convert(Conversion(own, tmp_path / "half", to_hf=True, adapter_only=True))
    convert(Conversion(run, tmp_path / "half", to_hf=True, adapter_only=True, dtype="bfloat16", overwrite=True))
    assert {tensor.dtype for tensor in read_hf(tmp_path / "half").values()} == {torch.bfloat16}
    shutil.rmtree(base)
    said = run_forked(CONVERT, *given, tmp_path / "gone", 1, 1, "auto", 0, "true").stdout
    assert "$2 SOURCE_CKPT_PATH" in said and "and there is no such folder here: write --base" in said
    with pytest.raises(ValueError, match="merge the two first, with model_convertor.sh"):
        open_source(run)
    shutil.rmtree(own)
    with pytest.raises(ValueError, match="no folder adapter, which a run on disks of its nodes' own does not write"):
        open_source(run)


def test_a_model_in_whose_folder_an_adapter_lies_is_the_model(tmp_path):
    folder = shutil.copytree(BASE, tmp_path / "model")
    own = shutil.copytree(ADAPTER, folder / "adapter")
    assert find_adapter(folder) is None
    assert find_adapter(own) == own and base_of(own, folder) == folder


def as_pickle(folder, content):
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_old_pickle_runs_nothing(tmp_path):
    own = adapter(tmp_path / "own")
    wanted, tensors = merged(own), load_file(own / "adapter_model.safetensors")
    as_pickle(own, tensors)
    assert_same(merged(own, overwrite=True), wanted)
    torch.save(tensors | {"more": Planted(tmp_path / "marker")}, own / "adapter_model.bin")
    with pytest.raises(ValueError, match="was refused and not run"):
        merged(own, overwrite=True)
    assert not (tmp_path / "marker").exists()


Q = PREFIX + "model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    "changed, config, said",
    [
        ({}, {"use_dora": True}, "asks for what is not computed here: use_dora = True"),
        ({}, {"bias": "all"}, "bias = 'all'"),
        ({}, {"rank_pattern": {"q_proj": 8}}, "rank_pattern = a dict"),
        ({}, {"a_later_idea": 3}, "a_later_idea = 3"),
        ({}, {"peft_type": "IA3"}, "only LORA is read"),
        ({}, {"base_model_name_or_path": ""}, "names no base: write --base"),
        ({}, {"base_model_name_or_path": str(ADAPTER)}, "is an adapter itself"),
        (
            {PREFIX + "model.layers.4.mlp.up_proj.lora_A.weight": (4, 64)},
            {},
            "lacks base_model.model.model.layers.4.mlp.up_proj.lora_B",
        ),
        ({PREFIX + "model.layers.0.mlp.c_fc.weight": (4, 64)}, {}, "does not have: model.layers.0.mlp.c_fc.weight"),
        ({Q + "magnitude_vector.weight": (64, 1)}, {}, "which is no matrix of a LoRA over linear layers"),
        ({Q + "A.weight": (4, 128)}, {}, r"q_proj.weight has shape \[64, 128\], and the model in .* has \[64, 64\]"),
        ({Q + "A.weight": (8, 64), Q + "B.weight": (64, 8)}, {}, "has rank 8, and adapter_config.json says 4"),
        ({PREFIX + "lm_head.weight": (803, 64)}, {}, "other numbers of rows"),
    ],
)
def test_what_cannot_be_merged_is_said(tmp_path, changed, config, said):
    tensors = load_file(ADAPTER / "adapter_model.safetensors") | {name: torch.ones(shape) for name, shape in changed.items()}
    with pytest.raises(ValueError, match=said):
        merged(adapter(tmp_path / "own", tensors, **config))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "source, to_hf, flags, said",
    [
        (BASE, "false", ["--base", BASE], "--base: got .*it goes with an adapter"),
        (ADAPTER, "false", ["--adapter-only"], "it is for mg2hf = true"),
        (ADAPTER, "true", ["--adapter-only", "--verify"], "it compares whole models"),
        (ADAPTER, "true", ["--base", "TARGET", "--overwrite"], "TARGET_CKPT_PATH: got .*; the base is in it, and must stay"),
        (ADAPTER, "true", ["--base", "/nowhere"], "--base: got '/nowhere'; there is no such folder"),
        (ADAPTER, "true", ["--base", BASE, "--verify-logits"], "holds an adapter: leave it out"),
    ],
)
def test_flags(tmp_path, source, to_hf, flags, said):
    target = shutil.copytree(BASE, tmp_path / "target") if "TARGET" in flags else tmp_path / "target"
    flags = [target if flag == "TARGET" else flag for flag in flags]
    result = run_forked(CONVERT, ENGINE, source, target, 1, 1, "auto", 0, to_hf, *flags)
    assert result.returncode == 2
    assert re.search(said, result.stdout), result.stdout


def test_inspection_says_what_it_is(tmp_path, capsys):
    assert inspection.main([str(ADAPTER)]) == 0
    said = capsys.readouterr().out
    assert "PEFT's LoRA, rank 4, alpha 6, scale 1.5" in said and "made over: hf_gqa, no folder here" in said
    assert "28 modules: " in said and "q_proj 4" in said and "types: torch.float32 (56)" in said
