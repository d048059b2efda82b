"""A damaged or edited checkpoint is a sentence when a run goes on from it; a bug at that place keeps its traceback."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import shutil
from dataclasses import replace

import pytest
import torch

from megatron_patch.checkpoint import restore as restoring
from megatron_patch.checkpoint.restore import restore
from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
from megatron_patch.core import parallel
from megatron_patch.errors import UserError
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import be_alone, tiny_batches, tiny_config

PROGRESS = RunProgress(
    iteration=3, consumed_samples=6, skipped_iterations=1, nan_iterations=0, best_loss=0.1, best_iteration=2,
    evaluations_since_best=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A state and its checkpoint, in fp16, which has a loss scale too."""
    be_alone()
    config = tiny_config(precision="fp16", output_path=str(tmp_path_factory.mktemp("run")))
    state = build_state(config, parallel.start(config), RunLog(config, active=False), 4)
    train_step(state, tiny_batches(0, 2))
    yield state, save_checkpoint(config, state.model, state.optimizer, state.scheduler, PROGRESS)
    parallel.stop()


def go_on(state, folder):
    return restore(folder, state.model, state.optimizer, state.scheduler)


def groups(content):
    return content["optimizer"]["optimizer"]["param_groups"]


# (what is done to the content of common.pt, what is said)
DAMAGE = {
    "iteration is text": (lambda c: c["progress"].update(iteration="two"), "progress.iteration is 'two'"),
    "iteration below 0": (lambda c: c["progress"].update(iteration=-1), "progress is"),
    "no number of samples": (lambda c: c["progress"].pop("consumed_samples"), "progress lacks 'consumed_samples'"),
    "one number more": (lambda c: c["progress"].update(more=1), "progress holds .*'more'"),
    "a best loss in words": (lambda c: c["progress"].update(best_loss="low"), "progress.best_loss is 'low'"),
    "no schedule": (lambda c: c.pop("scheduler"), "'scheduler' is missing"),
    "another rate": (lambda c: c["scheduler"].update(max_lr=3.0), "scheduler.max_lr is 3.0, and 0.001 in this run"),
    "steps below 0": (lambda c: c["scheduler"].update(num_steps=-1), "scheduler.num_steps is -1"),
    "an optimizer in words": (lambda c: c.update(optimizer="Adam"), "common.pt has a str as optimizer, where tensors belong"),
    "groups in words": (lambda c: c["optimizer"]["optimizer"].update(param_groups="two"), "param_groups is no list of 2"),
    "one group": (lambda c: groups(c).pop(), "param_groups is no list of 2"),
    "a rate in words": (lambda c: groups(c)[1].update(lr="high"), r"param_groups\[1\].lr is 'high'"),
    "three betas": (lambda c: groups(c)[0].update(betas=(0.9, 0.9, 0.9)), r"param_groups\[0\].betas is no list of 2"),
    "the same group twice": (lambda c: groups(c)[0].update(wd_mult=0.0), "param_groups: none has .*'wd_mult': 1.0"),
    "half a step": (lambda c: groups(c)[0].update(step=1.5), "param_groups count no steps"),
    "a large loss scale": (
        lambda c: c["optimizer"]["grad_scaler"].update(scale=torch.ones(2)),
        r"grad_scaler.scale is no torch.float32 of shape \[1\]",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_a_user_can_mend_is_a_sentence(name, saved, tmp_path):
    state, folder = saved
    damage, said = DAMAGE[name]
    copied = shutil.copytree(folder, tmp_path / folder.name)
    content = torch.load(copied / "common.pt", weights_only=True)
    damage(content)
    torch.save(content, copied / "common.pt")
    with pytest.raises(UserError, match=said) as caught:
        go_on(state, copied)
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize(
    "stored, said",
    [
        ("random", "rng is a str"),
        ({"python": (3, (0,) * 625, None)}, "rng lacks 'numpy'"),
        ({"python": (3, (-1,) * 625, None)}, "rng: "),  # of the right form, but no state that Python takes
    ],
)
def test_random_state_that_is_none(stored, said, saved, monkeypatch):
    state, folder = saved
    load = restoring.load_checked
    own = parallel.rng_state() if said == "rng: " else {}
    changed = {**own, **stored} if isinstance(stored, dict) else stored
    monkeypatch.setattr(restoring, "load_checked", lambda *arguments: {**load(*arguments), "rng": changed})
    with pytest.raises(UserError, match=said):
        go_on(state, folder)


@pytest.mark.parametrize("owner", ["optimizer", "scheduler"])
def test_a_bug_keeps_its_traceback(owner, saved, monkeypatch):
    state, folder = saved

    def bug(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(getattr(state, owner), "load_state_dict", bug)
    with pytest.raises(KeyError, match="a bug"):
        go_on(state, folder)


def test_what_was_saved_is_taken(saved):
    state, folder = saved
    assert go_on(state, folder) == PROGRESS


def test_a_checkpoint_without_the_best_loss_is_taken(saved, tmp_path):
    """Versions before `--save-best` have not saved it."""
    state, folder = saved
    copied = shutil.copytree(folder, tmp_path / folder.name)
    content = torch.load(copied / "common.pt", weights_only=True)
    for name in ("best_loss", "best_iteration", "evaluations_since_best"):
        del content["progress"][name]
    torch.save(content, copied / "common.pt")
    assert go_on(state, copied) == replace(PROGRESS, best_loss=None, best_iteration=0, evaluations_since_best=0)
