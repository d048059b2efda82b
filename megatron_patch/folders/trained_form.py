"""What a model's weights do not say of its training, and whoever uses them must know. Imports no torch.

A training run records it in run_config.json beside its weights. A conversion makes another folder of these, and writes
it there into a file of its own: `megatron_patch.json`, beside Hugging Face's or PEFT's files, or in `release`. Other
programs pass over that file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD, Template
from megatron_patch.errors import UserError
from megatron_patch.folders.adapter_base import ADAPTER, find_adapter
from megatron_patch.folders.durable_files import write_text
from megatron_patch.folders.hugging_face_folder import is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.folders.recorded_run import read_run_config
from megatron_patch.formats.json_files import json_object, shown

FORM = "megatron_patch.json"
_FORMAT = 1
_MOST_BYTES = 1 << 16
_VALUES = {"template": get_args(Template)[1:], "gqa_layout": (PER_KV_HEAD, ALL_Q_FIRST)}


@dataclass(frozen=True)
class TrainedForm:
    """What is recorded; None stands for what is not.

    Attributes:
        template: the prompt template of the fine-tuning, one of `config.Template` but `auto`.
        gqa_layout: of an adapter: in which order its run read the QKV rows of a base of 2023.
    """

    template: str | None = None
    gqa_layout: str | None = None


def form_of(path: Path) -> TrainedForm:
    """What is recorded of the model that `path` means: any folder that conversion or generation reads.

    Raises:
        UserError: nothing readable is there, or the record is damaged.
    """
    adapter = find_adapter(path)
    if adapter is not None:
        return read_form(adapter)
    published = is_hf_folder(path) or is_meta_folder(path)
    # A run that trained all weights has saved them in one order, whatever it began with.
    return TrainedForm(template=read_form(path if published else resolve_checkpoint(path).folder).template)


def read_form(folder: Path) -> TrainedForm:
    """What is recorded in a Hugging Face folder, in PEFT's, or in one iteration's.

    Raises:
        UserError: the record is damaged.
    """
    if (folder / FORM).is_file():
        return _written(folder / FORM)
    run = read_run_config(folder)
    if run is None and folder.name == ADAPTER:  # in the iteration's folder of the run that trained it
        run = read_run_config(folder.parent)
    if run is None:
        return TrainedForm()
    # Pre-training on JSON has a template too, but whoever continues a text after it wants no prompt around it.
    template = run["options"].get("template") if run.get("task") == "finetune" else None
    layout = run["options"].get("gqa_layout")
    return TrainedForm(template if template in _VALUES["template"] else None, layout if layout in _VALUES["gqa_layout"] else None)


def _written(path: Path) -> TrainedForm:
    """The content of a file that `write_form` wrote.

    Raises:
        UserError: it is damaged, or of a later version.
    """
    content: dict[str, Any] = json_object(path, _MOST_BYTES)
    if content.get("format") != _FORMAT or content["format"] is True:
        got = shown(content.get("format"))
        raise UserError(f"{path} has format {got}; this version reads format {_FORMAT}: use the version that wrote it.")
    for key, allowed in _VALUES.items():
        if content.get(key) not in (None, *allowed):
            raise UserError(
                f"{path}: {key} is {shown(content[key])}; allowed are {', '.join(allowed)}: convert the checkpoint again."
            )
    return TrainedForm(**{key: content.get(key) for key in _VALUES})


def write_form(folder: Path, form: TrainedForm) -> None:
    """Write `form` into `folder`; nothing where nothing is recorded."""
    recorded = {key: value for key, value in asdict(form).items() if value is not None}
    if recorded:
        write_text(folder / FORM, json.dumps({"format": _FORMAT, **recorded}, indent=2) + "\n")


def base_layout(form: TrainedForm, typed: str | None, base: Path | None = None) -> str:
    """The order of QKV rows in a checkpoint of 2023 that lies under an adapter, where its files do not tell it.

    Args:
        form: what is recorded of the adapter.
        typed: --gqa-layout; None: what the run that trained the adapter has recorded, else per KV head.
        base: the model that was named in place of the run's own; of it the flag may say something else.

    Raises:
        UserError: the flag contradicts the record.
    """
    recorded = form.gqa_layout
    if typed and recorded and typed != recorded and base is None:
        raise UserError(f"the run that trained the adapter has read the weights under it as {recorded}: remove the flag.")
    return typed or recorded or PER_KV_HEAD
