"""When a training run ends before its last iteration: on SIGTERM, --exit-interval or --exit-duration-in-mins."""

from __future__ import annotations

import signal
import time
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel


class StopRequest:
    """Whether the run has been asked to stop. It then finishes the iteration, saves and leaves.

    Making one installs the handler of SIGTERM. A platform sends that signal some time before it takes a machine away.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.started = time.monotonic()
        self.iterations = 0
        self.signalled = False
        self.reason = "asked through another rank"  # until this rank knows better
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        """Note the signal. The iteration goes on: in the middle of it nothing can be saved."""
        self.signalled = True

    def requested(self) -> bool:
        """Whether any rank was asked to stop. Every rank calls it once an iteration, and all get the same answer."""
        options = self.config.options
        self.iterations += 1
        spent = time.monotonic() - self.started
        reasons = {
            "SIGTERM": self.signalled,
            "--exit-interval": bool(options.exit_interval) and self.iterations >= options.exit_interval,
            "--exit-duration-in-mins": bool(options.exit_duration_in_mins) and spent > options.exit_duration_in_mins * 60,
        }
        here = next((reason for reason, is_so in reasons.items() if is_so), None)
        self.reason = here or self.reason
        return parallel.any_rank(here is not None)
