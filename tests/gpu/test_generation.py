"""The engine on a GPU: steps and prompts as CUDA graphs, kernels that were chosen by measuring. Run by `make gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from megatron_patch.generate.continuous_batching import Engine, Request, run_all
from megatron_patch.generate.loading import load_decoder
from megatron_patch.generate.ranks import alone
from megatron_patch.generate.sampling import Sampling
from megatron_patch.weights.source import open_source
from tests import launching
from tests.generate.models import engine_of, greedy_answers, random_prompts, transformers_answers
from tests.launching import GOLDEN

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
NEW = 48


@pytest.mark.parametrize("folder, slots", [("hf_gqa", 10), ("hf_gqa", 1), ("hf_mha", 3)])
def test_greedy_answers_are_transformers_s(folder, slots):
    prompts = random_prompts(14, 800, 1, 40)
    ours = greedy_answers(engine_of(GOLDEN / folder, slots, 40 + NEW, alone(torch.device("cuda"))), prompts, NEW)
    assert ours == transformers_answers(GOLDEN / folder, prompts, NEW)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("tensor, stages", [(2, 1), (1, 2)], ids=["TP2", "PP2"])
def test_two_gpus_answer_as_transformers_does(tmp_path, gpus, tensor, stages):
    gpus(2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    words = [*torchrun, "tests.generate.engine_worker", GOLDEN / "hf_gqa", tensor, stages, tmp_path]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launching.succeed(subprocess.run(list(map(str, words)), env=launching.environment(), cwd=launching.ROOT, **both))
    wanted = transformers_answers(GOLDEN / "hf_gqa", random_prompts(64, 800, 1, 40), 128)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == wanted


def engine_in_bf16(slots: int) -> Engine:
    decoder = load_decoder(open_source(GOLDEN / "hf_gqa"), alone(torch.device("cuda")), torch.bfloat16, slots, 128)
    return Engine(decoder, slots, 128)


def test_what_is_drawn_stays_the_same_from_run_to_run():
    """With slots refilled, penalties and graphs of several sizes; and another seed draws others."""
    drawn = Sampling(temperature=1.0, top_k=50, top_p=0.9, repetition_penalty=1.1)
    requests = [
        Request(number, tuple(prompt), NEW - number, replace(drawn, seed=number))
        for number, prompt in enumerate(random_prompts(12, 800, 3, 40))
    ]
    once, again = (run_all(engine_in_bf16(5), requests) for _ in range(2))
    assert once == again and all(len(once[number]) == NEW - number for number in range(12))
    others = [replace(one, sampling=replace(drawn, seed=one.number + 100)) for one in requests]
    assert run_all(engine_in_bf16(5), others) != once
