"""What the pages say of themselves and of the code: links, both languages, flags, files, messages."""

from __future__ import annotations

import ast
import re

import pytest

from megatron_patch.arguments.tables import SCRIPTS
from megatron_patch.cli.main import COMMANDS
from tests.documents.markdown import DOCUMENTS, PAIRS, anchors, code_words, links, read, without_blocks
from tests.launching import ROOT
from tools.argument_pages import PAGES, page

# Flags of other programs that the documents name.
_OTHERS = {
    "--flag", "--help", "--language", "--index-url", "--peer", "--build-arg", "--follow", "--traces", "--model-path", "--logdir",
}  # fmt: skip
_PATH = re.compile(r"^(?:benchmarks|tests|tools|docs|megatron_patch|toolkits|examples)/[\w./-]*$")


@pytest.mark.parametrize("language", PAGES)
def test_the_page_of_arguments_is_what_the_lists_make(language):
    assert read(PAGES[language]) == page(language), "run: python -m tools.argument_pages"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_a_file_and_a_heading(name):
    broken = [
        (str(file), anchor)
        for file, anchor in links(name)
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8")))
    ]
    assert broken == []


def shape(text: str) -> tuple[list[str], list[int]]:
    """The levels of the headings, and the columns of every row of every table."""
    plain = without_blocks(text)
    rows = [line for line in plain.splitlines() if line.startswith("|")]
    return re.findall(r"^(#+) ", plain, re.MULTILINE), [len(re.findall(r"(?<!\\)\|", row)) for row in rows]


@pytest.mark.parametrize("english, chinese", PAIRS)
def test_both_languages_have_the_same_headings_tables_and_flags(english, chinese):
    ours, theirs = read(english), read(chinese)
    assert shape(ours) == shape(theirs)
    flags = [sorted(re.findall(r"--[a-z][\w-]+", " ".join(code_words(text)))) for text in (ours, theirs)]
    assert set(flags[0]) == set(flags[1])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_flags_and_files_that_are_named_exist(name):
    known = {argument.flag for script in SCRIPTS for argument in script.all} | _OTHERS
    words = code_words(read(name))
    flags = {flag for word in words for flag in re.findall(r"(?:^|\s)(--[a-z][\w-]+)", word)}
    removed = {"--noFLAG", "--timeout-minutes"} if name == "CHANGELOG.md" else set()  # what a version no longer has
    files = {word for word in words if _PATH.match(word) and not (ROOT / word).exists()}
    assert (flags - known - removed, files) == (set(), set())


def test_console_commands_that_are_named_exist():
    named = {match for name in DOCUMENTS for match in re.findall(r"`megatron-patch ([a-z][a-z-]*)", read(name))}
    assert {"pretrain", "plan"} <= named <= set(COMMANDS)


def sentences() -> str:
    """Every text in the sources of package and scripts, implicitly joined literals as one."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "megatron_patch").rglob("*.sh"))]
    texts += [path.read_text(encoding="utf-8") for folder in ("toolkits", "examples") for path in (ROOT / folder).rglob("*.sh")]
    for path in (ROOT / "megatron_patch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("name", ["docs/troubles.md", "docs/zh/troubles.md"])
def test_the_messages_are_those_of_the_program(name):
    first = [re.split(r"(?<!\\)\|", line)[1] for line in read(name).splitlines() if line.startswith("|")]
    messages = [word for cell in first for word in code_words(cell) if " " in word]
    assert len(messages) > 20
    text = sentences()
    pieces = {piece.strip() for message in messages for piece in message.split("…") if len(piece.strip()) > 2}
    assert [piece for piece in sorted(pieces) if piece not in text] == []
