"""The first batch of a loader, whose processes end with it."""

from __future__ import annotations

from typing import Any

import torch


def first_of(loader: torch.utils.data.DataLoader) -> Any:
    """Its processes are ended here, also if it fails: the collector comes at any later time, and waits five seconds."""
    batches = iter(loader)
    try:
        return next(batches)
    finally:
        if loader.num_workers:
            batches._shutdown_workers()
