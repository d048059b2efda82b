"""LoRA fine-tuning of LLaMA-2 7B by peft and transformers, for the figures of `through_script.py lora` beside it.

    pip install peft liger-kernel
    python benchmarks/peer_peft.py                      # one GPU, about three minutes
    python benchmarks/peer_peft.py --size tiny --ways plain --micro-batches 1    # any machine, to try the program

The same work as there: rank 16 on all linear layers, 8 samples of 2,048 random tokens a step, each of which is learnt,
bf16, attention by PyTorch's own fused kernels, fused AdamW, nothing computed again. `compiled` puts the model through
torch.compile, `liger` exchanges its norms, rotations, SwiGLU and loss for liger-kernel's. Each way and micro-batch runs
in a process of its own; what fails is printed, and the next one goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from children import alone
from megatron_patch.formats.peft_adapter import TARGETS
from megatron_patch.llama.model_config import LLAMA_SIZES, to_hf_config

RANK, SAMPLES, LENGTH = 16, 8, 2048
WARM_UP, MEASURED = 3, 5
WAYS = ("plain", "compiled", "liger")
SIZES = {"7B": LLAMA_SIZES["llama2-7b"], "tiny": LLAMA_SIZES["tiny"]}


def build(size: str, way: str, device: torch.device) -> torch.nn.Module:
    """A model with random weights and adapters in bf16, in training mode."""
    import peft
    import transformers

    values = to_hf_config(SIZES[size], dtype="bfloat16")
    config = transformers.LlamaConfig(**{name: value for name, value in values.items() if name != "architectures"})
    if way == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    adapters = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False).train()
    return torch.compile(model) if way == "compiled" else model


def measure(size: str, way: str, micro_batch: int) -> dict:
    """Tokens per second, the median of MEASURED steps, and the most memory in GiB; or the error that ended it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = LENGTH if size == "7B" else 128
    spent = []
    try:
        torch.manual_seed(0)
        model = build(size, way, device)
        learnt = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(learnt, lr=1e-5, weight_decay=0.1, fused=True)
        for _ in range(WARM_UP + MEASURED):
            rows = torch.randint(3, SIZES[size].vocab_size, (SAMPLES, length)).to(device)
            started = time.perf_counter()
            for part in rows.split(micro_batch):
                (model(input_ids=part, labels=part).loss * micro_batch / SAMPLES).backward()
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent.append(time.perf_counter() - started)
    except Exception as error:
        # A peer's failure is a line of the table, so that the others are still measured.
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"tokens_per_second": SAMPLES * length / statistics.median(spent[WARM_UP:]), "gib": memory}


def main() -> None:
    """Measure each way at each micro-batch, and print a line for it as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="7B")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for way in arguments.ways:
        for micro_batch in arguments.micro_batches:
            found = alone(measure, arguments.size, way, micro_batch)
            results[f"{way} {micro_batch}"] = found
            shown = found.get("error") or f"{found['tokens_per_second']:9.0f} tokens/s {found['gib']:7.1f} GiB"
            print(f"peft {way:9} micro-batch {micro_batch}: {shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
