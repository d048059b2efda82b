"""Evaluation, one process of it: `python -m megatron_patch.cli.evaluate --flags`, or the same behind torchrun."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_patch.arguments.evaluation import Evaluation, read_evaluation
from megatron_patch.arguments.evaluation_list import EVALUATE
from megatron_patch.cli.generate import run_and_leave
from megatron_patch.folders.durable_files import write_text
from megatron_patch.folders.recorded_run import read_run_config
from megatron_patch.language.sentences import in_language
from megatron_patch.processes.imports import many_imports


def main(argv: list[str]) -> None:
    """Read, load, score, write the table and the results.

    Raises:
        SystemExit: status 2, with the sentence, for what a user can mend; 130 after Ctrl-C.
    """
    run_and_leave(EVALUATE.name, lambda: _evaluate(read_evaluation(argv).job), "interrupted.")


def _evaluate(job: Evaluation) -> None:
    with many_imports():
        from megatron_patch.evaluate.scoring import score_file, table, together
        from megatron_patch.evaluate.sequences import SFT, Reading, kind_of
        from megatron_patch.generate.ranks import join, leave
        from megatron_patch.generate.trained import IS_GUESSED, open_model

    ranks = join(job.model.tensor_model_parallel_size, job.model.pipeline_model_parallel_size)

    def say(line: str) -> None:
        if ranks.speaks and ranks.replica == 0:
            print(in_language(line), flush=True)

    model = open_model(job.model, ranks, say)
    template = job.template if job.template != "auto" else model.recorded_template or "alpaca"
    kinds = [kind_of(path) for path in job.paths]  # before the first is scored, which may take hours
    if SFT in kinds:
        say(f"Fine-tuning samples are written in the form {template}.")
        if job.template == "auto" and model.recorded_template is None:
            say(IS_GUESSED)
    reading = Reading(model.tokenizer, job.seq_length, job.pad_length, job.stride, template, job.max_bad_fraction, say)
    decoder = model.decoder(requests=0, longest=0)
    started = time.perf_counter()
    scores = [score_file(decoder, path, kind, reading, job.batch) for path, kind in zip(job.paths, kinds)]
    seconds = time.perf_counter() - started
    table(scores, say)
    if SFT in kinds:
        _say_packing(model.folder, job.pad_length, say)
    tokens = sum(score.tokens for score in scores)
    say(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s.")
    if ranks.speaks and ranks.replica == 0:
        _write(job, template, {"files": [score.as_dict() for score in scores], "all": together(scores).as_dict()})
        say(f"Written: {job.results}")
    leave()


def _say_packing(folder: Path, pad_length: int, say: Callable[[str], None]) -> None:
    """A line where the checkpoint's run packed its samples and so cut them at another length than PAD_LEN."""
    run = read_run_config(folder) or {}
    length = run.get("seq_length")
    if length is not None and length != pad_length and run["options"].get("packing") is True:
        say(
            f"The checkpoint's run had --packing and cut samples at its SEQ_LEN, {length}; PAD_LEN here is {pad_length}, so this "
            f"loss is over other tokens than that run's: write SEQ_LEN and PAD_LEN {length} for the same ones."
        )


def _write(job: Evaluation, template: str, results: dict[str, Any]) -> None:
    arguments = {
        "checkpoint": str(job.model.checkpoint),
        "precision": job.model.precision,
        "seq_length": job.seq_length,
        "max_padding_length": job.pad_length,
        "stride": job.stride,
        "template": template,
    }
    job.results.parent.mkdir(parents=True, exist_ok=True)
    write_text(job.results, json.dumps({"arguments": arguments, **results}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
