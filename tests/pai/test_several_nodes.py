"""Jobs of two and three nodes with networks of their own: the documented scripts with ENV=dlc, and DLC's commands."""

from __future__ import annotations

import shlex
import shutil
import time

import pytest

from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, ROOT, convert, long_model, steps, train
from tests.pai.job_files import body
from tests.pai.nodes import finish, nodes

LAYOUT = dict(
    GLOBAL_BATCH_SIZE=12, DATASET_PATH=GOLDEN / "data" / "corpus_text_document", TRAIN_TOKENS=3 * 12 * 32, WARMUP_TOKENS=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A converted checkpoint, since random weights depend on the layout."""
    return convert(GOLDEN / "hf_mha", tmp_path_factory.mktemp("converted") / "checkpoint")


@pytest.fixture(scope="module")
def one_node(checkpoint, tmp_path_factory):
    """What one node learns with TP 2 and PP 2."""
    return train(PRETRAIN, tmp_path_factory.mktemp("one"), processes=4, TP=2, PP=2, PRETRAIN_CHECKPOINT_PATH=checkpoint, **LAYOUT)


def documented(checkpoint, output, **changed) -> str:
    """The documented call, as a job's command."""
    values = {**PRETRAIN_ARGUMENTS, **LAYOUT, "ENV": "dlc", "PRETRAIN_CHECKPOINT_PATH": checkpoint, "OUTPUT_BASEPATH": output}
    words = ["exec", "sh", PRETRAIN, *(values | changed).values(), "--num-workers", 0, "--eval-interval", 0]
    return shlex.join(map(str, words))


def test_tensor_parallel_in_a_node_pipeline_across_two(checkpoint, one_node, tmp_path):
    """Sums are made in the same order as on one node, so the digits are the same."""
    command = documented(checkpoint, tmp_path / "output", TP=2, PP=2)
    with nodes(2, tmp_path) as job:
        for rank, node in enumerate(job):
            dlc = {"WORLD_SIZE": 2, "RANK": rank, "MASTER_ADDR": "node-0", "MASTER_PORT": 23456, "NPROC_PER_NODE": 2}
            node.start(command, dlc)
        said = finish(job)
    assert [node.process.returncode for node in job] == [0, 0], "\n".join(said)[-4000:]
    assert list(steps(tmp_path / "output")) == one_node and len(one_node) == 3


def test_data_parallel_across_three_with_kubeflow_s_variables(checkpoint, one_node, tmp_path):
    command = documented(checkpoint, tmp_path / "output", DO="true")
    with nodes(3, tmp_path) as job:
        for rank, node in enumerate(job):
            pet = {"PET_NNODES": 3, "PET_NODE_RANK": rank, "PET_NPROC_PER_NODE": 1}
            node.start(command, {**pet, "PET_MASTER_ADDR": "node-0", "PET_MASTER_PORT": 29400})
        said = finish(job)
    assert [node.process.returncode for node in job] == [0, 0, 0], "\n".join(said)[-4000:]
    for got, wanted in zip(steps(tmp_path / "output"), one_node, strict=True):
        assert got.loss == pytest.approx(wanted.loss, rel=1e-6)
        assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-5)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """(workspace, data): what the job's data sources hold; this project, and data sets with a converted model."""
    folder = tmp_path_factory.mktemp("dlc")
    workspace, data = folder / "workspace", folder / "data"
    (data / "llama2-datasets").mkdir(parents=True)
    (workspace / "llama2-datasets" / "wudao").mkdir(parents=True)  # where the job of preparation has written
    for suffix in (".bin", ".idx"):
        prefix = workspace / "llama2-datasets" / "wudao" / "wudao_llamabpe_text_document"
        shutil.copy(GOLDEN / "data" / f"corpus_text_document{suffix}", f"{prefix}{suffix}")
    for name in ("wudao_train.json", "wudao_valid.json"):
        shutil.copy(GOLDEN / "sft" / "alpaca_output.json", data / "llama2-datasets" / name)
    convert(long_model(folder / "hf", layers=2), data / "llama2-ckpts" / "llama2-7b-hf-to-megatron-tp1-pp1")
    (workspace / "PAI-Megatron-Patch").symlink_to(ROOT)
    return workspace, data


def submitted(name: str, job, mounted) -> None:
    """Start a job file's own command on each node as the platform does; only MODEL_SIZE and the global batch differ."""
    workspace, data = mounted
    file = body(name)
    command = file["UserCommand"].replace(" 7B 1 64 ", " auto 1 4 ").replace(" 7B 1 ", " auto 1 ")
    read_only = [f"mount --bind {data} {data}", f"mount -o remount,bind,ro {data}"]
    for rank, node in enumerate(job):
        dlc = {"WORLD_SIZE": len(job), "RANK": rank, "MASTER_ADDR": "node-0", "MASTER_PORT": 23456, "NPROC_PER_NODE": 1}
        node.start(command, {**file["Envs"], "WORK_DIR": workspace, "DATA_DIR": data, **dlc}, read_only)


def test_dlc_s_pretraining_command_until_the_platform_stops_it(mounted, tmp_path):
    """It takes one node away: SIGTERM comes to process 1 of that container, and it gets time for a checkpoint.

    Status 0 of the other one would tell the platform that the job is done.
    """
    output = mounted[0] / "output_megatron_llama2"
    with nodes(2, tmp_path) as job:
        submitted("pretrain_quota", job, mounted)
        until = time.monotonic() + 120
        while not any("iteration        1/   12207" in log.read_text() for log in output.glob("log/*/train.log")):
            assert time.monotonic() < until and all(node.process.poll() is None for node in job), finish(job, 5)
            time.sleep(0.2)
        job[1].terminate()
        said = finish(job)
    assert [node.process.returncode for node in job] == [143, 143], "\n".join(said)[-4000:]
    (run,) = (output / "checkpoint").glob("dlc-pretrain-megatron-llama-auto-*")
    stopped_at = int((run / "latest_checkpointed_iteration.txt").read_text())
    assert 1 <= stopped_at < 12207 and (run / f"iter_{stopped_at:07d}").is_dir()


def test_dlc_s_finetuning_command_on_a_node_alone(mounted, tmp_path):
    output = mounted[0] / "output_megatron_llama2"
    with nodes(1, tmp_path) as job:
        submitted("finetune_ecs", job, mounted)
        (said,) = finish(job)
    assert job[0].process.returncode == 0, said[-4000:]
    (run,) = (output / "checkpoint").glob("dlc-finetune-megatron-llama-auto-*")
    assert (run / "latest_checkpointed_iteration.txt").read_text() == "22", "two epochs of 11 samples"
