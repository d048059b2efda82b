"""Fine-tuning by iterations, one process of it: `torchrun … -m megatron_patch.cli.finetune_with_ga --flags`."""

from __future__ import annotations

import sys


def main(argv: list[str]) -> None:
    """Read, build, run, close. Heavy imports stand here: core starts a process that imports this module again."""
    from megatron_patch.cli.session import read_config, training_session
    from megatron_patch.data.finetune import finetune_run_data

    training_session(read_config("finetune_with_ga", argv), finetune_run_data)


if __name__ == "__main__":
    main(sys.argv[1:])
