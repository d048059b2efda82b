"""A whole run in this process: what it logs under which names, what it counts, and what a second start takes up."""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from megatron_patch.config import Options, TrainConfig
from megatron_patch.data.finetune import finetune_run_data
from megatron_patch.folders.metrics_file import METRICS, MetricsLines
from megatron_patch.llama.model_config import read_hf_config
from megatron_patch.report.reading import read_runs
from megatron_patch.sinks.tensorboard_files import FIRST_SIGHT
from megatron_patch.train.log import RunLog
from megatron_patch.train.loop import run
from megatron_patch.train.setup import build_state
from megatron_patch.train.start import start_state
from tests.launching import GOLDEN
from tests.tiny import tiny_config

LENGTH, BATCH, SAMPLES, EPOCHS, LR, MIN_LR = 64, 2, 3, 2, 1e-3, 1e-4
STEPS = EPOCHS * -(-SAMPLES // BATCH)
CONSUMED = [2, 3, 5, 6]  # the second batch of each pass lacks a sample


@dataclass(frozen=True)
class Finished:
    config: TrainConfig
    folder: Path

    def tensors(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """(tag of the tab HParams → what it holds, any other tag that is no scalar → its last text or bytes)."""
        (folder,) = (self.folder / "tensorboard").iterdir()
        events = EventAccumulator(str(folder)).Reload()
        texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0] for tag in events.Tags()["tensors"]}
        return events.PluginTagToContent("hparams"), texts

    def scalars(self) -> dict[str, dict[int, float]]:
        """Every tag of TensorBoard: step → value."""
        (folder,) = (self.folder / "tensorboard").iterdir()
        events = EventAccumulator(str(folder)).Reload()
        return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def finished(alone, tmp_path_factory) -> Finished:
    """Two passes over three samples, two of them a batch."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data.jsonl"
    data.write_text("".join(f'{{"instruction": "Count {n}.", "output": "One, two."}}\n' for n in range(SAMPLES)))
    config = tiny_config(
        task="finetune", output_path=str(folder), model=read_hf_config(GOLDEN / "hf_mha"), train_data_path=str(data),
        valid_data_path=str(data), seq_length=LENGTH, pad_length=LENGTH, precision="fp32", lr=LR, min_lr=MIN_LR,
        options=Options(tokenizer_path=str(GOLDEN / "hf_mha"), num_workers=0),
    )  # fmt: skip
    config, log = replace(config, epochs=EPOCHS), RunLog(config, active=True)
    data = finetune_run_data(config, alone, log.line)
    state = build_state(config, alone, log, data.train_iters)
    start_state(state, log)
    run(state, data, log)
    log.close()
    return Finished(config, folder)


def test_tensorboard_has_megatron_s_tags_at_iterations_and_at_samples(finished):
    found, iterations = finished.scalars(), list(range(1, STEPS + 1))
    everything = dict(found)
    for tag in ("lm loss", "learning-rate", "batch-size", "loss-scale", "grad-norm", "iteration-time"):
        assert list(found.pop(tag)) == iterations and list(found.pop(f"{tag} vs samples")) == CONSUMED, tag
    for tag in ("lm loss validation", "lm loss validation ppl"):
        assert list(found.pop(tag)) == [2, 4] and list(found.pop(f"{tag} vs samples")) == [3, 6], tag
    assert all(found.pop(copy) == everything[tag] for tag, copy in FIRST_SIGHT.items())
    # Of iterations alone.
    others = ("throughput", "mem-max-allocated-bytes", "tokens-per-second", "tokens-per-second-per-gpu")
    assert {tag: list(values) for tag, values in found.items()} == dict.fromkeys(others, iterations)


def test_tensorboard_opens_with_the_losses_and_holds_the_configuration(finished):
    """TensorBoard makes a section of what stands before a tag's first slash, and sorts sections by name."""
    first = min(finished.scalars(), key=str.lower)
    assert first == FIRST_SIGHT["lm loss"] and first.split("/")[0] != first
    plugins, tensors = finished.tensors()
    layout = Layout.FromString(tensors["custom_scalars__config__"])
    charts = [list(chart.multiline.tag) for category in layout.category for chart in category.chart]
    assert charts[0] == ["^lm loss$", "^lm loss validation$"]
    shown = [tag for tags in charts for tag in tags if "/" not in tag]  # there is one validation file here
    assert len(shown) > 8 and all(any(re.match(tag, own) for own in finished.scalars()) for tag in shown)
    table = dict(line.strip("|").split("|")[:2] for line in tensors["configuration/text_summary"].decode().splitlines())
    assert [table[f" `{name}` "] for name in ("lr", "model.hidden_size", "options.seed")] == [" 0.001 ", " 64 ", " 1234 "]
    start = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["LR"].number_value == LR and start.hparams["DO"].string_value in ("true", "false")


def test_logged_numbers_are_those_of_the_step(finished):
    found = finished.scalars()
    cosine = [MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert list(found["learning-rate"].values()) == pytest.approx(cosine, rel=1e-6)
    assert set(found["batch-size"].values()) == {BATCH}
    flops = BATCH * LENGTH * finished.config.model.flops_per_token(LENGTH)
    for iteration, seconds in found["iteration-time"].items():
        assert found["throughput"][iteration] == pytest.approx(flops / seconds / 1e12, rel=1e-5)
    losses, perplexities = found["lm loss validation"], found["lm loss validation ppl"]
    assert list(perplexities.values()) == pytest.approx([math.exp(loss) for loss in losses.values()], rel=1e-5)


def test_a_second_start_knows_how_far_the_first_has_come(finished, alone):
    """All of the progress, and the schedule, which is at its end."""
    log = RunLog(finished.config, active=False)
    state = build_state(finished.config, alone, log, STEPS)
    start_state(state, log)
    assert (state.iteration, state.consumed_samples) == (STEPS, CONSUMED[-1])
    state.scheduler.step(increment=0)  # the rate of this place; the optimizer's own state holds the last one anyway
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(MIN_LR, rel=1e-12)


def test_every_pass_leaves_a_checkpoint(finished):
    root = Path(finished.config.checkpoint_folder)
    assert sorted(path.name for path in root.glob("iter_*")) == ["iter_0000002", "iter_0000004"]


# A training line's key → TensorBoard's tag.
TAGS = {
    "loss": "lm loss", "learning_rate": "learning-rate", "global_batch_size": "batch-size", "loss_scale": "loss-scale",
    "grad_norm": "grad-norm", "seconds_per_iteration": "iteration-time", "tflops_per_gpu": "throughput",
    "tokens_per_second": "tokens-per-second", "tokens_per_second_per_gpu": "tokens-per-second-per-gpu",
    "max_allocated_bytes": "mem-max-allocated-bytes",
}  # fmt: skip


def test_metrics_jsonl_has_tensorboard_s_numbers_and_what_happened(finished):
    (path,) = finished.folder.glob(f"log/*/{METRICS}")
    lines, scalars = list(MetricsLines(path)), finished.scalars()
    training = [line for line in lines if line["kind"] == "training"]
    assert [line["consumed_samples"] for line in training] == CONSUMED
    assert [line["consumed_tokens"] for line in training] == [count * LENGTH for count in CONSUMED]
    for key, tag in TAGS.items():
        assert [np.float32(line[key]) for line in training] == list(scalars[tag].values()), key
    validation = {line["iteration"]: np.float32(line["loss"]) for line in lines if line["kind"] == "validation"}
    assert validation == scalars["lm loss validation"]
    first, second, *others = [line for line in lines if line["kind"] not in ("training", "validation")]
    assert first["kind"] == "start" and first["arguments"] == {**finished.config.as_dict(), "epochs": 0}
    assert (second["kind"], second["train_iters"], second["samples"], second["valid_samples"]) == (
        "data",
        STEPS,
        SAMPLES,
        SAMPLES,
    )
    assert [line["kind"] for line in others] == ["evaluation", "save", "evaluation", "save", "stop"]
    saved = Path(others[1]["folder"])
    assert others[1]["bytes"] == sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    assert others[-1]["reason"] == "finished"


def test_a_run_of_an_older_version_is_read_from_tensorboard_and_its_checkpoint(finished, tmp_path):
    (now,), _ = read_runs([str(finished.folder)])
    older = shutil.copytree(finished.folder, tmp_path / "older")
    next(older.glob(f"log/*/{METRICS}")).unlink()
    (then,), notes = read_runs([str(older)])
    assert len(notes) == 1 and "has no metrics.jsonl" in notes[0]
    for key in ("iteration", "consumed_samples", "loss", "learning_rate", "grad_norm"):
        assert list(then.training[key]) == [np.float32(value) for value in now.training[key]], key
    assert then.validation[""]["loss"].tolist() == [np.float32(value) for value in now.validation[""]["loss"]]
    assert then.opening["arguments"]["lr"] == LR
