"""Pre-training data from JSON files: the original's prompt, and a fixed part of each file to evaluate on.

The original evaluates on the file that it trains on. Here the part that `--split` gives to validation is held out, in
the order of the file, as with indexed data. It has at least one sample, so small files are evaluated on too.
"""

from __future__ import annotations

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.data import Say
from megatron_patch.data.batches import RunData, ValidationSet, plan_of
from megatron_patch.data.json_dataset import JsonDataset, run_dataset
from megatron_patch.data.run_tokenizer import text_tokenizer
from megatron_patch.data.several_files import joined, most_segments, names_of, weighted
from megatron_patch.data_paths import JsonFiles


def json_run_data(config: TrainConfig, layout: Layout, say: Say) -> RunData:
    """Shuffled passes over the files until TRAIN_TOKENS are reached.

    The held-out parts are evaluated every `--eval-interval` iterations.

    Raises:
        UserError: a file cannot be used, or training on it would teach nothing.
    """
    source, tokenizer = config.train_data, text_tokenizer(config, say)
    assert isinstance(source, JsonFiles)
    parts, validation = [], []
    names = names_of(source.paths) if len(source.paths) > 1 else [""]
    for path, name in zip(source.paths, names):
        whole = run_dataset(config, tokenizer, path, say)
        whole.report.require_something_to_learn()
        learnt, held_out = json_split(whole.report.samples, config.options.split)
        parts.append(whole.part(learnt))
        parts[-1].report.require_something_to_learn()
        valid = _validation(config, whole.part(held_out), learnt, held_out, say)
        if valid is not None:
            plan = plan_of(config, layout.data_parallel_size, len(valid), shuffled=True, passes=1)
            batches = min(config.options.eval_iters, plan.batches_per_pass)
            validation.append(ValidationSet(name, valid, plan, batches))
    train, blend = joined(parts), weighted(parts, source.weights, config.options.seed, say)
    return RunData(
        train=train,
        plan=plan_of(config, layout.data_parallel_size, len(train), shuffled=True, blend=blend),
        validation=tuple(validation),
        train_iters=config.train_iters,
        eval_every=config.options.eval_interval,
        save_every=config.save_interval,
        most_segments=most_segments([train, *(part.data for part in validation)]),
    )


def json_split(samples: int, split: str) -> tuple[range, range]:
    """The sample numbers for training and those for validation, by the shares of `split`, as `98,2,0`.

    Parts are rounded as core rounds documents. Training always gets a sample. Validation gets one if it has a share and
    the file has two samples.
    """
    shares = [float(share) for share in split.split(",")] + [0.0, 0.0]
    train = max(1, round(shares[0] / sum(shares) * samples))
    end = max(train, round((shares[0] + shares[1]) / sum(shares) * samples))
    if shares[1] and end == train and samples > 1:
        train, end = (train - 1, train) if train > 1 else (train, train + 1)
    return range(train), range(train, end)


def _validation(config: TrainConfig, part: JsonDataset, learnt: range, held_out: range, say: Say) -> JsonDataset | None:
    """The data set for evaluations, or None if there are none. `say` gets a line about the parts of the file."""
    path, split, every = part.report.path, config.options.split, config.options.eval_interval
    if not held_out:
        if every:
            say(f"  {path}: the split {split} leaves no validation data; evaluation is skipped")
        return None
    numbers = f"{held_out.start + 1} to {held_out.stop}" if len(held_out) > 1 else f"{held_out.stop}"
    said = (
        f"  {path}: samples 1 to {learnt.stop} of {len(part.table)} are trained on, and {len(held_out)} are held out "
        f"(number {numbers}, in the order of the file; --split {split})"
    )
    if part.report.teaches_nothing:
        say(f"{said}; {part.report.why_nothing} Evaluation is skipped.")
        return None
    say(f"{said}: evaluated on every {every} iterations." if every else f"{said}; --eval-interval 0, no evaluation.")
    # An evaluation takes a few batches only. Without samples that teach nothing, none of them is without a token to
    # learn.
    return part.teaching() if every else None
