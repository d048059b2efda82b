"""ARCHITECTURE.md lists the files that a weight passes from pytorch_model.bin through a training run to safetensors.

A file is passed if one of its functions has the weight in hand: as a place in a file, as a tensor that is read when
asked for, or in memory. Forward and backward passes are left out: they use the weights and move none.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.core import parallel
from megatron_patch.formats import distcp, lazy, streaming, torch_archive
from megatron_patch.llama.model_config import read_hf_config
from megatron_patch.train import optimizer, setup
from megatron_patch.train.log import RunLog
from megatron_patch.train.saves import save
from megatron_patch.train.start import start_state
from megatron_patch.train.step import train_step
from tests.launching import GOLDEN, ROOT
from tests.tiny import be_alone, tiny_config
from tests.weights.models import read_hf

MOST = 18
PACKAGE = str(ROOT / "megatron_patch") + "/"
HELD = (
    *(lazy.FileTensor, lazy.Strided, lazy.Rows, lazy.Stacked, lazy.Beside, lazy.Cast, lazy.MeanRow),
    *(torch_archive.StoredTensor, distcp.ItemTensor, streaming.Item, streaming.Written, ShardedTensor),
)


class Way:
    """Collects the files whose functions return with a weight in one of their variables.

    Attributes:
        memory: addresses of the model's memory. None in a conversion, where every matrix is a piece of a weight.
    """

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.memory: set[int] | None = None
        self._busy = threading.local()

    def _holds(self, value: Any, depth: int = 2) -> bool:
        if isinstance(value, HELD):
            return True
        if isinstance(value, torch.Tensor):
            if self.memory is None:
                return value.is_floating_point() and value.dim() > 1
            return value.layout == torch.strided and value.untyped_storage().data_ptr() in self.memory
        inner = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
        return depth > 0 and any(self._holds(item, depth - 1) for item in list(inner)[:50])

    def _look(self, frame: Any, event: str, result: Any) -> None:
        name = frame.f_code.co_filename
        if event != "return" or not name.startswith(PACKAGE) or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        if self._holds(result) or any(map(self._holds, frame.f_locals.values())):
            self.files.add(name.removeprefix(PACKAGE))
        self._busy.now = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def batches() -> Iterator[dict[str, torch.Tensor]]:
    for row in torch.randint(0, 800, (2, 1, 17), generator=torch.Generator().manual_seed(0)):
        yield {"tokens": row[:, :-1], "labels": row[:, 1:].contiguous(), "loss_mask": torch.ones(1, 16)}


def storages(*tensors: torch.Tensor) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors} - {0}


def passed(folder, monkeypatch) -> set[str]:
    """The files passed by a conversion, an iteration from what it wrote, its checkpoint, and the conversion of that."""
    way = Way()
    with way.watched():
        convert(Conversion(GOLDEN / "hf_mha_bin", folder / "megatron", to_hf=False))
    be_alone()
    config = tiny_config(
        model=read_hf_config(folder / "megatron"), load=str(folder / "megatron"), output_path=str(folder / "out")
    )
    log = RunLog(config, active=False)

    def build_optimizer(config, model):
        way.memory = storages(*model.parameters(), *(parameter.main_grad for parameter in model.parameters()))
        with way.watched():
            return optimizer.build_optimizer(config, model)

    def update_weights(*arguments):
        with way.watched():
            update(*arguments)

    update = optimizer.update_weights
    monkeypatch.setattr(setup, "build_optimizer", build_optimizer)
    monkeypatch.setattr(optimizer, "update_weights", update_weights)
    state = setup.build_state(config, parallel.start(config), log, 4)
    with way.watched():
        start_state(state, log)
    train_step(state, batches())
    state.iteration += 1
    with way.watched():
        save(state, log)
    parallel.stop()
    way.memory = None
    (root,) = (folder / "out" / "checkpoint").iterdir()
    with way.watched():
        convert(Conversion(root, folder / "hf", to_hf=True))
    return way.files - {"core/cpu_redirection.py"}  # which stands between any call and a CPU


def test_every_file_on_the_way_is_listed_and_no_other(tmp_path, monkeypatch):
    section = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## A weight's way")[1].split("\n## ")[0]
    listed = re.findall(r"^\| [0-9]+ \| `([\w/]+\.py)` \|", section, re.MULTILINE)
    assert set(listed) == passed(tmp_path, monkeypatch)
    assert len(listed) == len(set(listed)) <= MOST
    before = torch.load(GOLDEN / "hf_mha_bin" / "pytorch_model.bin", weights_only=True)
    after = read_hf(tmp_path / "hf")
    assert after and after.keys() <= before.keys(), "the way has not been gone to its end"
    assert not all(torch.equal(before[name].to(tensor.dtype), tensor) for name, tensor in after.items())
