"""MEGATRON_PATH: a supported tree is used, anything else is named with both versions."""

from __future__ import annotations

import pytest

from megatron_patch.errors import UserError
from megatron_patch.folders.engine import choose_engine, installed_version


def tree(folder, numbers: tuple[int, int, int] | None):
    core = folder / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "__init__.py").write_text("raise RuntimeError('a tree is read, never run')")
    if numbers:
        (core / "package_info.py").write_text("MAJOR = {}\nMINOR = {}\nPATCH = {}\n".format(*numbers))
    return str(folder)


def test_a_supported_tree_is_put_in_front(tmp_path):
    path = tree(tmp_path, (0, 16, 0))
    assert choose_engine(path) == (path, f"megatron.core 0.16.0 of MEGATRON_PATH {path} is used.")


@pytest.mark.parametrize(
    "numbers, reason",
    [
        ((0, 2, 0), "holds megatron.core 0.2.0, which is not in >=0.16,<0.20"),
        (None, "holds megatron.core unknown (2023 or older)"),
    ],
)
def test_an_older_tree_is_named_and_left(tmp_path, numbers, reason):
    folder, line = choose_engine(tree(tmp_path, numbers))
    assert folder is None and reason in line and f"the installed megatron-core {installed_version()} is used" in line


def test_a_missing_folder_is_no_error(tmp_path):
    folder, line = choose_engine(str(tmp_path / "Megatron-LM-230512"))
    assert folder is None and "does not exist" in line and installed_version() in line


@pytest.mark.parametrize("version", ["0.15.3", "0.20.0", "1.0.0"])
def test_an_installed_core_that_was_not_tried_is_refused(version, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    with pytest.raises(UserError, match=f"megatron-core {version} is installed.*pip install 'megatron-core>=0.16,<0.20'"):
        choose_engine("none")
