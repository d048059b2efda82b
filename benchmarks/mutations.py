"""Faults planted one at a time, and the test that finds each: `python benchmarks/mutations.py [NAME ...]`.

Each is tried in a copy of the checkout: the text is replaced, and one of the named tests must fail. A mutation whose
text is gone is an error, since nothing was tried then. The tests must pass without a fault: `make test` shows that,
this program does not. Prints a line each, with the test that failed, and exits with 1 if any survived.
"""

from __future__ import annotations

import os
import re
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
    """One fault: `old` becomes `new` in `file`. With it, one of the tests that pytest finds by `tests` must fail."""

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
        "return model.rotary_base\n", "return 10000.0\n",
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
        "tracker before the rename", "megatron_patch/checkpoint/save.py",
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
        "evaluation takes the first batches", "megatron_patch/train/evaluation.py",
        "if data.valid_plan.passes is None:", "if False:",
        "tests/train/test_evaluation.py",
    ),
    Mutation(
        "random state is not restored", "megatron_patch/checkpoint/restore.py",
        "parallel.set_rng_state(stored)", "pass",
        "tests/checkpoint/test_saved_state.py",
    ),
    Mutation(
        "another seed goes on", "megatron_patch/folders/recorded_run.py",
        '"seed", "split", "template"', '"split", "template"',
        "tests/folders/test_starting_point.py",
    ),
    Mutation(
        "minutes are hours", "megatron_patch/train/stopping.py",
        "options.exit_duration_in_mins * 60", "options.exit_duration_in_mins * 3600",
        "tests/train/test_stopping.py",
    ),
    Mutation(
        "--kernels torch ignored", "megatron_patch/train/step.py",
        'prefer("torch" if state.config.options.kernels == "torch" else None)', "prefer(None)",
        "tests/train/test_kernels_option.py",
    ),
    # What flags and arguments say
    Mutation(
        "--weight-decay ignored", "megatron_patch/train/schedule.py",
        "start_wd=config.options.weight_decay,\n        end_wd=config.options.weight_decay", "start_wd=0.1,\n        end_wd=0.1",
        "tests/train/test_flags_decide.py",
    ),
    Mutation(
        "--adam-beta2 ignored", "megatron_patch/core/transformer_config.py",
        "adam_beta2=options.adam_beta2", "adam_beta2=0.95",
        "tests/train/test_flags_decide.py",
    ),
    Mutation(
        "--clip-grad ignored", "megatron_patch/train/step.py",
        "factor, config.options.clip_grad)", "factor, 1.0)",
        "tests/train/test_flags_decide.py",
    ),
    Mutation(
        "--init-method-std ignored", "megatron_patch/core/transformer_config.py",
        "init_method_std=config.options.init_method_std", "init_method_std=0.02",
        "tests/train/test_flags_decide.py",
    ),
    Mutation(
        "--exit-interval is one late", "megatron_patch/train/stopping.py",
        "self.iterations >= options.exit_interval", "self.iterations > options.exit_interval",
        "tests/train/test_stopping.py",
    ),
    Mutation(
        "--keep-last ignored", "megatron_patch/checkpoint/save.py",
        "discard_old(root, config.options.keep_last)", "discard_old(root, 0)",
        "tests/checkpoint/test_housekeeping.py",
    ),
    Mutation(
        "--profile-step-start is one late", "megatron_patch/train/profiling.py",
        "max(options.profile_step_start - 2, 0)", "max(options.profile_step_start - 1, 0)",
        "tests/train/test_profiling.py",
    ),
    Mutation(
        "another weight decay goes on", "megatron_patch/folders/recorded_run.py",
        '"template", "weight_decay")', '"template")',
        "tests/folders/test_starting_point.py",
    ),
    Mutation(
        "an iteration more than TRAIN_TOKENS", "megatron_patch/arguments/training.py",
        "tokens // batch, warmup // batch", "-(-tokens // batch), warmup // batch",
        "tests/arguments/test_training.py",
    ),
    Mutation(
        "a GB is a GiB", "megatron_patch/arguments/findings.py",
        '"GB": 10**9', '"GB": 2**30',
        "tests/arguments/test_conversion.py",
    ),
    Mutation(
        "MEGATRON_PATH's tree is left out", "megatron_patch/launch.py",
        "(engine, str(ROOT), *inherited)", "(str(ROOT), *inherited)",
        "tests/test_launch.py",
    ),
    Mutation(
        "--no-append-eod ignored", "megatron_patch/cli/preprocess.py",
        "job.clean, not job.no_append_eod", "job.clean, True",
        "tests/cli/test_preprocess_flags.py",
    ),
    Mutation(
        "--valid-fraction ignored", "megatron_patch/cli/preprocess.py",
        "valid_fraction=job.valid_fraction", "valid_fraction=0.01",
        "tests/cli/test_preprocess_flags.py",
    ),
    # Data
    Mutation(
        "no end token after a document", "megatron_patch/preparation/encoding.py",
        "ids += document + end", "ids += document",
        "tests/preparation/test_pair.py",
    ),
    Mutation(
        "a replica takes another's samples", "megatron_patch/data/batches.py",
        "range(self.rank * plan.micro_batch_size,", "range(0,",
        "tests/data/test_samplers.py",
    ),
    Mutation(
        "every pass in the same order", "megatron_patch/data/batches.py",
        "self.shuffle_seed + epoch", "self.shuffle_seed",
        "tests/data/test_samplers.py",
    ),
    Mutation(
        "learnt tokens shifted by one", "megatron_patch/data/json_dataset.py",
        "loss_mask[begin : end - 1] = learnt[1:]", "loss_mask[begin : end - 1] = learnt[:-1]",
        "tests/data/test_sft.py",
    ),
    Mutation(
        "a split rounded down", "megatron_patch/data/splits.py",
        "begin, end = (round(share * float(len(lengths))) for share in ends)",
        "begin, end = (int(share * float(len(lengths))) for share in ends)",
        "tests/data/test_splits.py",
    ),
    Mutation(
        "an index's second block begins at 0", "megatron_patch/records/indexed.py",
        "file.write(np.concatenate([[offset], ends[:-1]])", "file.write(np.concatenate([[0], ends[:-1]])",
        "tests/records/test_indexed.py",
    ),
    # Weights
    Mutation(
        "gate and up swapped", "megatron_patch/weights/table.py",
        '(_MLP + "gate_proj.weight", _MLP + "up_proj.weight")', '(_MLP + "up_proj.weight", _MLP + "gate_proj.weight")',
        "tests/weights/test_megatron_2023.py",
    ),
    Mutation(
        "ranks' gate rows beside their up rows", "megatron_patch/weights/rules_2023.py",
        "for start in (0, half) for shard in shards", "for shard in shards for start in (0, half)",
        "tests/weights/test_megatron_2023.py",
    ),
    Mutation(
        "Meta's o_proj split by rows", "megatron_patch/weights/meta.py",
        '"layers.{}.attention.wo.weight", COLUMNS', '"layers.{}.attention.wo.weight", ROWS',
        "tests/weights/test_meta.py",
    ),
    Mutation(
        "new rows are the sum of the old", "megatron_patch/formats/lazy.py",
        "(total / self.base.shape[0]).to(self.dtype)", "total.to(self.dtype)",
        "tests/conversion/test_round_trip.py",
    ),
    Mutation(
        "a strided view's second row", "megatron_patch/formats/lazy.py",
        "start, columns = first * self.row_stride, self.shape[1]", "start, columns = first * self.shape[1], self.shape[1]",
        "tests/formats/test_lazy.py",
    ),
    Mutation(
        "--verify compares the target with itself", "megatron_patch/conversion/verify.py",
        "source.hf(place), written.hf(place)", "written.hf(place), written.hf(place)",
        "tests/weights/test_broken_sources.py::test_verify_compares_both_sides",
    ),
    # Kernels and model
    Mutation(
        "a query sees the next key", "megatron_patch/kernels/softmax.py",
        "device=device).tril(keys - queries)", "device=device).tril(keys - queries + 1)",
        "tests/kernels/test_softmax.py",
    ),
    Mutation(
        "padding of the vocabulary counts", "megatron_patch/model/llama.py",
        "            valid=self.valid_rows,\n", "            valid=None,\n",
        "tests/train/test_vocabulary_padding.py",
    ),
    Mutation(
        "a linear factor of positions ignored", "megatron_patch/model/llama.py",
        'self.llama.rope_factor if self.llama.rope_type == LINEAR else 1.0', "1.0",
        "tests/llama/test_rope_scaling.py",
    ),
    # Training
    Mutation(
        "warm-up counted in samples", "megatron_patch/train/schedule.py",
        "lr_warmup_steps=config.warmup_iters", "lr_warmup_steps=config.warmup_iters * config.global_batch_size",
        "tests/train/test_against_hugging_face.py -k one",
    ),
    Mutation(
        "gradients of norms add up over steps", "megatron_patch/train/optimizer.py",
        "torch._foreach_zero_(others)", "pass",
        "tests/train/test_flags_decide.py",
    ),
    Mutation(
        "consumed samples are not restored", "megatron_patch/train/loop.py",
        "for name, value in vars(progress).items():\n            setattr(state, name, value)",
        "state.iteration = progress.iteration",
        "tests/train/test_run.py",
    ),
    Mutation(
        "an incomplete batch counts as a whole one", "megatron_patch/train/loop.py",
        "state.consumed_samples += in_batch", "state.consumed_samples += plan.global_batch_size",
        "tests/train/test_run.py",
    ),
    Mutation(
        "a tag of TensorBoard renamed", "megatron_patch/train/loop.py",
        '"learning-rate": lr', '"learning rate": lr',
        "tests/train/test_run.py",
    ),
    Mutation(
        "no checkpoint at the end", "megatron_patch/train/loop.py",
        "(every > 0 and iteration % every == 0) or iteration == last", "every > 0 and iteration % every == 0",
        "tests/train/test_evaluation.py",
    ),
    Mutation(
        "a line has the last loss alone", "megatron_patch/train/loop.py",
        "sum(self.losses) / len(self.losses)", "self.losses[-1]",
        "tests/train/test_loop.py",
    ),
    Mutation(
        "the speed of all GPUs called one's", "megatron_patch/train/loop.py",
        "/ seconds / layout.world_size", "/ seconds",
        "tests/scripts/test_two_nodes.py",
    ),
    Mutation(
        "the first rank writes the log", "megatron_patch/core/parallel.py",
        "return self.rank == self.world_size - 1", "return self.rank == 0",
        "tests/train/test_against_hugging_face.py -k PP2-hf_gqa",
    ),
    Mutation(
        "stages begin as twins", "megatron_patch/core/parallel.py",
        "seed + 100 * parallel_state", "seed + 0 * parallel_state",
        "tests/core/test_parallel.py",
    ),
    # Checkpoints
    Mutation(
        "fp32 weights are saved as their bf16 ones", "megatron_patch/core/adam.py",
        "return join_float32(self.model_copies[parameter], self.remainders[parameter], parameter.grad.detach())",
        "return parameter.grad.detach().copy_(self.model_copies[parameter])",
        "tests/core/test_adam.py tests/checkpoint/test_saved_state.py",
    ),
    Mutation(
        "the schedule is not restored", "megatron_patch/checkpoint/restore.py",
        'scheduler.load_state_dict({**loaded["scheduler"], **lengths})', "pass",
        "tests/train/test_run.py",
    ),
    Mutation(
        "a rank's second row of optimizer state", "megatron_patch/checkpoint/optimizer_state.py",
        "rows, columns = 1, min(width - column, last - first)", "rows, columns = 1, width - column",
        "tests/checkpoint/test_optimizer_state.py",
    ),
    Mutation(
        "a core that was not tried is used", "megatron_patch/core/patches.py",
        "if not is_supported(version):", "if False:",
        "tests/core/test_patches.py::test_a_core_that_was_not_tried_is_what_a_user_can_mend",
    ),
    Mutation(
        "another format of core's is converted", "megatron_patch/weights/native.py",
        "    read_backends(location.folder)", "    pass",
        "tests/weights/test_broken_sources.py::test_another_format_of_core_s_is_one_sentence_wherever_it_is_read",
    ),
    Mutation(
        "a damaged state is taken", "megatron_patch/checkpoint/restore.py",
        "    _check(folder, loaded, optimizer, scheduler)\n", "",
        "tests/checkpoint/test_restore.py",
    ),
    Mutation(
        "one vocabulary row too few on each rank", "megatron_patch/checkpoint/initial_weights.py",
        "model.first_row + model.valid_rows)", "model.first_row + model.valid_rows - 1)",
        "tests/model/test_config_decides.py",
    ),
    Mutation(
        "sequences called documents", "megatron_patch/inspection/data.py",
        "{data.boundaries - 1} documents", "{data.boundaries} documents",
        "tests/inspection/test_inspection.py",
    ),
    Mutation(
        "a rank begins with the half that is not there yet", "megatron_patch/core/tensor_exchange.py",
        "halves if rank in halves[0] else (halves[1], halves[0])", "halves",
        "tests/core/test_tensor_exchange.py",
    ),
    Mutation(
        "ZeRO's weights are copied from this rank itself", "megatron_patch/core/weight_gathers.py",
        "self.of_ranks[bucket][rank][its]", "self.of_ranks[bucket][self.peers.rank][its]",
        "tests/train/test_graphs.py -k several_processes",
    ),
    Mutation(
        "the second of two parts apart is left out", "megatron_patch/kernels/sums.py",
        "if APART > 1:", "if APART > 2:",
        "tests/kernels/test_sums.py",
    ),
    Mutation(
        "every rank measures every product", "megatron_patch/train/product_choices.py",
        "list(all_noted)[rank::ranks]", "list(all_noted)",
        "tests/train/test_product_choices.py",
    ),
    Mutation(
        "a GPU that waits for Python says nothing", "megatron_patch/train/launch_watch.py",
        "_MUCH = 0.15", "_MUCH = 0.65",
        "tests/train/test_launch_watch.py",
    ),
)  # fmt: skip


def found_by(mutation: Mutation, folder: Path) -> str:
    """The first test that fails with the fault in place, "" if none does. `folder` is a copy, left as it was found.

    The copy stands first on PYTHONPATH: processes that tests start would otherwise import the installed checkout, which
    has no fault in it.
    """
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.name}: {mutation.file} has its text {text.count(mutation.old)} times; correct the table.")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests.split()]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text, encoding="utf-8")
    if result.returncode not in (0, 1):
        sys.exit(f"{mutation.name}: pytest could not run {mutation.tests}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    return failed[1] if failed else ""


def main(names: list[str]) -> int:
    """Try the named faults, or all; returns 1 if one survived."""
    wanted = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "checkout", ignore=_LEFT_OUT))
        for mutation in wanted:
            test = found_by(mutation, copy)
            survivors += [] if test else [mutation.name]
            print(f"found     {mutation.name}: {test}" if test else f"SURVIVED  {mutation.name}: {mutation.tests}", flush=True)
    print(f"{len(wanted)} mutations, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
