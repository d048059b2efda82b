"""What all tests share: the golden files, and one thread for each process, so that sums have one order."""

from __future__ import annotations

import os

import pytest

from tests.launching import GOLDEN

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def no_port_is_left():
    """A launcher in a later test of this process would find that MASTER_PORT is in use: by the group of this one."""
    yield
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture(scope="session")
def golden():
    """The folder of files that the original's programs made."""
    return GOLDEN


@pytest.fixture(scope="session")
def tokenizer(golden):
    """The tokenizer of the golden models: SentencePiece, 800 pieces."""
    from megatron_patch.data.tokenizer import load_tokenizer

    return load_tokenizer(golden / "hf_mha")


@pytest.fixture(scope="module")
def alone():
    """The layout of a group of this process alone, for `tiny_config`."""
    import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

    from megatron_patch.core import parallel
    from tests.tiny import be_alone, tiny_config

    be_alone()
    yield parallel.start(tiny_config())
    parallel.stop()


# Files whose tests take long, which begin first, so that no process waits for another's at the end.
_LONG = (
    "pai/test_notebook",
    "documents/",
    "pai/test_several_nodes",
    "faults/",
    "train/test_resume",
    "train/test_lora",
    "scripts/",
)
# What takes long and has a faster kin in the suite, by parts of its name; `make soak` runs it.
_SOAK = (
    "test_losses_after_a_stop_are_the_same_bits[TP2 PP2]",
    "test_kernels_compile_for_hopper[float16]",
    *(f"test_twenty_steps_agree[{layout}-hf_mha]" for layout in ("TP2", "PP2", "DP2 with DO", "TP2 with SP", "AC full")),
    "test_twenty_steps_agree[TP2 PP2 with DO and SP-hf_mha]",
    # tests/faults/test_process_faults.py ends a run by torchrun's signal as well.
    "test_a_signal_stops_all_processes_after_a_checkpoint[torchrun]",
    # Each with copies remains.
    *(f"equal_core_s_schedule[{layout} with SP-collectives]" for layout in ("TP2 DP2", "TP2 PP2")),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long files first, in their own order (with xdist: `--no-loadscope-reorder`)."""

    def rank(item):
        path = item.path.as_posix()
        return next((place for place, part in enumerate(_LONG) if f"tests/{part}" in path), len(_LONG))

    items.sort(key=rank)
    for item in items:
        if "SOAK" not in os.environ and any(part in item.nodeid for part in _SOAK):
            item.add_marker(pytest.mark.skip(reason="it takes long, and has a faster kin; make soak runs it"))
