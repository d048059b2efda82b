"""MEGATRON_PATH: use the source tree there if its megatron.core is in the tried range, else the installed one.

Versions are read from text; nothing of a tree is executed to look at it. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from megatron_patch.errors import UserError

# Tried: 0.16.1, 0.17.1, 0.18.2, 0.19.2 (docs/matrix.md); pyproject.toml says the same. The upper bound is where
# core/patches.py must be looked at again.
SUPPORTED = ((0, 16), (0, 20))
NO_TREE = "none"  # MEGATRON_PATH of a user who has no source tree


def tree_version(folder: str | Path) -> str | None:
    """The version that a Megatron-LM source tree states for its megatron.core, `unknown` without one; None: no tree."""
    core = Path(folder) / "megatron" / "core"
    if not (core / "__init__.py").is_file():
        return None
    info = core / "package_info.py"
    if not info.is_file():
        return "unknown (2023 or older)"
    text = info.read_text(encoding="utf-8", errors="replace")
    numbers = dict(re.findall(r"^(MAJOR|MINOR|PATCH)\s*=\s*([0-9]{1,9})", text, re.MULTILINE))
    return ".".join(numbers.get(part, "0") for part in ("MAJOR", "MINOR", "PATCH"))


def is_supported(version: str) -> bool:
    """Whether `version` is one that this project was tried with; only its first two numbers count."""
    match = re.match(r"([0-9]{1,9})\.([0-9]{1,9})", version)
    return match is not None and SUPPORTED[0] <= (int(match[1]), int(match[2])) < SUPPORTED[1]


def installed_version() -> str:
    """Version of pip's megatron-core.

    Raises:
        UserError: there is none, or one outside the tried range.
    """
    wanted = f"run: pip install 'megatron-core{supported_range()}'."
    try:
        version = importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"megatron-core is not installed; {wanted}") from None
    if not is_supported(version):
        raise UserError(f"megatron-core {version} is installed, and this project was tried with {supported_range()}; {wanted}")
    return version


def choose_engine(megatron_path: str) -> tuple[str | None, str]:
    """(folder to put in front of PYTHONPATH, or None for the installed engine; the line that says so)."""
    if megatron_path == NO_TREE:
        return None, f"The installed megatron-core {installed_version()} is used."
    tree = tree_version(megatron_path)
    if tree is not None and is_supported(tree):
        return megatron_path, f"megatron.core {tree} of MEGATRON_PATH {megatron_path} is used."
    installed = installed_version()
    if tree is not None:
        reason = f"holds megatron.core {tree}, which is not in {supported_range()}"
    elif Path(megatron_path).exists():
        reason = "holds no megatron.core"
    else:
        reason = "does not exist"
    return None, f"MEGATRON_PATH {megatron_path} {reason}; the installed megatron-core {installed} is used."


def supported_range() -> str:
    """The tried versions of megatron-core, as pip writes a range: >=0.16,<0.20."""
    (low, high) = (".".join(map(str, bound)) for bound in SUPPORTED)
    return f">={low},<{high}"
