"""What a user can mend is one sentence. A bug keeps its traceback and ends with status 1, if it is a ValueError too.

The planted bug is `_a, _b = [1]`, which raises a plain ValueError.
"""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_patch import launch
from megatron_patch.cli import convert, finetune, inspection, merge_data, preprocess, pretrain, session
from megatron_patch.core import parallel
from megatron_patch.errors import UserError, sentence
from tests.launching import GOLDEN, ROOT
from tests.loaders import first_of
from tests.tiny import be_alone, tiny_config

SAID = "x is 1; it must be 2: write 2."
_CONVERT = {"source": GOLDEN / "hf_mha", "target": "new", "megatron-path": "none", "tensor-model-parallel-size": 1}
_CONVERT |= {"pipeline-model-parallel-size": 1, "model-name": "auto", "extra-vocab-size": 0, "mg2hf": "false"}
_PREPARE = [
    "--input",
    str(GOLDEN / "data" / "corpus.jsonl"),
    "--output-prefix",
    "p",
    "--tokenizer-folder",
    str(GOLDEN / "hf_mha"),
]
# module → (what of it is replaced, its arguments, the status for what a user can mend)
ENTRIES = {
    launch: [("read", ["pretrain"], 2)],
    convert: [("read", [], 2), ("_run", [f"--{name}={value}" for name, value in _CONVERT.items()], 2)],
    preprocess: [("find_files", _PREPARE, 2), ("preprocess", _PREPARE, 1)],
    merge_data: [("merge", ["a", "--output-prefix", "p"], 2)],
    inspection: [("describe_sft", [str(GOLDEN / "sft" / "alpaca_output.json")], 2)],
    pretrain: [("session.read", [], 2)],
    finetune: [("session.read", [], 2)],
}
CASES = [(module, *case) for module, cases in ENTRIES.items() for case in cases]


def bug(*_, **__):
    _a, _b = [1]


def users(*_, **__):
    raise UserError(SAID)


def planted(monkeypatch, tmp_path, module, name, raises):
    monkeypatch.chdir(tmp_path)
    owner = session if name.startswith("session.") else module
    monkeypatch.setattr(owner, name.removeprefix("session."), raises)


@pytest.mark.parametrize("module, name, argv, _status", CASES)
def test_a_bug_is_not_taken_for_a_user_s_error(module, name, argv, _status, monkeypatch, tmp_path, capsys):
    planted(monkeypatch, tmp_path, module, name, bug)
    with pytest.raises(ValueError, match="not enough values to unpack") as raised:
        module.main(argv)
    assert type(raised.value) is ValueError and capsys.readouterr().err == ""


@pytest.mark.parametrize("module, name, argv, status", CASES)
def test_what_a_user_can_mend_is_one_sentence(module, name, argv, status, monkeypatch, tmp_path, capsys, caplog):
    planted(monkeypatch, tmp_path, module, name, users)
    try:
        left = module.main(argv)
    except SystemExit as end:
        left = end.code
    said = capsys.readouterr().err + caplog.text  # training processes say it through their log
    assert left == status and SAID in said and "Traceback" not in said


def test_python_s_end_of_a_bug_is_a_traceback_and_status_1(tmp_path):
    code = (
        "import sys; from megatron_patch import launch\n"
        "def read(*_):\n    a, b = [1]\n"
        "launch.read = read\nlaunch.main(sys.argv[1:])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "pretrain"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("not enough values to unpack (expected 2, got 1)\n")


class Rows(torch.utils.data.Dataset):
    def __init__(self, raises):
        self.raises = raises

    def __getitem__(self, index):
        self.raises()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("place", ["build_data", "run"])
@pytest.mark.parametrize("raises", [bug, users])
def test_inside_a_training_session(raises, place, workers, monkeypatch, tmp_path, capsys):
    """In the process itself and in a loader's, whose error torch wraps in its traceback."""
    be_alone()

    def fails(*_):
        first_of(torch.utils.data.DataLoader(Rows(raises), sampler=[0], num_workers=workers))

    monkeypatch.setattr(session, "build_state", lambda *_: SimpleNamespace(close=lambda: None, joins_micro_batches=False))
    monkeypatch.setattr(session, "start_state", lambda *_: None)
    monkeypatch.setattr(session, "run", fails)
    # It would go on watching this process, and end it when it has stood still at one place for ten minutes.
    monkeypatch.setattr(session, "HangWatch", lambda *_: SimpleNamespace(stop=lambda: None))
    build = fails if place == "build_data" else lambda *_: SimpleNamespace(train_iters=1)
    with pytest.raises(ValueError if raises is bug else SystemExit) as ended:
        session.training_session(tiny_config(output_path=str(tmp_path)), build)
    parallel.stop()
    said = capsys.readouterr().err
    if raises is bug:
        assert type(ended.value) is ValueError and said == ""
    else:
        assert ended.value.code == 2 and said.splitlines()[-1] == f"rank 0: {SAID}"


def test_the_system_s_word_about_a_file_or_the_disk_is_a_sentence_and_no_other():
    assert "/data/x.idx" in sentence(PermissionError(errno.EACCES, "Permission denied", "/data/x.idx"))
    assert "No space left" in sentence(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        sentence(OSError(errno.EBADF, "Bad file descriptor"))


# Modules in which a plain ValueError tells a programmer that a function is called wrongly.
_FOR_PROGRAMMERS = ("kernels/", "weights/source.py", "data/packing.py", "core/array_files.py")


def test_what_speaks_to_users_is_a_user_error():
    found = []
    for path in sorted((ROOT / "megatron_patch").rglob("*.py")):
        name, text = path.relative_to(ROOT / "megatron_patch").as_posix(), path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text if "ValueError" in text else "")):
            called = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
            if isinstance(called, ast.Name) and called.id == "ValueError" and not name.startswith(_FOR_PROGRAMMERS):
                found.append(f"{name}:{node.lineno}")
    assert not found


def test_only_the_entries_print_a_user_error_and_leave():
    """Code that caught every ValueError would take a bug for a user's error.

    Such an `except` may stand only around a call for which Python or a library raises one.
    """
    for module in (launch, convert, preprocess, merge_data, inspection, pretrain, finetune, session):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        caught = {
            node.id
            for handler in ast.walk(tree)
            if isinstance(handler, ast.ExceptHandler) and handler.type is not None
            for node in ast.walk(handler.type)
            if isinstance(node, ast.Name)
        }
        assert caught <= {"UserError", "OnEveryRank", "OSError", "RuntimeError", "KeyboardInterrupt"}
