"""NaN is not progress: it is counted, it ends the run, and it takes no checkpoint's place."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import random

import pytest
import torch

from megatron_patch.errors import RunStopped
from megatron_patch.train.health import LossLeaps
from tests.faults.in_process import ITERATIONS, MODEL, config_of, digest, iterations_in, root_of, train


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """The run that nothing happens to: its weights and optimizer state, and its losses."""
    state, log = train(config_of(tmp_path_factory.mktemp("whole")), alone)
    return digest(state), log.losses


def nan_from(iteration):
    def meddle(state, done):
        if done == iteration:
            used(state)[7] = torch.nan

    return meddle


def used(state):
    """A weight that every sample is computed with: the output layer's, flat."""
    return [*state.model.parameters()][-1].data.view(-1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_nan_in_one_weight_ends_the_run_and_the_good_checkpoints_stay(precision, alone, tmp_path):
    config = config_of(tmp_path, iterations=40, max_consecutive_skips=5, keep_last=1, precision=precision)
    with pytest.raises(RunStopped) as stopped:
        train(config, alone, nan_from(5))
    said = str(stopped.value)
    assert "The last 5 iterations, up to 10, were not finite" in said and "the learning rate was 8.875000E-04" in said
    assert said.count(" in iteration ") == 3 and f"The last good checkpoint is {root_of(config) / 'iter_0000004'}." in said
    assert iterations_in(config) == ["iter_0000004"], "none was written, and none deleted by --keep-last"


def test_the_same_command_then_learns_what_an_uninterrupted_run_does(alone, whole, tmp_path):
    """Also where so few iterations were left that the count did not end the run: then its last save is refused."""
    config = config_of(tmp_path)
    with pytest.raises(RunStopped, match=f"The last 3 iterations, up to {ITERATIONS}, were not finite"):
        train(config, alone, nan_from(5))
    assert iterations_in(config) == ["iter_0000002", "iter_0000004"]
    state, log = train(config, alone)
    assert digest(state) == whole[0] and log.losses == {number: whole[1][number] for number in (5, 6, 7, 8)}


def test_a_save_that_is_due_waits_for_a_finite_iteration(alone, tmp_path):
    """The fourth iteration is not finite; the save that was due comes with the fifth."""
    kept = []

    def meddle(state, done):
        weight = used(state)
        if done == 3:
            kept.append(weight[7].clone())
            weight[7] = torch.inf
        if done == 4:
            weight[7] = kept[0]

    config = config_of(tmp_path)
    state, log = train(config, alone, meddle)
    assert (state.iteration, state.nan_iterations) == (ITERATIONS, 1)
    assert iterations_in(config) == [f"iter_{number:07d}" for number in (2, 5, 6, 8)]


def test_weights_that_are_not_finite_are_not_saved(alone, tmp_path):
    """A NaN in the row of a token that no sample has: no loss shows it."""

    def meddle(state, done):
        if done == 5:
            next(state.model.parameters()).data[MODEL.vocab_size - 1, 3] = torch.nan

    config = config_of(tmp_path)
    with pytest.raises(RunStopped, match="iteration 6 is not saved: embedding.word_embeddings.weight holds a NaN.*iter_0000004"):
        train(config, alone, meddle)
    assert iterations_in(config) == ["iter_0000002", "iter_0000004"]


def test_the_first_search_for_a_loss_scale_does_not_count(alone, tmp_path):
    config = config_of(tmp_path, precision="fp16", initial_loss_scale=2.0**60, max_consecutive_skips=3, iterations=60, every=0)
    state, log = train(config, alone)
    assert state.iteration == 60 and state.skipped_iterations > 10 and iterations_in(config) == ["iter_0000060"]


def test_a_search_that_finds_no_scale_ends(alone, tmp_path):
    """A NaN in fp16 from the start: the scale falls to 1, and from there on iterations count."""
    config = config_of(tmp_path, precision="fp16", initial_loss_scale=16.0, max_consecutive_skips=4, iterations=60)
    with pytest.raises(RunStopped, match="The last 4 iterations, up to 9, were not finite.*has no checkpoint in"):
        train(config, alone, nan_from(0))
    assert not root_of(config).exists()


def test_a_leap_of_the_loss_is_one_warning(alone, tmp_path):
    def meddle(state, done):
        if done == 53:
            state.model.module.output_layer.weight.data.mul_(30)

    _, log = train(config_of(tmp_path, iterations=60, every=0, lr=1e-6, min_lr=1e-6), alone, meddle)
    (warning,) = log.warnings
    assert warning.startswith("iteration 54: the loss leapt to ") and "over the last 50 iterations its median was 4." in warning


def leaps(losses):
    watch = LossLeaps()
    return [place for place, loss in enumerate(losses) if watch.add(loss) is not None]


@pytest.mark.parametrize(
    "name, losses, found",
    [
        ("normal noise", lambda chance: [2 + chance.gauss(0, 0.05) for _ in range(5000)], []),
        ("noise of a few samples", lambda chance: [2 + chance.gauss(0, 0.5) for _ in range(5000)], None),
        ("falling fast", lambda chance: [10 * 0.97**step + 1 + chance.gauss(0, 0.01) for step in range(500)], []),
        ("hardly any variance", lambda chance: [1.5 + chance.gauss(0, 1e-5) for _ in range(200)] + [1.505] * 5, []),
        ("constant", lambda chance: [0.0] * 80, []),
        ("one leap", lambda chance: [2.0 + 0.01 * (step % 3) + (step == 70) for step in range(120)], [70]),
        ("stays up", lambda chance: [2.0 + 0.01 * (step % 3) + (step >= 70) for step in range(300)], [70]),
        ("too early to tell", lambda chance: [2.0, 2.1] * 20 + [9.0], []),
    ],
)
def test_what_is_a_leap(name, losses, found):
    got = leaps(losses(random.Random(3)))
    assert got == found if found is not None else len(got) <= 2, got
