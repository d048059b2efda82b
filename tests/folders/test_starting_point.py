"""What a run starts from, decided from what runs have recorded; weights are read by none of this."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_patch.config import Options, TrainConfig
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import observe
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.folders.other_runs import offers
from megatron_patch.folders.recorded_run import compare, run_record
from megatron_patch.folders.starting_point import find_start
from megatron_patch.folders.tracker import write_tracker
from megatron_patch.llama.model_config import LLAMA_SIZES
from tests.launching import GOLDEN
from tests.tiny import source, tiny_config

CORPUS = GOLDEN / "data" / "corpus_text_document"
SFT = GOLDEN / "sft" / "alpaca_output.json"


def checkpoint(root: Path, iteration: int | None, **files: str) -> Path:
    """A native checkpoint's folder, as far as its form goes; the tracker names it."""
    folder = iteration_folder(root, iteration)
    folder.mkdir(parents=True)
    for name, text in {"metadata.json": "{}", ".metadata": "", **files}.items():
        (folder / name).write_text(text)
    write_tracker(root, "release" if iteration is None else str(iteration))
    return folder


def written(config: TrainConfig, iteration: int = 20, resumed_from: str | None = None) -> Path:
    """The folder that a run of `config` leaves after `iteration`."""
    origin = replace(observe(config), resumed_from=resumed_from)
    folder = checkpoint(Path(config.checkpoint_folder), iteration)
    (folder / "run_config.json").write_text(json.dumps(run_record(config, origin)))
    return folder


def asked(config: TrainConfig, resume_from: object = "", **changed: object) -> TrainConfig:
    """The configuration that a user's next command comes to."""
    options = replace(changed.pop("options", config.options), resume_from=str(resume_from))
    for name in ("train_data", "valid_data"):
        if (text := changed.pop(f"{name}_path", None)) is not None:
            changed[name] = source(text, config.task)
    return replace(config, **changed, options=options)


def offered(config: TrainConfig) -> list[str]:
    """What is said about the runs beside `config`'s."""
    return offers(config, observe(config))


@pytest.fixture
def model(tmp_path):
    checkpoint(tmp_path / "model", None, weights="of the model")
    return tmp_path / "model"


@pytest.fixture
def config(tmp_path, model):
    """Of a run named `first` from `model`, in a folder with a space in its name."""
    config = tiny_config(output_path=str(tmp_path / "my output"), train_data_path=str(CORPUS), load=str(model))
    return replace(config, name="first", save_interval=10)


HARMLESS = {
    "TP was 1 and is 2": dict(tensor_model_parallel_size=2),
    "PP was 1 and is 2": dict(pipeline_model_parallel_size=2),
    "SP was false and is true": dict(sequence_parallel=True),
    "DO was true and is false": dict(use_distributed_optimizer=False),
    "AC was 'none' and is 'full'": dict(recompute="full"),
    "FL was true and is false": dict(use_flash_attn=False),
    "BATCH_SIZE was 1 and is 2": dict(micro_batch_size=2),
    "has the same arguments under another name": dict(save_interval=7, pad_length=8, valid_data_path="elsewhere"),
}
DECISIVE = {
    "num_layers was 4 and is 2": dict(model=replace(LLAMA_SIZES["tiny"], num_layers=2)),
    "extra_vocab_size was 0 and is 8": dict(extra_vocab_size=8),
    "seq_length was 16 and is 32": dict(seq_length=32),
    "global_batch_size was 2 and is 4": dict(global_batch_size=4),
    "precision was 'bf16' and is 'fp32'": dict(precision="fp32"),
    "lr was 0.001 and is 0.002": dict(lr=2e-3),
    "warmup_iters was 0 and is 1": dict(warmup_iters=1),
    "train_iters (TRAIN_TOKENS) was 4 and is 3": dict(train_iters=3),
    "seed was 1234 and is 5": dict(options=Options(seed=5)),
    "split was '98,2,0' and is '90,10,0'": dict(options=Options(split="90,10,0")),
    "weight_decay was 0.1 and is 0.2": dict(options=Options(weight_decay=0.2)),
    "adam_beta1 was 0.9 and is 0.8": dict(options=Options(adam_beta1=0.8)),
    "adam_beta2 was 0.95 and is 0.9": dict(options=Options(adam_beta2=0.9)),
    "adam_eps was 1e-08 and is 1e-06": dict(options=Options(adam_eps=1e-6)),
    "clip_grad was 1.0 and is 0.0": dict(options=Options(clip_grad=0.0)),
    "packing was false and is true": dict(options=Options(packing=True)),
}


@pytest.mark.parametrize("difference", HARMLESS)
def test_a_run_that_learns_the_same_is_offered(config, difference):
    folder = written(config)
    new = asked(config, name="second", **HARMLESS[difference])
    assert find_start(new).folder is None
    (line,) = offered(new)
    assert difference in line and "is at iteration 20" in line
    words = shlex.split(line.partition(", add ")[2])
    assert words[:2] == ["--resume-from", str(folder.parent)]
    start = find_start(asked(new, words[1]))
    assert start.folder == folder and start.origin.resumed_from == str(folder)
    # The run's own first checkpoint records that, and it goes on with the flag and without.
    own = written(start.config, 30, start.origin.resumed_from)
    for again in (new, asked(new, words[1])):
        assert find_start(again).folder == own and find_start(again).origin.resumed_from == str(folder)


@pytest.mark.parametrize(
    ("task", "data", "hindering"),
    [("pretrain", CORPUS, ["split"]), ("pretrain", SFT, ["split", "template"]), ("finetune", SFT, ["template"])],
)
def test_what_a_run_does_not_read_may_change(config, tmp_path, task, data, hindering):
    """Indexed data has no template, fine-tuning no split."""
    was = replace(config, task=task, train_data=source(str(data), task))
    now = replace(was, options=replace(was.options, template="llama2-chat", split="90,10,0"))
    record = json.loads(json.dumps(run_record(was, observe(was))))
    assert [said.split()[0] for said in compare(now, observe(now), record, tmp_path).hindering] == hindering


@pytest.mark.parametrize("difference", DECISIVE)
def test_a_run_that_learns_something_else_is_refused_and_not_offered(config, difference):
    folder = written(config)
    new = asked(config, name="second", **DECISIVE[difference])
    assert offered(new) == []
    with pytest.raises(UserError) as caught:
        find_start(asked(new, folder, options=new.options))
    assert f"whose run learns something else: {difference}. " in str(caught.value)
    # As PRETRAIN_CHECKPOINT_PATH it gives its weights, which is said.
    start = find_start(asked(new, options=new.options, load=str(folder)))
    assert start.folder is None and start.config.load == str(folder)
    assert f"of another run ({difference}): its weights alone are taken" in start.lines[0]


def test_weights_under_adapters_are_read_in_one_order_for_the_whole_run(config):
    """Without adapters they are in the run's own checkpoint, and the flag may be left out."""
    read_so = Options(gqa_layout="all-q-first")
    for options, hindered in ((read_so, False), (replace(read_so, lora_rank=4), True)):
        begun = replace(config, name=f"rank {options.lora_rank}", options=options)
        written(begun)
        again = replace(begun, options=replace(options, gqa_layout="per-kv-head"))
        if not hindered:
            assert find_start(again).folder is not None
            continue
        with pytest.raises(UserError, match="gqa_layout was 'all-q-first' and is 'per-kv-head'"):
            find_start(again)


def test_the_furthest_run_comes_first_and_what_is_no_run_is_passed_over(config):
    for name, iteration in (("a", 10), ("b", 40), ("c", 20), ("d", 30)):
        written(replace(config, name=name), iteration)
    checkpoint(Path(config.checkpoint_folder).with_name("converted"), None)
    checkpoint(Path(config.checkpoint_folder).with_name("foreign"), 50)
    (Path(config.checkpoint_folder).with_name("empty")).mkdir()
    lines = offered(asked(config, tensor_model_parallel_size=2))
    assert [line.partition(",")[0].rpartition("/")[2] for line in lines] == ["b", "d", "c"]


def test_a_longer_run_goes_on_only_if_asked_to(config):
    folder = written(config)
    longer = asked(config, name="second", train_iters=8)
    assert "(train_iters (TRAIN_TOKENS) was 4 and is 8): to go on from it, add --resume-from" in offered(longer)[0]
    start = find_start(asked(longer, folder))
    assert start.folder == folder and "linear decay to MIN_LR" in start.lines[1] and "within one pass" in start.lines[1]
    start = find_start(asked(longer, load=str(folder.parent)))
    assert start.folder is None and "its weights alone are taken" in start.lines[0] and "--resume-from" in start.lines[0]
    with pytest.raises(UserError, match="of the same name with other arguments: train_iters"):
        find_start(replace(longer, name="first"))


def test_ones_own_folder_as_pretrain_checkpoint_path(config, model):
    folder = written(config)
    (folder.parent / "iter_0000010").mkdir()
    for path in (folder.parent, folder, f"{folder.parent}/"):
        start = find_start(asked(config, load=str(path)))
        assert start.folder == folder and start.config.load == str(model) and start.lines == ()
    shutil.copytree(folder, folder.with_name("iter_0000015"))
    start = find_start(asked(config, load=str(folder.with_name("iter_0000015"))))
    assert start.folder == folder and "To go back, write 15 into" in start.lines[0]
    # Of another name below the same output: the run goes on, and later starts of the command from what it saved.
    new = asked(config, name="second", tensor_model_parallel_size=2, load=str(folder.parent))
    start = find_start(new)
    assert start.folder == folder and start.config.load == str(model) and "TP was 1 and is 2" in start.lines[0]
    own = written(start.config, 30, start.origin.resumed_from)
    assert find_start(new).folder == own and find_start(asked(new, load=str(model))).folder == own


def test_of_another_task_nothing_else_is_compared(config, tmp_path):
    """Its epochs, batches and data differ because the task does."""
    folder = written(replace(config, task="finetune", name="tuned", epochs=3, train_iters=0, seq_length=64))
    start = find_start(asked(config, name="pretraining", output_path=str(tmp_path / "other"), load=str(folder)))
    assert start.folder is None
    assert "of another output folder (task was 'finetune' and is 'pretrain'): its weights alone are taken" in start.lines[0]
    with pytest.raises(UserError, match="learns something else: task was 'finetune' and is 'pretrain'. Write"):
        find_start(asked(config, folder, name="pretraining"))


def test_another_output_s_training_checkpoint_gives_its_weights(config, tmp_path):
    folder = written(config)
    start = find_start(asked(config, output_path=str(tmp_path / "other"), load=str(folder)))
    assert start.folder is None and "of another output folder: its weights alone are taken" in start.lines[0]
    assert f"add --resume-from {shlex.quote(str(folder))}" in start.lines[0]
    (folder / "run_config.json").unlink()
    start = find_start(asked(config, output_path=str(tmp_path / "other"), load=str(folder)))
    assert start.folder is None and "without run_config.json: its weights alone" in start.lines[0]
    with pytest.raises(UserError, match="no training checkpoint of this project"):
        find_start(asked(config, folder, name="second"))


def test_a_run_with_checkpoints_is_not_taken_for_one_that_begins_elsewhere(config):
    folder = written(config)
    new = asked(config, name="second", tensor_model_parallel_size=2)
    own = written(new, 5)
    with pytest.raises(UserError, match="already holds a run that did not begin there"):
        find_start(asked(new, folder))
    assert find_start(asked(new, own.parent)).folder == own and find_start(new).folder == own


def test_data_and_model_are_known_by_what_they_hold(config, model, tmp_path):
    pairs = [shutil.copy(f"{CORPUS}{end}", tmp_path / f"copy{end}") for end in (".bin", ".idx")]
    folder = written(config)
    moved = model.rename(tmp_path / "elsewhere")
    new = dict(train_data_path=str(tmp_path / "copy"), load=str(moved))
    start = find_start(asked(config, **new))
    assert start.folder == folder and start.config.load == str(moved)
    (moved / "release/weights").write_text("of a model as large")
    with pytest.raises(UserError, match=f"load was '{model}' and is '{moved}'"):
        find_start(asked(config, **new))
    with open(pairs[0], "r+b") as stream:
        stream.seek(100)
        stream.write(b"\x01\x02")
    with pytest.raises(UserError, match=f"train_data_path was '{CORPUS}' and is '{tmp_path}/copy'"):
        find_start(asked(config, train_data_path=str(tmp_path / "copy")))
    # At its own place, too.
    written(replace(config, name="third", train_data=source(tmp_path / "copy")))
    shutil.copy(f"{CORPUS}.bin", pairs[0])
    with pytest.raises(UserError, match=f"{tmp_path}/copy holds other data than then"):
        find_start(asked(config, name="third", train_data_path=str(tmp_path / "copy")))


def test_moved_and_renamed_folders(config, tmp_path):
    folder = written(config)
    out = (tmp_path / "my output").rename(tmp_path / "moved")
    assert find_start(asked(config, output_path=str(out))).folder == out / folder.relative_to(tmp_path / "my output")
    (out / "checkpoint/first").rename(out / "checkpoint/second")
    assert find_start(asked(config, name="second", output_path=str(out), tensor_model_parallel_size=2)).folder is not None
    # What it went on from may have moved as well, or have gone.
    start = find_start(asked(config, out / "checkpoint/second", name="third", output_path=str(out)))
    own = written(replace(start.config, options=Options()), 30, start.origin.resumed_from)
    old = (out / "checkpoint/second").rename(out / "checkpoint/old")
    assert find_start(asked(config, old, name="third", output_path=str(out))).folder == own


def test_a_checkpoint_that_is_linked_from_another_disk(config, tmp_path):
    folder = written(config)
    (tmp_path / "disk").mkdir()
    folder.rename(tmp_path / "disk/iter_0000020")
    folder.symlink_to(tmp_path / "disk/iter_0000020")
    for path in (folder.parent, folder):
        start = find_start(asked(config, path, name="second"))
        assert start.folder == folder and start.origin.resumed_from == str(folder)


def test_fine_tuning_is_offered_with_the_flag_that_keeps_its_global_batch(tmp_path):
    """It is BATCH_SIZE × data-parallel size × accumulation: with TP doubled on the same GPUs it halves."""
    (tmp_path / "data.json").write_text("[]")
    config = tiny_config(task="finetune", output_path=str(tmp_path), train_data_path=str(tmp_path / "data.json"))
    config = replace(config, name="first", epochs=2, global_batch_size=4)
    folder = written(config)
    new = asked(config, name="second", tensor_model_parallel_size=2, global_batch_size=2)
    (line,) = offered(new)
    assert line.endswith(f"add --resume-from {folder.parent} --gradient-accumulation-steps 2 after the last argument.")
    with pytest.raises(UserError, match="--gradient-accumulation-steps 2 keeps it"):
        find_start(asked(new, folder))
    assert offered(asked(new, global_batch_size=3)) == []


def test_another_tokenizer_is_noticed_and_a_moved_one_is_not(tmp_path):
    """JSON data is text. The run's folder has the tokenizer's files beside its iterations."""
    (tmp_path / "data.json").write_text("[]")
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_text(text)
    config = tiny_config(task="finetune", output_path=str(tmp_path / "out"), train_data_path=str(tmp_path / "data.json"))
    config = replace(config, epochs=2, options=Options(tokenizer_path=str(tmp_path / "a")))
    folder = written(config)
    shutil.copy(tmp_path / "a/tokenizer.model", folder.parent)
    for name in ("a", "b"):
        assert find_start(asked(config, options=Options(tokenizer_path=str(tmp_path / name)))).folder == folder
    assert find_start(asked(config, options=Options())).folder == folder
    with pytest.raises(UserError, match=f"the tokenizer in {tmp_path}/c is another one"):
        find_start(asked(config, options=Options(tokenizer_path=str(tmp_path / "c"))))


DAMAGED = ["", "[1]", "{}", '{"model": {}, "options": []}', "[" * 100_000, " " * (1 << 20) + "[]", "\xff", "9" * 5000]
DAMAGED += ['{"model": {}, "options": {}, "load": [1]}', '{"model": {}, "options": {}, "resumed_from": "a\\u0000b"}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_a_sentence(config, text):
    folder = written(config)
    (folder / "run_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="run_config.json is not what a training run writes there"):
        find_start(asked(config))
    (line,) = offered(asked(config, name="second"))
    assert line.startswith(f"Whether this run could go on from {folder.parent} is not known: ") and len(line) < 1000


def test_a_checkpoint_of_an_earlier_version_lacks_what_came_later(config):
    folder = written(config)
    recorded = json.loads((folder / "run_config.json").read_text())
    for name in ("train_data_fingerprint", "load_fingerprint", "resumed_from", "use_flash_attn"):
        del recorded[name]
    del recorded["options"]["resume_from"], recorded["options"]["packing"], recorded["model"]["rotary_base"]
    (folder / "run_config.json").write_text(json.dumps(recorded))
    assert find_start(asked(config)).folder == folder
    with pytest.raises(UserError, match="train_data_path was"):
        find_start(asked(config, train_data_path=os.path.relpath(CORPUS, "/")))


def test_a_record_has_the_keys_that_earlier_versions_have_written(config):
    """A run that was recorded before stays readable, and what records now can be read by the same names."""
    recorded = json.loads(json.dumps(run_record(config, observe(config))))
    known = (
        "task name model extra_vocab_size load output_path tensor_model_parallel_size pipeline_model_parallel_size "
        "sequence_parallel use_distributed_optimizer precision recompute use_flash_attn micro_batch_size global_batch_size lr "
        "min_lr seq_length pad_length train_data_path valid_data_path train_data_bytes train_data_fingerprint "
        "load_fingerprint resumed_from train_iters warmup_iters save_interval epochs options"
    )
    assert set(recorded) == set(known.split())
    sizes = [Path(f"{CORPUS}{end}").stat().st_size for end in (".bin", ".idx")]
    assert (recorded["train_data_path"], recorded["train_data_bytes"], recorded["valid_data_path"]) == (
        str(CORPUS),
        sum(sizes),
        None,
    )
