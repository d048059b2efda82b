"""What a training run recorded beside each checkpoint, and how a new configuration differs. Imports no torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_patch.config import Options, TrainConfig
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.hugging_face_folder import holds_tokenizer
from megatron_patch.folders.tracker import checkpoint_root
from megatron_patch.formats.json_files import json_object
from megatron_patch.llama.model_config import LlamaConfig

RUN_CONFIG = "run_config.json"
_MOST_BYTES = 1 << 20
# What is learnt does not depend on these. Each has its name in the scripts, or none if a change of it is not worth a
# line.
_FREE = {
    "tensor_model_parallel_size": "TP",
    "pipeline_model_parallel_size": "PP",
    "sequence_parallel": "SP",
    "use_distributed_optimizer": "DO",
    "recompute": "AC",
    "use_flash_attn": "FL",
    "micro_batch_size": "BATCH_SIZE",
    "save_interval": "",
    "name": "",
    "output_path": "",
    "valid_data_path": "",
}
# Precisions, before and now, whose checkpoints are the same: FP8 is in products alone.
_SAME_WEIGHTS = (["bf16", "fp8"], ["fp8", "bf16"])
_DECISIVE_OPTIONS = (
    "adam_beta1", "adam_beta2", "adam_eps", "clip_grad", "lora_alpha", "lora_dropout", "lora_plus_ratio", "lora_rank",
    "lora_targets", "lora_vocabulary", "packing", "qlora", "seed", "split", "template", "weight_decay",
)  # fmt: skip
# How long a run is. Going on may make it longer, which changes the decay of the learning rate.
_DURATION = {"train_iters": {"pretrain": "TRAIN_TOKENS", "finetune": "TRAIN_ITERS"}, "epochs": {"finetune": "EPOCH"}}
# Compared by their content: `_data_differences`, `_model_differences`.
_IDENTITIES = {"load", "train_data_path"}


@dataclass
class Comparison:
    """How a configuration differs from a recorded one, each difference as `TP was 1 and is 2`.

    Attributes:
        hindering: what may not differ when a run goes on.
        longer: more iterations or epochs.
        harmless: what changes nothing that is learnt.
        accumulation: the `--gradient-accumulation-steps` with which the global batch would be as it was; None
            elsewhere.
    """

    hindering: list[str] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)
    accumulation: int | None = None


def run_record(config: TrainConfig, origin: Origin) -> dict[str, Any]:
    """What run_config.json holds of a run: its configuration, and what it began with."""
    return config.as_dict() | asdict(origin)


def read_run_config(folder: Path) -> dict[str, Any] | None:
    """run_config.json of one iteration's folder; None where there is none (a converted or foreign checkpoint).

    Raises:
        UserError: it is no JSON object of the form that a training run writes.
        OSError: it cannot be read.
    """
    path = folder / RUN_CONFIG
    if not path.is_file():
        return None
    wrong = f"{path} is not what a training run writes there"
    try:
        content = json_object(path, _MOST_BYTES)
    except UserError as error:
        raise UserError(f"{wrong} ({str(error).rstrip('.')}); or remove its folder.") from None
    if not all(isinstance(content.get(name), dict) for name in ("model", "options")):
        raise UserError(f"{wrong}: `model` and `options` are missing; copy the checkpoint again, or remove its folder.")
    for name in ("load", "resumed_from"):
        got = content.get(name)
        if got is not None and (not isinstance(got, str) or "\0" in got):
            raise UserError(f"{wrong}: {name} is {_short(got)}, not a folder; copy the checkpoint again, or remove its folder.")
    return content


def compare(config: TrainConfig, origin: Origin, recorded: dict[str, Any], root: Path) -> Comparison:
    """How a run asked for by `config` differs from the one that the checkpoints below `root` recorded.

    origin: what was observed of the files that `config` names. A field that the checkpoints do not record has its
        default.
    """
    now, found = json.loads(json.dumps(config.as_dict())), Comparison()
    if recorded.get("task", config.task) != config.task:  # every other difference follows from it
        return Comparison(hindering=[_was("task", recorded["task"], config.task)])
    for name in now.keys() - _IDENTITIES - _DURATION.keys() - {"model", "options"}:
        if name not in recorded or recorded[name] == now[name] or (name == "pad_length" and not config.reads_json):
            continue
        if name == "precision" and [recorded[name], now[name]] in _SAME_WEIGHTS:
            found.harmless.append(_was("PR", recorded[name], now[name]))
        elif name not in _FREE:
            found.hindering.append(_was(name, recorded[name], now[name]) + _batch_hint(found, config, name, recorded[name]))
        elif _FREE[name]:
            found.harmless.append(_was(_FREE[name], recorded[name], now[name]))
    _compare_parts(found, config, now, recorded)
    _compare_duration(found, now, recorded)
    found.hindering += [*_data_differences(config, origin, recorded), *_model_differences(config, origin, recorded, root)]
    found.hindering.sort()
    found.harmless.sort()
    return found


def _was(name: str, old: object, new: object) -> str:
    return f"{name} was {_short(old)} and is {_short(new)}"


def _short(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _batch_hint(found: Comparison, config: TrainConfig, name: str, old: object) -> str:
    """Fine-tuning's global batch follows from BATCH_SIZE and the processes, unless steps are accumulated."""
    step = config.global_batch_size // config.options.gradient_accumulation_steps
    if name != "global_batch_size" or not config.epochs or not isinstance(old, int) or old < 1 or old % step:
        return ""
    found.accumulation = old // step
    return f" (--gradient-accumulation-steps {found.accumulation} keeps it)"


def _compare_parts(found: Comparison, config: TrainConfig, now: dict[str, Any], recorded: dict[str, Any]) -> None:
    """The model's fields, and the options that decide what is learnt."""
    # Indexed data has no template, and fine-tuning no split.
    idle = {"template": not config.reads_json, "split": config.task == "finetune"}
    decisive = [name for name in _DECISIVE_OPTIONS if not idle.get(name)]
    defaults = {one.name: one.default for one in (*fields(LlamaConfig), *fields(Options))}
    # Weights under adapters are in no checkpoint of the run: each start reads them anew.
    decisive += ["gqa_layout"] if now["options"]["lora_rank"] else []
    for part, names in (("model", now["model"]), ("options", decisive)):
        for name in names:
            old, new = recorded[part].get(name, defaults[name]), now[part][name]
            if old != new:
                found.hindering.append(_was(name, old, new))


def _compare_duration(found: Comparison, now: dict[str, Any], recorded: dict[str, Any]) -> None:
    for name, arguments in _DURATION.items():
        old, new = recorded.get(name, now[name]), now[name]
        if old != new:
            # By epochs a run has 0 iterations, by iterations 0 epochs. Neither is a shorter run of the other kind.
            is_longer = isinstance(old, int) and 0 < old < new
            said = f"{name} ({arguments.get(now['task'], '')})"
            (found.longer if is_longer else found.hindering).append(_was(said, old, new))


def _data_differences(config: TrainConfig, origin: Origin, recorded: dict[str, Any]) -> list[str]:
    """By content where both have recorded it; by path and size where an earlier version has written the checkpoint."""
    path = config.train_data.text
    old_path = recorded.get("train_data_path", path)
    known, old = origin.train_data_fingerprint, recorded.get("train_data_fingerprint")
    if known and old:
        if known == old:
            return []
        sentences = [f"{path} holds other data than then"] if _is_same_path(path, old_path) else []
    else:
        sentences = []
    if not _is_same_path(path, old_path):
        sentences.append(_was("train_data_path", old_path, path))
    size, old_size = origin.train_data_bytes, recorded.get("train_data_bytes", origin.train_data_bytes)
    return sentences + ([_was("train_data_bytes", old_size, size)] if size != old_size else [])


def _model_differences(config: TrainConfig, origin: Origin, recorded: dict[str, Any], root: Path) -> list[str]:
    """PRETRAIN_CHECKPOINT_PATH and, for text, the tokenizer.

    Paths are compared with links resolved, and models by content where a fingerprint was recorded. A missing `load` or
    `tokenizer_path` is accepted, since a resumed run uses its own checkpoint folder's; so is the run that this one goes
    on from.
    """
    sentences, load, old = [], config.load, recorded.get("load")
    own = [str(root)] + ([os.path.dirname(recorded["resumed_from"])] if recorded.get("resumed_from") else [])
    same = load is None or _is_same_path(load, old) or any(_is_same_path(_root_of(load), folder) for folder in own)
    same = same or (origin.load_fingerprint != "" and origin.load_fingerprint == recorded.get("load_fingerprint"))
    if not same:
        sentences.append(_was("load", old, load))
    if config.reads_json:
        sentences += _tokenizer_difference(config, recorded, root)
    return sentences


def _tokenizer_difference(config: TrainConfig, recorded: dict[str, Any], root: Path) -> list[str]:
    """The run's folder has a copy of the tokenizer that it began with; without one, the paths are compared."""
    path, old = config.options.tokenizer_path, recorded["options"].get("tokenizer_path")
    loaded = Path(_root_of(config.load)) if config.load else None
    folder = Path(path) if path else loaded if holds_tokenizer(loaded) else None
    if folder is None or (path and old and _is_same_path(path, old)):
        return []
    if not holds_tokenizer(root):
        return [_was("tokenizer_path", old, path)] if path and old else []
    names = [name for name in ("tokenizer.model", "tokenizer.json", "added_tokens.json") if (root / name).is_file()]
    both = [name for name in names if (folder / name).is_file()]
    if not holds_tokenizer(folder) or all((folder / name).read_bytes() == (root / name).read_bytes() for name in both) and both:
        return []
    return [f"the tokenizer in {folder} is another one than that in {root}"]


def _root_of(path: str) -> str:
    real = Path(os.path.realpath(path))
    return str(checkpoint_root(real) or real)


def _is_same_path(one: object, other: object) -> bool:
    """Whether both lead to one place, through links too; a blend of several is compared as text."""
    if one == other:
        return True
    if not all(isinstance(path, str) and path and "\0" not in path for path in (one, other)):
        return False
    return os.path.realpath(str(one)) == os.path.realpath(str(other))
