"""Readers of JSON data, for fine-tuning and for preparation, and of what preparation writes about itself."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import valid
from tests.fuzz.mutate import changed_bytes, changed_json
from tests.fuzz.target import Target, json_with
from tests.launching import GOLDEN


def records(folder: Path, tool: str = "finetune") -> Target:
    """Fine-tuning data and preparation's input, as a list and as lines, plain, .gz and .zst, and as .parquet."""
    import pyarrow
    import pyarrow.parquet
    import zstandard

    golden = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))[:4]
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
             {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                                {"from": "gpt", "value": "b"}]}]  # fmt: skip
    texts = [{"text": "to be or not to be"}, {"content": "a b", "title": "t", "dataType": "x", "id": 1}, {"text": ""}]
    content = {"alpaca": golden, "chat": chats, "texts": texts}

    def change(kind: str, form: str) -> Callable[[Random, bytes], bytes]:
        def changed(random: Random, _: bytes) -> bytes:
            chosen = content[kind]
            if form == "table":
                made = io.BytesIO()
                rows = [{"text": record.get("text"), "content": random.choice(("a b", None))} for record in chosen] * 50
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made, row_group_size=40)
                return changed_bytes(random, made.getvalue())
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
    forms |= {} if tool == "finetune" else {"d.parquet": "table"}
    kinds = ("texts",) if tool != "finetune" else ("alpaca", "chat")
    files = {f"{kind}-{name}": (b"", change(kind, form)) for kind in kinds for name, form in forms.items()}
    target = Target(folder, lambda _: None, files)
    target.read = _finetune(folder, target) if tool == "finetune" else _prepare(folder, target)
    return target


def _changed_file(folder: Path) -> Path:
    """The file that was changed: the one that is not empty, or the only one that is there."""
    there = [path for path in folder.iterdir() if path.is_file() and path.stat().st_size]
    return there[0] if there else next(path for path in folder.iterdir() if path.is_file())


def _finetune(folder: Path, _: Target) -> Callable[[Random], object]:
    from megatron_patch.cli import inspection as inspect
    from megatron_patch.data.json_dataset import build_json_dataset
    from megatron_patch.data.tokenizer import load_tokenizer

    model = valid.tokenizer(folder.parent / f"{folder.name}-tokenizer")
    found = load_tokenizer(model)

    def read(random: Random) -> object:
        path = _changed_file(folder)
        if random.random() < 0.1:
            return inspect.main([str(path), "--samples", "1"])
        template = "alpaca" if path.name.startswith("alpaca") else random.choice(("llama2-chat", "tokenizer"))
        made = build_json_dataset(path, found, pad_len=32, seq_len=64, template=template, packing=random.random() < 0.3)
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
        common = [
            "--input",
            str(_changed_file(folder)),
            "--max-bad-fraction",
            random.choice(("1", "0.1")),
            "--overwrite",
            "--workers",
            "1",
        ]
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
    argv = [
        "--input",
        str(folder / "in.jsonl"),
        "--output-prefix",
        str(folder / "p"),
        "--tokenizer-folder",
        str(model),
        "--workers",
        "1",
    ]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert preprocess.main(argv) == 0
    made = (folder / "p.made").read_bytes()
    begun = json.dumps(
        {"made_from": json.loads(made)["made_from"], "counts": {**json.loads(made)["counts"], "documents": 0}}
    ).encode()
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
    files: dict[str, Any] = {
        "p.made": (made, json_with("counts", "made_from")),
        "p.partial/state.json": (begun, json_with("counts", "made_from")),
    }
    target = Target(folder, read, files)
    target.restore = lambda names: None  # type: ignore[method-assign]  `read` does
    return target
