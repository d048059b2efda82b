"""What a rank says of an error that a user can do something about."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.cli import session as training
from megatron_patch.cli.session import _sentence
from megatron_patch.core import parallel
from megatron_patch.data.batches import BatchPlan, MicroBatchSampler, micro_batches
from megatron_patch.errors import Refused, RunStopped, UserError
from megatron_patch.processes import notes
from tests.loaders import first_of
from tests.tiny import be_alone, tiny_config


class Rows(torch.utils.data.Dataset):
    def __getitem__(self, index):
        row = torch.full((4,), 9)
        return {"tokens": row, "labels": row, "loss_mask": torch.ones(4)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_s_error_is_one_sentence(workers):
    plan = BatchPlan(samples=4, global_batch_size=2, micro_batch_size=2, data_parallel_size=1, shuffle_seed=None, passes=1)
    batches = micro_batches(Rows(), MicroBatchSampler(plan, 0, 0, 2), vocab_size=9, num_workers=workers, pin_memory=False)
    with pytest.raises(ValueError) as error:
        next(batches)
    assert _sentence(error.value).startswith("The data holds tokens from 9 to 9, and the model has 9 rows")


class Broken(torch.utils.data.Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error("train.bin ends: too early; copy it again.")


@pytest.mark.parametrize("kind", [UserError, Refused])
def test_what_a_data_set_says_in_a_loader_process_is_one_sentence(kind):
    with pytest.raises(kind) as caught:
        first_of(torch.utils.data.DataLoader(Broken(kind), num_workers=1))
    assert _sentence(caught.value) == "train.bin ends: too early; copy it again."


TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 35.94 MiB is free. "
    "Including non-PyTorch memory, this process has 79.10 GiB memory in use. Of the allocated memory 70.00 GiB is allocated"
)


def run_until(raises, monkeypatch, tmp_path, **changed):
    """The status with which a session ends whose training does this."""
    be_alone()
    monkeypatch.setattr(training, "run", raises)
    # It would go on watching this process, and end it when it has stood still at one place for ten minutes.
    monkeypatch.setattr(training, "HangWatch", lambda *_: SimpleNamespace(stop=lambda: None))
    config = tiny_config(output_path=str(tmp_path), **changed)
    with pytest.raises(SystemExit) as left:
        training.training_session(config, lambda *_: SimpleNamespace(train_iters=4))
    parallel.stop()
    return left.value.code


@pytest.mark.parametrize(
    "error, status, is_final",
    [
        (RunStopped("The last 3 iterations were not finite."), 1, True),
        (RunStopped("The last checkpoint could not be saved.", may_pass=True), 1, False),
        (UserError("The data holds tokens from 9 to 9."), 2, True),
        (Refused("train.bin: Input/output error."), 2, False),
        (OSError(errno.EIO, "Input/output error"), 2, False),
    ],
    ids=["not finite", "last save", "typed", "a loader's disk", "disk"],
)
def test_torchrun_hears_whether_a_restart_is_vain(error, status, is_final, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    with notes.folder():
        assert (run_until(fail, monkeypatch, tmp_path), notes.is_final()) == (status, is_final)


def test_a_full_gpu_is_said_with_what_takes_less(monkeypatch, tmp_path, capsys):
    def full(*_):
        raise torch.OutOfMemoryError(TORCH_SAYS)

    assert run_until(full, monkeypatch, tmp_path, micro_batch_size=2, recompute="sel") == 1
    assert capsys.readouterr().err.endswith(
        "rank 0: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 35.94 MiB is "
        "free. What takes less: BATCH_SIZE below 2; AC full; a higher TP or PP, on more GPUs.\n"
    )


def test_a_gpu_that_is_full_while_a_graph_of_pairs_is_recorded_is_said_too(monkeypatch, tmp_path, capsys):
    """The recording ends with an error of its own, and the graphs are closed."""
    closed = []

    def full(state, *_):
        state.graphs = SimpleNamespace(together=2, close=lambda: closed.append(True))
        try:
            raise torch.OutOfMemoryError(TORCH_SAYS)
        finally:
            raise RuntimeError("CUDA error: capturing stream has unjoined work")

    assert run_until(full, monkeypatch, tmp_path, recompute="full") == 1
    assert closed == [True]
    said = capsys.readouterr().err
    assert said.endswith("is free. What takes less: --pair-micro-batches false; a higher TP or PP, on more GPUs.\n")
