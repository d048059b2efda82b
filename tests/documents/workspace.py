"""A workspace in which the documents' commands run as they stand, with a tiny model in LLaMA-2 7B's place.

What costs hours, gigabytes or a network has a stand-in: `wget` finds its files in a folder, `git clone` links to
this checkout, `make` says what it would do, and the words of STAND_INS are replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.launching import GOLDEN, ROOT, environment, long_model

# A pattern of the documents → what the tiny model and two cores need in its place.
STAND_INS = {
    r"/mnt/workspace": "{work}",
    r"(?<!plan )\b7B\b": "auto",  # of the name of step 4's folder too
    r"\bllama-7b\b": "auto",
    r"(?m)(/output_megatron_llama2/)$": r"\1 --num-workers 0",
    r"(100000000 10000 \S+)": r"\1 --exit-interval 1",
    r"(--sft-output-dir \S+)": r"\1 --valid-fraction 0.2 --workers 1",
}
_PROGRAMS = {
    "wget": 'exec cp "{downloads}/${{1##*/}}" .',
    "git": 'test "$1" = clone && exec ln -s "{root}" "$3"',
    "make": 'PATH=${{PATH#*:}}; exec make -n -C "{root}" "$@"',
    "megatron-patch": 'PYTHONPATH="{root}" exec "{python}" -m megatron_patch.cli.main "$@"',
    # Reads everything and stops where torchrun would take over.
    "python-that-only-reads": 'exec "{python}" "{reader}" "$@"',
}


@dataclass(frozen=True)
class Workspace:
    folder: Path  # holds WORK_DIR, programs/ and downloads/

    @property
    def work(self) -> Path:
        return self.folder / "workspace"

    def replaced(self, text: str) -> str:
        for pattern, instead in STAND_INS.items():
            text = re.sub(pattern, instead.replace("{work}", str(self.work)), text)
        return text

    def run(self, block: str, only_read: bool = False) -> str:
        """A block's output, typed into one POSIX shell that stops at the first error.

        `only_read`: training scripts read and check their arguments, and end before a process starts.
        """
        values = environment() | {"WORK_DIR": str(self.work), "GPUS_PER_NODE": "1"}
        values["PATH"] = f"{self.folder / 'programs'}{os.pathsep}{values['PATH']}"
        if only_read:
            values["PYTHON"] = "python-that-only-reads"
        command = ["dash", "-eux", "-c", self.replaced(block)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=self.folder, env=values, text=True, timeout=300, **streams)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout


def make_workspace(folder: Path) -> Workspace:
    """`folder` with the stand-ins; WORK_DIR itself is left to the documents' first command."""
    downloads, programs = folder / "downloads", folder / "programs"
    downloads.mkdir()
    programs.mkdir()
    values = dict(downloads=downloads, root=ROOT, python=sys.executable, reader=Path(__file__).with_name("only_read.py"))
    for name, body in _PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body.format(**values)}\n")
        (programs / name).chmod(0o755)
    _pack(long_model(folder / "Llama-2-7b-hf"), downloads / "Llama-2-7b-hf.tgz")
    _pack(_raw_wudao(folder / "WuDaoCorpus2.0_base_sample"), downloads / "WuDaoCorpus2.0_base_sample.tgz")
    for ending in (".bin", ".idx"):
        shutil.copy(GOLDEN / f"data/corpus_text_document{ending}", downloads / f"wudao_llamabpe_text_document{ending}")
    for name in ("wudao_train.json", "wudao_valid.json"):
        shutil.copy(GOLDEN / "sft/alpaca_output.json", downloads / name)
    ready_made = shutil.copytree(GOLDEN / "megatron_2023/september/mha_tp1_pp1", folder / "llama-2-7b-hf-to-megatron-tp1-pp1")
    _pack(ready_made, downloads / "llama-2-7b-hf-to-megatron-tp1-pp1.tgz")
    return Workspace(folder)


def _raw_wudao(folder: Path) -> Path:
    folder.mkdir()
    for part in sorted((GOLDEN / "data/wudao_raw").glob("part-*.json")):
        records = json.loads(part.read_text(encoding="utf-8"))
        more = [record | {"content": f"{number}。{record['content']}"} for number in range(2) for record in records]
        (folder / part.name).write_text(json.dumps(more, ensure_ascii=False), encoding="utf-8")
    return folder


def _pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, folder.name)
    shutil.rmtree(folder)
