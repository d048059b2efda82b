"""How a model is asked: where its answers end, and that processes which share it ask one thing."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.generate.asking import Asking
from megatron_patch.generate.continuous_batching import run_all
from megatron_patch.generate.prompt import prompt_maker
from megatron_patch.generate.sampling import Sampling
from tests.generate.models import engine_of

PROMPT = [5, 6, 7]


def of_transformers(folder, new_tokens=20):
    """A greedy answer by transformers, which reads the folder's generation_config.json."""
    from transformers import AutoModelForCausalLM

    model, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), torch.tensor([PROMPT])
    options = dict(attention_mask=torch.ones_like(tokens), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    return model.generate(tokens, **options)[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_each_end_token_of_the_folder_s_model_ends_an_answer(golden, tmp_path, file):
    folder = tmp_path / "folder"
    shutil.copytree(golden / "hf_gqa", folder)
    (folder / "generation_config.json").unlink()
    settings = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(settings | {"eos_token_id": [799, 2]}))
    whole = of_transformers(folder)
    (folder / file).write_text(json.dumps(settings | {"eos_token_id": [2, whole[9], whole[6]]}))
    answer = of_transformers(folder)
    assert len(answer) < len(whole) == 20 and answer[-1] in whole[6:10]
    tokenizer = load_tokenizer(folder)
    request = Asking(tokenizer, prompt_maker("none", tokenizer), 40, 20, Sampling()).request(0, PROMPT)
    assert run_all(engine_of(folder, 1, 60), [request])[0] == answer
    assert tokenizer.answer_end == 2, "what is written behind an answer that is learnt stays one token"


def test_processes_that_share_a_model_ask_with_one_date(golden):
    """Each has a clock of its own, and may read it on either side of midnight."""
    tokenizer, told = load_tokenizer(golden / "hf_gqa"), []
    first, other = (Asking(tokenizer, lambda turns, day=day: [1, day], 40, 20, Sampling()) for day in (31, 32))
    speaks = SimpleNamespace(replica_group="a group", from_first=lambda text: told.append(text) or text)
    hears = SimpleNamespace(replica_group="a group", from_first=lambda text: told[-1])
    turns = [{"role": "user", "content": "a"}]
    asked = first.shared_ids(turns, speaks), other.shared_ids(turns, hears)
    assert asked == (([1, 31], False), ([1, 31], False))
    assert other.shared_ids(turns, SimpleNamespace(replica_group=None)) == ([1, 32], False)
