"""When a training run ends before its last iteration: on a signal, --exit-interval or --exit-duration-in-mins."""

from __future__ import annotations

import signal
import time
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.processes import notes
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
        self.signalled = ""  # the first signal's name
        self.reason = "asked through another rank"  # until this rank knows better
        for number in STOPS:
            # Not in a program that does something of its own with Ctrl-C, such as one that trains in its own process.
            if number != signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        """Note the signal. The iteration goes on: in the middle of it nothing can be saved."""
        self.signalled = self.signalled or signal.Signals(number).name

    def requested(self) -> bool:
        """Whether any rank was asked to stop. Every rank calls it once an iteration, and all get the same answer."""
        options = self.config.options
        self.iterations += 1
        spent = time.monotonic() - self.started
        reasons = {
            self.signalled: bool(self.signalled),
            "--exit-interval": bool(options.exit_interval) and self.iterations >= options.exit_interval,
            "--exit-duration-in-mins": bool(options.exit_duration_in_mins) and spent > options.exit_duration_in_mins * 60,
        }
        here = next((reason for reason, is_so in reasons.items() if is_so), None)
        self.reason = here or self.reason
        return parallel.any_rank(here is not None)

    def tell_torchrun(self) -> None:
        """Note the signal that ended the run, for every node's torchrun. All ranks call it.

        A platform that takes one node away signals that one alone. If the others ended with status 0, it would count
        the job as done.
        """
        if name := next(filter(None, parallel.from_all_ranks(self.signalled)), ""):
            notes.write_signal(name)

    def signalled_anywhere(self) -> bool:
        """Whether a signal has come to any rank, after something long such as a save. All ranks call it."""
        self.reason = self.signalled or self.reason
        return parallel.any_rank(bool(self.signalled))
