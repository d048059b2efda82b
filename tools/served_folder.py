"""`megatron-patch serve` over an exported folder, for programs that speak to it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.arguments.processes import free_port

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, str]]:
    """`megatron-patch serve` with the folder: its address and the model's name."""
    port = free_port()
    command = [sys.executable, "-m", "megatron_patch.cli.main", "serve", str(folder), "--port", str(port), "--language", "en"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None, f"the server ended with status {server.returncode}"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", folder.name
    finally:
        server.terminate()
        server.wait()
