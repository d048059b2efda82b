"""What is wrong with a typed text before anybody asks for its meaning: line ends, lengths, characters. Imports no
torch.

The sentences say what is allowed and what to write. The caller puts the argument's name and the text before them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME_BYTES = 255  # of one part of a path, on every common file system
_PATH_BYTES = 4096 - 512  # Linux allows 4096, and names of files in a folder come on top
MOST_DIGITS = 18  # a whole number of so many digits fits into 64 bits
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def line_end(text: str) -> str | None:
    """A sentence if the text holds a carriage return or ends with a newline, which no terminal shows; else None."""
    if "\r" in text:
        return (
            "it holds a carriage return (\\r), as texts from Windows have at their lines' ends: remove it; "
            "sed -i 's/\\r$//' FILE does so in a whole file."
        )
    if text.endswith("\n"):
        return "it ends with a line's end: remove it."
    return None


def path_problem(text: str) -> str | None:
    """Why no file can have this path, or why the system refuses to look there, as a sentence; None if it can look."""
    if "\0" in text:
        return "it holds a NUL character, which no path can: write another path."
    found = line_end(text)
    if found:
        return found
    size = len(os.fsencode(text))
    if size > _PATH_BYTES:
        return f"it has {size} bytes, and a path may have {_PATH_BYTES}: write a shorter one."
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > _NAME_BYTES:
        return f"a part of it has {longest} bytes, and a file's name may have {_NAME_BYTES}: write a shorter one."
    try:
        os.stat(text or ".")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # no permission, links in a circle, a network folder that is gone
        return f"the system does not let it be looked at ({error.strerror}): write another path, or mend that."
    return None


def unwritable(folder: str | os.PathLike[str]) -> str | None:
    """Why `folder` cannot be made or written into, as a sentence; None if it can. Ask `path_problem` first."""
    path = Path(folder)
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), Path("."))
    if not there.is_dir():
        return f"it takes a folder, which is made where it does not exist, and {there} is none: write another path."
    if not os.access(there, os.W_OK | os.X_OK):
        return f"nothing can be written in {there}: write another path, or change its permissions."
    return None


def whole_number(text: str) -> int | None:
    """The number, if the text is 1 to `MOST_DIGITS` digits 0 to 9. None for all else, such as `1_000`, ` 1` and `٣`."""
    return int(text) if re.fullmatch(f"[0-9]{{1,{MOST_DIGITS}}}", text) else None


def number(text: str) -> float | None:
    """The number, if the text is one such as `1e-5`, `0.1` or `3`; None for all else and for what no double holds."""
    if len(text) > 40 or not _NUMBER.fullmatch(text):  # the pattern takes quadratic time
        return None
    value = float(text)
    too_small = value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])
    return None if value in (float("inf"), float("-inf")) or too_small else value
