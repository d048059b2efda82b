"""Generation and evaluation on one GPU: LLaMA-2 7B in bf16 with random weights, beside transformers' generate.

    python benchmarks/generate.py                            # about four minutes
    python benchmarks/generate.py --only check ours --batches 1 32

Prompts of 512 tokens, answers of 512. Each part is a process of its own, so that what fails in one loses no other. All
of them compile beside each other; then they measure one after the other, alone on the GPU:

    check         the kernels of decoding, as a CUDA graph, against plain PyTorch: the same greedy tokens in fp32
    ours          tokens/s, the share of what reading weights and cache at the speed of a copy would allow, time by
                  kernel, the distance of logits from float32's; prompts and evaluation, as shares of the products' rate
    peer-B        transformers' generate at batch B, static cache, compiled
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.children import end_with_me
from benchmarks.generation_speed import ANSWER, DEVICE, GO, MODEL, PROMPT, check, ours, timed, wait_for_turn


def peer(batch: int) -> None:
    """transformers' generate; the time for a first token is taken off."""
    import transformers

    torch.set_float32_matmul_precision("high")
    config = transformers.LlamaConfig(
        hidden_size=MODEL.hidden_size, intermediate_size=MODEL.ffn_hidden_size, num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_attention_heads, num_key_value_heads=MODEL.num_query_groups, vocab_size=MODEL.vocab_size,
        max_position_embeddings=4096,
    )  # fmt: skip
    with torch.device(DEVICE):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    ids = torch.randint(3, MODEL.vocab_size, (batch, PROMPT), device=DEVICE)

    def generate(new: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.no_grad():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                eos_token_id=None, pad_token_id=0, cache_implementation="static",
            )  # fmt: skip
        torch.cuda.synchronize()
        assert made.shape[1] == PROMPT + new
        return time.perf_counter() - started

    spent = [generate(ANSWER) for _ in range(2)]
    print(f"# peer batch {batch}: warm-ups {spent}", flush=True)
    wait_for_turn()
    whole = min(generate(ANSWER) for _ in range(2))
    with torch.no_grad():
        first = timed(lambda: model(ids, logits_to_keep=1), 0.3) / 1e3
    rate = batch * (ANSWER - 1) / (whole - first)
    print(
        f"peer   batch {batch}: transformers {transformers.__version__}, static cache, compiled: {rate:,.0f} tokens/s "
        f"behind the prompts ({first:.3f} s), {batch * ANSWER / whole:,.0f} with them",
        flush=True,
    )


class Child:
    """One part's process; its lines are printed as they come."""

    def __init__(self, name: str, batches: list[int]) -> None:
        environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-u", __file__, "--part", name, "--batches", *map(str, batches)]
        self.name, self.ready = name, threading.Event()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            preexec_fn=end_with_me(),
        )
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        for line in self.process.stdout:
            if line.strip() == "READY":
                self.ready.set()
            else:
                print(f"[{self.name}] {line}", end="", flush=True)
        self.ready.set()

    def measure(self, seconds: float) -> None:
        """Let it measure alone."""
        try:
            self.process.stdin.write(GO + "\n")
            self.process.stdin.flush()
            self.process.wait(seconds)
        except (BrokenPipeError, subprocess.TimeoutExpired) as error:
            print(f"[{self.name}] ended: {type(error).__name__}", flush=True)
        finally:
            self.process.kill()
            self.thread.join(5)


def main() -> None:
    """Parse; start the parts; let them measure in turn."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("check", "ours", "peer"), default=("check", "ours", "peer"))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=225.0, help="what is not done by then is left out")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, _, batch = options.part.partition("-")
        {"check": check, "ours": ours, "peer": lambda _: peer(int(batch))}[name](options.batches)
        return
    left = lambda: options.seconds - (time.perf_counter() - started)  # noqa: E731
    names = [name for name in ("check", "ours") if name in options.only]
    peers = [f"peer-{batch}" for batch in options.batches] if "peer" in options.only else []
    roomy = torch.cuda.get_device_properties(0).total_memory > 120e9
    children = [Child(name, options.batches) for name in names + (peers if roomy else [])]
    for child in children:
        child.ready.wait(max(1.0, min(110.0 - (time.perf_counter() - started), left())))
    print(f"# ready after {time.perf_counter() - started:.0f} s: {[c.name for c in children if c.ready.is_set()]}", flush=True)
    for child in children:
        child.ready.wait(max(1.0, left() / 2))
        child.measure(max(5.0, left()))
    for name in [] if roomy else peers:
        child = Child(name, options.batches)
        child.ready.wait(max(1.0, left()))
        child.measure(max(5.0, left()))
    print(f"# {time.perf_counter() - started:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
