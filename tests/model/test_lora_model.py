"""DDP's buffers hold adapters alone, as many as the plan says; their start does not depend on the layout."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

from dataclasses import replace

import pytest
import torch

from megatron_patch.checkpoint.adapter_folder import check_base
from megatron_patch.checkpoint.adapter_weights import check_adapter
from megatron_patch.config import Options
from megatron_patch.core import parallel
from megatron_patch.core.patches import apply_patches
from megatron_patch.errors import UserError
from megatron_patch.formats.lazy import InMemory
from megatron_patch.formats.peft_adapter import LoraConfig, layer_module
from megatron_patch.formats.peft_tensors import Adapter, Pair
from megatron_patch.kernels.dropout import kept
from megatron_patch.model.build import build_model, choose_backend
from megatron_patch.model.lora import adapters
from megatron_patch.plan.lora import adapter_parameters, target_shapes, trained_parameters
from tests.tiny import be_alone, tiny_config


@pytest.fixture(scope="module")
def alone():
    be_alone()
    apply_patches()
    yield parallel.start(tiny_config())
    parallel.stop()


@pytest.mark.parametrize("targets, extra", [("", 0), ("k_proj,up_proj", 0), ("q_proj,down_proj", 8)])
def test_buffers_hold_what_is_trained_and_nothing_else(alone, targets, extra):
    config = tiny_config(options=Options(lora_rank=4, lora_targets=targets), extra_vocab_size=extra)
    model = build_model(config, alone, choose_backend(config, alone)[0])
    trained = {name: weight for name, weight in model.module.named_parameters() if weight.requires_grad}
    count = sum(weight.numel() for weight in trained.values())
    assert count == trained_parameters(config.model, config.lora, extra)
    assert sum(len(buffer.params) for buffer in model.buffers) == len(trained)
    assert len(trained) == sum(2 for _ in adapters(model.module)) + (2 if extra else 0)
    vocabulary = 2 * config.vocab_size * config.model.hidden_size if extra else 0
    assert count - vocabulary == config.model.num_layers * adapter_parameters(config.model, config.lora)
    assert all(not hasattr(weight, "main_grad") for weight in model.module.parameters() if not weight.requires_grad)


def test_as_start_within_their_bound_and_bs_are_zero(alone):
    config = tiny_config(options=Options(lora_rank=4, seed=3))
    model = build_model(config, alone, choose_backend(config, alone)[0]).module
    for _, module in adapters(model):
        bound = module.lora_a.size(1) ** -0.5
        assert not module.lora_b.any() and 0.9 * bound < module.lora_a.abs().max() <= bound * 1.01
    first = next(module for _, module in adapters(model) if "q_proj" in module.targets)
    assert not torch.equal(first.a_of("q_proj"), first.a_of("k_proj"))


def test_dropout_is_of_adapters_inputs_in_training_alone(alone):
    config = tiny_config(precision="fp32", options=Options(lora_rank=4, lora_dropout=0.25, lora_targets="down_proj"))
    model = build_model(config, alone, choose_backend(config, alone)[0]).module
    _, layer = list(adapters(model))[1]
    layer.lora_b.data.normal_()
    x, layer.samples = torch.randn(5, 2, layer.weight.size(1)), torch.arange(2)
    mask = kept(5, x.size(-1), layer.samples, layer.draws).double()
    assert layer.draws.seed == config.options.seed and 0.7 < mask.mean() < 0.8
    base, a, b = (matrix.detach().double() for matrix in (layer.weight, layer.lora_a, layer.lora_b))
    for training, adapted in ((True, x * mask / 0.75), (False, x.double())):
        layer.train(training)
        wanted = x.double() @ base.t() + 2 * adapted @ a.t() @ b.t()
        assert (layer(x)[0] - wanted).norm() < 1e-6 * wanted.norm()


def test_an_adapter_fits_the_run(tmp_path):
    """Of a rank-stabilized one the run knows α/√r · r, of which the rank's part is the scale but for the last bit."""
    model = tiny_config().model
    out, width = target_shapes(model)["q_proj"]
    pair = Pair(InMemory(torch.zeros(5, width)), InMemory(torch.zeros(out, 5)))
    own = LoraConfig(5, 8, targets=("q_proj",), is_rank_stabilized=True)
    adapter = Adapter(own, {layer_module(layer, "q_proj"): pair for layer in range(model.num_layers)}, {})
    check_adapter(tmp_path, adapter, model, LoraConfig(5, own.scale * 5, targets=("q_proj",)), model.vocab_size)
    with pytest.raises(UserError, match="says a scale of 3.57771, and the run's is 1.6"):
        check_adapter(tmp_path, adapter, model, LoraConfig(5, 8, targets=("q_proj",)), model.vocab_size)
    whole = replace(adapter, whole={layer_module(0, "o_proj"): pair.b})
    with pytest.raises(UserError, match="holds a whole model.layers.0.self_attn.o_proj; beside adapters only embedding"):
        check_adapter(tmp_path, whole, model, own, model.vocab_size)


def test_other_weights_in_the_base_s_place_are_told(tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("release")
    for name in ("metadata.json", ".metadata"):
        (tmp_path / "release" / name).write_text("{}")
    config = tiny_config(load=str(tmp_path), options=Options(lora_rank=4))
    check_base(config, "")
    with pytest.raises(UserError, match="other weights"):
        check_base(config, "0" * 32)
    with pytest.raises(UserError, match="cannot be read"):
        check_base(tiny_config(load=str(tmp_path / "gone")), "")
