"""A run that was stopped and started again learns the same, bit for bit, as one that never stopped."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading

import psutil
import pytest

from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, environment, run, steps, succeed, train

CORPUS = GOLDEN / "data" / "corpus_text_document"
LAYOUTS = {
    "DP2 with DO": dict(processes=2, DO="true"),
    "DP2 TP2 with DO in bf16": dict(processes=4, TP=2, DO="true", PR="bf16"),
    "TP2 PP2": dict(processes=4, TP=2, PP=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_after_a_stop_are_the_same_bits(layout, tmp_path):
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, **LAYOUTS[layout])
    whole = train(PRETRAIN, tmp_path / "whole", **arguments)
    first = train(PRETRAIN, tmp_path / "parts", "--exit-interval", 10, **arguments)
    assert len(whole) == 20 and first == whole[:10]
    both = train(PRETRAIN, tmp_path / "parts", **arguments)
    assert both[10:] == whole[10:]


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


def test_a_signal_to_one_process_stops_all_of_them_after_a_checkpoint(tmp_path):
    arguments = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, DO="true", TRAIN_TOKENS=1000 * 4 * 32, OUTPUT_BASEPATH=tmp_path)
    values = {**PRETRAIN_ARGUMENTS, **arguments}.values()
    command = ["dash", str(PRETRAIN), *map(str, values), "--num-workers", "0", "--eval-interval", "0"]
    process = subprocess.Popen(command, env=environment(2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # Ranks that do not agree wait for each other for ever.
    watchdog = threading.Timer(90, end, [process.pid])
    watchdog.start()
    output = ""
    try:
        for line in process.stdout:
            output += line
            if "iteration        2/" in line:
                # The first rank, which writes no log: the others must hear of it.
                ranks = psutil.Process(process.pid).children()
                next(rank for rank in ranks if rank.environ().get("RANK") == "0").send_signal(signal.SIGTERM)
        assert process.wait() == 0, output[-4000:]
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
    succeed(run(PRETRAIN, *first.values(), "--num-workers", 0, "--exit-interval", 1, processes=1))
    other = run(PRETRAIN, *{**first, "MIN_LR": "1e-5"}.values(), processes=1)
    assert other.returncode == 2
    assert "min_lr was 0.0001 and is 1e-05" in other.stdout
