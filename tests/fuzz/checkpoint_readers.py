"""Readers of models: config.json, what describes a checkpoint and a run, and the files with weights."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import valid
from tests.fuzz.mutate import INTEGERS, changed_bytes, changed_json, changed_pickle, changed_zip
from tests.fuzz.target import Target, files_of, json_with, text_of

_CONFIG_KEYS = ("head_dim", "rope_scaling", "rope_parameters", "quantization_config", "mlp_bias", "attention_dropout",
"rope_theta",
                "max_position_embeddings", "rms_norm_eps", "num_key_value_heads", "dtype", "architectures")  # fmt: skip

_ADAPTER_KEYS = ("alpha_pattern", "lora_alpha", "lora_dropout", "modules_to_save", "r", "target_modules", "use_rslora")


def hf_config(folder: Path) -> Target:
    from megatron_patch.llama.model_config import read_hf_config, to_hf_config

    def read(_: Random) -> None:
        config = read_hf_config(folder)
        config.parameter_count(), config.flops_per_token(2048)
        json.loads(json.dumps(to_hf_config(config, dtype="float16"), allow_nan=False))

    (folder / "config.json").write_text(json.dumps(valid.CONFIG))
    return Target(folder, read, files_of(folder, **{"config.json": json_with(*_CONFIG_KEYS)}))


def described(folder: Path) -> Target:
    """A native checkpoint's text files: tracker, model.json, metadata.json, config.json. It is opened and inspected."""
    from megatron_patch.cli import inspection as inspect
    from megatron_patch.folders.layout import read_model_description, resolve_checkpoint
    from megatron_patch.weights.source import open_source

    valid.native(folder / "native")
    release = folder / "native" / "release"
    listed = [path.name for path in release.glob("*.distcp")]
    (release / "nodes.json").write_text(json.dumps({"format": 1, "nodes": [{"host": "a", "files": listed}]}))

    def read(random: Random) -> object:
        how = random.randrange(4)
        if how == 0:
            return read_model_description(resolve_checkpoint(folder / "native"))
        if how == 1:
            return open_source(folder / "native") and None
        return inspect.main([str(folder / "native")])

    names = {
        "native/latest_checkpointed_iteration.txt": text_of(
            "release",
            "0",
            "1",
            "-1",
            "٣",
            "7" * 5000,
            "1_0",
            "release\r\n",
            "\ufeffrelease",
            "../x",
            "",
            "²",
            "9" * 300,
            "a\0b",
            "1e3",
        ),
        "native/release/model.json": json_with("format", "model", "dtype"),
        "native/release/metadata.json": json_with(),
        "native/release/nodes.json": json_with("nodes"),
        "native/config.json": json_with(*_CONFIG_KEYS),
    }
    return Target(folder, read, files_of(folder, **names))


def distributed(folder: Path) -> Target:
    """`.metadata`, `.distcp` items and common.pt."""
    from megatron_patch.cli import inspection as inspect
    from megatron_patch.formats.distcp_metadata import read_dcp_metadata
    from megatron_patch.formats.lazy import load
    from megatron_patch.weights.source import open_source
    from megatron_patch.weights.table import places

    valid.native(folder / "native")
    release = folder / "native" / "release"

    def read(random: Random) -> object:
        how = random.randrange(3)
        if how == 0:
            read_dcp_metadata(release)
            return None
        if how == 1:
            source = open_source(folder / "native")
            for place in list(places(source.config))[:4]:
                load(source.megatron(place))
            return None
        return inspect.main([str(folder / "native")])

    names: dict[str, Any] = {"native/release/.metadata": _metadata, "native/release/common.pt": changed_zip}
    names |= {str(path.relative_to(folder)): changed_bytes for path in sorted(release.glob("*.distcp"))}
    return Target(folder, read, files_of(folder, **names))


def _metadata(random: Random, data: bytes) -> bytes:
    """Change `.metadata` by its opcodes, or set one field of its objects to something else."""
    if random.random() < 0.5:
        return changed_pickle(random, data)
    found = pickle.loads(data)  # our own valid file
    index = random.choice(list(found.storage_data))
    info, entry = found.storage_data[index], random.choice(list(found.state_dict_metadata.values()))
    nasty = random.choice(
        (*INTEGERS, None, "x", [], (), {}, 1.5, float("inf"), "../x", "/etc/passwd", "a" * 300, "x\0y", True, [[[1]]])
    )
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
        setattr(
            random.choice(entry.chunks), random.choice(("offsets", "sizes")), random.choice((nasty, (nasty, nasty), (nasty,)))
        )
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
    from megatron_patch.weights.source import open_source
    from tests.weights.models import hf_tensor

    valid.hf_folder(folder / "one"), valid.hf_folder(folder / "two", shards=True)

    def read(random: Random) -> None:
        for name in ("one", "two"):
            source = open_source(folder / name)
            if random.random() < 0.1:
                hf_tensor(source, "model.norm.weight")

    return Target(
        folder,
        read,
        files_of(folder, **{"one/model.safetensors": _header, "two/model.safetensors.index.json": json_with("weight_map")}),
    )


def _header(random: Random, data: bytes) -> bytes:
    if random.random() < 0.2:
        return changed_bytes(random, data)
    length = struct.unpack("<Q", data[:8])[0]
    header = changed_json(random, json.loads(data[8 : 8 + length]), ("__metadata__", "x"))
    return (
        struct.pack("<Q", random.choice(INTEGERS) & (2**64 - 1) if random.random() < 0.05 else len(header))
        + header
        + data[8 + length :]
    )


def torch_files(folder: Path) -> Target:
    """pytorch_model.bin, model_rng.pt, and torch's format from before 1.6."""
    import torch

    from megatron_patch.cli import inspection as inspect
    from megatron_patch.weights.source import open_source

    valid.hf_folder(folder / "bin", binary=True), valid.of_2023(folder / "2023")
    torch.save({"x": torch.ones(3)}, folder / "old.pt", _use_new_zipfile_serialization=False)

    def read(random: Random) -> object:
        if random.random() < 0.3:
            return inspect.main([str(folder / "2023")])
        open_source(folder / "bin"), open_source(folder / "2023")
        return None

    files = {"bin/pytorch_model.bin": changed_zip, "2023/release/mp_rank_00/model_rng.pt": changed_zip}
    target = Target(folder, read, files_of(folder, **files))
    old = (folder / "old.pt").read_bytes()
    target.files["bin/pytorch_model.bin"] = (
        target.files["bin/pytorch_model.bin"][0],
        lambda random, data: changed_zip(random, data) if random.random() < 0.9 else changed_bytes(random, old),
    )
    return target


def adapters(folder: Path) -> Target:
    """PEFT's folders, of today and of before: merged, written alone, inspected."""
    from megatron_patch.arguments.conversion import Conversion
    from megatron_patch.cli import inspection as inspect
    from megatron_patch.conversion.convert import convert, prepared
    from megatron_patch.formats.lazy import load
    from megatron_patch.formats.peft_adapter import modules_of, read_config
    from megatron_patch.weights.table import BY_KEY, QKV, Place

    base = valid.hf_folder(folder / "base")
    valid.adapter(folder / "new", base), valid.adapter(folder / "old", base, binary=True)

    def read(random: Random) -> object:
        name, how = random.choice(("new", "old")), random.choice((0, 1, 1, 2, 2, 2, 3))
        if how == 0:
            return inspect.main([str(folder / name)])
        if how == 1:
            read_config(folder / name), modules_of(folder / "new")
        elif how == 2:
            load(prepared(Conversion(folder / name, folder / "merged", to_hf=True)).megatron(Place(BY_KEY[QKV], 0)))
        else:
            convert(Conversion(folder / name, folder / "alone", to_hf=True, adapter_only=True))
            shutil.rmtree(folder / "alone")
        return None

    names: dict[str, Any] = {f"{name}/adapter_config.json": json_with(*_ADAPTER_KEYS) for name in ("new", "old")}
    names |= {"new/adapter_model.safetensors": _header, "old/adapter_model.bin": changed_zip}
    return Target(folder, read, files_of(folder, **names))


def run_config(folder: Path) -> Target:
    """A run's own tracker and run_config.json."""
    from megatron_patch.folders.other_runs import offers
    from megatron_patch.folders.starting_point import find_start
    from tests.tiny import tiny_config

    config = tiny_config(output_path=str(folder))
    root = Path(config.checkpoint_folder)
    (root / "iter_0000004").mkdir(parents=True)
    (root / "iter_0000004" / "run_config.json").write_text(json.dumps(config.as_dict()))
    (root / "latest_checkpointed_iteration.txt").write_text("4")

    def read(_: Random) -> None:
        start = find_start(config)
        assert start.config.load is None or isinstance(start.config.load, str), f"load is {start.config.load!r}"
        offers(replace(config, name="another"), start.origin)  # which meets the same files as those of a run beside it

    place = root.relative_to(folder)
    names = {
        f"{place}/iter_0000004/run_config.json": json_with("options", "load", "model"),
        f"{place}/latest_checkpointed_iteration.txt": text_of(
            "release", "4\r\n", "٤", "4" * 5000, "", "0", "4 4", "-4", "\ud800", "4.0", "x" * 300
        ),
    }
    return Target(folder, read, files_of(folder, **names))
