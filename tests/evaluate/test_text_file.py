"""A text file in parts has the tokens of the whole text."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.data.tokenizer_json import add_tokenizer_json
from megatron_patch.evaluate import text_file
from tests.launching import ROOT

TEXTS = ["a\n\n\n  b\r\n\tc\rd\n x", "\n", "  \n x\n", "no end", "\ufeffbegins so\n 语言\n", "</s>\n</s>"]


@pytest.fixture
def counted(tokenizer):
    """The tokenizer, and how many bytes it was asked for at most."""
    asked = [0]

    def encode(text):
        asked.append(len(text.encode()))
        return tokenizer.encode_plain(text)

    return dataclasses.replace(tokenizer, encode_plain=encode), asked


@pytest.mark.parametrize("part", [1, 60, 1 << 20])
def test_parts_are_the_whole(part, counted, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "_PART", part)
    lines = (ROOT / "README_zh-CN.md").read_text(encoding="utf-8")
    for text in [lines, *(text for text in TEXTS if text.strip())]:
        (tmp_path / "text").write_bytes(text.encode())
        found = np.concatenate(list(text_file.text_tokens(str(tmp_path / "text"), counted[0])))
        assert found.tolist() == [tokenizer.bos, *tokenizer.tokenize(text.removeprefix("\ufeff"))]
    assert (max(counted[1]) > len(lines)) == (part > len(lines))


def test_where_a_token_reaches_over_lines_the_text_is_read_whole(golden, tmp_path, monkeypatch):
    from tokenizers import Tokenizer

    shutil.copytree(golden / "hf_mha", tmp_path / "folder", ignore=shutil.ignore_patterns("*.safetensors"))
    add_tokenizer_json(tmp_path / "folder", 800)
    (tmp_path / "folder" / "tokenizer.model").unlink()
    path = tmp_path / "folder" / "tokenizer.json"
    engine = Tokenizer.from_file(str(path))
    engine.add_tokens(["\n\n"])
    engine.save(str(path))
    tokenizer = load_tokenizer(tmp_path / "folder")
    monkeypatch.setattr(text_file, "_PART", 1)
    (tmp_path / "text").write_text("a\n\nb\n")
    found = np.concatenate(list(text_file.text_tokens(str(tmp_path / "text"), tokenizer)))
    assert found.tolist() == [1, *tokenizer.tokenize("a\n\nb\n")] and 800 in found


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"ab\ncd\xff\n", r"is not UTF-8 \(byte 5\)"), (b" \n\n", "holds no text"), (b"", "holds no text")]
)
def test_what_is_no_text_is_said(content, sentence, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "_PART", 1)
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(text_file.text_tokens(str(tmp_path / "text"), tokenizer))
