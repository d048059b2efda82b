"""benchmarks/mutations.py can plant each fault of its table: its text is there once, and so are its tests."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.import_graph import ROOT


def table():
    """The faults, from a script that is no module of a package."""
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "benchmarks/mutations.py")
    module = sys.modules["mutations"] = importlib.util.module_from_spec(spec)  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module.MUTATIONS


@pytest.mark.parametrize("fault", table(), ids=lambda fault: fault.name)
def test_a_fault_has_its_place_and_its_tests(fault):
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1, f"{fault.file} has changed; mend the table"
    tests = [word.partition("::")[0] for word in fault.tests.split() if word.startswith("tests/")]
    assert tests and all((ROOT / test).is_file() for test in tests), fault.tests


def test_no_two_faults_have_one_name():
    names = [fault.name for fault in table()]
    assert len(names) == len(set(names))
