"""Read files that ask for more memory than they have bytes, within 500 MB, and print what answers each of them."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import time
import zipfile
from pathlib import Path

import torch

from megatron_patch.errors import UserError
from megatron_patch.formats.distcp import locate_item
from megatron_patch.formats.distcp_metadata import read_common, read_dcp_metadata
from megatron_patch.formats.safetensors_files import read_safetensors
from megatron_patch.formats.torch_files import read_torch_file

ROOM = 500 << 20
HUGE = struct.pack("<Q", 1 << 42)
PICKLES = {
    "a memo of half a billion": b"\x80\x02Nr\xff\xff\xff\x1f0N.",
    "bytes": b"\x80\x04\x8e" + HUGE + b".",
    "text": b"\x80\x04\x8d" + HUGE + b".",
    "bytearray": b"\x80\x05\x96" + HUGE + b".",
    "a frame": b"\x80\x04\x95" + HUGE + b"N.",
    "a number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "containers": b"\x80\x02" + b"}" * 10_000_000 + b".",
    "a list of containers": b"\x80\x02](" + (b"](" + b"}" * 1000 + b"e") * 20_000 + b"e.",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "two of each": b"\x80\x04]\x94(" + b"h\x00h\x00\x86\x94" + b"".join(
        b"j" + struct.pack("<I", n) + b"j" + struct.pack("<I", n) + b"\x86\x94" for n in range(1, 60)) + b"e.",
    "a tuple as a key": b"\x80\x04}(" + b")" + b"\x85" * 100_000 + b"Nu.",
}  # fmt: skip


class Calls:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def deflated(value):
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(value))) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return made.getvalue()


def sparse(path: Path, size: int, tail: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(b"PK\x03\x04")
        stream.truncate(size)
        stream.seek(size - len(tail))
        stream.write(tail)


def directory(size: int) -> bytes:
    """The end of a zip that says that its directory has `size` bytes."""
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0)


def cases(folder: Path):
    """Write one file after the other, and yield (its name, the function that reads it)."""
    for name, content in PICKLES.items():
        (folder / ".metadata").write_bytes(content)
        yield f".metadata: {name}", lambda: read_dcp_metadata(folder)
    sparse(folder / ".metadata", 1 << 33, b"")
    yield ".metadata: 8 GiB", lambda: read_dcp_metadata(folder)
    archives = {
        "zeros": saved({"a": Calls(bytearray, 1 << 40)}),
        "a tensor": saved({"a": Calls(torch.Tensor, 1 << 36)}),
        "deflated": deflated({"a": torch.zeros(1 << 26)}),
    }
    path = folder / "common.pt"
    for name, content in archives.items():
        path.write_bytes(content)
        yield f"common.pt: {name}", lambda: read_common(folder)
        yield f".bin: {name}", lambda: read_torch_file(path)
        yield f"item: {name}", lambda: locate_item(path, "x", 0, path.stat().st_size, (1 << 26,))
    sparse(path, 3 << 30, directory((3 << 30) - 100))
    yield "common.pt: 3 GiB", lambda: read_common(folder)
    yield "item: directory", lambda: locate_item(path, "x", 0, 3 << 30, (1,))
    yield ".bin: directory", lambda: read_torch_file(path)
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    yield "safetensors: a header of 4 EiB", lambda: read_safetensors(folder / "a.safetensors")


def main(folder: Path) -> None:
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    pending = cases(folder)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for name, read in pending:
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
        started = time.perf_counter()
        try:
            said = f"nothing: {str(read())[:100]}"
        except UserError as error:
            said = f"refused: {error}"
        except (Exception, MemoryError) as error:
            said = f"{type(error).__name__}: {error}"
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(f"{name} | {time.perf_counter() - started:.1f} | {said}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
