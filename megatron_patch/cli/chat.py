"""`megatron-patch chat CHECKPOINT`, one process of it: a conversation on the terminal."""

from __future__ import annotations

import sys

from megatron_patch.arguments.serving import read_chat
from megatron_patch.arguments.serving_list import CHAT
from megatron_patch.cli.generate import generate, run_and_leave


def main(argv: list[str]) -> None:
    """Read, load, converse.

    Raises:
        SystemExit: status 2, with the sentence, for what a user can mend; 130 after Ctrl-C.
    """
    run_and_leave(CHAT.name, lambda: generate(read_chat(argv).job), "interrupted.")


if __name__ == "__main__":
    main(sys.argv[1:])
