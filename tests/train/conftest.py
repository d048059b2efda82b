import megatron_patch.core.device  # noqa: F401

import os

import pytest

from megatron_patch.core import parallel
from megatron_patch.processes import free_port
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def alone():
    """Layout of a group of one process, for `tiny_config`."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    yield parallel.start(tiny_config())
    parallel.stop()
