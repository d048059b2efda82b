"""The job files of examples/llama2/dlc: where they are and how they are read."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import yaml

from tests.launching import ROOT

DLC = ROOT / "examples" / "llama2" / "dlc"
TASKS = {"pretrain": 24, "finetune": 22}  # and the number of the script's documented arguments
BODIES = [f"{task}_{resources}" for task in TASKS for resources in ("ecs", "quota")]
PREPARATIONS = ["prepare_ecs", "prepare_quota"]


def body(name: str) -> dict[str, Any]:
    """A CreateJob body as its file has it."""
    return json.loads((DLC / f"{name}.json").read_text(encoding="utf-8"))


def manifest(name: str) -> dict[str, Any]:
    """A Kubernetes resource as its file has it."""
    return yaml.safe_load((DLC / f"{name}.yaml").read_text(encoding="utf-8"))


def load_submit() -> Any:
    """submit.py as a module; examples/ is no package."""
    spec = importlib.util.spec_from_file_location("dlc_submit", DLC / "submit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
