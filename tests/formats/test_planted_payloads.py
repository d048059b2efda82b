"""Files that would run code under an unrestricted unpickler: a sentence names them, and nothing runs."""

from __future__ import annotations

import io
import json
import pickle
import shutil

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.cli.inspection import main
from megatron_patch.conversion.convert import convert
from tests.formats.attacks import ATTACKS, Payload, edit_metadata
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, run_forked, train

CORPUS = GOLDEN / "data" / "corpus_text_document"


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "the-payload-ran"


@pytest.fixture
def native(tmp_path):
    convert(Conversion(GOLDEN / "hf_gqa", tmp_path / "megatron", to_hf=False))
    return tmp_path / "megatron"


def refused(source, trace, to_hf):
    with pytest.raises(ValueError) as caught:
        convert(Conversion(source, source.parent / "target", to_hf=to_hf))
    assert not trace.exists() and not (source.parent / "target").exists()
    return str(caught.value)


def test_the_payload_is_a_real_one(trace):
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.is_dir()


def test_pytorch_model_bin(tmp_path, trace):
    folder = shutil.copytree(GOLDEN / "hf_mha_bin", tmp_path / "hf")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, "more": Payload(trace)}, folder / "pytorch_model.bin")
    message = refused(folder, trace, to_hf=False)
    assert "pytorch_model.bin" in message and "mkdir" in message and "was refused and not run" in message


def test_model_rng_pt(tmp_path, trace):
    folder = shutil.copytree(GOLDEN / "megatron_2023/september/mha_tp2_pp2", tmp_path / "source")
    path = folder / "release/mp_rank_01_001/model_rng.pt"
    torch.save({"model": {}, "args": Payload(trace)}, path)
    message = refused(folder, trace, to_hf=True)
    assert str(path) in message and "mkdir" in message


def test_metadata_of_a_native_checkpoint(native, trace):
    edit_metadata(native / "release", lambda metadata: setattr(metadata, "planner_data", Payload(trace)))
    message = refused(native, trace, to_hf=True)
    assert str(native / "release/.metadata") in message and "mkdir" in message


def test_item_of_a_native_checkpoint(native, trace):
    """A `.distcp` item whose data.pkl is a payload, at the place of the first tensor."""
    stream = io.BytesIO()
    torch.save(torch.zeros(800, 64), stream)
    torch.save(Payload(trace), padded := io.BytesIO())
    content = padded.getvalue() + bytes(len(stream.getvalue()))
    (native / "release/planted.distcp").write_bytes(content)

    def edit(metadata):
        index = next(index for index in metadata.storage_data if index.fqn == "embedding.word_embeddings.weight")
        metadata.storage_data[index].relative_path = "planted.distcp"
        metadata.storage_data[index].offset, metadata.storage_data[index].length = 0, len(padded.getvalue())

    edit_metadata(native / "release", edit)
    assert "mkdir" in refused(native, trace, to_hf=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "megatron"
    convert(Conversion(GOLDEN / "hf_gqa", folder, to_hf=False))
    return folder


@pytest.fixture
def attacked(sound, tmp_path, trace):
    """A copy of a sound checkpoint, changed by one of ATTACKS."""

    def attack(name):
        folder = shutil.copytree(sound, tmp_path / "attacked")
        ATTACKS[name](folder / "release", trace)
        return folder

    return attack


def test_the_hidden_object_is_what_torch_loads(attacked, trace):
    """`items` shows nothing, while a look-up by key, which torch makes, leads to the payload."""
    release = attacked("attribute") / "release"
    metadata = pickle.loads((release / ".metadata").read_bytes())
    assert not metadata.storage_data.items()
    key = next(key for key in metadata.state_dict_metadata if "_extra_state" in key)
    info = metadata.storage_data[MetadataIndex(key)]
    content = (release / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
    torch.load(io.BytesIO(content), weights_only=False)
    assert trace.is_dir()


HIDDEN = {"attribute": "names collections.OrderedDict", "transform": "stored through a transform"}


@pytest.mark.parametrize("name", HIDDEN)
def test_training_from_what_is_hidden(name, attacked, tmp_path, trace):
    values = {**PRETRAIN_ARGUMENTS, "DATASET_PATH": CORPUS, "PRETRAIN_CHECKPOINT_PATH": attacked(name)}
    result = run_forked(PRETRAIN, *{**values, "OUTPUT_BASEPATH": tmp_path / "out"}.values(), "--num-workers", 0)
    assert result.returncode == 2 and HIDDEN[name] in result.stdout, result.stdout[-3000:]
    assert "Traceback" not in result.stdout and not trace.exists()


@pytest.mark.parametrize("name", HIDDEN)
def test_converting_and_inspecting_what_is_hidden(name, attacked, trace, capsys):
    folder = attacked(name)
    assert HIDDEN[name] in refused(folder, trace, to_hf=True)
    assert main([str(folder)]) == 2 and HIDDEN[name] in capsys.readouterr().err and not trace.exists()


def test_going_on_from_what_was_planted(tmp_path, trace):
    """A run's own checkpoint, changed between two starts: an object, common.pt, and a value that is only wrong."""
    said = {**HIDDEN, "common.pt": "mkdir", "progress": "does not hold such a run's state"}
    values = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, OUTPUT_BASEPATH=tmp_path)
    train(PRETRAIN, tmp_path, "--exit-interval", 2, **{name: values[name] for name in ("MODEL_SIZE", "DATASET_PATH")})
    (folder,) = tmp_path.glob("checkpoint/*/iter_0000002")
    described = json.loads((folder / "model.json").read_text())
    del described["crc32"]  # whoever plants something does not leave the sums
    (folder / "model.json").write_text(json.dumps(described))
    sound = {name: (folder / name).read_bytes() for name in (".metadata", "common.pt")}
    for name in ("attribute", "common.pt", "progress"):
        for file, content in sound.items():
            (folder / file).write_bytes(content)
        ATTACKS[name](folder, trace)
        result = run_forked(PRETRAIN, *{**PRETRAIN_ARGUMENTS, **values}.values(), "--num-workers", 0, "--eval-interval", 0)
        assert result.returncode == 2 and said[name] in result.stdout, result.stdout[-3000:]
        assert "Traceback" not in result.stdout and not trace.exists()
