"""Memory on paper equals peaks that were measured on H200s, and what torch allocates for a tiny model's state."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.llama.model_config import LLAMA_SIZES
from megatron_patch.plan.memory import RunShape, memory_of_stages, stage_parameters

# GPUs, model, (TP, PP), what differs from bf16, FL true, AC sel, S 2048, micro-batch 1 in pairs, DO true; global batch;
# measured GiB of torch's `max allocated` on the last rank. Measured with torch 2.11 through
# run_pretrain_megatron_llama.sh.
SINGLE, FOURS = {"in_a_pass": 1}, {"in_a_pass": 4}
MEASURED = [
    (1, "7b", (1, 1), {}, 8, 117.1),
    (1, "7b", (1, 1), SINGLE, 8, 108.9),
    (1, "7b", (1, 1), {"precision": "fp16"}, 8, 129.7),
    (1, "7b", (1, 1), {"micro_batch_size": 2}, 8, 133.6),
    (1, "7b", (1, 1), {"sample_length": 4096}, 4, 133.6),
    (1, "7b", (1, 1), {"precision": "fp16", "use_flash_attn": False, **SINGLE}, 8, 121.7),
    (2, "7b", (1, 1), {}, 16, 85.8),
    (2, "7b", (1, 1), SINGLE, 16, 77.5),
    (2, "7b", (2, 1), SINGLE, 16, 54.5),
    (4, "7b", (1, 1), {}, 32, 70.1),
    (4, "7b", (4, 1), {}, 32, 29.4),
    (4, "7b", (2, 1), SINGLE, 32, 38.8),
    (4, "7b", (1, 2), SINGLE, 32, 39.0),
    (4, "7b", (1, 4), SINGLE, 32, 28.6),
    (4, "7b", (2, 2), SINGLE, 32, 27.4),
    (4, "7b", (1, 1), {"precision": "fp16", "use_flash_attn": False, **SINGLE}, 32, 65.2),
    (4, "13b", (1, 1), {}, 32, 128.9),
    (4, "7b", (2, 1), {}, 32, 43.0),
    (1, "7b", (1, 1), {"precision": "fp16", "use_flash_attn": False}, 8, 129.9),
    (1, "7b", (1, 1), {"recompute": "full"}, 8, 102.2),
    (1, "7b", (1, 1), {"precision": "fp8"}, 8, 127.4),
    (1, "7b", (1, 1), {"precision": "fp8", "micro_batch_size": 2, **SINGLE}, 8, 127.4),
    (1, "7b", (1, 1), FOURS, 8, 133.6),
    (2, "7b", (1, 1), FOURS, 16, 102.2),
    (2, "7b", (1, 1), {"precision": "fp8", **FOURS}, 16, 110.6),
    (1, "7b", (1, 1), {"lora": LoraConfig(16, 32), **FOURS}, 8, 46.0),
    (2, "70b", (2, 1), {"lora": LoraConfig(16, 32)}, 8, 108.8),
    (4, "7b", (1, 1), FOURS, 32, 86.7),
    (4, "7b", (4, 1), FOURS, 32, 33.8),
    (4, "7b", (1, 1), {"precision": "fp8", **FOURS}, 32, 95.0),
    (4, "70b", (4, 1), {"lora": LoraConfig(16, 32), "micro_batch_size": 2}, 8, 76.7),
]


def shape(gpus, size, layout, changed, batch):
    tp, pp = layout
    replicas = gpus // (tp * pp)
    values = dict(
        model=LLAMA_SIZES[f"llama2-{size}"], extra_vocab_size=0, precision="bf16", sample_length=2048, micro_batch_size=1,
        data_parallel_size=replicas, tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, sequence_parallel=tp > 1,
        use_distributed_optimizer=True, use_flash_attn=True, recompute="sel", in_a_pass=2,
    ) | changed  # fmt: skip
    return RunShape(**values, micro_batches=batch // (replicas * values["micro_batch_size"]))


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{case[1]} on {case[0]}, TP{case[2][0]} PP{case[2][1]} {case[3]}")
def test_the_peak_is_within_three_hundredths(case):
    *what, measured = case
    last = memory_of_stages(shape(*what))[-1]
    assert last.allocated / 2**30 == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("size", ["tiny", "llama2-7b", "llama2-70b"])
@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_the_stages_together_have_the_model_s_parameters(size, layout):
    """Split weights once, and the norms, which every tensor-parallel rank has, as often as there are ranks."""
    model, (tp, pp) = LLAMA_SIZES[size], layout
    run = shape(tp * pp, "7b", layout, {"model": model}, 8)
    norms = (2 * model.num_layers + 1) * model.hidden_size
    assert tp * sum(stage_parameters(run, stage) for stage in range(pp)) == model.parameter_count() + (tp - 1) * norms


def test_lora_of_7b_fits_into_a_card_of_24_gb():
    """Frozen weights in 2 bytes, nothing else of them; 40 million trained parameters."""
    fields = dict(
        model=LLAMA_SIZES["llama2-7b"], extra_vocab_size=0, precision="bf16", sample_length=2048, micro_batch_size=1,
        micro_batches=8, data_parallel_size=1, tensor_model_parallel_size=1, pipeline_model_parallel_size=1,
        sequence_parallel=False, use_distributed_optimizer=True, use_flash_attn=True, recompute="full",
    )  # fmt: skip
    run = RunShape(**fields, lora=LoraConfig(16, 32))
    (stage,) = memory_of_stages(run)
    trained = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert stage.gradients == 4 * trained and stage.optimizer == 10 * trained
    assert stage.weights == 2 * (LLAMA_SIZES["llama2-7b"].parameter_count() + trained)
    assert stage.total < 18 * 2**30 < memory_of_stages(RunShape(**fields))[0].total
    (fp8,) = memory_of_stages(RunShape(**{**fields, "precision": "fp8"}, lora=LoraConfig(16, 32)))
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert fp8.weights == stage.weights + 2 * linear, "two copies of 8 bits"
    kept = replace(run, recompute="none")
    drops = replace(kept, lora=LoraConfig(16, 32, dropout=0.1))
    more = memory_of_stages(drops)[0].activations - memory_of_stages(kept)[0].activations
    assert more == 32 * 2048 * (3 * 4096 + 11008 + 2 * 4096), "masks of a byte, and the context as the adapter reads it"
    assert (fp8.gradients, fp8.optimizer, fp8.activations) == (stage.gradients, stage.optimizer, stage.activations)
