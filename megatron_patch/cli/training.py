"""What the two training entries share: start, data, model, run, stop."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import sys
from collections.abc import Callable

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.data.run_data import RunData
from megatron_patch.train.log import RunLog
from megatron_patch.train.loop import run, start_state
from megatron_patch.train.setup import build_state

DataBuilder = Callable[[TrainConfig, parallel.Layout, Callable[[str], None]], RunData]


def training_session(config: TrainConfig, build_data: DataBuilder) -> None:
    """One rank's whole run.

    Raises:
        SystemExit: status 2, with the sentence, for what a user can mend.
    """
    layout = parallel.start(config)
    log = RunLog(config, active=layout.is_logger)
    try:
        data = build_data(config, layout, log.line)
        state = build_state(config, layout, log, data.train_iters)
        start_state(state, log)
        run(state, data, log)
    except ValueError as error:
        print(f"rank {layout.rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    finally:
        log.close()
    parallel.stop()
