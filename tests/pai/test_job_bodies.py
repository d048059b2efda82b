"""examples/llama2/dlc/*.json against PAI's documentation (the table) and its SDK, which drops what it does not know."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess

import pytest
from alibabacloud_pai_dlc20201203.models import CreateJobRequest

from megatron_patch.arguments import preparation
from megatron_patch.records.shards import Shard
from tests.launching import ROOT
from tests.pai import create_job
from tests.pai.job_files import BODIES, DLC, PREPARATIONS, TASKS, body, load_submit

submit = load_submit()
FILLED = {
    "workspace-id": "12345", "image": "registry.example.com/megatron-patch:1", "ecs-spec": "ecs.gn7e-c16g1.32xlarge",
    "region": "cn-wulanchabu", "bucket": "a", "prefix": "b", "cpfs-id": "c", "cpfs-vpc-id": "d", "path": "e", "quota-id": "f",
    "protocol-service-id": "g", "export-id": "h", "vpc-id": "i", "vswitch-id": "j", "security-group-id": "k",
}  # fmt: skip


@pytest.mark.parametrize("name", [*BODIES, *PREPARATIONS])
def test_every_leaf_is_documented_and_survives_the_sdk(name):
    filled = submit.filled(body(name), FILLED)
    assert create_job.faults(filled) == []
    assert submit.faults(filled) == []  # the round trip, the size, nothing left to fill in


@pytest.mark.parametrize("name", BODIES)
def test_a_misspelling_anywhere_is_found(name):
    """Each key in turn loses its last letter or changes its case; the SDK's round trip and the table both catch it."""
    whole = submit.filled(body(name), FILLED)
    places = [path for path in _keys(whole) if path[0] != "Envs" or len(path) == 1]
    assert len(places) > 25
    for path in places:
        for misspelt in (path[-1][:-1], path[-1].swapcase()):
            changed = copy.deepcopy(whole)
            holder = changed
            for step in path[:-1]:
                holder = holder[step]
            holder[misspelt] = holder.pop(path[-1])
            assert any(misspelt in sentence for sentence in submit.faults(changed)), path
            assert any(f"{misspelt} is no key" in sentence for sentence in create_job.faults(changed)), path


def _keys(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        if isinstance(key, str):
            yield (*path, key)
        yield from _keys(held, (*path, key))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("JobType",), "PytorchJob"), (("DisplayName",), "LLaMA 2"), (("Priority",), 10), (("Envs", "WORK_DIR"), 1),
        (("JobSpecs", 0, "Type"), "worker"), (("JobSpecs", 0, "PodCount"), "2"), (("JobSpecs", 0, "PodCount"), True),
        (("JobSpecs", 0, "RestartPolicy"), "onfailure"), (("JobSpecs", 0, "EcsSpec"), "ecs.g7.large"),
        (("DataSources", 0, "MountAccess"), "ReadOnly"), (("DataSources", 1, "Uri"), "/cpfs/data"),
        (("Settings", "EnableRDMA"), "true"), (("Settings", "ErrorMonitoringArgs"), "--enable-job-restart=true"),
        (("Settings", "ErrorMonitoringArgs"), "--job-hang-intervall=9"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_found(path, value):
    """The SDK's validate() takes all of these."""
    changed = submit.filled(body("pretrain_quota"), FILLED)
    holder = changed
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    CreateJobRequest().from_map(changed).validate()
    assert len(create_job.faults(changed)) == 1


@pytest.mark.parametrize("name", BODIES)
def test_the_command_is_the_documented_call(name):
    """`cd` and the script with its arguments, ENV being dlc; `exec`, so that the platform's SIGTERM reaches the run."""
    task = name.split("_")[0]
    job = body(name)
    change, script = (shlex.split(part) for part in job["UserCommand"].split(" && "))
    assert change == ["cd", "${WORK_DIR}/PAI-Megatron-Patch/examples/llama2"]
    assert script[:3] == ["exec", "sh", f"run_{task}_megatron_llama.sh"] and (ROOT / "examples" / "llama2" / script[2]).is_file()
    values = script[3:]
    assert len(values) == TASKS[task]
    assert values[:3] == ["dlc", "/root/Megatron-LM-230512", "${WORK_DIR}/PAI-Megatron-Patch"]
    used = set(re.findall(r"\$\{(\w+)\}", job["UserCommand"]))
    assert used == set(job["Envs"]), "each variable of the command is set, and no other"
    mounts = {source["MountPath"]: source["MountAccess"] for source in job["DataSources"]}
    assert mounts == {job["Envs"]["DATA_DIR"]: "RO", job["Envs"]["WORK_DIR"]: "RW"}
    assert values[-1].startswith("${WORK_DIR}/"), "the output is written where the mount may be written"


@pytest.mark.parametrize("task", TASKS)
def test_both_kinds_of_resources_run_the_same_job(task):
    ecs, quota = body(f"{task}_ecs"), body(f"{task}_quota")
    for key in ("UserCommand", "Envs", "JobType", "DisplayName"):
        assert ecs[key] == quota[key]
    named = submit.PLACEHOLDER.findall((DLC / f"{task}_quota.json").read_text() + (DLC / f"{task}_ecs.json").read_text())
    assert set(named) == set(FILLED)


@pytest.mark.parametrize("name", PREPARATIONS)
def test_preparation_takes_its_part_from_the_node_s_index(name):
    """As a shell on each node reads the command, in which `printf` stands for `exec sh`."""
    job = body(name)
    parts = []
    for rank in range(job["JobSpecs"][0]["PodCount"]):
        environment = {**job["Envs"], "RANK": str(rank), "WORLD_SIZE": str(job["JobSpecs"][0]["PodCount"])}
        script = "cd() { :; }\n" + job["UserCommand"].replace("exec sh ", "printf '%s\\n' ")
        words = subprocess.run(["dash", "-uc", script], env=environment, check=True, capture_output=True, text=True).stdout.split(
            "\n"
        )
        assert words[0] == "run_make_pretraining_dataset.sh" and words[7] == "--shard" and words[9:] == [""]
        assert words[5] == f"{job['Envs']['WORK_DIR']}/llama2-datasets/wudao", (
            "the output is written where the mount may be written"
        )
        read = preparation.read([f"--input={__file__}", "--output-prefix=x", "--tokenizer-folder=y", f"--shard={words[8]}"])
        parts.append(read.job.shard)
    assert parts == [Shard(number, len(parts)) for number in range(1, len(parts) + 1)]
    mounts = {source["MountPath"]: source["MountAccess"] for source in job["DataSources"]}
    assert mounts == {job["Envs"]["DATA_DIR"]: "RO", job["Envs"]["WORK_DIR"]: "RW"}
    assert "GPU" not in job["JobSpecs"][0].get("ResourceConfig", {}) and job["Settings"]["EnableRDMA"] is False


def test_the_presets_of_nccl_are_left_alone():
    assert not [path for path in DLC.iterdir() if path.is_file() and "NCCL_" in path.read_text(encoding="utf-8")]


def test_the_job_restarts_waits_for_the_checkpoint_and_notices_a_hang():
    for name in BODIES:
        settings = body(name)["Settings"]
        given = dict(word.split("=") for word in settings["ErrorMonitoringArgs"].split())
        assert settings["EnableErrorMonitoringInAIMaster"] is True
        assert given["--enable-job-restart"] == "True" and int(given["--max-num-of-job-restart"]) >= 1
        assert given["--enable-job-hang-detection"] == "True" and int(given["--job-hang-interval"]) >= 1800
        assert settings["TerminationGracePeriodSeconds"] >= 600
        lingjun = "ResourceId" in body(name)
        assert settings["EnableRDMA"] is settings["EnableSanityCheck"] is lingjun, "both are for Lingjun resources"
