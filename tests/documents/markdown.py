"""What stands in the project's Markdown: fenced blocks, headings, links, words of code. Read from the text alone."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from tests.launching import ROOT

_IN_ENGLISH_ALONE = ("matrix",)  # a table of versions that a program writes
PAGES = tuple(sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem not in _IN_ENGLISH_ALONE))
# Every document that stands in both languages: English, Chinese.
PAIRS = (("README.md", "README_zh-CN.md"), *((f"docs/{page}.md", f"docs/zh/{page}.md") for page in PAGES))
DOCUMENTS = (
    *(name for pair in PAIRS for name in pair), "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "AGENTS.md", "SECURITY.md",
)  # fmt: skip

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str = "sh") -> list[str]:
    """The contents of the fenced blocks of one language."""
    return [content for found, content in _FENCE.findall(text) if found == language]


def without_blocks(text: str) -> str:
    return _FENCE.sub("", text)


def commands(block: str) -> list[str]:
    """The commands of a block, without comments, each in one line, however its lines are continued."""
    joined = re.sub(r"\\\n\s*", "", block)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def code_words(text: str) -> list[str]:
    """What stands between backticks outside of the blocks."""
    return _CODE.findall(without_blocks(text))


def links(name: str) -> list[tuple[Path, str]]:
    """(file, anchor) of a document's links into this project."""
    targets = (target for target in _LINK.findall(without_blocks(read(name))) if not re.match(r"[a-z]+:", target))
    parts = (target.partition("#") for target in targets)
    folder = (ROOT / name).parent
    return [((folder / path).resolve() if path else ROOT / name, anchor) for path, _, anchor in parts]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings: lower case, without punctuation, spaces as hyphens."""
    titles = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in _HEADING.findall(without_blocks(text)))
    kept = ("".join(c for c in title if c in " -_" or unicodedata.category(c)[0] in "LNM") for title in titles)
    return {title.replace(" ", "-") for title in kept}
