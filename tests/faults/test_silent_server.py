"""A file server that answers nothing while a checkpoint is saved, and what fails beside one that is complete."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import errno
import os
from pathlib import Path

import pytest

from megatron_patch.checkpoint.writer import Writer
from megatron_patch.checkpoint.writing_process import Tidying
from tests.faults.in_process import config_of, digest, iterations_in, root_of, train
from tests.faults.refusing import Refusals


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """What is learnt by the run that nothing happens to."""
    return digest(train(config_of(tmp_path_factory.mktemp("whole")), alone)[0])


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
@pytest.mark.parametrize("since", ["the beginning", "__0_0.distcp", "run_config.json"])
def test_a_file_server_that_answers_nothing_for_the_time_of_a_save(number, since, whole, alone, tmp_path, monkeypatch, caplog):
    """From a moment of the save on every call is refused: the sentence about it and the clean-up ask it as well."""
    refusals, config, flush = Refusals(monkeypatch), config_of(tmp_path), os.fsync

    def flushed(descriptor):
        if due and Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == since:
            refusals.begin(number, root_of(config))
        flush(descriptor)

    due = []
    monkeypatch.setattr(os, "fsync", flushed)

    def meddle(state, done):
        due[:] = [1] if done == 3 else []
        if done == 3 and since == "the beginning":
            refusals.begin(number, root_of(config))
        if done == 4:
            refusals.end()

    state, log = train(config, alone, meddle)
    (warning,) = log.warnings
    assert warning.startswith("iteration 4 could not be saved (") and os.strerror(number) in warning
    assert f"The last good checkpoint is {root_of(config) / 'iter_0000002'}." in warning
    assert iterations_in(config) == [f"iter_{number:07d}" for number in (2, 6, 8)] and digest(state) == whole
    assert "cannot be looked through for what is left over" in caplog.text


@pytest.mark.parametrize(
    ("what", "beside"),
    [("the best one's tracker", "true"), ("the best one's tracker", "false"), ("the process", "true"), ("the size", "false")],
)
def test_what_fails_beside_a_complete_checkpoint_is_a_warning(what, beside, whole, alone, tmp_path, monkeypatch, caplog):
    """At the run's end as well, where a refused save would end it with status 1."""
    config = config_of(tmp_path, async_save=beside)
    root = root_of(config)
    if what == "the best one's tracker":
        root.mkdir(parents=True)
        (root / "best_checkpointed_iteration.txt").write_text("the best\n")
    if what == "the process":

        def killed(self, request, ask=Writer.ask):
            if isinstance(request, Tidying):
                self._process.kill()
                self._process.wait()
            ask(self, request)

        monkeypatch.setattr(Writer, "ask", killed)
    if what == "the size":

        def refused(folder):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(folder))

        monkeypatch.setattr("megatron_patch.train.saves.folder_bytes", refused)
    state, log = train(config, alone)
    assert digest(state) == whole and iterations_in(config)[-1] == "iter_0000008"
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "8"
    said = log.warnings + [record.getMessage() for record in caplog.records]
    assert any("is complete" in line and "iter_0000008" in line for line in said), said
    assert not any("could not be saved" in line for line in said)
