"""How a run's processes end: with one line each, and with the status of the one that failed first."""

from __future__ import annotations

import json
import signal

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from megatron_patch.torchrun import patient
from tests.launching import FINETUNE, FINETUNE_ARGUMENTS, GOLDEN, run


def test_what_a_user_can_mend_is_a_sentence_on_several_processes(tmp_path):
    """The first rank finds a bad record while the others wait for it."""
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": "Count.", "outputt": "One."}] * 4))
    paths = dict(TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, OUTPUT_BASEPATH=tmp_path / "out")
    values = {**FINETUNE_ARGUMENTS, "MODEL_SIZE": "tiny", **paths}
    result = run(FINETUNE, *values.values(), "--tokenizer-path", GOLDEN / "hf_mha", processes=2)
    assert result.returncode == 2
    assert "data.json: 4 of 4 records cannot be used" in result.stdout
    assert "item 1: it has neither 'output' nor 'content'" in result.stdout
    assert "rank 0 was the first of this node to end early, with status 2" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize("failure, waits", [(SignalException("stopped", signal.SIGTERM), 3600), (RuntimeError("failed"), 30)])
def test_only_a_stop_is_waited_for(failure, waits):
    given = []
    close = patient(lambda self, death_sig, timeout: given.append(timeout))
    try:
        raise failure
    except type(failure):
        close(None, signal.SIGTERM, 30)
    assert given == [waits]
