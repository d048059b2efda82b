"""Fine-tuning in the test's own process, as each rank of a started command does it."""

from __future__ import annotations

from pathlib import Path

from megatron_patch.arguments.training import ARGUMENTS, read
from megatron_patch.core.parallel import Layout
from megatron_patch.data.finetune import finetune_run_data
from megatron_patch.train.log import RunLog
from megatron_patch.train.loop import run
from megatron_patch.train.setup import build_state
from megatron_patch.train.start import start_state
from megatron_patch.train.state import TrainState
from tests.launching import FINETUNE_ARGUMENTS, WITH_GA_ARGUMENTS


def finetune(layout: Layout, output: Path, *flags: str, task: str = "finetune", **changed: object) -> TrainState:
    """The state in which a fine-tuning ends that has the arguments of `tests.launching` but for `changed`.

    Args:
        layout: of the process group that the test has started. CUDA_VISIBLE_DEVICES and GPUS_PER_NODE must say one
            process.
        task: finetune, or finetune_with_ga.
    """
    defaults = FINETUNE_ARGUMENTS if task == "finetune" else WITH_GA_ARGUMENTS
    values = {**defaults, **changed, "OUTPUT_BASEPATH": output}
    argv = [f"{ARGUMENTS[task][name].flag}={value}" for name, value in values.items()]
    config = read(task, [*argv, "--num-workers=0", *flags]).config
    log = RunLog(config, active=True)
    try:
        data = finetune_run_data(config, layout, log.line)
        state = build_state(config, layout, log, data.train_iters)
        start_state(state, log)
        run(state, data, log)
    finally:
        log.close()
    state.close()
    return state
