"""Which adapter a path means, and over which model's folder it was made. Imports no torch.

PEFT saves an adapter as FOLDER/adapter_config.json and FOLDER/adapter_model.safetensors. A LoRA run's checkpoint keeps
such a folder as ROOT/iter_0000100/adapter.
"""

from __future__ import annotations

from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import holds_weights
from megatron_patch.folders.layout import CORE_METADATA, iteration_folder
from megatron_patch.folders.tracker import RELEASE, TRACKER, read_tracker
from megatron_patch.formats.json_files import shown
from megatron_patch.formats.peft_adapter import CONFIG, is_adapter_folder, read_config
from megatron_patch.formats.typed import path_problem

ADAPTER = "adapter"  # beside the other files of a LoRA run's iteration


def find_adapter(path: Path) -> Path | None:
    """PEFT's folder that `path` means: itself, or that of a LoRA run's checkpoint; None where it holds no adapter.

    A folder with an adapter beside a whole model's weights, or in a folder below them, is the model's.

    Raises:
        UserError: the tracker of a checkpoint is damaged.
    """
    if holds_weights(path):
        return None
    for folder in (path, path / ADAPTER):
        if is_adapter_folder(folder):
            return folder
    if not (path / TRACKER).is_file():
        return None
    tracker = read_tracker(path)
    inside = iteration_folder(path, None if tracker in (None, RELEASE) else int(str(tracker))) / ADAPTER
    return inside if is_adapter_folder(inside) else None


def base_of(adapter: Path, given: Path | None = None) -> Path:
    """The folder of the model that `adapter` was made over: `given`, or what adapter_config.json names.

    A run over random weights names none; its checkpoint holds them beside the adapter.

    Raises:
        UserError: there is no such folder, or it holds another adapter; or adapter_config.json cannot be read.
    """
    if given is not None:
        if not given.is_dir():
            raise UserError("there is no such folder: write that of the model that the adapter was made over.")
        base = given
    else:
        name = read_config(adapter).base
        if not name and adapter.name == ADAPTER and (adapter.parent / CORE_METADATA).is_file():
            return adapter.parent
        if not name:
            raise UserError(f"{adapter / CONFIG} names no base: write --base and the folder of the model that it was made over.")
        if path_problem(name) or not Path(name).is_dir():
            raise UserError(
                f"{adapter / CONFIG} names the base {shown(name)}, and there is no such folder here: write --base and the "
                "folder of that model."
            )
        base = Path(name)
    if find_adapter(base) is not None:
        raise UserError(f"the base {base} is an adapter itself: write --base and the folder of a whole model.")
    return base
