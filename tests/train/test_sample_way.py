"""ARCHITECTURE.md's section "A sample's way" names the files that a sample passes in a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_patch.arguments.training import ARGUMENTS, read
from megatron_patch.data.finetune import finetune_run_data
from megatron_patch.data.indexed_pretrain import indexed_run_data
from megatron_patch.data.json_pretrain import json_run_data
from megatron_patch.records.indexed import write_index
from megatron_patch.train.log import RunLog
from megatron_patch.train.loop import run
from megatron_patch.train.setup import build_state
from megatron_patch.train.start import start_state
from tests.import_graph import ROOT
from tests.launching import FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN_ARGUMENTS
from tests.train.sample_trace import Trace, tracing, word_ids

WORD = "quixotic"
WAYS = {"indexed": indexed_run_data, "JSON": json_run_data, "fine-tuning": finetune_run_data}
MOST = 15


def section() -> str:
    """ARCHITECTURE.md's section about the way."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return text.partition("\n## A sample's way\n")[2].partition("\n## ")[0]


def listed(way: str) -> list[str]:
    """The stops of a way: rows of the table with a mark in its column."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section().splitlines() if line.startswith("|")]
    column = rows[0].index(way)
    return [row[0].strip("`") for row in rows[2:] if row[column]]


def beside() -> set[str]:
    """The files that look at a sample and hand it on as it is."""
    return set(re.findall(r"^- `([^`]+)`", section(), flags=re.MULTILINE))


def written(way: str, folder: Path) -> Trace:
    """Data of which every sample is watched."""
    if way != "indexed":
        path = folder / "watched.jsonl"
        records = [{"instruction": f"Count {n}.", "output": f"One {WORD} word."} for n in range(6)]
        path.write_text("\n".join(map(json.dumps, records)))
        return Trace(str(path), WORD, word_ids(GOLDEN / "hf_mha", WORD))
    ids, documents = [701, 702, 703, 704], 40
    np.tile(np.array(ids, dtype=np.uint16), 10 * documents).tofile(folder / "watched.bin")
    with open(folder / "watched.idx", "wb") as file:
        write_index(file, np.full(documents, 40, dtype=np.int32), np.dtype(np.uint16))
    return Trace(str(folder / "watched"), "", ids)


def command(way: str, prefix: str, folder: Path) -> tuple[str, list[str]]:
    """Task and flags of a short run over the data."""
    task = "finetune" if way == "fine-tuning" else "pretrain"
    values = {**(FINETUNE_ARGUMENTS if task == "finetune" else PRETRAIN_ARGUMENTS), "MODEL_SIZE": "tiny"}
    values |= {"OUTPUT_BASEPATH": folder / "out", "SEQ_LEN": 32 if way == "indexed" else 256}
    values["PAD_LEN"] = values["SEQ_LEN"]
    if task == "finetune":
        values |= {"TRAIN_DATASET_PATH": prefix, "VALID_DATASET_PATH": GOLDEN / "sft" / "alpaca_output.json", "EPOCH": 1}
    else:
        values |= {"DATASET_PATH": prefix, "TRAIN_TOKENS": 2 * 4 * values["SEQ_LEN"], "WARMUP_TOKENS": 0}
    flags = [f"{ARGUMENTS[task][name].flag}={value}" for name, value in values.items()]
    return task, [*flags, f"--tokenizer-path={GOLDEN / 'hf_mha'}", "--num-workers=0", "--eval-interval=0"]


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_passes_the_listed_files_and_no_other(way, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUS_PER_NODE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    trace = written(way, tmp_path)
    with tracing(trace):
        task, flags = command(way, trace.prefix, tmp_path)
        config = read(task, flags).config
        log = RunLog(config, active=False)
        data = WAYS[way](config, alone, log.line)
        state = build_state(config, alone, log, data.train_iters)
        start_state(state, log)
        run(state, data, log)
    gpu_only = {"train/graphs.py"}
    assert set(trace.files) - beside() == set(listed(way)) - gpu_only
    assert len(listed(way)) <= MOST
