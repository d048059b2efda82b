"""Where things lie in a checkpoint folder, and the description that stands beside the weights. Imports no torch.

    ROOT/latest_checkpointed_iteration.txt    "release" (converted) or the number of the last finished iteration
    ROOT/config.json, tokenizer files          the Hugging Face ones
    ROOT/release/ or ROOT/iter_0000100/        one state: torch_dist files and model.json, or the 2023 layout
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import megatron_patch
from megatron_patch.model_config import LlamaConfig

TRACKER = "latest_checkpointed_iteration.txt"
DESCRIPTION = "model.json"
FORMAT = 1


@dataclass(frozen=True)
class ModelDescription:
    """model.json: what the weights beside it are. `dtype` is `float16`, `bfloat16` or `float32`."""

    model: LlamaConfig
    extra_vocab_size: int
    dtype: str
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int


@dataclass(frozen=True)
class CheckpointLocation:
    """A state found on disk. `iteration` None is `release`; `kind` is `native` or `megatron_2023`."""

    root: Path
    folder: Path
    iteration: int | None
    kind: str


def iteration_folder(root: str | Path, iteration: int | None) -> Path:
    """ROOT/release for None, else ROOT/iter_0000100."""
    return Path(root) / ("release" if iteration is None else f"iter_{iteration:07d}")


def read_tracker(root: str | Path) -> str | None:
    """What the tracker file says, `release` or digits; None where there is none.

    Raises:
        ValueError: it says something else.
    """
    path = Path(root) / TRACKER
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    if text != "release" and not text.isdigit():
        raise ValueError(f"{path} says '{text}'; it must hold 'release' or the number of an iteration.")
    return text


def write_tracker(root: str | Path, value: str) -> None:
    """Replace the tracker file at once and durably; `value` is `release` or digits."""
    path = Path(root) / TRACKER
    partial = path.with_name(TRACKER + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve_checkpoint(path: str | Path) -> CheckpointLocation:
    """The state that `path` names: a root (its tracker decides), or one iteration's folder in a root.

    Raises:
        ValueError: there is no checkpoint there, or not the one that the tracker names.
    """
    path = Path(path)
    tracker = read_tracker(path) if path.is_dir() else None
    if tracker is not None:
        iteration = None if tracker == "release" else int(tracker)
        return _located(path, iteration_folder(path, iteration), iteration)
    name = path.name
    if path.is_dir() and (name == "release" or (name.startswith("iter_") and name[5:].isdigit())):
        return _located(path.parent, path, None if name == "release" else int(name[5:]))
    raise ValueError(
        f"{path} is no checkpoint: it has no {TRACKER}, and its name is neither release nor iter_0000100. "
        "Write the folder that holds that file, or one iteration's folder in it."
    )


def _located(root: Path, folder: Path, iteration: int | None) -> CheckpointLocation:
    if (folder / "metadata.json").is_file() and (folder / ".metadata").is_file():
        return CheckpointLocation(root, folder, iteration, "native")
    if any(folder.glob("mp_rank_*/model*_rng.pt")):
        return CheckpointLocation(root, folder, iteration, "megatron_2023")
    what = "does not exist" if not folder.is_dir() else "holds neither torch_dist files nor mp_rank_* folders"
    raise ValueError(f"{folder} {what}; the checkpoint in {root} is not complete.")


def write_model_description(folder: str | Path, description: ModelDescription) -> None:
    """Write model.json into one state's folder."""
    content = {
        "format": FORMAT,
        **asdict(description),
        "megatron_core": importlib.metadata.version("megatron-core"),
        "megatron_patch": megatron_patch.__version__,
    }
    (Path(folder) / DESCRIPTION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_model_description(location: CheckpointLocation) -> ModelDescription | None:
    """The model.json of a state; None where it has none (the 2023 layout, foreign checkpoints).

    Raises:
        ValueError: it is damaged, or of a later format.
    """
    path = location.folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']}; this version reads format {FORMAT}.")
        return ModelDescription(
            model=LlamaConfig(**content["model"]),
            extra_vocab_size=int(content["extra_vocab_size"]),
            dtype=content["dtype"],
            tensor_model_parallel_size=int(content["tensor_model_parallel_size"]),
            pipeline_model_parallel_size=int(content["pipeline_model_parallel_size"]),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); convert or save the checkpoint again.") from None
