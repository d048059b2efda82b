"""A run's own last checkpoint, and whether the run that wrote it was this one. Imports no torch."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_patch.arguments import is_whole
from megatron_patch.checkpoint.layout import iteration_folder, read_tracker
from megatron_patch.config import TrainConfig
from megatron_patch.data_paths import is_json
from megatron_patch.errors import UserError
from megatron_patch.json_files import json_object, one_line, shown

# What may differ when a run goes on: where it runs and what it tells, but nothing that decides what is learnt next.
_FREE = {"output_path", "tensor_model_parallel_size", "pipeline_model_parallel_size", "sequence_parallel"}
_FREE |= {"use_flash_attn", "recompute", "save_interval", "micro_batch_size"}
_DECISIVE_OPTIONS = {"seed", "split", "template", "packing", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps", "clip_grad"}


def own_checkpoint(config: TrainConfig) -> Path | None:
    """The run's own last finished checkpoint, which it goes on from; None at its first start.

    Raises:
        ValueError: the tracker names a folder that is not there.
    """
    root = Path(config.checkpoint_folder)
    tracker = read_tracker(root)
    if tracker is None:
        return None
    if not is_whole(tracker):
        raise ValueError(
            f"{root}/latest_checkpointed_iteration.txt says {tracker!r}, which no training run writes there; "
            "write another OUTPUT_BASEPATH, or remove what is in that folder."
        )
    folder = iteration_folder(root, int(tracker))
    if not folder.is_dir():
        raise ValueError(
            f"{root}/latest_checkpointed_iteration.txt says {tracker}, and there is no {folder.name}; "
            "remove that file to start anew."
        )
    _check_same_run(config, folder)
    return folder


def _check_same_run(config: TrainConfig, folder: Path) -> None:
    """The names of runs do not hold every argument; this compares the rest with what the checkpoint recorded.

    Raises:
        ValueError: the folder belongs to a run that learns something else.
    """
    path = folder / "run_config.json"
    if not path.is_file():
        return
    before, now = _recorded(path), json.loads(json.dumps(config.as_dict()))
    # A checkpoint of an earlier version lacks what has been added since.
    pairs = [(name, before[name], now[name]) for name in now if name not in _FREE | {"options"} and name in before]
    decisive = _DECISIVE_OPTIONS | ({"tokenizer_path"} if is_json(config.train_data_path) else set())
    pairs += [(name, before["options"].get(name), now["options"][name]) for name in sorted(decisive)]
    different = [f"{name} was {one_line(repr(old))} and is {new!r}" for name, old, new in pairs if not _same(name, old, new)]
    if different:
        raise ValueError(
            f"{folder.parent} holds a run of the same name with other arguments: {'; '.join(different)}. "
            "Write another OUTPUT_BASEPATH, or the arguments of that run to go on with it."
        )


def _recorded(path: Path) -> dict[str, Any]:
    """A run_config.json, whose `options` and `load` are used as what they are.

    Raises:
        UserError: it is no JSON object, or these are of another kind; the sentence names the file.
    """
    content = json_object(path)
    for name, kind, what in (("options", dict, "an object"), ("load", (str, type(None)), "a folder or null")):
        if not isinstance(content.get(name, kind() if kind is dict else None), kind):
            got = shown(content[name])
            raise UserError(f"{path}: {name} is {got}, where a run writes {what}; remove that checkpoint, or copy it again.")
    return {"options": {}, **content}


def _same(name: str, old: object, new: object) -> bool:
    """Folders are the same by any path; without one, a run goes on with the model and the tokenizer of its own checkpoints."""
    if name in ("load", "tokenizer_path") and old and new:
        return os.path.realpath(str(old)) == os.path.realpath(str(new))
    return old == new or (name == "load" and new is None) or name == "tokenizer_path"


def with_recorded_load(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration of a run that goes on from `folder`: started again with `none`, it still began with its model."""
    path = folder / "run_config.json"
    if config.load is not None or not path.is_file():
        return config
    return replace(config, load=_recorded(path).get("load"))
