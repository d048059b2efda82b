"""Parquet input: what JSON Lines of the same records give."""

import json
import sys
from dataclasses import replace

import pyarrow
import pytest
from pyarrow import parquet

from megatron_patch.errors import UserError
from megatron_patch.preparation.encoding import Settings
from megatron_patch.preparation.merge import merge
from megatron_patch.preparation.pair import preprocess
from megatron_patch.records.chunks import Place, read_chunks
from megatron_patch.records.shards import Shard
from tests.preparation.pairs import pair, report

ROWS = [
    {"text": f"row {i} 词表 " * (i % 7), "title": f"T{i}" if i % 3 else None, "id": i, "meta": {"a": [i]}} for i in range(700)
]


@pytest.fixture
def table(tmp_path):
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "in" / "a.parquet", row_group_size=100)
    return tmp_path / "in" / "a.parquet"


@pytest.mark.parametrize("joined", [False, True])
def test_a_table_gives_the_pair_of_its_rows_as_lines(golden, table, tmp_path, monkeypatch, joined):
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 900)
    settings = replace(Settings(str(golden / "hf_mha")), keys=("title", "text") if joined else ("text",), joined=joined)
    lines = tmp_path / "b.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    for path, name in ((table.parent, "table"), (lines, "lines")):
        preprocess([path], tmp_path / name, settings, workers=1)
    assert pair(tmp_path / "table") == pair(tmp_path / "lines")
    skipped = [
        [(row.get("row", row.get("line")), row["reason"]) for row in report(tmp_path / name)] for name in ("table", "lines")
    ]
    assert skipped[0] == skipped[1] and len(skipped[0]) == (34 if joined else 100)
    parts = [str(tmp_path / f"part{number}") for number in (1, 2)]
    for number, part in enumerate(parts, start=1):
        preprocess([table, lines], part, settings, shard=Shard(number, 2))
    merge(parts, str(tmp_path / "joined"))
    preprocess([table, lines], tmp_path / "both", settings)
    assert pair(tmp_path / "joined") == pair(tmp_path / "both")


def test_reading_goes_on_within_a_row_group(table, monkeypatch):
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 900)
    chunks = list(read_chunks([table], columns=("text",)))
    assert [record["text"] for chunk in chunks for record in chunk.records] == [row["text"] for row in ROWS]
    assert len(chunks) > 20 and chunks[-1].after == Place(1)
    for chunk, after in zip(chunks[:-1:7], chunks[1::7]):
        assert next(iter(read_chunks([table], chunk.after, columns=("text",)))) == after


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    texts = pyarrow.array([b"good", b"\xff\xfe", b"x" * 5000, None, b"last"]).view(pyarrow.binary()).cast(pyarrow.binary())
    bad = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), texts.buffers())
    parquet.write_table(pyarrow.table({"text": bad, "n": [1, 2, 3, 4, 5]}), tmp_path / "a.parquet")
    records, lost = [], []
    for chunk in read_chunks([tmp_path / "a.parquet"], longest=1000, columns=("text", "content")):
        records += chunk.records
        lost += [chunk.lost] if chunk.lost else []
    assert records == [{"text": "good"}, b"\xff", {"text": ""}, {"text": "last"}]
    assert [(one.number, "longer than" in one.reason) for one in lost] == [(3, True)]


def test_what_is_no_table_is_said(table, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"has no column 'body'; it has text, title, id, meta: name one by --json-key"):
        list(read_chunks([table], columns=("body",)))
    data = table.read_bytes()
    for content in (b"", b"PAR1", data[:-9], data[:4] + bytes(500) + data[504:], b'{"text": "a"}'):
        table.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.parquet cannot be read to its end \(.*\); fetch or pack it again"):
            list(read_chunks([table], columns=("text",)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'megatron-patch\[parquet\]'"):
        list(read_chunks([table]))
