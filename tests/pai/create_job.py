"""What PAI documents of a CreateJob body: keys, types, what must be there, which values it takes. A table of our own.

Sources, by the titles of the documentation's pages: "CreateJob", "JobSpec", "ResourceConfig", "JobSettings", "AIMaster:
An elastic and automatic fault tolerance engine". Keys that the documentation calls deprecated or unsupported are left
out, and so are those of other kinds of job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """`type` of the value; `form`, a pattern of the whole string; `inner`, an object's or a list's objects' keys."""

    type: type
    required: bool = False
    form: str = ""
    inner: dict[str, Key] | None = None


QUANTITY = r"[1-9][0-9]*(Mi|Gi)"
NAME = r"[A-Za-z_][A-Za-z0-9_]*"
RESOURCES = {
    "CPU": Key(str, form=r"[1-9][0-9]*"),
    "GPU": Key(str, form=r"[0-9]+"),
    "GPUType": Key(str),
    "Memory": Key(str, form=QUANTITY),
    "SharedMemory": Key(str, form=QUANTITY),
}
JOB_SPEC = {
    "Type": Key(str, required=True, form="Worker|Master"),
    "Image": Key(str, required=True),
    "PodCount": Key(int, required=True),
    "EcsSpec": Key(str),
    "ResourceConfig": Key(dict, inner=RESOURCES),
    "RestartPolicy": Key(str, form="Always|Never|OnFailure|ExitCode"),
}
DATA_SOURCE = {
    "DataSourceId": Key(str),
    "DataSourceVersion": Key(str),
    "Uri": Key(str, form=r"(oss|nas|cpfs|bmcpfs)://.+/"),
    "MountPath": Key(str, form=r"/.+"),
    "MountAccess": Key(str, form="RO|RW"),
    "Options": Key(str),
}
SETTINGS = {
    "EnableErrorMonitoringInAIMaster": Key(bool),
    "ErrorMonitoringArgs": Key(str, form=r"--\S+( --\S+)*"),
    "EnableSanityCheck": Key(bool),
    "SanityCheckArgs": Key(str),
    "EnableRDMA": Key(bool),
    "TerminationGracePeriodSeconds": Key(int),
    "JobReservedMinutes": Key(int),
    "JobReservedPolicy": Key(str),
    "Driver": Key(str),
    "Tags": Key(dict),
}
BODY = {
    "DisplayName": Key(str, required=True, form=r"[A-Za-z0-9_.-]{1,256}"),
    "JobType": Key(str, required=True, form="PyTorchJob"),
    "JobSpecs": Key(list, required=True, inner=JOB_SPEC),
    "UserCommand": Key(str, required=True),
    "WorkspaceId": Key(str),
    "ResourceId": Key(str),
    "Priority": Key(int, form="[1-9]"),
    "Accessibility": Key(str, form="PUBLIC|PRIVATE"),
    "Envs": Key(dict),
    "DataSources": Key(list, inner=DATA_SOURCE),
    "UserVpc": Key(dict, inner={"VpcId": Key(str, True), "SwitchId": Key(str, True), "SecurityGroupId": Key(str, True)}),
    "JobMaxRunningTimeMinutes": Key(int),
    "Settings": Key(dict, inner=SETTINGS),
}
# AIMaster's parameters: the form of each value. Without a parameter its default holds.
AIMASTER = {
    "--job-execution-mode": "Sync|Async",
    "--enable-job-restart": "True|False",
    "--max-num-of-job-restart": r"[0-9]+",
    "--fault-tolerant-policy": "OnFailure|ExitCodeAndErrorMsg|Never",
    "--enable-job-hang-detection": "True|False",
    "--job-hang-interval": r"[1-9][0-9]*",
    "--enable-job-exit-hang-detection": "True|False",
    "--job-exit-hang-interval": r"[1-9][0-9]*",
    "--enable-c4d-hang-detection": "True|False",
}


def faults(body: dict[str, Any]) -> list[str]:
    """What in a body is not as documented, a sentence each."""
    found = list(_of_object(body, BODY, ""))
    if found:
        return found
    for spec in body["JobSpecs"]:
        if ("EcsSpec" in spec) == ("ResourceConfig" in spec):
            found.append("a JobSpec has either EcsSpec, for public resources, or ResourceConfig, for a quota")
        if ("ResourceConfig" in spec) != ("ResourceId" in body):
            found.append("ResourceConfig goes with the quota's ResourceId")
    for source in body.get("DataSources", []):
        if ("Uri" in source) == ("DataSourceId" in source):
            found.append("a data source has either a Uri or the id of a data set")
    for word in body.get("Settings", {}).get("ErrorMonitoringArgs", "").split():
        name, _, value = word.partition("=")
        if name not in AIMASTER or not re.fullmatch(AIMASTER[name], value):
            found.append(f"AIMaster knows no {word}")
    return found


def _of_object(value: dict[str, Any], keys: dict[str, Key], path: str) -> Iterator[str]:
    for name in value.keys() - keys.keys():
        yield f"{path}{name} is no key"
    for name, key in keys.items():
        if name in value:
            yield from _of_value(value[name], key, path + name)
        elif key.required:
            yield f"{path}{name} is missing"


def _of_value(value: Any, key: Key, path: str) -> Iterator[str]:
    if type(value) is not key.type:  # True is an int, but no number of nodes
        yield f"{path} is {value!r}, which is no {key.type.__name__}"
    elif key.form and not re.fullmatch(key.form, str(value)):
        yield f"{path} is {value!r}, which is not of the form {key.form}"
    elif key.inner is None:
        if key.type is dict:
            yield from (f"{path}.{name} is no string" for name, inner in value.items() if type(inner) is not str)
    elif key.type is list:
        for index, inner in enumerate(value):
            yield from _of_object(inner, key.inner, f"{path}[{index}].") if type(inner) is dict else (f"{path}[{index}]",)
    else:
        yield from _of_object(value, key.inner, path + ".")
