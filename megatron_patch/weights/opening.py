"""Which kind of checkpoint a folder holds, and its weights through that kind's reader."""

from __future__ import annotations

from pathlib import Path

from megatron_patch.config import PER_KV_HEAD
from megatron_patch.folders.hugging_face_folder import is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.weights.hugging_face import open_hf
from megatron_patch.weights.megatron_2023 import open_2023
from megatron_patch.weights.meta import open_meta
from megatron_patch.weights.native import open_native
from megatron_patch.weights.source import Source


def open_source(path: str | Path, fallback: LlamaConfig | None = None, gqa_layout: str = PER_KV_HEAD) -> Source:
    """Look at every file of a checkpoint and find its tensors; their bytes are not read.

    Args:
        path: Hugging Face or Meta folder, checkpoint root, or one iteration's folder.
        fallback: what a checkpoint of 2023 without config.json does not record (epsilon, rotary base, position limit), nor
            Meta's files (position limit).
        gqa_layout: the order of QKV rows in a checkpoint of 2023 that does not tell it, `per-kv-head` or `all-q-first`.

    Raises:
        UserError: nothing readable there, or a file is missing, truncated or holds what it should not.
    """
    path = Path(path)
    if is_meta_folder(path):
        return open_meta(path, fallback)
    if is_hf_folder(path):
        return open_hf(path)
    location = resolve_checkpoint(path)
    if location.kind == "native":
        return open_native(location)
    return open_2023(location, fallback, gqa_layout)
