"""Files that would run code under an unrestricted unpickler are refused by name, and do not run it."""

from __future__ import annotations

import io
import os
import pickle
import shutil

import pytest
import torch

from megatron_patch.checkpoint.conversion_arguments import Conversion
from megatron_patch.checkpoint.convert import convert
from megatron_patch.checkpoint.safe_metadata import check_native_folder, read_dcp_metadata
from tests.launching import GOLDEN


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


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
    path = native / "release/.metadata"
    metadata = read_dcp_metadata(native / "release")
    metadata.planner_data = Payload(trace)
    path.write_bytes(pickle.dumps(metadata))
    message = refused(native, trace, to_hf=True)
    assert str(path) in message and "mkdir" in message


def test_item_of_a_native_checkpoint(native, trace):
    """A `.distcp` item whose data.pkl is a payload, of the same length, at the place of the first tensor."""
    metadata = read_dcp_metadata(native / "release")
    index, info = next(
        (index, info) for index, info in metadata.storage_data.items() if index.fqn == "embedding.word_embeddings.weight"
    )
    stream = io.BytesIO()
    torch.save(Payload(trace), stream)
    with open(native / "release/planted.distcp", "wb") as planted:
        planted.write(stream.getvalue())
    metadata.storage_data[index] = type(info)("planted.distcp", 0, len(stream.getvalue()))
    (native / "release/.metadata").write_bytes(pickle.dumps(metadata))
    assert "mkdir" in refused(native, trace, to_hf=True)


def test_paths_that_lead_out_of_the_checkpoint(native, trace):
    metadata = read_dcp_metadata(native / "release")
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"
    (native / "release/.metadata").write_bytes(pickle.dumps(metadata))
    assert "lies outside the checkpoint" in refused(native, trace, to_hf=True)


@pytest.mark.parametrize("where", ["common.pt", "object"])
def test_what_megatron_core_would_load_is_checked_first(native, trace, where):
    release = native / "release"
    if where == "common.pt":
        torch.save(Payload(trace), release / "common.pt")
    else:
        torch.save([Payload(trace)], release / "__0_objects.distcp")
        metadata = read_dcp_metadata(release)
        for info in metadata.storage_data.values():
            if info.relative_path == "__0_objects.distcp":
                info.length = (release / "__0_objects.distcp").stat().st_size
        (release / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="mkdir"):
        check_native_folder(release)
    assert not trace.exists()


def test_sound_checkpoints_pass(native):
    assert len(check_native_folder(native / "release").state_dict_metadata) == 9 + 4 * 4


class Reaching:
    """Asks for an attribute of a class by `getattr`, as some Pythons pickle members of enumerations."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


def test_getattr_reaches_members_of_named_enumerations_only():
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

    from megatron_patch.checkpoint.restricted_pickle import RestrictedUnpickler
    from megatron_patch.checkpoint.safe_metadata import _ALLOWED

    member = pickle.dumps(Reaching(_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT"))
    assert RestrictedUnpickler(io.BytesIO(member), _ALLOWED).load() is _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    for owner, name in ((Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "__class__")):
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            RestrictedUnpickler(io.BytesIO(pickle.dumps(Reaching(owner, name))), _ALLOWED).load()
