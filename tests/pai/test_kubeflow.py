"""examples/llama2/dlc/*.yaml: only fields that the CRDs have, the same job as DLC's, and names that belong together."""

from __future__ import annotations

import copy

import pytest

from tests.pai.job_files import TASKS, body, manifest
from tests.pai.kubeflow import PYTORCH_JOB, TRAIN_JOB, faults

KINDS = {"trainjob": TRAIN_JOB, "pytorchjob": PYTORCH_JOB}
FILES = [(f"{task}_{kind}", fields) for task in TASKS for kind, fields in KINDS.items()]


def pods(name: str) -> list[tuple[dict, dict, dict]]:
    """(container, what the pod has, its mounts' container) for each kind of pod of a job."""
    spec = manifest(name)["spec"]
    if "trainer" in spec:
        (patch,) = spec["runtimePatches"]
        (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        pod = job["template"]["spec"]["template"]["spec"]
        assert (job["name"], [container["name"] for container in pod["containers"]]) == ("node", ["node"]), (
            "as the runtime has them"
        )
        return [(spec["trainer"], pod, pod["containers"][0])]
    found = [replica["template"]["spec"] for replica in spec["pytorchReplicaSpecs"].values()]
    return [(pod["containers"][0], pod, pod["containers"][0]) for pod in found]


@pytest.mark.parametrize(("name", "fields"), FILES)
def test_the_crd_has_every_field(name, fields):
    whole = manifest(name)
    assert list(faults(whole, fields)) == []
    changed = copy.deepcopy(whole)
    changed["spec"]["runpolicy"] = {}
    changed["metadata"]["Name"] = changed["metadata"].pop("name")
    assert list(faults(changed, fields)) == ["metadata.Name is no field", "spec.runpolicy is no field"]


@pytest.mark.parametrize(("name", "kind"), [(f"{task}_trainjob", "TrainJob") for task in TASKS])
def test_a_train_job_refers_to_torch_s_runtime(name, kind):
    job = manifest(name)
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", kind)
    assert job["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    assert job["spec"]["trainer"]["numProcPerNode"] == job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("name", [f"{task}_pytorchjob" for task in TASKS])
def test_a_pytorch_job_counts_nodes(name):
    """One master, and containers named pytorch; without nprocPerNode WORLD_SIZE counts nodes, as dlc takes it."""
    job = manifest(name)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert "nprocPerNode" not in job["spec"] and replicas["Master"]["replicas"] == 1
    assert all(container["name"] == "pytorch" for container, _, _ in pods(name))


@pytest.mark.parametrize(("name", "fields"), FILES)
def test_it_is_the_job_that_dlc_runs(name, fields):
    dlc = body(name.split("_")[0] + "_quota")
    spec = manifest(name)["spec"]
    nodes = spec["trainer"]["numNodes"] if "trainer" in spec else sum(r["replicas"] for r in spec["pytorchReplicaSpecs"].values())
    assert nodes == dlc["JobSpecs"][0]["PodCount"]
    for container, pod, mounting in pods(name):
        assert container["command"] == ["sh", "-c"] and container["args"] == [dlc["UserCommand"]]
        assert {entry["name"]: entry["value"] for entry in container["env"]} == dlc["Envs"]
        assert pod["terminationGracePeriodSeconds"] == dlc["Settings"]["TerminationGracePeriodSeconds"]
        mounts = {mount["mountPath"]: mount for mount in mounting["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
        for source in dlc["DataSources"]:
            assert mounts[source["MountPath"]].get("readOnly", False) is (source["MountAccess"] == "RO")
        memory = next(volume for volume in pod["volumes"] if volume["name"] == mounts["/dev/shm"]["name"])
        assert memory["emptyDir"] == {"medium": "Memory", "sizeLimit": dlc["JobSpecs"][0]["ResourceConfig"]["SharedMemory"]}
