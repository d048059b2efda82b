"""Text generation, one process of it: `python -m megatron_patch.cli.generate --flags`, or the same behind torchrun."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from hashlib import sha256

from megatron_patch.arguments.generation import Generation, read_generation
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.errors import UserError, print_any_text, sentence
from megatron_patch.language.sentences import fill, in_language
from megatron_patch.processes.imports import many_imports

_FULL = "{} What takes less: fewer sequences at once (BATCH_SIZE, BS, --requests), shorter ones, or a higher TP on more GPUs."
_PATIENCE = datetime.timedelta(seconds=10)  # for torchrun's answer


def main(argv: list[str]) -> None:
    """Read, load, answer.

    Raises:
        SystemExit: status 2, with the sentence, for what a user can mend; 130 after Ctrl-C.
    """
    interrupted = "interrupted; the same command goes on behind the answers that are written."
    run_and_leave(GENERATE.name, lambda: generate(read_generation(argv).job), interrupted)


def run_and_leave(name: str, work: Callable[[], None], interrupted: str) -> None:
    """Do `work`, and turn what a user can mend into a sentence. Several processes that fail alike say it once.

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
        text = f"{name}: {in_language(sentence(error))}"
        if _is_first_to_say(text):
            print(text, file=sys.stderr, flush=True)
        else:
            time.sleep(1)  # so that torchrun finds that one first
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


def _is_first_to_say(text: str) -> bool:
    """Whether none of the processes that torchrun has started said this before.

    They are asked through torchrun's store, which also counts before they have joined each other, and after one has
    ended. Where it cannot be asked, all say it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from torch.distributed import TCPStore

    try:
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE)
        return store.add(f"said/{sha256(text.encode('utf-8', 'backslashreplace')).hexdigest()}", 1) == 1
    except RuntimeError:  # torch's class for every fault of the network
        return True


def generate(job: Generation) -> None:
    """Answer a file of queries, or converse on the terminal.

    Raises:
        UserError, OSError: the checkpoint, the tokenizer or a file cannot be used.
    """
    with many_imports():
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
