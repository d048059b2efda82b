"""Which indices a run takes: those of the data as it is now, from anywhere, and none that are damaged."""

import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import os
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder

from megatron_patch.config import Options
from megatron_patch.core.parallel import Layout
from megatron_patch.records.indexed import lengths_fingerprint, write_index
from megatron_patch.data.indexed_pretrain import indexed_run_data
from megatron_patch.data.splits import usable_split
from tests.tiny import tiny_config

ALONE = Layout(0, 1, None, 0, 1, True)


def write_pair(prefix, lengths, first=3):
    """Documents of these lengths; their tokens count up from `first`."""
    stream = (np.arange(sum(lengths)) % 700 + first).astype(np.uint16)
    stream.tofile(f"{prefix}.bin")
    with open(f"{prefix}.idx", "wb") as file:
        write_index(file, np.array(lengths, dtype=np.int32), stream.dtype)
    return str(prefix)


def samples(prefix, output):
    """The training tokens of a run into `output`, in its order."""
    config = tiny_config(train_data_path=prefix, output_path=str(output))
    train = indexed_run_data(config, ALONE, pytest.fail).train
    return [train[i]["tokens"].tolist() for i in range(config.train_iters * config.global_batch_size)]


def files(output):
    return {path: path.stat().st_mtime_ns for path in Path(output).rglob("*.npy")}


def test_the_defaults_split_off_some_validation():
    assert Options().split == "98,2,0", "or the pairs below need other lengths"


def test_a_share_without_documents_is_none(tmp_path):
    """core would add up epochs of no document for ever."""
    few, many = (write_pair(tmp_path / name, [50] * count) for name, count in (("few", 20), ("many", 100)))
    assert usable_split("98,2,0", [many]) == "98,2,0"
    assert usable_split("949,50,1", [many]) == "949,50,0"
    assert usable_split("98,2", [many, few]) == usable_split("98,2,0", [few]) == "98,0,0"
    with pytest.raises(ValueError, match="few has 20 documents, of which the split 1,99,0 leaves none for training"):
        usable_split("1,99,0", [few])
    said = []
    config = tiny_config(train_data_path=few, output_path=str(tmp_path / "out"))
    data = indexed_run_data(config, ALONE, said.append)
    assert data.validation == () and "leaves no validation data" in said[0]
    assert len(data.train[0]["tokens"]) == config.seq_length


def test_a_pair_prepared_anew_gets_indices_of_its_own(tmp_path):
    prefix = write_pair(tmp_path / "pair", [50] * 100)
    before = samples(prefix, tmp_path / "out")
    write_pair(prefix, [20] * 60)  # shorter: the old indices would reach behind its end
    after = samples(prefix, tmp_path / "out")
    assert after == samples(prefix, tmp_path / "fresh") != before
    write_pair(prefix, [50] * 100)
    assert samples(prefix, tmp_path / "out") == before


def test_the_same_pair_keeps_its_indices_and_they_come_out_alike(tmp_path):
    prefix = write_pair(tmp_path / "pair", [50] * 100)
    before = samples(prefix, tmp_path / "out")
    made = files(tmp_path / "out")
    for ending in (".bin", ".idx"):  # as copied, or read by another node
        os.utime(prefix + ending, (1, 1))
    assert samples(prefix, tmp_path / "out") == before and files(tmp_path / "out") == made
    for path in made:
        path.unlink()
    assert samples(prefix, tmp_path / "out") == before, "a run that goes on sees the samples that it would have seen"


@pytest.mark.parametrize(("index", "size"), [("document", 200), ("sample", 129), ("shuffle", 60), ("document", 0)])
def test_a_damaged_file_of_indices_is_named_with_its_folder(tmp_path, index, size):
    prefix = write_pair(tmp_path / "pair", [50] * 100)
    before = samples(prefix, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob(f"*train-{index}_index.npy")
    os.truncate(path, size)
    with pytest.raises(ValueError, match=rf"indices in {path.parent} .*{path.name} is damaged \(.*delete that folder"):
        samples(prefix, tmp_path / "out")
    for damaged in path.parent.iterdir():
        damaged.unlink()
    path.parent.rmdir()
    assert samples(prefix, tmp_path / "out") == before


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    def fail(_):
        raise IndexError("core's own")

    monkeypatch.setattr(BlendedMegatronDatasetBuilder, "build", fail)
    with pytest.raises(IndexError, match="core's own"):
        samples(write_pair(tmp_path / "pair", [50] * 100), tmp_path / "out")


def test_a_blend_s_fingerprint_is_of_every_length_in_its_place(tmp_path):
    pairs = [write_pair(tmp_path / str(i), lengths) for i, lengths in enumerate([[4, 5], [6], [4], [5, 6], [4, 5]])]
    a, b, c, d, same = pairs
    write_pair(same, [4, 5], first=9)
    one = lengths_fingerprint([a, b])
    assert lengths_fingerprint([same, b]) == one, "tokens do not move a sample's borders"
    assert len({one, lengths_fingerprint([b, a]), lengths_fingerprint([c, d]), lengths_fingerprint([a])}) == 4
