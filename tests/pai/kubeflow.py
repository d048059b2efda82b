"""Which fields the published CRDs have, of those that a training job may want; a table of our own.

Sources: kubeflow/trainer v2.3.0, manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml (runtimePatches is there since
2.2.0, in the place of podTemplateOverrides); kubeflow/training-operator v1.9.0,
manifests/base/crds/kubeflow.org_pytorchjobs.yaml. The API server drops other fields in silence, or refuses them where
the client asks it to.

A field's entry is the type of its value, a list with the entry of its items, or the fields of an object;
`{"*": entry}` is an object with keys of any name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

QUANTITY = (int, str)
META = {"name": str, "namespace": str, "labels": {"*": str}, "annotations": {"*": str}}
ENV = [{"name": str, "value": str, "valueFrom": {"*": object}}]
MOUNTS = [{"name": str, "mountPath": str, "readOnly": bool, "subPath": str}]
RESOURCES = {"limits": {"*": QUANTITY}, "requests": {"*": QUANTITY}}
VOLUMES = [
    {
        "name": str,
        "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
        "emptyDir": {"medium": str, "sizeLimit": QUANTITY},
        "hostPath": {"path": str, "type": str},
        "configMap": {"name": str},
    }
]
POD = {
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {"*": str},
    "serviceAccountName": str,
    "volumes": VOLUMES,
}
PATCHED_CONTAINER = {"name": str, "env": ENV, "volumeMounts": MOUNTS}
CONTAINER = PATCHED_CONTAINER | {
    "image": str, "imagePullPolicy": str, "command": [str], "args": [str], "workingDir": str, "resources": RESOURCES,
    "ports": [{"name": str, "containerPort": int}],
}  # fmt: skip
TRAINER = {
    "image": str, "command": [str], "args": [str], "env": ENV, "numNodes": int, "numProcPerNode": int,
    "resourcesPerNode": RESOURCES,
}  # fmt: skip
_PATCHED_JOB = {
    "name": str,
    "template": {"metadata": META, "spec": {"template": {"spec": POD | {"containers": [PATCHED_CONTAINER]}}}},
}
TRAIN_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": META,
    "spec": {
        "runtimeRef": {"name": str, "kind": str, "apiGroup": str},
        "suspend": bool,
        "activeDeadlineSeconds": int,
        "trainer": TRAINER,
        "runtimePatches": [{"manager": str, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [_PATCHED_JOB]}}}}],
    },
}
_REPLICAS = {"replicas": int, "restartPolicy": str, "template": {"metadata": META, "spec": POD | {"containers": [CONTAINER]}}}
PYTORCH_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": META,
    "spec": {
        "nprocPerNode": str,
        "runPolicy": {
            "backoffLimit": int, "cleanPodPolicy": str, "activeDeadlineSeconds": int, "ttlSecondsAfterFinished": int,
            "suspend": bool,
        },
        "pytorchReplicaSpecs": {"Master": _REPLICAS, "Worker": _REPLICAS},
    },
}  # fmt: skip


def faults(value: Any, known: Any, path: str = "") -> Iterator[str]:
    """What in a manifest the CRD has no place for."""
    if isinstance(known, dict) and isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}.{name}" if path else name
            if name in known or "*" in known:
                yield from faults(inner, known.get(name, known.get("*")), here)
            else:
                yield f"{here} is no field"
    elif isinstance(known, list) and isinstance(value, list):
        for index, inner in enumerate(value):
            yield from faults(inner, known[0], f"{path}[{index}]")
    elif isinstance(known, (dict, list)) or not isinstance(value, known) or (known is int and isinstance(value, bool)):
        yield f"{path} is {value!r}"
