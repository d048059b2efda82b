"""Text generation, one process of it: `python -m megatron_patch.cli.generate --flags`, or the same behind torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable

from megatron_patch.arguments.generation import Generation, read_generation
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.language.sentences import fill, in_language

_FULL = "{} What takes less: fewer sequences at once (BATCH_SIZE, BS, --requests), shorter ones, or a higher TP on more GPUs."


def main(argv: list[str]) -> None:
    """Read, load, answer.

    Raises:
        SystemExit: status 2, with the sentence, for what a user can mend; 130 after Ctrl-C.
    """
    interrupted = "interrupted; the same command goes on behind the answers that are written."
    run_and_leave(GENERATE.name, lambda: generate(read_generation(argv).job), interrupted)


def run_and_leave(name: str, work: Callable[[], None], interrupted: str) -> None:
    """Do `work`, and turn what a user can mend into a sentence.

    Args:
        name: of the command, in front of the sentence.
        interrupted: what is said after Ctrl-C.

    Raises:
        SystemExit: status 2; 1 where the GPU's memory is full; 130.
    """
    print_any_text()
    try:
        work()
    except (UserError, OSError) as error:
        print(f"{name}: {in_language(sentence(error))}", file=sys.stderr, flush=True)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, whose import costs seconds
            raise
        asked = str(error).partition(" Including non-PyTorch memory")[0].strip()
        print(f"{name}: {fill(_FULL, asked)}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: {in_language(interrupted)}", file=sys.stderr, flush=True)
        sys.exit(130)


def generate(job: Generation) -> None:
    """Answer a file of queries, or converse on the terminal.

    Raises:
        UserError, OSError: the checkpoint, the tokenizer or a file cannot be used.
    """
    from megatron_patch.generate.asking import open_engine
    from megatron_patch.generate.batch import answer_file
    from megatron_patch.generate.ranks import join, leave
    from megatron_patch.generate.terminal import converse

    ranks = join(job.model.tensor_model_parallel_size, job.model.pipeline_model_parallel_size)

    def say(line: str) -> None:
        if ranks.speaks and ranks.replica == 0:
            print(in_language(line), flush=True)

    engine, asking = open_engine(job, ranks, say)
    if job.input_file is None:
        converse(engine, asking, say)
    else:
        answer_file(engine, asking, job.input_file, job.output_file, say)
        say(f"Written: {job.output_file}")
    leave()


if __name__ == "__main__":
    main(sys.argv[1:])
