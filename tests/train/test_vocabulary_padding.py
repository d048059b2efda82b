"""A vocabulary that TP does not divide: 801 rows learn at TP 2 what they learn at TP 1, and 801 rows are saved."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_patch.llama.vocabulary import padded_rows, rows_of_rank, splitting_finding
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN, PRETRAIN, convert, train
from tests.weights.models import megatron_tensor, read_hf

ITERATIONS = 10


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    model = convert(GOLDEN / "hf_mha", tmp_path_factory.mktemp("model") / "megatron", tp=2, extra=1)
    corpus = GOLDEN / "data/corpus_text_document"
    return dict(DATASET_PATH=corpus, PRETRAIN_CHECKPOINT_PATH=model, EXTRA_VOCAB_SIZE=1, TRAIN_TOKENS=ITERATIONS * 4 * 32)


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """(iterations, final weights as Hugging Face has them) without padding: TP 1, never stopped."""
    output = tmp_path_factory.mktemp("whole")
    steps = train(PRETRAIN, output, **arguments)
    return steps, exported(output)


def exported(output):
    (run,) = (output / "checkpoint").iterdir()
    return read_hf(convert(run, output / "hf", extra=1, back=True))


def go_on(output, tp, until, arguments, sp):
    """The run of `output` under this TP, which is in its name, up to the next of the iterations `until`."""
    done = 0
    for run in (output / "checkpoint").glob("*"):
        done = sum(1 for _ in run.glob("iter_*"))
        name = run.name.replace(f"tp-{3 - tp}-", f"tp-{tp}-").replace("sp-true", f"sp-{sp}").replace("sp-false", f"sp-{sp}")
        for config in run.glob("iter_*/run_config.json"):
            config.write_text(config.read_text().replace(run.name, name))
            described = json.loads((model := config.with_name("model.json")).read_text())
            model.write_text(json.dumps({key: value for key, value in described.items() if key != "crc32"}))
        run.rename(run.with_name(name))
    flags = ["--exit-interval", until[done] - (until[done - 1] if done else 0)]
    return train(PRETRAIN, output, *flags, processes=tp, TP=tp, SP=sp, **arguments)


@pytest.mark.parametrize("distributed, sp, tps", [("true", "false", (2, 1, 2)), ("false", "true", (2, 1))])
def test_losses_and_weights_are_those_without_padding(arguments, whole, tmp_path, distributed, sp, tps):
    """Stopped and continued at another TP in between, with and without the distributed optimizer."""
    until = (4, 7, ITERATIONS) if len(tps) == 3 else (5, ITERATIONS)
    for tp in tps:
        steps = go_on(tmp_path, tp, until, arguments | {"DO": distributed}, sp)
    wanted, weights = whole
    assert len(steps) == len(wanted) == ITERATIONS
    assert [step.loss for step in steps] == pytest.approx([step.loss for step in wanted], rel=1e-6)
    assert [step.grad_norm for step in steps] == pytest.approx([step.grad_norm for step in wanted], rel=1e-5)
    (run,) = (tmp_path / "checkpoint").iterdir()
    for folder in run.glob("iter_*"):  # those of TP 2 among them: files hold the true rows
        assert megatron_tensor(open_source(folder), "output_layer.weight").shape == (801, 64)
    got = exported(tmp_path)
    assert got.keys() == weights.keys() and got["lm_head.weight"].shape == (801, 64)
    for name, tensor in weights.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=2e-5)
    # The added row learns, and what Adam keeps of it moved with it: a row that stood still differs by far more.
    start = megatron_tensor(open_source(arguments["PRETRAIN_CHECKPOINT_PATH"]), "output_layer.weight")[800].float()
    assert (got["lm_head.weight"][800] - start).abs().max() > 1e-3


def test_rows_in_memory():
    assert [padded_rows(32000, tp) for tp in (1, 2, 4, 8)] == [32000] * 4
    assert [padded_rows(32001, tp) for tp in (1, 2, 4, 8)] == [32001, 32016, 32032, 32064]
    assert [rows_of_rank(801, 2, rank) for rank in (0, 1)] == [(0, 408), (408, 393)]
    assert splitting_finding(801, 2) is None and splitting_finding(800, 8) is None
    assert "too small" in splitting_finding(41, 8)
