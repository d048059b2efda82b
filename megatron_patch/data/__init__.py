"""What a training run reads: the tokenizer, JSON files as samples, indexed data through core, and batches of both."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]  # takes a line for the log
