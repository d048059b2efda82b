import gzip
import json

import pytest
import zstandard

from megatron_patch.data.documents import Place, read_chunks, texts_of
from megatron_patch.data.records import BrokenListError, begins_list, find_files, open_stream, read_list

RECORDS = [{"text": f"document {i} 词表 [{{}}]", "id": i} for i in range(50)]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS).encode()
LIST = json.dumps(RECORDS, ensure_ascii=False, indent=1).encode()


def write(folder, form):
    data = {"jsonl": LINES, "bom.jsonl": b"\xef\xbb\xbf" + LINES, "json": LIST, "lines.json": LINES}.get(form)
    if form == "jsonl.gz":
        data = gzip.compress(LINES)
    if form == "json.zst":
        data = zstandard.compress(LIST[:500]) + zstandard.compress(LIST[500:])  # two frames
    (folder / f"data.{form}").write_bytes(data)
    return folder / f"data.{form}"


@pytest.mark.parametrize("form", ["jsonl", "bom.jsonl", "json", "lines.json", "jsonl.gz", "json.zst"])
@pytest.mark.parametrize("size", [1, 200, 1 << 20])
def test_every_form_gives_the_same_texts_from_any_place(tmp_path, monkeypatch, form, size):
    monkeypatch.setattr("megatron_patch.data.documents.CHUNK_BYTES", size)
    monkeypatch.setattr("megatron_patch.data.records._READ", 64)
    files = [write(tmp_path, form)]
    expected = [(i + 1, r["text"]) for i, r in enumerate(RECORDS)]
    chunks = list(read_chunks(files))
    assert [t for c in chunks for t in texts_of(c, ["text"], None)[0]] == expected
    middle = chunks[len(chunks) // 2]
    rest = [t for c in read_chunks(files, middle.after) for t in texts_of(c, ["text"], None)[0]]
    assert rest == expected[middle.first - 1 + len(middle.records) :]
    assert list(read_chunks(files, Place(1))) == []


@pytest.mark.parametrize("form", ["jsonl.gz", "json.zst"])
def test_a_truncated_archive_is_an_error_and_not_the_end(tmp_path, form):
    path = write(tmp_path, form)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"data.{form} cannot be read to its end"):
        list(read_chunks([path]))


@pytest.mark.parametrize(
    ("text", "good", "broken_at"),
    [
        (b'[{"a": 1}, {"b": never', 1, 2),
        (b'[{"a": 1}, {"b": 2}', 2, 2),
        (b'[{"a": 1} {"b": 2}]', 1, 1),
        (b'[{"a": 1}, {"b": "\xff"}]', 1, 2),
        (b'[{"a": 1}] tail', 1, 2),
        (b'[{"a": "' + b"x" * 300, 0, 1),
    ],
)
def test_a_broken_list_gives_what_stands_before_and_names_the_item(tmp_path, monkeypatch, text, good, broken_at):
    monkeypatch.setattr("megatron_patch.data.records._READ", 64)
    (tmp_path / "data.json").write_bytes(text)
    got = []
    with open_stream(tmp_path / "data.json") as stream, pytest.raises(BrokenListError) as error:
        assert begins_list(stream)
        for item in read_list(stream):
            got.append(item)
    assert (len(got), error.value.number) == (good, broken_at)
    assert error.value.lost > 0 or text.endswith(b"}")


def test_folders_are_read_in_the_order_of_names(tmp_path):
    for name in ("b.jsonl", "a.json", "c.jsonl.zst", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_files([tmp_path])] == ["a.json", "b.jsonl", "c.jsonl.zst"]
    for wrong, words in ((tmp_path / "notes.txt", "no suffix"), (tmp_path / "none", "does not exist")):
        with pytest.raises(ValueError, match=words):
            find_files([wrong])
    (tmp_path / "notes.txt").write_text('\n {"text": "a"}')
    assert find_files([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"], "JSON, whatever its name"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data files"):
        find_files([tmp_path / "empty"])
