"""What the converter's flags come to."""

from __future__ import annotations

import pytest

from megatron_patch.arguments.conversion_list import CONVERT
from megatron_patch.arguments.findings import Findings

SIZE = next(argument for argument in CONVERT.flags if argument.flag == "--max-shard-size")


@pytest.mark.parametrize(
    "text, bytes",
    [("5GB", 5_000_000_000), ("500 mb", 500_000_000), ("3KB", 3_000), ("2GiB", 2_147_483_648), ("1MiB", 1_048_576), ("7", 7)],
)
def test_a_size_has_decimal_and_binary_units(text, bytes):
    findings = Findings()
    assert findings.size(SIZE, text) == bytes and not findings.found


@pytest.mark.parametrize("text", ["0", "GB", "1TB", "1.5GB", "-1MB", ""])
def test_what_is_no_size_is_refused(text):
    findings = Findings()
    findings.size(SIZE, text)
    assert ["it takes a size such as 5GB or 500MB" in sentence for sentence in findings.sentences] == [True]
