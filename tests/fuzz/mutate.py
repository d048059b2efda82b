"""Valid files with one thing changed: JSON by its structure, pickles by opcodes, zips by entries, anything by its
bytes.

Every choice is drawn from a `random.Random`: Python's own with a seed (fast), or hypothesis's (shrinks).
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import struct
import warnings
import zipfile
from random import Random
from typing import Any

# As JSON text, because json.dumps would not write several of them.
VALUES = (
    "null", "true", "false", "0", "-1", "1", "2", "3", "7", "64", "1000000000", "2147483648", "9223372036854775807",
    "18446744073709551616",
    "-9223372036854775808", "-0.0", "0.5", "1e-300", "1e308", "1e400", "Infinity", "-Infinity", "NaN", "1.0", "4.0",
    "9" * 5000,
    '""', '"x"', '"1"', '"١٢"', '"４"', '"1_000"', '"1e8"', '"+5"', '" 4"', '"4\\r"', '"\\u0000"', '"\\ud800"', '"../x"',
    '"/etc/passwd"',
    '"true"', '"none"', '"release"', f'"{"a" * 300}"', f'"{"7" * 5000}"', "[]", "[1]", "[null]", "[[]]", "{}", '{"a": 1}',
    '{"content": 1}',
    "[" * 3000 + "]" * 3000, "[" * 200000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 90 + "]" * 90, "[" + "0," * 5000 + "0]",
)  # fmt: skip
INTEGERS = (
    0,
    1,
    2,
    -1,
    -2,
    4,
    7,
    255,
    256,
    65535,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
    10**9,
)
_MARK = "@changed-here@"


def changed_json(random: Random, content: Any, keys: tuple[str, ...] = ()) -> bytes:
    """`content` as JSON with one value, key or item changed, sometimes with its bytes changed.

    `keys` are further keys that may be set.
    """
    if random.random() < 0.1:
        return changed_bytes(random, json.dumps(content).encode())
    content = copy.deepcopy(content)
    places = list(_places(content))
    if keys and isinstance(content, dict) and random.random() < 0.3:
        places = [(content, random.choice(keys))]
    value = random.choice(VALUES)
    if not places or random.random() < 0.03:
        return value.encode()
    holder, key = random.choice(places)
    how = random.choice(("set", "set", "set", "set", "delete", "rename", "wrap", "copy"))
    if how == "delete" and isinstance(holder, (dict, list)) and (not isinstance(holder, dict) or key in holder):
        del holder[key]
    elif how == "rename" and isinstance(holder, dict) and key in holder:
        holder[random.choice(("", "x", "0", key.upper(), key + " ", "٣", "\ud800", "a" * 300))] = holder.pop(key)
    elif how == "wrap" and (not isinstance(holder, dict) or key in holder):
        holder[key] = random.choice(([holder[key]], {"content": holder[key]}, str(holder[key])))
    elif how == "copy" and (not isinstance(holder, dict) or key in holder):
        source, name = random.choice(places)
        holder[key] = copy.deepcopy(source.get(name) if isinstance(source, dict) else source[name])
    else:
        holder[key] = _MARK
    text = json.dumps(content, ensure_ascii=random.random() < 0.5)
    return text.replace(f'"{_MARK}"', value, 1).encode("utf-8", "surrogatepass")


def _places(content: Any) -> Any:
    """(container, key or index) of everything in `content`, at every depth."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(pairs):
        yield content, key
        yield from _places(value)


def changed_bytes(random: Random, data: bytes) -> bytes:
    """`data` with one bit flipped, or with one part cut, inserted, repeated or replaced by a number."""
    how = random.choice(
        ("flip", "flip", "set", "number", "number", "cut", "delete", "insert", "repeat", "append", "empty", "begin")
    )
    at = random.randrange(len(data) + 1) if random.random() < 0.5 else random.randrange(min(len(data), 256) + 1)
    end = min(len(data), at + random.choice((1, 2, 4, 8, 64)))
    if how == "flip" and at < len(data):
        return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
    if how == "set" and at < len(data):
        return data[:at] + bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x0D, 0x22, 0x5B, 0x7B))]) + data[at + 1 :]
    if how == "number":
        code = random.choice(("<i", "<q", "<H", ">i"))
        return data[:at] + _packed(code, random.choice(INTEGERS)) + data[at + struct.calcsize(code) :]
    if how == "cut":
        return data[:at]
    if how == "delete":
        return data[:at] + data[end:]
    if how == "repeat":
        return data[:end] + data[at:end] * random.choice((1, 3, 1000)) + data[end:]
    if how == "append":
        return data + random.choice((b"\0", b"\n", b"]", b"}", data[:64], b"\r\n", b"x" * 4096))
    if how == "empty":
        return random.choice((b"", b"\n", b" ", b"\0" * 16, b"\xff\xfe"))
    if how == "begin":
        return random.choice((b"\xef\xbb\xbf", b"\0", b"version https://git-lfs.github.com/spec/v1\n", b"[")) + data
    return data[:at] + random.choice((b"\0", b"\xff" * 8, b"\r", b"\xed\xa0\x80", b"1e999", b"[" * 2000, b"9" * 5000)) + data[at:]


def _packed(code: str, value: int) -> bytes:
    size = struct.calcsize(code)
    return (value & ((1 << (8 * size)) - 1)).to_bytes(size, "big" if code[0] == ">" else "little")


def changed_pickle(random: Random, data: bytes) -> bytes:
    """A pickle with one opcode dropped, doubled, swapped or given another argument, or with its bytes changed."""
    if random.random() < 0.2:
        return changed_bytes(random, data)
    starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    pieces = [data[a:b] for a, b in zip(starts, starts[1:])]
    at = random.randrange(len(pieces))
    how = random.choice(("drop", "double", "swap", "copy", "argument", "argument", "argument"))
    if how == "drop":
        del pieces[at]
    elif how == "double":
        pieces.insert(at, pieces[at])
    elif how == "swap":
        other = random.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif how == "copy":
        pieces[at] = random.choice(pieces)
    else:
        at = _with_argument(random, pieces, at)
        pieces[at] = random.choice(_ARGUMENTS)
    return b"".join(pieces)


def _with_argument(random: Random, pieces: list[bytes], at: int) -> int:
    """The place of an opcode near `at` that pushes a plain value; `at` itself if there is none."""
    plain = [i for i in range(len(pieces)) if pieces[i][:1] in b"KMJX\x8c\x88\x89N\x8aI"]
    return random.choice(plain) if plain else at


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


_ARGUMENTS = (
    *(b"J" + struct.pack("<i", number) for number in (0, 1, -1, 7, 2**31 - 1, -(2**31))),
    *(b"\x8a" + bytes([9]) + number.to_bytes(9, "little", signed=True) for number in (2**40, 2**62, 2**63, -(2**63),
    10**18)),
    _text(""), _text("../x"), _text("/etc/passwd"), _text("a" * 300), _text("x\0y"), _text("0"), b"N", b"\x88", b")",
    b"]", b"}", b"(",
    b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"cos\nsystem\n", b"G" + struct.pack(">d", float("inf")), b"0" * 50, b"\x95" + b"\xff" * 7 + b"\x7f",
)  # fmt: skip


def changed_zip(random: Random, data: bytes) -> bytes:
    """An archive of torch.save with one entry changed, dropped, renamed or compressed, or with its bytes changed."""
    if random.random() < 0.3:
        return changed_bytes(random, data)
    if random.random() < 0.15:  # where the directory is said to be, twice
        return data[:-98] + changed_bytes(random, data[-98:])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = (
        random.randrange(len(entries))
        if random.random() < 0.4
        else next(i for i, e in enumerate(entries) if e[0].endswith("data.pkl"))
    )
    name, content = entries[at]
    how = random.choice(("change", "change", "change", "change", "drop", "rename", "double", "compress"))
    if how == "change":
        entries[at] = name, (changed_pickle if name.endswith(".pkl") else changed_bytes)(random, content)
    elif how == "drop":
        del entries[at]
    elif how == "rename":
        entries[at] = random.choice(("", "x", "../x", "/x", "archive/data/99", "a" * 300)), content
    elif how == "double":
        entries.append((name, content[: len(content) // 2]))
    sink = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if how == "compress" else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(sink, "w", method) as archive:
        warnings.simplefilter("ignore")  # zipfile says so of two entries of one name
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name) if name else zipfile.ZipInfo("empty"), content)
    return sink.getvalue()
