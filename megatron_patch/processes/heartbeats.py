"""torchrun ends a rank in which nothing runs any more, and which no other rank has judged. Imports no torch.

`core/hang_watch.py` finds a rank that stands still, from a thread of each rank. That thread stands still too where the
main one keeps Python's lock, as in a page of a mapped file whose file system does not answer, or where the process is
stopped. Then another rank judges, if there is one in which a thread runs. Otherwise torchrun is what is left.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

from megatron_patch.language.sentences import in_language
from megatron_patch.processes import notes
from megatron_patch.processes.console import tell
from megatron_patch.processes.parents import is_child
from megatron_patch.processes.standstill import Report, report_of, verdict

_PREFIX, _SIZE = "beat.", 1024  # bytes of a note, whatever it says


class Heartbeat:
    """By which a rank shows its torchrun that a thread of it runs.

    Args:
        rank: its number.
        minutes: `--distributed-timeout-minutes`.
        patience: seconds without a beat after which torchrun ends it. Longer than other ranks need to judge it.
    """

    def __init__(self, rank: int, minutes: float, patience: float) -> None:
        self._note = notes.Note(f"{_PREFIX}{rank}", _SIZE)
        self._about = {"rank": rank, "minutes": minutes, "patience": patience}

    def beat(self, report: Report) -> None:
        """Show it; no two reports are the same."""
        self._note.write(json.dumps({**self._about, "report": report.as_text()}))

    def stop(self) -> None:
        """This rank is not watched any more."""
        self._note.remove()


class SilentRanks:
    """What torchrun sees of the heartbeats of its node.

    It counts its own looks and no seconds, so that a job that was stopped as a whole may go on.

    Args:
        every: seconds between two looks.
        kill: ends the process of that number.
    """

    def __init__(self, every: float, kill: Callable[[int], None] | None = None) -> None:
        self._every, self._kill = every, kill or _kill
        self._seen: dict[int, tuple[str, int]] = {}  # rank → (its last beat, how many looks ago that was new)

    def look(self) -> None:
        """End a rank whose heart has stopped, and say which one."""
        for rank, text in _beats().items():
            last, looks = self._seen.get(rank, ("", 0))
            looks = looks + 1 if text == last else 0
            self._seen[rank] = text, looks
            try:
                told = json.loads(text)
            except ValueError:  # it is just being written
                continue
            if looks * self._every > told["patience"]:
                del self._seen[rank]
                if _takes_notes(rank):
                    self._end(rank, report_of(told["report"]), told["minutes"])

    def _end(self, rank: int, report: Report, minutes: float) -> None:
        (line,) = verdict({rank: report}, [rank], [rank], minutes)
        if not notes.verdict():  # else the rank has judged, and stands still over saying so
            notes.write_verdict(line)
        tell(in_language(line))
        self._kill(report.pid)


def _beats() -> dict[int, str]:
    """The last beat of each rank of this node, as it stands there."""
    folder = notes.path("")
    names = [] if folder is None else [path.name for path in folder.glob(f"{_PREFIX}*")]
    return {int(name.removeprefix(_PREFIX)): text for name in names if (text := notes.read(name))}


def _takes_notes(rank: int) -> bool:
    """Whether that rank's beat could be written. On a disk that has become read-only silence means nothing."""
    beat = notes.path(f"{_PREFIX}{rank}")
    try:
        os.utime(beat or "")
    except OSError:  # the rank has warned
        return False
    return True


def _kill(pid: int) -> None:
    """SIGKILL; a process that is stopped, or waits for a page of a file, takes no other signal."""
    if is_child(pid):  # else it has ended, and its number may be another's
        os.kill(pid, signal.SIGKILL)
