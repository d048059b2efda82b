"""Which files of a Hugging Face folder hold its weights, and what a folder without any is. Imports no torch."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.folders.tracker import TRACKER
from megatron_patch.formats.json_files import json_object, shown
from megatron_patch.formats.placeholders import placeholder_finding, refuse_placeholder

PARAMS = "params.json"  # beside Meta's consolidated.NN.pth
_SHARD = re.compile(r"(?P<stem>model|pytorch_model)-(?P<number>[0-9]{5})-of-(?P<total>[0-9]{5})(?P<ending>\.safetensors|\.bin)")
_INDEX = ".index.json"
# In the order of preference. Of each kind an index first, since a folder with shards may have other files beside it.
_KINDS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_COPY = "copy the folder again"

_SAVE = "load it with transformers where it can be loaded, and write it with save_pretrained(FOLDER)"
# (what a file's name matches, what such a folder is and what to do)
_OTHER_WEIGHTS = (
    ("*.gguf", "GGUF files, llama.cpp's quantized form, from which no training goes on: take the model's own folder"),
    ("*.ggml*", "GGML files, llama.cpp's old quantized form, from which no training goes on: take the model's own folder"),
    ("tf_model*.h5", f"TensorFlow's weights: {_SAVE}"),
    ("flax_model*.msgpack", f"Flax's weights: {_SAVE}"),
    ("*.ckpt", "a .ckpt, as other training programs write it: export a Hugging Face folder with that program"),
    ("*.pt", "a .pt, as other training programs write it: export a Hugging Face folder with that program"),
    ("*.onnx", "an ONNX model, from which no training goes on: take the model's own folder"),
)


@dataclass(frozen=True)
class HFWeights:
    """Where a folder's weights are.

    Attributes:
        files: every file that holds weights.
        where: tensor → file's name, as the index has it; None without an index, where the files themselves tell.
        source: what a sentence names: the index, the single file, or the folder.
        notes: what the user should know, one sentence each.
    """

    files: tuple[Path, ...]
    where: dict[str, str] | None
    source: Path  # the index, the single file, or the folder: what a sentence names
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    name: str  # how a sentence calls it
    weights: HFWeights
    missing: tuple[str, ...]


def is_hf_folder(path: Path) -> bool:
    """Whether `path` is meant as a Hugging Face folder, readable or not.

    It must hold nothing of Megatron's, and anything of a model's.
    """
    if not path.is_dir() or any((path / name).exists() for name in (TRACKER, ".metadata", "release")):
        return False
    if any(path.glob("mp_rank_[0-9][0-9]*")) or any(path.glob("iter_[0-9]*")):
        return False
    names = ("config.json", "adapter_config.json")
    return any((path / name).is_file() for name in names) or any(_candidate_names(path)) or _other_weights(path) is not None


def is_meta_folder(path: Path) -> bool:
    """Whether `path` is a folder as Meta publishes it: params.json or consolidated files, no Hugging Face weights."""
    there = (path / PARAMS).is_file() or any(path.glob("consolidated.[0-9]*.pth"))
    return there and not any(_candidate_names(path))


def meta_companions(folder: Path) -> list[Path]:
    """What stands beside Meta's weights: config.json, if a user has added one, and the tokenizer.

    Meta puts the tokenizer one folder up.
    """
    own = [folder / name for name in ("config.json", "tokenizer.model") if (folder / name).is_file()]
    above = folder.absolute().parent / "tokenizer.model"
    return own if folder / "tokenizer.model" in own or not above.is_file() else [*own, above]


def _candidate_names(folder: Path) -> Iterable[str]:
    singles = {stem + ending for stem, ending in _KINDS}
    for path in folder.iterdir():
        if path.name in singles or path.name.removesuffix(_INDEX) in singles or _SHARD.fullmatch(path.name):
            yield path.name


def find_weights(folder: Path) -> HFWeights:
    """The complete weights of `folder`, safetensors first; what was passed over is in the notes.

    Raises:
        UserError: nothing complete is there; the message says what is, what is missing, and what to do.
    """
    candidates = [one for stem, ending in _KINDS for one in _candidates(folder, stem, ending)]
    _check_quantized(folder)
    if not candidates:
        raise UserError(_no_weights(folder))
    complete = [one for one in candidates if not one.missing]
    if not complete:
        raise UserError(_missing(folder, candidates))
    pointers = {one.name: finding for one in complete if (finding := _placeholder(one))}
    readable = [one for one in complete if one.name not in pointers]
    if not readable:
        raise UserError(next(iter(pointers.values())))
    chosen = readable[0]
    twins = [one.name for one in readable if one.weights.source == folder and _ending(one) == _ending(chosen)]
    if chosen.name in twins and len(twins) > 1:
        raise UserError(f"{folder} holds two models' shards without an index, {' and '.join(twins)}: remove those of one.")
    notes = [f"{one.name} names files that are not there and was passed over." for one in candidates if one.missing]
    notes += [f"{name} was passed over: {finding}" for name, finding in pointers.items()]
    notes += [f"{one.name} was not read." for one in readable[1:]]
    if (folder / "adapter_config.json").is_file():
        notes.append(
            "The adapter beside the weights (adapter_config.json) was not merged; to have it, move it into a folder of its "
            f"own, and convert that with --base {folder}."
        )
    if notes:
        notes.insert(0, f"The weights were read from {chosen.name}.")
    return HFWeights(chosen.weights.files, chosen.weights.where, chosen.weights.source, tuple(notes))


def holds_weights(folder: Path) -> bool:
    """Whether `folder` has files of a whole model's weights, complete or not."""
    return folder.is_dir() and any(_candidate_names(folder))


def _placeholder(one: _Candidate) -> str | None:
    return next(filter(None, map(placeholder_finding, one.weights.files)), None)


def _ending(one: _Candidate) -> str:
    return one.weights.files[0].suffix


def _candidates(folder: Path, stem: str, ending: str) -> Iterable[_Candidate]:
    """The sets of weights of one kind that `folder` has: an index, the single file, or shards that no index names."""
    single, index = folder / (stem + ending), folder / (stem + ending + _INDEX)
    indexed: set[str] = set()
    if index.is_file():
        where = _weight_map(index)
        indexed = set(where.values())
        names = sorted(indexed)
        # os.path and not pathlib, which raises where a name is longer than a name may be.
        missing = tuple(name for name in names if not os.path.isfile(folder / name))
        yield _Candidate(index.name, HFWeights(tuple(folder / name for name in names), where, index), missing)
    if single.is_file():
        yield _Candidate(single.name, HFWeights((single,), None, single), ())
    for one in _unindexed(folder, stem, ending):
        if not indexed.intersection(path.name for path in one.weights.files):
            yield one


def _unindexed(folder: Path, stem: str, ending: str) -> Iterable[_Candidate]:
    """Shards without an index: their names say how many there are, and their headers which tensors they hold."""
    sets: dict[int, set[int]] = defaultdict(set)
    for path in folder.iterdir():
        match = _SHARD.fullmatch(path.name)
        if not match or (match["stem"], match["ending"]) != (stem, ending) or not path.is_file():
            continue
        if 1 <= int(match["number"]) <= int(match["total"]):
            sets[int(match["total"])].add(int(match["number"]))
    for total, numbers in sorted(sets.items()):
        # A name can claim any number; more than is there several times over is not listed one by one.
        wanted = range(1, min(total, 10 * len(numbers) + 10) + 1)
        files = tuple(folder / f"{stem}-{number:05d}-of-{total:05d}{ending}" for number in wanted)
        missing = tuple(path.name for path in files if not path.is_file())
        yield _Candidate(f"{stem}-*-of-{total:05d}{ending}", HFWeights(files, None, folder), missing)


def _weight_map(index: Path) -> dict[str, str]:
    """From tensor to file, as the index has it.

    Raises:
        UserError: it is no index, or names a file outside its folder.
    """
    refuse_placeholder(index)
    try:
        content = json_object(index)["weight_map"]
    except UserError as error:
        raise UserError(f"{index.name} is no index of shards: {error}") from None
    except KeyError:
        raise UserError(f"{index} is no index of shards: it has no weight_map; {_COPY}.") from None
    if not isinstance(content, dict) or not content or not all(isinstance(file, str) for file in content.values()):
        raise UserError(f"{index} is no index of shards: its weight_map must name a file for each tensor; {_COPY}.")
    for name in content.values():
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"{index} names the shard {shown(name)}, which is no plain file name; it was refused.")
    return content


def _missing(folder: Path, candidates: list[_Candidate]) -> str:
    """A sentence that names the files that each incomplete set lacks."""
    said = []
    for one in candidates:
        names = ", ".join(one.missing[:6]) + (f" and {len(one.missing) - 6} more" if len(one.missing) > 6 else "")
        said.append(f"{names} {'is' if len(one.missing) == 1 else 'are'} missing, and {one.name} names {_them(one.missing)}")
    return f"{folder}: {'; '.join(said)}; {_COPY}."


def _them(names: tuple[str, ...]) -> str:
    return "it" if len(names) == 1 else "them"


def _no_weights(folder: Path) -> str:
    """A sentence that says what a folder without readable weights is, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return f"{folder} holds an adapter, no whole model: merge it into its base first, with {_merge(folder)}"
    if (folder / "consolidated.00.pth").is_file() or (folder / PARAMS).is_file():
        return f"{folder} holds Meta's files, but not both consolidated.00.pth and {PARAMS}; {_COPY}."
    other = _other_weights(folder)
    if other:
        return f"{folder} holds {other}."
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth"))
    named = ", ".join(f"{stem}{ending}" for stem, ending in _KINDS)
    verb, what = ("has", "it") if len(others) == 1 else ("have", "them")
    hint = f" {', '.join(others[:4])} {verb} another name: rename {what}." if others else ""
    return f"{folder} holds no weights: {named}, or shards of these with their index must be there.{hint}"


def _other_weights(folder: Path) -> str | None:
    """Weights in `folder` of a kind that is not read here, and what to do; None if there are none."""
    for pattern, sentence in _OTHER_WEIGHTS:
        found = sorted(path.name for path in folder.glob(pattern) if path.is_file())
        if found:
            return f"{sentence} ({found[0]} is there)"
    return None


def _merge(folder: Path) -> str:
    """The shell command that merges an adapter. A path that a shell would read otherwise is left to be filled in."""
    source = str(folder) if re.fullmatch(r"[\w./+-]+", str(folder)) else "FOLDER"
    return " ".join(("model_convertor.sh", "none", source, f"{source}-merged", "1", "1", "auto", "0", "true"))


def snapshot_finding(folder: Path) -> str | None:
    """Where the model itself is, if `folder` is one of the Hugging Face cache (models--OWNER--NAME)."""
    found = sorted(path.parent for path in folder.glob("snapshots/*/config.json"))
    return f"it is a folder of the Hugging Face cache: write {found[-1]}." if found else None


def _check_quantized(folder: Path) -> None:
    """Raise for a model of AutoGPTQ or AutoAWQ, which mark it with a file of their own.

    A mark in config.json is found where that is read.
    """
    for name, method in (("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")):
        if (folder / name).is_file():
            raise UserError(
                f"{folder} holds a model that {method} quantized ({name} is there), from which no training goes on: "
                "take the folder that it was made from, with float16 or bfloat16 weights."
            )


def holds_tokenizer(folder: Path | None) -> bool:
    """Whether one of the files that `data.tokenizer` reads is there."""
    return folder is not None and any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
