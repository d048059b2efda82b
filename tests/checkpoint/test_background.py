"""Checkpoints that are written beside the training: the same bytes, and what happens where they cannot be written."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import errno
import itertools
import os
import signal
import time
from types import SimpleNamespace

import pytest

from megatron_patch.checkpoint import background, host_memory, staging, writer
from megatron_patch.checkpoint.background import BackgroundSaves
from megatron_patch.checkpoint.contents import Contents
from megatron_patch.errors import RunStopped
from megatron_patch.processes import place
from tests.faults.disks import absent, fill, small_disk
from tests.faults.in_process import config_of, digest, iterations_in, train
from tests.launching import run_ranks

WHY = absent()


@pytest.mark.parametrize("layout", [(1, 1, 1, "true"), (2, 2, 1, "false"), (2, 1, 1, "true"), (2, 1, 2, "true")])
def test_the_files_are_those_of_a_save_that_is_waited_for(layout, tmp_path):
    """bf16, in which ZeRO's fp32 weights are copied as halves; while a step changes them all."""
    processes, *arguments = layout
    run_ranks("tests.checkpoint.background_worker", tmp_path, *arguments, count=processes)


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """What is learnt by the run that waits for its saves."""
    return digest(train(config_of(tmp_path_factory.mktemp("whole")), alone)[0])


@pytest.mark.parametrize("when", [2, 4])
def test_a_process_that_is_killed_costs_one_save(when, whole, alone, tmp_path, monkeypatch):
    """And the next one has a process of its own. How long a save takes is not told by when a long step ends."""
    started, hours = [], itertools.count(0, 3600)
    monkeypatch.setattr(background, "time", SimpleNamespace(perf_counter=lambda: next(hours), sleep=time.sleep))

    class Kept(writer.Writer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            started.append(self._process)

    def meddle(state, done):
        if done == when:
            os.kill(started[0].pid, signal.SIGKILL)
            started[0].wait()

    monkeypatch.setattr("megatron_patch.checkpoint.background.Writer", Kept)
    config = config_of(tmp_path, async_save="true")
    state, log = train(config, alone, meddle)
    assert any("in 3600.0 s beside the training" in line for line in log.lines)
    assert not any("--exit-grace-seconds" in line for line in log.lines)
    assert len(started) == 2 and started[1].poll() is not None, "the second one has ended with the run"
    assert iterations_in(config)[-2:] == ["iter_0000006", "iter_0000008"] and digest(state) == whole
    for warning in log.warnings:  # none where that iteration's was there already
        assert warning.startswith(f"iteration {when} could not be saved (the process that writes checkpoints has ended with")


@pytest.mark.skipif(bool(WHY), reason=WHY)
@pytest.mark.parametrize("fails", [False, True])
def test_a_full_disk_is_told_and_the_next_save_is_tried(fails, whole, alone, monkeypatch):
    """Each save has ended one iteration later, so that it is known which one meets the full disk."""

    def at_once(self, poll=BackgroundSaves.poll):
        while (outcome := poll(self)) is None:
            time.sleep(0.01)
        return outcome

    monkeypatch.setattr(BackgroundSaves, "poll", at_once)
    with small_disk("size=16m") as disk:

        def meddle(state, done):
            if done == 3:
                fill(disk)
            if done == 5 and not fails:
                (disk / "filler").unlink()

        config = config_of(disk, async_save="true", every=4 if fails else 2)
        if fails:
            with pytest.raises(RunStopped, match="iteration 8 could not be saved .*No space left on device"):
                train(config, alone, meddle)
            return
        state, log = train(config, alone, meddle)
        (warning,) = log.warnings
        assert warning.startswith("iteration 4 could not be saved (") and "No space left on device" in warning
        assert iterations_in(config) == [f"iter_{number:07d}" for number in (2, 6, 8)] and digest(state) == whole


@pytest.mark.parametrize("beside", ["true", "false"])
def test_a_save_that_is_waited_for_comes_further_at_its_place(beside, alone, tmp_path, monkeypatch):
    """By all of its bytes, or with each look at the process that writes them; the place that ranks compare stays."""
    seen, written, looks = [], itertools.count(1), itertools.count()
    kind, name = (Contents, "write") if beside == "false" else (BackgroundSaves, "wait")
    call = getattr(kind, name)

    def noted(self, *arguments):
        before, at = place.advanced(), place.now()
        found = call(self, *arguments)
        seen.append((place.advanced() - before, place.now() == at))
        return found

    def poll(self, call=BackgroundSaves.poll):
        return None if next(looks) < 3 else call(self)

    monkeypatch.setattr(kind, name, noted)
    monkeypatch.setattr(BackgroundSaves, "poll", poll)
    monkeypatch.setattr(staging.Staging, "written", property(lambda self: next(written)))
    state, _ = train(config_of(tmp_path, iterations=2, async_save=beside), alone)
    least = 3 if beside == "true" else 3 * sum(one.nbytes for one in state.model.parameters())
    ((count, stays),) = seen
    assert count >= least and stays


@pytest.mark.parametrize("lacking", ["has 0.0 GB of memory free", "Resource temporarily unavailable"])
def test_without_memory_or_a_process_for_it_the_training_waits(lacking, whole, alone, tmp_path, monkeypatch):
    def no_process(*_):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    if "memory" in lacking:
        monkeypatch.setattr(host_memory, "free", lambda: 1000)
    else:
        monkeypatch.setattr("megatron_patch.checkpoint.background.Writer", no_process)
    config = config_of(tmp_path, async_save="true")
    state, log = train(config, alone)
    (warning,) = log.warnings
    assert lacking in warning and "while the training waits" in warning
    assert iterations_in(config) == [f"iter_{number:07d}" for number in (2, 4, 6, 8)] and digest(state) == whole


def test_nobody_waits_for_memory_that_cannot_be_pinned(monkeypatch):
    def lost(_):
        raise RuntimeError("the device is gone")

    memory = staging.Staging(SimpleNamespace(size=64))
    memory._is_pinned.clear()
    monkeypatch.setattr(staging.torch.cuda, "set_device", lost)
    with pytest.raises(RuntimeError):
        memory._pin(0)
    memory.wait_until_pinned()
    assert memory.problem.endswith("of 72 bytes (the device is gone)")
    memory.close()


def test_all_memory_has_pages_and_is_pinned_piece_after_piece(monkeypatch):
    memory, pinned = staging.Staging(SimpleNamespace(size=5_000_000)), []
    cudart = SimpleNamespace(cudaError=SimpleNamespace(success=0), cudaHostUnregister=lambda address: None)
    cudart.cudaHostRegister = lambda first, size, flags: pinned.append((first, size)) or 0
    monkeypatch.setattr(staging.torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(staging.torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(staging, "_PIECE", 1 << 20)
    monkeypatch.setattr(staging, "_PAGES", 300 << 10)
    memory._is_pinned.clear()
    memory._pin(0)
    memory.wait_until_pinned()
    assert not memory.problem and 512 * os.fstat(memory.descriptor).st_blocks >= memory.size
    ends = [first + size for first, size in pinned]
    assert [first for first, _ in pinned[1:]] == ends[:-1] and len(pinned) == 5
    assert (pinned[0][0], ends[-1]) == (memory._host.data_ptr(), memory._host.data_ptr() + memory.size)
    memory.close()


@pytest.mark.parametrize(("version", "prefix"), [(2, ""), (1, "total_")])
def test_a_container_s_limit_counts(version, prefix, tmp_path):
    names = host_memory._NAMES[2 - version]
    for name, text in zip(names, ("5000", "4000", f"anon 1\n{prefix}inactive_file 300\n{prefix}active_file 20\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert host_memory.left_to_container(tmp_path) == 1320
    (tmp_path / names[0]).write_text("max\n" if version == 2 else "9223372036854771712\n")
    assert host_memory.left_to_container(tmp_path) == host_memory.left_to_container(tmp_path / "none") > 1e9
