"""Readers of tokenizers, indexed data and token caches."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import valid
from tests.fuzz.mutate import INTEGERS, changed_bytes, changed_json
from tests.fuzz.target import Target, files_of, json_with
from tests.fuzz.templates import TEMPLATES, changed_template
from tests.launching import GOLDEN


def tokenizers(folder: Path, fast: bool = False) -> Target:
    """All files of a tokenizer's folder; texts are tokenized and rendered with it."""
    from megatron_patch.data.fast_engine import NoFastEngineError, fast_tokenizer
    from megatron_patch.data.prompts import encoder
    from megatron_patch.data.tokenizer import load_tokenizer

    valid.tokenizer(folder, fast)
    turns = {"messages": [{"role": "user", "content": "to be"}, {"role": "assistant", "content": "or not"}]}

    def read(random: Random) -> None:
        found = load_tokenizer(folder, rows=random.choice((None, 800, 40)))
        ids = found.tokenize("to be</s>") + found.tokenize_marked("not<s> to </s><|im_end|>")
        assert all(isinstance(i, int) and 0 <= i < found.vocab_size for i in (*ids, found.bos, found.eod, found.fill)), (
            "ids outside"
        )
        with suppress(NoFastEngineError):
            quick = fast_tokenizer(found)
            quick.tokenize_batch(["to be</s>"]), quick.tokenize_marked("not<s> to </s>")
        found.detokenize(ids), found.unique_identifiers, found.special_tokens.get("</s>")
        for template in ("alpaca", "llama2-chat", "tokenizer"):
            encoder(template, found)({"instruction": "a", "output": "b"} if template == "alpaca" else turns)

    names: dict[str, Any] = {
        "tokenizer_config.json": _settings,
        "special_tokens_map.json": json_with("pad_token", "eos_token"),
        "added_tokens.json": json_with("<pad>"),
        "generation_config.json": json_with("eos_token_id", "bos_token_id"),
        "tokenizer.json" if fast else "tokenizer.model": json_with() if fast else changed_bytes,
    }
    (folder / "chat_template.jinja").write_text(valid.CHAT)
    names["chat_template.jinja"] = lambda random, data: changed_template(random, data.decode()).encode("utf-8", "surrogatepass")
    return Target(folder, read, files_of(folder, **names))


def _settings(random: Random, data: bytes) -> bytes:
    content = json.loads(data)
    if random.random() < 0.2:
        content["chat_template"] = random.choice(
            (random.choice(TEMPLATES), [{"name": "default", "template": random.choice(TEMPLATES)}])
        )
    return changed_json(
        random, content, ("chat_template", "added_tokens_decoder", "pad_token", "bos_token", "eos_token", "unk_token")
    )


def indexed(folder: Path) -> Target:
    from megatron_patch.cli import inspection as inspect
    from megatron_patch.preparation.resumable_state import Counts
    from megatron_patch.records.indexed import check_indexed_dataset, lengths_fingerprint

    for end in (".bin", ".idx"):
        (folder / f"c{end}").write_bytes((GOLDEN / "data" / f"corpus_text_document{end}").read_bytes())
    (folder / "c.made").write_text(
        json.dumps({"counts": asdict(Counts(documents=47, empty=1)), "made_from": {"files": [["a", 1, 2]]}})
    )

    def read(random: Random) -> object:
        if random.random() < 0.3:
            return inspect.main([str(folder / "c"), "--samples", "2"])
        data = check_indexed_dataset(folder / "c", 800)
        lengths_fingerprint([folder / "c"])
        documents = [data.document(i) for i in range(len(data.lengths))]
        assert sum(map(len, documents)) == data.tokens and data.boundaries >= 2, "a document is not whole"
        return None

    return Target(
        folder, read, files_of(folder, **{"c.idx": _index, "c.bin": changed_bytes, "c.made": json_with("counts", "made_from")})
    )


def sample_indices(folder: Path) -> Target:
    """A file of core's under data_cache, and other kinds of numpy's and Python's in its place."""
    import numpy

    from megatron_patch.data.indexed_pretrain import _damage

    path = folder / "a-document_index.npy"
    numpy.save(path, numpy.arange(30, dtype=numpy.int32).reshape(10, 3))
    numpy.savez(folder / "other.npz", numpy.arange(3))
    others = (pickle.dumps([1]), (folder / "other.npz").read_bytes())

    def read(random: Random) -> None:
        _damage(path)

    def change(random: Random, data: bytes) -> bytes:
        return changed_bytes(random, random.choice((data, data, data, *others)))

    return Target(folder, read, files_of(folder, **{path.name: change}))


def _index(random: Random, data: bytes) -> bytes:
    """Change one number of the header or of an array. With a new count the arrays mostly get the new length too."""
    if random.random() < 0.2:
        return changed_bytes(random, data)
    magic, version, code, n, d = struct.unpack("<9sQBQQ", data[:34])
    lengths, offsets, documents = (list(struct.unpack(f"<{count}{kind}", data[at : at + size * count]))
                                   for at, count, kind, size in ((34, n, "i", 4), (34 + 4 * n, n, "q", 8),
                                                                 (34 + 12 * n, d, "q", 8)))  # fmt: skip
    where = random.randrange(8)
    number = random.choice(INTEGERS)
    if where == 0:
        version = number & (2**64 - 1)
    elif where == 1:
        code = random.randrange(256)
    elif where == 2:
        n = random.choice((number & (2**64 - 1), n - 1, n + 1, 0))
    elif where == 3:
        d = random.choice((number & (2**64 - 1), d - 1, d + 1, 0, 1))
        documents = (documents + [len(lengths)] * 2)[:d] if random.random() < 0.7 else documents
    elif where == 4:
        _nudge(random, lengths, -(2**31), 2**31 - 1)
    elif where == 5:
        _nudge(random, offsets, -(2**63), 2**63 - 1)
    elif where == 6:
        _nudge(random, documents, -(2**63), 2**63 - 1)
    else:
        lengths, offsets, n = lengths[:-1], offsets[:-1], n - 1
    try:
        return struct.pack(
            f"<9sQBQQ{len(lengths)}i{len(offsets)}q{len(documents)}q", magic, version, code, n, d, *lengths, *offsets, *documents
        )
    except struct.error:
        return data


def _nudge(random: Random, numbers: list[int], low: int, high: int) -> None:
    how, at = random.randrange(4), random.randrange(len(numbers))
    if how == 0:
        numbers[at] = random.choice([i for i in INTEGERS if low <= i <= high])
    elif how == 1:
        numbers[at] += random.choice((-2, -1, 1, 2))
    elif how == 2:
        other = random.randrange(len(numbers))
        numbers[at], numbers[other] = numbers[other], numbers[at]
    else:  # the same sum
        other = random.randrange(len(numbers))
        step = random.choice((1, 7, 1000))
        numbers[at], numbers[other] = numbers[at] - step, numbers[other] + step


def token_cache(folder: Path) -> Target:
    from megatron_patch.data.json_dataset import build_json_dataset
    from megatron_patch.data.tokenizer import load_tokenizer

    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))[:3]
    data = folder / "d.json"
    data.write_text(json.dumps(records))
    found = load_tokenizer(GOLDEN / "hf_mha")

    def build(**kwargs: Any) -> Any:
        return build_json_dataset(data, found, pad_len=64, seq_len=64, cache_dir=folder / "cache", **kwargs)

    right = [row["tokens"].tolist() for row in map(build().__getitem__, range(3))]

    (name,) = [f"cache/{path.name}" for path in (folder / "cache").glob("*.bin")]
    body = (folder / name).read_bytes()[4096:]

    def read(_: Random) -> None:
        found = (folder / name).read_bytes()[4096:]
        got = build()
        again = [got[i]["tokens"].tolist() for i in range(len(got))]
        # Nobody can tell other tokens whose checksum is right.
        forged = (folder / name).read_bytes()[4096:] == found != body
        assert again == right or forged, "a damaged cache was believed"

    return Target(folder, read, files_of(folder, **{name: _cache}))


def _cache(random: Random, data: bytes) -> bytes:
    """Change the header and make its checksum right again, so that the checks behind the checksum are tried too."""
    if random.random() < 0.3:
        return changed_bytes(random, data)
    header, body = json.loads(data[:4096]), data[4096:]
    if random.random() < 0.5:
        return changed_json(random, header).ljust(4095)[:4095] + b"\n" + body
    body = changed_bytes(random, body)
    header |= {"crc": zlib.crc32(body)}
    return json.dumps(header).encode().ljust(4095) + b"\n" + body
