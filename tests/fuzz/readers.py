"""Every reader of files by name: a function from an empty folder to its Target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import checkpoint_readers, data_readers, record_readers
from tests.fuzz.target import Target

READERS: dict[str, Callable[[Path], Target]] = {
    "config.json": checkpoint_readers.hf_config,
    "checkpoint-texts": checkpoint_readers.described,
    "metadata-and-items": checkpoint_readers.distributed,
    "safetensors": checkpoint_readers.safetensors,
    "adapters": checkpoint_readers.adapters,
    "torch-files": checkpoint_readers.torch_files,
    "tokenizer.model": data_readers.tokenizers,
    "tokenizer.json": lambda folder: data_readers.tokenizers(folder, fast=True),
    "indexed": data_readers.indexed,
    "sample-indices": data_readers.sample_indices,
    "token-cache": data_readers.token_cache,
    "fine-tuning-data": record_readers.records,
    "preparation-input": lambda folder: record_readers.records(folder, "prepare"),
    "preparation-state": record_readers.preparation_state,
    "run-config": checkpoint_readers.run_config,
}
