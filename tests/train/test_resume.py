"""A run that was stopped and started again learns the same, bit for bit, as one that never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading

import numpy as np
import psutil
import pytest

from megatron_patch.arguments.training import ARGUMENTS
from megatron_patch.launch import main
from megatron_patch.report.reading import read_runs
from tests.launching import (
    FINETUNE,
    FINETUNE_ARGUMENTS,
    GOLDEN,
    PRETRAIN,
    PRETRAIN_ARGUMENTS,
    convert,
    environment,
    run_forked,
    steps,
    succeed,
    train,
)

CORPUS = GOLDEN / "data" / "corpus_text_document"
LAYOUTS = {
    "DP2 with DO": dict(processes=2, DO="true"),
    "DP2 TP2 with DO in bf16": dict(processes=4, TP=2, DO="true", PR="bf16"),
    "TP2 PP2": dict(processes=4, TP=2, PP=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_after_a_stop_are_the_same_bits(layout, tmp_path):
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, TRAIN_TOKENS=12 * 4 * 32, **LAYOUTS[layout])
    whole = train(PRETRAIN, tmp_path / "whole", **arguments)
    first = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 6, **arguments)
    assert len(whole) == 12 and first == whole[:6]
    both = train(PRETRAIN, tmp_path / "parts", **arguments)
    assert both[6:] == whole[6:]
    (history,), notes = read_runs([str(tmp_path / "parts")])
    assert [np.float32(loss) for loss in history.training["loss"]] == [step.loss for step in whole] and not notes
    assert [(start.first, start.stop["reason"]) for start in history.starts] == [(0, "--exit-interval"), (6, "finished")]


def test_optimizer_state_moves_to_another_number_of_replicas(tmp_path):
    """Sharded over three processes, whose parts end amid rows, then over two, then over one."""
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, DO="true", GLOBAL_BATCH_SIZE=6, TRAIN_TOKENS=12 * 6 * 32)
    whole = train(PRETRAIN, tmp_path / "whole", processes=1, **arguments)
    for processes in (3, 2, 1):
        parts = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 4, processes=processes, **arguments)
    assert len(parts) == len(whole) == 12
    assert [step.loss for step in parts] == pytest.approx([step.loss for step in whole], rel=1e-5)


def end(pid: int) -> None:
    """torchrun and its ranks, as far as they are still there."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(pid)
        for process in (*launcher.children(), launcher):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.parametrize("to", ["one rank", "torchrun"])
def test_a_signal_stops_all_processes_after_a_checkpoint(to, tmp_path):
    """torchrun hands it on to each rank's session, in which the loaders are."""
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, DO="true", TRAIN_TOKENS=1000 * 4 * 32, OUTPUT_BASEPATH=tmp_path)
    values = {**PRETRAIN_ARGUMENTS, **arguments}.values()
    command = ["dash", str(PRETRAIN), *map(str, values), "--eval-interval", "0"]
    process = subprocess.Popen(command, env=environment(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # Ranks that do not agree wait for each other for ever.
    watchdog = threading.Timer(90, end, [process.pid])
    watchdog.start()
    output = ""
    try:
        for line in process.stdout:
            output += line
            if "iteration        2/" in line:
                launcher = psutil.Process(process.pid)
                # The first rank writes no log: the others must hear of it.
                first = next(rank for rank in launcher.children() if rank.environ().get("RANK") == "0")
                (first if to == "one rank" else launcher).send_signal(signal.SIGTERM)
        # A signal is the command's status, as shells have it, whichever process of the run it came to.
        assert process.wait() == 128 + signal.SIGTERM, output[-4000:]
    finally:
        watchdog.cancel()
        end(process.pid)
    assert "stopping at iteration" in output
    last = list(steps(tmp_path))
    assert 2 <= len(last) < 1000
    assert (next((tmp_path / "checkpoint").iterdir()) / f"iter_{len(last):07d}").is_dir()


def test_a_run_of_the_same_name_with_other_arguments_is_refused(tmp_path):
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, OUTPUT_BASEPATH=tmp_path)
    first = {**PRETRAIN_ARGUMENTS, **arguments}
    succeed(run_forked(PRETRAIN, *first.values(), "--num-workers", 0, "--exit-interval", 1, processes=1))
    other = run_forked(PRETRAIN, *{**first, "MIN_LR": "1e-5"}.values(), "--adam-eps", "1e-6", "--seed", 5, processes=1)
    assert other.returncode == 2
    assert "min_lr was 0.0001 and is 1e-05" in other.stdout and "adam_eps was 1e-08 and is 1e-06" in other.stdout
    assert "seed was 1234 and is 5" in other.stdout


def decided(monkeypatch, capsys, values: dict[str, object]) -> tuple[int, str]:
    """What the launcher makes of a fine-tuning that is started again, up to torchrun: its status, and what it says."""
    flags = [f"{ARGUMENTS['finetune'][name].flag}={value}" for name, value in values.items()]
    status = 0
    with monkeypatch.context() as here:
        here.setattr(os, "execve", lambda *_: None)
        for name, value in environment(1).items():
            here.setenv(name, value)
        try:
            main(["finetune", *flags])
        except SystemExit as left:
            status = left.code
    said = capsys.readouterr()
    return status, said.out + said.err


def test_a_run_goes_on_only_from_its_own_model_and_data(tmp_path, monkeypatch, capsys):
    """Two runs; what else could be named is left to the launcher, which decides as every process does."""
    models = [convert(GOLDEN / "hf_mha", tmp_path / "a"), tmp_path / "b"]
    shutil.copytree(*models)
    largest = max(models[1].rglob("*.distcp"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1] + b"!")
    data = tmp_path / "data.json"
    samples = [{"instruction": f"Count {n}.", "output": "One, two."} for n in range(4)]
    data.write_text(json.dumps(samples))
    paths = dict(TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, OUTPUT_BASEPATH=tmp_path / "out")
    first = {**FINETUNE_ARGUMENTS, **paths, "PRETRAIN_CHECKPOINT_PATH": models[0], "EPOCH": 1}
    succeed(run_forked(FINETUNE, *first.values(), processes=1))
    again = succeed(run_forked(FINETUNE, *first.values(), processes=1))
    assert "going on from iteration 4" in again and "nothing is left to do: the run has its 4 iterations" in again
    # By another name, without one, and when it has gone, it is the model that the run began with.
    link = tmp_path / "link"
    link.symlink_to(models[0])
    for name in (f"{models[0]}/", link, "none", models[0]):
        status, said = decided(monkeypatch, capsys, {**first, "PRETRAIN_CHECKPOINT_PATH": name})
        assert status == 0 and "begins anew" not in said, said
    moved = models[0].rename(tmp_path / "elsewhere")
    assert "the run goes on from its own checkpoint" in decided(monkeypatch, capsys, first)[1]
    moved.rename(models[0])
    status, said = decided(monkeypatch, capsys, {**first, "PRETRAIN_CHECKPOINT_PATH": models[1]})
    assert status == 2 and f"load was '{models[0]}' and is '{models[1]}'" in said
    data.write_text(json.dumps(samples * 2))
    status, said = decided(monkeypatch, capsys, first)
    assert status == 2 and "train_data_bytes was" in said
