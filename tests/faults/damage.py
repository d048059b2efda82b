"""Damage to a checkpoint's files, as data: what a failing disk, a broken copy or a careless edit leaves."""

from __future__ import annotations

import json
import random
import re
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.job import Job
from tests.faults.survival import Fault


@dataclass(frozen=True)
class Damage:
    """One kind of damage.

    Attributes:
        name: what a test or a table calls it.
        do: changes a file; it gets one from `files` by chance, and random numbers.
        files: the pattern of the files' names in an iteration's folder.
    """

    name: str
    do: Callable[[Path, random.Random], None]
    files: str


def flip_a_bit(path: Path, chance: random.Random) -> None:
    """The highest bit but one of the first number of a tensor: another weight, in a file that is sound otherwise."""
    content = bytearray(path.read_bytes())
    content[chance.choice(_tensors(content)) + 3] ^= 0x40
    path.write_bytes(content)


def flip_a_bit_of_each(path: Path, chance: random.Random) -> None:
    """The same in every tensor of a file."""
    content = bytearray(path.read_bytes())
    for place in _tensors(content):
        content[place + 3] ^= 0x40
    path.write_bytes(content)


def _tensors(content: bytearray) -> list[int]:
    """The first byte of each tensor in a `.distcp` file, from the headers of the zips in it."""
    places = [found.start() for found in re.finditer(rb"PK\x03\x04.{26}archive/data/0", bytes(content), re.DOTALL)]
    return [place + 30 + sum(struct.unpack_from("<HH", content, place + 26)) for place in places]


def zero_a_page(path: Path, chance: random.Random) -> None:
    """What a file has where the disk lost a page: zeros, 512 of them in such small files.

    In a file of tensors it is one of a tensor. What lies between two of them torch fills with letters, which nobody
    reads.
    """
    content = bytearray(path.read_bytes())
    tensors = [(start, content.index(b"PK\x07\x08", start)) for start in _tensors(content)]
    pages = [
        slice(first, min(first + 512, end)) for start, end in tensors or [(0, len(content))] for first in range(start, end, 512)
    ]
    page = chance.choice([page for page in pages if any(content[page])])
    content[page] = bytes(len(content[page]))
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    """A copy that stopped."""
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def remove(path: Path, chance: random.Random) -> None:
    """A file that was not copied."""
    path.unlink()


def flip_any_bit(path: Path, chance: random.Random) -> None:
    """One bit of a file, wherever: a digit that becomes another one, a name that becomes another file's.

    Not in the key of the sums: then nothing else is damaged.
    """
    content = bytearray(path.read_bytes())
    key = content.find(b'"crc32"')
    content[chance.choice([place for place in range(len(content)) if not 0 <= place - key < 7])] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def another_digit(path: Path, chance: random.Random) -> None:
    """A seed of another run, in JSON that is sound otherwise."""
    text = path.read_text()
    assert '"seed": 1234' in text
    path.write_text(text.replace('"seed": 1234', '"seed": 1235'))


def empty(path: Path, chance: random.Random) -> None:
    """A file whose name alone reached the disk."""
    path.write_bytes(b"")


def another_type(path: Path, chance: random.Random) -> None:
    """A value of another kind in JSON."""
    content = json.loads(path.read_text())
    key = {"model.json": "model", "run_config.json": "options", "metadata.json": "sharded_backend"}[path.name]
    path.write_text(json.dumps({**content, key: 7}))


DAMAGES = (
    Damage("one bit of a tensor", flip_a_bit, "*.distcp"),
    Damage("zeros in a tensor", zero_a_page, "*.distcp"),
    Damage("a tensors' file cut", cut, "*.distcp"),
    Damage("a tensors' file empty", empty, "*.distcp"),
    Damage("a rank's file missing", remove, "*.distcp"),
    Damage("zeros in .metadata", zero_a_page, ".metadata"),
    Damage(".metadata cut", cut, ".metadata"),
    Damage(".metadata missing", remove, ".metadata"),
    Damage("zeros in common.pt", zero_a_page, "common.pt"),
    Damage("common.pt cut", cut, "common.pt"),
    Damage("common.pt missing", remove, "common.pt"),
    Damage("model.json of other types", another_type, "model.json"),
    Damage("model.json empty", empty, "model.json"),
    Damage("run_config.json of other types", another_type, "run_config.json"),
    Damage("run_config.json cut", cut, "run_config.json"),
    Damage("metadata.json of other types", another_type, "metadata.json"),
    Damage("metadata.json missing", remove, "metadata.json"),
    Damage("another digit in run_config.json", another_digit, "run_config.json"),
    *(
        Damage(f"one bit of {name}", flip_any_bit, name)
        for name in (".metadata", "common.pt", "metadata.json", "model.json", "run_config.json")
    ),
)


def hurt(damage: Damage, folder: Path, chance: random.Random) -> Path:
    """Damage a file of an iteration's folder by chance; returns which one."""
    path = chance.choice(sorted(folder.glob(damage.files)))
    damage.do(path, chance)
    return path


def _newest(damage: Damage) -> Callable[[Path, random.Random], None]:
    def between(root: Path, chance: random.Random) -> None:
        tracker = int((root / "latest_checkpointed_iteration.txt").read_text())
        hurt(damage, root / f"iter_{tracker:07d}", chance)

    return between


def _end_in_peace(job: Job, chance: random.Random) -> None:
    """Once there is a checkpoint to fall back to."""
    place = job.wait_for("saved checkpoint of iteration|going on from iteration")
    if "saved" in job.lines[place - 1]:  # a signal that came before the next iteration would leave it the only one
        job.wait_for(r" iteration +\d+/ ", after=place)
    job.launcher().send_signal(signal.SIGTERM)


FAULTS = tuple(
    Fault(
        one.name,
        during=_end_in_peace,
        between=_newest(one),
        statuses=(143,),
        then_says="cannot be used: ",
        costs=1,
    )
    for one in DAMAGES
)
