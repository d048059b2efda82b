"""The mark by which answers of one run are told from another's: whatever decides an answer changes it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

from safetensors.torch import load_file, save_file

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.arguments.serving import read_chat
from megatron_patch.conversion.convert import convert
from megatron_patch.generate.asking import open_engine
from megatron_patch.generate.ranks import alone
from megatron_patch.llama.model_config import read_hf_config
from tests.conversion.test_trained_form import lora_run
from tests.launching import GOLDEN
from tests.weights.models import read_hf
from tests.weights.original import Written, write_original

BASE = GOLDEN / "hf_gqa"


def mark(checkpoint, *flags, **changed):
    """That of an engine over `checkpoint`; `changed` are fields of the job's TrainedModel."""
    job = read_chat([str(checkpoint), "--precision=fp32", "--length=40", "--max-new-tokens=4", *flags]).job
    return open_engine(replace(job, model=replace(job.model, **changed)), alone("cpu"), lambda _: None)[1].run


def test_the_remedy_for_a_wrong_answer_makes_another_run(tmp_path):
    """A checkpoint of 2023 tells neither its order of rows nor, without config.json, its epsilon."""
    folder = write_original(tmp_path / "2023", BASE, read_hf(BASE), Written("2023-11-10", with_config=False))
    config = read_hf_config(BASE)
    first = mark(folder, fallback=config)
    assert first == mark(folder, fallback=config)
    other_size = replace(config, norm_epsilon=1e-3)
    others = {mark(folder, "--gqa-layout=all-q-first", fallback=config), mark(folder, fallback=other_size)}
    assert len(others | {first}) == 3


def test_another_tokenizer_and_another_end_of_answers(tmp_path):
    own = shutil.copytree(BASE, tmp_path / "tokenizer")
    settings = json.loads((own / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    convert(Conversion(BASE, tmp_path / "megatron", to_hf=False))
    marks = {mark(tmp_path / "megatron"), mark(tmp_path / "megatron", f"--tokenizer-path={own}", "--template=llama2-chat")}
    ends = tmp_path / "megatron/generation_config.json"
    ends.write_text(json.dumps({"eos_token_id": 7}))
    assert len(marks | {mark(tmp_path / "megatron")}) == 3


def test_other_weights_under_an_adapter(tmp_path):
    base = shutil.copytree(BASE, tmp_path / "base")
    run = lora_run(tmp_path / "run", base)
    first = mark(run)
    (file,) = base.glob("*.safetensors")
    weights = load_file(file)
    save_file(weights | {"model.norm.weight": weights["model.norm.weight"] * 2}, file)
    assert mark(run) != first
