"""Fine-tuning by iterations, one process of it: `torchrun … -m megatron_patch.cli.finetune_with_ga --flags`."""

from __future__ import annotations

import sys

from megatron_patch.cli import finetune


def main(argv: list[str]) -> None:
    """As fine-tuning by epochs; the list of arguments is another."""
    finetune.main(argv, task="finetune_with_ga")


if __name__ == "__main__":
    main(sys.argv[1:])
