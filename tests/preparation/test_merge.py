"""One run over the whole input is the truth for the parts of `--shard`, joined."""

import gzip
import json
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_patch.cli import preprocess as command
from megatron_patch.data_paths import parse_data
from megatron_patch.errors import UserError
from megatron_patch.preparation import merge as joining
from megatron_patch.preparation import pair as module
from megatron_patch.preparation import partial_pair
from megatron_patch.preparation.encoding import Settings
from megatron_patch.preparation.merge import merge
from megatron_patch.preparation.pair import preprocess
from megatron_patch.records.chunks import Place
from megatron_patch.records.indexed import write_index
from megatron_patch.records.shards import Shard, parse_shard, span_of
from tests.preparation.pairs import pair, report


@pytest.fixture
def settings(golden):
    return Settings(str(golden / "hf_mha"))


@pytest.fixture
def inputs(golden, tmp_path, monkeypatch):
    """Lines, with a byte-order mark, without a last line end and with bad records; a list; an archive; a long line."""
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 900)
    lines = (golden / "data" / "corpus.jsonl").read_bytes().splitlines()
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([*lines[:20], b"no JSON", b"", b'{"text": ""}', *lines[20:30]]))
    (folder / "b.json").write_bytes(b"[" + b",".join(lines[30:40]) + b"]")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[10:25]), mtime=0))
    (folder / "d.jsonl").write_bytes(b"\n".join([*lines, json.dumps({"text": "long " * 2000}).encode(), *lines[:9], b""]))
    return sorted(folder.iterdir())


def parts(inputs, folder, settings, count):
    """The prefixes of all shards' pairs, prepared."""
    prefixes = [str(folder / f"part{Shard(number, count).suffix}") for number in range(1, count + 1)]
    for number, prefix in enumerate(prefixes, start=1):
        preprocess(inputs, prefix, settings, max_bad_fraction=0.5, shard=Shard(number, count))
    return prefixes


@pytest.fixture
def whole(inputs, tmp_path, settings):
    preprocess(inputs, tmp_path / "whole", settings, max_bad_fraction=0.5)
    return tmp_path / "whole"


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_the_parts_joined_are_one_run_s_pair(inputs, whole, settings, tmp_path, capsys, count):
    prefixes = parts(inputs, tmp_path, settings, count)
    counts = merge(prefixes, str(tmp_path / "joined"))
    assert pair(tmp_path / "joined") == pair(whole)
    made, wanted = (json.loads((tmp_path / f"{name}.made").read_text()) for name in ("joined", "whole"))
    for one in (made, wanted):
        one["counts"].pop("report_bytes")
    assert made == wanted
    # What is skipped is the same, and where a part begins within a file its lines are counted from there.
    skipped, all_skipped = (report(tmp_path / name) for name in ("joined", "whole"))
    assert [(row["file"], row["reason"]) for row in skipped] == [(row["file"], row["reason"]) for row in all_skipped]
    for row, other in zip(skipped, all_skipped):
        if "line" in row:
            raw = Path(row["file"]).read_bytes().removeprefix(b"\xef\xbb\xbf")
            assert raw[: row.get("behind_byte", 0)].count(b"\n") + row["line"] == other["line"]
    # A run over the whole input finds that its work is done.
    capsys.readouterr()
    assert preprocess(inputs, tmp_path / "joined", settings, max_bad_fraction=0.5).documents == counts.documents
    assert "are there already" in capsys.readouterr().err


def test_the_parts_of_one_size_are_a_blend_and_together_one_run_s_pair(golden, settings, tmp_path, capsys):
    """Through the command, with a text made of two keys."""
    lines = (golden / "data" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    records = [{"title": f"Nr. {number}", "body": json.loads(line)["text"]} for number, line in enumerate(lines)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    common = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer-folder", settings.tokenizer_folder, "--text-keys", "title,body"]
    part = -(-(tmp_path / "in.jsonl").stat().st_size // 3000)
    assert command.main([*common, "--output-prefix", str(tmp_path / "part"), "--split-by-size", f"{part}KB"]) == 0
    blend = parse_data(re.search(r"'(\d+ [^']*)'", capsys.readouterr().out)[1])
    prefixes = [str(tmp_path / f"part-0000{number}-of-00003") for number in (1, 2, 3)]
    tokens = [Path(f"{prefix}.bin").stat().st_size // 2 for prefix in prefixes]
    assert blend.pairs == tuple(zip(tokens, prefixes))
    merge(prefixes, str(tmp_path / "joined"))
    texts = [json.dumps({"text": "\n".join(filter(None, record.values()))}) for record in records]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
    preprocess([tmp_path / "texts.jsonl"], tmp_path / "whole", settings)
    assert pair(tmp_path / "joined") == pair(tmp_path / "whole")


def test_the_parts_lie_end_to_end(inputs):
    for count in (1, 2, 5, 33, 400):
        spans = [span_of(inputs, Shard(number, count)) for number in range(1, count + 1)]
        assert [span.begin for span in spans] == [Place(), *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == Place(len(inputs))
        for span in spans:
            if span.begin.offset:
                raw = inputs[span.begin.file].read_bytes().removeprefix(b"\xef\xbb\xbf")
                assert raw[span.begin.offset - 1 : span.begin.offset] == b"\n"
    large = [span_of(inputs[-1:], Shard(number, 3)) for number in (1, 2, 3)]
    assert all(span.size(span.begin) < inputs[-1].stat().st_size for span in large), "one file is shared out"


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "1/1000000"])
def test_what_is_no_shard_is_said(text):
    with pytest.raises(UserError, match=r"it takes I/N, part I of N"):
        parse_shard(text)


def test_a_killed_part_is_gone_on_with(inputs, settings, tmp_path, monkeypatch):
    shard = Shard(2, 3)
    preprocess(inputs, tmp_path / "once", settings, max_bad_fraction=0.5, shard=shard)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_STATE_BYTES", 1)
        real = module.encode_chunks

        def some(*arguments):
            for number, result in enumerate(real(*arguments)):
                if number == 3:
                    raise KeyboardInterrupt
                yield result

        patch.setattr(module, "encode_chunks", some)
        with pytest.raises(KeyboardInterrupt):
            preprocess(inputs, tmp_path / "out", settings, max_bad_fraction=0.5, shard=shard)
    preprocess(inputs, tmp_path / "out", settings, max_bad_fraction=0.5, shard=shard)
    assert pair(tmp_path / "out") == pair(tmp_path / "once")
    assert (tmp_path / "out.made").read_text() == (tmp_path / "once.made").read_text()


@pytest.mark.parametrize("moment", ["copy", "state", "write_index", "write_record", "replace .bin", "replace .idx"])
def test_a_killed_merge_leaves_nothing_half(inputs, whole, settings, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    prefixes = parts(inputs, tmp_path, settings, 3)
    real = partial_pair.os.replace
    with monkeypatch.context() as patch:
        if moment.startswith("replace"):
            patch.setattr(partial_pair.os, "replace", lambda a, b: kill() if str(b).endswith(moment[-4:]) else real(a, b))
        elif moment == "copy":
            append = joining._append
            patch.setattr(joining, "_append", lambda path, *to: kill() if "00003" in path.name else append(path, *to))
        elif moment == "state":
            patch.setattr(joining, "save_state", kill)
        else:
            patch.setattr(partial_pair, moment, kill)
        with pytest.raises(Killed):
            merge(prefixes, str(tmp_path / "joined"))
    assert not (tmp_path / "joined.idx").exists()
    merge(prefixes, str(tmp_path / "joined"))
    assert pair(tmp_path / "joined") == pair(whole) and not (tmp_path / "joined.partial").exists()


def test_what_does_not_belong_together_is_said(inputs, settings, tmp_path, golden):
    first, second = parts(inputs, tmp_path, settings, 2)
    out = str(tmp_path / "joined")
    other, plain = str(tmp_path / "other"), str(tmp_path / "plain")
    preprocess(inputs, other, replace(settings, append_eod=False), max_bad_fraction=0.5, shard=Shard(2, 2))
    preprocess(inputs[:1], plain, settings, max_bad_fraction=0.5)
    foreign = str(golden / "data" / "corpus_text_document")  # as Megatron-LM left it: no record
    with open(tmp_path / "wide.idx", "wb") as file:
        write_index(file, np.array([3], dtype=np.int32), np.dtype(np.int32))
    (tmp_path / "wide.bin").write_bytes(bytes(12))
    shutil.copy(f"{foreign}.bin", tmp_path / "sentences.bin")
    index = bytearray((golden / "data" / "corpus_text_document.idx").read_bytes())
    documents = struct.unpack_from("<Q", index, 18)[0]
    struct.pack_into("<Q", index, 26, documents - 1 + 1)  # one boundary fewer
    (tmp_path / "sentences.idx").write_bytes(bytes(index[:-16] + index[-8:]))
    for sources, words in (
        ([first], "the parts 1/2 to 2/2 are wanted, once and in this order; got 1/2."),
        ([second, first], "got 2/2, 1/2."),
        ([first, second, second], "got 1/2, 2/2, 2/2."),
        ([first, other], "was made with another append_eod than"),
        ([first, plain], "plain is no part of the input that"),
        ([first, str(tmp_path / "none")], "there is no"),
        ([foreign, str(tmp_path / "wide")], "has ids of type int32"),
        ([str(tmp_path / "sentences")], "documents of several sequences"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            merge(sources, out)
    with pytest.raises(UserError, match="would be written over"):
        merge([first, second], first)
    assert not list(tmp_path.glob("joined*"))
    merge([foreign, foreign], out)
    assert pair(out)[0] == 2 * pair(foreign)[0]
    with pytest.raises(UserError, match="--overwrite"):
        merge([first, second], out)
    merge([first, second], out, overwrite=True)
