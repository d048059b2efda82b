"""Rotary scaling in config.json: read and computed as transformers does, and kept by conversion both ways."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.llama.model_config import from_hf_config, read_hf_config
from tests.weights.models import SMALL, random_weights, write_hf

SPELLINGS = [
    ({}, "default", 1.0, 1e6),
    ({"rope_scaling": None}, "default", 1.0, 1e6),
    ({"rope_scaling": {}}, "default", 1.0, 1e6),
    ({"rope_scaling": {"rope_type": "default"}}, "default", 1.0, 1e6),
    ({"rope_scaling": {"type": "linear", "factor": 1.0}}, "default", 1.0, 1e6),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "linear", 2.0, 1e6),
    ({"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 4.0}}, "dynamic", 4.0, 1e6),
    ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "default", 1.0, 5e5),
    ({"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear", 2.0, 1e6),
    ({"rope_theta": None, "rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 3.0}}, "linear", 3.0, 5e5),
    ({"rope_theta": None}, "default", 1.0, 1e4),
]


@pytest.fixture
def folder(tmp_path):
    return write_hf(tmp_path / "hf", SMALL, random_weights(SMALL))


def edit_config(folder, change):
    """config.json with `change`; None takes a key away."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


@pytest.mark.parametrize("change, kind, factor, theta", SPELLINGS)
def test_every_spelling_is_read_as_by_transformers_and_exported_for_all_versions(folder, tmp_path, change, kind, factor, theta):
    edit_config(folder, change)
    convert(Conversion(folder, tmp_path / "mg", to_hf=False))
    convert(Conversion(tmp_path / "mg", tmp_path / "back", to_hf=True, verify=True))
    for name in ("hf", "back"):
        config = read_hf_config(tmp_path / name)
        assert (config.rope_type, config.rope_factor, config.rotary_base) == (kind, factor, theta)
        parameters = TransformersConfig.from_pretrained(tmp_path / name).rope_parameters
        assert parameters["rope_theta"] == theta
        assert parameters.get("factor", 1.0) == factor  # "linear" by 1 is transformers' own name for it
        assert parameters["rope_type"] == kind or factor == 1.0
    # transformers 4.31 accepts these two keys alone, the factor as a float; version 4 knows no rope_parameters.
    exported = json.loads((tmp_path / "back/config.json").read_text())
    assert exported["rope_theta"] == theta and "rope_parameters" not in exported
    assert exported["rope_scaling"] == (None if kind == "default" else {"type": kind, "factor": factor})
    assert exported["rope_scaling"] is None or isinstance(exported["rope_scaling"]["factor"], float)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'; supported are default, linear, dynamic"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "'llama3'; supported are default"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6}}, "'longrope'; supported are default"),
        ({"rope_scaling": {"type": "linear"}}, "no factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor is '2'; it must be a finite number"),
        ({"rope_scaling": {"type": "linear", "factor": 10**400}}, "a number of many digits"),
        ({"rope_scaling": {"type": "linear", "factor": True}}, "rope_scaling.factor is True; it must be a finite number"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, "'full_attention'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor is 0.5; it must be at least 1"),
        ({"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 2.0}}, "remove the wrong one"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor is 2; it must be 1 or left out"),
        ({"rope_scaling": ["linear", 2.0]}, "it must be null or an object"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "short_factor": [1.0]}}, "'short_factor'"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "and rope_parameters.rope_theta 10000 disagree"),
        (
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling is linear by 2 and rope_parameters is default by 1",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7}}, "make them one"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported is 1"),
    ],
)
def test_what_would_be_misread_is_refused_in_a_sentence(folder, change, said):
    with pytest.raises(ValueError, match="config.json") as caught:
        read_hf_config(edit_config(folder, change))
    assert said in str(caught.value)


HF = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, rope_theta=1e4, tie_word_embeddings=False, initializer_range=0.3, attn_implementation="eager",
)  # fmt: skip


@pytest.mark.parametrize("scaling", [{"type": "linear", "factor": 3.0}, {"type": "dynamic", "factor": 2.0}])
def test_logits_equal_transformers_below_at_and_above_the_limit(tmp_path, scaling, alone):
    """Below, at and above max_position_embeddings, which is where dynamic scaling begins."""
    from megatron_patch.checkpoint.initial_weights import load_weights
    from megatron_patch.core.transformer_config import transformer_config
    from megatron_patch.model.llama import LlamaModel
    from tests.tiny import tiny_config

    torch.manual_seed(3)
    LlamaForCausalLM(TransformersConfig(**HF, rope_scaling=dict(scaling))).save_pretrained(tmp_path / "hf")
    convert(Conversion(tmp_path / "hf", tmp_path / "mg", to_hf=False))
    convert(Conversion(tmp_path / "mg", tmp_path / "back", to_hf=True))
    llama = read_hf_config(tmp_path / "mg")
    core = transformer_config(tiny_config(model=llama, precision="fp32"))
    model = LlamaModel(core, llama, llama.vocab_size, "unfused").eval()
    load_weights(str(tmp_path / "mg"), model)
    for length in (48, 96, 31, 32, 33):  # down and up again: a length must leave nothing behind for the next
        tokens = torch.randint(0, 16, (2, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            got = model(tokens)
            for name in ("hf", "back"):  # each length in a fresh model, since transformers keeps the longest one's base
                wanted = LlamaForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager")(tokens).logits
                torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "hf", rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    with torch.no_grad():
        assert (plain(tokens).logits - got).abs().max() > 1e-2  # the scaling is there at all


@pytest.fixture
def alone():
    """This process as the only one of its group."""
    from tests.tiny import be_alone

    be_alone()
    from megatron_patch.core import parallel
    from megatron_patch.core.patches import apply_patches
    from tests.tiny import tiny_config

    parallel.start(tiny_config(precision="fp32"))
    apply_patches()
    yield
    parallel.stop()


def test_base_of_dynamic_scaling_equals_transformers():
    from megatron_patch.kernels.rope import rope_tables
    from megatron_patch.llama.rope_scaling import dynamic_ntk_base

    config = TransformersConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=4096, rope_theta=1e4,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    )  # fmt: skip
    for length in (1, 4096, 4097, 8192, 32768):
        wanted, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=length)
        base = dynamic_ntk_base(1e4, 128, length, 4096, 2.0)
        cos, sin = rope_tables(2, 128, base)  # at position 1 the angle is the frequency
        torch.testing.assert_close(torch.atan2(sin[1], cos[1]), wanted, rtol=1e-5, atol=1e-9)


def test_positions_that_the_model_is_made_for():
    keys = dict(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=16)
    for scaling, limit in ((None, 4096), ({"type": "linear", "factor": 4.0}, 16384), ({"type": "dynamic", "factor": 2.5}, 10240)):
        config = from_hf_config(keys | {"model_type": "llama", "max_position_embeddings": 4096, "rope_scaling": scaling})
        assert config.position_limit == limit
