"""GPUs that torch cannot use are named before a process starts, with a stand-in for NVIDIA's driver."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from megatron_patch.arguments.gpus import Driver, Torch, find_driver, find_torch, unusable_gpus, visible_gpus
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, ROOT, environment, run

CPU, CUDA_12, CUDA_13 = Torch("2.13.0+cpu", None), Torch("2.12.1+cu126", "12.6"), Torch("2.15.0+cu132", "13.2")
OLD, NEW = Driver(2, 12040, release="550.54.15"), Driver(8, 13000, release="580.65.06")
CASES = {
    "driver too old": (
        OLD, CUDA_13,
        ("2 GPUs with NVIDIA's driver 550.54.15 (CUDA up to 12.4), and torch 2.15.0+cu132 wants CUDA 13.2",
         "driver 580.65 or newer",
         "-m pip install --force-reinstall 'torch>=2.11,<2.14' --index-url https://download.pytorch.org/whl/cu126"),
    ),
    "driver of years ago": (Driver(1, 11040), CUDA_12, ("1 GPU with", "CUDA up to 11.4", "driver 525.60 or newer;")),
    "torch for the CPU": (NEW, CPU, ("8 GPUs", "2.13.0+cpu is a build without CUDA", "--force-reinstall torch==2.13.0;")),
    "torch for the CPU, old driver": (OLD, CPU, ("2 GPUs", "is a build without CUDA", "whl/cu126;")),
    "driver that does not start": (Driver(4, 13000, 803), CUDA_13, ("4 GPUs", "cuInit answers 803", "restart")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_there_what_torch_wants_and_what_to_install(name):
    driver, torch, parts = CASES[name]
    said = unusable_gpus(driver, torch)
    assert said is not None and all(part in said for part in parts), said
    assert said.endswith("; to train on the CPU on purpose, put CUDA_VISIBLE_DEVICES= in front of the command.")


@pytest.mark.parametrize(
    "driver, torch",
    [
        (Driver(0), CPU),
        (Driver(0, 12040, 100), CUDA_13),
        (NEW, CUDA_13),
        (NEW, CUDA_12),
        (Driver(1, 12020), CUDA_12),
        (NEW, None),
    ],
    ids=["no driver", "hidden", "usable", "newer driver", "older minor release", "no torch"],
)
def test_nothing_is_said_where_nothing_is_wrong(driver, torch):
    assert unusable_gpus(driver, torch) is None


STAND_IN = """
#include <stdlib.h>
#include <string.h>
static int visible(void) { const char *set = getenv("CUDA_VISIBLE_DEVICES"); return set == NULL || *set; }
int cuInit(unsigned flags) { (void)flags; return visible() ? 0 : 100; }
int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
int cuDeviceGetCount(int *count) { *count = visible() ? 2 : 0; return 0; }
int cuDeviceGet(int *device, int number) { *device = 70 + number; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
  (void)device; strncpy(name, "NVIDIA H100 80GB HBM3", length); return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : device % 10 ? 0 : 6; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)1 << (device == 70 ? 37 : 36); return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a driver with")
def test_the_script_ends_with_status_2_and_goes_on_where_the_cpu_is_meant(tmp_path):
    (tmp_path / "driver.c").write_text(STAND_IN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    data = GOLDEN / "data" / "corpus_text_document"
    values = {**PRETRAIN_ARGUMENTS, "MODEL_SIZE": "tiny", "DATASET_PATH": data, "OUTPUT_BASEPATH": tmp_path}
    refused = run(PRETRAIN, *values.values(), job={"LD_LIBRARY_PATH": tmp_path, "CUDA_VISIBLE_DEVICES": "0,1"})
    assert refused.returncode == 2 and "Traceback" not in refused.stdout
    (line,) = refused.stdout.splitlines()
    assert (
        line.startswith("run_pretrain_megatron_llama.sh: This machine has 2 GPUs with NVIDIA's driver")
        and "CUDA up to 11.4" in line
    )
    # A torch without CUDA says so on any machine, and one with CUDA wants a newer driver than the stand-in.
    assert "is a build without CUDA" in line or "wants CUDA" in line
    meant = run(PRETRAIN, *values.values(), "--exit-interval", 1, job={"LD_LIBRARY_PATH": tmp_path, "CUDA_VISIBLE_DEVICES": ""})
    assert meant.returncode == 0 and "iteration        1/" in meant.stdout, meant.stdout[-3000:]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a driver with")
def test_the_memory_is_that_of_the_gpu_with_the_least_and_plans_are_for_it(tmp_path):
    (tmp_path / "driver.c").write_text(STAND_IN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    asked = "from megatron_patch.arguments.gpus import find_driver; print(find_driver().memory)"
    planned = [sys.executable, "-m", "megatron_patch.cli.plan", "tiny"]
    for hidden, gpu in (("0,1", "64.0 GiB of an NVIDIA H100 80GB HBM3"), ("", "139.8 GiB of an NVIDIA H200")):
        job = {"LD_LIBRARY_PATH": tmp_path, "CUDA_VISIBLE_DEVICES": hidden}
        said = subprocess.run(planned, env=environment(job=job), capture_output=True, text=True, check=True, cwd=ROOT).stdout
        assert gpu in said and ("data parallel 2" in said) == bool(hidden)
    for hidden, memory in (("0,1", 1 << 36), ("", 0)):
        job = {"LD_LIBRARY_PATH": tmp_path, "CUDA_VISIBLE_DEVICES": hidden}
        said = subprocess.run([sys.executable, "-c", asked], env=environment(job=job), capture_output=True, text=True, check=True)
        assert int(said.stdout) == memory


def test_torch_s_version_file_is_read_as_torch_reads_it():
    import torch

    assert find_torch() == Torch(torch.__version__, torch.version.cuda)
    assert visible_gpus() == (find_driver().gpus if torch.version.cuda else 0)
