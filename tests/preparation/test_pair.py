"""Megatron-LM's own output (golden/data) is the truth for the bytes; an uninterrupted run for an interrupted one."""

import fcntl
import gzip
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import zstandard
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_patch.preparation import pair as module
from megatron_patch.preparation import partial_pair
from megatron_patch.preparation.encoding import Settings
from megatron_patch.preparation.pair import preprocess
from tests.preparation.pairs import pair, report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(golden):
    return Settings(str(golden / "hf_mha"))


@pytest.fixture
def corpus(golden):
    return golden / "data" / "corpus.jsonl"


def document(prefix, i):
    """As core reads it; core's arrays live only as long as its dataset."""
    dataset = IndexedDataset(str(prefix))
    return dataset[i].tolist()


def repack(corpus, folder, form):
    data = corpus.read_bytes()
    if form == "json":
        data = json.dumps([json.loads(line) for line in data.splitlines()]).encode()
    packers = {"jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}
    (folder / f"corpus.{form}").write_bytes(packers.get(form, bytes)(data))
    return folder / f"corpus.{form}"


@pytest.mark.parametrize(("form", "workers"), [("jsonl", 1), ("jsonl", 2), ("jsonl.gz", 1), ("jsonl.zst", 1), ("json", 2)])
def test_the_pair_is_megatron_s_byte_for_byte(golden, corpus, settings, tmp_path, monkeypatch, form, workers):
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 900)  # many chunks, to be kept in order
    counts = preprocess([repack(corpus, tmp_path, form)], tmp_path / "out", settings, workers=workers)
    assert pair(tmp_path / "out") == pair(golden / "data" / "corpus_text_document")
    assert (counts.documents, counts.tokens, counts.bad, counts.empty) == (47, 3528, 0, 1)
    kind = "item" if form == "json" else "line"
    assert report(tmp_path / "out") == [{"file": str(tmp_path / f"corpus.{form}"), kind: 43, "reason": "it is empty"}]
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_is_its_files_in_order(corpus, settings, tmp_path):
    lines = corpus.read_bytes().splitlines(keepends=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.jsonl").write_bytes(b"".join(lines[20:]))
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[:20])))
    preprocess([tmp_path / "in"], tmp_path / "parts", settings)
    preprocess([corpus], tmp_path / "whole", settings)
    assert pair(tmp_path / "parts") == pair(tmp_path / "whole")


def test_raw_wudao_with_and_without_cleaning(golden, tmp_path, tokenizer):
    raw = [golden / "data" / "wudao_raw" / "part-2021278643.json"]
    expected = json.loads(raw[0].read_text("utf-8"))[8]["content"]
    preprocess(raw, tmp_path / "raw", Settings(str(golden / "hf_mha")))
    assert document(tmp_path / "raw", 8) == [*tokenizer.tokenize(expected), 2]
    preprocess(raw, tmp_path / "clean", Settings(str(golden / "hf_mha"), clean="wudao"))
    assert document(tmp_path / "clean", 8) == [*tokenizer.tokenize("访问 获取更多信息，谢谢。Visit now!"), 2]
    assert [row["item"] for row in report(tmp_path / "clean")] == [12], "the record of white space alone"


BAD = [
    (b'{"text": "cut', "it is no JSON: Unterminated string"),
    (b'{"title": "x"}', "it lacks the key 'text' or 'content'"),
    (b'{"text": 3}', "its 'text' is int, not a text"),
    (b'["text"]', "it is a list, not an object"),
    (b'{"text": "\xff"}', "it is not UTF-8"),
    (b'{"text": "\\ud83d"}', "it holds half of a surrogate pair"),
    (b"[" * 100000, "maximum recursion depth"),
]


def test_every_bad_line_is_named_and_too_many_are_an_error(corpus, settings, tmp_path):
    good = corpus.read_bytes().splitlines()
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*good[:10], *(line for line, _ in BAD), b"", *good[10:]]))
    with pytest.raises(ValueError, match="7 of 54 records are bad, more than the allowed fraction 0.001"):
        preprocess([tmp_path / "in.jsonl"], tmp_path / "out", settings)
    assert not list(tmp_path.glob("out.bin")) and not list(tmp_path.glob("out.idx"))
    rows = report(tmp_path / "out")
    assert [row["line"] for row in rows] == [*range(11, 19), 51]
    for row, reason in zip(rows, [*(reason for _, reason in BAD), "it is empty"]):
        assert row["reason"].startswith(reason)


def test_what_is_allowed_after_all_is_not_tokenized_again(golden, corpus, settings, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_bytes(b"not JSON\n" + corpus.read_bytes())
    with pytest.raises(ValueError, match="1 of 48 records are bad"):
        preprocess([tmp_path / "in.jsonl"], tmp_path / "out", settings)
    monkeypatch.setattr(module, "encode_chunks", lambda *_: pytest.fail("it was tokenized again"))
    preprocess([tmp_path / "in.jsonl"], tmp_path / "out", settings, max_bad_fraction=0.03)
    assert pair(tmp_path / "out") == pair(golden / "data" / "corpus_text_document")


def test_a_document_that_is_too_long_is_a_bad_record(corpus, settings, tmp_path):
    lines, long = corpus.read_bytes().splitlines(), json.dumps({"text": "x" * 1_000_000}).encode()
    (tmp_path / "in.jsonl").write_bytes(b"\n".join([*lines[:20], long, *lines[20:], long]))
    (tmp_path / "in.json").write_bytes(b"[" + b",".join([*lines[:20], long, *lines[20:], long]) + b"]")
    small = Settings(settings.tokenizer_folder, max_document_mb=1)
    for form, kind in (("jsonl", "line"), ("json", "item")):
        with pytest.raises(ValueError, match="2 of 49 records are bad"):
            preprocess([tmp_path / f"in.{form}"], tmp_path / form, small)
        counts = preprocess([tmp_path / f"in.{form}"], tmp_path / form, small, max_bad_fraction=0.1)
        assert (counts.documents, counts.tokens, counts.bad) == (47, 3528, 2)
        reason = "it is longer than the 1 MB that --max-document-mb allows"
        assert [row[kind] for row in report(tmp_path / form) if row["reason"] == reason] == [21, 50]


def test_a_report_of_endless_records_ends(corpus, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_BYTES", 20_000)
    monkeypatch.setattr("megatron_patch.preparation.resumable_state.REPORT_BYTES", 20_000)
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 900)
    (tmp_path / "in.jsonl").write_bytes(corpus.read_bytes() + b"\n" * 5000 + b"no JSON\n" * 3000)
    counts = preprocess([tmp_path / "in.jsonl"], tmp_path / "out", settings, max_bad_fraction=0.99)
    assert (counts.documents, counts.empty, counts.bad) == (47, 5001, 3000)
    rows = report(tmp_path / "out")
    assert sum(row.get("records", 1) for row in rows if row["reason"] == "it is empty") == 5001
    assert [row["line"] for row in rows if row["reason"] != "it is empty"][0] == 48 + 5000 + 1
    assert len(rows) < 600
    assert "lists the first of them" in "".join(counts.lines("out"))


def test_the_rest_of_a_broken_list_counts_as_bad(settings, tmp_path):
    records = json.dumps([{"text": "x" * 90}] * 100)
    (tmp_path / "in.json").write_text(records[:5000] + "}" + records[5000:])
    with pytest.raises(ValueError, match=r"5\d of (9|10)\d records are bad"):
        preprocess([tmp_path / "in.json"], tmp_path / "out", settings, max_bad_fraction=0.4)


KILLED = """
import os, signal, sys
from megatron_patch.preparation import encoding, pair, partial_pair
from megatron_patch.records import chunks
chunks.CHUNK_BYTES, pair._STATE_BYTES = 900, 2000
partial_pair.States.is_ready = True  # a state waits for the one before, however fast the work is
done, real = 0, encoding.encode_chunk
def encode_chunk(*args):
    global done
    done += 1
    if done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
encoding.encode_chunk = encode_chunk
pair.preprocess([sys.argv[1]], sys.argv[2], encoding.Settings(sys.argv[3]))
print(done)
"""


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "jsonl.zst"])
def test_a_killed_run_is_gone_on_with(golden, corpus, settings, tmp_path, form):
    source = repack(corpus, tmp_path, form)

    def run(output, kill_at):
        command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / output), settings.tokenizer_folder, kill_at]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    whole = int(run("whole", "0").stdout)
    assert run("out", "12").returncode == -9
    assert not list(tmp_path.glob("out.bin")) and not list(tmp_path.glob("out.idx"))
    for name in ("tokens", "lengths", "skipped"):  # what was written after the last state does not count
        with open(tmp_path / "out.partial" / name, "ab") as file:
            file.write(b"unfinished" * 2000)
    rest = run("out", "0")
    assert "going on after" in rest.stderr
    assert int(rest.stdout) <= whole - 5, "what was finished is not tokenized again"
    assert pair(tmp_path / "out") == pair(golden / "data" / "corpus_text_document")
    assert [row["reason"] for row in report(tmp_path / "out")] == ["it is empty"]


@pytest.mark.parametrize("moment", ["write_index", "write_record", "replace .bin", "replace .idx", "rmtree"])
def test_a_run_killed_while_it_names_its_files_can_be_finished(golden, corpus, settings, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    real = partial_pair.os.replace
    with monkeypatch.context() as patch:
        if moment.startswith("replace"):
            patch.setattr(partial_pair.os, "replace", lambda a, b: kill() if str(b).endswith(moment[-4:]) else real(a, b))
        elif moment == "rmtree":
            patch.setattr(module.shutil, "rmtree", kill)
        elif moment == "write_record":
            write = partial_pair.write_record
            patch.setattr(partial_pair, "write_record", lambda p, *v: kill() if p.name == "out.made" else write(p, *v))
        else:
            patch.setattr(partial_pair, moment, kill)
        with pytest.raises(Killed):
            preprocess([corpus], tmp_path / "out", settings)
    assert moment == "rmtree" or not (tmp_path / "out.idx").exists()
    preprocess([corpus], tmp_path / "out", settings)
    assert pair(tmp_path / "out") == pair(golden / "data" / "corpus_text_document")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.bin", "out.idx", "out.made", "out_skipped.jsonl"]


def test_other_settings_begin_anew(corpus, settings, tmp_path, capsys):
    with pytest.raises(ValueError, match="records are bad"):
        preprocess([corpus], tmp_path / "out", Settings(settings.tokenizer_folder, keys=("id",)))
    preprocess([corpus], tmp_path / "out", settings)
    said = capsys.readouterr().err
    assert "an earlier run had other input or settings; beginning anew" in said and "interrupted" not in said
    assert len(pair(tmp_path / "out")[0]) == 2 * 3528


def test_a_finished_pair_is_left_alone(corpus, settings, tmp_path, capsys):
    preprocess([corpus], tmp_path / "out", settings)
    before = (tmp_path / "out.bin").stat().st_mtime_ns
    assert preprocess([corpus], tmp_path / "out", settings).documents == 47
    assert "are there already" in capsys.readouterr().err
    assert (tmp_path / "out.bin").stat().st_mtime_ns == before
    other = Settings(settings.tokenizer_folder, append_eod=False)
    with pytest.raises(ValueError, match="made from other input; remove them, or add --overwrite"):
        preprocess([corpus], tmp_path / "out", other)
    assert preprocess([corpus], tmp_path / "out", other, overwrite=True).tokens == 3528 - 47


def test_a_corpus_beside_its_pair_under_the_same_name_stays(golden, corpus, settings, tmp_path):
    source = repack(corpus, tmp_path, "json")
    before = source.read_bytes()
    preprocess([source], tmp_path / "corpus", settings)
    assert source.read_bytes() == before and pair(tmp_path / "corpus") == pair(golden / "data" / "corpus_text_document")
    assert preprocess([source], tmp_path / "corpus", settings).documents == 47, "it is found finished"


@pytest.mark.parametrize("link", [os.symlink, os.link, None])
def test_an_output_that_is_an_input_is_refused(corpus, settings, tmp_path, link):
    source = tmp_path / "out_skipped.jsonl"
    source.write_bytes(corpus.read_bytes())
    if link:
        link(source, tmp_path / "in.jsonl")
    with pytest.raises(ValueError, match="out_skipped.jsonl is read as input and would be written over; choose another output"):
        preprocess([tmp_path / "in.jsonl" if link else tmp_path], tmp_path / "out", settings)
    assert source.read_bytes() == corpus.read_bytes()


def test_a_pair_stays_until_the_one_that_replaces_it_is_made(corpus, settings, tmp_path):
    preprocess([corpus], tmp_path / "out", settings)
    before = pair(tmp_path / "out")
    (tmp_path / "in.jsonl").write_text("not JSON")
    with pytest.raises(ValueError, match="1 of 1 records are bad"):
        preprocess([tmp_path / "in.jsonl"], tmp_path / "out", settings, overwrite=True)
    assert pair(tmp_path / "out") == before
    assert preprocess([corpus], tmp_path / "out", settings).documents == 47, "its record stays too"


@pytest.mark.parametrize("kept", range(6))
def test_no_kill_leaves_halves_of_two_pairs(corpus, settings, tmp_path, monkeypatch, kept):
    """Killed before each step that changes a name: `kept` steps are done, then none."""

    class Killed(BaseException):
        pass

    def until_killed(step):
        def counted(*arguments, **options):
            steps.append(arguments)
            if len(steps) > kept:
                raise Killed
            return step(*arguments, **options)

        return counted

    prefix, steps, old = tmp_path / "out", [], Settings(settings.tokenizer_folder, append_eod=False)
    preprocess([corpus], tmp_path / "new", settings)
    preprocess([corpus], prefix, old)
    before, after = pair(prefix), pair(tmp_path / "new")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", until_killed(os.replace))
        patch.setattr(Path, "unlink", until_killed(Path.unlink))
        patch.setattr(module.shutil, "rmtree", until_killed(module.shutil.rmtree))
        preprocess([corpus], prefix, settings, overwrite=True)
    if (tmp_path / "out.idx").exists():
        assert pair(prefix) == (before if kept < 5 else after)
    if kept == 1:  # what was begun with --overwrite still needs it
        with pytest.raises(ValueError, match="made from other input"):
            preprocess([corpus], prefix, settings)
    assert preprocess([corpus], prefix, settings, overwrite=kept < 2).tokens == 3528
    assert pair(prefix) == after and not (tmp_path / "out.partial").exists()


def test_two_runs_on_one_output_are_refused(corpus, settings, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with open(tmp_path / "out.partial" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is writing"):
            preprocess([corpus], tmp_path / "out", settings)


def test_input_without_a_document_writes_no_pair(settings, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match="the input holds no document"):
        preprocess([tmp_path / "in.jsonl"], tmp_path / "out", settings)
    assert not list(tmp_path.glob("out.[bi]*"))


def test_a_killed_worker_is_an_error_and_not_a_hang(corpus, settings, tmp_path, monkeypatch):
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda pool, *_: submit(pool, os._exit, 9))
    with pytest.raises(ValueError, match="a worker process was killed"):
        preprocess([corpus], tmp_path / "out", settings, workers=2)
