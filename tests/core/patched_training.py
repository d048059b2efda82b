"""Indexed data, and the distributed optimizer from its first step to a resumed one: with all rows of the patch table,
and without each of them.

All of it runs in one process, since a process that has imported megatron-core is expensive.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any


def train_save_and_resume(folder: str, layout: Any) -> None:
    """Two steps, a save, two steps more; then a new start from the save, and its two steps.

    Raises an exception if the resumed losses differ from the uninterrupted ones, or if anything on the way fails.
    """
    from megatron_patch.checkpoint.restore import restore
    from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step
    from tests.tiny import tiny_batches, tiny_config

    config = tiny_config(output_path=folder)

    def fresh():
        return build_state(config, layout, RunLog(config, active=False), 4)

    state = fresh()
    losses = []
    for step in range(4):
        losses.append(train_step(state, tiny_batches(step, 2)).loss)
        state.scheduler.step(increment=1)
        if step == 1:
            saved = save_checkpoint(config, state.model, state.optimizer, state.scheduler, RunProgress(2, 4, 0, 0))
    again = fresh()
    restore(Path(saved), again.model, again.optimizer, again.scheduler)
    for step in (2, 3):
        loss = train_step(again, tiny_batches(step, 2)).loss
        again.scheduler.step(increment=1)
        if loss != losses[step]:
            raise RuntimeError(f"the loss of step {step} is {loss} after resuming, {losses[step]} without a stop")


def read_data_that_runs_code(folder: Path, layout: Any) -> None:
    """A blend's sample indices, one file after the other replaced by pickles: one makes a folder, one is an array.

    Raises an exception if it makes one, or if no sentence names the file.
    """
    import numpy

    from megatron_patch.data.indexed_pretrain import indexed_run_data
    from megatron_patch.errors import UserError
    from tests.formats.attacks import Payload
    from tests.launching import GOLDEN
    from tests.tiny import tiny_config

    pair = GOLDEN / "data" / "corpus_text_document"
    config = tiny_config(output_path=str(folder), train_data_path=f"0.5 {pair} 0.5 {pair}")
    indexed_run_data(config, layout, lambda line: None)
    files = sorted(folder.glob("data_cache/*/*.npy"))
    for kind in ("document_index", "sample_index", "shuffle_index", "dataset_index", "dataset_sample_index"):
        path = next(path for path in files if path.stem.endswith(f"-{kind}"))
        sound = path.read_bytes()
        for planted in (Payload(folder / "trace"), numpy.load(path)):  # core 0.19 takes arrays
            path.write_bytes(pickle.dumps(planted))
            try:
                indexed_run_data(config, layout, lambda line: None)
            except UserError as error:
                if path.name in str(error) and not (folder / "trace").exists():
                    continue
            raise RuntimeError(f"{path.name} was unpickled")
        path.write_bytes(sound)


def outcomes(folder: Path) -> dict[str, str]:
    """The error without a row, by the row's name; empty if there was none. `all` is the error with every row."""
    import megatron_patch.core.device  # noqa: F401

    from megatron_patch.core import parallel, patches
    from tests.tiny import be_alone, tiny_config

    be_alone()
    layout, found = parallel.start(tiny_config()), {}
    rows, additions = tuple(filter(patches.has_target, patches.PATCHES)), patches.ADDITIONS
    core = [(row, importlib.import_module(row.module)) for row in rows + additions]
    own = [(row, module, getattr(module, row.attribute)) for row, module in core if hasattr(module, row.attribute)]
    names = [f"{row.module}.{row.attribute}" for row, _ in core]
    for number, name in enumerate(["all", *names, "all again"]):
        for row, module in core:
            vars(module).pop(row.attribute, None)
        for row, module, value in own:
            setattr(module, row.attribute, value)
        patches.PATCHES, patches.ADDITIONS = (
            tuple(row for row in part if f"{row.module}.{row.attribute}" != name) for part in (rows, additions)
        )
        try:
            read_data_that_runs_code(folder / str(number), layout)
            train_save_and_resume(str(folder / str(number)), layout)
            found[name] = ""
        except Exception as error:  # whatever it is, it is told
            found[name] = f"{type(error).__name__}: {error}"
    parallel.stop()
    return found


if __name__ == "__main__":
    print(json.dumps(outcomes(Path(sys.argv[1]))))
