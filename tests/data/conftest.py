from pathlib import Path

import pytest

from megatron_patch.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def golden():
    return Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def tokenizer(golden):
    return load_tokenizer(golden / "hf_mha")
