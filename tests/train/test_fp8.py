"""PR fp8: the products of rounded numbers, the same in every layout, and checkpoints that are bf16's.

There are no FP8 tensor cores here: MEGATRON_PATCH_EMULATE_FP8 lets numbers be rounded to FP8 and multiplied in float32.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.gpus import EMULATION, Driver, fp8_finding
from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.config import Options
from megatron_patch.core.fp8_weights import cast_weights, fp8_copy, keep_fp8_copy
from megatron_patch.core.parallel import Layout
from megatron_patch.core.patches import apply_patches
from megatron_patch.core.weight_gradients import mark_stale
from megatron_patch.kernels.lora import Blocks
from megatron_patch.model.build import build_model, choose_backend
from megatron_patch.model.fp8_linear import FP8, GRADIENTS, column_product
from megatron_patch.model.frozen_linear import FrozenLinear
from megatron_patch.model.frozen_products import Adapter, FrozenWeight
from tests.faults import in_process
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, Step, convert, run_forked, run_ranks, train
from tests.model.logits_worker import forward
from tests.tiny import tiny_config
from tests.train.fp8_parts_worker import rounded
from tests.train.passes_worker import two_steps
from tests.train.test_other_settings import folder

RUN = dict(MODEL_SIZE="tiny", DATASET_PATH=GOLDEN / "data" / "corpus_text_document", PR="fp8", FL="true", DO="true",
           TRAIN_TOKENS=6 * 4 * 32, WARMUP_TOKENS=4 * 32, SAVE_INTERVAL=3)  # fmt: skip
# PP draws other initial weights: test_graphs.py compares its passes.
LAYOUTS = {"TP2": dict(TP=2), "TP2 with SP": dict(TP=2, SP="true")}


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setenv(EMULATION, "1")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run in one process: where it lies, and its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(EMULATION, "1")
        return (output := tmp_path_factory.mktemp("one")), train(PRETRAIN, output, **RUN)


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
    frozen = FrozenWeight(weight, FP8)
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


def learn_the_same(here: list[Step], wanted: list[Step], at_first: float, norm: float | None = None) -> None:
    assert len(here) == 6
    assert here[0].loss == pytest.approx(wanted[0].loss, rel=at_first)
    assert here[0].grad_norm == pytest.approx(wanted[0].grad_norm, rel=norm or 10 * at_first)
    assert [step.loss for step in here] == pytest.approx([step.loss for step in wanted], rel=5e-3)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_learn_the_same(layout, emulated, one_process, tmp_path):
    """Each rank's part of a matrix has a factor of its own."""
    learn_the_same(train(PRETRAIN, tmp_path, processes=2, **RUN, **layout), one_process[1], 1e-3)


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


def test_a_stop_changes_no_bit(emulated, one_process, tmp_path):
    """And replicas learn what one learns, with weights that they gather in FP8 and save in bf16."""
    whole = train(PRETRAIN, tmp_path / "whole", processes=2, **RUN)
    first = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 3, processes=2, **RUN)
    assert first + train(PRETRAIN, tmp_path / "parts", processes=2, **RUN)[3:] == whole
    has_whole_weights(folder(tmp_path / "whole") / "iter_0000003")
    # The same micro-batches, and so the same rounding, until a sum in another order has rounded a weight otherwise.
    learn_the_same(whole, one_process[1], 1e-6)


def has_whole_weights(checkpoint: Path) -> None:
    """The bf16 weights are the optimizer's, also where another rank than the one that wrote them has updated them."""
    entries = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    before = "optimizer.state.param."
    state = {key: torch.empty(entry.size) for key, entry in entries.items() if key.startswith(before)}
    state |= {key.removeprefix(before): torch.empty(one.shape, dtype=torch.bfloat16) for key, one in state.items()}
    load(state, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    compared = [key for key in state if before + key in state]
    assert len(compared) >= 6
    for key in compared:
        torch.testing.assert_close(state[key].float(), state[before + key], rtol=2.0**-8, atol=0.0)


def test_bf16_and_fp8_go_on_from_each_other_and_from_what_is_exported(emulated, one_process, tmp_path, alone):
    output, begun = one_process
    kinds = {}
    for before, after in (("fp8", "bf16"), ("bf16", "fp8")):
        start = {}
        if before == "bf16":
            exported = export(saved, tmp_path / "hf", alone)  # noqa: F821
            start = dict(MODEL_SIZE="auto", PRETRAIN_CHECKPOINT_PATH=convert(exported, tmp_path / "model"), PR=before)
            output, learnt = tmp_path, begun
            begun = train(PRETRAIN, output, **{**RUN, **start})
            assert begun[0].loss < learnt[0].loss - 0.01, "bf16 begins with what three steps in FP8 have learnt"
        saved = folder(output, f"pr-{before}") / "iter_0000003"
        gone_on = train(PRETRAIN, tmp_path / after, "--resume-from", saved, **{**RUN, **start, "PR": after})
        assert [one.loss for one in gone_on] == pytest.approx([one.loss for one in begun[3:]], rel=1e-2)
        entries = FileSystemReader(saved).read_metadata().state_dict_metadata
        kinds[before] = {
            name: (str(getattr(entry, "size", "")), str(getattr(entry, "properties", ""))) for name, entry in entries.items()
        }
    assert kinds["fp8"] == kinds["bf16"] and "float8" not in str(kinds)


def export(checkpoint: Path, target: Path, alone: Layout) -> Path:
    """Convert to Hugging Face: bf16 weights, with which transformers computes what the checkpoint's weights give."""
    convert(checkpoint, target, back=True)
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    assert {weight.dtype for weight in theirs.parameters()} == {torch.bfloat16}
    tokens = torch.randint(0, 2048, (2, 48), generator=torch.Generator().manual_seed(1))
    options = dict(use_distributed_optimizer=False, precision="fp32", micro_batch_size=2, global_batch_size=2, seq_length=48)
    config = tiny_config(**options)
    apply_patches()
    ours = build_model(config, alone, choose_backend(config, alone)[0])
    load_weights(checkpoint, ours)
    with torch.no_grad():
        torch.testing.assert_close(forward(ours, config, tokens), theirs.float()(tokens).logits, atol=1e-4, rtol=0)
    return target


def test_lora_s_products_over_two_ranks_are_those_of_the_whole_matrices():
    run_ranks("tests.train.fp8_parts_worker", count=2)


def test_lora_s_base_products_in_parts_are_those_of_bf16(emulated, tmp_path):
    """Up to what FP8 rounds: with factors of whole matrices and of parts the norm is 1 to 2 % below bf16's."""
    both = dict(RUN, LR="1e-2")
    wanted = train(PRETRAIN, tmp_path / "bf16", "--lora-rank", 4, **{**both, "PR": "bf16"})
    here = train(PRETRAIN, tmp_path / "fp8", "--lora-rank", 4, **{**both, "processes": 2, "TP": 2, "SP": "true"})
    learn_the_same(here, wanted, 1e-3, norm=3e-2)
    assert here[-1].loss < here[0].loss != wanted[0].loss


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
