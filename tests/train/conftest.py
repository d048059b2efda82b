import megatron_patch.core.device  # noqa: F401

import pytest

from megatron_patch.core import parallel
from tests.tiny import be_alone, tiny_config


@pytest.fixture(scope="module")
def alone():
    """The layout of a group of this process alone, for `tiny_config`."""
    be_alone()
    yield parallel.start(tiny_config())
    parallel.stop()
