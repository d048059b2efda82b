"""Preparation with the fast engine: the reference's bytes, or no pair at all."""

import json
from dataclasses import replace

import pytest

from megatron_patch.data import compared_engine
from megatron_patch.data.fast_engine import fast_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.preparation import pair as module
from megatron_patch.preparation.encoding import Settings
from megatron_patch.preparation.pair import preprocess
from tests.preparation.pairs import pair
from tests.vocabularies import llama_folder


@pytest.fixture
def settings(golden, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_patch.records.chunks.CHUNK_BYTES", 900)  # many chunks
    monkeypatch.setattr(module, "PAYS_FROM", 0)
    return Settings(str(llama_folder(golden, tmp_path / "llama")))


@pytest.fixture
def corpus(golden, tmp_path):
    """The golden corpus, with indented code, records without a document, and one word near its end."""
    lines = (golden / "data" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    code = [json.dumps({"text": f"def f{i}(x):\n{' ' * i}return  x\n\n\n"}) for i in range(1, 40)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join([*lines, *code, '{"text": ""}', *lines, "", '{"text": "Ausnahme"}', *lines]), encoding="utf-8")
    return path


@pytest.mark.parametrize(("workers", "append"), [(1, True), (1, False), (2, True)])
def test_the_bytes_are_the_reference_s(corpus, settings, tmp_path, capsys, workers, append):
    settings = replace(settings, append_eod=append)
    wanted = preprocess([corpus], tmp_path / "slow", settings, tokenizer_engine="reference")
    assert not capsys.readouterr().err
    assert preprocess([corpus], tmp_path / "out", settings, workers=workers) == wanted
    assert "fastokens" in capsys.readouterr().err
    assert pair(tmp_path / "out") == pair(tmp_path / "slow")
    assert (tmp_path / "out_skipped.jsonl").read_text() == (tmp_path / "slow_skipped.jsonl").read_text()


def test_a_difference_while_it_reads_leaves_nothing(corpus, settings, tmp_path, monkeypatch):
    """The word is in none of the texts that are compared first."""

    def broken(reference):
        fast = fast_tokenizer(reference)

        def batch(texts):
            ids, lengths = fast.tokenize_batch(texts)
            ids = ids.copy()
            for i, text in enumerate(texts):
                if text == "Ausnahme":
                    ids[lengths[:i].sum()] += 1
            return ids, lengths

        return replace(fast, encode_batch=batch)

    monkeypatch.setattr(compared_engine, "fast_tokenizer", broken)
    monkeypatch.setattr(compared_engine, "ONE_IN", 1)
    number = corpus.read_text(encoding="utf-8").splitlines().index('{"text": "Ausnahme"}') + 1
    with pytest.raises(UserError, match=rf"corpus\.jsonl, line {number}: fastokens .* --tokenizer-engine reference"):
        preprocess([corpus], tmp_path / "out", settings)
    assert not list(tmp_path.glob("out*"))
    preprocess([corpus], tmp_path / "out", settings, tokenizer_engine="reference")
    assert pair(tmp_path / "out")


def test_one_record_in_a_thousand_is_compared():
    compared = [number for number in range(1, 200_001) if compared_engine.is_compared(3, number)]
    assert 150 < len(compared) < 250 and compared != [n for n in range(1, 200_001) if compared_engine.is_compared(4, n)]
