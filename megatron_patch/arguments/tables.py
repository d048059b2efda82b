"""All scripts' lists, and their tables in Markdown: `python -m megatron_patch.arguments.tables [en|zh]` prints them.

A new script is a module with its list, and a name here. Imports no torch.
"""

from __future__ import annotations

import sys

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.conversion_list import CONVERT
from megatron_patch.arguments.description import markdown
from megatron_patch.arguments.evaluation_list import EVALUATE
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.arguments.inspection_list import INSPECT
from megatron_patch.arguments.merge_list import MERGE
from megatron_patch.arguments.plan_list import PLAN
from megatron_patch.arguments.preparation_list import PREPARE
from megatron_patch.arguments.report_list import REPORT
from megatron_patch.arguments.serving_list import CHAT, SERVE
from megatron_patch.arguments.training_list import FINETUNE, FINETUNE_WITH_GA, PRETRAIN
from megatron_patch.language.choice import LANGUAGES

_TRAINING = (PRETRAIN, FINETUNE, FINETUNE_WITH_GA)
SCRIPTS: tuple[Script, ...] = (CONVERT, PREPARE, MERGE, *_TRAINING, EVALUATE, GENERATE, CHAT, SERVE, PLAN, REPORT, INSPECT)


def main(argv: list[str]) -> int:
    """Print the tables in one language, or in both. Exit status 2 where another is asked for."""
    if len(argv) > 1 or not set(argv) <= set(LANGUAGES):
        print(f"usage: python -m megatron_patch.arguments.tables [{'|'.join(LANGUAGES)}]", file=sys.stderr)
        return 2
    for language in LANGUAGES:
        if not argv or language in argv:
            print("\n".join(markdown(script, language) for script in SCRIPTS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
