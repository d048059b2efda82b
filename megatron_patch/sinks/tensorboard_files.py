"""TensorBoard's event files in `tensorboard/NAME_DATE/`: scalars, the configuration as text, hyperparameters, a layout.

Scalars have Megatron's tags, which people's scripts read. TensorBoard makes a section of each tag that has no slash,
and sorts sections by name, so that it would open with the batch size. So a few numbers are written a second time, as
one section whose name sorts first. The tab Custom Scalars has the same order and more, from a layout in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.sinks.sink import RunStart, Sink, flat

# Megatron writes these over iterations alone, and its others over consumed samples too. The speeds are this project's.
_OVER_ITERATIONS = ("throughput", "mem-max-allocated-bytes", "tokens-per-second", "tokens-per-second-per-gpu")
# What one looks at first, by tag. The section's name sorts before `batch-size`, and the numbers order its charts.
FIRST_SIGHT = {
    "lm loss": "at a glance/1 lm loss",
    "lm loss validation": "at a glance/2 lm loss validation",
    "learning-rate": "at a glance/3 learning rate",
    "grad-norm": "at a glance/4 gradient norm",
    "tokens-per-second": "at a glance/5 tokens per second",
}
# Section → chart → its tags, as patterns that must match a whole tag.
_LAYOUT: dict[str, dict[str, tuple[str, ...]]] = {
    "loss": {
        "training and validation": ("lm loss", "lm loss validation"),
        "each validation file": (r"lm loss validation/.*(?<! vs samples)",),
        "over consumed samples": ("lm loss vs samples", "lm loss validation vs samples"),
        "perplexity of validation": ("lm loss validation ppl",),
    },
    "optimization": {"learning rate": ("learning-rate",), "gradient norm": ("grad-norm",), "loss scale": ("loss-scale",)},
    "speed and memory": {
        "tokens per second": ("tokens-per-second",),
        "TFLOP/s of a GPU": ("throughput",),
        "seconds of an iteration": ("iteration-time",),
        "largest allocated memory of a GPU, bytes": ("mem-max-allocated-bytes",),
    },
}


class TensorBoardFiles(Sink):
    """The event files of one start of a run."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), max_queue=100, flush_secs=30)

    def began(self, start: RunStart) -> None:
        """Write the configuration, the hyperparameters and the layout."""
        self._writer.add_text("configuration", as_table(start.config, start.world_size), start.iteration)
        layout = {
            section: {title: ("Multiline", [f"^{tag}$" for tag in tags]) for title, tags in charts.items()}
            for section, charts in _LAYOUT.items()
        }
        self._writer.add_custom_scalars(layout)
        self._add_hyperparameters(hyperparameters(start.config, start.world_size))

    def _add_hyperparameters(self, values: Mapping[str, str | int | float | bool]) -> None:
        """Write them into this folder's own file. The writer's `add_hparams` makes a folder of its own for them."""
        from torch.utils.tensorboard.summary import hparams

        # The numbers by which the tab HParams compares runs; their values are those of the scalars.
        compared = dict.fromkeys(("lm loss", "lm loss validation", "tokens-per-second"), 0.0)
        # torch would write true and false as 1.0 and 0.0.
        shown = {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
        for summary in hparams(shown, compared):
            self._writer._get_file_writer().add_summary(summary)

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Write a scalar for each value over iterations, and over samples where Megatron does."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, iteration)
            if tag not in _OVER_ITERATIONS:
                self._writer.add_scalar(f"{tag} vs samples", value, samples)
            if tag in FIRST_SIGHT:
                self._writer.add_scalar(FIRST_SIGHT[tag], value, iteration)

    def close(self) -> None:
        """Write what is left, and close."""
        self._writer.close()


def as_table(config: TrainConfig, world_size: int) -> str:
    """Every setting with its value, as a table in Markdown."""
    rows = [("setting", "value"), ("---", "---"), ("processes", str(world_size))]
    for name, value in flat(config.as_dict()).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append((f"`{name}`", text.replace("|", r"\|").replace("\n", " ")))
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def hyperparameters(config: TrainConfig, world_size: int) -> dict[str, str | int | float | bool]:
    """What runs are compared by: what decides the learning, and the layout that decides the speed."""
    options = config.options
    return {
        "task": config.task,
        "parameters": config.model.parameter_count(config.extra_vocab_size),
        "processes": world_size,
        "TP": config.tensor_model_parallel_size,
        "PP": config.pipeline_model_parallel_size,
        "DO": config.use_distributed_optimizer,
        "SP": config.sequence_parallel,
        "AC": config.recompute,
        "FL": config.use_flash_attn,
        "PR": config.precision,
        "BATCH_SIZE": config.micro_batch_size,
        "GLOBAL_BATCH_SIZE": config.global_batch_size,
        "sample length": config.sample_length,
        "LR": config.lr,
        "MIN_LR": config.min_lr,
        "warmup iterations": config.warmup_iters,
        "weight decay": options.weight_decay,
        "Adam beta 1": options.adam_beta1,
        "Adam beta 2": options.adam_beta2,
        "clip": options.clip_grad,
        "packing": options.packing,
        "seed": options.seed,
    }
