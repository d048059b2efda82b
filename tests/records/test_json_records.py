import gzip
import io
import json
import random
import struct
import subprocess
import sys

import pytest
import zstandard

from megatron_patch.records import texts
from megatron_patch.records.chunks import START, Blank, Chunk, Place, begins_list, open_stream, read_chunks, read_lines
from megatron_patch.records.files import find_files, not_read
from megatron_patch.records.json_list import BrokenListError, list_items
from megatron_patch.records.lines_later import LinesLater
from megatron_patch.records.skipped import Unread
from megatron_patch.records.texts import texts_of
from tests.launching import ROOT

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
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", size)
    monkeypatch.setattr("megatron_patch.records.json_list._READ", 64)
    monkeypatch.setattr("megatron_patch.records.chunks.PEEK", 64)
    files = [write(tmp_path, form)]
    expected = [(i + 1, r["text"]) for i, r in enumerate(RECORDS)]
    chunks = list(read_chunks(files))
    assert [t for c in chunks for t in texts_of(c, ["text"], None)[0]] == expected
    middle = chunks[len(chunks) // 2]
    rest = [t for c in read_chunks(files, middle.after) for t in texts_of(c, ["text"], None)[0]]
    assert rest == expected[middle.first - 1 + len(middle.records) :]
    assert list(read_chunks(files, Place(1))) == []


def test_lines_read_later_are_the_same(tmp_path, monkeypatch):
    """By a worker of preparation, from any chunk's end on; a file that has changed meanwhile is refused."""
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 300)
    lines = [b'{"text": "the number %d"}' % number for number in range(60)]
    lines[20] = b'{"text": "' + b"long" * 200 + b'"}'
    contents = {
        "plain": b"\n".join(lines) + b"\n",
        "no end": b"\n".join(lines[:20]),
        "mark and blanks": b"\xef\xbb\xbf" + b"\n\n".join(lines[:20]) + b"\n" * 1000 + lines[3],
        "list": b"[" + b",".join(lines[:5]) + b"]",
        "empty": b"",
    }
    files = [tmp_path / name for name in contents]
    for file, content in zip(files, contents.values()):
        file.write_bytes(content)

    def texts_from(start, stop=None, later=True):
        chunks = read_chunks(files, start, stop=stop, later=later)
        return [(chunk.file, *one) for chunk in chunks for one in texts_of(chunk, ["text"], None)[0]]

    wanted = texts_from(START, later=False)
    places = [START, *(chunk.after for chunk in read_chunks(files, later=True))]
    assert len(places) > 15 and texts_from(START) == wanted
    for place in places:
        if place.file == 3 and place.records:
            continue  # a list cannot be cut
        assert texts_from(START, place) + texts_from(place) == wanted, place
    first = next(read_chunks(files, later=True))
    assert isinstance(first.records, LinesLater)
    files[0].write_bytes(contents["plain"].replace(b"\n", b" "))
    with pytest.raises(ValueError, match="changed while it was read"):
        texts_of(first, ["text"], None)


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
    monkeypatch.setattr("megatron_patch.records.json_list._READ", 64)
    monkeypatch.setattr("megatron_patch.records.chunks.PEEK", 64)
    (tmp_path / "data.json").write_bytes(text)
    got = []
    with open_stream(tmp_path / "data.json") as stream, pytest.raises(BrokenListError) as error:
        assert begins_list(stream)
        for item in list_items(stream, 1 << 20):
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


def test_a_file_beside_its_archive_is_refused_and_what_is_not_read_is_named(tmp_path):
    """`zstd a.jsonl` keeps a.jsonl; ._a.jsonl is macOS's, and no text."""
    for name in ("a.jsonl", "b.jsonl.xz", "c.JSONL", "._a.jsonl", ".DS_Store", "d.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert [p.name for p in find_files([tmp_path])] == ["a.jsonl", "d.parquet"]
    assert not_read([tmp_path, tmp_path / "a.jsonl"]) == [
        f"{tmp_path}: 2 files read; not read: ._a.jsonl, b.jsonl.xz, c.JSONL, more/."
    ]
    for number in range(9):
        (tmp_path / f"n{number}.txt").touch()
    assert not_read([tmp_path])[0].endswith("n0.txt, n1.txt, n2.txt, n3.txt and 5 more.")
    for twin in ("a.jsonl.zst", "a.jsonl.gz"):
        (tmp_path / twin).touch()
        with pytest.raises(ValueError, match="a.jsonl and a.jsonl.*one file twice.*one by one"):
            find_files([tmp_path])
        assert len(find_files([tmp_path / "a.jsonl", tmp_path / twin])) == 2, "named one by one they are meant"
        (tmp_path / twin).unlink()
    (tmp_path / "a.json").touch()
    assert len(find_files([tmp_path])) == 3


def some_json(rng, depth=0):
    """A JSON value, full of what a reader by quotes and brackets could trip over."""
    kind = rng.randrange(7 if depth < 4 else 5)
    if kind < 3:
        return "".join(rng.choices(['"', "\\", "[", "]", "{", "}", ",", "a", "词", "\n", "😀"], k=rng.randrange(40)))
    if kind < 5:
        return rng.choice([None, True, False, 0, -12345678, 1e5, 1.5e-7, 123456789012])
    values = [some_json(rng, depth + 1) for _ in range(rng.randrange(5))]
    return values if kind == 5 else {f"k{i}]": value for i, value in enumerate(values)}


@pytest.mark.parametrize("seed", range(20))
def test_long_items_are_passed_over_and_the_others_are_json_s(monkeypatch, seed):
    monkeypatch.setattr("megatron_patch.records.json_list._READ", 64)
    monkeypatch.setattr("megatron_patch.records.chunks.PEEK", 64)
    monkeypatch.setattr("megatron_patch.records.json_list._SKIPPED", 50)
    rng = random.Random(seed)
    values = [some_json(rng) for _ in range(100)]
    texts = [json.dumps(value, ensure_ascii=rng.random() < 0.5) for value in values]
    stream = io.BytesIO(("[" + (" , " if seed % 2 else ",").join(texts) + "]").encode())
    found = [value for _, value, _ in list_items(stream, longest=150)]
    expected = [value if len(text.encode()) <= 150 else ... for value, text in zip(values, texts)]
    assert [... if isinstance(value, Unread) else value for value in found] == expected and ... in expected


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),  # Python 3.13 takes 5,000
        ('{"text": ' + "9" * 5000 + "}", "integer string conversion"),
        ("9" * 5000, "integer string conversion"),
        ('"' + "\\\\" * 3000 + '"', "longer than"),
        ('{"text": "' + '\\"' * 3000 + '"}', "longer than"),
    ],
)
def test_an_item_that_cannot_be_held_does_not_end_the_list(item, reason):
    longest = 4000 if reason == "longer than" else 1 << 20
    found = list(list_items(io.BytesIO(f'[{{"a": 1}}, {item}, {{"a": 2}}]'.encode()), longest))
    assert [(number, value) for number, value, _ in found if number != 2] == [(1, {"a": 1}), (3, {"a": 2})]
    assert reason in found[1][1].reason and found[1][1].size == len(item)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_lines_are_split_as_python_splits_them(block):
    rng = random.Random(block)
    lines = [b"x" * rng.choice([0, 0, 1, 2, 30, 31, 200]) for _ in range(300)] + [b"", b"\r", b" ", b"end"]
    data, kept, size = b"\n".join(lines), [], 0
    for records, part in read_lines(io.BytesIO(data), block, longest=30):
        size += part
        if isinstance(records, Unread):
            records = [None]
        kept += [b""] * records.count if isinstance(records, Blank) else records
    assert size == len(data)
    assert [line and line.strip() for line in kept] == [line.strip() if len(line) <= 30 else None for line in lines]


def test_what_zstandard_frames_may_be(tmp_path):
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    tiny = zstandard.compress(b"\xef") + zstandard.compress(b"\xbb\xbf") + zstandard.compress(b" ") + zstandard.compress(b"")
    (tmp_path / "data.json.zst").write_bytes(skippable + tiny + skippable + zstandard.compress(LIST) + skippable)
    (chunk,) = read_chunks([tmp_path / "data.json.zst"])
    assert chunk.kind == "item" and chunk.records == RECORDS, "a mark and a bracket in frames of their own"
    for log, wrong in ((27, None), (28, "data.jsonl.zst cannot be read .*more than 128 MiB, as zstd --long=28")):
        parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
        frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        (tmp_path / "data.jsonl.zst").write_bytes(frame.compress(LINES) + frame.flush())
        if wrong is None:
            assert sum(len(chunk.records) for chunk in read_chunks([tmp_path / "data.jsonl.zst"])) == 50
        else:
            with pytest.raises(ValueError, match=wrong):
                list(read_chunks([tmp_path / "data.jsonl.zst"]))


def test_many_frames_are_not_fed_over_and_over(tmp_path, monkeypatch):
    """Bytes given to the decompressor, for each of the file: a constant, not the number of frames."""
    fed = []

    class Counting:
        def __init__(self, **options):
            self.real = real(**options)

        def decompressobj(self):
            frame = self.real.decompressobj()

            class Frame:
                eof = property(lambda _: frame.eof)
                unused_data = property(lambda _: frame.unused_data)

                def decompress(self, data):
                    fed.append(len(data))
                    return frame.decompress(data)

            return Frame()

    real = zstandard.ZstdDecompressor
    monkeypatch.setattr(zstandard, "ZstdDecompressor", Counting)
    (tmp_path / "data.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "x"}\n') * 5000)
    assert sum(len(chunk.records) for chunk in read_chunks([tmp_path / "data.jsonl.zst"])) == 5000
    assert sum(fed) < 20 * (tmp_path / "data.jsonl.zst").stat().st_size


MEASURED = """
import re, sys
from pathlib import Path
import numpy, zstandard
from megatron_patch.records.chunks import START, read_chunks
def peak():  # ru_maxrss would begin with that of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000
before = peak()
for path in sys.argv[1:]:
    records = bad = size = 0
    for chunk in read_chunks([Path(path)], START, 1_000_000):
        size += chunk.size
        records += len(chunk.records) + chunk.blank + (chunk.lost is not None)
        bad += chunk.lost is not None
    print(Path(path).name, records, bad, size, round(peak() - before), flush=True)
"""


def test_memory_does_not_grow_with_what_a_file_expands_to(tmp_path):
    """Files of 100 MB once they are unpacked, one after the other in one process: MB beyond what it began with."""
    large = 100_000_000
    short, long, half = b'{"text": "x"}\n', b'{"text": "' + b"x" * large + b'"}', large // 2
    contents = {
        "short.jsonl.zst": zstandard.compress(short * (large // len(short))),
        "blank.jsonl.zst": zstandard.compress(b"\n" * large),
        "long.jsonl.zst": zstandard.compress(short + long + b"\n" + short),
        "long.jsonl.gz": gzip.compress(short + long + b"\n" + short, 1),
        "long.json.zst": zstandard.compress(b"[" + short + b"," + long + b"," + short + b"]"),
        "deep.json.zst": zstandard.compress(b"[" + short + b"," + b"[" * half + b"]" * half + b"," + short + b"]"),
        "spaces.json.zst": zstandard.compress(b"[" + short + b" " * large + b"," + short + b"]"),
        "frames.jsonl.zst": zstandard.compress(short * 100_000) * (large // (100_000 * len(short))),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with open(tmp_path / "long.jsonl", "wb") as file:  # a hole: no bytes on the disk, one line of zeros
        file.truncate(large)
    names = [*contents, "long.jsonl"]
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {name: tuple(map(int, numbers)) for name, *numbers in map(str.split, done.stdout.splitlines())}
    lines = large // len(short)
    frames = 100_000 * (large // (100_000 * len(short)))
    bad = {name: row[:2] for name, row in rows.items()}
    assert bad == {
        "short.jsonl.zst": (lines, 0), "blank.jsonl.zst": (large, 0), "long.jsonl.zst": (3, 1), "long.jsonl.gz": (3, 1),
        "long.json.zst": (3, 1), "deep.json.zst": (3, 1), "spaces.json.zst": (2, 0), "frames.jsonl.zst": (frames, 0),
        "long.jsonl": (1, 1),
    }  # fmt: skip
    assert max(row[3] for row in rows.values()) < 90, rows


def test_a_chunk_of_a_list_is_bounded_by_its_text_whatever_its_items_are(tmp_path):
    items = ["x" * 300_000, {"text": ["y" * 300_000]}, {"z" * 300_000: 1}] * 10
    (tmp_path / "data.json").write_text(json.dumps(items))
    chunks = list(read_chunks([tmp_path / "data.json"]))
    assert [item for chunk in chunks for item in chunk.records] == items
    assert max(len(json.dumps(chunk.records)) for chunk in chunks) < 1_400_000


HARD_LINES = [
    b'{"text": "a", "text": "b"}', b'{"text": "a", "n": NaN}', b'{"text": "a", "n": 1e999}', b'{"text": "\\ud83d"}',
    b'{"text": "\\ud83d\\ude00"}', b'{"text": "a", "n": ' + b"9" * 5000 + b"}", b'{"text": ' + b"9" * 30 + b"}", b'{"text": 1.0}',
    b'{"text": null, "title": "x"}', b'{"title": "x", "text": ""}', b'{"text": "\xff"}', b'{"text": "a\x01"}',
    b'{"text": "a\x7f"}',
    b'\xef\xbb\xbf{"text": "a"}', '{"text": "é"}'.encode("utf-16"), b'{"text": "\\u0000"}', b'{"text": "\xed\xa0\xbd"}',
    b'{"text": "a"} x', b'{"text": "a",}', b"", b"  ", b"[1]", b'"text"', b"null", b'{"title": "x"}',
    b'{"\\ud83d": 1, "text": "b"}',
    b'{"text": "a", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'\x0b{"text": "a"}', b'{"text": "a"}\r', b'{"text": ["a"]}',
    b'{"title": "A", "text": "B\\nC"}', '{"title": "标题", "text": "正文"}'.encode(), b'{"text": "a", "n": -0.0, "m": 01}',
]  # fmt: skip


@pytest.mark.parametrize(("keys", "joined"), [(("text", "title"), False), (("title", "text"), True)])
def test_a_fast_parser_changes_no_text_and_no_reason(monkeypatch, keys, joined):
    """Python's own parser is the truth."""
    chunk = Chunk(0, 1, HARD_LINES, 0, START)
    quick = texts.texts_of(chunk, keys, None, joined)
    monkeypatch.setattr(texts, "_orjson", lambda: None)
    assert quick == texts.texts_of(chunk, keys, None, joined)
    found = list(dict(quick[0]).values())
    assert {"b", "a\x7f", "😀", "\0", "A\nB\nC" if joined else "B\nC", "标题\n正文" if joined else "正文"}.issubset(found)
    assert len(quick[1]) > 10
