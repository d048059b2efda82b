"""What an evaluation leaves out, cuts or cannot count is said, and is in its results."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_patch.cli.evaluate import _say_packing
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.evaluate.scoring import score_file, together
from megatron_patch.evaluate.sequences import JSON_TEXT, SFT, Reading, kind_of
from megatron_patch.generate.loading import load_decoder
from megatron_patch.generate.ranks import alone
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN

SAMPLES = [
    {"instruction": "Say", "output": "more"},  # its prompt has 37 tokens
    {"instruction": "Say", "output": "The import statement finds a module. " * 9},  # cut
    {"instruction": "The import statement finds a module. " * 9, "output": "yes"},  # cut before its answer
    {"instruction": "Say", "output": ""},
    {"wrong": "x"},
]


@pytest.fixture(scope="module")
def score():
    folder = GOLDEN / "hf_gqa"
    decoder = load_decoder(open_source(folder), alone("cpu"), torch.float32, 0, 0)

    def found(path, said=None, allowed=0.5):
        say = (said if said is not None else []).append
        reading = Reading(load_tokenizer(folder), 128, 128, 64, "alpaca", allowed, say)
        return score_file(decoder, str(path), kind_of(str(path)), reading, 3)

    return found


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_samples_that_are_cut_left_out_or_without_answer(score, tmp_path):
    said = []
    whole = score(write(tmp_path / "a.jsonl", SAMPLES), said)
    assert (whole.documents, whole.cut, whole.left_out, whole.without_answer) == (2, 2, 1, 2)
    assert {"cut": 2, "left_out": 1, "without_answer": 2}.items() <= whole.as_dict().items()
    text = "\n".join(said)
    for part in ("1 of 5 records cannot be used and is left out", "2 of 4 samples are longer than 128 tokens",
                 "1 sample has no answer within 128 tokens", "1 sample has an empty answer"):  # fmt: skip
        assert text.count(part) == 1, text
    alone = score(write(tmp_path / "b.jsonl", SAMPLES[:2]))
    assert (alone.loss, alone.tokens) == (whole.loss, whole.tokens)
    sums = together([whole, alone])
    assert (sums.documents, sums.cut, sums.left_out, sums.without_answer) == (4, 3, 1, 2)


def test_documents_that_are_left_out_or_empty(score, tmp_path):
    said = []
    records = [{"text": "The import statement"}, {"text": ""}, {"wrong": "x"}, {"text": "finds"}]
    found = score(write(tmp_path / "a.jsonl", records), said)
    assert (found.documents, found.left_out, found.without_answer) == (2, 1, 1)
    assert len(said) == 1 and "1 of 3 records cannot be used and is left out; the first: line 3: it lacks the key" in said[0]
    with pytest.raises(UserError, match="more than the allowed fraction 0.1"):
        score(tmp_path / "a.jsonl", allowed=0.1)


def test_a_malformed_beginning_does_not_decide(score, tmp_path):
    """Training leaves such lines out and goes on."""
    path = tmp_path / "a.jsonl"
    path.write_text('not JSON\n[]\n{"wrong": 1}\n' + json.dumps(SAMPLES[0]) + "\n")
    assert kind_of(str(path)) == SFT and score(path, allowed=0.9).left_out == 3
    write(path, [{"wrong": 1}] * 3)
    with pytest.raises(UserError, match="none of its first 3 records has one of instruction"):
        kind_of(str(path))


def test_parquet_is_scored_as_the_same_records_in_json(score, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name, kind, records in (("s", SFT, SAMPLES[:2]), ("t", JSON_TEXT, [{"text": "The import"}, {"text": "a module"}])):
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / f"{name}.parquet")
        found, expected = score(tmp_path / f"{name}.parquet"), score(write(tmp_path / f"{name}.jsonl", records))
        assert found.kind == kind and (found.tokens, found.loss) == (expected.tokens, expected.loss)


def test_a_packed_run_s_other_length_is_said(tmp_path):
    """It cut samples at SEQ_LEN, so at a smaller PAD_LEN the loss is over fewer tokens than its validation's."""
    for packing, length, lines in ((True, 80, 1), (True, 2048, 0), (False, 80, 0)):
        run = {"model": {}, "options": {"packing": packing}, "seq_length": 2048}
        (tmp_path / "run_config.json").write_text(json.dumps(run))
        said: list[str] = []
        _say_packing(tmp_path, length, said.append)
        assert len(said) == lines and all("PAD_LEN 2048 for the same ones" in line for line in said)
