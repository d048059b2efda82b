"""Fine-tuning data: the training files for EPOCH passes or TRAIN_ITERS iterations, and the validation files."""

from __future__ import annotations

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.data import Say
from megatron_patch.data.batches import RunData, ValidationSet, plan_of
from megatron_patch.data.json_dataset import JsonDataset, run_dataset
from megatron_patch.data.run_tokenizer import text_tokenizer
from megatron_patch.data.several_files import joined, most_segments, names_of, weighted
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.data_paths import JsonFiles


def finetune_run_data(config: TrainConfig, layout: Layout, say: Say) -> RunData:
    """The training files for EPOCH shuffled passes; after each the run evaluates all validation files whole, and saves.

    With TRAIN_ITERS instead it passes over them as often as that takes. It saves every SAVE_INTERVAL iterations, and
    evaluates `--eval-iters` batches of each validation file every `--eval-interval`.

    Raises:
        UserError: a file cannot be used, or training on it would teach nothing.
    """
    say, source = _said_once(say), config.train_data
    assert isinstance(source, JsonFiles)
    tokenizer = text_tokenizer(config, say)
    parts = [_learnt_from(config, tokenizer, path, say) for path in source.paths]
    train, blend = joined(parts), weighted(parts, source.weights, config.options.seed, say)
    plan = plan_of(config, layout.data_parallel_size, len(train), shuffled=True, passes=config.epochs or None, blend=blend)
    validation = _validation(config, layout, tokenizer, say)
    by_epochs = config.epochs > 0
    return RunData(
        train=train,
        plan=plan,
        validation=validation,
        train_iters=config.epochs * plan.batches_per_pass if by_epochs else config.train_iters,
        eval_every=plan.batches_per_pass if by_epochs else config.options.eval_interval,
        save_every=plan.batches_per_pass if by_epochs else config.save_interval,
        most_segments=most_segments([train, *(part.data for part in validation)]),
    )


def _learnt_from(config: TrainConfig, tokenizer: Tokenizer, path: str, say: Say) -> JsonDataset:
    """The samples of a training file, of which something must be learnt."""
    data = run_dataset(config, tokenizer, path, say)
    data.report.require_something_to_learn()
    return data


def _validation(config: TrainConfig, layout: Layout, tokenizer: Tokenizer, say: Say) -> tuple[ValidationSet, ...]:
    """Each validation file, whole or by `--eval-iters`; none without evaluations.

    `say` gets a line about one of which nothing would be learnt; it is left out.
    """
    assert isinstance(config.valid_data, JsonFiles)
    if not config.epochs and not config.options.eval_interval:
        return ()
    paths, found = config.valid_data.paths, []
    names = names_of(paths) if len(paths) > 1 else [""]
    for path, name in zip(paths, names):
        data = run_dataset(config, tokenizer, path, say)
        if data.report.teaches_nothing:
            say(f"  {path}: {data.report.why_nothing} Evaluation is skipped.")
            continue
        plan = plan_of(config, layout.data_parallel_size, len(data), shuffled=True, passes=1)
        most = plan.batches_per_pass if config.epochs else config.options.eval_iters
        found.append(ValidationSet(name, data, plan, min(most, plan.batches_per_pass)))
    return tuple(found)


def _said_once(say: Say) -> Say:
    """`say`, but for lines that it has said: one file may be named twice."""
    said: set[str] = set()

    def say_new(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_new
