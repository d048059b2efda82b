"""A checkpoint that cannot be read: a bad sector costs it, and what lies outside its files does not."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import errno
import itertools
import os
import shutil

import pytest

from megatron_patch.errors import OnEveryRank, RefusedOnEveryRank, all_or_none
from tests.faults.in_process import EVERY, ITERATIONS, config_of, digest, iterations_in, root_of, train
from tests.faults.refusing import OUTSIDE, Refusals

FILES = ("__0_0.distcp", "__0_objects.distcp", ".metadata", "common.pt", "metadata.json", "model.json", "run_config.json")
MOST_TURNS = 4
NEWEST = f"iter_{ITERATIONS:07d}"


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """The folder of the run that nothing happens to, its weights and optimizer state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, digest(train(config_of(folder), alone)[0])


@pytest.fixture
def config(whole, tmp_path):
    """A copy of that run."""
    return config_of(shutil.copytree(whole[0], tmp_path / "run"))


@pytest.mark.parametrize(("number", "name"), [*zip(itertools.cycle(OUTSIDE), FILES), (errno.EACCES, ".metadata")])
def test_a_refusal_that_lies_outside_of_the_file_ends_the_command(number, name, config, whole, alone, monkeypatch):
    refusals, path = Refusals(monkeypatch), root_of(config) / NEWEST / name
    refusals.begin(number, path)
    with pytest.raises(OnEveryRank) as ended:
        train(config, alone)
    assert f"{path}: {os.strerror(number)}" in str(ended.value), ended.value
    refusals.end()
    assert NEWEST in iterations_in(config) and not any("damaged" in one for one in iterations_in(config))
    state, log = train(config, alone)
    assert log.warnings == [] and state.iteration == ITERATIONS and digest(state) == whole[1]


@pytest.mark.parametrize("name", FILES)
def test_a_sector_that_stays_unreadable_costs_one_checkpoint(name, config, whole, alone, monkeypatch):
    refusals, path = Refusals(monkeypatch), root_of(config) / NEWEST / name
    refusals.begin(errno.EIO, path)
    state, log = train(config, alone, lambda *_: refusals.end())
    (said,) = log.warnings
    assert f"{NEWEST} cannot be used: {path}: {os.strerror(errno.EIO)}" in said
    assert f"the run goes on from iter_{ITERATIONS - EVERY:07d}." in said
    assert f"{NEWEST}.damaged" in iterations_in(config) and digest(state) == whole[1]


@pytest.mark.parametrize("name", FILES)
def test_a_moment_s_failure_of_the_disk_costs_nothing(name, config, whole, alone, monkeypatch):
    """Whichever call for the file it meets."""
    refusals, turn = Refusals(monkeypatch), 0
    while turn <= refusals.calls and turn < MOST_TURNS:
        turn += 1
        refusals.begin(errno.EIO, root_of(config) / NEWEST / name, turn)
        state, log = train(config, alone)
        assert log.warnings == [] and state.iteration == ITERATIONS and digest(state) == whole[1], turn
    assert turn > 2


@pytest.mark.parametrize("order", [1, -1])
def test_what_lies_outside_on_one_rank_decides_for_all(order):
    """One rank sees a bad sector, and another may not read: then nobody takes the file for damaged."""
    told = []
    for error in (OSError(errno.EIO, "bad", "a"), PermissionError(errno.EACCES, "closed", "b")):
        with pytest.raises(OnEveryRank):
            all_or_none(lambda error=error: (_ for _ in ()).throw(error), lambda one: told.append(one) or [one])
    with pytest.raises(RefusedOnEveryRank, match="b: closed; change its owner or its permissions"):
        all_or_none(lambda: None, lambda _: told[::order])
