"""Converting a native checkpoint whose `.metadata` is sound but describes other tensors than its files hold."""

from __future__ import annotations

import io
import pickle
import shutil

import pytest
import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from tests.formats.attacks import edit_metadata
from tests.weights.models import SMALL, random_weights, write_hf

NORM = "decoder.final_layernorm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    convert(Conversion(write_hf(folder / "hf", SMALL, random_weights(SMALL)), folder / "megatron", to_hf=False))
    return folder / "megatron"


def replace(tensor, sizes=None):
    """Replace the final norm by `tensor`, in a new file, with one chunk for each of `sizes`."""

    def edit(folder, metadata):
        entry = metadata.state_dict_metadata[NORM]
        del metadata.storage_data[MetadataIndex(NORM, (0,))]
        entry.size, entry.chunks = tensor.shape, []
        start = 0
        for size in sizes or [len(tensor) if tensor.dim() else None]:
            chunk = tensor if size is None else tensor[start : start + size]
            offset = torch.Size([] if size is None else [start, *(0 for _ in tensor.shape[1:])])
            stream = io.BytesIO()
            torch.save(chunk.clone() if size != 9 else chunk.clone().float(), stream)
            (folder / f"planted{start}.distcp").write_bytes(stream.getvalue())
            entry.chunks.append(ChunkStorageMetadata(offset, chunk.shape))
            place = pickle.loads(pickle.dumps(next(iter(metadata.storage_data.values()))))
            place.relative_path, place.offset, place.length = f"planted{start}.distcp", 0, len(stream.getvalue())
            metadata.storage_data[MetadataIndex(NORM, offset)] = place
            start += size or 0

    return edit


@pytest.mark.parametrize(
    "edit, said",
    [
        (replace(torch.tensor(1.0).bfloat16()), "a LLaMA's has 1 axes"),
        (replace(torch.ones(16, 1).bfloat16()), "a LLaMA's has 1 axes"),
        (replace(torch.ones(16).bfloat16(), sizes=(7, 9)), "is torch.float32 there, and torch.bfloat16 in .metadata"),
        (replace(torch.ones(16).double()), "torch.float64"),
        (replace(torch.ones(16).bfloat16(), sizes=(8, 8)), None),
    ],
)
def test_other_tensors_than_the_files(edit, said, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "megatron")
    edit_metadata(folder / "release", lambda metadata: edit(folder / "release", metadata))
    if said is None:  # these files are sound, so it is the fault that is refused above
        convert(Conversion(folder, tmp_path / "hf", to_hf=True))
        return
    with pytest.raises(UserError, match=said):
        convert(Conversion(folder, tmp_path / "hf", to_hf=True))
    assert not (tmp_path / "hf").exists()
