"""What is said of numbers that are none, of documents without a token to predict, and of Ctrl-C."""

from __future__ import annotations

import json
import math
import signal

import pytest
import torch

from megatron_patch.cli import evaluate
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.evaluate.scoring import Score, score_file
from megatron_patch.evaluate.sequences import Reading, kind_of
from megatron_patch.generate.loading import load_decoder
from megatron_patch.generate.ranks import alone
from megatron_patch.language import choice
from megatron_patch.weights.source import open_source
from tests.launching import GOLDEN


@pytest.fixture(scope="module")
def score():
    folder = GOLDEN / "hf_gqa"
    decoder = load_decoder(open_source(folder), alone("cpu"), torch.float32, 0, 0)
    reading = Reading(load_tokenizer(folder), 16, 16, 8, "alpaca", 0.5)
    return lambda path: score_file(decoder, str(path), kind_of(str(path)), reading, 3)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 800.0])
def test_the_results_are_json(loss):
    """Whose grammar knows no NaN and no infinity, so that other readers refuse a file that has them."""
    found = json.loads(json.dumps(Score("x", "text", 1, 2, loss).as_dict(), allow_nan=False))
    assert found["perplexity"] is None and found["loss"] == (loss if math.isfinite(loss) else None)


def test_documents_without_a_token_to_predict(score, tmp_path):
    """Empty ones and those of one token count nothing among others; alone they are a sentence."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "The import statement"}\n{"text": ""}\n')
    alone = score(path)
    path.write_text('{"text": ""}\n{"text": "The import statement"}\n{"content": ""}\n')
    assert score(path).loss == alone.loss and score(path).tokens == alone.tokens
    path.write_text('{"text": ""}\n')
    with pytest.raises(UserError):
        score(path)


def test_samples_cut_to_nothing(score, tmp_path):
    """PAD_LEN holds the prompt's beginning alone."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"instruction": "Say more", "output": "more"}]))
    with pytest.raises(UserError, match="nothing in its 1 documents is to be predicted; PAD_LEN may be too small"):
        score(path)


def test_a_text_with_a_byte_order_mark_is_the_text(score, tmp_path):
    (tmp_path / "plain.txt").write_bytes("The import 语言".encode())
    (tmp_path / "marked.txt").write_bytes("The import 语言".encode("utf-8-sig"))
    assert score(tmp_path / "marked.txt").loss == score(tmp_path / "plain.txt").loss


def test_ctrl_c_is_a_line(monkeypatch, capsys):
    # As at a program's start, whatever earlier tests of this process have set.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(evaluate, "read_evaluation", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        evaluate.main([])
    assert ended.value.code == 130 and "interrupted." in capsys.readouterr().err


def test_full_memory_is_a_line_in_the_user_s_language(monkeypatch, capsys):
    def fail(_):
        choice.ask("zh")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. Including non-PyTorch memory, 3 GiB.")

    monkeypatch.setattr(evaluate, "read_evaluation", fail)
    with pytest.raises(SystemExit) as ended:
        evaluate.main([])
    choice.ask(None)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Tried to allocate 2 GiB. 以下可减少显存" in said and "non-PyTorch" not in said
