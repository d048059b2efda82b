"""docs/arguments.md and docs/zh/arguments.md, made of the scripts' lists: `python -m tools.argument_pages` writes them.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from megatron_patch.arguments.description import Language, markdown
from megatron_patch.arguments.tables import SCRIPTS

ROOT = Path(__file__).resolve().parents[1]
PAGES: dict[Language, str] = {"en": "docs/arguments.md", "zh": "docs/zh/arguments.md"}
_HEADS = {
    "en": """# Arguments

[中文](zh/arguments.md)

<!-- tools/argument_pages.py makes this page of megatron_patch/arguments/*_list.py. -->

A script takes its documented arguments in their order. Flags may follow the last one; a flag of true or false that stands alone
is true. `--help` prints the same, and all arguments are checked before anything starts.
""",
    "zh": """# 参数

[English](../arguments.md)

<!-- 本页由 tools/argument_pages.py 根据 megatron_patch/arguments/*_list.py 生成。 -->

脚本按顺序接受文档中的参数。最后一个参数之后可以写标志；取值为 true 或 false 的标志单独出现时为 true。
`--help` 打印同样的内容；所有参数在启动之前检查。
""",
}


def page(language: Language) -> str:
    """The whole page: its head, then a section for each script."""
    return "\n".join((_HEADS[language], *(markdown(script, language) for script in SCRIPTS)))


if __name__ == "__main__":
    for one, name in PAGES.items():
        (ROOT / name).write_text(page(one), encoding="utf-8")
