"""torchrun, but for its last words: a failure or a signal is one line and the status that it stands for, no page of its calls.

The ranks have said what happened by then, each in its own words.
"""

from __future__ import annotations

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: list[str]) -> int:
    """The status to leave with: that of the rank that failed first, 128 and more for a signal, as shells have it."""
    try:
        run.main(argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        status = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"rank {rank} was the first to end early, with status {status}; what it said stands above.", file=sys.stderr)
        return status
    except SignalException as error:
        print(f"stopped by {error.sigval.name}.", file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
