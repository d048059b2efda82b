"""torchtitan training LLaMA-2 on random tokens, for `through_script.py --peer torchtitan`.

    pip install torchtitan==0.2.2
    torchrun --nproc-per-node 4 benchmarks/peer_torchtitan.py 7B --training.local_batch_size 4 --training.steps 8

It is torchtitan's own trainer, model and FSDP; what is added is LLaMA-2's sizes and a loader that reads nothing.
The other arguments are torchtitan's. torchtitan prints its tokens per second (tps) for one GPU.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_patch.processes.parents import end_with_parent

VERSION = "0.2.2"
_VOCABULARY = 32000


def _without_datasets() -> None:
    """torchtitan imports Hugging Face's `datasets`, which a loader of random tokens has no use for."""
    with contextlib.suppress(ImportError):
        import datasets  # noqa: F401

        return
    for name, members in (("datasets", ("Dataset", "load_dataset")), ("datasets.distributed", ("split_dataset_by_node",))):
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module


_without_datasets()

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.config import ConfigManager
from torchtitan.models.llama3 import TransformerModelArgs, get_train_spec
from torchtitan.protocols.train_spec import register_train_spec
from torchtitan.tools.logging import init_logger
from torchtitan.train import Trainer

# Its feed-forward size is 8/3 of `dim`, rounded up to a multiple of 256: LLaMA-2's.
SIZES = {
    "7B": TransformerModelArgs(dim=4096, n_layers=32, n_heads=32, vocab_size=_VOCABULARY, rope_theta=10000),
    "13B": TransformerModelArgs(dim=5120, n_layers=40, n_heads=40, vocab_size=_VOCABULARY, rope_theta=10000),
    "tiny": TransformerModelArgs(dim=256, n_layers=2, n_heads=4, vocab_size=_VOCABULARY, rope_theta=10000),
}


class RandomTokens(BaseDataLoader):
    """Batches of `rows` sequences of random tokens, in pinned memory where there is a GPU."""

    def __init__(self, rows: int, length: int, rank: int) -> None:
        self.rows, self.length, self.generator = rows, length, torch.Generator().manual_seed(rank)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            tokens = torch.randint(3, _VOCABULARY, (self.rows, self.length + 1), generator=self.generator)
            tokens = tokens.pin_memory() if torch.cuda.is_available() else tokens
            yield {"input": tokens[:, :-1]}, tokens[:, 1:]

    def state_dict(self) -> dict[str, object]:
        """torchtitan asks for it; there is none."""
        return {}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """torchtitan asks for it; there is none."""


def _loader(dp_world_size: int, dp_rank: int, tokenizer: None, job_config) -> RandomTokens:
    training = job_config.training
    return RandomTokens(training.local_batch_size, training.seq_len, dp_rank)


def main() -> None:
    """Register the model, and train as torchtitan's own command does."""
    end_with_parent(os.getppid())  # torchrun's workers outlive it otherwise
    flavor, arguments = sys.argv[1], sys.argv[2:]
    spec = get_train_spec()
    spec.model_args, spec.build_dataloader_fn = SIZES, _loader
    spec.build_tokenizer_fn, spec.state_dict_adapter, spec.build_validator_fn = None, None, None
    register_train_spec("llama2", spec)
    init_logger()
    trainer = Trainer(ConfigManager().parse_args(["--model.name", "llama2", "--model.flavor", flavor, *arguments]))
    try:
        trainer.train()
    finally:
        trainer.close()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
