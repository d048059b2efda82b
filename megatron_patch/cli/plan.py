"""`megatron-patch plan MODEL`: what a training takes of each GPU's memory, before one is paid for."""

from __future__ import annotations

import sys

from megatron_patch.arguments.plan import read_plan
from megatron_patch.errors import print_any_text
from megatron_patch.language.sentences import in_language
from megatron_patch.plan.report import plan_lines


def main(argv: list[str]) -> None:
    """Print the plan.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    print_any_text()
    print("\n".join(map(in_language, plan_lines(*read_plan(argv)))))


if __name__ == "__main__":
    main(sys.argv[1:])
