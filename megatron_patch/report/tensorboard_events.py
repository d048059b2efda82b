"""A start of a run that left no metrics.jsonl, from TensorBoard's event files. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.report.start import NAN, VALIDATION, Start, columns

_TAGS = {
    "lm loss": "loss",
    "learning-rate": "learning_rate",
    "grad-norm": "grad_norm",
    "loss-scale": "loss_scale",
    "iteration-time": "seconds_per_iteration",
    "throughput": "tflops_per_gpu",
    "tokens-per-second": "tokens_per_second",
    "mem-max-allocated-bytes": "max_allocated_bytes",
}
_RATE, _VALID = "learning-rate", "lm loss validation"  # each line has the first; a line may lack its loss
_OVER_SAMPLES = " vs samples"


def read_events(date: str, folder: Path) -> Start:
    """The start whose event files lie in `folder`.

    Raises:
        UserError: a file is none of TensorBoard's, or is damaged.
    """
    scalars, moments = _scalars(folder)
    start = Start(date, from_events=True)
    samples = _samples(scalars, _RATE)
    for iteration in sorted(scalars[_RATE]):
        line = {key: scalars[tag].get(iteration, NAN) for tag, key in _TAGS.items() if tag in scalars}
        line |= {"iteration": iteration, "consumed_samples": samples.get(iteration, NAN)}
        start.append(start.training, line, moments.get(iteration, NAN))
    for tag in sorted(scalars):
        name = tag.removeprefix(_VALID).removeprefix("/")
        if tag not in (_VALID, f"{_VALID}/{name}") or tag.endswith(_OVER_SAMPLES):
            continue
        validated = _samples(scalars, tag)
        for iteration, loss in sorted(scalars[tag].items()):
            line = {"iteration": iteration, "loss": loss, "consumed_samples": validated.get(iteration, NAN)}
            start.append(start.validation.setdefault(name, columns(VALIDATION)), line, moments.get(iteration, NAN))
    if moments:
        start.began, start.ended = min(moments.values()), max(moments.values())
    return start


def _scalars(folder: Path) -> tuple[defaultdict[str, dict[int, float]], dict[int, float]]:
    """Tag → iteration → value, and iteration → when it was written, in seconds since 1970."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    scalars: defaultdict[str, dict[int, float]] = defaultdict(dict)
    moments: dict[int, float] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            for event in LegacyEventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    scalars[value.tag][event.step] = value.simple_value
                    if not value.tag.endswith(_OVER_SAMPLES):
                        moments[event.step] = event.wall_time
        except DecodeError:
            raise UserError(f"{path} is no file of TensorBoard's, or is damaged; remove it, or leave its run out.") from None
    return scalars, moments


def _samples(scalars: dict[str, dict[int, float]], tag: str) -> dict[int, int]:
    """Iteration → consumed samples: a tag's values stand over both, in one order."""
    over_iterations, over_samples = sorted(scalars.get(tag, ())), sorted(scalars.get(tag + _OVER_SAMPLES, ()))
    return dict(zip(over_iterations, over_samples)) if len(over_iterations) == len(over_samples) else {}
