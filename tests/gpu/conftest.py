"""Scripts see the GPUs here, which the other tests hide from them."""

import pytest

from tests import launching


@pytest.fixture(autouse=True)
def visible_gpus(monkeypatch):
    monkeypatch.setattr(launching, "HIDDEN", {})
