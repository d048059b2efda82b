"""What mkdocs needs beside docs/: the documents of the project's root become pages too, and links to them are those of GitHub.

Without it a link such as ../ARCHITECTURE.md, which GitHub follows, would lead out of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "README_zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "AGENTS.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the root's documents, as if they stood in docs/."""
    for name in DOCUMENTS:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of a root's document lose their docs/, those of the others one step up from docs/."""
    if page.file.src_uri in DOCUMENTS:
        return re.sub(r"(\]\()docs/", r"\1", markdown)
    up = "../" * page.file.src_uri.count("/")
    names = "|".join(map(re.escape, DOCUMENTS))
    return re.sub(rf"(\]\(){re.escape(up)}\.\./({names})", rf"\1{up}\2", markdown)
