"""What a run records of its training goes on with the weights: the prompts' form, and how a base of 2023 was read.

The truth of prompts is training's own encoding, and of weights the folder that everything was made from.
"""

from __future__ import annotations

import json
import shutil

import pytest

from megatron_patch.arguments.conversion import Conversion, read
from megatron_patch.arguments.conversion_list import CONVERT
from megatron_patch.arguments.serving import read_chat
from megatron_patch.cli import evaluate
from megatron_patch.config import Options
from megatron_patch.conversion.convert import convert
from megatron_patch.data.prompts import encode_alpaca, encode_llama2_chat
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.recorded_run import run_record
from megatron_patch.formats.lazy import load
from megatron_patch.generate.asking import open_engine
from megatron_patch.generate.ranks import alone
from megatron_patch.generate.trained import open_model
from megatron_patch.weights.table import places
from tests.conversion.test_adapters import ADAPTER, BASE, adapter, assert_near
from tests.conversion.test_adapters import expected as expected_weights
from tests.launching import ENGINE, GOLDEN
from tests.tiny import tiny_config
from tests.weights.models import read_hf
from tests.weights.original import Written, write_original


@pytest.fixture(autouse=True)
def without_tokenizer_json(monkeypatch):
    """It takes an export two seconds, and nothing here reads it."""
    monkeypatch.setattr("megatron_patch.conversion.convert.add_tokenizer_json", lambda *_, **__: None)


ASKED = [{"role": "user", "content": "Say more"}]


def recorded(folder, task="finetune", **options):
    """Put the record of a run into an iteration's folder."""
    record = run_record(tiny_config(task=task, options=Options(**options)), Origin())
    (folder / "run_config.json").write_text(json.dumps(record))


def prompt_of(checkpoint):
    """(ids that `megatron-patch chat` makes of a question, the lines that it says before)."""
    lines = []
    job = read_chat([str(checkpoint), "--precision", "fp32", "--length", "250", "--max-new-tokens", "10"]).job
    _, asking = open_engine(job, alone("cpu"), lines.append)
    return asking.ids(ASKED)[0], lines


def expected(template):
    tokenizer = load_tokenizer(BASE)
    if template == "alpaca":
        return encode_alpaca({"instruction": "Say more", "output": ""}, tokenizer)[0][:-1]
    return encode_llama2_chat(ASKED, tokenizer)[0]


def chain(source, folder):
    """`source` exported, and converted back: each place."""
    folders = [folder / name for name in ("hf", "megatron")]
    for place, target in enumerate(folders):
        convert(Conversion(source, target, to_hf=place != 1))
        source = target
    return folders


@pytest.mark.parametrize("template", ["alpaca", "llama2-chat"])
def test_an_export_is_asked_in_the_form_of_its_fine_tuning(template, tmp_path):
    convert(Conversion(BASE, tmp_path / "run", to_hf=False))
    recorded(tmp_path / "run/release", template=template)
    for folder in chain(tmp_path / "run", tmp_path):
        ids, lines = prompt_of(folder)
        assert ids == expected(template), folder
        assert f"Prompts are written in the form {template}." in lines and "Nothing beside" not in " ".join(lines)


def test_where_nothing_is_recorded_the_guess_is_said(tmp_path):
    """Pre-training on JSON has a template too, but who goes on from it wants none."""
    convert(Conversion(BASE, tmp_path / "run", to_hf=False))
    recorded(tmp_path / "run/release", "pretrain", template="alpaca")
    convert(Conversion(tmp_path / "run", tmp_path / "hf", to_hf=True))
    for folder in (BASE, tmp_path / "hf"):
        ids, lines = prompt_of(folder)
        assert ids == expected("llama2-chat") and not (folder / "megatron_patch.json").exists()
        assert "Nothing beside the checkpoint says in which form it was trained" in lines[-1]


def test_evaluation_of_an_export_reads_samples_in_its_form(tmp_path, capsys):
    folder = shutil.copytree(BASE, tmp_path / "hf")
    (folder / "megatron_patch.json").write_text('{"format": 1, "template": "llama2-chat"}')
    values = dict(
        ENV="dsw", MEGATRON_PATH="none", MEGATRON_PATCH_PATH=".", MODEL_SIZE="auto", BATCH_SIZE=1, SEQ_LEN=80, PAD_LEN=80
    )
    values |= dict(EXTRA_VOCAB_SIZE=0, PR="fp32", TP=1, PP=1, DATASET_PATH=GOLDEN / "sft/alpaca_output.json")
    values |= dict(PRETRAIN_CHECKPOINT_PATH=folder)
    argv = [f"{one.flag}={values[one.name]}" for one in evaluate.EVALUATE.documented]
    evaluate.main([*argv, f"--results={tmp_path / 'results.json'}"])
    assert "Fine-tuning samples are written in the form llama2-chat.\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["arguments"]["template"] == "llama2-chat"


@pytest.mark.parametrize(
    "content, said",
    [
        ('{"format": 2, "template": "alpaca"}', "has format 2; this version reads format 1"),
        ('{"format": 1, "template": "chatml"}', "template is 'chatml'; allowed are alpaca, pretrain"),
        ('{"format": 1, "template": ["alpaca"]}', "template is a list; allowed are alpaca, pretrain"),
        ("[]", "must be one JSON object"),
    ],
)
def test_a_record_that_cannot_be_followed_is_a_sentence(content, said, tmp_path, capsys):
    folder = shutil.copytree(BASE, tmp_path / "hf")
    (folder / "megatron_patch.json").write_text(content)
    with pytest.raises(SystemExit):
        read_chat([str(folder)])
    assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="megatron_patch.json"):
        convert(Conversion(folder, tmp_path / "megatron", to_hf=False))


def lora_run(folder, base, **options):
    """The checkpoint of a LoRA run over `base`, as far as its form goes."""
    iteration = folder / "iter_0000003"
    adapter(iteration / "adapter", base_model_name_or_path=str(base))
    recorded(iteration, lora_rank=4, **options)
    for name in ("metadata.json", ".metadata"):
        (iteration / name).touch()
    (folder / "latest_checkpointed_iteration.txt").write_text("3")
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(BASE / name, folder)
    return folder


def test_an_adapter_brings_its_form_and_its_base_does_not(tmp_path):
    convert(Conversion(BASE, tmp_path / "base", to_hf=False))
    recorded(tmp_path / "base/release", template="llama2-chat")
    run = lora_run(tmp_path / "run", tmp_path / "base", template="alpaca")
    convert(Conversion(run, tmp_path / "alone", to_hf=True, adapter_only=True))
    for source, to_hf in ((run, False), (run / "iter_0000003/adapter", True), (tmp_path / "alone", False)):
        convert(Conversion(source, tmp_path / "merged", to_hf=to_hf, overwrite=True))
        assert prompt_of(tmp_path / "merged")[0] == expected("alpaca")
    # An adapter that another program made says nothing, and what its base was trained with is no longer so.
    convert(Conversion(ADAPTER, tmp_path / "merged", to_hf=True, base=tmp_path / "base", overwrite=True))
    assert "Nothing beside the checkpoint" in prompt_of(tmp_path / "merged")[1][-1]


@pytest.fixture
def over_2023(tmp_path):
    """A LoRA run over a base whose rows are all q first, which nothing in it tells."""
    base = write_original(tmp_path / "base", BASE, read_hf(BASE), Written("2023-10-18"))
    return lora_run(tmp_path / "run", base, template="alpaca", gqa_layout="all-q-first")


def test_the_order_in_which_a_lora_run_read_its_base_needs_no_second_word(over_2023, tmp_path):
    convert(Conversion(over_2023, tmp_path / "alone", to_hf=True, adapter_only=True))
    for source in (over_2023, tmp_path / "alone"):
        convert(Conversion(source, tmp_path / "hf", to_hf=True, dtype="float32", overwrite=True))
        assert_near(read_hf(tmp_path / "hf"), expected_weights(ADAPTER))
    job = read_chat([str(over_2023), "--precision", "fp32"]).job
    source = open_model(job.model, alone("cpu"), lambda _: None).source
    pairs = ((name, tensor) for place in places(source.config) for name, tensor in zip(place.hf_names, source.hf(place)))
    assert_near({name: load(tensor) for name, tensor in pairs}, expected_weights(ADAPTER))
    with pytest.raises(SystemExit):
        read_chat([str(over_2023), "--gqa-layout", "per-kv-head"])


def typed(source, target, mg2hf, *flags):
    values = [ENGINE, source, target, 1, 1, "auto", 0, mg2hf]
    return read([f"{one.flag}={value}" for one, value in zip(CONVERT.documented, values)] + [str(flag) for flag in flags])


def test_the_flag_goes_with_an_adapter_both_ways_and_may_not_contradict_it(over_2023, tmp_path, capsys):
    run = over_2023
    job = typed(run, tmp_path / "megatron", "false", "--gqa-layout", "all-q-first", "--dtype", "float32")
    convert(job)
    convert(Conversion(tmp_path / "megatron", tmp_path / "hf", to_hf=True))
    assert_near(read_hf(tmp_path / "hf"), expected_weights(ADAPTER))
    for mg2hf in ("true", "false"):
        with pytest.raises(SystemExit):
            typed(run, tmp_path / "other", mg2hf, "--gqa-layout", "per-kv-head")
        said = "--gqa-layout: got 'per-kv-head'; the run that trained the adapter has read the weights under it as all-q-first"
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        typed(BASE, tmp_path / "other", "false", "--gqa-layout", "all-q-first")
    assert "it is for checkpoints of 2023" in capsys.readouterr().err
    # Of another base the flag may say something else.
    assert typed(run, tmp_path / "other", "true", "--base", BASE, "--gqa-layout", "per-kv-head").base == BASE
