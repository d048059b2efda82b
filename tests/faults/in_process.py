"""A run in this process: the loop, the start and the checkpoints of a real one, without its scripts.

A start of the scripts takes seconds of importing; here a fault takes a few hundredths.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from megatron_patch.config import Options, TrainConfig
from megatron_patch.core import parallel
from megatron_patch.data.batches import RunData, plan_of
from megatron_patch.llama.model_config import LLAMA_SIZES
from megatron_patch.train import loop
from megatron_patch.train.setup import build_state
from megatron_patch.train.start import start_state
from megatron_patch.train.state import TrainState
from tests.tiny import tiny_config

ITERATIONS, EVERY = 8, 2  # of a whole run, and of two saves
MODEL = replace(LLAMA_SIZES["tiny"], num_layers=1, hidden_size=32, ffn_hidden_size=48, num_attention_heads=2, vocab_size=64)


class Samples:
    """Forty random samples of 16 tokens. None has the vocabulary's last token."""

    def __init__(self) -> None:
        tokens = torch.randint(0, MODEL.vocab_size - 1, (40, 17), generator=torch.Generator().manual_seed(5))
        self.rows = [{"tokens": row[:-1], "labels": row[1:], "loss_mask": torch.ones(16)} for row in tokens]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.rows[index]


@dataclass
class Log:
    """What the run says."""

    active: bool = True
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    def began(self, *_: object) -> None:
        """It is no sink."""

    def step(self, iteration: int, loss: float | None) -> None:
        if loss is not None:
            self.losses[iteration] = loss

    def numbers(self, *_: object) -> None:
        """The losses are in `step`."""

    def iteration_line(self, text: str) -> None:
        self.lines.append(text)

    def make_room(self) -> None:
        """It has no terminal."""

    def event(self, *_: object, **values: object) -> None:
        """What happens is in the lines."""


def config_of(folder: Path, iterations: int = ITERATIONS, every: int = EVERY, **changed: object) -> TrainConfig:
    """fp32 under ZeRO; options of the run may stand among `changed`."""
    names = Options.__dataclass_fields__
    options = Options(num_workers=0, **{name: changed.pop(name) for name in [*changed] if name in names})
    return tiny_config(
        **{"output_path": str(folder), "precision": "fp32", "model": MODEL, "train_iters": iterations, "save_interval": every,
           "options": options, **changed}
    )  # fmt: skip


def train(config: TrainConfig, layout: parallel.Layout, meddle: Callable[[TrainState, int], object] | None = None) -> tuple:
    """One start of the command: (the state at its end, its log).

    Args:
        meddle: is called before each step with the state and the iterations that are done.
    """
    parallel.seed_everything(config.options.seed)
    log, samples = Log(), Samples()
    state = build_state(config, layout, log, config.train_iters)
    start_state(state, log)
    plan = plan_of(config, 1, len(samples), shuffled=True)
    data = RunData(samples, plan, (), config.train_iters, 0, config.save_interval)
    step = loop.train_step
    try:
        if meddle is not None:
            loop.train_step = lambda one, batches: (meddle(one, one.iteration), step(one, batches))[1]
        loop.run(state, data, log)
    except Exception as error:
        error.log = log
        raise
    finally:
        loop.train_step = step
    return state, log


def digest(state: TrainState) -> dict[str, str]:
    """Name → SHA-256 of each weight and of its optimizer state."""
    found = {name: value for name, value in state.model.named_parameters()}
    inner = state.optimizer.chained_optimizers[0].optimizer
    for number, (_, values) in enumerate(inner.state.items()):
        found |= {f"{number}.{name}": value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return {
        name: hashlib.sha256(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in found.items()
    }


def root_of(config: TrainConfig) -> Path:
    return Path(config.checkpoint_folder)


def iterations_in(config: TrainConfig) -> list[str]:
    """The names of what lies in the run's folder of checkpoints, files of it left out."""
    return sorted(path.name for path in root_of(config).iterdir() if path.is_dir())
