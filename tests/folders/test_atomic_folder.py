"""Where a new folder is made, what killed processes left there, and what is said about the target after a failure."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess

import pytest

from megatron_patch.cli.convert import main
from megatron_patch.folders import atomic_folder as module
from megatron_patch.folders.atomic_folder import new_folder
from tests.weights.models import SMALL, random_weights, write_hf


@pytest.fixture
def source(tmp_path):
    return write_hf(tmp_path / "hf", SMALL, random_weights(SMALL))


def converted(monkeypatch, source, target, *flags):
    """The converter's status, in this process, whose handlers of signals stay as they are."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    values = ["--megatron-path=none", f"--source={source}", f"--target={target}", "--tensor-model-parallel-size=1"]
    values += ["--pipeline-model-parallel-size=1", "--model-name=auto", "--extra-vocab-size=0", "--mg2hf=false"]
    return main([*values, *flags])


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_names_is_written(source, tmp_path, monkeypatch, capsys, is_there):
    """Room is measured, and the folder in the making stands, where the link leads."""
    large, link = tmp_path / "large disk", tmp_path / "target"
    large.mkdir()
    if is_there:
        (large / "model").mkdir()
    link.symlink_to(large / "model")
    measured = []
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: (measured.append(folder), usage(folder))[1])
    with pytest.raises(RuntimeError), new_folder(link) as folder:
        assert folder.parent == large
        raise RuntimeError
    assert converted(monkeypatch, source, link) == 0
    assert link.is_symlink() and (large / "model/latest_checkpointed_iteration.txt").is_file()
    assert measured == [large / "model" if is_there else large]
    assert f"Written: {link}\n" in capsys.readouterr().out and os.listdir(large) == ["model"]


def test_a_mount_point_is_refused_before_anything_is_written(source, tmp_path, monkeypatch, capsys):
    """Nothing can be renamed to it, which would come to light after the last tensor."""
    target = tmp_path / "mounted"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: os.fspath(path) == str(target))
    (tmp_path / "link").symlink_to(target)
    for given in (target, tmp_path / "link"):
        with pytest.raises(SystemExit) as caught:
            converted(monkeypatch, source, given)
        assert caught.value.code == 2 and "it is a mount point" in capsys.readouterr().err
        with pytest.raises(ValueError, match="write a folder inside it"), new_folder(given):
            raise AssertionError("the body ran")
    assert sorted(os.listdir(tmp_path)) == ["hf", "link", "mounted"]
    assert converted(monkeypatch, source, target / "model") == 0


def test_what_another_process_of_our_number_left_is_removed(tmp_path):
    """In a container every run may be process 1, on a host of always the same name."""
    end = f"{socket.gethostname()}-{os.getpid()}"
    (tmp_path / "target").mkdir()
    for name in (f"target.partial-{end}", f"target.old-{end}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    with new_folder(tmp_path / "target") as folder:
        assert os.listdir(folder) == []
        (folder / "new").touch()
    assert os.listdir(tmp_path) == ["target"] and os.listdir(tmp_path / "target") == ["new"]


def test_what_a_living_process_makes_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        other = tmp_path / f"target.partial-{socket.gethostname()}-{process.pid}"
        other.mkdir()
        with new_folder(tmp_path / "target"):
            pass
        assert other.is_dir()
        process.kill()


def test_the_old_model_is_not_removed_where_nothing_has_taken_its_place(tmp_path):
    """A kill between the two renames."""
    old = tmp_path / f"target.old-{socket.gethostname()}-{os.getpid()}"
    old.mkdir()
    with pytest.raises(RuntimeError), new_folder(tmp_path / "target"):
        raise RuntimeError
    assert old.is_dir()


def test_the_old_model_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").touch()
    rename = os.replace

    def fail(source, place):
        if ".partial-" in str(source):
            raise OSError(5, "Input/output error")
        rename(source, place)

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), new_folder(target, overwrite=True):
        pass
    assert os.listdir(tmp_path) == ["target"] and os.listdir(target) == ["config.json"]


def test_what_is_said_about_the_target_is_true(source, tmp_path, monkeypatch, capsys):
    target = tmp_path / "target"
    weights = random_weights(SMALL)
    weights["model.norm.weight"][:] = float("nan")
    broken = write_hf(tmp_path / "broken", SMALL, weights)
    assert converted(monkeypatch, broken, target, "--verify") == 2
    assert f"Nothing was left at {target}." in capsys.readouterr().err
    assert converted(monkeypatch, source, target) == 0
    assert converted(monkeypatch, broken, target, "--overwrite", "--verify") == 2
    said = capsys.readouterr().err
    assert f"{target} is as it was." in said and "Nothing was left" not in said


def test_an_interrupt_after_the_new_model_is_in_place(source, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    assert converted(monkeypatch, source, tmp_path / "target") == 0
    with monkeypatch.context() as late:
        late.setattr(module, "flush", lambda folder: interrupt() if folder == tmp_path else None)
        assert converted(late, source, tmp_path / "target", "--overwrite") == 130
    said = capsys.readouterr().err
    assert f"What is at {tmp_path / 'target'} came there while this ran" in said and "Nothing was left" not in said
    assert (tmp_path / "target/latest_checkpointed_iteration.txt").is_file()
