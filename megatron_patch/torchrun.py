"""torchrun with a change at the start and two at shutdown.

The launcher looks for a free port seconds before torchrun listens there, and another process may take it meanwhile.
Then torchrun tries another one, if nobody has named this one (MASTER_PORT).

After a signal it waits up to an hour for the ranks' checkpoints. A checkpoint of a large model takes minutes, and torch
before 2.12 kills processes 30 s after SIGTERM and has no setting for that.

At the end it prints one line instead of a traceback of its own, and ends with the status of the rank that failed. The
ranks have said what happened.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from torch.distributed import DistNetworkError, run
from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from megatron_patch.arguments.command_line import asked_language
from megatron_patch.arguments.processes import free_port
from megatron_patch.language.choice import ask
from megatron_patch.language.sentences import fill

_PORTS = 3  # that are tried before the last one
_PATIENCE = 3600  # seconds from a signal to SIGKILL; what a scheduler grants may be less


def patient(close: Callable[..., None]) -> Callable[..., None]:
    """`PContext.close` that waits longer after a user's signal. After a failure it waits as long as torch does."""

    @functools.wraps(close)
    def wait(self: Any, death_sig: Any = None, timeout: int = 30) -> None:
        asked = isinstance(sys.exc_info()[1], SignalException)
        close(self, death_sig, max(timeout, _PATIENCE) if asked else timeout)

    return wait


def main(argv: list[str]) -> int:
    """Run; returns the status of this node's rank that failed first, for a signal 128 and more, as shells do."""
    ask(asked_language(argv))
    PContext.close = patient(PContext.close)  # type: ignore[method-assign]  # there is no setting to use instead
    logging.getLogger(PContext.__module__).setLevel(logging.CRITICAL)  # it tells a rank's end as well, with process ids
    try:
        _run(argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        template = "rank {} was the first of this node to end early, with status {}; what it said stands above."
        print(fill(template, rank, status), file=sys.stderr)
        return status
    except SignalException as error:
        print(fill("stopped by {}.", error.sigval.name), file=sys.stderr)
        return 128 + error.sigval
    return 0


def _run(argv: list[str]) -> None:
    """`run.main`, again with another port where a port that the launcher found was taken before torchrun listened."""
    for _ in range(_PORTS):
        try:
            run.main(argv)
            return
        except DistNetworkError as error:
            if "EADDRINUSE" not in str(error) or os.environ.get("MASTER_PORT") or "--nnodes=1" not in argv:
                raise
            argv = [f"--master-port={free_port()}" if word.startswith("--master-port=") else word for word in argv]
    run.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
