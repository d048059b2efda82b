"""The same tokens through transformers and through this project's model, in fp32 on the CPU.

`python -m megatron_patch.conversion.verify_logits SIDE FOLDER TOKENS OUTPUT GQA_LAYOUT` is one process, for one of the
two. There are two because memory then holds one model at a time, and because `core.cpu_redirection` must not change the
torch that transformers runs on.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from megatron_patch.config import PER_KV_HEAD, TrainConfig, one_process_config
from megatron_patch.errors import UserError
from megatron_patch.weights.table import Source

_SHAPE = (2, 48)  # B, S
# Of the largest logit. A wrong epsilon or rotary base moves logits by more.
_TOLERANCE = 2e-4
_ROUNDED_TOLERANCE = 5e-2  # where --dtype rounds the weights of one side


def verify_logits(
    source: Source, source_folder: Path, target: Path, *, to_hf: bool, rounded: bool, engine: str | None, gqa_layout: str
) -> str:
    """Compare both sides' logits [B, S, V] of random tokens. Needs memory for the model in fp32, 4 bytes a weight.

    Args:
        source: the conversion's source, for the size of its vocabulary.
        source_folder, target: the two checkpoints.
        to_hf: which of the two is the Hugging Face folder: the target if true.
        rounded: whether `--dtype` has rounded the target's weights, which logits show.
        engine: a Megatron-LM source tree whose megatron.core is used instead of the installed one.
        gqa_layout: as `open_source` takes it.

    Returns:
        A sentence on how near they are.

    Raises:
        UserError: transformers is not installed, a side does not load, or the logits differ.
    """
    hf, megatron = (target, source_folder) if to_hf else (source_folder, target)
    with tempfile.TemporaryDirectory() as folder:
        tokens = torch.randint(0, source.config.vocab_size, _SHAPE, generator=torch.Generator().manual_seed(1234))
        torch.save(tokens, Path(folder, "tokens.pt"))
        wanted = _logits("hf", hf, Path(folder), engine)
        got = _logits("megatron", megatron, Path(folder), engine, gqa_layout)
    columns = min(wanted.size(-1), got.size(-1), source.config.vocab_size)
    wanted, got = wanted[..., :columns], got[..., :columns]
    largest, difference = float(wanted.abs().max()), float((wanted - got).abs().max())
    limit = (_ROUNDED_TOLERANCE if rounded else _TOLERANCE) * largest
    if not difference <= limit:  # a NaN is not
        raise UserError(
            f"--verify-logits: logits differ by up to {difference:.3g} at a largest of {largest:.3g}; allowed is {limit:.2g}. "
            "Either config.json does not belong to the weights, or this is a fault of the converter: please report it."
        )
    return f"Logits agree with transformers' to {difference:.2g} at a largest of {largest:.3g} (fp32, CPU)."


def _logits(side: str, folder: Path, exchange: Path, engine: str | None, gqa_layout: str = PER_KV_HEAD) -> torch.Tensor:
    """Run one side's process, which finds tokens.pt in `exchange`. Returns its logits [B, S, V]."""
    output = exchange / f"{side}.pt"
    root = Path(__file__).resolve().parents[2]
    paths = [engine, str(root), os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    files = [str(folder.absolute()), str(exchange / "tokens.pt"), str(output), gqa_layout]
    command = [sys.executable, "-m", "megatron_patch.conversion.verify_logits", side, *files]
    result = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        if "No module named 'transformers'" in result.stderr:
            raise UserError("--verify-logits needs transformers; run: pip install 'transformers>=5,<6', or leave it out.")
        last = (result.stderr.strip().splitlines() or [f"status {result.returncode}"])[-1]
        ours = f"{UserError.__module__}.{UserError.__name__}: "
        # transformers has no class of its own for what a user can mend, so any of its errors may be that. Of this
        # project's, UserError alone is; any other is a bug, and keeps its traceback.
        if side == "megatron" and "Traceback" in result.stderr and not last.startswith(ours):
            raise RuntimeError(f"--verify-logits: {folder}:\n{result.stderr}")
        raise UserError(f"--verify-logits: {folder} does not load ({last.removeprefix(ours).rstrip('.')}).")
    return torch.load(output, weights_only=True)


def _hf_logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, S, V] by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(tokens).logits


def _megatron_logits(folder: Path, tokens: torch.Tensor, gqa_layout: str) -> torch.Tensor:
    """Logits [B, S, V] by this project's model, alone in its process groups."""
    from megatron_patch.checkpoint.initial_weights import load_weights
    from megatron_patch.core.patches import apply_patches
    from megatron_patch.core.transformer_config import transformer_config
    from megatron_patch.model.llama import LlamaModel
    from megatron_patch.weights.source import open_source

    source = open_source(folder, gqa_layout=gqa_layout)
    config = _single_process_config(source, folder)
    _join_alone()
    apply_patches()
    model = LlamaModel(transformer_config(config), source.config, config.vocab_size, "unfused").eval()
    load_weights(str(folder), model, gqa_layout)
    return model(tokens)


def _join_alone() -> None:
    """Process groups of one."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)


def _single_process_config(source: Source, folder: Path) -> TrainConfig:
    """The configuration of a run of one process; what only training asks for has any value."""
    return one_process_config(
        source.config,
        _SHAPE[1],
        extra_vocab_size=source.extra_vocab_size,
        load=str(folder),
        micro_batch_size=_SHAPE[0],
        global_batch_size=_SHAPE[0],
    )


def main(side: str, folder: str, tokens: str, output: str, gqa_layout: str) -> None:
    """One side's process: write the logits of `tokens` to `output`, both files of torch.save."""
    if side == "megatron":
        import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

    with torch.no_grad():
        rows = torch.load(tokens, weights_only=True)
        hf = side == "hf"
        logits = _hf_logits(Path(folder), rows) if hf else _megatron_logits(Path(folder), rows, gqa_layout)
        torch.save(logits.clone(), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
