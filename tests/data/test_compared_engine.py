"""The fast engine: SentencePiece's own ids, or it is not used. Wrong engines are planted."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from megatron_patch.data import compared_engine, fast_engine, json_dataset
from megatron_patch.data.compared_engine import choose_engine
from megatron_patch.data.fast_engine import NoFastEngineError, fast_tokenizer
from megatron_patch.data.json_dataset import build_json_dataset
from megatron_patch.data.probe_texts import probe_texts
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from tests.data.test_tokenizer import write_tokenizer_json
from tests.vocabularies import changed_model, llama_folder

RUNS = [
    f"{before}{' ' * n}{after}" for n in range(1, 90) for before in ("", "a", "\n", "。", "▁") for after in ("", "b", "的", "\n")
]


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    """LLaMA's kind of vocabulary: every ASCII character, and runs of spaces of score -1e9 before all other pieces."""
    return llama_folder(golden, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def reference(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def fast(reference):
    return fast_tokenizer(reference)


def split(batch):
    return [row.tolist() for row in np.split(batch[0], np.cumsum(batch[1])[:-1])]


def test_it_gives_sentencepiece_s_ids(folder, reference, fast):
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [*RUNS, *probe_texts(reference)]
    wanted = pieces.encode(texts)
    assert split(fast.tokenize_batch(texts)) == wanted
    assert [fast.tokenize(text) for text in RUNS] == wanted[: len(RUNS)]
    for text in ("and </s>", "</s>  x<s>", "", "<s>"):
        assert fast.tokenize_marked(text) == reference.tokenize_marked(text)
        assert fast.tokenize_after_end(text) == reference.tokenize_after_end(text)


def test_the_choice_is_said(reference, monkeypatch):
    engine = choose_engine(reference, RUNS)
    assert engine.tokenizer.engine.startswith("fastokens ") and engine.reference is reference
    assert engine.note.startswith(f"{engine.tokenizer.engine} reads the texts; on ")
    assert engine.note.endswith(" texts it gave the ids of SentencePiece.")
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert choose_engine(reference, RUNS).note.startswith("SentencePiece reads the texts, because fastokens cannot be imported")


class PanicException(BaseException):
    """As a panic of Rust code arrives."""


def raising(text):
    if "Ⅷ" in text:
        raise PanicException
    return []


def wrong(fast, at, ids):
    """`fast`, but with other ids for texts that hold `at`."""

    def batch(texts):
        rows = [ids(text) if at in text else fast.tokenize(text) for text in texts]
        return np.concatenate([np.array(row, dtype=np.int64) for row in rows]), np.array([len(row) for row in rows])

    return replace(fast, encode_batch=batch)


FAULTS = {
    "emoji": lambda fast: wrong(fast, "👍", lambda text: [5]),
    "one more id": lambda fast: wrong(fast, "\u202e", lambda text: [*fast.tokenize(text), 7]),
    "a panic": lambda fast: wrong(fast, "Ⅷ", raising),
    "a text too few": lambda fast: replace(fast, encode_batch=lambda texts: fast.tokenize_batch(texts[1:])),
    "special tokens": lambda fast: replace(fast, encode_marked=fast.encode_plain),
    "single texts": lambda fast: replace(fast, encode_plain=lambda text: [*fast.encode_plain(text), 5]),
    "the input's own word": lambda fast: wrong(fast, "Ausnahme", lambda text: [5]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_engine_is_not_used(reference, fast, monkeypatch, name):
    monkeypatch.setattr(compared_engine, "fast_tokenizer", lambda reference: FAULTS[name](fast))
    engine = choose_engine(reference, ["an Ausnahme of the input"])
    assert engine.tokenizer is reference and engine.reference is None
    assert "gives other ids, for example for '" in engine.note


def test_pieces_joined_by_number_are_found_out(reference, monkeypatch):
    """The trap: runs of spaces have the lowest numbers and the lowest score."""
    by_score = fast_engine.joins

    def by_number(model):
        return by_score(replace(model, scores=[-float(i) for i in range(len(model.pieces))]))

    monkeypatch.setattr(fast_engine, "joins", by_number)
    assert choose_engine(reference, []).tokenizer is reference


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("no BPE", lambda model: setattr(model.trainer_spec, "model_type", 1)),
        ("changes characters", lambda model: setattr(model.normalizer_spec, "remove_extra_whitespaces", True)),
        ("its user's own", lambda model: setattr(model.pieces[600], "type", 4)),
        ("one score", lambda model: setattr(model.pieces[400], "score", model.pieces[401].score)),
    ],
)
def test_what_ranks_cannot_say_is_not_tried(golden, tmp_path, reason, change):
    found = load_tokenizer(changed_model(golden, tmp_path, change))
    with pytest.raises(NoFastEngineError, match=reason):
        fast_tokenizer(found)


def test_tokenizer_json_is_compared_with_tokenizers(folder, tmp_path):
    write_tokenizer_json(SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), tmp_path / "tokenizer.json")
    note = choose_engine(load_tokenizer(tmp_path), RUNS[:64]).note
    assert note.startswith("fastokens ") and note.endswith(" it gave the ids of tokenizers.")


@pytest.fixture
def records(tmp_path):
    rows = [{"instruction": f"Count to {i}.  ", "output": " ".join(map(str, range(i)))} for i in range(200)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data.jsonl"


def test_fine_tuning_reads_the_same_with_it(reference, fast, records, monkeypatch, capsys):
    def table(engine):
        return build_json_dataset(records, reference, pad_len=64, seq_len=64, tokenizer_engine=engine).table

    plain = table("auto")
    assert not capsys.readouterr().err, "so small a file is not worth another engine"
    monkeypatch.setattr(json_dataset, "PAYS_FROM", 0)
    quick = table("auto")
    assert "fastokens" in capsys.readouterr().err
    assert (quick.flat == plain.flat).all() and (quick.offsets == plain.offsets).all()
    broken = replace(fast, encode_marked=lambda text: [5] if "150" in text else fast.encode_marked(text))
    monkeypatch.setattr(compared_engine, "fast_tokenizer", lambda reference: broken)
    monkeypatch.setattr(compared_engine, "ONE_IN", 1)
    with pytest.raises(UserError, match=r"data\.jsonl, line 151: fastokens .* gave other ids than SentencePiece"):
        table("auto")
