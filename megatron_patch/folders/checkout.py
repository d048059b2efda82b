"""MEGATRON_PATCH_PATH: the checkout of this project whose code runs. Imports no torch.

launch.sh puts it onto PYTHONPATH before Python starts, as the original's scripts do. Here we look whether that code is
what runs: Python 3.10 prefers a megatron_patch/ in the current folder, and an entry can be started without its script.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def checkout_problem(folder: str) -> str | None:
    """The fault of a MEGATRON_PATCH_PATH, as a phrase that ends in what to write; None for the checkout that runs."""
    package = os.path.join(folder, "megatron_patch")
    if not folder or not os.path.isfile(os.path.join(package, "launch.sh")):
        return f"it takes the folder that holds this project's megatron_patch/: write {ROOT}."
    if not os.path.isfile(os.path.join(package, "__init__.py")):
        return None  # the scripts that pip installed, beside which lies no code: the installed code runs
    if not os.path.samefile(package, ROOT / "megatron_patch"):
        return f"that is another checkout than {ROOT}, whose code runs here: start the script in another folder, or write {ROOT}."
    return None
