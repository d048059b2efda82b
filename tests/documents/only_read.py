"""`python only_read.py …` is `python …`, but a training script's launcher ends where it would become torchrun."""

from __future__ import annotations

import os
import sys


def main(words: list[str]) -> None:
    if words[:2] != ["-m", "megatron_patch.launch"]:
        os.execv(sys.executable, [sys.executable, *words])
    from megatron_patch import launch

    def say(program: str, command: list[str], environment: dict[str, str]) -> None:
        print("would start:", *command)
        sys.exit(0)

    os.execve = say
    launch.main(words[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
