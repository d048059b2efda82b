"""The arguments for using a trained model: its checkpoint, size, layout, tokenizer, processes. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from megatron_patch.arguments.argument import Argument, Script
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.processes import Processes, plan_processes, processes_finding
from megatron_patch.errors import UserError
from megatron_patch.folders.checkout import checkout_problem
from megatron_patch.folders.hugging_face_folder import find_weights, holds_tokenizer, is_hf_folder, is_meta_folder
from megatron_patch.folders.layout import read_model_description, resolve_checkpoint
from megatron_patch.folders.trained_form import base_layout, form_of
from megatron_patch.formats.typed import path_problem
from megatron_patch.llama.divisibility import layout_findings
from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES, LlamaConfig, read_hf_config, shape_differences

NONE = "none"


@dataclass(frozen=True)
class TrainedModel:
    """A model to be used, and where.

    Attributes:
        fallback: the model that MODEL_SIZE names; None for `auto`. It counts for what a checkpoint without config.json
            does not record.
        precision: `fp16`, `bf16` or `fp32`.
        gqa_layout: --gqa-layout; None where it was not typed.
    """

    checkpoint: Path
    tokenizer: Path
    fallback: LlamaConfig | None
    precision: str
    tensor_model_parallel_size: int
    pipeline_model_parallel_size: int
    gqa_layout: str | None


class UsesModel(Protocol):
    """A job over a trained model."""

    @property
    def model(self) -> TrainedModel: ...


Job = TypeVar("Job", bound=UsesModel, covariant=True)


@dataclass(frozen=True)
class JobReading(Generic[Job]):
    """What the arguments of a command over a trained model come to."""

    job: Job
    processes: Processes
    notes: tuple[str, ...] = ()


@dataclass
class TrainedModelReader:
    """One pass over the values of a script's arguments; each method checks one group.

    Attributes:
        flags: this script's own flag for one that is named here; empty: the argument stands without one.
        position_limit: of the model, once it was read; None where only the weights' own files tell it.
    """

    script: Script
    value: dict[str, Any]
    findings: Findings
    flags: Mapping[str, str] = field(default_factory=dict)
    position_limit: int | None = None

    def argument(self, flag: str) -> Argument:
        """The argument behind a flag, documented or not."""
        own = self.flags.get(flag, flag)
        return next(one for one in self.script.all if one.flag == own)

    def problem(self, flag: str, problem: str) -> None:
        """Note a finding, unless the argument was found wrong already."""
        argument = self.argument(flag)
        if not self.findings.is_about(argument):
            self.findings.add(argument, self.value[argument.dest], problem)

    def processes(self, *, terminal: bool = False) -> Processes:
        """The processes of the run. It notes findings about ENV, TP and MEGATRON_PATCH_PATH.

        Args:
            terminal: whether the run converses on the terminal, which one copy of the model reads.
        """
        tp, pp = self.value["tensor_model_parallel_size"], self.value["pipeline_model_parallel_size"]
        processes, problems = plan_processes(self.value["env"], tp * pp)
        for problem in problems:
            self.findings.add(self.argument("--env"), self.value["env"], problem)
        if undivided := processes_finding(processes, tp, pp):
            self.problem("--tensor-model-parallel-size", undivided)
        if wrong := checkout_problem(self.value["megatron_patch_path"]):
            self.problem("--megatron-patch-path", wrong)
        return replace(processes, per_node=tp * pp) if terminal and processes.nodes == 1 else processes

    def notes(self) -> tuple[str, ...]:
        """Lines to print before the start."""
        unused = self.value["megatron_path"] not in ("", NONE)
        return ("MEGATRON_PATH is not used: no engine of Megatron's is needed without training.",) if unused else ()

    def model(self) -> TrainedModel | None:
        """The checkpoint and its tokenizer; None if one of them was found wrong."""
        root = None if path_problem(self.value["load"]) else self._checkpoint()
        tokenizer = self._tokenizer(root)
        if root is None or tokenizer is None:
            return None
        size = TRAINING_SIZES.get(self.value["model_size"])
        return TrainedModel(
            checkpoint=Path(self.value["load"]),
            tokenizer=tokenizer,
            fallback=LLAMA_SIZES[size] if size else None,
            precision=self.value["precision"],
            tensor_model_parallel_size=self.value["tensor_model_parallel_size"],
            pipeline_model_parallel_size=self.value["pipeline_model_parallel_size"],
            gqa_layout=self.value["gqa_layout"],
        )

    def _checkpoint(self) -> Path | None:
        """The folder with config.json and tokenizer; None if the checkpoint cannot be used."""
        try:
            root, model, extra = _model(Path(self.value["load"]))
        except UserError as error:
            self.problem("--load", str(error))
            return None
        if model is not None:
            self._check_against(model, extra)
        self._check_layout()
        return root

    def _check_layout(self) -> None:
        """Note a --gqa-layout that contradicts what a LoRA run has recorded, or a record that is damaged."""
        try:
            form = form_of(Path(self.value["load"]))
        except UserError as error:
            self.problem("--load", str(error))
            return
        try:
            base_layout(form, self.value["gqa_layout"])
        except UserError as error:
            self.problem("--gqa-layout", str(error))

    def _check_against(self, model: LlamaConfig, extra: int) -> None:
        """Note what in the arguments does not fit the model."""
        size = TRAINING_SIZES.get(self.value["model_size"])
        differences = shape_differences(LLAMA_SIZES[size], model) if size else []
        if differences:
            found = "; ".join(differences)
            self.problem("--model-size", f"the checkpoint's config.json disagrees ({found}): write auto, or another checkpoint.")
        tp, pp = self.value["tensor_model_parallel_size"], self.value["pipeline_model_parallel_size"]
        flags = {"TP": "--tensor-model-parallel-size", "PP": "--pipeline-model-parallel-size"}
        for name, problem in layout_findings(model, tp, pp, model.vocab_size + extra):
            self.problem(flags[name], problem)
        self.position_limit = model.position_limit
        if (self.value["seq_length"] or 0) > model.position_limit:
            self.problem(
                "--seq-length", f"the model is made for {model.position_limit} positions: write {model.position_limit} or less."
            )
        if self.value["extra_vocab_size"] not in (None, extra):
            self.problem("--extra-vocab-size", f"the checkpoint has {extra}: write {extra}.")

    def _tokenizer(self, root: Path | None) -> Path | None:
        """The tokenizer's folder; a finding if it holds none."""
        given = self.value["tokenizer_path"]
        folder = Path(given) if given else root
        if folder is None or holds_tokenizer(folder):
            return folder
        problem = f"{folder} holds neither tokenizer.model nor tokenizer.json: write --tokenizer-path and the folder that does."
        self.problem("--tokenizer-path" if given else "--load", problem)
        return None


def what_fits(load: str) -> dict[str, Any]:
    """What of the other arguments goes with a checkpoint and with this machine, as `Findings.values` takes it.

    Args:
        load: the checkpoint as it was typed; what is wrong with it is found later.
    """
    fits: dict[str, Any] = {} if os.environ.get("WORLD_SIZE") else {"env": ("dsw",)}
    try:
        model = None if path_problem(load) else _model(Path(load))[1]
    except UserError:
        return fits
    if model is not None:
        sizes = [name for name, full in TRAINING_SIZES.items() if not shape_differences(LLAMA_SIZES[full], model)]
        fits |= {"model_size": (*sizes, "auto"), "seq_length": model.position_limit, "length": model.position_limit}
    return fits


def _model(path: Path) -> tuple[Path, LlamaConfig | None, int]:
    """(folder with the tokenizer, the model, its extra rows). The model is None if only the weights' files tell it."""
    if is_meta_folder(path):
        return path, None, 0
    if is_hf_folder(path):
        find_weights(path)
        return path, read_hf_config(path), 0
    location = resolve_checkpoint(path)
    if location.kind != "native":
        return location.root, None, 0
    described = read_model_description(location)
    if described is not None:
        return location.root, described.model, described.extra_vocab_size
    return location.root, read_hf_config(location.root), 0
