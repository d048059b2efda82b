"""The page itself: one HTML file that asks no network for anything. Imports no torch.

Names, paths and arguments are data. They stand in one block of JSON in which no character can end a script, and the
page's own script sets them as text, never as HTML. A content policy lets nothing run but the script of this file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

_PARTS = Path(__file__).parent / "page"
_STYLES = ("uPlot.min.css", "page.css")
_SCRIPTS = ("uPlot.iife.min.js", "numbers.js", "elements.js", "axes.js", "chart.js", "sections.js", "main.js")
# What could end a script, begin a comment in one, or end a line of one in old browsers.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
MARK = "<!doctype html><!-- megatron-patch report -->"  # how such a file begins


def page(content: dict[str, Any]) -> str:
    """The HTML of a page that shows `content`, a `payload`."""
    style = "\n".join(_part(name) for name in _STYLES)
    script = f"/*\n{_part('uPlot.LICENSE')}\n*/\n" + "\n".join(_part(name) for name in _SCRIPTS)
    holes = {
        "mark": MARK,
        "language": "zh-CN" if content["language"] == "zh" else "en",
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "data": embedded(content),
        "script": script,
    }
    text = _part("page.html")
    pieces = text.split("%%")  # text, hole, text, hole, …, text
    return "".join(holes[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def embedded(content: dict[str, Any]) -> str:
    """`content` as JSON that is safe between <script> and </script>."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
