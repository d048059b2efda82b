"""torch_dist's `.metadata`: a sound one is read as torch reads it, any other is refused in a sentence."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import PurePosixPath

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata, MetadataIndex, StorageMeta

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from megatron_patch.formats.distcp_metadata import read_backends, read_dcp_metadata
from tests.formats.attacks import edit_metadata
from tests.weights.models import SMALL, random_weights, write_hf

EMBEDDING = "embedding.word_embeddings.weight"
FC1 = "decoder.layers.mlp.linear_fc1.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    convert(Conversion(write_hf(folder / "hf", SMALL, random_weights(SMALL)), folder / "megatron", to_hf=False))
    return folder / "megatron/release"


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "release")


def test_what_is_sound_is_what_torch_reads(sound):
    truth, found = pickle.loads((sound / ".metadata").read_bytes()), read_dcp_metadata(sound)
    assert found.state_dict_metadata == truth.state_dict_metadata and len(found.state_dict_metadata) > 10
    assert found.storage_data == truth.storage_data and type(found.storage_data) is dict


def test_notes_of_other_versions_are_read_over(folder):
    """A path where it was saved (from Python 3.13 of another module), core's plans, and members by `getattr`."""

    class Member:
        def __reduce__(self):
            from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

            return getattr, (_MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")

    def edit(metadata):
        metadata.storage_meta = StorageMeta(checkpoint_id=PurePosixPath("/elsewhere/run"))
        metadata.planner_data, metadata.mcore_data = {"a": ("a", 0)}, {"b": Member()}

    edit_metadata(folder, edit)
    path = folder / ".metadata"
    content = path.read_bytes()
    written = b"\x8c\x07pathlib" if b"\x8c\x07pathlib" in content else b"\x8c\x0epathlib._local"
    assert content.count(written) == 1
    for module in (b"\x8c\x07pathlib", b"\x8c\x0epathlib._local"):
        path.write_bytes(content.replace(written, module))
        found = read_dcp_metadata(folder)
        assert found.storage_meta == StorageMeta() and found.planner_data is None and not hasattr(found, "mcore_data")


def info(metadata, key=EMBEDDING):
    return metadata.storage_data[MetadataIndex(key, (0, 0) if key == EMBEDDING else None)]


def chunks(metadata, key=FC1):
    return metadata.state_dict_metadata[key].chunks


def move(metadata, old, new):
    """One chunk of FC1 begins elsewhere; both places that name its beginning agree."""
    for chunk in chunks(metadata):
        if tuple(chunk.offsets) == old:
            chunk.offsets = torch.Size(new)
    metadata.storage_data[MetadataIndex(FC1, new)] = metadata.storage_data.pop(MetadataIndex(FC1, old))


def grow(metadata):
    """The first chunk takes the place of the second too, and overlaps the third."""
    first, second = chunks(metadata)[:2]
    metadata.storage_data.pop(MetadataIndex(FC1, second.offsets))
    first.sizes = torch.Size([2, *first.sizes[1:]])
    chunks(metadata).remove(second)


class Size:
    """Pickles as a call of torch.Size with any arguments."""

    def __init__(self, *values):
        self.values = values

    def __reduce__(self):
        return torch.Size, (self.values,)


def duplicate(metadata):
    chunks(metadata).append(ChunkStorageMetadata(chunks(metadata)[0].offsets, chunks(metadata)[0].sizes))


def meet(metadata):
    """One chunk lies where another of its shape does, and would be read with a sum that is right."""
    one, other = (metadata.storage_data[MetadataIndex(FC1, chunk.offsets)] for chunk in chunks(metadata)[:2])
    other.relative_path, other.offset, other.length = one.relative_path, one.offset, one.length


def touch(metadata):
    """An item ends one byte within the next."""
    first, second = sorted((one for one in metadata.storage_data.values()), key=lambda one: (one.relative_path, one.offset))[:2]
    assert first.relative_path == second.relative_path
    first.length = second.offset - first.offset + 1


FAULTS = {
    "two chunks at one place": (meet, "lie at one place of"),
    "a byte of two items": (touch, "lie at one place of"),
    "negative offset": (lambda m: setattr(info(m), "offset", -1), "-1 for an offset"),
    "negative length": (lambda m: setattr(info(m), "length", -5), "-5 for an offset or a size"),
    "a float": (lambda m: setattr(info(m), "offset", 0.0), "float for an offset"),
    "a truth value": (lambda m: setattr(info(m), "offset", False), "bool for an offset"),
    "behind the end": (lambda m: setattr(info(m), "length", 1 << 40), "is truncated"),
    "absolute path": (lambda m: setattr(info(m), "relative_path", "/etc/hostname"), "outside the checkpoint"),
    "path upwards": (lambda m: setattr(info(m), "relative_path", "x/../../secret"), "outside the checkpoint"),
    "missing file": (lambda m: setattr(info(m), "relative_path", "other.distcp"), "other.distcp is missing"),
    "no path": (lambda m: setattr(info(m), "relative_path", 7), "relative_path is a int"),
    "a link outwards": (lambda m: setattr(info(m), "relative_path", "link.distcp"), "outside the checkpoint"),
    "a folder outwards": (lambda m: setattr(info(m), "relative_path", "up/secret"), "outside the checkpoint"),
    "terminal codes": (lambda m: setattr(info(m), "relative_path", "\x1b[2J"), "cannot be shown"),
    "transform": (lambda m: setattr(info(m), "transform_descriptors", ("stream.zstd/1",)), "stored through a transform"),
    "unknown field": (lambda m: setattr(info(m), "more", 1), "a _StorageInfo has the fields"),
    "unknown field of all": (lambda m: setattr(m, "more", 1), "a Metadata has the fields"),
    "size missing": (lambda m: delattr(m.state_dict_metadata[FC1], "size"), "a TensorStorageMetadata has the fields"),
    "negative size": (lambda m: setattr(m.state_dict_metadata[FC1], "size", Size(-2, 48, 16)), "-2 for an offset or a size"),
    "text for a size": (lambda m: setattr(m.state_dict_metadata[FC1], "size", "48"), "no shape"),
    "fewer axes": (lambda m: setattr(m.state_dict_metadata[FC1], "size", torch.Size([2, 48])), "has not the 2 axes"),
    "chunk outside": (lambda m: move(m, (1, 24, 0), (1, 30, 0)), "leads out of its size"),
    "gap and overlap": (lambda m: move(m, (1, 24, 0), (1, 12, 0)), "leave a gap or overlap"),
    "overlap of as many elements": (grow, "leave a gap or overlap"),
    "chunk left out": (lambda m: chunks(m).pop(), "leave a gap or overlap"),
    "chunk twice": (duplicate, "it has it twice"),
    "place missing": (lambda m: m.storage_data.pop(MetadataIndex(FC1, (0, 0, 0))), "does not say where it lies"),
    "object without a place": (lambda m: m.state_dict_metadata.update(x=BytesStorageMetadata()), "does not say where it lies"),
    "no storage": (lambda m: setattr(m, "storage_data", None), "storage_data is a NoneType"),
    "a list": (lambda m: setattr(m, "state_dict_metadata", []), "state_dict_metadata is a list"),
    "complex numbers": (
        lambda m: setattr(m.state_dict_metadata[FC1].properties, "dtype", torch.complex64),
        "torch.complex64, which no checkpoint needs",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_sound_is_refused(fault, folder, tmp_path):
    edit, said = FAULTS[fault]
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    os.symlink(tmp_path / "secret", folder / "link.distcp")
    os.symlink(tmp_path, folder / "up")
    edit_metadata(folder, edit)
    with pytest.raises(UserError, match=said) as caught:
        read_dcp_metadata(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value)) < 600


def test_a_link_inside_the_checkpoint_is_followed(folder):
    os.rename(folder / "__0_0.distcp", folder / "moved")
    os.symlink("moved", folder / "__0_0.distcp")
    assert EMBEDDING in read_dcp_metadata(folder).state_dict_metadata


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_pickle_that_is_cut(folder, cut):
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="cannot be read as torch_dist metadata"):
        read_dcp_metadata(folder)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"sharded_backend_version": ' + b"9" * 5000 + b"}", "metadata.json is no JSON .Exceeds the limit"),
        (b"[]", "holds something else"),
        (b'{"sharded_backend": "zarr"}', "says sharded_backend 'zarr'"),
        (b'{"sharded_backend": ["torch_dist"]}', "holds something else"),
        (b'{"sharded_backend": "torch_dist", "more": 1}', "holds something else"),
    ],
)
def test_backends(folder, content, said):
    (folder / "metadata.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_backends(folder)


def test_backends_of_a_folder_without_them(folder):
    (folder / "metadata.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="^[^(]*metadata.json is missing"):
        read_backends(folder)
