"""Against SentencePiece itself, and against what the original's fine-tuning data class produced."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from megatron_patch.config import Options
from megatron_patch.data.prompts import encode_alpaca
from megatron_patch.data.run_tokenizer import text_tokenizer
from megatron_patch.data.tokenizer import load_tokenizer
from tests.tiny import tiny_config


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
    assert [tokenizer.tokenize(text) for text in hard] == [pieces.encode(text) for text in hard]


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


def test_a_number_between_added_tokens_has_no_text(folder):
    """A model whose rows reach the last added token can choose it."""
    (folder / "added_tokens.json").write_text('{"<x>": 803}')
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.tokenize("import")
    assert tokenizer.detokenize([*ids, 801, 802, 803]) == "import<x>"


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


CHATML = {"<|im_start|>": 800, "<|im_end|>": 801}


def chatml(folder, *, tokenizer="<|im_end|>", config=801, generation=801):
    """The folder of a ChatML model made of a LLaMA; None leaves a number or a file out."""
    (folder / "added_tokens.json").write_text(json.dumps(CHATML))
    changes = {"tokenizer_config.json": {"eos_token": tokenizer}, "special_tokens_map.json": {"eos_token": tokenizer}}
    for name, changed in {**changes, "config.json": {"eos_token_id": config, "vocab_size": 802}}.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changed))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return folder


@pytest.mark.parametrize(
    ("files", "end", "note"),
    [
        ({}, 801, ""),
        ({"config": [2, 801], "generation": [801, 2]}, 801, ""),
        ({"generation": None}, 801, ""),
        ({"config": None, "generation": None}, 801, ""),
        ({"config": 2}, 801, r"the tokenizer <\|im_end\|> \(801\), generation_config.json .*\(801\), config.json </s> \(2\)"),
        ({"config": 2, "generation": [2, 801]}, 801, r"answers end in <\|im_end\|> \(801\)"),
        ({"generation": 2}, 2, r"answers end in </s> \(2\): .* stops at what generation_config.json names"),
        ({"config": 2, "generation": None}, 2, r"answers end in </s> \(2\): .* stops at what config.json names"),
        ({"tokenizer": "</s>"}, 801, r"the tokenizer </s> \(2\).* answers end in <\|im_end\|> \(801\)"),
        ({"tokenizer": "</s>", "config": 2, "generation": 2}, 2, ""),
        ({"config": 9999, "generation": None}, 801, "the tokenizer has no 9999, which config.json names"),
    ],
)
def test_an_answer_ends_in_what_the_folder_s_model_waits_for(folder, files, end, note):
    """transformers' generation stops at any of the tokens of its GenerationConfig; without one, config.json's."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    chatml(folder, **files)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.answer_end == end and re.search(note, tokenizer.end_note) and bool(tokenizer.end_note) == bool(note)
    assert tokenizer.eos == AutoTokenizer.from_pretrained(folder).eos_token_id
    own = (folder / "generation_config.json").exists()
    from_config = None if own else GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    waits = (GenerationConfig.from_pretrained(folder) if own else from_config).eos_token_id
    assert waits is None or waits == 9999 or end in (waits if isinstance(waits, list) else [waits])
    assert tokenizer.eod == 2, "documents of pre-training end in </s>, which ends no turn"
    assert tokenizer.separator_note.startswith("documents end in </s> (2)") is (tokenizer.eos == 801)
    ids, learnt = encode_alpaca({"instruction": "a", "output": "b"}, tokenizer)
    assert ids[-1] == end and learnt[-1] and set(ids) & {2, 801} == {end}


def test_a_newer_tokenizer_config_decides_over_the_map_beside_it(folder):
    """As in transformers: with `added_tokens_decoder` the old special_tokens_map.json is not read."""
    from transformers import AutoTokenizer

    chatml(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = {str(i): {"content": literal, "special": True} for literal, i in CHATML.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": decoder}))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert load_tokenizer(folder).eos == AutoTokenizer.from_pretrained(folder).eos_token_id == 801


def test_the_model_s_files_may_stand_elsewhere(folder, golden):
    assert load_tokenizer(chatml(folder), model_folder=golden / "hf_mha").answer_end == 2
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(ValueError, match="generation_config.json: eos_token_id is '</s>'; it takes a token's number"):
        load_tokenizer(folder)


def test_a_run_that_goes_on_ends_answers_as_it_began(folder, golden, tmp_path):
    """From random weights config.json is the run's own; with a checkpoint that one's counts, whatever the tokenizer."""
    from megatron_patch.checkpoint.housekeeping import write_companions

    begun = tiny_config(output_path=str(tmp_path))
    begun = replace(begun, options=Options(tokenizer_path=str(chatml(folder))))
    root = Path(begun.checkpoint_folder)
    root.mkdir(parents=True)
    assert text_tokenizer(begun, print).answer_end == 801
    write_companions(begun, root, "bfloat16")
    assert json.loads((root / "config.json").read_text())["eos_token_id"] == 801
    for goes_on in (begun, replace(begun, options=Options())):
        assert text_tokenizer(goes_on, print).answer_end == 801
    source = tmp_path / "source"
    shutil.copytree(golden / "hf_mha", source)
    (source / "latest_checkpointed_iteration.txt").write_text("release")
    assert text_tokenizer(replace(begun, load=str(source)), print).answer_end == 2


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


@pytest.mark.parametrize(("piece", "broken"), [(b"<unk>", b"<u\xeek>"), ("\u2581the".encode(), b"\xe2\x96\x81t\xffe")])
def test_a_piece_that_is_no_utf_8_is_found_at_once(golden, tmp_path, piece, broken):
    """SentencePiece reads it, and raises where that piece is first asked for, in the middle of a run."""
    model = (golden / "hf_mha" / "tokenizer.model").read_bytes()
    assert piece in model and len(piece) == len(broken)
    (tmp_path / "tokenizer.model").write_bytes(model.replace(piece, broken, 1))
    with pytest.raises(ValueError, match=r"tokenizer.model is not a SentencePiece model \('utf-8' codec"):
        load_tokenizer(tmp_path)
