"""What the launcher says before a process starts, and the environment that it gives the training processes."""

from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path

import pytest

from megatron_patch.arguments.training import ARGUMENTS, read
from megatron_patch.folders.fingerprint import observe
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.folders.recorded_run import run_record
from megatron_patch.folders.tracker import write_tracker
from megatron_patch.launch import main, worker_environment
from megatron_patch.llama.model_config import to_hf_config
from tests.launching import GOLDEN, PRETRAIN_ARGUMENTS, ROOT


def test_what_nccl_and_cuda_need_is_set_unless_the_user_did(monkeypatch):
    for name in ("NCCL_GRAPH_REGISTER", "NCCL_LAUNCH_ORDER_IMPLICIT", "CUDA_DEVICE_MAX_CONNECTIONS"):
        monkeypatch.delenv(name, raising=False)
    alone = worker_environment(None, [], tensor_parallel=False)
    assert alone["NCCL_GRAPH_REGISTER"] == "0" and alone["NCCL_LAUNCH_ORDER_IMPLICIT"] == "1"
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in alone
    assert worker_environment(None, [], tensor_parallel=True)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    monkeypatch.setenv("NCCL_GRAPH_REGISTER", "1")
    assert worker_environment(None, [], tensor_parallel=False)["NCCL_GRAPH_REGISTER"] == "1"


def test_the_engine_comes_first_and_what_the_user_had_comes_last():
    paths = worker_environment("/engine", ["/a", "/b"], tensor_parallel=False)["PYTHONPATH"].split(os.pathsep)
    assert paths == ["/engine", str(ROOT), "/a", "/b"]
    assert worker_environment(None, [], tensor_parallel=False)["PYTHONPATH"] == str(ROOT)


def flags(output: Path, *more: str, **changed: object) -> list[str]:
    """The flags into which a script turns a documented command."""
    values = {**PRETRAIN_ARGUMENTS, "MODEL_SIZE": "tiny", "DATASET_PATH": GOLDEN / "data/corpus_text_document"}
    values |= {**changed, "OUTPUT_BASEPATH": output}
    return [f"{ARGUMENTS['pretrain'][name].flag}={value}" for name, value in values.items()] + list(more)


def launched(monkeypatch, capsys, *arguments: str) -> str:
    """What the launcher prints about a command that it starts."""
    with monkeypatch.context() as here:
        here.setattr(os, "execve", lambda *_: None)
        main(["pretrain", *arguments])
    return capsys.readouterr().out


def test_a_port_that_another_listens_at_is_named_before_a_process_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(port := other.getsockname()[1]))
        with pytest.raises(SystemExit) as left:
            main(["pretrain", *flags(tmp_path)])
    said = capsys.readouterr()
    assert left.value.code == 2 and f"MASTER_PORT {port} is in use by another process of this node" in said.err
    assert not list(tmp_path.iterdir())
    launched(monkeypatch, capsys, *flags(tmp_path))  # now it is free


def test_a_run_that_could_go_on_is_offered_in_a_sentence_with_the_flag_that_does_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "2")
    config = read("pretrain", flags(tmp_path, BATCH_SIZE=2)).config
    root = Path(config.checkpoint_folder)
    folder = iteration_folder(root, 10)
    folder.mkdir(parents=True)
    for name, content in (("run_config.json", run_record(config, observe(config))), ("metadata.json", {}), (".metadata", {})):
        (folder / name).write_text(json.dumps(content))
    (root / "config.json").write_text(json.dumps(to_hf_config(config.model, dtype="float32")))
    write_tracker(root, "10")

    assert "begins anew" not in launched(monkeypatch, capsys, *flags(tmp_path, BATCH_SIZE=2))
    said = launched(monkeypatch, capsys, *flags(tmp_path, BATCH_SIZE=1, TP=2, AC="full"))
    offer = next(line for line in said.splitlines() if "This run begins anew" in line)
    assert "(AC was 'sel' and is 'full'; BATCH_SIZE was 2 and is 1; TP was 1 and is 2)" in offer
    flag = shlex.split(offer.partition(", add ")[2].removesuffix(" after the last argument."))
    # The model is that of the run's folder.
    said = launched(monkeypatch, capsys, *flags(tmp_path, *flag, TP=2, MODEL_SIZE="auto"))
    assert f"The run goes on from {folder}" in said and "begins anew" not in said
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", *flags(tmp_path, *flag, TP=2, LR="2e-3")])
    assert caught.value.code == 2 and "lr was 0.001 and is 0.002" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", *flags(tmp_path, "--resume-from", str(tmp_path / "nowhere"), TP=2)])
    assert caught.value.code == 2 and f"--resume-from: got '{tmp_path}/nowhere'; There is no folder" in capsys.readouterr().err
    # The original's way to go on, under the same name and under another.
    for settings in (dict(BATCH_SIZE=2), dict(TP=2)):
        said = launched(monkeypatch, capsys, *flags(tmp_path, MODEL_SIZE="tiny", PRETRAIN_CHECKPOINT_PATH=root, **settings))
        assert "begins anew" not in said and "weights alone" not in said
    said = launched(monkeypatch, capsys, *flags(tmp_path, LR="2e-3", PRETRAIN_CHECKPOINT_PATH=root))
    assert "of another run (lr was 0.001 and is 0.002): its weights alone are taken" in said
