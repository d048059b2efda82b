"""The documented arguments of the two training scripts, and every check of them, up to a `TrainConfig`.

Imports no torch: the launcher calls `read` before any process starts, and each process calls it again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simple_parsing import ArgumentParser, DashVariant

from megatron_patch.arguments import Argument, Findings, UsageParser, is_whole, numbered
from megatron_patch.checkpoint.layout import TRACKER, read_model_description, resolve_checkpoint
from megatron_patch.config import PRECISIONS, RECOMPUTATIONS, Options, TrainConfig
from megatron_patch.data.indexed import check_indexed_dataset
from megatron_patch.data_paths import data_bytes, data_findings, is_json, parse_data_path
from megatron_patch.model_config import LLAMA_SIZES, TRAINING_SIZES, LlamaConfig, read_hf_config, shape_differences
from megatron_patch.option_ranges import option_findings
from megatron_patch.processes import Processes, plan_processes

_HEAD = (("ENV", "--env"), ("MEGATRON_PATH", "--megatron-path"), ("MEGATRON_PATCH_PATH", "--megatron-patch-path"))
_SWITCHES = (
    ("PR", "--precision"),
    ("TP", "--tensor-model-parallel-size"),
    ("PP", "--pipeline-model-parallel-size"),
    ("AC", "--activation-checkpoint"),
    ("DO", "--use-distributed-optimizer"),
    ("FL", "--use-flash-attn"),
    ("SP", "--sequence-parallel"),
)
_LENGTHS = (
    ("LR", "--lr"),
    ("MIN_LR", "--min-lr"),
    ("SEQ_LEN", "--seq-length"),
    ("PAD_LEN", "--max-padding-length"),
    ("EXTRA_VOCAB_SIZE", "--extra-vocab-size"),
)

ARGUMENTS: dict[str, dict[str, Argument]] = {
    "pretrain": numbered(
        *_HEAD,
        ("MODEL_SIZE", "--model-size"),
        ("BATCH_SIZE", "--micro-batch-size"),
        ("GLOBAL_BATCH_SIZE", "--global-batch-size"),
        *_LENGTHS,
        *_SWITCHES,
        ("SAVE_INTERVAL", "--save-interval"),
        ("DATASET_PATH", "--data-path"),
        ("PRETRAIN_CHECKPOINT_PATH", "--load"),
        ("TRAIN_TOKENS", "--train-tokens"),
        ("WARMUP_TOKENS", "--warmup-tokens"),
        ("OUTPUT_BASEPATH", "--output-path"),
    ),
    "finetune": numbered(
        *_HEAD,
        ("MODEL_SIZE", "--model-size"),
        ("BATCH_SIZE", "--micro-batch-size"),
        *_LENGTHS,
        *_SWITCHES,
        ("TRAIN_DATASET_PATH", "--train-data-path"),
        ("VALID_DATASET_PATH", "--valid-data-path"),
        ("PRETRAIN_CHECKPOINT_PATH", "--load"),
        ("EPOCH", "--epochs"),
        ("OUTPUT_BASEPATH", "--output-path"),
    ),
}

SCRIPTS = {"pretrain": "run_pretrain_megatron_llama.sh", "finetune": "run_finetune_megatron_llama.sh"}


@dataclass(frozen=True)
class Reading:
    """What the arguments of a training script come to."""

    config: TrainConfig
    processes: Processes
    megatron_path: str
    notes: tuple[str, ...]


def read(task: str, argv: Sequence[str]) -> Reading:
    """`argv` as the scripts write it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    arguments = ARGUMENTS[task]
    raw, options = _parse(task, arguments, argv)
    reader = _Reader(task, arguments, raw, Findings(), [])
    reading = reader.reading(options)
    reader.findings.exit_if_any(SCRIPTS[task])
    return reading


class _Parser(UsageParser, ArgumentParser):
    """Documented arguments as plain strings, `Options` through simple_parsing."""


def _parse(task: str, arguments: dict[str, Argument], argv: Sequence[str]) -> tuple[dict[str, str], Options]:
    parser = _Parser(arguments, prog=SCRIPTS[task], add_option_string_dash_variants=DashVariant.DASH)
    parser.add_arguments(Options, dest="options")
    parsed = parser.parse_args(list(argv))
    return {name: getattr(parsed, argument.dest) for name, argument in arguments.items()}, parsed.options


@dataclass
class _Reader:
    """One pass over the raw strings; each method reads one group of arguments and notes what is wrong in it."""

    task: str
    arguments: dict[str, Argument]
    raw: dict[str, str]
    findings: Findings
    notes: list[str]

    def whole(self, name: str, minimum: int = 1) -> int:
        return self.findings.whole(self.arguments[name], self.raw[name], minimum)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        return self.findings.choice(self.arguments[name], self.raw[name], allowed)

    def boolean(self, name: str) -> bool:
        return self.findings.boolean(self.arguments[name], self.raw[name])

    def problem(self, name: str, sentence: str) -> None:
        self.findings.add(self.arguments[name], self.raw[name], sentence)

    def reading(self, options: Options) -> Reading:
        env = self.choice("ENV", ("dsw", "dlc"))
        self.patch_path()
        load, model = self.checkpoint_and_model()
        extra = self.extra_vocabulary(load)
        tp, pp = self.layout(model, extra)
        processes, findings = plan_processes(env, tp * pp)
        for sentence in findings:
            self.problem("ENV", sentence)
        data_parallel = self.data_parallel_size(processes, tp, pp)
        micro = self.whole("BATCH_SIZE")
        for flag, got, sentence in option_findings(self.task, options):
            self.findings.add_flag(flag, got, sentence)
        config = TrainConfig(
            task=self.task,
            name=self.name(),
            model=model,
            extra_vocab_size=extra,
            load=load,
            output_path=self.raw["OUTPUT_BASEPATH"],
            tensor_model_parallel_size=tp,
            pipeline_model_parallel_size=pp,
            sequence_parallel=self.sequence_parallel(tp),
            use_distributed_optimizer=self.boolean("DO"),
            precision=self.choice("PR", PRECISIONS),
            recompute=self.choice("AC", RECOMPUTATIONS),
            use_flash_attn=self.boolean("FL"),
            micro_batch_size=micro,
            global_batch_size=self.global_batch_size(micro, data_parallel, options.gradient_accumulation_steps),
            **self.rates(),
            **self.data(tp, model.vocab_size + extra, options),
            **self.duration(),
            options=options,
        )
        self.output_path()
        return Reading(config, processes, self.raw["MEGATRON_PATH"], tuple(self.notes))

    def patch_path(self) -> None:
        folder = Path(self.raw["MEGATRON_PATCH_PATH"])
        if not (folder / "megatron_patch" / "launch.sh").is_file():
            here = Path(__file__).resolve().parents[1]
            self.problem("MEGATRON_PATCH_PATH", f"it takes the folder that holds this project's megatron_patch/: write {here}.")

    def checkpoint_and_model(self) -> tuple[str | None, LlamaConfig]:
        size = self.choice("MODEL_SIZE", (*TRAINING_SIZES, "auto"))
        named = LLAMA_SIZES.get(TRAINING_SIZES.get(size, ""), LLAMA_SIZES["tiny"])
        text = self.raw["PRETRAIN_CHECKPOINT_PATH"]
        load = None if text == "none" else text
        root = self.model_root(text) if load else self.own_root()
        if root is None or (load is None and size != "auto"):
            if load is None and size == "auto":
                sizes = ", ".join(TRAINING_SIZES)
                self.problem("MODEL_SIZE", f"auto reads the checkpoint's config.json, and the checkpoint is none: write {sizes}.")
            return load, named
        if size != "auto" and not (root / "config.json").is_file():
            self.notes.append(f"{root} has no config.json; MODEL_SIZE {size} says what its model is.")
            return load, named
        try:
            model = read_hf_config(root)
        except ValueError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            return load, named
        differences = shape_differences(named, model) if size != "auto" else []
        if differences:
            found = "; ".join(differences)
            self.problem("MODEL_SIZE", f"the checkpoint's config.json disagrees ({found}): write auto, or another checkpoint.")
        return load, model

    def own_root(self) -> Path | None:
        """This run's own folder of checkpoints, where it has one to go on from."""
        root = Path(self.raw["OUTPUT_BASEPATH"]) / "checkpoint" / self.name()
        return root if (root / TRACKER).is_file() else None

    def model_root(self, text: str) -> Path | None:
        """The folder with config.json: PRETRAIN_CHECKPOINT_PATH's, or the run's own where that has gone and is not needed."""
        root, own = checkpoint_root(Path(text)), self.own_root()
        found = (
            "there is no checkpoint there (a folder with latest_checkpointed_iteration.txt): "
            "write the folder that model_convertor.sh made, or none for random weights."
        )
        try:
            if root is not None:
                resolve_checkpoint(Path(text))
                return root
        except ValueError as error:
            found = str(error)
        if own is None:
            self.problem("PRETRAIN_CHECKPOINT_PATH", found)
        else:
            gone = found.partition(":")[0]
            self.notes.append(f"PRETRAIN_CHECKPOINT_PATH {text}: {gone}; the run goes on from its own checkpoint.")
        return own

    def extra_vocabulary(self, load: str | None) -> int:
        extra = self.whole("EXTRA_VOCAB_SIZE", 0)
        try:
            recorded = recorded_extra_vocabulary(Path(load)) if load and self.own_root() is None else None
        except ValueError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            recorded = None
        if recorded is not None and recorded != extra:
            self.problem("EXTRA_VOCAB_SIZE", f"the checkpoint was converted with {recorded}: write {recorded}.")
        return extra

    def layout(self, model: LlamaConfig, extra: int) -> tuple[int, int]:
        tp, pp = self.whole("TP"), self.whole("PP")
        vocabulary = model.vocab_size + extra
        for count, what in (
            (model.num_attention_heads, "attention heads"),
            (model.num_query_groups, "KV groups"),
            (vocabulary, "rows of the vocabulary"),
        ):
            if count % tp:
                self.problem("TP", f"it must divide the {count} {what}: write one of {_divisors(model, vocabulary)}.")
                tp = 1
        if model.num_layers % pp:
            self.problem("PP", f"it must divide the {model.num_layers} layers: write one of {_list_divisors(model.num_layers)}.")
            pp = 1
        return tp, pp

    def data_parallel_size(self, processes: Processes, tp: int, pp: int) -> int:
        if processes.world_size % (tp * pp):
            self.problem(
                "TP",
                f"TP × PP = {tp * pp} must divide the {processes.world_size} processes "
                f"({processes.nodes} nodes of {processes.per_node}): write smaller ones, or use more GPUs.",
            )
        return max(1, processes.world_size // (tp * pp))

    def sequence_parallel(self, tp: int) -> bool:
        wanted = self.boolean("SP")
        if wanted and tp == 1:
            label = self.arguments["SP"].label
            self.notes.append(f"{label} is true and TP is 1: sequence parallelism has nothing to split and is off.")
        return wanted and tp > 1

    def global_batch_size(self, micro: int, data_parallel: int, accumulated: int) -> int:
        step = micro * data_parallel
        if self.task == "finetune":
            return step * max(1, accumulated)
        size = self.whole("GLOBAL_BATCH_SIZE")
        if size % step:
            self.problem(
                "GLOBAL_BATCH_SIZE",
                f"it must be a multiple of BATCH_SIZE × data-parallel size = {micro} × {data_parallel}: "
                f"write {max(step, size - size % step)}.",
            )
        return size

    def rates(self) -> dict[str, float]:
        known = len(self.findings.found)
        lr = self.findings.number(self.arguments["LR"], self.raw["LR"])
        min_lr = self.findings.number(self.arguments["MIN_LR"], self.raw["MIN_LR"], example="1e-6")
        if len(self.findings.found) == known and min_lr > lr:
            self.problem("MIN_LR", f"it must not be above LR = {self.raw['LR']}: write a smaller one.")
        return {"lr": lr, "min_lr": min_lr}

    def data(self, tp: int, vocabulary: int, options: Options) -> dict[str, object]:
        train_name = "DATASET_PATH" if self.task == "pretrain" else "TRAIN_DATASET_PATH"
        train = self.raw[train_name]
        json_data = self.task == "finetune" or is_json(train)
        seq, pad = self.whole("SEQ_LEN"), self.whole("PAD_LEN", 2 if json_data else 1)
        if json_data and pad > seq:
            self.problem("PAD_LEN", f"it must not be above SEQ_LEN = {seq}: write {seq} or less.")
        rows = ("PAD_LEN", pad) if json_data and not options.packing else ("SEQ_LEN", seq)
        if self.raw["SP"] == "true" and rows[1] % tp:
            self.problem(rows[0], f"with SP true it must be a multiple of TP = {tp}: write {max(tp, rows[1] - rows[1] % tp)}.")
        valid = self.raw.get("VALID_DATASET_PATH")
        for name, path in ((train_name, train), ("VALID_DATASET_PATH", valid)):
            if path is not None:
                for sentence in data_findings(path, json_data) or self.index_findings(path, json_data, vocabulary):
                    self.problem(name, sentence)
        if json_data:
            self.tokenizer(options)
        elif options.packing:
            self.findings.add_flag("--packing", "true", "it is for JSON data; indexed data is packed as it is: remove the flag.")
        paths = {"train_data_path": train, "valid_data_path": valid, "train_data_bytes": data_bytes(train, json_data)}
        return {"seq_length": seq, "pad_length": pad, **paths}

    def tokenizer(self, options: Options) -> None:
        """JSON data is text: the checkpoint's folder or --tokenizer-path must hold a tokenizer."""
        name = self.raw["PRETRAIN_CHECKPOINT_PATH"]
        root = None if name == "none" else checkpoint_root(Path(name))
        known = options.tokenizer_path or holds_tokenizer(root) or holds_tokenizer(self.own_root())
        if not known and (name == "none" or root is not None):
            self.problem(
                "PRETRAIN_CHECKPOINT_PATH",
                "JSON data needs a tokenizer, and there is no tokenizer.model and no tokenizer.json beside the checkpoint: "
                "copy one there, or add --tokenizer-path FOLDER after the last argument.",
            )

    def index_findings(self, text: str, json_data: bool, vocabulary: int) -> list[str]:
        """What a look into the indexed files finds: sizes, format, and whether sampled tokens fit the vocabulary."""
        found = []
        for _, prefix in [] if json_data else parse_data_path(text):
            try:
                check_indexed_dataset(prefix, vocabulary)
            except ValueError as error:
                found.append(str(error))
        return found

    def duration(self) -> dict[str, int]:
        if self.task == "finetune":
            return {"epochs": self.whole("EPOCH")}
        tokens, warmup = self.whole("TRAIN_TOKENS"), self.whole("WARMUP_TOKENS", 0)
        sizes = [self.raw[name] for name in ("GLOBAL_BATCH_SIZE", "SEQ_LEN")]
        batch = max(1, math.prod(int(size) if is_whole(size) else 1 for size in sizes))
        iterations, warmup_iterations = tokens // batch, warmup // batch
        if iterations < 1:
            self.problem("TRAIN_TOKENS", f"one iteration is GLOBAL_BATCH_SIZE × SEQ_LEN = {batch} tokens: write {batch} or more.")
        elif warmup_iterations >= iterations:
            self.problem("WARMUP_TOKENS", f"it must be below TRAIN_TOKENS = {tokens}: write {tokens // 100}, for example.")
        return {
            "train_iters": iterations,
            "warmup_iters": warmup_iterations,
            "save_interval": self.whole("SAVE_INTERVAL"),
        }

    def output_path(self) -> None:
        path = Path(self.raw["OUTPUT_BASEPATH"])
        there = next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), Path("."))
        if not self.raw["OUTPUT_BASEPATH"] or not there.is_dir():
            self.problem("OUTPUT_BASEPATH", "it takes a folder, which is made where it does not exist: write another path.")
        elif not os.access(there, os.W_OK | os.X_OK):
            self.problem("OUTPUT_BASEPATH", f"nothing can be written in {there}: write another path, or change its permissions.")

    def name(self) -> str:
        """NAME of the run, spelt as in the original scripts."""
        r = self.raw
        if self.task == "pretrain":
            return (
                f"{r['ENV']}-pretrain-megatron-llama-{r['MODEL_SIZE']}-lr-{r['LR']}-bs-{r['BATCH_SIZE']}"
                f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}-tp-{r['TP']}-pp-{r['PP']}-ac-{r['AC']}-do-{r['DO']}-sp-{r['SP']}"
                f"-tt-{r['TRAIN_TOKENS']}-wt-{r['WARMUP_TOKENS']}"
            )
        return (
            f"{r['ENV']}-finetune-megatron-llama-{r['MODEL_SIZE']}-lr-{r['LR']}-ep-{r['EPOCH']}-bs-{r['BATCH_SIZE']}"
            f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}--do-{r['DO']}-tp-{r['TP']}-ac-{r['AC']}-sp-{r['SP']}"
        )


def checkpoint_root(path: Path) -> Path | None:
    """The folder with the tracker file: `path` itself, or its parent where `path` is one iteration's folder."""
    for folder in (path, path.parent):
        if (folder / "latest_checkpointed_iteration.txt").is_file():
            return folder if folder == path or path.is_dir() else None
    return None


def holds_tokenizer(folder: Path | None) -> bool:
    """Whether one of the files that `data.tokenizer` reads is there."""
    return folder is not None and any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def recorded_extra_vocabulary(path: Path) -> int | None:
    """EXTRA_VOCAB_SIZE that a checkpoint was converted or trained with; None where it records none.

    Raises:
        ValueError: its model.json cannot be read.
    """
    root = checkpoint_root(path)
    if root is None:
        return None
    folder = path
    if root == path:
        tracker = (root / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8").strip()
        folder = root / (f"iter_{int(tracker):07d}" if tracker.isdigit() else tracker)
    description = read_model_description(folder)
    return None if description is None else description.extra_vocab_size


def _list_divisors(number: int, limit: int = 64) -> str:
    return ", ".join(str(n) for n in range(1, min(number, limit) + 1) if number % n == 0)


def _divisors(model: LlamaConfig, vocabulary: int) -> str:
    counts = (model.num_attention_heads, model.num_query_groups, vocabulary)
    return ", ".join(str(n) for n in range(1, model.num_query_groups + 1) if not any(count % n for count in counts))
