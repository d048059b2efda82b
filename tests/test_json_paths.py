"""Whether a dataset argument is JSON: its ending says so, or its content."""

from __future__ import annotations

import gzip

import pytest

from megatron_patch.data_paths import JsonFiles, parse_data


def is_json(text: str) -> bool:
    return isinstance(parse_data(text), JsonFiles)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.json", b"", True),
        ("a.jsonl", b"no", True),
        ("a", b'{"instruction": "x"}\n', True),
        ("a.txt", b' \n[ {"instruction": 1}]', True),
        ("part-00000", b'\xef\xbb\xbf{\n"instruction": "x"}', True),
        ("a.jsonl.gz", gzip.compress(b'{"instruction": "x"}', mtime=0), True),
        ("a.txt", b"[]", True),
        ("a.txt", b"{broken", False),
        ("a.bin", b"[\x01\x02", False),
        ("a.gz", b"no archive", False),
        ("a.txt", b"", False),
    ],
)
def test_json_is_known_by_its_content(tmp_path, name, content, wanted):
    (tmp_path / name).write_bytes(content)
    assert is_json(str(tmp_path / name)) is wanted


def test_a_pair_s_prefix_is_none_however_it_ends(tmp_path):
    prefix = str(tmp_path / "corpus.json")
    assert is_json(prefix), "a file that is missing is asked for by its name"
    (tmp_path / "corpus.json.idx").touch()
    assert not is_json(prefix) and not is_json(str(tmp_path)) and not is_json("0.3 a 0.7 b") and not is_json("x" * 5000)
