"""New files written by several threads, and tensors read past the page cache, hold what plain calls would give."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import platform
import random
import struct
import threading
import zipfile
import zlib
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.formats import new_files, past_cache
from megatron_patch.formats.checksums import combined
from megatron_patch.formats.distcp import describe, read_item
from megatron_patch.formats.lazy import FileTensor
from megatron_patch.formats.new_files import NewFile, write_new_files
from megatron_patch.formats.past_cache import BLOCK, reading_past_the_cache
from megatron_patch.formats.tensor_archive import around

SIZES = [1, 4095, 4096, 4097, 10, 3 * 4096, 100, 4000, 70_001, 0, 5, 8192, 1]


def putting(make):
    """What fills a part with the bytes that `make` returns."""

    def fill(out):
        out[:] = make()

    return fill


def refusing(name: str):
    """`os.preadv` or `os.pwrite` on a file system that lets a file be opened past the cache and then refuses it."""
    call = getattr(os, name)

    def refuse(descriptor, *arguments):
        if past_cache.goes_past_the_cache(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return call(descriptor, *arguments)

    return refuse


def in_parts():
    """`os.preadv` where the cache has every other block of a file."""
    call = os.preadv

    def read(descriptor, buffers, position, flags=0):
        if not flags:
            return call(descriptor, buffers, position)
        if position // BLOCK % 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return call(descriptor, [memoryview(buffers[0])[: BLOCK - position % BLOCK]], position)

    return read


@pytest.fixture(params=["past the cache", "not taken", "refused later", "in the cache in parts"])
def file_system(request, monkeypatch):
    if request.param == "in the cache in parts":
        monkeypatch.setattr(os, "preadv", in_parts())
    else:
        monkeypatch.setattr(past_cache, "_AT_ONCE", 0)
    if request.param == "not taken":
        for module in (past_cache, new_files):
            monkeypatch.setattr(module, "go_past_the_cache", lambda descriptor: False)
    if request.param == "refused later":
        monkeypatch.setattr(os, "preadv", refusing("preadv"))
        monkeypatch.setattr(os, "pwrite", refusing("pwrite"))
        monkeypatch.setattr(past_cache, "reserve", lambda *_: None)
        monkeypatch.setattr(new_files, "_WRITE_BACK", 5000)


def test_parts_of_any_size_stand_in_their_order(tmp_path, file_system, monkeypatch):
    monkeypatch.setattr(new_files, "PART_BYTES", 4096)  # some parts are larger than a thread's memory
    chosen = random.Random(1)
    files, wanted, told = [], [], []
    for number in range(3):
        sizes = SIZES if number == 0 else chosen.choices(SIZES, k=40)
        contents = [chosen.randbytes(size) for size in sizes if size]
        file = NewFile(tmp_path / str(number))
        parts = [file.add(len(one), lambda out, one=one: out.__setitem__(slice(None), one), is_summed=True) for one in contents]
        file.add(
            4, lambda out, parts=parts: out.__setitem__(slice(None), (sum(p.crc() for p in parts) % 2**32).to_bytes(4, "big"))
        )
        wanted.append(b"".join(contents) + (sum(map(zlib.crc32, contents)) % 2**32).to_bytes(4, "big"))
        files.append(file)
    write_new_files(files, told.append)
    assert [(tmp_path / str(number)).read_bytes() for number in range(3)] == wanted
    assert sum(told) == sum(map(len, wanted))


def test_what_is_counted_has_left_the_cache_but_for_the_last_pieces(tmp_path, monkeypatch):
    """Of a file that stays there. Its flush at the end would otherwise be most of the time."""
    monkeypatch.setattr(new_files, "_WRITE_BACK", 4 * BLOCK)
    told, handed, left = [0], [0], []

    def hand(descriptor):
        handed[0] = told[0]

    def count(size):
        told[0] += size
        left.append(told[0] - handed[0])

    monkeypatch.setattr(new_files, "hand_to_the_disk", hand)
    file = NewFile(tmp_path / "file", keeps_cache=True)
    for _ in range(200):
        file.add(BLOCK, lambda out: None)
    write_new_files([file], count)
    assert told == [200 * BLOCK] and max(left) <= (4 + 2 * new_files.THREADS) * BLOCK


@pytest.mark.parametrize("calls", ["the kernel's", "none of them"])
def test_the_disk_s_refusal_of_what_the_cache_hands_it_names_the_file(calls, tmp_path, monkeypatch):
    """It is told once, and here; the flush at the end would not tell it again."""
    monkeypatch.setattr(new_files, "_WRITE_BACK", BLOCK)

    def refused(*_):
        if calls == "the kernel's":
            ctypes.set_errno(errno.EIO)
            return -1
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    libc = SimpleNamespace(sync_file_range=refused) if calls == "the kernel's" else SimpleNamespace()
    monkeypatch.setattr(past_cache.ctypes, "CDLL", lambda *_, **__: libc)
    monkeypatch.setattr(os, "fdatasync", refused)
    file = NewFile(tmp_path / "file", keeps_cache=True)
    for _ in range(3):
        file.add(BLOCK, lambda out: None)
    with pytest.raises(OSError, match="Input/output error: .*file") as failed:
        write_new_files([file], lambda count: None)
    assert failed.value.filename == str(tmp_path / "file")


def test_the_first_error_ends_all_and_leaves_no_file_open(tmp_path):
    def fail(out):
        raise ZeroDivisionError

    before = len(os.listdir("/proc/self/fd"))
    files = [NewFile(tmp_path / str(number)) for number in range(2)]
    for file in files:
        parts = [file.add(5000, lambda out: None, is_summed=True) for _ in range(30)]
        file.add(5000, fail, is_summed=True)
        parts += [file.parts[-1], *(file.add(5000, lambda out: None) for _ in range(30))]
        file.add(8, putting(lambda parts=parts: parts[30].crc().to_bytes(8, "big")))
    with pytest.raises(ZeroDivisionError):
        write_new_files(files, lambda count: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_part_without_memory_lets_no_other_wait(tmp_path, monkeypatch):
    """The next one, which is made already, asks for its last bytes."""
    monkeypatch.setattr(new_files, "PART_BYTES", 4096)
    next_is_made = threading.Event()

    def memory(size):
        if size > 4 * BLOCK:
            next_is_made.wait()
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return past_cache.aligned_memory(size)

    monkeypatch.setattr(new_files, "aligned_memory", memory)
    file = NewFile(tmp_path / "file")
    file.add(70_001, lambda out: None)
    file.add(100, lambda out: next_is_made.set())
    with pytest.raises(OSError, match="Cannot allocate memory"):
        write_new_files([file], lambda count: None)


_X86_64 = {"load the call's number": (0x20, 0, 0, 0), "is it fallocate": (0x15, 0, 1, 285)}


def _no_fallocate():
    """From now on the kernel refuses it in this process, as over NFS before version 4.2."""
    answers = (0x06, 0, 0, 0x00050000 | errno.EOPNOTSUPP), (0x06, 0, 0, 0x7FFF0000)
    program = b"".join(struct.pack("HBBI", *line) for line in (*_X86_64.values(), *answers))
    kept = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(kept))
    libc = ctypes.CDLL(None)
    assert not libc.prctl(38, 1, 0, 0, 0) and not libc.prctl(22, 2, filter_, 0, 0)  # no new privileges; a filter


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the call's number is that of x86_64")
def test_nothing_is_written_to_reserve_room(tmp_path):
    """glibc's own posix_fallocate writes a byte into each block where the file system reserves nothing."""
    path = tmp_path / "file"
    path.touch()
    if (child := os.fork()) == 0:
        _no_fallocate()
        past_cache.reserve(os.open(path, os.O_WRONLY), 1 << 20)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and path.stat().st_size == 0
    past_cache.reserve(os.open(path, os.O_WRONLY), 1 << 20)
    assert path.stat().st_blocks * 512 >= 1 << 20


def test_rows_at_any_byte_are_read(tmp_path, file_system):
    content = torch.randint(0, 256, (9 * BLOCK + 77,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "file").write_bytes(content.numpy().tobytes())
    with reading_past_the_cache(2 * BLOCK):
        for offset, rows in (
            (0, 9 * BLOCK + 77),
            (1, 20_000),
            (BLOCK, 2 * BLOCK),
            (BLOCK - 1, 2),
            (30_000, 6_000),
            (9 * BLOCK, 77),
        ):
            memory = torch.frombuffer(past_cache.aligned_memory(10 * BLOCK), dtype=torch.uint8)
            for first in (0, 5):
                out = memory[first : first + rows]
                FileTensor(tmp_path / "file", "w", offset, (rows,), torch.uint8).read(0, rows, out)
                assert torch.equal(out, content[offset : offset + rows]), (offset, rows, first)
                assert not memory[:first].any() and not memory[first + rows :].any()
                memory.zero_()
        with pytest.raises(ValueError, match="ends inside tensor w"):
            FileTensor(tmp_path / "file", "w", 9 * BLOCK, (78,), torch.uint8).read(0, 78, torch.empty(78, dtype=torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torch_loads_an_item(dtype):
    tensor = torch.randn(3, 5, 7).to(dtype)
    data = tensor.view(torch.uint8).numpy().tobytes()
    front, behind = around(describe((3, 5, 7), dtype), len(data), zlib.crc32(data))
    assert torch.equal(torch.load(io.BytesIO(front + data + behind), weights_only=True), tensor)
    assert len(front) % BLOCK == 0
    assert zipfile.ZipFile(io.BytesIO(front + data + behind)).testzip() is None


def test_an_item_beyond_what_32_bits_count(tmp_path):
    """A sparse file of zeros stands for the tensor."""
    rows, crc = 5 << 18, zlib.crc32(bytes(1 << 12))
    size, length = rows * 4096, 4096
    while length < size:  # 5 · 2^30 bytes: doubled to 4 GiB, and the fifth GiB
        if length == 1 << 30:
            fifth = crc
        step = crc if length <= size - length else fifth
        crc, length = combined(crc, step, min(length, size - length)), length + min(length, size - length)
    front, behind = around(describe((rows, 2048), torch.bfloat16), size, crc)
    with open(tmp_path / "item", "w+b") as file:
        file.write(b"before" + front)
        file.seek(size, os.SEEK_CUR)
        file.write(behind)
        item = read_item(file, tmp_path / "item", "w", 6, len(front) + size + len(behind), (rows, 2048))
        assert item.offset == 6 + len(front) and item.record.size == size and item.record.crc == crc
        file.seek(0)
        zipped = zipfile.ZipFile(file)
        assert [(one.filename, one.file_size) for one in zipped.infolist() if "data/" in one.filename] == [
            ("archive/data/0", size)
        ]
