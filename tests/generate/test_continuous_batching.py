"""Answers of the engine against transformers', token for token, and the same answers in every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.errors import UserError
from megatron_patch.generate.continuous_batching import FAILED, LENGTH, NO_TOKEN, Engine, Request, run_all
from megatron_patch.generate.decoding_step import _Found, _Recorded
from megatron_patch.generate.prompt_graphs import _Recorded as _RecordedPrompt
from megatron_patch.generate.prompt_graphs import filled_up
from megatron_patch.generate.sampling import Sampling
from megatron_patch.kernels._dispatch import prefer
from tests.generate.models import engine_of, greedy_answers, random_prompts, transformers_answers
from tests.launching import run_ranks

NEW = 128


@pytest.fixture(scope="module")
def prompts():
    return random_prompts(64, 800, 1, 40)


@pytest.fixture(scope="module")
def truth(golden, prompts):
    return transformers_answers(golden / "hf_gqa", prompts, NEW)


def test_greedy_answers_are_transformers_s(golden, prompts, truth):
    """64 prompts of unequal length in 10 slots: slots are refilled as answers end, so every batch is a mixture."""
    assert greedy_answers(engine_of(golden / "hf_gqa", slots=10, longest=40 + NEW), prompts, NEW) == truth


@pytest.mark.parametrize("blocks", [None, 24])
def test_the_host_may_be_a_pass_behind(golden, prompts, truth, blocks):
    """As on a GPU, also where blocks run out: nothing is lost or comes twice, no answer goes on beyond its end."""
    engine = replace(engine_of(golden / "hf_gqa", slots=10, longest=40 + NEW), behind=1)
    engine = engine if blocks is None else replace(with_blocks(engine, blocks), behind=1)
    end = truth[0][10]
    requests = [Request(number, tuple(prompt), NEW, ends=frozenset({end})) for number, prompt in enumerate(prompts[:12])]
    expected = [one[: one.index(end) + 1] if end in one else one for one in truth[:12]]
    assert [answer for _, answer in sorted(run_all(engine, requests).items())] == expected
    assert engine.is_idle and len(engine._tables.free) == engine._tables.blocks - 1


def test_graphs_of_few_sizes_hold_every_batch(golden, prompts, truth, monkeypatch):
    """As on a GPU: a graph's numbers lie in fixed places, and a batch is filled up with rows that are nobody's."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    engine = replace(engine_of(golden / "hf_gqa", slots=6, longest=40 + NEW), behind=1)
    step = engine._step

    def record(kind):
        numbers = torch.zeros(kind.rows, 2 + step._width, dtype=torch.int32)
        found = _Found(torch.zeros(kind.rows, dtype=torch.int64), None)
        return _Recorded(SimpleNamespace(replay=lambda: found.tokens.copy_(step._forward(numbers, kind).tokens)), numbers, found)

    step._uses_graphs, step._record = True, record
    passes = engine._prompts

    def record_prompt(size, measured):
        numbers, logits = filled_up(torch.zeros(4, 0, dtype=torch.int64), size), torch.zeros(1, 800)
        replay = SimpleNamespace(replay=lambda: logits.copy_(passes._pass(numbers, False)))
        return _RecordedPrompt(replay, numbers, logits, measured)

    passes._uses_graphs, passes._record = True, record_prompt
    drawn = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1, seed=7)
    requests = [Request(number, tuple(prompt), NEW - number) for number, prompt in enumerate(prompts[:12])]
    answers = run_all(engine, [*requests, Request(99, (5, 6, 7), 30, drawn)])
    alone = run_all(engine_of(golden / "hf_gqa", 1, 80), [Request(99, (5, 6, 7), 30, drawn)])
    assert [answers[number] for number in range(12)] == [answer[: NEW - number] for number, answer in enumerate(truth[:12])]
    assert answers[99] == alone[99]
    assert {kind.rows for kind in step._recorded} == {1, 4, 6} and any(kind.drawn for kind in step._recorded)
    assert set(passes._recorded) == {32}


def test_decoding_s_kernels_answer_the_same(golden, prompts, truth):
    """One row, several rows and idle blocks through the Triton kernels."""
    pytest.importorskip("triton")
    prefer("triton")
    try:
        for count in (1, 3):
            engine = engine_of(golden / "hf_gqa", slots=count, longest=64)
            few = run_all(engine, [Request(number, tuple(prompts[number]), 4) for number in range(count)])
            assert [few[number] for number in range(count)] == [answer[:4] for answer in truth[:count]]
    finally:
        prefer(None)


def test_heads_without_groups(golden):
    few = random_prompts(6, 800, 1, 40, seed=1)
    ours = greedy_answers(engine_of(golden / "hf_mha", slots=4, longest=100), few, 24)
    assert ours == transformers_answers(golden / "hf_mha", few, 24)


def scaled(golden, folder, kind):
    """A copy of the model in `folder`, made for 64 positions and stretched to 128."""
    for file in (golden / "hf_gqa").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 64, "rope_scaling": {"type": kind, "factor": 2.0}}
    (folder / "config.json").write_text(json.dumps(config))


def with_blocks(engine, blocks):
    """The same engine over a cache of so many blocks."""
    memory = engine.decoder.cache
    engine.decoder.cache = replace(memory, keys=memory.keys[:, :blocks].clone(), values=memory.values[:, :blocks].clone())
    return Engine(engine.decoder, engine.slots, engine.longest)


@pytest.mark.parametrize("rope", ["linear", "dynamic"])
def test_scaled_positions(golden, tmp_path, rope):
    """Prompts and answers beyond the limit that the model was trained for, where dynamic scaling moves the base."""
    scaled(golden, tmp_path, rope)
    few = random_prompts(3, 800, 50, 80, seed=2)
    ours = [greedy_answers(engine_of(tmp_path, slots=1, longest=128), [prompt], 30)[0] for prompt in few]
    assert ours == [transformers_answers(tmp_path, [prompt], 30)[0] for prompt in few]


@pytest.mark.parametrize("layout", [(2, 1), (1, 2)])
def test_two_processes_answer_as_one(golden, tmp_path, layout, prompts, truth):
    tensor, stages = layout
    run_ranks("tests.generate.engine_worker", golden / "hf_gqa", tensor, stages, tmp_path, count=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == truth


def test_a_cache_that_is_too_small_for_all_changes_no_answer(golden, prompts, truth):
    """Sequences are put back when blocks run out, and go on from what they had answered."""
    engine = with_blocks(engine_of(golden / "hf_gqa", slots=10, longest=40 + NEW), 24)
    put_back = []
    leave = engine._leave
    engine._leave = lambda one: (put_back.append(one.answered < one.request.new_tokens), leave(one))
    assert greedy_answers(engine, prompts[:12], NEW) == truth[:12]
    assert any(put_back), "the cache held everything, so nothing was tried"


def test_under_dynamic_scaling_too(golden, tmp_path):
    """Keys of what was answered before are computed again as they were, each for the length that there was then."""
    scaled(golden, tmp_path, "dynamic")
    few = random_prompts(6, 800, 50, 80, seed=2)
    expected = greedy_answers(engine_of(tmp_path, slots=6, longest=128), few, 40)
    assert greedy_answers(with_blocks(engine_of(tmp_path, slots=6, longest=128), 20), few, 40) == expected


@pytest.mark.parametrize("drawn", [Sampling(), Sampling(temperature=5.0)])
def test_rows_beyond_the_tokenizer_never_come(golden, drawn):
    """As after EXTRA_VOCAB_SIZE: the model has rows for which there is no text."""
    engine = replace(engine_of(golden / "hf_gqa", 2, 80), vocabulary=200)
    answer = run_all(engine, [Request(0, (5, 6, 7), 60, drawn)])[0]
    assert len(answer) == 60 and max(answer) < 200


@pytest.mark.parametrize("drawn", [Sampling(), Sampling(temperature=1.0)])
def test_logits_that_are_no_numbers_are_a_sentence(golden, drawn):
    engine = engine_of(golden / "hf_gqa", 2, 80)
    engine.decoder.weights.final_norm.fill_(float("nan"))
    with pytest.raises(UserError, match="the model gives NaN"):
        run_all(engine, [Request(0, (5, 6, 7), 4, drawn)])


@pytest.mark.parametrize("behind", [0, 1])
def test_an_answer_that_fails_leaves_the_others_alone(golden, prompts, truth, behind):
    """One in the same pass as it, and those that get its blocks: their places hold NaN until they are written."""
    engine = replace(engine_of(golden / "hf_gqa", 2, 40 + NEW), fails_alone=True, behind=behind)
    engine.decoder.weights.embedding[799] = float("nan")
    fails = Request(0, (799,) * 40, NEW, Sampling(temperature=1.0), logprobs=2)
    heard = {number: [] for number in range(5)}
    for request in (fails, *(Request(number, tuple(prompts[number % 2]), NEW) for number in range(1, 5))):
        engine.submit(request)
    while not engine.is_idle:
        for new in engine.step():
            heard[new.number].append(new)
    assert [(new.token, new.finished) for new in heard[0]] == [(NO_TOKEN, FAILED)]
    for number in range(1, 5):
        assert [new.token for new in heard[number]] == truth[number % 2] and heard[number][-1].finished == LENGTH
    assert len(engine._tables.free) == engine._tables.blocks - 1


def test_an_answer_depends_on_its_own_request_alone(golden):
    """The same seed gives the same answer alone and among others; another seed gives another."""
    drawn = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.1, seed=7)
    others = random_prompts(5, 800, 3, 30, seed=4)
    alone = run_all(engine_of(golden / "hf_gqa", 6, 80), [Request(0, (5, 6, 7), 30, drawn)])[0]
    requests = [Request(i + 1, tuple(p), 25, Sampling(temperature=2.0, seed=i)) for i, p in enumerate(others)]
    requests.insert(3, Request(0, (5, 6, 7), 30, drawn))
    assert run_all(engine_of(golden / "hf_gqa", 3, 80), requests)[0] == alone
    assert run_all(engine_of(golden / "hf_gqa", 6, 80), [Request(0, (5, 6, 7), 30, replace(drawn, seed=8))])[0] != alone


def test_an_end_token_ends_an_answer(golden, prompts, truth):
    end = truth[0][10]
    first = truth[0].index(end)
    engine = engine_of(golden / "hf_gqa", 2, 40 + NEW)
    engine.submit(Request(0, tuple(prompts[0]), NEW, ends=frozenset({end})))
    news = [new for _ in range(first + 1) for new in engine.step()]
    assert [new.token for new in news] == truth[0][: first + 1]
    assert [new.finished for new in news] == [""] * first + ["stop"]
    assert engine.is_idle
    assert torch.equal(torch.tensor(sorted(engine._tables.free)), torch.arange(1, engine._tables.blocks))
