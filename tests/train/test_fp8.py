"""PR fp8: the products of rounded numbers, the same in every layout, and checkpoints that are bf16's.

There are no FP8 tensor cores here: MEGATRON_PATCH_EMULATE_FP8 lets numbers be rounded to FP8 and multiplied in float32.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader

from megatron_patch.arguments.gpus import EMULATION, Driver, fp8_finding
from megatron_patch.config import Options
from megatron_patch.core.fp8_weights import cast_weights, fp8_copy, keep_fp8_copy
from megatron_patch.core.weight_gradients import mark_stale
from megatron_patch.kernels.lora import Blocks
from megatron_patch.model.fp8_frozen_weight import Fp8FrozenWeight
from megatron_patch.model.fp8_linear import GRADIENTS, column_product
from megatron_patch.model.frozen_linear import FrozenLinear
from megatron_patch.model.frozen_products import Adapter
from tests.faults import in_process
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, convert, run_forked, train
from tests.tiny import tiny_config
from tests.train.passes_worker import two_steps
from tests.train.test_other_settings import folder

RUN = dict(MODEL_SIZE="tiny", DATASET_PATH=GOLDEN / "data" / "corpus_text_document", PR="fp8", FL="true",
           TRAIN_TOKENS=6 * 4 * 32, WARMUP_TOKENS=4 * 32)  # fmt: skip
LAYOUTS = {  # PP draws other initial weights: test_graphs.py compares its passes
    # The same micro-batches, and so the same rounding, until a sum in another order has rounded a weight otherwise.
    "DP2 with DO": (dict(processes=2, DO="true"), 1e-6),
    # Each rank's part of a matrix has a factor of its own.
    "TP2": (dict(processes=2, TP=2), 1e-3),
    "TP2 with SP": (dict(processes=2, TP=2, SP="true"), 1e-3),
}


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setenv(EMULATION, "1")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The steps of a run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EMULATION, "1")
        return train(PRETRAIN, tmp_path_factory.mktemp("one"), **RUN)


def rounded(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """x with the numbers that FP8 has for it, in float64."""
    factor = torch.finfo(kind).max / x.float().abs().max()
    return (x.float() * factor).to(kind).double() / factor.double()


def test_a_layer_multiplies_rounded_numbers_and_adds_its_weight_s_gradient(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()  # noqa: E731
    weight = torch.nn.Parameter(draw(48, 32))
    keep_fp8_copy(weight)
    cast_weights([weight])
    weight.main_grad = torch.full((48, 32), torch.nan)
    mark_stale(weight.main_grad)
    layer = SimpleNamespace(weight=weight, tp_group=None, sequence_parallel=False, allreduce_dgrad=False)
    truth = torch.zeros(48, 32, dtype=torch.float64)
    for _ in range(2):
        x, dy = draw(5, 3, 32).requires_grad_(), draw(5, 3, 48)
        y = column_product(layer, x)
        y.backward(dy)
        x8, w8, dy8 = (
            rounded(x.detach(), torch.float8_e4m3fn),
            rounded(weight.detach(), torch.float8_e4m3fn),
            rounded(dy, GRADIENTS),
        )
        truth += dy8.flatten(0, 1).t() @ x8.flatten(0, 1)
        for got, wanted in ((y, x8 @ w8.t()), (x.grad, dy8 @ w8)):
            assert (got.double() - wanted).norm() <= 2.0**-8 * wanted.norm()
    assert (weight.main_grad - truth).norm() <= 1e-6 * truth.norm()


def test_a_frozen_layer_multiplies_rounded_numbers_and_its_adapter_those_of_16_bits():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).bfloat16()  # noqa: E731
    weight, a, b = (torch.nn.Parameter(draw(*shape)) for shape in ((48, 32), (4, 32), (48, 4)))
    keep_fp8_copy(weight)
    cast_weights([weight])
    for matrix in (a, b):
        matrix.main_grad = torch.full(matrix.shape, torch.nan)
        mark_stale(matrix.main_grad)
    x, dy, scale = draw(5, 3, 32).requires_grad_(), draw(5, 3, 48), 2.0
    frozen = Fp8FrozenWeight(weight)
    y = FrozenLinear.apply(x, a, b, frozen, Adapter(Blocks((48,), (0,), 4), scale), None, None)
    y.backward(dy)
    flat, flat_dy, a16, b16 = (one.detach().double() for one in (x.flatten(0, 1), dy.flatten(0, 1), a, b))
    x8, dy8, w8 = rounded(flat, torch.float8_e4m3fn), rounded(flat_dy, GRADIENTS), rounded(weight.detach(), torch.float8_e4m3fn)
    rows = slice(4, 9)  # as a product for which other ranks wait begins
    frozen.product(frozen.part(frozen.prepared(flat.bfloat16()), rows), part := torch.empty(5, 48, dtype=torch.bfloat16))
    wanted = {
        "part": (part, x8[rows] @ w8.t()),
        "y": (y.flatten(0, 1), x8 @ w8.t() + scale * flat @ a16.t() @ b16.t()),
        "dx": (x.grad.flatten(0, 1), dy8 @ w8 + scale * flat_dy @ b16 @ a16),
        "da": (a.main_grad, scale * (flat_dy @ b16).t() @ flat),
        "db": (b.main_grad, scale * flat_dy.t() @ (flat @ a16.t())),
    }
    for name, (got, truth) in wanted.items():
        assert (got.double() - truth).norm() <= 2.0**-7 * truth.norm(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_learn_the_same(layout, emulated, one_process, tmp_path):
    changed, at_first = LAYOUTS[layout]
    here, wanted = train(PRETRAIN, tmp_path, **RUN, **changed), one_process
    assert len(here) == 6
    assert here[0].loss == pytest.approx(wanted[0].loss, rel=at_first)
    assert here[0].grad_norm == pytest.approx(wanted[0].grad_norm, rel=10 * at_first)
    assert [step.loss for step in here] == pytest.approx([step.loss for step in wanted], rel=5e-3)


def test_recomputed_layers_and_those_left_in_bf16(alone):
    """AC full's first forward pass keeps nothing and multiplies in FP8 too. Layers that are left out do not."""
    found = {}
    for name, changed in {
        "fp8": dict(precision="fp8"),
        "recomputed": dict(precision="fp8", recompute="full"),
        "LoRA": dict(precision="fp8", options=Options(lora_rank=4)),
        "LoRA, recomputed": dict(precision="fp8", recompute="full", options=Options(lora_rank=4)),
        "all but two left out": dict(precision="fp8", options=Options(fp8_layers=1)),
        "bf16": dict(precision="bf16"),
    }.items():
        results, state = two_steps(tiny_config(**changed), alone)
        copies = [fp8_copy(weight) is not None for weight in state.model.parameters()]
        found[name] = [(one.loss, one.grad_norm) for one in results], sum(copies)
    layers = tiny_config().model.num_layers
    assert found["recomputed"] == found["fp8"] and found["fp8"][1] == 4 * layers, "embedding and head are bf16"
    assert found["LoRA, recomputed"] == found["LoRA"] and found["LoRA"][1] == 4 * layers
    assert found["LoRA"][0][0][0] == found["fp8"][0][0][0], "B is zero"
    assert found["all but two left out"][1] == 4 * max(0, layers - 2) and found["bf16"][1] == 0
    assert found["fp8"][0] != found["bf16"][0]
    for (loss, norm), (loss16, norm16) in zip(found["fp8"][0], found["bf16"][0]):
        assert loss == pytest.approx(loss16, rel=2e-3) and norm == pytest.approx(norm16, rel=5e-2)


def test_a_stop_changes_no_bit_and_bf16_reads_the_checkpoint(emulated, tmp_path):
    both = dict(RUN, DO="true")
    whole = train(PRETRAIN, tmp_path / "whole", processes=2, **both)
    first = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 3, processes=2, **both)
    assert first + train(PRETRAIN, tmp_path / "parts", processes=2, **both)[3:] == whole
    # The other precision goes on from the same files, either way.
    for before, after in (("fp8", "bf16"), ("bf16", "fp8")):
        parts, begun = tmp_path / "parts", first
        if before == "bf16":
            parts = tmp_path / before
            begun = train(PRETRAIN, parts, "--exit-interval", 3, **{**both, "PR": before})
        saved = folder(parts, f"pr-{before}") / "iter_0000003"
        gone_on = train(PRETRAIN, parts, "--resume-from", saved, **{**both, "PR": after})
        assert gone_on[:3] == begun and [one.loss for one in gone_on[3:]] == pytest.approx(
            [one.loss for one in whole[3:]], rel=1e-2
        )
        entries = FileSystemReader(saved).read_metadata().state_dict_metadata
        kinds = {
            name: (str(getattr(entry, "size", "")), str(getattr(entry, "properties", ""))) for name, entry in entries.items()
        }
        if before == "fp8":
            of_fp8 = kinds
    assert of_fp8 == kinds and "float8" not in str(kinds)


def test_lora_s_base_products_are_the_same_in_every_layout(emulated, tmp_path):
    """Up to factors of parts of matrices. AC full multiplies in FP8 twice."""
    flags, both = ("--lora-rank", 4), dict(RUN, DO="true", LR="1e-2")
    alone = train(PRETRAIN, tmp_path / "alone", *flags, **{**both, "AC": "full"})
    here = train(PRETRAIN, tmp_path / "here", *flags, **{**both, "processes": 2, "TP": 2, "SP": "true"})
    assert here[0].loss == pytest.approx(alone[0].loss, rel=1e-3)
    assert here[0].grad_norm == pytest.approx(alone[0].grad_norm, rel=1e-2)
    assert [step.loss for step in here] == pytest.approx([step.loss for step in alone], rel=5e-3)
    assert len(here) == 6 and here[-1].loss < here[0].loss


@pytest.mark.parametrize("zero", [True, False], ids=["DO", "without DO"])
def test_lora_goes_on_with_the_same_bits(zero, alone, tmp_path):
    """With dropout, and with LoRA+, whose two groups of rates a checkpoint must tell apart."""
    options = dict(lora_rank=4, lora_alpha=8.0, lora_dropout=0.2, lora_plus_ratio=4.0)
    run = lambda name, **more: in_process.config_of(  # noqa: E731
        tmp_path / name, precision="fp8", use_distributed_optimizer=zero, **options, **more
    )
    whole, _ = in_process.train(run("whole"), alone)
    in_process.train(run("parts", exit_interval=4), alone)
    parts, _ = in_process.train(run("parts"), alone)
    assert whole.iteration == parts.iteration == 8 and parts.steps_here == 4
    assert in_process.digest(parts) == in_process.digest(whole)
    assert [group["lr"] for group in parts.optimizer.param_groups] == [group["lr"] for group in whole.optimizer.param_groups]


def test_it_is_refused_where_there_are_no_fp8_tensor_cores(tmp_path, monkeypatch):
    values = {**PRETRAIN_ARGUMENTS, **RUN, "OUTPUT_BASEPATH": tmp_path}
    said = run_forked(PRETRAIN, *values.values())
    assert said.returncode == 2 and "PR" in said.stdout and "8.9 or higher" in said.stdout and "write bf16" in said.stdout
    monkeypatch.setenv(EMULATION, "1")
    said = run_forked(PRETRAIN, *values.values(), "--fp8-layers", 2)
    assert said.returncode == 2 and "none of the model's 4 layers in FP8: write 1 or less, or PR bf16" in said.stdout
    odd = run_forked(PRETRAIN, *{**values, "SEQ_LEN": 100, "PAD_LEN": 100}.values())
    assert odd.returncode == 2 and "a multiple of 16 tokens on each GPU: write 96" in odd.stdout
    model = {"MODEL_SIZE": "auto", "PRETRAIN_CHECKPOINT_PATH": convert(GOLDEN / "hf_mha", tmp_path / "model"), "TP": 2}
    odd = run_forked(PRETRAIN, *{**values, **model}.values())
    assert odd.returncode == 2 and "multiples of 16 on each GPU, and 176 ÷ TP 2 is none: write bf16" in odd.stdout
    monkeypatch.delenv(EMULATION)
    assert "NVIDIA A100-SXM4-80GB has 8.0: write bf16" in fp8_finding(Driver(8, name="NVIDIA A100-SXM4-80GB", capability=80), 8)
    assert fp8_finding(Driver(8, capability=90), 8) is None is fp8_finding(Driver(1, capability=89), 1)
    assert "there is none here" in fp8_finding(Driver(8, capability=90), 0)
