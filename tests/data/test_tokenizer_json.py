"""tokenizer.json as conversion makes it: what transformers reads there is what SentencePiece reads in tokenizer.model.

The vocabulary is of LLaMA's kind: bytes first, then runs of spaces, which have the worst score of all, then the pieces
in the order of their scores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2 as protobuf
from transformers import AutoTokenizer

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.data.tokenizer_json import add_tokenizer_json
from tests.launching import GOLDEN
from tests.vocabularies import llama_folder

SIZE = 858  # pieces
SETTINGS = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CODE = Path(argparse.__file__).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    llama_folder(GOLDEN, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def changed(folder: Path, change: Callable[[protobuf.ModelProto], None]) -> None:
    """Save tokenizer.model with another content."""
    path = folder / "tokenizer.model"
    proto = protobuf.ModelProto.FromString(path.read_bytes())
    change(proto)
    path.write_bytes(proto.SerializeToString())


def test_transformers_reads_it_as_sentencepiece_reads_the_model(folder):
    later = [CODE[start : start + 700].lstrip(" ") for start in range(60_000, len(CODE), 700)]
    texts = [*later, "if x:\n" + " " * 23 + "y\t\tz", "日本語カナ 😀 naïve", "a</s>b <s> c", "</s></s>", "<0x41> <unk>", ""]
    model = load_tokenizer(folder)
    wanted = [model.tokenize_marked(text) for text in texts]
    alone = AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=False)["input_ids"]
    assert alone != wanted, "transformers has learnt to read tokenizer.model; does it need a tokenizer.json?"
    assert add_tokenizer_json(folder, SIZE) is None
    read = AutoTokenizer.from_pretrained(folder)
    assert read(texts, add_special_tokens=False)["input_ids"] == wanted
    assert read(texts[0])["input_ids"] == [1, *wanted[0]]
    assert [read.decode(ids, clean_up_tokenization_spaces=False) for ids in wanted[: len(later)]] == later
    # Alone, where transformers has no class of LLaMA's to read it with, and here.
    before = model.fingerprint
    assert load_tokenizer(folder).fingerprint == before
    (folder / "tokenizer.model").unlink()
    assert [load_tokenizer(folder).tokenize_marked(text) for text in texts] == wanted


def test_added_tokens_keep_their_numbers_and_flags(folder):
    decoder = {str(SIZE + 5): {"content": "<tool>", "special": True}, str(SIZE + 2): {"content": "<word>", "special": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"add_eos_token": True, "added_tokens_decoder": decoder}))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": SIZE}))
    assert add_tokenizer_json(folder, SIZE) is None
    model, read = load_tokenizer(folder, rows=SIZE), AutoTokenizer.from_pretrained(folder)
    text = "a<tool>b <word> c</s>d"
    ids = read(text)["input_ids"]
    assert ids == [1, *model.tokenize_marked(text), 2] and {SIZE + 5, SIZE + 2} <= set(ids)
    assert read.decode(ids, skip_special_tokens=True) == "ab <word> cd"
    assert "<pad>" not in (folder / "tokenizer.json").read_text(), "beyond the model's rows"


def test_what_no_tokenizer_json_can_say_is_not_written(folder):
    def all_alike(proto):
        for piece in proto.pieces:
            piece.score = 0.0 if piece.type == piece.NORMAL else piece.score

    changed(folder, all_alike)
    note = add_tokenizer_json(folder, SIZE)
    assert note.startswith("no tokenizer.json was written, since none reads texts as this tokenizer.model does: it makes ")
    assert not (folder / "tokenizer.json").exists()
    text = note.partition(" of '")[2].partition("', and SentencePiece ")[0].encode().decode("unicode_escape")
    assert 1 < len(text) < 30
    (folder / "tokenizer.model").write_bytes(b"<html>")
    assert "no tokenizer.json was made: " in add_tokenizer_json(folder, SIZE)


def test_a_source_s_own_file_is_judged_and_kept(folder):
    """As transformers 5 saves it after it has read tokenizer.model alone."""
    saved = folder / "saved"
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    shutil.copy(saved / "tokenizer.json", folder)
    before = (folder / "tokenizer.json").read_bytes()
    assert "tokenizer.json, copied from the source, is not this tokenizer.model's: it makes " in add_tokenizer_json(folder, SIZE)
    assert (folder / "tokenizer.json").read_bytes() == before
    (folder / "tokenizer.json").unlink()
    assert add_tokenizer_json(folder, SIZE) is None and add_tokenizer_json(folder, SIZE) is None
    (folder / "tokenizer.json").write_text("{}")
    assert "transformers cannot read it" in add_tokenizer_json(folder, SIZE)
