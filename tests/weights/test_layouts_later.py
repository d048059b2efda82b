"""The original's layouts from 2023-09 to 2024-04: files that it wrote, and the same layouts at other TP and PP."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.formats.structure_2023 import read_vocabulary_rows
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN
from tests.weights.models import assert_same, hf_tensor, read_hf
from tests.weights.original import STYLES, Written, write_original
from tests.weights.test_megatron_2023 import change

RIGHT = [
    "converted/90ce090/mha_tp2_pp2",
    "converted/cc076a0/gqa8_tp1_pp1",
    "converted/cc076a0/gqa8_tp2_pp2",
    "converted/mcore70b/2052ddb/gqa8_tp2_pp1",
    "converted/mcore70b/3ebd1bc/mha_tp1_pp1",
    "converted/oct_window/bcdc0f1/gqa8_tp1_pp1",
    "converted/te/655467d/mha_tp2_pp2",
    "trained/90ce090_gqa8_tp2_pp2",
    "trained/f12981d_gqa_tp1_pp1_distopt",
    "trained/f12981d_mha_tp1_pp1",
]
WRONG_GATE_UP = {"2023-10-10", "2023-10-18 morning"}


def truth(later, name):
    """The Hugging Face folder that a checkpoint of this name was made from."""
    return later / "truth/hf_gqa8" if "gqa8" in name else GOLDEN / ("hf_gqa" if "gqa" in name else "hf_mha")


def read(folder, **asked):
    """Every Hugging Face tensor of a checkpoint."""
    source = open_source(folder, **asked)
    return {name: hf_tensor(source, name) for name in read_hf(GOLDEN / "hf_mha") if _has(source, name)}


def _has(source, name):
    return "layers" not in name or int(name.split(".")[2]) < source.config.num_layers


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_original_wrote(name, later, tmp_path):
    convert(Conversion(later / name, tmp_path / "hf", to_hf=True, verify=True))
    assert_same(read_hf(tmp_path / "hf"), read_hf(truth(later, name)))


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_original_wrote_without_config_json(name, later):
    """KV heads come from the tensors: MHA records num_query_groups 1, and is not multi-query."""
    config = later / name / "config.json"
    hidden = config.rename(config.with_suffix(".off"))
    try:
        assert_same(read(later / name), read_hf(truth(later, name)))
    finally:
        hidden.rename(config)


def test_all_q_first_is_read_when_asked_for(later, tmp_path):
    folder, wanted = later / "converted/298accf_ALLQ/gqa8_tp2_pp1", read_hf(later / "truth/hf_gqa8")
    summary = convert(Conversion(folder, tmp_path / "hf", to_hf=True, gqa_layout="all-q-first", verify=True))
    assert_same(read_hf(tmp_path / "hf"), wanted)
    assert "all of a rank's q" in summary.notes[0]
    summary = convert(Conversion(folder, tmp_path / "other", to_hf=True))
    assert "nothing in it tells" in summary.notes[0] and "--gqa-layout all-q-first" in summary.notes[0]
    name = "model.layers.0.self_attn.k_proj.weight"
    assert not torch.equal(read_hf(tmp_path / "other")[name], wanted[name]), "per KV head is the default"


@pytest.mark.parametrize("tp, pp", [(1, 2), (2, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize(
    "model, style",
    [(model, style) for style in STYLES for model in ("mha", "gqa8") if model == "mha" or "transformer engine" not in style],
)
def test_other_tp_and_pp(model, style, tp, pp, later, tmp_path):
    hf = truth(later, model)
    wanted = read_hf(hf)
    folder = write_original(tmp_path / "source", hf, wanted, Written(style, tp, pp))
    asked = {"gqa_layout": "all-q-first"} if style == "2023-10-18" else {}
    if tp > 1 and style in WRONG_GATE_UP:
        with pytest.raises(ValueError, match=rf"cannot be right.*2023-10-10 to 18 wrote it for TP {tp}.*convert the Hugging"):
            open_source(folder)
    else:
        assert_same(read(folder, **asked), wanted)


@pytest.mark.parametrize("style", ["2024-03", "trained", "megatron-core", "2023-09"])
def test_an_order_that_contradicts_the_files_is_refused(style, later, tmp_path):
    hf = truth(later, "gqa8")
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written(style, 2))
    with pytest.raises(ValueError, match="--gqa-layout all-q-first is for .* leave the flag out"):
        open_source(folder, gqa_layout="all-q-first")


@pytest.mark.parametrize("style", [style for style in STYLES if style not in {"2023-10-18", "2023-11-10"} | WRONG_GATE_UP])
def test_an_order_that_the_files_tell_needs_no_word(style, later, tmp_path):
    hf = truth(later, "mha" if "transformer engine" in style else "gqa8")
    assert open_source(write_original(tmp_path / "source", hf, read_hf(hf), Written(style))).notes == ()


@pytest.mark.parametrize("model, tp", [("mha", 2), ("gqa8", 8)])
def test_an_order_that_decides_nothing_is_allowed(model, tp, later, tmp_path):
    hf = truth(later, model)
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("2023-11-10", tp))
    assert_same(read(folder, gqa_layout="all-q-first"), read_hf(hf))
    assert "changes nothing" in open_source(folder, gqa_layout="all-q-first").notes[0]


def test_wrong_gate_and_up_of_the_original_are_refused(later, tmp_path):
    job = Conversion(later / "converted/oct_window/e438c65_BAD/gqa8_tp2_pp1", tmp_path / "hf", to_hf=True)
    with pytest.raises(ValueError, match=r"cannot be right: .*\(every rank holds the whole of .*convert the Hugging Face folder"):
        convert(job)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("style", ["2023-09", "transformer engine 2023-10-10"])
def test_biases_of_norms_must_be_zero(style, tmp_path):
    hf = GOLDEN / "hf_mha"
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written(style))
    bias = STYLES[style].biases[1]

    def edit(content):
        content["model"]["language_model"]["encoder"][f"layers.3.{bias}"][7] = 1e-3

    change(folder / "release/mp_rank_00/model_rng.pt", edit)
    with pytest.raises(ValueError, match=rf"layers.3.{bias} is not zero"):
        open_source(folder)


def test_optimizer_state_of_september_is_no_rank(tmp_path):
    """mp_rank_00_003/optim.pt was the fourth data-parallel rank's, and looks like a pipeline stage."""
    hf = GOLDEN / "hf_mha"
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("2023-09", tp=2))
    for rank in ("mp_rank_00_000", "mp_rank_01_000", "mp_rank_00_003", "mp_rank_01_003"):
        (folder / "release" / rank).mkdir()
        (folder / "release" / rank / "optim.pt").write_bytes(b"no archive")
    assert_same(read(folder), read_hf(hf))


def test_fp8_scales_are_passed_by(tmp_path):
    """Transformer Engine keeps them as io.BytesIO, which must not make the loader refuse the file, nor be run."""
    hf = GOLDEN / "hf_mha"
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("transformer engine"))
    path = folder / "release/mp_rank_00/model_rng.pt"

    def edit(content):
        content["model"]["language_model"]["encoder"]["layers.0.layernorm_mlp._extra_state"] = io.BytesIO(b"scales")

    change(path, edit)
    assert_same(read(folder), read_hf(hf))


def test_optimizer_state_in_the_same_file_is_passed_by(tmp_path):
    """Without the distributed optimizer: fp32 weights in lists, with the attributes that say how they are split."""
    hf = GOLDEN / "hf_mha"
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("trained", tp=2, extra=torch.ones(8, 64)))
    weight = torch.ones(64, 64)
    weight.tensor_model_parallel, weight.partition_dim = True, 0
    state = {"state": {0: {"step": 7, "exp_avg": torch.ones(64, 64).t()}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
    for rank in (folder / "iter_0000007").iterdir():
        path = rank / "model_optim_rng.pt"
        content = torch.load(path, weights_only=False)
        scaler = {"scale": torch.tensor([65536.0]), "growth_tracker": 3}
        optimizer = {"optimizer": state, "grad_scaler": scaler, "fp32_from_fp16_params": [[weight]]}
        torch.save({"optimizer": optimizer, **content, "iteration": 7}, path)
    assert open_source(folder).extra_vocab_size == 8
    name = "model.layers.3.self_attn.q_proj.weight"
    assert torch.equal(read(folder)[name], read_hf(hf)[name])
    assert read_vocabulary_rows(folder / "iter_0000007").rows == 808


def test_interleaved_stages_are_refused(tmp_path):
    hf = GOLDEN / "hf_mha"
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("trained"))
    path = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    content["model0"], content["model1"] = content.pop("model"), {}
    torch.save(content, path)
    with pytest.raises(ValueError, match="interleaved pipeline stages .* save it again"):
        open_source(folder)


def test_a_training_run_records_its_epsilon(tmp_path):
    hf, named = GOLDEN / "hf_mha", LlamaConfig(4, 64, 176, 4, 4, 800, max_position_embeddings=2048, norm_epsilon=1e-6)
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("trained", with_config=False))
    assert open_source(folder, named).config == replace(named, norm_epsilon=1e-5), "its position limit is its SEQ_LEN of 32"


def test_what_nothing_records_is_the_named_size_s_and_said(tmp_path, monkeypatch):
    """LLaMA-1's and LLaMA-2's 7B differ in epsilon and positions alone."""
    small = LlamaConfig(4, 64, 176, 4, 4, 800)
    monkeypatch.setitem(LLAMA_SIZES, "llama2-7b", small)
    monkeypatch.setitem(LLAMA_SIZES, "llama-7b", replace(small, max_position_embeddings=2048, norm_epsilon=1e-6))
    hf = GOLDEN / "hf_mha"
    left_out = dict(num_attention_heads=None, orig_vocab_size=None, padded_vocab_size=None)
    written = Written("2023-11-10", with_config=False, arguments=left_out)
    folder = write_original(tmp_path / "source", hf, read_hf(hf), written)
    for name, own, other in (
        ("llama-7b", "2048 and rms_norm_eps 1e-06", "llama2-7b has 4096, 1e-05"),
        ("llama2-7b", "4096 and rms_norm_eps 1e-05", "llama-7b has 2048, 1e-06"),
    ):
        summary = convert(Conversion(folder, tmp_path / name, to_hf=True, model_name=name))
        assert f"assumed are max_position_embeddings {own} ({other}: write that as MN" in summary.notes[0]
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert f"{config['max_position_embeddings']} and rms_norm_eps {config['rms_norm_eps']}" == own
        assert_same(read_hf(tmp_path / name), read_hf(hf))
    with pytest.raises(ValueError, match="does not record num_attention_heads; put the model's config.json"):
        open_source(folder)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("layers.0.mlp.dense_4h_to_h.weight", torch.ones(64), r"shape \[64\]; a floating-point tensor of 2 axes"),
        ("layers.1.input_norm.weight", torch.ones(64, dtype=torch.int64), "a floating-point tensor of 1 axes"),
        ("layers.1.input_norm.bias", "zero", "is a str; a floating-point tensor"),
        ("layers.2.mlp.dense_h_to_4h.weight", torch.ones(176, 64), r"float32 .* on the first rank; these are no shards"),
        ("layers.2.mlp.dense_4h_to_h.weight", torch.ones(64, 44).half(), "on the first rank; these are no shards"),
        ("layers.9.mlp.dense_4h_to_h.weight", torch.ones(64, 88).half(), "count from 0 without a gap"),
        ("layers.1.input_layernorm.weight", torch.ones(64).half(), "holds tensors that a LLaMA does not have"),
    ],
)
def test_what_cannot_belong_there_is_said(name, value, said, tmp_path):
    hf = GOLDEN / "hf_mha"
    folder = write_original(tmp_path / "source", hf, read_hf(hf), Written("trained", tp=2))
    path = folder / "iter_0000007/mp_rank_01/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    content["model"]["language_model"]["encoder"][name] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match=said):
        open_source(folder)
