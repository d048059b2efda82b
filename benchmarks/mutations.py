"""Faults planted one at a time, and the test that finds each: `python benchmarks/mutations.py [NAME ...]`.

Each is tried in a copy of the checkout: the text is replaced, the named tests must fail. A mutation whose text is gone is an
error, since nothing was tried then. Prints a line each, and exits with 1 if any survived.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".demo", "*.egg-info", ".dev", "build", "dist")


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `file`; `tests` are pytest's arguments, of which at least one test must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "rms_norm_eps ignored", "megatron_patch/core/transformer_config.py",
        "layernorm_epsilon=model.norm_epsilon", "layernorm_epsilon=1e-5",
        "tests/model/test_config_decides.py",
    ),
    Mutation(
        "rope_theta ignored", "megatron_patch/model/llama.py",
        "self.rotary_base = llama.rotary_base", "self.rotary_base = 10000.0",
        "tests/model/test_config_decides.py",
    ),
    Mutation(
        "fine-tuning decays linearly", "megatron_patch/train/schedule.py",
        'else "cosine"', 'else "linear"',
        "tests/train/test_finetuning_against_hugging_face.py",
    ),
    Mutation(
        "fp16's scale never updated", "megatron_patch/train/optimizer.py",
        "inner.grad_scaler.update(found_inf)", "pass",
        "tests/train/test_loss_scale.py",
    ),
    Mutation(
        "a skipped step counts for Adam", "megatron_patch/train/optimizer.py",
        "inner.optimizer.uncount_step()", "pass",
        "tests/train/test_loss_scale.py",
    ),
    Mutation(
        "tracker before the rename", "megatron_patch/checkpoint/run_state.py",
        "    put_in_place(partial, final)\n    write_tracker(root, str(progress.iteration))\n",
        "    write_tracker(root, str(progress.iteration))\n    put_in_place(partial, final)\n",
        "tests/checkpoint/test_saved_state.py",
    ),
    Mutation(
        "every node is node 0", "megatron_patch/launch.py",
        'f"--node-rank={processes.node_rank}"', '"--node-rank=0"',
        "tests/scripts/test_two_nodes.py",
    ),
    Mutation(
        "a foreign Megatron stays on PYTHONPATH", "megatron_patch/launch.py",
        "return [folder for folder in folders if folder not in left_out], left_out", "return folders, left_out",
        "tests/scripts/test_two_nodes.py",
    ),
    Mutation(
        "attention's FLOPs doubled", "megatron_patch/llama/model_config.py",
        "6.0 * self.num_layers * seq_length * width", "12.0 * self.num_layers * seq_length * width",
        "tests/llama/test_flops.py",
    ),
    Mutation(
        "evaluation takes the first batches", "megatron_patch/train/loop.py",
        "if data.valid_plan.passes is None:", "if False:",
        "tests/train/test_evaluation.py",
    ),
    Mutation(
        "random state is not restored", "megatron_patch/checkpoint/run_state.py",
        'parallel.set_rng_state(loaded["rng"])', "pass",
        "tests/checkpoint/test_saved_state.py",
    ),
    Mutation(
        "another seed goes on", "megatron_patch/folders/resumption.py",
        '{"seed", "split"', '{"split"',
        "tests/train/test_resume.py::test_a_run_of_the_same_name_with_other_arguments_is_refused",
    ),
    Mutation(
        "minutes are hours", "megatron_patch/train/loop.py",
        "options.exit_duration_in_mins * 60", "options.exit_duration_in_mins * 3600",
        "tests/train/test_stopping.py",
    ),
    Mutation(
        "--kernels torch ignored", "megatron_patch/train/step.py",
        'prefer("torch" if state.config.options.kernels == "torch" else None)', "prefer(None)",
        "tests/train/test_kernels_option.py",
    ),
)  # fmt: skip


def survives(mutation: Mutation, folder: Path) -> bool:
    """Whether the tests pass with the fault in place. `folder` is a copy, left as it was found."""
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.file} has its text {text.count(mutation.old)} times; correct the table.")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests.split()]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text, encoding="utf-8")
    if result.returncode not in (0, 1):
        sys.exit(f"{mutation.name}: pytest could not run {mutation.tests}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.returncode == 0


def main(names: list[str]) -> int:
    wanted = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "checkout", ignore=_LEFT_OUT))
        for mutation in wanted:
            alive = survives(mutation, copy)
            survivors += [mutation.name] if alive else []
            print(f"{'SURVIVED' if alive else 'found   '}  {mutation.name}  ({mutation.tests})", flush=True)
    print(f"{len(wanted)} mutations, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
