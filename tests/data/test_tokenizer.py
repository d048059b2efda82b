"""Against SentencePiece itself, and against what the original's fine-tuning data class produced."""

import json
import shutil
import subprocess
import sys

import pytest
from sentencepiece import SentencePieceProcessor

from megatron_patch.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def pieces(golden):
    return SentencePieceProcessor(model_file=str(golden / "hf_mha" / "tokenizer.model"))


@pytest.fixture(scope="module")
def texts(golden):
    with open(golden / "data" / "corpus.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


@pytest.fixture
def folder(golden, tmp_path):
    shutil.copytree(golden / "hf_mha", tmp_path / "folder", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "folder"


def write_tokenizer_json(pieces, path):
    """The same vocabulary and merges for the `tokenizers` library."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    parts = [(vocab[p], vocab[p[:k]], vocab[p[k:]], p[:k], p[k:])
             for p in vocab for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]  # fmt: skip
    merges = [(left, right) for *_, left, right in sorted(parts)]
    engine = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    engine.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    engine.save(str(path))


def test_plain_text_is_sentencepiece_s(tokenizer, pieces, texts):
    hard = [*texts, " x", "  ", "\n", "a\tb\r\n", "</s><s>", "日本語カナ 😀", "", "x" * 3000]
    assert tokenizer.tokenize_batch(hard) == [pieces.encode(text) for text in hard]


def test_special_ids_and_what_core_asks_for(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eod, tokenizer.eos) == (800, 1, 2, 2)
    assert tokenizer.pad == -1, "a real id would hide that id's loss in core's GPTDataset"
    assert 0 <= tokenizer.fill < 800
    json.dumps(tokenizer.unique_identifiers)


def test_literals_are_tokens_only_where_they_are_asked_for(tokenizer):
    assert 2 not in tokenizer.tokenize("and </s> literals")
    # The original's ids for this answer (finetune_pad80.npz, sample 10), behind a word that differs.
    assert tokenizer.tokenize_marked("and </s> literals")[-9:] == [635, 2, 635, 361, 637, 273, 639, 645, 638]


def test_decoding_gives_the_text_back(tokenizer, texts):
    assert [tokenizer.detokenize(tokenizer.tokenize(text)) for text in texts] == texts
    with pytest.raises(ValueError, match="token 800 .* vocabulary of 800"):
        tokenizer.detokenize([5, 800])


def test_tokenizer_json_alone_serves(folder, pieces, tokenizer, texts):
    write_tokenizer_json(pieces, folder / "tokenizer.json")
    (folder / "tokenizer.model").unlink()
    other = load_tokenizer(folder)
    assert (other.vocab_size, other.bos, other.eod) == (800, 1, 2)
    for text in filter(None, texts):
        assert other.tokenize(text) == pieces.encode(text)
    assert other.tokenize_marked("and </s>")[-1] == 2 and 2 not in other.tokenize("and </s>")
    assert other.detokenize(pieces.encode("naïve 词表")) == "naïve 词表"


def test_added_tokens_widen_the_vocabulary(folder):
    (folder / "added_tokens.json").write_text('{"[PAD]": 800}')
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 801
    assert 800 not in tokenizer.tokenize("a [PAD] b") and 800 in tokenizer.tokenize_marked("a [PAD] b")
    assert tokenizer.detokenize([*tokenizer.tokenize("a"), 800, 800]) == "a[PAD][PAD]"


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_padding_beyond_the_model_s_rows_is_no_token(folder, pieces, kind):
    """As LLaMA-2 was first published: `<pad>` has number 32000, and the model 32000 rows."""
    (folder / "added_tokens.json").write_text('{"<pad>": 800, "<tool>": 801}')
    if kind == "tokenizer.json":
        from tokenizers import Tokenizer

        (folder / "tokenizer.model").unlink()
        write_tokenizer_json(pieces, folder / kind)
        engine = Tokenizer.from_file(str(folder / kind))
        engine.add_special_tokens(["<pad>", "<tool>"])
        engine.save(str(folder / kind))
    assert load_tokenizer(folder).vocab_size == load_tokenizer(folder, rows=801).vocab_size == 802
    assert load_tokenizer(folder, rows=801).special_tokens["<pad>"] == 800
    # Another token is missing from the model, which must be said.
    assert load_tokenizer(folder, rows=800).vocab_size == 802
    assert "<pad>" not in load_tokenizer(folder, rows=800).special_tokens
    if kind == "tokenizer.model":
        (folder / "added_tokens.json").write_text('{"<pad>": 800}')
        assert load_tokenizer(folder, rows=800).vocab_size == 800


def test_the_cache_key_is_the_contents(folder, tokenizer, tmp_path):
    assert load_tokenizer(folder).fingerprint == tokenizer.fingerprint
    (folder / "added_tokens.json").write_text('{"[PAD]": 800}')
    assert load_tokenizer(folder).fingerprint != tokenizer.fingerprint


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ValueError, match="neither tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="tokenizer.model is a Git LFS pointer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"<!DOCTYPE html>\n")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)


def test_loading_imports_neither_torch_nor_transformers(golden):
    code = (
        "import sys; from megatron_patch.data.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1]);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    root = golden.parents[1]
    subprocess.run([sys.executable, "-c", code, str(golden / "hf_mha")], cwd=root, check=True)
