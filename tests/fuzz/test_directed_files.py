"""What the fuzz tests have found in files: each case with its sentence."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from megatron_patch.cli import inspection as inspect
from megatron_patch.cli import preprocess
from megatron_patch.data.chat_template import compile_chat_template
from megatron_patch.data.json_dataset import build_json_dataset, read_records
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import ModelDescription, read_model_description, write_model_description
from megatron_patch.folders.starting_point import own_checkpoint
from megatron_patch.folders.tracker import read_tracker
from megatron_patch.llama.model_config import LLAMA_SIZES, read_hf_config
from megatron_patch.records.indexed import read_index
from tests.fuzz import valid
from tests.fuzz.outcome import limits, outcome, timed
from tests.fuzz.templates import TEMPLATES
from tests.launching import GOLDEN
from tests.tiny import tiny_config

DEEP, DIGITS = "[" * 100_000, "9" * 5000

CONFIGS = {
    "no number": ("num_hidden_layers", '"4"', "num_hidden_layers is '4'; it must be a whole number from 1 to 4096"),
    "a list": ("hidden_size", "[64]", "hidden_size is a list; it must be a whole number"),
    "true is not 1": ("num_key_value_heads", "true", "num_key_value_heads is True; it must be a whole number"),
    "no heads": ("num_attention_heads", "0", "num_attention_heads is 0; it must be a whole number from 1"),
    "no groups": ("num_key_value_heads", "0", "num_key_value_heads is 0; it must be"),
    "10^9 layers": (
        "num_hidden_layers",
        "1000000000",
        "num_hidden_layers is 1000000000; it must be a whole number from 1 to 4096",
    ),
    "10^9 heads": ("num_attention_heads", "1000000000", "num_attention_heads is 1000000000; it must be"),
    "infinity": ("rms_norm_eps", "Infinity", "rms_norm_eps is inf; it must be a number above 0, at most 1"),
    "above a double": ("rope_theta", "1e400", "rope_theta is inf; it must be a finite number"),
    "not a number": ("rms_norm_eps", "NaN", "rms_norm_eps is nan; it must be"),
    "infinite heads": ("num_attention_heads", "-Infinity", "num_attention_heads is -inf; it must be a whole number"),
    "half a layer": ("num_hidden_layers", "4.5", "num_hidden_layers is 4.5; it must be a whole number"),
    "heads that do not divide": ("num_attention_heads", "3", "hidden_size is 64, which the 3 attention heads do not divide"),
    "odd heads": ("head_dim", "15", "The size of an attention head is 15; rotary embeddings need an even one"),
    "a text for an object": ("rope_parameters", '"x"', "rope_parameters"),
    "deep nesting": ("architectures", DEEP, "config.json is nested too deeply"),
    "too many digits": ("vocab_size", DIGITS, "config.json is no JSON: Exceeds the limit"),
    "half a character": ("architectures", '"\\ud800"', "config.json holds half of a surrogate pair"),
    "a null": ("max_position_embeddings", "null", "max_position_embeddings is None; it must be"),
}


def with_value(content: dict, key: str, raw: str) -> str:
    """`content` as JSON, in which the text `raw` stands for the value of `key`."""
    return json.dumps({**content, key: "@here@"}).replace('"@here@"', raw)


@pytest.mark.parametrize("case", CONFIGS)
def test_config_json(case, tmp_path):
    key, raw, said = CONFIGS[case]
    content = json.loads((GOLDEN / "hf_mha" / "config.json").read_text(encoding="utf-8"))
    if case in ("no heads", "10^9 heads", "infinite heads", "heads that do not divide"):
        content["num_key_value_heads"] = None
    (tmp_path / "config.json").write_text(with_value(content, key, raw), encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        read_hf_config(tmp_path)
    assert said in str(refused.value) and str(tmp_path / "config.json") in str(refused.value)


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\xef\xbb\xbf{}", b"[]", b"null", b"{", b'{"a": 1'])
def test_what_is_no_json_object(data, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match="is no JSON|must be one JSON object"):
        read_hf_config(tmp_path)


MODELS = {
    "a text for a number": ("model", '{"num_layers": "4"}', "does not describe a LLaMA|num_layers is '4'"),
    "a list": ("model", "[]", "does not describe a LLaMA"),
    "no groups": ("model", json.dumps({**vars(LLAMA_SIZES["tiny"]), "num_query_groups": 0}), "num_query_groups is 0"),
    "infinite layers": ("model", json.dumps({**vars(LLAMA_SIZES["tiny"]), "num_layers": float("inf")}), "num_layers is inf"),
    "less than no rows": ("extra_vocab_size", "-1", "extra_vocab_size is -1; it must be a whole number from 0"),
    "true": ("tensor_model_parallel_size", "true", "tensor_model_parallel_size is True"),
    "an unhashable type": ("dtype", "[]", "dtype is a list; allowed are bfloat16"),
    "deep nesting": ("dtype", DEEP, "model.json is nested too deeply"),
    "true is not format 1": ("format", "true", "has format True; this version reads format 1"),
}


@pytest.mark.parametrize("case", MODELS)
def test_model_json(case, tmp_path):
    key, raw, said = MODELS[case]
    write_model_description(tmp_path, ModelDescription(LLAMA_SIZES["tiny"], 0, "bfloat16", 1, 1))
    path = tmp_path / "model.json"
    assert read_model_description(tmp_path) is not None
    path.write_text(with_value(json.loads(path.read_text(encoding="utf-8")), key, raw), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_model_description(tmp_path)


@pytest.mark.parametrize("text", ["٣", "²", "4" * 13, DIGITS, "-4", "1_0", "4.0", "4 4"])
def test_the_tracker(text, tmp_path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="it holds 'release' or an iteration's number"):
        read_tracker(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"40\r\n")
    assert read_tracker(tmp_path) == "40"


@pytest.mark.parametrize(
    ("key", "raw", "said"),
    [("options", "[]", "`model` and `options` are missing"), ("load", "7",
    "load is 7, not a folder"),
     ("name", DEEP, "is nested too deeply"), ("name", "}", "is no JSON"), ("lr", DIGITS, "is no JSON")],
)  # fmt: skip
def test_run_config_json(key, raw, said, tmp_path):
    config = tiny_config(output_path=str(tmp_path))
    folder = Path(config.checkpoint_folder) / "iter_0000004"
    folder.mkdir(parents=True)
    (folder.parent / "latest_checkpointed_iteration.txt").write_text("4")
    (folder / "run_config.json").write_text(with_value(config.as_dict(), key, raw))
    with pytest.raises(ValueError, match=said):
        own_checkpoint(config, Origin())
    (folder / "run_config.json").write_text(json.dumps(config.as_dict()))
    assert own_checkpoint(config, Origin()) == (folder, ())


N = 47  # sequences of the golden corpus
INDICES = {
    "a negative length": (34 + 4 * 3, "<i", -5, "sequence 3 has length -5"),
    "a longer sequence": (34 + 4 * 3, "<i", 2**31 - 1, "sequence 4 is said to begin at byte"),
    "a wild offset": (34 + 4 * N + 8 * 2, "<q", 2**62, "sequence 2 is said to begin at byte 4611686018427387904"),
    "a negative offset": (34 + 4 * N, "<q", -2, "sequence 0 is said to begin at byte -2"),
    "a boundary that falls": (34 + 12 * N + 8 * 5, "<q", 1, "the beginnings of documents do not rise from 0 to 47"),
    "a boundary above all": (34 + 12 * N + 8 * 5, "<q", 2**40, "the beginnings of documents do not rise"),
    "a first boundary of 1": (34 + 12 * N, "<q", 1, "the beginnings of documents do not rise"),
    "a last boundary too low": (34 + 12 * N + 8 * N, "<q", 46, "the last document ends with sequence 46 of 47"),
    "a wild count": (18, "<Q", 2**63, "its header promises"),
    "another type": (17, "<B", 7, "type code 7"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index(case, tmp_path, capsys):
    at, code, number, said = INDICES[case]
    shutil.copy(GOLDEN / "data" / "corpus_text_document.bin", tmp_path / "c.bin")
    data = bytearray((GOLDEN / "data" / "corpus_text_document.idx").read_bytes())
    struct.pack_into(code, data, at, number)
    (tmp_path / "c.idx").write_bytes(data)
    with pytest.raises(ValueError) as refused:
        read_index(tmp_path / "c")
    assert said in str(refused.value) and str(tmp_path / "c.idx") in str(refused.value)
    assert inspect.main([str(tmp_path / "c")]) == 2 and said in capsys.readouterr().err


def test_documents_of_several_sequences_and_of_none_are_right(tmp_path):
    """As Megatron-LM writes with --split-sentences: boundaries [0, 2, 2, 47]."""
    shutil.copy(GOLDEN / "data" / "corpus_text_document.bin", tmp_path / "c.bin")
    data = (GOLDEN / "data" / "corpus_text_document.idx").read_bytes()
    head = bytearray(data[: 34 + 12 * N])
    struct.pack_into("<Q", head, 26, 4)
    (tmp_path / "c.idx").write_bytes(bytes(head) + np.array([0, 2, 2, N], dtype="<i8").tobytes())
    assert read_index(tmp_path / "c").boundaries == 4


@pytest.mark.parametrize(
    "change",
    [lambda header, body: ({**header, "samples": float("inf")}, body), lambda header, body: ({**header, "tokens": -1}, body),
     lambda header, body: ({**header, "samples": True}, body), lambda header, body: (DEEP, body), lambda header,
     body: (header, b""),
     lambda header, body: (header, body[:552] + struct.pack("<4q", 0, 2**40, 3, 138) + body[584:]),
     lambda header, body: (header, body[:552] + struct.pack("<4q", 5, 60, 90, 138) + body[584:])],
)  # fmt: skip
def test_a_damaged_token_cache_is_made_again(change, tmp_path, caplog):
    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))[:3]
    (tmp_path / "d.json").write_text(json.dumps(records))
    tokenizer = load_tokenizer(GOLDEN / "hf_mha")
    build = lambda: build_json_dataset(tmp_path / "d.json", tokenizer, pad_len=64, seq_len=64, cache_dir=tmp_path)  # noqa: E731
    right = [build()[i]["tokens"].tolist() for i in range(3)]
    (path,) = tmp_path.glob("*.bin")
    data = path.read_bytes()
    header, body = change(json.loads(data[:4096]), data[4096:])
    if isinstance(header, dict):
        header = json.dumps({**header, "crc": zlib.crc32(body)})
    path.write_bytes(header[:4095].encode().ljust(4095) + b"\n" + body)
    assert [build()[i]["tokens"].tolist() for i in range(3)] == right
    assert f"{path} is damaged" in caplog.text


TOKENIZERS = {
    "added_tokens.json": [
        ('{"<x>": "y"}', "'y' is no token's number"), ('{"<x>": 1e400}', "inf is no token's number"), ('{"<x>": -1}',
        "-1 is no token's number"),
        ('{"": 800}', "'' is no added token's text"), ('{"<x>": 99999999999}', "is no token's number"), ("[]",
        "must be one JSON object"),
    ],
    "special_tokens_map.json": [("7", "must be one JSON object"), (DEEP, "is nested too deeply"),
    ('{"pad_token": "\\ud800"}', "surrogate")],
    "tokenizer_config.json": [
        ('{"added_tokens_decoder": []} ', None), ('{"added_tokens_decoder": [1]}', "added_tokens_decoder is a list"),
        ('{"added_tokens_decoder": {"x": {"content": "a"}}}', "None is no token's number"),
        ('{"added_tokens_decoder": {"٣": {"content": "a"}}}', "None is no token's number"),
        ('{"added_tokens_decoder": {"3": {"content": 7}}}', "7 is no added token's text"), ('{"chat_template": 7}',
        "chat_template is 7; it must be a text"),
        ('{"chat_template": [7, {"name": "default", "template": "x"}]}', None), (DIGITS, "is no JSON"),
    ],
    "tokenizer.model": [("", "is empty"), ("\n" * 40, "is not a SentencePiece model"),
    ("version https://git-lfs", "")],
    "chat_template.jinja": [("x" * (1 << 21), "which no chat template has")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "said"), [(name, *case) for name, cases in TOKENIZERS.items() for case in cases])
def test_a_tokenizer_s_files(name, text, said, tmp_path):
    folder = valid.tokenizer(tmp_path)
    (folder / name).write_text(text, encoding="utf-8")
    if said is None:
        assert load_tokenizer(folder).vocab_size == 801
        return
    with pytest.raises(ValueError) as refused:
        load_tokenizer(folder)
    assert said in str(refused.value) and str(folder) in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [lambda t: t["model"].update(vocab={}), lambda t: t["model"].update(merges=7), lambda t: t.update(added_tokens=[{}]),
    lambda t: t.clear(),
     lambda t: t["model"]["vocab"].update({"<s>": 2**31}), lambda t: t.update(pre_tokenizer={"type": "Split"})],
)  # fmt: skip
def test_tokenizer_json(change, tmp_path):
    folder = valid.tokenizer(tmp_path, fast=True)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="copy the model's own file there|lacks the start or end token"):
        load_tokenizer(folder).tokenize("to be")


TURNS = [{"role": "user", "content": "to be"}, {"role": "assistant", "content": "or not"}]


def test_odd_chat_templates_are_texts_or_sentences():
    def read(template):
        with timed():
            compile_chat_template(template, bos_token="<s>", eos_token="</s>")(TURNS, False)

    with limits():
        failures = {template: outcome(partial(read, template)) for template in TEMPLATES}
    assert not {template: failure for template, failure in failures.items() if failure}


@pytest.mark.parametrize(
    ("source", "said"),
    [("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "it takes more than 200000 steps"),
     ("{{ (1).to_bytes(9000000000, 'big') }}", "unsafe"), ("{{ ('x' * 1000).encode('punycode') }}", "unsafe"),
     ("{{ 1 | round(4000000, 'ceil') }}", "numbers of more than 30 digits"), ("{{ [1] | tojson(indent=10**8) }}", "width"),
     ("{{ ('a' * 10**6).rfind('b' ~ 'a' * 10**5) }}", "it makes a text or a list of more than"),
     ("{{ ('a' * 10**6).rsplit(sep='b' ~ 'a' * 10**5) }}", "it makes a text or a list of more than"),
     ("{{ ('a' * 10**6).strip('b' * 10**5 ~ 'a') }}", "it makes a text or a list of more than"),
     ("{{ ('a' * 10**6) | trim('b' * 10**5 ~ 'a') }}", "it makes a text or a list of more than"),
     ("{{ [[1], [2]] | sum(start=[]) }}", "it adds up lists"),
     ("{{ 'x' * 10**9 }}", "it makes a text or a list of more than"), ("{{ 10**10**10 }}", "numbers of more than 30 digits"),
     ("{{ ''.__class__ }}{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"), ("{{ 1 / 0 }}", "ZeroDivisionError"),
     ("{{ messages.append(1) }}", "access to attribute 'append'"), ("{{ '{:9999999999}'.format(1) }}", "formatted to a width"),
     ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"), ("{{ raise_exception('only one turn') }}",
     "only one turn")],
)  # fmt: skip
def test_a_hostile_chat_template_is_refused(source, said):
    with pytest.raises(ValueError, match="the folder's chat template refused it: .*") as refused:
        compile_chat_template(source)(TURNS, False)
    assert said in str(refused.value)


def test_a_long_conversation_has_room():
    """A rendering longer than each bound that does not depend on the conversation."""
    turns = [{"role": "user", "content": "a" * (1 << 22)}, {"role": "assistant", "content": "b" * (1 << 22)}]
    text = compile_chat_template(valid.CHAT, bos_token="<s>", eos_token="</s>")(turns, False)
    assert text == "<s>[INST] " + "a" * (1 << 22) + " [/INST] " + "b" * (1 << 22) + " </s>"


def test_loop_variables_are_jinja_s():
    each = "{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem.role if not loop.first }}|"
    source = "{% for m in messages %}" + each + "{% endfor %}"
    assert compile_chat_template(source)(TURNS, False) == "1TrueFalse2|2FalseTrue2user|"


def test_a_damaged_archive_of_fine_tuning_data(tmp_path):
    data = gzip.compress(b'{"instruction": "a", "output": "b"}\n' * 100)
    for damaged in (data[:40], data[:10], b"\x1f\x8b" + data[:9], b"no archive", data[:-4] + b"\0\0\0\0"):
        (tmp_path / "d.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="d.jsonl.gz cannot be read to its end"):
            list(read_records(tmp_path / "d.jsonl.gz"))


@pytest.mark.parametrize(
    "made",
    [
        "[]",
        "{}",
        DEEP,
        DIGITS,
        '{"made_from": 1, "counts": {}}',
        '{"made_from": {"files": []}, "counts": {"place": {"file": "0"}}}',
    ],
)
@pytest.mark.parametrize("name", ["p.made", "p.partial/state.json"])
def test_preparation_s_own_records(name, made, tmp_path, capsys):
    (tmp_path / "p.partial").mkdir()
    (tmp_path / name).write_text(made)
    argv = ["--input", str(GOLDEN / "data" / "corpus.jsonl"), "--output-prefix", str(tmp_path / "p"), "--workers", "1"]
    assert preprocess.main([*argv, "--tokenizer-folder", str(GOLDEN / "hf_mha")]) in (1, 2)
    assert f"{tmp_path / name} is no " in (said := capsys.readouterr().err) or f"{tmp_path / name} " in said


def test_a_state_that_promises_more_than_is_there_is_refused(tmp_path, capsys):
    """A reader would take the gap for zeros, which are tokens."""
    argv = ["--input", str(GOLDEN / "data" / "corpus.jsonl"), "--output-prefix", str(tmp_path / "p"), "--workers", "1"]
    argv += ["--tokenizer-folder", str(GOLDEN / "hf_mha")]
    assert preprocess.main(argv) == 0
    made = json.loads((tmp_path / "p.made").read_text(encoding="utf-8"))
    made["counts"]["place"] = {"file": 0, "records": 10, "offset": 3000}
    for end in (".bin", ".idx", ".made"):
        (tmp_path / f"p{end}").unlink()
    (tmp_path / "p.partial").mkdir()
    (tmp_path / "p.partial" / "state.json").write_text(json.dumps(made))
    assert preprocess.main(argv) == 1
    assert "has 0 bytes, and" in capsys.readouterr().err
