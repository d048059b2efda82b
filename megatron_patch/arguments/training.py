"""The documented arguments of the training scripts, and every check of them, up to a `TrainConfig`.

Imports no torch: the launcher calls `read` before any process starts, and each process calls it again.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from megatron_patch.arguments.argument import Argument
from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.lora import with_lora
from megatron_patch.arguments.option_rows import LAUNCHER
from megatron_patch.arguments.original import refuse_original
from megatron_patch.arguments.precision import PrecisionReader
from megatron_patch.arguments.processes import Processes, plan_processes, processes_finding
from megatron_patch.arguments.ranges import option_findings, without_effect
from megatron_patch.arguments.room_on_disk import closed_folder, space_finding
from megatron_patch.arguments.training_list import FINETUNE, FINETUNE_WITH_GA, PRETRAIN
from megatron_patch.config import Options, TrainConfig
from megatron_patch.data_paths import DataSource, IndexedPairs, JsonFiles, parse_data, prefix_of
from megatron_patch.errors import UserError
from megatron_patch.folders.checkout import ROOT, checkout_problem
from megatron_patch.folders.engine import NO_TREE
from megatron_patch.folders.layout import CheckpointLocation
from megatron_patch.formats.typed import number, unwritable, whole_number
from megatron_patch.llama.divisibility import layout_findings, multiple_of, split_finding
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.records.indexed import check_indexed_dataset

_DOCUMENTED_BATCH = 8  # GLOBAL_BATCH_SIZE of the documented command
LISTS = {"pretrain": PRETRAIN, "finetune": FINETUNE, "finetune_with_ga": FINETUNE_WITH_GA}
ARGUMENTS = {task: script.by_name for task, script in LISTS.items()}


@dataclass(frozen=True)
class Reading:
    """What the arguments of a training script come to."""

    config: TrainConfig
    processes: Processes
    megatron_path: str
    notes: tuple[str, ...]
    dry_run: bool = False


def read(task: str, argv: Sequence[str]) -> Reading:
    """`argv` as the script of `task` writes it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    script, findings = LISTS[task], Findings()
    texts = findings.texts(script, given_texts(script, argv))
    refuse_original(script, [texts[argument.dest] for argument in script.documented])
    values = findings.values((*script.flags, *script.others), texts)
    of_launcher = {one.dest: values.pop(one.dest) for one in LAUNCHER}
    options = with_lora(Options(**values), findings, texts.get("precision"))
    raw = {argument.name: texts[argument.dest] for argument in script.documented}
    learns = "pretrain" if script is PRETRAIN else "finetune"
    reader = _Reader(learns, script.by_name, _without_bad_paths(script.documented, raw, findings), findings, [])
    reading = reader.reading(options)
    notes = without_effect(script, texts, reading.config.reads_json)
    reading = replace(reading, notes=(*notes, *reading.notes), **of_launcher)
    reader.findings.exit_if_any(script.name)
    return reading


def _without_bad_paths(documented: Iterable[Argument], raw: dict[str, str], findings: Findings) -> dict[str, str]:
    """A finding for each path that no file can have; what stands in their place lets the other checks go on."""
    good = dict(raw)
    for argument in documented:
        if argument.kind in ("path", "data", "json") and not findings.path(argument, raw[argument.name]):
            good[argument.name] = "none" if argument.name == "PRETRAIN_CHECKPOINT_PATH" else str(ROOT)
    return good


class _Reader(PrecisionReader):
    """The rest of the arguments, one group a method."""

    def reading(self, options: Options) -> Reading:
        self.take_pair()
        env = self.choice("ENV", None if os.environ.get("WORLD_SIZE") else ("dsw",))
        self.patch_path()
        self.resume(options.resume_from)
        source, model = self.source_and_model()
        if self.model_is_known:
            self.longest_row = model.position_limit
        extra = self.extra_vocabulary(source, model)
        self.gqa_layout(source, options)
        tp, pp = self.whole("TP"), self.whole("PP")
        processes, findings = plan_processes(env, tp * pp)
        for sentence in findings:
            self.problem("ENV", sentence)
        self.layout(model, extra, processes, tp, pp)
        data_parallel = self.data_parallel_size(processes, tp, pp)
        micro = self.whole("BATCH_SIZE")
        for flag, got, sentence in option_findings("EPOCH" in self.raw, options, self.findings.is_about_flag):
            self.findings.add_flag(flag, got, sentence)
        config = TrainConfig(
            task=self.task,
            name=self.name(),
            model=model,
            extra_vocab_size=extra,
            load=None if self.raw["PRETRAIN_CHECKPOINT_PATH"] == "none" else self.raw["PRETRAIN_CHECKPOINT_PATH"],
            output_path=self.raw["OUTPUT_BASEPATH"],
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            sequence_parallel=self.sequence_parallel(tp),
            use_distributed_optimizer=self.boolean("DO"),
            precision=self.precision(options, model, tp),
            recompute=self.choice("AC"),
            use_flash_attn=self.boolean("FL"),
            micro_batch_size=micro,
            global_batch_size=self.global_batch_size(micro, data_parallel, options.gradient_accumulation_steps),
            **self.rates(),
            **self.data(tp, self.rows_for_data(model, extra), options, source),
            **self.duration(),
            options=options,
        )
        config = self.within_positions(config)
        self.output_path(config)
        # Recorded as what it comes to, so that a run that goes on is compared by that.
        config = replace(config, options=replace(options, template=config.template))
        self.transformer_engine()
        return Reading(config, processes, self.raw.get("MEGATRON_PATH", NO_TREE), tuple(self.notes))

    def take_pair(self) -> None:
        """DATASET_PATH may name one file of its pair: then the pair is meant. Fine-tuning reads no pairs."""
        prefix = None if self.task == "finetune" else prefix_of(self.raw.get("DATASET_PATH", ""))
        if prefix is not None:
            self.raw["DATASET_PATH"] = prefix
            self.notes.append(f"DATASET_PATH names one file of a pair; the pair {prefix} is used.")

    def patch_path(self) -> None:
        if problem := checkout_problem(self.raw["MEGATRON_PATCH_PATH"]):
            self.problem("MEGATRON_PATCH_PATH", problem)

    def transformer_engine(self) -> None:
        """TE stands in later lists of the original; nothing goes by it here."""
        if "TE" in self.raw and self.boolean("TE"):
            label = self.arguments["TE"].label
            self.notes.append(f"{label} is true: this project's kernels do what Transformer Engine would; nothing changes.")

    def layout(self, model: LlamaConfig, extra: int, processes: Processes, tp: int, pp: int) -> None:
        """Whether TP and PP divide the model, where all three are known."""
        if not self.model_is_known or self.refused("TP", "PP"):
            return
        rows = None if self.refused("EXTRA_VOCAB_SIZE") else model.vocab_size + extra
        # Without GPUs there are as many processes as TP × PP asks for.
        count = None if processes.world_size == tp * pp else processes.world_size
        for name, sentence in layout_findings(model, tp, pp, rows, count):
            self.problem(name, sentence)

    def rows_for_data(self, model: LlamaConfig, extra: int) -> int:
        """Tokens that indexed data may hold are below this; any are where the model is not known."""
        known = self.model_is_known and not self.refused("EXTRA_VOCAB_SIZE")
        return model.vocab_size + extra if known else sys.maxsize

    def data_parallel_size(self, processes: Processes, tp: int, pp: int) -> int:
        count = processes.world_size
        problem = processes_finding(processes, tp, pp)
        if problem and not self.refused("ENV", "TP", "PP"):
            self.problem("TP", problem)
        return max(1, count // (tp * pp))

    def sequence_parallel(self, tp: int) -> bool:
        wanted = self.boolean("SP")
        if wanted and tp == 1:
            label = self.arguments["SP"].label
            self.notes.append(f"{label} is true and TP is 1: sequence parallelism has nothing to split and is off.")
        return wanted and tp > 1

    def global_batch_size(self, micro: int, data_parallel: int, accumulated: int) -> int:
        step = micro * data_parallel
        if "GLOBAL_BATCH_SIZE" not in self.raw:
            return step * max(1, accumulated)
        size = self.whole("GLOBAL_BATCH_SIZE", example=step * max(1, _DOCUMENTED_BATCH // step))
        known = not self.refused("ENV", "TP", "PP", "BATCH_SIZE", "GLOBAL_BATCH_SIZE")
        if known and size % step:
            nearest = max(step, size - size % step)
            wanted = f"it must be a multiple of BATCH_SIZE × data-parallel size = {micro} × {data_parallel}: write {nearest}."
            self.problem("GLOBAL_BATCH_SIZE", wanted)
        return size

    def rates(self) -> dict[str, Any]:
        least, most = (number(self.raw[name]) for name in ("MIN_LR", "LR"))
        lr = self.number("LR", self.raw["MIN_LR"] if least is not None and least > 1e-5 else None)
        min_lr = self.number("MIN_LR", self.raw["LR"] if most is not None and most < 1e-6 else None)
        if min_lr > lr and not self.refused("LR", "MIN_LR"):
            self.problem("MIN_LR", f"it must not be above LR = {self.raw['LR']}: write {self.raw['LR']} or less.")
        return {"lr": lr, "min_lr": min_lr}

    def data(self, tp: int, vocabulary: int, options: Options, source: CheckpointLocation | None) -> dict[str, Any]:
        train_name = "DATASET_PATH" if "DATASET_PATH" in self.raw else "TRAIN_DATASET_PATH"
        train = self.data_source(train_name)
        json_data = isinstance(train, JsonFiles)
        seq, pad = self.lengths(tp, json_data, options.packing)
        valid = self.data_source("VALID_DATASET_PATH") if "VALID_DATASET_PATH" in self.raw else None
        for name, given in ((train_name, train), ("VALID_DATASET_PATH", valid)):
            if given is not None and not self.refused(name):
                for sentence in given.findings() or self.index_findings(given, vocabulary):
                    self.problem(name, sentence)
        if isinstance(valid, JsonFiles) and valid.weights:
            several = (", " if any(" " in path for path in valid.paths) else " ").join(valid.paths)
            self.problem("VALID_DATASET_PATH", f"each validation file has a loss of its own, and no weight: write '{several}'.")
        if json_data:
            self.tokenizer(options, source)
        elif options.packing and not self.refused(train_name):
            self.findings.add_flag("--packing", "true", "it is for JSON data; indexed data is packed as it is: remove the flag.")
        return {"seq_length": seq, "pad_length": pad, "train_data": train, "valid_data": valid}

    def data_source(self, name: str) -> DataSource:
        """What a data argument names. This is the one place where its text is parsed."""
        text = self.raw[name]
        try:
            return parse_data(text, only_json=self.task == "finetune")
        except UserError as error:
            self.problem(name, str(error))
            return IndexedPairs(text, ())

    def lengths(self, tp: int, json_data: bool, packing: bool) -> tuple[int, int]:
        """SEQ_LEN and PAD_LEN."""
        step = tp if self.raw["SP"] == "true" and not self.refused("TP") else 1
        seq = self.whole("SEQ_LEN", example=multiple_of(step, min(2048, self.longest_row)))
        pad = self.whole("PAD_LEN", 2 if json_data else None, multiple_of(step, 80 if self.refused("SEQ_LEN") else min(80, seq)))
        if json_data and pad > seq and not self.refused("SEQ_LEN", "PAD_LEN"):
            self.problem("PAD_LEN", f"it must not be above SEQ_LEN = {seq}: write {seq} or less.")
        name, length = ("PAD_LEN", pad) if json_data and not packing else ("SEQ_LEN", seq)
        if (unsplit := split_finding(length, step)) and not self.refused(name):
            self.problem(name, unsplit)
        self.fp8_tokens(name, length, step)
        return seq, pad

    def index_findings(self, source: DataSource, vocabulary: int) -> list[str]:
        """What a look into the indexed files finds: sizes, format, and whether sampled tokens fit the vocabulary."""
        found = []
        for prefix in source.prefixes if isinstance(source, IndexedPairs) else ():
            try:
                check_indexed_dataset(prefix, vocabulary)
            except UserError as error:
                found.append(str(error))
        return found

    def duration(self) -> dict[str, Any]:
        if "EPOCH" in self.raw:
            return {"epochs": self.whole("EPOCH")}
        if "TRAIN_ITERS" in self.raw:
            return {**self.iterations(), "save_interval": self.whole("SAVE_INTERVAL")}
        sizes = [self.raw[name] for name in ("GLOBAL_BATCH_SIZE", "SEQ_LEN")]
        batch = max(1, math.prod(whole_number(size) or 1 for size in sizes))
        sized = not self.refused("GLOBAL_BATCH_SIZE", "SEQ_LEN")
        tokens = self.whole("TRAIN_TOKENS", example=max(100_000_000, batch) if sized else None)
        warmup = self.whole("WARMUP_TOKENS", example=None if self.refused("TRAIN_TOKENS") else min(10_000, tokens // 100))
        iterations, warmup_iterations = tokens // batch, warmup // batch
        if not sized or self.refused("TRAIN_TOKENS"):
            pass
        elif iterations < 1:
            self.problem("TRAIN_TOKENS", f"one iteration is GLOBAL_BATCH_SIZE × SEQ_LEN = {batch} tokens: write {batch} or more.")
        elif warmup_iterations >= iterations and not self.refused("WARMUP_TOKENS"):
            self.problem(
                "WARMUP_TOKENS",
                f"of the {iterations} iterations of {batch} tokens at least one must follow it: "
                f"write {tokens // 100}, for example.",
            )
        saves = self.whole("SAVE_INTERVAL")
        return {"train_iters": iterations, "warmup_iters": warmup_iterations, "save_interval": saves}

    def iterations(self) -> dict[str, Any]:
        """TRAIN_ITERS and WARMUP_ITERS. The decay between rise and rest must have an iteration."""
        train = self.whole("TRAIN_ITERS")
        most = (train - 1) // 2
        warmup = self.whole("WARMUP_ITERS", example=None if self.refused("TRAIN_ITERS") else min(10, most))
        if warmup > most and not self.refused("TRAIN_ITERS", "WARMUP_ITERS"):
            wanted = (
                f"the rate rises for so many of the {train} iterations, and rests for as many at the end: write {most} or less."
            )
            self.problem("WARMUP_ITERS", wanted)
        return {"train_iters": train, "warmup_iters": warmup}

    def output_path(self, config: TrainConfig) -> None:
        path = self.raw["OUTPUT_BASEPATH"]
        problem = unwritable(path) if path else "it takes a folder, which is made where it does not exist: write its path."
        # Its size and its folder's name come from other arguments; wrong ones have been replaced.
        if not problem and self.model_is_known and not self.findings.found:
            problem = closed_folder(config) or space_finding(config)
        if problem:
            self.problem("OUTPUT_BASEPATH", problem)
