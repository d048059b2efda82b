import json
import os
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
import zlib
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

from megatron_patch.data.json_dataset import build_json_dataset
from megatron_patch.data.token_cache import Encoding, cached_at, make_table, table_path

SAMPLES = [([1, 5, 6, 2], [False, False, True, True]), ([1, 7], [False, False])]
BUILDER = """
import sys, time
from pathlib import Path
from megatron_patch.data.token_cache import Encoding, cached_at, table_path
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
def build():
    return Encoding(samples())
def samples():
    with open(log, "a") as file:
        file.write("built\\n")
    time.sleep(float(sys.argv[3]))
    yield [1, 5, 6, 2], [False, False, True, True]
print(cached_at(table_path(folder, folder / "data.json", {}), build).sample(0, 9)[0].tolist())
"""


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data.json").write_text("content")
    return tmp_path / "data.json"


def counting(builds):
    def build():
        builds.append(1)
        return Encoding(iter(SAMPLES))

    return build


def test_what_is_cached_is_what_was_built(tmp_path, data):
    table = cached_at(table_path(tmp_path / "cache", data, {}), counting([]))
    ids, learnt = table.sample(0, 3)
    assert (ids.tolist(), learnt.tolist()) == ([1, 5, 6], [False, False, True])
    assert table.sample(1, 9)[0].tolist() == [1, 7]
    assert table.learnt_counts(4).tolist() == [2, 0] and table.learnt_counts(3, block=1).tolist() == [1, 0]
    first_learnt = make_table(Encoding(iter([([3, 4], [True, True])])))
    assert first_learnt.learnt_counts(9).tolist() == [1], "nothing predicts a first token"
    assert isinstance(table.flat.base, np.memmap) or isinstance(table.flat, np.memmap)


def test_the_key_is_content_and_settings_and_not_the_place(tmp_path, data):
    builds, build = [], None
    build = counting(builds)
    cached_at(table_path(tmp_path / "cache", data, {"template": "a"}), build)
    moved = data.rename(tmp_path / "elsewhere.json")
    cached_at(table_path(tmp_path / "cache", moved, {"template": "a"}), build)
    assert len(builds) == 1
    cached_at(table_path(tmp_path / "cache", moved, {"template": "b"}), build)
    moved.write_text("other")
    cached_at(table_path(tmp_path / "cache", moved, {"template": "a"}), build)
    assert len(builds) == 3


def test_lengths_and_packing_share_one_cache(golden, tokenizer, tmp_path):
    path = golden / "sft" / "alpaca_output.json"
    for pad_len, seq_len, packing in ((80, 80, False), (40, 128, False), (80, 99, True)):
        options = {"pad_len": pad_len, "seq_len": seq_len, "packing": packing}
        cached = build_json_dataset(path, tokenizer, cache_dir=tmp_path, **options)
        fresh = build_json_dataset(path, tokenizer, **options)
        assert cached.report == fresh.report
        assert all((a[k] == b[k]).all() for a, b in zip(cached, fresh) for k in a)
    assert len(list(tmp_path.glob("*.bin"))) == 1
    build_json_dataset(path, tokenizer, pad_len=80, seq_len=80, template="llama2-chat", cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.bin"))) == 2


def test_a_cache_of_other_settings_is_not_used(golden, tokenizer, tmp_path, monkeypatch):
    path, made = golden / "sft" / "alpaca_output.json", {}

    def rows(used=tokenizer, template="alpaca"):
        data = build_json_dataset(path, used, pad_len=80, seq_len=80, template=template, cache_dir=tmp_path)
        made[len(list(tmp_path.glob("*.bin")))] = data
        return data[0]["tokens"].tolist()

    first = rows()
    assert rows(replace(tokenizer, answer_end=5)) == [5 if i == 2 else i for i in first]
    assert rows(template="pretrain")[:2] == [1, 305] and rows() == first and sorted(made) == [1, 2, 3]
    monkeypatch.setattr("megatron_patch.data.json_dataset.VERSION", 10**6)
    assert rows() == first and sorted(made) == [1, 2, 3, 4], "made anew once prompts are made otherwise"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "header"])
def test_a_damaged_cache_is_made_again_and_says_so(tmp_path, data, caplog, damage):
    builds = []
    cached_at(table_path(tmp_path / "cache", data, {}), counting(builds))
    (path,) = (tmp_path / "cache").glob("*.bin")
    good = path.read_bytes()
    flipped = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
    path.write_bytes({"cut": good[:-4], "flipped": flipped, "empty": b"", "header": b"x" * len(good)}[damage])
    table = cached_at(table_path(tmp_path / "cache", data, {}), counting(builds))
    assert table.sample(0, 9)[0].tolist() == [1, 5, 6, 2] and len(builds) == 2
    assert "is damaged" in caplog.text
    assert path.read_bytes() == good


def start(tmp_path, seconds):
    command = [sys.executable, "-c", BUILDER, str(tmp_path), str(tmp_path / "log"), str(seconds)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_builds(tmp_path, data):
    processes = [start(tmp_path, 0.5) for _ in range(3)]
    assert [json.loads(p.communicate()[0]) for p in processes] == [[1, 5, 6, 2]] * 3
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_killed_builder_holds_nobody_up(tmp_path, data):
    killed = start(tmp_path, 60)
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not list(tmp_path.glob("tokens-*.bin"))
    (left,) = tmp_path.glob("tokens-*.tmp")
    assert str(killed.pid) in left.name
    left.rename(left.with_name(left.name.replace(left.name[7:10], "abc")))  # of another template
    left.write_text("")
    living = left.with_name(f"{left.name.rpartition('.')[0].rpartition('.')[0]}.{os.getppid()}.tmp")
    elsewhere = left.with_name(left.name.replace(socket.gethostname(), "elsewhere"))
    for path in (living, elsewhere):
        path.write_text("")
    assert json.loads(start(tmp_path, 0).communicate(timeout=20)[0]) == [1, 5, 6, 2]
    assert sorted(tmp_path.glob("*.tmp")) == sorted([living, elsewhere])


def test_memory_does_not_grow_with_the_tokens(tmp_path, data):
    """12 MB of tokens, in a MB of buffer and some more."""
    sample = (list(range(2000)), [False] * 1000 + [True] * 1000)
    path = table_path(tmp_path / "cache", data, {})
    tracemalloc.start()
    table = cached_at(path, lambda: Encoding(repeat(sample, 1500)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == 1500 and table.sample(1499, 9999)[0].tolist() == sample[0] and peak < 3_000_000


@pytest.mark.parametrize(
    ("was", "now"), [(b'"empty_answers": 0', b'"empty_anrwers": 0'), (b'"bad": 0', b'"bad":-1'), (b"[]", b"{}"), (b"{}}", b"[]}")]
)
def test_an_account_that_nobody_wrote_is_damage_too(tokenizer, tmp_path, caplog, was, now):
    """Its checksum is right: a file of another version, or one that was changed."""
    (tmp_path / "data.json").write_text('[{"instruction": "a", "output": "b"}]')
    options = dict(pad_len=80, seq_len=80, cache_dir=tmp_path)
    build_json_dataset(tmp_path / "data.json", tokenizer, **options)
    (path,) = tmp_path.glob("tokens-*.bin")
    good = path.read_bytes()
    body = good[4096:].replace(was, now)
    assert body != good[4096:]
    header = json.loads(good[:4096]) | {"crc": zlib.crc32(body)}
    path.write_bytes(json.dumps(header).encode().ljust(4095) + b"\n" + body)
    assert len(build_json_dataset(tmp_path / "data.json", tokenizer, **options)) == 1
    assert "is damaged" in caplog.text and path.read_bytes() == good
