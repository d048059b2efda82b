"""Every reader of files, each with inputs of its own structure.

A target's `prepare(folder)` makes a valid input once; `change(random)` writes one changed input into it, and the reader runs.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import valid
from tests.fuzz.mutate import INTEGERS, changed_bytes, changed_json, changed_pickle, changed_zip
from tests.fuzz.templates import TEMPLATES, changed_template
from tests.launching import GOLDEN


@dataclass
class Target:
    """One kind of input. `files` by name: their valid bytes, and who changes them."""

    folder: Path
    read: Callable[[Random], object]
    files: dict[str, tuple[bytes, Callable[[Random, bytes], bytes]]] = field(default_factory=dict)

    def change(self, random: Random) -> dict[str, bytes]:
        """Write the valid files, one of them changed; what was changed."""
        name = random.choice(list(self.files))
        content, changer = self.files[name]
        changed = {name: changer(random, content)}
        for path, data in changed.items():
            _write(self.folder / path, data)
        return changed

    def restore(self, names: Any) -> None:
        for name in names:
            _write(self.folder / name, self.files[name][0])


def _write(path: Path, data: bytes) -> None:
    """As a new file: one that a reader has mapped stays as it was."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def _json(*keys: str) -> Callable[[Random, bytes], bytes]:
    return lambda random, data: changed_json(random, json.loads(data), keys)


def _text(*values: str) -> Callable[[Random, bytes], bytes]:
    def change(random: Random, data: bytes) -> bytes:
        return random.choice(values).encode("utf-8", "surrogatepass") if random.random() < 0.7 else changed_bytes(random, data)

    return change


def _files(folder: Path, **changers: Callable[[Random, bytes], bytes]) -> dict[str, tuple[bytes, Any]]:
    return {name: ((folder / name).read_bytes(), changer) for name, changer in changers.items()}


_CONFIG_KEYS = ("head_dim", "rope_scaling", "rope_parameters", "quantization_config", "mlp_bias", "attention_dropout", "rope_theta",
                "max_position_embeddings", "rms_norm_eps", "num_key_value_heads", "dtype", "architectures")  # fmt: skip


def hf_config(folder: Path) -> Target:
    from megatron_patch.model_config import read_hf_config, to_hf_config

    def read(_: Random) -> None:
        config = read_hf_config(folder)
        config.parameter_count(), config.flops_per_token(2048)
        json.loads(json.dumps(to_hf_config(config, dtype="float16"), allow_nan=False))

    (folder / "config.json").write_text(json.dumps(valid.CONFIG))
    return Target(folder, read, _files(folder, **{"config.json": _json(*_CONFIG_KEYS)}))


def described(folder: Path) -> Target:
    """Whatever of a native checkpoint is text: the tracker, model.json, metadata.json, config.json; opened and inspected."""
    from megatron_patch.checkpoint.layout import read_model_description, resolve_checkpoint
    from megatron_patch.checkpoint.source import open_source
    from megatron_patch.cli import inspect

    valid.native(folder / "native")

    def read(random: Random) -> object:
        how = random.randrange(4)
        if how == 0:
            return read_model_description(resolve_checkpoint(folder / "native"))
        if how == 1:
            return open_source(folder / "native") and None
        return inspect.main([str(folder / "native")])

    names = {
        "native/latest_checkpointed_iteration.txt": _text(
            "release", "0", "1", "-1", "٣", "7" * 5000, "1_0", "release\r\n", "\ufeffrelease", "../x", "", "²", "9" * 300, "a\0b", "1e3"
        ),
        "native/release/model.json": _json("format", "model", "dtype"),
        "native/release/metadata.json": _json(),
        "native/config.json": _json(*_CONFIG_KEYS),
    }
    return Target(folder, read, _files(folder, **names))


def distributed(folder: Path) -> Target:
    """`.metadata`, `.distcp` items and common.pt."""
    from megatron_patch.checkpoint.lazy import load
    from megatron_patch.checkpoint.mapping import places
    from megatron_patch.checkpoint.safe_metadata import check_native_folder
    from megatron_patch.checkpoint.source import open_source
    from megatron_patch.cli import inspect

    valid.native(folder / "native")
    release = folder / "native" / "release"

    def read(random: Random) -> object:
        how = random.randrange(3)
        if how == 0:
            check_native_folder(release)
            return None
        if how == 1:
            source = open_source(folder / "native")
            for place in list(places(source.config))[:4]:
                load(source.megatron(place))
            return None
        return inspect.main([str(folder / "native")])

    names: dict[str, Any] = {"native/release/.metadata": _metadata, "native/release/common.pt": changed_zip}
    names |= {str(path.relative_to(folder)): changed_bytes for path in sorted(release.glob("*.distcp"))}
    return Target(folder, read, _files(folder, **names))


def _metadata(random: Random, data: bytes) -> bytes:
    """By opcodes, or one field of the objects set to something else."""
    if random.random() < 0.5:
        return changed_pickle(random, data)
    found = pickle.loads(data)  # our own valid file
    index = random.choice(list(found.storage_data))
    info, entry = found.storage_data[index], random.choice(list(found.state_dict_metadata.values()))
    nasty = random.choice((*INTEGERS, None, "x", [], (), {}, 1.5, float("inf"), "../x", "/etc/passwd", "a" * 300, "x\0y", True, [[[1]]]))
    where = random.randrange(8)
    if where == 0:
        info.relative_path = nasty
    elif where == 1:
        info.offset = nasty
    elif where == 2:
        info.length = nasty
    elif where == 3:
        entry.size = nasty
    elif where == 4 and getattr(entry, "chunks", None):
        setattr(random.choice(entry.chunks), random.choice(("offsets", "sizes")), random.choice((nasty, (nasty, nasty), (nasty,))))
    elif where == 5:
        found.storage_data = nasty
    elif where == 6:
        found.state_dict_metadata[random.choice(list(found.state_dict_metadata))] = nasty
    else:
        found.storage_data[random.choice((nasty if isinstance(nasty, (int, str)) else "k", index))] = nasty
    try:
        return pickle.dumps(found, protocol=4)
    except Exception:  # what cannot be pickled cannot be in a file
        return data


def safetensors(folder: Path) -> Target:
    from megatron_patch.checkpoint.source import open_source

    valid.hf_folder(folder / "one"), valid.hf_folder(folder / "two", shards=True)

    def read(random: Random) -> None:
        for name in ("one", "two"):
            source = open_source(folder / name)
            if random.random() < 0.1:
                source.hf_tensor("model.norm.weight")

    return Target(folder, read, _files(folder, **{"one/model.safetensors": _header, "two/model.safetensors.index.json": _json("weight_map")}))


def _header(random: Random, data: bytes) -> bytes:
    if random.random() < 0.2:
        return changed_bytes(random, data)
    length = struct.unpack("<Q", data[:8])[0]
    header = changed_json(random, json.loads(data[8 : 8 + length]), ("__metadata__", "x"))
    return struct.pack("<Q", random.choice(INTEGERS) & (2**64 - 1) if random.random() < 0.05 else len(header)) + header + data[8 + length :]


def torch_files(folder: Path) -> Target:
    """pytorch_model.bin, model_rng.pt, and torch's format from before 1.6."""
    import torch

    from megatron_patch.checkpoint.source import open_source
    from megatron_patch.cli import inspect

    valid.hf_folder(folder / "bin", binary=True), valid.of_2023(folder / "2023")
    torch.save({"x": torch.ones(3)}, folder / "old.pt", _use_new_zipfile_serialization=False)

    def read(random: Random) -> object:
        if random.random() < 0.3:
            return inspect.main([str(folder / "2023")])
        open_source(folder / "bin"), open_source(folder / "2023")
        return None

    files = {"bin/pytorch_model.bin": changed_zip, "2023/release/mp_rank_00/model_rng.pt": changed_zip}
    target = Target(folder, read, _files(folder, **files))
    old = (folder / "old.pt").read_bytes()
    target.files["bin/pytorch_model.bin"] = target.files["bin/pytorch_model.bin"][0], lambda random, data: (
        changed_zip(random, data) if random.random() < 0.9 else changed_bytes(random, old)
    )
    return target


def tokenizers(folder: Path, fast: bool = False) -> Target:
    """Whatever stands in a tokenizer's folder, tokenizing and rendering with it."""
    from megatron_patch.data.prompts import encoder
    from megatron_patch.data.tokenizer import load_tokenizer

    valid.tokenizer(folder, fast)
    turns = {"messages": [{"role": "user", "content": "to be"}, {"role": "assistant", "content": "or not"}]}

    def read(random: Random) -> None:
        found = load_tokenizer(folder, rows=random.choice((None, 800, 40)))
        ids = found.tokenize("to be</s>") + found.tokenize_marked("not<s> to </s><|im_end|>")
        assert all(isinstance(i, int) and 0 <= i < found.vocab_size for i in (*ids, found.bos, found.eod, found.fill)), "ids outside"
        found.detokenize(ids), found.unique_identifiers, found.token_id("</s>")
        for template in ("alpaca", "llama2-chat", "tokenizer"):
            encoder(template, found)({"instruction": "a", "output": "b"} if template == "alpaca" else turns)

    names: dict[str, Any] = {
        "tokenizer_config.json": _settings,
        "special_tokens_map.json": _json("pad_token", "eos_token"),
        "added_tokens.json": _json("<pad>"),
        "generation_config.json": _json("eos_token_id", "bos_token_id"),
        "tokenizer.json" if fast else "tokenizer.model": _json() if fast else changed_bytes,
    }
    (folder / "chat_template.jinja").write_text(valid.CHAT)
    names["chat_template.jinja"] = lambda random, data: changed_template(random, data.decode()).encode("utf-8", "surrogatepass")
    return Target(folder, read, _files(folder, **names))


def _settings(random: Random, data: bytes) -> bytes:
    content = json.loads(data)
    if random.random() < 0.2:
        content["chat_template"] = random.choice((random.choice(TEMPLATES), [{"name": "default", "template": random.choice(TEMPLATES)}]))
    return changed_json(random, content, ("chat_template", "added_tokens_decoder", "pad_token", "bos_token", "eos_token", "unk_token"))


def indexed(folder: Path) -> Target:
    from megatron_patch.cli import inspect
    from megatron_patch.data.indexed import check_indexed_dataset, lengths_fingerprint

    for end in (".bin", ".idx"):
        (folder / f"c{end}").write_bytes((GOLDEN / "data" / f"corpus_text_document{end}").read_bytes())
    (folder / "c.made").write_text(json.dumps({"counts": {"bad": 0, "empty": 1, "documents": 1}, "made_from": {"files": [["a", 1, 2]]}}))

    def read(random: Random) -> object:
        if random.random() < 0.3:
            return inspect.main([str(folder / "c"), "--samples", "2"])
        data = check_indexed_dataset(folder / "c", 800)
        lengths_fingerprint([folder / "c"])
        documents = [data.document(i) for i in range(len(data.lengths))]
        assert sum(map(len, documents)) == data.tokens and data.boundaries >= 2, "a document is not whole"
        return None

    return Target(folder, read, _files(folder, **{"c.idx": _index, "c.bin": changed_bytes, "c.made": _json("counts", "made_from")}))


def _index(random: Random, data: bytes) -> bytes:
    """One number of the header or of an array changed; with new counts, mostly arrays of that size too."""
    if random.random() < 0.2:
        return changed_bytes(random, data)
    magic, version, code, n, d = struct.unpack("<9sQBQQ", data[:34])
    lengths, offsets, documents = (list(struct.unpack(f"<{count}{kind}", data[at : at + size * count]))
                                   for at, count, kind, size in ((34, n, "i", 4), (34 + 4 * n, n, "q", 8), (34 + 12 * n, d, "q", 8)))  # fmt: skip
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
        return struct.pack(f"<9sQBQQ{len(lengths)}i{len(offsets)}q{len(documents)}q", magic, version, code, n, d, *lengths, *offsets, *documents)
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
    from megatron_patch.data.sft import build_sft_dataset
    from megatron_patch.data.tokenizer import load_tokenizer

    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))[:3]
    data = folder / "d.json"
    data.write_text(json.dumps(records))
    found = load_tokenizer(GOLDEN / "hf_mha")

    def build(**kwargs: Any) -> Any:
        return build_sft_dataset(data, found, pad_len=64, seq_len=64, cache_dir=folder / "cache", **kwargs)

    right = [row["tokens"].tolist() for row in map(build().__getitem__, range(3))]

    (name,) = [f"cache/{path.name}" for path in (folder / "cache").glob("*.bin")]
    body = (folder / name).read_bytes()[4096:]

    def read(_: Random) -> None:
        found = (folder / name).read_bytes()[4096:]
        got = build()
        again = [got[i]["tokens"].tolist() for i in range(len(got))]
        # Tokens of another kind under a checksum that was made for them are nothing that anyone can tell.
        forged = (folder / name).read_bytes()[4096:] == found != body
        assert again == right or forged, "a damaged cache was believed"

    return Target(folder, read, _files(folder, **{name: _cache}))


def _cache(random: Random, data: bytes) -> bytes:
    """Header by its structure, with a checksum that is right, so that what the checksum does not cover is tried too."""
    import zlib

    if random.random() < 0.3:
        return changed_bytes(random, data)
    header, body = json.loads(data[:4096]), data[4096:]
    if random.random() < 0.5:
        return changed_json(random, header).ljust(4095)[:4095] + b"\n" + body
    body = changed_bytes(random, body)
    header |= {"crc": zlib.crc32(body)}
    return json.dumps(header).encode().ljust(4095) + b"\n" + body


def records(folder: Path, tool: str = "finetune") -> Target:
    """Fine-tuning data and preparation's input, as a list and as lines, plain, .gz and .zst."""
    import zstandard

    golden = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))[:4]
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
             {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]  # fmt: skip
    texts = [{"text": "to be or not to be"}, {"content": "a b", "title": "t", "dataType": "x", "id": 1}, {"text": ""}]
    content = {"alpaca": golden, "chat": chats, "texts": texts}

    def change(kind: str, form: str) -> Callable[[Random, bytes], bytes]:
        def changed(random: Random, _: bytes) -> bytes:
            chosen = content[kind]
            if form.startswith("lines"):
                lines = [json.dumps(record).encode() for record in chosen]
                at = random.randrange(len(lines))
                lines[at] = changed_json(random, chosen[at], ("input", "system", "history", "weight", "text", "title"))
                data = random.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)
            else:
                data = changed_json(random, chosen)
            if form.endswith("gz"):
                data = gzip.compress(data, 1)
            if form.endswith("zst"):
                data = zstandard.ZstdCompressor().compress(data)
            return changed_bytes(random, data) if random.random() < 0.15 else data

        return changed

    forms = {"d.json": "list", "d.jsonl": "lines", "d.jsonl.gz": "lines gz", "d.jsonl.zst": "lines zst", "d.json.gz": "list gz"}
    kinds = ("texts",) if tool != "finetune" else ("alpaca", "chat")
    files = {f"{kind}-{name}": (b"", change(kind, form)) for kind in kinds for name, form in forms.items()}
    target = Target(folder, lambda _: None, files)
    target.read = _finetune(folder, target) if tool == "finetune" else _prepare(folder, target)
    return target


def _changed_file(folder: Path) -> Path:
    """The one file that is not empty, or the only one that is there."""
    there = [path for path in folder.iterdir() if path.is_file() and path.stat().st_size]
    return there[0] if there else next(path for path in folder.iterdir() if path.is_file())


def _finetune(folder: Path, _: Target) -> Callable[[Random], object]:
    from megatron_patch.cli import inspect
    from megatron_patch.data.sft import build_sft_dataset
    from megatron_patch.data.tokenizer import load_tokenizer

    model = valid.tokenizer(folder.parent / f"{folder.name}-tokenizer")
    found = load_tokenizer(model)

    def read(random: Random) -> object:
        path = _changed_file(folder)
        if random.random() < 0.1:
            return inspect.main([str(path), "--samples", "1"])
        template = "alpaca" if path.name.startswith("alpaca") else random.choice(("llama2-chat", "tokenizer"))
        made = build_sft_dataset(path, found, pad_len=32, seq_len=64, template=template, packing=random.random() < 0.3)
        for i in range(len(made)):
            made[i]
        return None

    return read


def _prepare(folder: Path, _: Target) -> Callable[[Random], object]:
    from megatron_patch.cli import preprocess

    model = valid.tokenizer(folder.parent / f"{folder.name}-tokenizer")
    out = folder.parent / f"{folder.name}-out"
    out.mkdir()

    def read(random: Random) -> object:
        common = ["--input", str(_changed_file(folder)), "--max-bad-fraction", random.choice(("1", "0.1")), "--overwrite", "--workers", "1"]
        clean = ["--clean", random.choice(("none", "wudao"))]
        if random.random() < 0.3:
            status = preprocess.main([*common, *clean, "--sft-output-dir", str(out / "split")])
        else:
            status = preprocess.main([*common, *clean, "--output-prefix", str(out / "p"), "--tokenizer-folder", str(model)])
        return 2 if status == 1 else status

    return read


def preparation_state(folder: Path) -> Target:
    """What preparation wrote about itself: PREFIX.made, and PREFIX.partial/state.json."""
    from megatron_patch.cli import preprocess

    model = valid.tokenizer(folder / "tokenizer")
    (folder / "in.jsonl").write_bytes((GOLDEN / "data" / "corpus.jsonl").read_bytes())
    argv = ["--input", str(folder / "in.jsonl"), "--output-prefix", str(folder / "p"), "--tokenizer-folder", str(model), "--workers", "1"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert preprocess.main(argv) == 0
    made = (folder / "p.made").read_bytes()
    begun = json.dumps({"made_from": json.loads(made)["made_from"], "counts": {**json.loads(made)["counts"], "documents": 0}}).encode()
    state = folder / "p.partial"

    def read(random: Random) -> object:
        status = preprocess.main([*argv, "--overwrite"] if (state / "state.json").is_file() else argv)
        for path in state.iterdir() if state.is_dir() else ():
            path.unlink()
        state.mkdir(exist_ok=True)
        for end in (".bin", ".idx", ".made"):
            (folder / f"p{end}").write_bytes(pair[end])
        return 2 if status == 1 else status

    state.mkdir(exist_ok=True)
    pair = {end: (folder / f"p{end}").read_bytes() for end in (".bin", ".idx", ".made")}
    files: dict[str, Any] = {"p.made": (made, _json("counts", "made_from")), "p.partial/state.json": (begun, _json("counts", "made_from"))}
    target = Target(folder, read, files)
    target.restore = lambda names: None  # type: ignore[method-assign]  `read` does
    return target


def run_config(folder: Path) -> Target:
    """A run's own tracker and run_config.json."""
    from megatron_patch.checkpoint.own_run import own_checkpoint, with_recorded_load
    from tests.tiny import tiny_config

    config = tiny_config(output_path=str(folder))
    root = Path(config.checkpoint_folder)
    (root / "iter_0000004").mkdir(parents=True)
    (root / "iter_0000004" / "run_config.json").write_text(json.dumps(config.as_dict()))
    (root / "latest_checkpointed_iteration.txt").write_text("4")

    def read(_: Random) -> None:
        found = own_checkpoint(config)
        if found is not None:
            load = with_recorded_load(config, found).load
            assert load is None or isinstance(load, str), f"load is {load!r}"

    place = root.relative_to(folder)
    names = {
        f"{place}/iter_0000004/run_config.json": _json("options", "load", "model"),
        f"{place}/latest_checkpointed_iteration.txt": _text("release", "4\r\n", "٤", "4" * 5000, "", "0", "4 4", "-4", "\ud800", "4.0", "x" * 300),
    }
    return Target(folder, read, _files(folder, **names))


READERS: dict[str, Callable[[Path], Target]] = {
    "config.json": hf_config,
    "checkpoint-texts": described,
    "metadata-and-items": distributed,
    "safetensors": safetensors,
    "torch-files": torch_files,
    "tokenizer.model": tokenizers,
    "tokenizer.json": lambda folder: tokenizers(folder, fast=True),
    "indexed": indexed,
    "token-cache": token_cache,
    "fine-tuning-data": records,
    "preparation-input": lambda folder: records(folder, "prepare"),
    "preparation-state": preparation_state,
    "run-config": run_config,
}
