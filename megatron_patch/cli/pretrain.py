"""Continued pre-training, one process of it: `torchrun … -m megatron_patch.cli.pretrain --flags`."""

from __future__ import annotations

import sys

from megatron_patch.processes.console import outlive_the_console
from megatron_patch.processes.imports import many_imports
from megatron_patch.processes.parents import end_with_torchrun
from megatron_patch.processes.signals import end_at_once


def main(argv: list[str]) -> None:
    """Read, build, run, close. Heavy imports stand here: core starts a process that imports this module again."""
    end_at_once()  # until there is something to save
    end_with_torchrun()
    outlive_the_console()
    with many_imports():
        from megatron_patch.cli.session import read_config, training_session
        from megatron_patch.data.indexed_pretrain import indexed_run_data
        from megatron_patch.data.json_pretrain import json_run_data

    config = read_config("pretrain", argv)
    training_session(config, json_run_data if config.reads_json else indexed_run_data)


if __name__ == "__main__":
    main(sys.argv[1:])
