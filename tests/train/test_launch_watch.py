"""With a stand-in for host and device, in which launching and computing a micro-batch take given times."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401

from dataclasses import replace

import pytest

from megatron_patch.config import Options
from megatron_patch.train.launch_watch import LaunchWatch
from tests.tiny import tiny_config


class Machine:
    """Kernels of equal length, `KERNELS` in a micro-batch; the device begins one when it is launched and free."""

    KERNELS = 100

    def __init__(self, launching: float, computing: float) -> None:
        self.launching, self.computing = launching / self.KERNELS, computing / self.KERNELS
        self.host = self.device = 0.0

    def now(self) -> float:
        return self.host

    def mark(self) -> float:
        self.device = max(self.device, self.host)
        return self.device

    def between(self, first: float, second: float) -> float:
        return second - first

    def hold(self, seconds: float) -> None:
        self.device = self.mark() + seconds

    def micro_batch(self) -> None:
        for _ in range(self.KERNELS):
            self.host += self.launching
            self.device = max(self.device, self.host) + self.computing

    def steps(self, watch: LaunchWatch, number: int, micro_batches: int) -> list[str]:
        said = []
        for _ in range(number):
            for _ in range(micro_batches):
                watch.micro_batch()
                self.micro_batch()
            self.host = max(self.host, self.device)
            said.append(watch.step_done())
        return said


@pytest.mark.parametrize(
    "launching, computing, idle",
    [(10.0, 4.0, "60 %"), (10.0, 8.0, "20 %"), (10.0, 9.0, None), (10.0, 20.0, None), (4.0, 10.0, None)],
)
def test_what_a_micro_batch_waits_for_its_launches(launching, computing, idle):
    config = replace(tiny_config(), options=Options(cuda_graphs=False))
    machine = Machine(launching, computing)
    said = machine.steps(LaunchWatch(config, "--cuda-graphs false", machine), 8, 5)
    assert [number for number, line in enumerate(said) if line] == ([4] if idle else [])
    if idle:
        assert f"idle for {idle.replace(' ', '')} of a micro-batch" in said[4]
        assert said[4].endswith("What helps: --cuda-graphs true; BATCH_SIZE above 1, whose kernels are longer.")


def test_what_helps_is_what_the_run_can_change():
    machine = Machine(10.0, 1.0)
    line = "".join(machine.steps(LaunchWatch(tiny_config(tensor_model_parallel_size=2), "--cuda-graphs false", machine), 5, 4))
    assert line.endswith("What helps: BATCH_SIZE above 1, whose kernels are longer; TP below 2.")


def test_a_step_of_three_micro_batches_says_nothing():
    machine = Machine(10.0, 1.0)
    assert not any(machine.steps(LaunchWatch(tiny_config(), "--cuda-graphs false", machine), 8, 3))
