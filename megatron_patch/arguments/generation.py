"""Text generation's arguments, checked as far as they can be without reading a tensor. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.arguments.trained_model import NONE, JobReading, TrainedModel, TrainedModelReader, what_fits
from megatron_patch.formats.typed import path_problem, unwritable

# Fields that are an argument's value as it is, under the flag's name.
_UNCHANGED = ("temperature", "top_k", "top_p", "repetition_penalty", "seed", "template", "system")


@dataclass(frozen=True)
class Generation:
    """One run of text generation. Lengths are tokens.

    Attributes:
        requests: answered at once.
        input_file: None opens a prompt on the terminal.
    """

    model: TrainedModel
    requests: int
    prompt_length: int
    answer_length: int
    input_file: Path | None
    output_file: Path
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    template: str
    system: str
    stop: tuple[str, ...]


def read_generation(argv: Sequence[str]) -> JobReading[Generation]:
    """`argv` as the script writes it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(GENERATE, given_texts(GENERATE, argv))
    value = findings.values(GENERATE.all, texts, what_fits(texts["load"]))
    reader = TrainedModelReader(GENERATE, value, findings)
    terminal = value["text_generate_input_file"] == NONE
    processes, model = reader.processes(terminal=terminal), reader.model()
    needed = value["input_len"] + value["out_seq_length"]
    lengths = (reader.argument(flag) for flag in ("--input-len", "--out-seq-length"))
    if needed > value["seq_length"] and not any(map(findings.is_about, lengths)):
        reader.problem("--seq-length", f"it must hold INPUT_SEQ_LEN + OUTPUT_SEQ_LEN = {needed} tokens: write {needed} or more.")
    if not terminal:
        _check_files(reader)
    elif processes.nodes > 1:
        problem = "it opens a prompt on the terminal, which a job of several nodes lacks: write a file of queries."
        reader.problem("--text-generate-input-file", problem)
    findings.exit_if_any(GENERATE.name)
    assert model is not None, "a finding ends the process"
    job = Generation(
        model=model,
        requests=value["micro_batch_size"],
        prompt_length=value["input_len"],
        answer_length=value["out_seq_length"],
        input_file=None if terminal else Path(value["text_generate_input_file"]),
        output_file=Path(value["text_generate_output_file"]),
        stop=value["stop"] or (),
        **{name: value[name] for name in _UNCHANGED},
    )
    return JobReading(job, processes, reader.notes())


def _check_files(reader: TrainedModelReader) -> None:
    source, output = (reader.value[f"text_generate_{side}_file"] for side in ("input", "output"))
    if not path_problem(source) and not Path(source).is_file():
        missing = "there is no such file: write the path of a file of JSON Lines with query, or none."
        reader.problem("--text-generate-input-file", missing)
    if path_problem(output):
        return
    problem = unwritable(str(Path(output).parent))
    if not output or Path(output).is_dir():
        problem = "it takes the path of a file: write one."
    elif Path(output).resolve() == Path(source).resolve():
        problem = "it is INPUT_FILE: write another path."
    if problem:
        reader.problem("--text-generate-output-file", problem)
