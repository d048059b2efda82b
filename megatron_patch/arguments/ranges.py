"""What the flags after the documented arguments may be; each finding is a sentence. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from megatron_patch.config import Options
from megatron_patch.formats.typed import number, path_problem

# The least value of each, and whether that value itself is allowed.
_LEAST: dict[str, tuple[float, bool]] = {
    "seed": (0, True),
    "weight_decay": (0, True),
    "adam_eps": (0, False),
    "clip_grad": (0, True),
    "init_method_std": (0, False),
    "initial_loss_scale": (1, True),
    "loss_scale_window": (1, True),
    "eval_interval": (0, True),
    "eval_iters": (1, True),
    "log_interval": (1, True),
    "num_workers": (0, True),
    "keep_last": (0, True),
    "exit_interval": (0, True),
    "exit_duration_in_mins": (0, True),
    "gradient_accumulation_steps": (1, True),
    "max_bad_fraction": (0, True),
    "profile_step_start": (1, True),
    "profile_step_end": (2, True),
    "timeout_minutes": (1, True),
}
# The most of each whole number, where it is not that of 31 bits.
_MOST = {"num_workers": 512, "timeout_minutes": 1_000_000, "gradient_accumulation_steps": 1_000_000}
_MOST_OF_ALL = (1 << 31) - 1


def option_findings(task: str, options: Options) -> Iterator[tuple[str, object, str]]:
    """(flag, what it got, what is allowed and what to write) of each that cannot be."""
    for name, (least, included) in _LEAST.items():
        value = getattr(options, name)
        if not math.isfinite(value) or value < least or (value == least and not included):
            kind = "whole number" if isinstance(value, int) else "number"
            bound = f"of at least {least:g}" if included else f"above {least:g}"
            yield _flag(name), value, f"it takes a {kind} {bound}: write {getattr(Options, name):g}, for example."
        most = _MOST.get(name, _MOST_OF_ALL)
        if isinstance(value, int) and value > most and name != "seed":
            yield _flag(name), value, f"it takes a whole number of at most {most}: write {getattr(Options, name):g}, for example."
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(options, name) < 1:
            yield _flag(name), getattr(options, name), f"it takes a number from 0 to below 1: write {getattr(Options, name):g}."
    yield from _others(task, options)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _others(task: str, options: Options) -> Iterator[tuple[str, object, str]]:
    if not _is_split(options.split):
        wanted = "it takes shares of training, validation and test, the first above 0, those left out 0: write 98,2,0."
        yield "--split", options.split, wanted
    if options.seed >= 1 << 31:
        yield "--seed", options.seed, f"it takes a number below {1 << 31}: write {Options.seed}, for example."
    if options.max_bad_fraction > 1:
        yield "--max-bad-fraction", options.max_bad_fraction, f"it takes a number from 0 to 1: write {Options.max_bad_fraction}."
    if options.profile and options.profile_step_end <= options.profile_step_start:
        wanted = f"it must be above --profile-step-start = {options.profile_step_start}: write {options.profile_step_start + 2}."
        yield "--profile-step-end", options.profile_step_end, wanted
    if problem := path_problem(options.tokenizer_path):
        yield "--tokenizer-path", options.tokenizer_path, problem
    elif options.tokenizer_path and not os.path.isdir(options.tokenizer_path):
        yield "--tokenizer-path", options.tokenizer_path, "there is no such folder: write the one that holds the tokenizer."
    if task == "pretrain" and options.gradient_accumulation_steps > 1:
        wanted = "it is for fine-tuning; here GLOBAL_BATCH_SIZE says it: remove the flag."
        yield "--gradient-accumulation-steps", options.gradient_accumulation_steps, wanted


def _is_split(text: str) -> bool:
    shares = [number(share.strip()) for share in text.split(",")]
    if len(shares) > 3 or any(share is None or share < 0 for share in shares):
        return False
    return bool(shares[0]) and math.isfinite(sum(share or 0.0 for share in shares))
