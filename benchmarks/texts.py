"""Texts for the benchmark of preparation: code, English and Chinese prose, out of packages that anybody can install.

| text | from |
|---|---|
| code | every .py file of this Python's standard library and site-packages |
| English | Debian's linux-doc-6.1 (.rst) and debian-handbook, READMEs in site-packages' METADATA |
| Chinese | Debian's libreoffice-help-zh-cn, manpages-zh, debian-reference-zh-cn, linux-doc-6.1's zh_CN |

`apt-get download` fetches Debian's packages into a folder, and `dpkg-deb -x` unpacks them; nothing is installed.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("linux-doc-6.1", "debian-handbook", "libreoffice-help-zh-cn", "manpages-zh", "debian-reference-zh-cn")
_LONGEST = 20_000  # characters of a document
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]+>", re.DOTALL)
_ROFF = re.compile(r"(?m)^[.'].*$|\\f[A-Z]|\\-")
_HAN = re.compile(r"[\u4e00-\u9fff]")


def unpack(folder: Path) -> Path:
    """Fetch Debian's packages into `folder` and unpack them; the folder that holds their files.

    Raises:
        subprocess.CalledProcessError: a package cannot be fetched, or there is no Debian here.
    """
    out = folder / "unpacked"
    if not out.is_dir():
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, out], check=True)
    return out


def code() -> Iterator[str]:
    """Python's own source code, and its packages'."""
    for name in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_paths()[name]).rglob("*.py")):
            yield path.read_text(encoding="utf-8", errors="ignore")


def of_lines(path: Path) -> Iterator[str]:
    """The values of "text" in a file of JSON Lines."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def english(unpacked: Path) -> Iterator[str]:
    """English prose, without the markup of pages."""
    for path in sorted(unpacked.rglob("*.rst*")):
        if "translations" not in path.parts:
            yield _content(path)
    for path in sorted(unpacked.glob("usr/share/doc/debian-handbook/html/en-US/*.html")):
        yield _plain(_content(path))
    for path in sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA")):
        yield _content(path).partition("\n\n")[2]


def chinese(unpacked: Path) -> Iterator[str]:
    """Chinese prose: pages and manuals, of which a fifth of the characters are Han at least."""
    places = (
        "**/zh_CN/**/*.rst*",
        "usr/share/man/zh_CN/*/*",
        "usr/share/libreoffice/**/*.html",
        "**/*.zh-cn.*",
    )
    for place in places:
        for path in sorted(unpacked.glob(place)):
            if path.is_file() and path.suffix != ".pdf":
                text = _ROFF.sub("", _plain(_content(path)))
                if 5 * len(_HAN.findall(text)) > len(text):
                    yield text


def _content(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "ignore")


def _plain(page: str) -> str:
    return html.unescape(re.sub(r"\s*\n\s*", "\n", _TAGS.sub("", page)))


def write_lines(path: Path, texts: Iterator[str], size: int) -> tuple[int, int]:
    """Write JSON Lines of `size` bytes of text, repeating the texts where there are fewer: (bytes, bytes without
    repetition).
    """
    documents, unique = [], 0
    for text in texts:
        if unique >= size:
            break
        pieces = [text[i : i + _LONGEST] for i in range(0, len(text), _LONGEST)]
        documents += [piece for piece in pieces if piece.strip()]
        unique += len(text.encode())
    total = 0
    with open(path, "w", encoding="utf-8") as file:
        while total < size and documents:
            for document in documents:
                file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
                total += len(document.encode())
                if total >= size:
                    break
    return total, min(unique, total)
