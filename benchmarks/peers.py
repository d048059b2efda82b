"""Other trainers on this machine's GPUs, for `through_script.py --peer`: their best of several micro-batches."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from children import end_with_me

FOLDER = Path(__file__).resolve().parent
WARM_UP = 3


def torchtitan(size: str, gpus: int, sequence: int, global_batch: int, local_batch: int, steps: int, timeout: float) -> dict:
    """torchtitan with FSDP over `gpus`, compiled: the median of tokens per second and GPU, and its memory.

    It recomputes what its default recomputes. `failed` says why there are no figures: memory, as a rule.
    """
    with tempfile.TemporaryDirectory() as output:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}",
            str(FOLDER / "peer_torchtitan.py"), size, "--compile.enable", "--metrics.log_freq=1", f"--training.steps={steps}",
            f"--training.seq_len={sequence}", f"--training.local_batch_size={local_batch}",
            f"--training.global_batch_size={global_batch}", f"--job.dump_folder={output}",
        ]  # fmt: skip
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))), "LOG_RANK": "0"}
        kept = dict(capture_output=True, text=True, check=False)
        try:
            done = subprocess.run(command, env=environment, preexec_fn=end_with_me(), timeout=timeout, **kept)
        except subprocess.TimeoutExpired:
            return {"failed": f"nothing after {timeout:.0f} s"}
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"step: +\d+ .*?tps: ([\d,]+)", said)]
    if len(rates) < steps:
        faults = re.findall(r"(?:\w+Error|\w+Exception): .+", said)
        return {"failed": faults[0] if faults else said[-300:]}
    memory = re.findall(r"memory: +([\d.]+)GiB", said)
    return {"tokens_per_second": statistics.median(rates[WARM_UP:]), "lines": rates, "peak_gib": float(memory[-1])}


def best_of_torchtitan(size: str, gpus: int, sequence: int, global_batch: int, options) -> str:
    """A line for the table: the fastest of the micro-batches `options.peer_batches`, and what became of each."""
    tried = {
        rows: torchtitan(size, gpus, sequence, global_batch, rows, WARM_UP + 5, options.timeout) for rows in options.peer_batches
    }
    whole = {rows: found for rows, found in tried.items() if "failed" not in found}
    said = ", ".join(f"{rows}: {found.get('failed') or round(found['tokens_per_second'])}" for rows, found in tried.items())
    if not whole:
        return f"torchtitan, {gpus} GPUs: {said}"
    best = max(whole, key=lambda rows: whole[rows]["tokens_per_second"])
    name = f"torchtitan x{gpus}"
    return (
        f"{name:16} {whole[best]['tokens_per_second']:9.0f} {'':9} {'':9} {whole[best]['peak_gib']:8.1f} (micro-batches {said})"
    )
