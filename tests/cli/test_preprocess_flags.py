"""Flags of data preparation reach what they are for; in this process."""

from __future__ import annotations

import json
import re

import pytest

from megatron_patch.cli import merge_data
from megatron_patch.cli.preprocess import main
from megatron_patch.data_paths import parse_data
from megatron_patch.preparation import pair
from megatron_patch.records.indexed import read_index

TEXTS = ["One two three.", "Four five six seven.", "Eight."]


def prepared(golden, folder, records, *flags) -> list[list[int]]:
    """The documents of a pair that the command makes of `records`."""
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ["--input", folder / "in.jsonl", "--output-prefix", folder / "out", "--tokenizer-folder", golden / "hf_mha"]
    assert main([str(word) for word in (*command, "--workers", 1, *flags)]) == 0
    data = read_index(folder / "out")
    return [data.document(i).tolist() for i in range(len(data.lengths))]


@pytest.mark.parametrize("flags, end", [((), [2]), (("--no-append-eod",), [])])
def test_documents_end_in_a_token_unless_they_are_not_to(golden, tmp_path, tokenizer, flags, end):
    got = prepared(golden, tmp_path, [{"text": text} for text in TEXTS], *flags)
    assert got == [tokenizer.tokenize(text) + end for text in TEXTS]


@pytest.mark.parametrize("flags, key", [((), "text"), (("--json-key", "body", "title"), "body")])
def test_a_record_s_text_is_under_the_first_key_that_it_has(golden, tmp_path, tokenizer, flags, key):
    records = [{"title": "no", "content": "no", "text": TEXTS[0], "body": TEXTS[1]}]
    assert prepared(golden, tmp_path, records, *flags) == [[*tokenizer.tokenize(records[0][key]), 2]]


def test_a_text_may_be_made_of_several_keys(golden, tmp_path, tokenizer):
    records = [{"title": TEXTS[2], "content": TEXTS[0]}, {"title": None, "content": TEXTS[1]}, {"title": TEXTS[2], "content": ""}]
    wanted = [f"{TEXTS[2]}\n{TEXTS[0]}", TEXTS[1], TEXTS[2]]
    for flags in (("--text-keys", "title,content"), ("--text-keys", "title", "content", "--overwrite")):
        assert prepared(golden, tmp_path, records, *flags) == [[*tokenizer.tokenize(text), 2] for text in wanted]
        (tmp_path / "out.made").unlink()


def test_a_large_input_is_read_by_the_fast_engine_unless_it_is_not_to(golden, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pair, "PAYS_FROM", 0)
    for flags, said in (((), True), (("--tokenizer-engine", "reference", "--overwrite"), False)):
        prepared(golden, tmp_path, [{"text": text} for text in TEXTS[: 2 + said]], *flags)
        assert ("fastokens" in capsys.readouterr().err) is said


def test_a_part_is_prepared_and_joined_by_the_commands(golden, tmp_path, capsys):
    whole = prepared(golden, tmp_path, [{"text": text} for text in TEXTS])
    for part in ("1/2", "2/2"):
        command = ["--input", tmp_path / "in.jsonl", "--output-dir", tmp_path / "parts", "--tokenizer-folder", golden / "hf_mha"]
        assert main([str(word) for word in (*command, "--shard", part)]) == 0
    made = sorted(map(str, (tmp_path / "parts").glob("wudao_llamabpe_text_document-*-of-00002.idx")))
    assert merge_data.main([*made, "--output-prefix", str(tmp_path / "joined")]) == 0
    data = read_index(tmp_path / "joined")
    assert [data.document(i).tolist() for i in range(len(data.lengths))] == whole
    assert "3 documents" in capsys.readouterr().out
    assert merge_data.main([made[1], made[0], "--output-prefix", str(tmp_path / "other")]) == 2
    assert "got 2/2, 1/2." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--input", str(tmp_path / "in.jsonl"), "--sft-output-dir", str(tmp_path / "sft"), "--shard", "1/2"])
    assert "it is not made in parts: write it without --shard." in capsys.readouterr().err


def test_an_input_is_split_by_size_into_a_blend(golden, tmp_path, capsys):
    whole = prepared(golden, tmp_path, [{"text": text} for text in TEXTS * 40])
    capsys.readouterr()
    size = (tmp_path / "in.jsonl").stat().st_size
    command = ["--input", tmp_path / "in.jsonl", "--output-prefix", tmp_path / "s", "--tokenizer-folder", golden / "hf_mha"]
    assert main([str(word) for word in (*command, "--split-by-size", size // 3 + 1)]) == 0
    said = capsys.readouterr().out
    weights = re.search(rf"'((?:\d+ {re.escape(str(tmp_path))}/s-\d+-of-00003 ?){{3}})'", said)
    source = parse_data(weights[1])
    documents = []
    for weight, prefix in source.pairs:
        data = read_index(prefix)
        assert weight == data.tokens and abs(data.tokens - sum(map(len, whole)) / 3) < 30
        documents += [data.document(i).tolist() for i in range(len(data.lengths))]
    assert documents == whole
    with pytest.raises(SystemExit):
        main([str(word) for word in (*command, "--split-by-size", "1GB", "--shard", "1/2")])
    assert "write one of the two." in capsys.readouterr().err


def test_unusable_records_are_as_many_as_are_allowed(golden, tmp_path, tokenizer, capsys):
    records = [{"text": TEXTS[0]}, {"no text": ""}]
    assert prepared(golden, tmp_path, records, "--max-bad-fraction", 0.5) == [[*tokenizer.tokenize(TEXTS[0]), 2]]
    with pytest.raises(AssertionError):
        prepared(golden, tmp_path, records, "--max-bad-fraction", 0.4, "--overwrite", "--json-key", "text")
    assert "1 of 2 records are bad, more than the allowed fraction 0.4" in capsys.readouterr().err


def test_so_many_records_are_held_out(tmp_path):
    """Of 400 texts, whose checksums decide, a quarter; with none a list of none."""
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"content": f"Text {i}."}) + "\n" for i in range(400)))
    for fraction, least, most in ((0.25, 70, 130), (0, 0, 0)):
        output = tmp_path / str(fraction)
        command = ["--input", tmp_path / "in.jsonl", "--sft-output-dir", output, "--valid-fraction", fraction]
        assert main([str(word) for word in command]) == 0
        train, valid = (json.loads((output / f"wudao_{side}.json").read_text()) for side in ("train", "valid"))
        assert len(train) + len(valid) == 400 and least <= len(valid) <= most
