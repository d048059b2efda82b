"""When a training run ends before its last iteration: on a signal, --exit-interval or --exit-duration-in-mins."""

from __future__ import annotations

import signal
import time
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.processes.signals import STOPS


class StopRequest:
    """Whether the run has been asked to stop. It then finishes the iteration, saves and leaves.

    Making one installs the handler of SIGTERM, which a platform sends some time before it takes a machine away, and of
    SIGINT. They may come many times and from several senders: torchrun, a process group, a service manager.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.started = time.monotonic()
        self.iterations = 0
        self.signalled = False
<<<<<<< HEAD
        for number in STOPS:
            signal.signal(number, self._on_signal)
=======
        self.reason = "asked through another rank"  # until this rank knows better
        signal.signal(signal.SIGTERM, self._on_signal)
>>>>>>> main

    def _on_signal(self, *_: Any) -> None:
        """Note the signal. The iteration goes on: in the middle of it nothing can be saved."""
        self.signalled = True

    def requested(self) -> bool:
        """Whether any rank was asked to stop. Every rank calls it once an iteration, and all get the same answer."""
        options = self.config.options
        self.iterations += 1
<<<<<<< HEAD
        here = self.signalled
        if options.exit_interval and self.iterations >= options.exit_interval:
            here = True
        if options.exit_duration_in_mins and time.monotonic() - self.started > options.exit_duration_in_mins * 60:
            here = True
        return parallel.any_rank(here)

    def signalled_anywhere(self) -> bool:
        """Whether a signal has come to any rank, after something long such as a save. All ranks call it."""
        return parallel.any_rank(self.signalled)
=======
        minutes = (time.monotonic() - self.started) / 60
        reasons = {
            "SIGTERM": self.signalled,
            "--exit-interval": bool(options.exit_interval) and self.iterations >= options.exit_interval,
            "--exit-duration-in-mins": bool(options.exit_duration_in_mins) and minutes > options.exit_duration_in_mins,
        }
        here = next((reason for reason, is_so in reasons.items() if is_so), None)
        self.reason = here or self.reason
        return parallel.any_rank(here is not None)
>>>>>>> main
