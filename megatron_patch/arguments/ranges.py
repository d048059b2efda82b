"""What the flags of a training script must be, besides their kinds and ranges. Each finding is a sentence. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Iterator

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.option_rows import ACCUMULATION, EVALUATION
from megatron_patch.config import Options
from megatron_patch.formats.typed import number
from megatron_patch.sinks.tracker import missing_libraries

# Indexed data has its tokens already. --packing is refused there, since it would be missed.
_OF_JSON = ("--template", "--max-bad-fraction", "--tokenizer-engine")


def option_findings(by_epochs: bool, options: Options, refused: Callable[[str], bool]) -> Iterator[tuple[str, object, str]]:
    """(flag, what it got, what is allowed and what to write) for each flag that is wrong.

    Args:
        by_epochs: whether the run's length is in EPOCH. Then it evaluates after each, and accumulates by a flag.
        options: what the flags say.
        refused: says whether a flag was found wrong already. A default stands in its place then, and is not judged.
    """
    if not refused("--split") and not _is_split(options.split):
        wanted = "it takes shares of training, validation and test, the first above 0, those left out 0: write 98,2,0."
        yield "--split", options.split, wanted
    steps = ("--profile-step-start", "--profile-step-end")
    if options.profile and options.profile_step_end <= options.profile_step_start and not any(map(refused, steps)):
        wanted = f"it must be above --profile-step-start = {options.profile_step_start}: write {options.profile_step_start + 2}."
        yield "--profile-step-end", options.profile_step_end, wanted
    if options.tokenizer_path and not refused("--tokenizer-path") and not os.path.isdir(options.tokenizer_path):
        yield "--tokenizer-path", options.tokenizer_path, "there is no such folder: write the one that holds the tokenizer."
    for flag, given in (("--save-best", options.save_best), ("--early-stopping-patience", options.early_stopping_patience)):
        if not by_epochs and given and options.eval_interval == 0 and not any(map(refused, (flag, "--eval-interval"))):
            wanted = "it goes by the validation loss, and --eval-interval 0 turns evaluations off: write --eval-interval 100."
            yield flag, str(given).lower(), wanted
    if not by_epochs and options.gradient_accumulation_steps > 1:
        wanted = "it is for fine-tuning by EPOCH; here GLOBAL_BATCH_SIZE says it: remove the flag."
        yield "--gradient-accumulation-steps", options.gradient_accumulation_steps, wanted
    yield from missing_libraries(options)


def without_effect(script: Script, given: Container[str], reads_json: bool) -> list[str]:
    """A line for each flag that was given and changes nothing in this script, or for this data.

    given: `dest` of every argument that was.
    """
    notes = []
    for one in script.others:
        if one.dest in given and one in EVALUATION:
            notes.append(
                f"{one.flag} is for runs by iterations, and changes nothing here: each epoch ends with an evaluation over the "
                "whole of VALID_DATASET_PATH."
            )
        elif one.dest in given and one not in ACCUMULATION:
            notes.append(f"{one.flag} is for pre-training, and changes nothing here.")
    idle = [one for one in script.flags if one.flag in _OF_JSON and not reads_json]
    return notes + [f"{one.flag} is for JSON data, and changes nothing here." for one in idle if one.dest in given]


def _is_split(text: str) -> bool:
    shares = [number(share.strip()) for share in text.split(",")]
    if len(shares) > 3 or any(share is None or share < 0 for share in shares):
        return False
    return bool(shares[0]) and math.isfinite(sum(share or 0.0 for share in shares))
