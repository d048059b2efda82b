"""What the converter's flags come to."""

from __future__ import annotations

import argparse

import pytest

from megatron_patch.arguments.conversion import file_bytes


@pytest.mark.parametrize(
    "text, bytes",
    [("5GB", 5_000_000_000), ("500 mb", 500_000_000), ("3KB", 3_000), ("2GiB", 2_147_483_648), ("1MiB", 1_048_576), ("7", 7)],
)
def test_a_size_has_decimal_and_binary_units(text, bytes):
    assert file_bytes(text) == bytes


@pytest.mark.parametrize("text", ["0", "GB", "1TB", "1.5GB", "-1MB", ""])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="it takes a size such as 5GB or 500MB"):
        file_bytes(text)
