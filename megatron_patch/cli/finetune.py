"""Supervised fine-tuning, one process of it: `torchrun … -m megatron_patch.cli.finetune --flags`."""

from __future__ import annotations

import sys

from megatron_patch.processes.console import outlive_the_console
from megatron_patch.processes.imports import many_imports
from megatron_patch.processes.parents import end_with_torchrun
from megatron_patch.processes.signals import end_at_once


def main(argv: list[str], task: str = "finetune") -> None:
    """Read, build, run, close. Heavy imports stand here: core starts a process that imports this module again."""
    end_at_once()  # until there is something to save
    end_with_torchrun()
    outlive_the_console()
    with many_imports():
        from megatron_patch.cli.session import read_config, training_session
        from megatron_patch.data.finetune import finetune_run_data

    training_session(read_config(task, argv), finetune_run_data)


if __name__ == "__main__":
    main(sys.argv[1:])
