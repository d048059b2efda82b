"""What a dataset argument of pre-training means: one prefix, or a blend between spaces or the original's commas."""

from __future__ import annotations

import pytest

from megatron_patch.data_paths import IndexedPairs, JsonFiles, parse_data, prefix_of
from megatron_patch.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pairs whose names are hard to tell from a blend."""
    names = ("A", "B", "a,b", "x,2,y", "x", "two words", "0.5 A", "0.3,A,0.7,B.old", "-1 A")
    for name in names:
        (tmp_path / f"{name}.idx").touch()
        (tmp_path / f"{name}.bin").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def findings(text: str) -> list[str]:
    """What is said about an argument, whether it cannot be parsed or its files cannot be read."""
    try:
        return parse_data(text).findings()
    except UserError as error:
        return [str(error)]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("A", [(1, "A")]),
        ("0.3 A 0.7 B", [(0.3, "A"), (0.7, "B")]),
        ("0.3,A,0.7,B", [(0.3, "A"), (0.7, "B")]),
        ("0.3, A, 0.7, B", [(0.3, "A"), (0.7, "B")]),
        ("0.3 A, 0.7 B", [(0.3, "A"), (0.7, "B")]),
        ("3e-1,A,.7,B", [(0.3, "A"), (0.7, "B")]),
        ("2,A", [(2, "A")]),
        # A path's own spaces and commas
        ("a,b", [(1, "a,b")]),
        ("two words", [(1, "two words")]),
        ("0.5 A", [(1, "0.5 A")]),
        ("0.3,A,0.7,B.old", [(1, "0.3,A,0.7,B.old")]),
        ("0.3 a,b 0.7 B", [(0.3, "a,b"), (0.7, "B")]),
        ("0.3,a,b,0.7,B", [(0.3, "a,b"), (0.7, "B")]),
        ("0.3,two words,0.7,B", [(0.3, "two words"), (0.7, "B")]),
        ("0.3,B,0.7,x,2,y", [(0.3, "B"), (0.7, "x"), (2, "y")]),
        ("0.3 B 0.7 x,2,y", [(0.3, "B"), (0.7, "x,2,y")]),
        # Nothing of it is there: the sentences name what was meant
        ("0.3,none,0.7,B", [(0.3, "none"), (0.7, "B")]),
        ("nothing,here", [(1, "nothing,here")]),
        ("", [(1, "")]),
        (",", [(1, ",")]),
    ],
)
def test_pairs(folder, text, pairs):
    assert parse_data(text) == IndexedPairs(text, tuple(pairs))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.3,A,B", "'weight,prefix,weight,prefix,…': write a number before each prefix"),
        ("0.3 A B", "'weight prefix weight prefix …'"),
        ("0.3,A,0.7", "write a number before each prefix"),
        ("0,A,1,B", "every weight of a blend must be above 0"),
        ("-0.3,A,1,B", "every weight of a blend must be above 0"),
        ("1e999,A,1,B", "every weight of a blend must be above 0"),
        ("A,B", "several prefixes without weights: write '0.5 A 0.5 B', for example"),
        ("A B", "several prefixes without weights: write '0.5 A 0.5 B', for example"),
        ("nan A 1 B", "there is no nan A 1 B.idx"),
        ("1_0,A,1,B", "there is no 1_0,A,1,B.idx"),
        ("٣ A 1 B", "there is no ٣ A 1 B.idx"),
        ("0.3,A,0.7,none", "there is no none.idx and none.bin"),
    ],
)
def test_what_is_no_blend_is_said(folder, text, words):
    (sentence,) = findings(text)
    assert words in sentence


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("A.bin", b"", "A.bin is one file of a pair: write it without its ending, A."),
        ("list.csv", b"instruction,output", "list.csv is a file whose content is no JSON"),
        ("x.txt", b"", "x.txt is a file whose content is no JSON"),
    ],
)
def test_a_file_that_is_neither_is_not_said_to_be_missing(folder, name, content, words):
    (folder / name).write_bytes(content)
    assert [words in sentence for sentence in findings(name)] == [True]
    assert findings(f"0.5,{name},0.5,B") == findings(name)


def test_the_longest_argument_is_read_at_once(folder):
    """The number of looks at words and files is bounded by their number."""
    assert len(parse_data(",".join(["1,A"] * 10_000)).pairs) == 10_000
    assert len(parse_data(",".join(["1"] * 20_000)).pairs) == 10_000


@pytest.mark.parametrize(
    ("text", "paths", "weights"),
    [
        ("A.idx", ["A.idx"], []),
        ("0.7 a.json 0.3 b.jsonl", ["a.json", "b.jsonl"], [0.7, 0.3]),
        ("7,a.json,3,b.jsonl", ["a.json", "b.jsonl"], [7, 3]),
        ("1,two words.json,2,a.json", ["two words.json", "a.json"], [1, 2]),
        ("2 a.json", ["a.json"], []),
        ("a.json b.jsonl", ["a.json", "b.jsonl"], []),
        ("a.json, two words.json", ["a.json", "two words.json"], []),
        ("two words.json", ["two words.json"], []),
        ("0.5 odd.json", ["0.5 odd.json"], []),
        # Nothing of it is there: the sentences name each
        ("none.json gone.jsonl.zst", ["none.json", "gone.jsonl.zst"], []),
        ("no such.json", ["no such.json"], []),
    ],
)
def test_several_json_files(folder, text, paths, weights):
    for name in ("a.json", "b.jsonl", "two words.json", "0.5 odd.json"):
        (folder / name).write_text("[{}]")
    wanted = JsonFiles(text, tuple(paths), tuple(weights))
    assert parse_data(text, only_json=True) == wanted
    if "A" not in text:
        assert parse_data(text) == wanted, "pre-training knows them by their names or content"
    assert len(wanted.findings()) == (0 if all((folder / path).exists() for path in paths) else len(paths))


def test_what_is_no_list_of_json_files_is_said(folder):
    (folder / "a.json").write_text("[{}]")
    for text, words in (("0.3 a.json a.json", "write a number before each file"), ("0 a.json 1 a.json", "must be above 0")):
        with pytest.raises(UserError, match=words):
            parse_data(text, only_json=True)
    assert findings("0.3 a.json 0.7 B") == ["it names JSON files and .bin/.idx pairs: write paths of one kind."]
    assert "there is no no.json" in parse_data("1 a.json 2 no.json", only_json=True).findings()[0]


def test_one_file_of_a_pair_gives_the_prefix(tmp_path):
    """But for a prefix that ends so itself."""
    for name in ("a.bin", "a.idx", "b.bin", "b.bin.idx", "b.bin.bin", "c.bin"):
        (tmp_path / name).touch()
    given = ("a.bin", "a.idx", "a", "b.bin", "c.bin", "none.bin")
    assert [prefix_of(str(tmp_path / name)) for name in given] == [str(tmp_path / "a")] * 2 + [None] * 4
