"""The original's checkpoints from 2023-10-10 to 2024-04, unpacked once."""

from __future__ import annotations

import tarfile

import pytest

from tests.launching import GOLDEN, unpack


@pytest.fixture(scope="session")
def later(tmp_path_factory):
    """The unpacked folder; it has `converted`, `trained` and `truth`."""
    folder = tmp_path_factory.mktemp("megatron_2023_later")
    with tarfile.open(GOLDEN / "megatron_2023_later.tar.xz") as archive:
        unpack(archive, folder)
    return folder
