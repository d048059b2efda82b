import megatron_patch.core.device  # noqa: F401, I001  prepares megatron-core for this machine

import struct

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_patch.records.indexed import check_indexed_dataset, read_index, token_dtype, write_index


def write_pair(prefix, documents, dtype=np.uint16):
    with open(f"{prefix}.bin", "wb") as file:
        file.write(np.concatenate(documents).astype(dtype).tobytes())
    with open(f"{prefix}.idx", "wb") as file:
        write_index(file, np.array([len(d) for d in documents], dtype=np.int32), np.dtype(dtype))
    return prefix


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path / "pair", [[5, 6, 2], [7, 2], [8, 9, 799, 2]])


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_the_index_is_megatron_s_byte_for_byte(golden, tmp_path, monkeypatch, block):
    monkeypatch.setattr("megatron_patch.records.indexed._BLOCK", block)
    data = read_index(golden / "data" / "corpus_text_document")
    with open(tmp_path / "idx", "wb") as file:
        write_index(file, data.lengths, data.dtype)
    assert (tmp_path / "idx").read_bytes() == (golden / "data" / "corpus_text_document.idx").read_bytes()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_core_reads_what_is_written(tmp_path, dtype):
    documents = [[5, 6, 2], [7, 2], [8, 9, 799, 2]]
    write_pair(tmp_path / "pair", documents, dtype)
    dataset = IndexedDataset(str(tmp_path / "pair"))
    assert [dataset[i].tolist() for i in range(3)] == documents
    assert dataset.index.dtype == dtype and dataset.document_indices.tolist() == [0, 1, 2, 3]


def test_megatron_s_rule_for_the_type():
    assert [token_dtype(n) for n in (32000, 65499, 65500, 128256)] == [np.uint16, np.uint16, np.int32, np.int32]


def test_a_good_pair_passes(golden, pair):
    assert check_indexed_dataset(golden / "data" / "corpus_text_document", 800).tokens == 3528
    assert check_indexed_dataset(pair, 800).document(2).tolist() == [8, 9, 799, 2]


def test_an_id_outside_the_vocabulary_is_named(pair):
    with pytest.raises(ValueError, match="document 2, token 2 has id 799, outside the vocabulary of 799"):
        check_indexed_dataset(pair, 799)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_file_is_named(pair, ending):
    pair.with_name("pair" + ending).unlink()
    with pytest.raises(ValueError, match=rf"there is no \S*pair\{ending};"):
        check_indexed_dataset(pair, 800)


@pytest.mark.parametrize(("change", "word"), [(-2, "shorter"), (2, "longer")])
def test_a_bin_of_another_length_is_refused(pair, change, word):
    data = pair.with_name("pair.bin").read_bytes()
    pair.with_name("pair.bin").write_bytes(data[:change] if change < 0 else data + b"\0" * change)
    with pytest.raises(ValueError, match=rf"has {18 + change} bytes, {word} than the 18 bytes \(9 tokens\)"):
        check_indexed_dataset(pair, 800)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"TNTIDX\0\0" + b"\0" * 40, "older format"),
        (b"{json", "no Megatron index"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 2, 8, 3, 4), "version 2"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 77, 3, 4), "type code 77"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 9, 10), "its header promises"),
        (b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 0, 1) + b"\0" * 8, "longer than the 0 bytes"),
    ],
)
def test_an_index_of_another_format_is_refused(pair, head, words):
    pair.with_name("pair.idx").write_bytes(head)
    with pytest.raises(ValueError, match=words):
        check_indexed_dataset(pair, 800)
