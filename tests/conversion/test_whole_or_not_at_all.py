"""A conversion that dies leaves no folder that looks finished, and never touches what was there."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.folders.atomic_folder import new_folder
from megatron_patch.folders.layout import resolve_checkpoint
from tests.launching import ROOT
from tests.weights.models import SMALL, assert_same, random_weights, read_hf, write_hf

# Slow enough to be caught in the middle: every part waits before it is written.
_SLOW = (
    "import sys, time; from megatron_patch.formats.new_files import NewFile; write = NewFile.write;"
    "NewFile.write = lambda *a: (time.sleep(0.3), write(*a))[1];"
    "from megatron_patch.cli.convert import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def source(tmp_path):
    config = replace(SMALL, num_layers=4)
    return write_hf(tmp_path / "hf", config, random_weights(config))


def start(source, target, code=_SLOW, **options):
    flags = ["--megatron-path=none", f"--source={source}", f"--target={target}", "--tensor-model-parallel-size=1"]
    flags += ["--pipeline-model-parallel-size=1", "--model-name=auto", "--extra-vocab-size=0", "--mg2hf=false"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def wait_for_bytes(folder: Path, process) -> Path:
    """The folder in the making, as soon as a file in it has bytes."""
    for _ in range(600):
        for path in folder.glob("target.partial-*/release/*.distcp"):
            if path.stat().st_size:
                return path.parents[1]
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("nothing was written in 30 s")


def test_kill_leaves_nothing_that_looks_finished(source, tmp_path):
    process = start(source, tmp_path / "target")
    partial = wait_for_bytes(tmp_path, process)
    process.kill()
    process.wait()
    assert not (tmp_path / "target").exists()
    for path in (partial, partial / "release"):
        with pytest.raises(ValueError, match="holds no Megatron checkpoint"):
            resolve_checkpoint(path)
    convert(Conversion(source, tmp_path / "target", to_hf=False, verify=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "target"], "the next run removes what was left"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_cleans_up(source, tmp_path, number):
    # A shell that starts the tests in the background lets them ignore SIGINT, which a process would inherit.
    process = start(source, tmp_path / "target", preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    wait_for_bytes(tmp_path, process)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 130 and "interrupted. Nothing was left" in output
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_full_disk(source, tmp_path):
    """A limit on the size of files stands for a disk that fills up in the middle."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    code = "import sys; from megatron_patch.cli.convert import main; sys.exit(main(sys.argv[1:]))"
    process = start(source, tmp_path / "target", code, preexec_fn=limit)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "File too large" in output and "Nothing was left" in output
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_existing_target_is_not_written_into(source, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    for overwrite, said in ((False, "add --overwrite"), (True, "there is none in it")):
        with pytest.raises(ValueError, match=said):
            convert(Conversion(source, target, to_hf=False, overwrite=overwrite))
        assert [path.name for path in target.iterdir()] == ["notes.txt"]


def test_overwrite_replaces_a_model(source, tmp_path):
    weights = random_weights(SMALL)
    other = write_hf(tmp_path / "other", SMALL, weights)
    convert(Conversion(source, tmp_path / "target", to_hf=False))
    convert(Conversion(other, tmp_path / "target", to_hf=False, overwrite=True))
    convert(Conversion(tmp_path / "target", tmp_path / "back", to_hf=True))
    assert_same(read_hf(tmp_path / "back"), weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "hf", "other", "target"]


def test_failed_overwrite_keeps_the_old_model(source, tmp_path):
    convert(Conversion(source, tmp_path / "target", to_hf=False))
    before = {path: path.read_bytes() for path in (tmp_path / "target").rglob("*") if path.is_file()}
    weights = random_weights(SMALL)
    weights["model.norm.weight"][:] = float("nan")
    broken = write_hf(tmp_path / "broken", SMALL, weights)
    with pytest.raises(ValueError, match="NaN"):
        convert(Conversion(broken, tmp_path / "target", to_hf=False, overwrite=True, verify=True))
    assert {path: path.read_bytes() for path in (tmp_path / "target").rglob("*") if path.is_file()} == before


def test_target_that_comes_to_be_meanwhile(tmp_path):
    with pytest.raises(ValueError, match="came to be while this ran"), new_folder(tmp_path / "target"):
        (tmp_path / "target").mkdir()
        (tmp_path / "target/file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_tracker_is_written_last(source, tmp_path, monkeypatch):
    """Everything else is on the disk when the tracker appears."""
    from megatron_patch.conversion import convert as module

    seen = []

    def look(folder, value):
        seen.append((value, {path.name for path in Path(folder).rglob("*")}))

    monkeypatch.setattr(module, "write_tracker", look)
    convert(Conversion(source, tmp_path / "target", to_hf=False))
    assert len(seen) == 1 and seen[0][0] == "release"
    assert {"model.json", ".metadata", "metadata.json", "common.pt", "config.json", "tokenizer.model"} <= seen[0][1]


def test_memory_does_not_grow_with_the_model(tmp_path):
    """Peak resident memory stays where it is for four times the layers and for matrices of 80 MB."""
    peaks = []
    for layers, vocabulary in ((1, 64), (4, 40000)):
        config = replace(SMALL, num_layers=layers, hidden_size=1024, kv_channels=256, ffn_hidden_size=1792, vocab_size=vocabulary)
        source = write_hf(tmp_path / f"hf{layers}", config, random_weights(config))
        code = "import sys; from megatron_patch.cli.convert import main; sys.exit(main(sys.argv[1:]))"
        output = start(source, tmp_path / f"target{layers}", code).communicate()[0]
        peaks.append(float(re.search(r"peak memory ([\d.]+) GiB", output)[1]))
    assert peaks[1] - peaks[0] < 0.06, peaks
