"""Arguments that say which model a training run starts from: size, checkpoint, positions, tokenizer. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_patch.arguments.argument import Argument, Range
from megatron_patch.arguments.findings import Findings
from megatron_patch.config import ALL_Q_FIRST, Options, TrainConfig, run_root
from megatron_patch.errors import UserError
from megatron_patch.folders.hugging_face_folder import holds_tokenizer
from megatron_patch.folders.layout import CheckpointLocation, read_model_description, resolve_checkpoint
from megatron_patch.folders.starting_point import resume_location, root_of
from megatron_patch.folders.tracker import TRACKER
from megatron_patch.formats.structure_2023 import read_vocabulary_rows
from megatron_patch.formats.vocabulary_2023 import claimed_rows, extra_rows
from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES, LlamaConfig, read_hf_config, shape_differences
from megatron_patch.llama.position_limit import length_finding, with_positions
from megatron_patch.llama.rope_scaling import DYNAMIC


@dataclass
class ModelReader:
    """One pass over the texts of a command line. Each method reads a group of arguments and notes what is wrong."""

    task: str
    arguments: dict[str, Argument]
    raw: dict[str, str]
    findings: Findings
    notes: list[str]
    resume_root: Path | None = None  # of the run that `--resume-from` names
    model_is_known: bool = True
    longest_row: int = 2048  # tokens, that a sentence may offer

    def whole(self, name: str, least: int | None = None, example: int | None = None) -> int:
        """The argument as a whole number.

        Args:
            least: the lower end of the range, if other arguments raise it.
            example: a number that the sentence may name, if other arguments decide what fits.
        """
        argument = self.arguments[name]
        argument = argument if least is None else replace(argument, range=Range(least))
        return self.findings.whole(argument, self.raw[name], example)

    def number(self, name: str, example: str | None = None) -> float:
        """The argument as a number."""
        return self.findings.number(self.arguments[name], self.raw[name], example)

    def choice(self, name: str, fitting: Sequence[str] | None = None) -> str:
        """The argument as one of its choices; `fitting` are those that go with the other arguments."""
        return self.findings.choice(self.arguments[name], self.raw[name], fitting)

    def boolean(self, name: str) -> bool:
        """The argument as true or false."""
        return self.findings.boolean(self.arguments[name], self.raw[name])

    def refused(self, *names: str) -> bool:
        """Whether one of these was found wrong already. Another value stands in its place then, which nobody typed."""
        return any(self.findings.is_about(self.arguments[name]) for name in names)

    def problem(self, name: str, sentence: str) -> None:
        """Note that the argument is wrong."""
        self.findings.add(self.arguments[name], self.raw[name], sentence)

    @property
    def begins_at_random(self) -> bool:
        """Whether PRETRAIN_CHECKPOINT_PATH was typed as none. A refused path is `none` too, and does not count."""
        return self.raw["PRETRAIN_CHECKPOINT_PATH"] == "none" and not self.refused("PRETRAIN_CHECKPOINT_PATH")

    def source_and_model(self) -> tuple[CheckpointLocation | None, LlamaConfig]:
        """(the checkpoint to start from or None, the model as its config.json or MODEL_SIZE describes it).

        If neither can be read, the tiny model stands in its place and `model_is_known` is False. Nothing is judged by
        it.
        """
        source = self.source()
        root = source.root if source else self.own_root()
        if root is not None and (self.raw["MODEL_SIZE"] == "auto" or (root / "config.json").is_file()):
            return source, self._described_model(root)
        size = self.choice("MODEL_SIZE", tuple(TRAINING_SIZES) if self.begins_at_random else None)
        if root is not None:
            self.notes.append(f"{root} has no config.json; MODEL_SIZE {size} says what its model is.")
        elif size == "auto" and self.begins_at_random:
            sizes = ", ".join(TRAINING_SIZES)
            self.problem("MODEL_SIZE", f"auto reads the checkpoint's config.json, and the checkpoint is none: write {sizes}.")
        return source, self._named_model(size)

    def _described_model(self, root: Path) -> LlamaConfig:
        """The model that config.json in `root` describes. MODEL_SIZE must agree with it."""
        try:
            model = read_hf_config(root)
        except UserError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            return self._named_model(self.choice("MODEL_SIZE"))
        same = [name for name, full in TRAINING_SIZES.items() if not shape_differences(LLAMA_SIZES[full], model)]
        size = self.choice("MODEL_SIZE", (*same, "auto"))
        if size in (*same, "auto") or self.refused("MODEL_SIZE"):
            return model
        found = "; ".join(shape_differences(LLAMA_SIZES[TRAINING_SIZES[size]], model))
        self.problem("MODEL_SIZE", f"the checkpoint's config.json disagrees ({found}): write auto, or another checkpoint.")
        return model

    def _named_model(self, size: str) -> LlamaConfig:
        self.model_is_known = size in TRAINING_SIZES and not self.refused("MODEL_SIZE")
        return LLAMA_SIZES[TRAINING_SIZES.get(size, "tiny")]

    def source(self) -> CheckpointLocation | None:
        """The checkpoint of PRETRAIN_CHECKPOINT_PATH; None for `none`.

        It is also None if the checkpoint is gone: that does not stop a run that has a checkpoint of its own.
        """
        text = self.raw["PRETRAIN_CHECKPOINT_PATH"]
        if text == "none":
            return None
        try:
            return resolve_checkpoint(Path(text))
        except UserError as error:
            if self.own_root() is None:
                self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error} It takes the folder that model_convertor.sh made, or none.")
            else:
                where = self.resume_root if self.resume_root == self.own_root() else "its own checkpoint"
                self.notes.append(f"{error} Still, the run goes on from {where}.")
        return None

    def own_root(self) -> Path | None:
        """This run's own folder of checkpoints, if it has one to go on from; otherwise that of `--resume-from`."""
        root = run_root(self.raw["OUTPUT_BASEPATH"], self.name())
        # NAME is made of what was typed and may be longer than a name may be. pathlib's functions raise then.
        return root if os.path.isfile(root / TRACKER) else self.resume_root

    def resume(self, path: str) -> None:
        """Read `--resume-from`. That run's model and tokenizer count if PRETRAIN_CHECKPOINT_PATH is none."""
        if not path:
            return
        try:
            self.resume_root = root_of(resume_location(path))
        except UserError as error:
            if self.own_root() is None:
                self.findings.add_flag("--resume-from", path, str(error))
            else:
                self.notes.append(f"--resume-from: {error} Still, the run goes on from its own checkpoint.")

    def extra_vocabulary(self, source: CheckpointLocation | None, model: LlamaConfig) -> int:
        """How many rows the embedding has beyond config.json's vocabulary.

        That is EXTRA_VOCAB_SIZE, which is compared with what the checkpoint has.
        """
        if source is not None and source.kind == "megatron_2023":
            extra = self.whole("EXTRA_VOCAB_SIZE")
            return self._extra_of_2023(source, model, extra) if self.model_is_known else extra
        try:
            described = read_model_description(source) if source else None
        except UserError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            described = None
        extra = self.whole("EXTRA_VOCAB_SIZE", example=described.extra_vocab_size if described else None)
        own = self.own_root()
        if source is None and extra == 0 and own is not None:  # its own checkpoints have kept what it began with
            return self._own_extra_vocabulary(own)
        if described is not None and described.extra_vocab_size != extra and not self.refused("EXTRA_VOCAB_SIZE"):
            recorded = described.extra_vocab_size
            self.problem("EXTRA_VOCAB_SIZE", f"the checkpoint was converted with {recorded}: write {recorded}.")
        return extra

    def _extra_of_2023(self, source: CheckpointLocation, model: LlamaConfig, extra: int) -> int:
        try:
            found = read_vocabulary_rows(source.folder)
        except UserError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            return extra
        if found is None:  # the processes read it again, and say what is wrong with it
            return extra
        if found.rows < model.vocab_size:
            self._too_few_rows(source, found.rows, model.vocab_size)
            return extra
        there = extra_rows(found, model.vocab_size)
        try:
            taken = claimed_rows(there, found.rows, model.vocab_size, extra, source.folder)
        except UserError as error:
            self.problem("EXTRA_VOCAB_SIZE", f"{error}")
            return extra
        if taken != extra:
            self.notes.append(f"EXTRA_VOCAB_SIZE 0: the {taken} rows that {source.folder} has beyond its vocabulary are kept.")
        return taken

    def _too_few_rows(self, source: CheckpointLocation, rows: int, vocabulary: int) -> None:
        """Note that the embedding has fewer rows than the vocabulary of config.json or, without one, of MODEL_SIZE."""
        size = self.raw["MODEL_SIZE"]
        if (source.root / "config.json").is_file():
            sentence = f"its embedding has {rows} rows, and config.json's vocabulary {vocabulary}: put its own there."
            self.problem("PRETRAIN_CHECKPOINT_PATH", sentence)
        elif size != "auto":  # a missing config.json has been said
            sentence = f"its vocabulary is {vocabulary}, and the checkpoint's embedding has {rows} rows: write another size."
            self.problem("MODEL_SIZE", sentence)

    def _own_extra_vocabulary(self, own: Path) -> int:
        """The extra rows of the run's own last checkpoint. They count if the checkpoint that it began with is gone."""
        try:
            described = read_model_description(resolve_checkpoint(own))
        except UserError:  # said where the run looks for its own checkpoint
            return 0
        return described.extra_vocab_size if described is not None else 0

    def gqa_layout(self, source: CheckpointLocation | None, options: Options) -> None:
        """Check --gqa-layout: it is for checkpoints of 2023 only. If the checkpoint is gone, nothing is checked."""
        is_2023 = source is not None and source.kind == "megatron_2023"
        has_gone = source is None and not self.begins_at_random
        if options.gqa_layout == ALL_Q_FIRST and not is_2023 and not has_gone:
            wanted = "it is for a PRETRAIN_CHECKPOINT_PATH of 2023 (mp_rank_ folders): remove the flag."
            self.findings.add_flag("--gqa-layout", ALL_Q_FIRST, wanted)

    def within_positions(self, config: TrainConfig) -> TrainConfig:
        """`config` with a model whose position limit allows its rows; a higher limit needs a flag.

        JSON data without packing is padded or cut to PAD_LEN. There PAD_LEN bounds the positions, and SEQ_LEN does not.
        """
        options, length = config.options, config.sample_length
        if options.packing and config.model.rope_type == DYNAMIC and length > config.model.max_position_embeddings:
            sentence = (
                f"dynamic rope_scaling goes by a sample's own length beyond {config.model.max_position_embeddings} tokens, and a "
                "packed row has samples of several: remove the flag, or write a smaller SEQ_LEN."
            )
            self.findings.add_flag("--packing", "true", sentence)
        name = "PAD_LEN" if config.reads_json and not options.packing else "SEQ_LEN"
        finding = length_finding(config.model, length) if self.model_is_known and not self.refused(name) else None
        if finding and not options.allow_longer_sequences:
            self.problem(name, finding)
        model, note = with_positions(config.model, length)
        self.notes += [note] if note else []
        return replace(config, model=model)

    def tokenizer(self, options: Options, source: CheckpointLocation | None) -> None:
        """Check that JSON data has a tokenizer: in --tokenizer-path, the checkpoint's folder or the run's own."""
        folders = [source.root if source else None, self.own_root()]
        has_gone = source is None and not self.begins_at_random  # which has been said
        refused = has_gone or self.findings.is_about_flag("--tokenizer-path")
        if not options.tokenizer_path and not any(map(holds_tokenizer, folders)) and not refused:
            self.problem(
                "PRETRAIN_CHECKPOINT_PATH",
                "JSON data needs a tokenizer, and there is no tokenizer.model and no tokenizer.json beside the checkpoint: "
                "copy one there, or add --tokenizer-path FOLDER after the last argument.",
            )

    def name(self) -> str:
        """NAME of the run, spelt as in the original scripts."""
        r = self.raw
        if self.task == "pretrain":
            return (
                f"{r['ENV']}-pretrain-megatron-llama-{r['MODEL_SIZE']}-lr-{r['LR']}-bs-{r['BATCH_SIZE']}"
                f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}-tp-{r['TP']}-pp-{r['PP']}-ac-{r['AC']}-do-{r['DO']}-sp-{r['SP']}"
                f"-tt-{r['TRAIN_TOKENS']}-wt-{r['WARMUP_TOKENS']}"
            )
        if "TRAIN_ITERS" in r:
            # The original's -tt- and -wt- are empty there: its script names variables that it never sets.
            return (
                f"{r['ENV']}-finetune-megatron-llama2-{r['MODEL_SIZE']}-lr-{r['LR']}-bs-{r['BATCH_SIZE']}"
                f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}-tp-{r['TP']}-pp-{r['PP']}-ac-{r['AC']}-do-{r['DO']}-sp-{r['SP']}"
                f"-tt-{r['TRAIN_ITERS']}-wt-{r['WARMUP_ITERS']}"
            )
        return (
            f"{r['ENV']}-finetune-megatron-llama-{r['MODEL_SIZE']}-lr-{r['LR']}-ep-{r['EPOCH']}-bs-{r['BATCH_SIZE']}"
            f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}--do-{r['DO']}-tp-{r['TP']}-ac-{r['AC']}-sp-{r['SP']}"
        )
