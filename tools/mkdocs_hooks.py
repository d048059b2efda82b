"""What mkdocs needs beside docs/: the documents of the project's root become pages too, and GitHub's links to them lead
there.

Without it a link such as ../ARCHITECTURE.md, which GitHub follows, would lead out of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Document → its page in the site. mkdocs would take a README.md for index.md.
PAGES = {
    "README.md": "start.md",
    "README_zh-CN.md": "start_zh.md",
    **{name: name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "AGENTS.md")},
}
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's documents, as if they stood in docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of a root's document lose their docs/, and those to one lose the step up out of docs/."""
    source = page.file.src_uri
    if source in PAGES.values():
        return _LINK.sub(lambda link: PAGES.get(link[1], link[1].removeprefix("docs/")), markdown)
    up = "../" * source.count("/")
    outside = {f"{up}../{name}": f"{up}{target}" for name, target in PAGES.items()}
    return _LINK.sub(lambda link: outside.get(link[1], link[1]), markdown)
