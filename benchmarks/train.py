"""Training speed of named shapes: random weights and tokens in memory, and the training loop's own step.

    python benchmarks/train.py 7b-bf16 7b-fp16 --steps 6 --json out.json
    python benchmarks/train.py 7b-bf16 --peer hf        # the Hugging Face loop in the same run

Every measurement has a process of its own, so that its GPU memory is free for the next one. It prints tokens per second
(of the median step), the share of 989 TFLOP/s and of the rate of products that is measured in the same run, peak
memory, and with --kinds the GPU time of a step by kind of kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import megatron_patch.core.device as device
import torch
from megatron_patch.config import Options, TrainConfig, one_process_config
from megatron_patch.core import parallel
from megatron_patch.llama.model_config import LLAMA_SIZES
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from children import alone

DATASHEET_TFLOPS = 989.0  # dense bf16 of the H100 and H200

_BASE = dict(size="llama2-7b", precision="bf16", fl=True, ac="sel", do=True, mbs=1, gbs=8, seq=2048)
SHAPES = {
    "7b-bf16": _BASE,
    "7b-fp16": {**_BASE, "precision": "fp16"},
    "7b-seed-example": {**_BASE, "precision": "fp16", "fl": False},
    "7b-fp8": {**_BASE, "precision": "fp8"},
    "7b-mbs2": {**_BASE, "mbs": 2},
    "7b-seq4096": {**_BASE, "seq": 4096, "gbs": 4},
    "tiny-bf16": {**_BASE, "size": "tiny", "seq": 512},
    "tiny-fp32": {**_BASE, "size": "tiny", "seq": 128, "precision": "fp32", "mbs": 2, "gbs": 4},
}


def config_of(shape: dict, options: Options, layers: int | None) -> TrainConfig:
    """The configuration of a shape in one process; `layers` cuts the model to so many."""
    model = LLAMA_SIZES[shape["size"]]
    return one_process_config(
        replace(model, num_layers=layers) if layers else model,
        shape["seq"],
        name="benchmark",
        output_path="benchmark_output",
        use_distributed_optimizer=shape["do"],
        precision=shape["precision"],
        recompute=shape["ac"],
        use_flash_attn=shape["fl"],
        micro_batch_size=shape["mbs"],
        global_batch_size=shape["gbs"],
        lr=1e-5,
        min_lr=1e-6,
        train_iters=1000,
        options=options,
    )


def random_batches(config: TrainConfig, layout: parallel.Layout):
    """Endless micro-batches of random tokens on the device, all of them learnt."""
    generator = torch.Generator().manual_seed(0)
    while True:
        tokens = torch.randint(0, config.vocab_size, (config.micro_batch_size, config.seq_length + 1), generator=generator)
        mask = torch.ones(config.micro_batch_size, config.seq_length)
        batch = {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous(), "loss_mask": mask}
        yield {key: value.to(layout.device) for key, value in batch.items()}


def start(config: TrainConfig) -> parallel.Layout:
    """Start this process as the only one of its run."""
    for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("MASTER_PORT", 29599)):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    return parallel.start(config)


def measure(config: TrainConfig, steps: int, kinds: bool) -> dict:
    """The median tokens per second of `steps` iterations after three that are not counted, and memory.

    An iteration lasts from the moment its loss is known to the moment the next one's is, as in the log lines of
    training.
    """
    layout = start(config)
    state = build_state(config, layout, RunLog(config, active=False), config.train_iters)
    batches = random_batches(config, layout)
    known, losses = [], []
    for _ in range(steps + 3):
        losses.append(train_step(state, batches).loss)
        known.append(time.perf_counter())
    times = [after - before for before, after in zip(known[2:], known[3:])]
    tokens = config.global_batch_size * config.seq_length
    rate = tokens / statistics.median(times)
    flops = config.model.flops_per_token(config.seq_length)
    result = {
        "tokens_per_second": rate,
        "step_seconds": times,
        "share_of_989": rate * flops / 1e12 / DATASHEET_TFLOPS,
        "model_tflops": rate * flops / 1e12,
        "peak_gib": device.max_memory_allocated() / 2**30,
        "losses": losses,
    }
    if kinds and device.HAS_CUDA:
        device.synchronize()  # the last step's update still runs
        result["kinds"], result["kernels"] = kernel_times(state, batches)
    return result


# Kind of kernel → what its name contains; the first kind that fits is taken. On Hopper cuBLAS's names end in the types
# of factors and result: tss is 16 bits to float32.
_KINDS = (
    ("attention", ("cudnn", "flash", "fmha", "sdpa")),
    ("weight gradients", ("nvjet_sm90_tss", "nvjet_sm90_hss", "nvjet_sm90_oss")),
    ("products", ("gemm", "nvjet", "cutlass", "sm90_xmma", "matmul")),
    ("casts to FP8", ("_cast_kernel", "_largest_kernel")),
    ("AdamW", ("adamw",)),
    ("RoPE", ("rotation",)),
    ("loss", ("_loss_",)),
    ("RMSNorm", ("_rms_norm_",)),
    ("gradient norm", ("_norm_kernel",)),
    ("SwiGLU", ("_swiglu_",)),
    ("softmax", ("softmax",)),
    ("embedding", ("_runs_kernel", "sort", "radix", "indexselect", "vectorized_gather")),
    ("copies and memory", ("memcpy", "memset", "copy", "fill")),
)


def kernel_times(state, batches) -> tuple[dict[str, float], list]:
    """(GPU milliseconds a step by kind of kernel, gaps included; the longest kernels), from two steps in a row."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        train_step(state, batches)
        train_step(state, batches)
        torch.cuda.synchronize()
    spans = sorted((e.time_range.start, e.time_range.end, e.name) for e in profile.events() if e.device_type.name == "CUDA")
    kinds: dict[str, float] = defaultdict(float)
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    ended = spans[0][0]
    for start, end, name in spans:
        gap, ended = start - ended, max(ended, end)
        kinds["idle, below 20 us each" if gap < 20 else "idle, above 20 us each"] += max(gap, 0) / 2000
        kind = next((kind for kind, words in _KINDS if any(word in name.lower() for word in words)), "other")
        kinds[kind] += (end - start) / 2000
        rows[name[:110]][0] += (end - start) / 2000
        rows[name[:110]][1] += 0.5
    return dict(kinds), sorted(((round(ms, 2), count, name) for name, (ms, count) in rows.items()), reverse=True)[:40]


def product_rates() -> dict | None:
    """TFLOP/s of bf16 products of 8192³ random numbers; None without a GPU.

    `short` is that of ten in a row, `kept_up` that of a second's. A second brings the GPU to its power limit, where
    training runs.
    """
    if not device.HAS_CUDA:
        return None
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def rate(count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            torch.mm(a, b, out=out)
        end.record()
        torch.cuda.synchronize()
        return 2 * 8192**3 * count / start.elapsed_time(end) / 1e9

    rate(3)
    return {"device": torch.cuda.get_device_name(), "short": rate(10), "kept_up": rate(600)}


def describe(rates: dict | None) -> str:
    """The GPU, torch's version and the rates of `product_rates`, as a line."""
    if rates is None:
        return f"no GPU, torch {torch.__version__}"
    return (
        f"{rates['device']}, torch {torch.__version__}; matrix products in TFLOP/s: {rates['short']:.0f}, "
        f"kept up {rates['kept_up']:.0f}"
    )


def hugging_face(config: TrainConfig, steps: int) -> dict:
    """Measure the same shape with transformers: what people write without Megatron.

    It is LlamaForCausalLM in fp32 under autocast, with fused AdamW and accumulation over micro-batches. Layers are
    recomputed in the backward pass, because 7B does not fit an H200 otherwise.
    """
    layout = start(config)
    from transformers import LlamaConfig, LlamaForCausalLM

    from megatron_patch.llama.model_config import to_hf_config

    values = to_hf_config(config.model, dtype="float32")
    with torch.device(layout.device):
        model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in values.items() if k != "architectures"}))
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = random_batches(config, layout)
    count = config.global_batch_size // config.micro_batch_size
    times = []
    for index in range(steps + 2):
        device.synchronize()
        started = time.perf_counter()
        for _ in range(count):
            batch = next(batches)
            with torch.autocast(layout.device.type, dtype=torch.bfloat16):
                loss = model(input_ids=batch["tokens"], labels=batch["labels"], shift_labels=batch["labels"]).loss
            (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        device.synchronize()
        if index >= 2:
            times.append(time.perf_counter() - started)
    rate = config.global_batch_size * config.seq_length / statistics.median(times)
    return {"tokens_per_second": rate, "peak_gib": device.max_memory_allocated() / 2**30}


def main() -> None:
    """Parse, measure each shape in a process of its own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--layers", type=int, help="fewer layers than the size has")
    parser.add_argument("--kinds", action="store_true", help="GPU time by kind of kernel")
    parser.add_argument("--peer", choices=["hf"])
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel from Python")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    options = Options(cuda_graphs=not arguments.no_graphs)
    configs = {name: config_of(SHAPES[name], options, arguments.layers) for name in arguments.shapes}
    rates = alone(product_rates)
    results: dict[str, dict | None] = {"products": rates}
    print(describe(rates), flush=True)
    print(f"{'shape':18} {'tokens/s':>9} {'TFLOP/s':>8} {'of 989':>7} {'of kept up':>10} {'peak GiB':>8}", flush=True)
    for name, config in configs.items():
        result = alone(measure, config, arguments.steps, arguments.kinds)
        results[name] = result
        share = f"{result['model_tflops'] / rates['kept_up']:.1%}" if rates else "-"
        print(
            f"{name:18} {result['tokens_per_second']:9.0f} {result['model_tflops']:8.1f} "
            f"{result['share_of_989']:7.1%} {share:>10} {result['peak_gib']:8.1f}",
            flush=True,
        )
        for kind, milliseconds in sorted(result.get("kinds", {}).items(), key=lambda item: -item[1]):
            print(f"    {kind:20} {milliseconds:9.1f} ms")
        for row in result.get("kernels", [])[:24]:
            print("       ", *row)
        if arguments.peer:
            peer = alone(hugging_face, config, arguments.steps)
            results[f"{name} hf"] = peer
            print(f"{name + ' hf':18} {peer['tokens_per_second']:9.0f} {'':26} {peer['peak_gib']:8.1f}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
