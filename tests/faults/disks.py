"""Small disks of a test's own: full ones, ones without inodes, read-only ones. They take root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def absent() -> str:
    """Why this machine cannot mount; empty where it can."""
    if os.geteuid() != 0:
        return "mounting a tmpfs takes root"
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, text=True)
        if tried.returncode != 0:
            return f"a tmpfs cannot be mounted here: {tried.stderr.strip()}"
        subprocess.run(["umount", folder], check=True)
    return ""


@contextlib.contextmanager
def small_disk(options: str) -> Iterator[Path]:
    """A tmpfs, with mount's `options`, which every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="small disk "))
    folder.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def remount(folder: Path, options: str) -> None:
    """Change a mounted disk, to `ro` for example."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write until nothing fits; returns the file."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path
