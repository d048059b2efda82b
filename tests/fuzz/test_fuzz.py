"""Some thousand changed inputs over every reader and every argument: each ends in a right result or in a sentence.

Every valid file is also tried unchanged. hypothesis makes some of the choices and shrinks what fails. The examples are
the same each time. `make fuzz` tries a million, in processes of their own.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.entry_points import ENTRY_POINTS, Arguments
from tests.fuzz.mutate import changed_json
from tests.fuzz.outcome import limits, outcome
from tests.fuzz.readers import READERS
from tests.fuzz.run import TARGETS, attempt, prepared, random_of
from tests.fuzz.valid import CONFIG

_SHRUNK = 12  # examples whose choices hypothesis makes
_SEEDED = 80  # examples of Python's own generator, ten times as fast


@pytest.mark.parametrize("name", TARGETS)
def test_every_changed_input_is_a_result_or_a_sentence(name, tmp_path):
    target = prepared(name, tmp_path)

    @settings(max_examples=_SHRUNK, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def tried(choices):
        failure, shown, _ = attempt(target, choices)
        assert failure is None, f"{failure.place}\n{shown}\n{failure.detail}"

    with limits():
        for seed in range(_SEEDED):
            failure, shown, _ = attempt(target, random.Random(seed))
            assert failure is None, f"{failure.place}\n{shown}\n{failure.detail}"
        tried()


@pytest.mark.parametrize("name", READERS)
def test_what_is_valid_is_read(name, tmp_path):
    """The unchanged input is accepted. Otherwise every changed one would be refused for another reason."""
    target = prepared(name, tmp_path)
    if name in ("fine-tuning-data", "preparation-input"):  # which have no file but the changed one
        (target.folder / "alpaca-d.json").write_text('[{"instruction": "a", "output": "b", "text": "to be"}]')
    for seed in range(8):
        status = target.read(random.Random(seed))
        assert not isinstance(status, int) or status == 0


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_what_is_valid_is_started(name, tmp_path):
    target = prepared(name, tmp_path)
    assert isinstance(target, Arguments)
    argv = [*target.words, *(f"--{flag}={value}" if flag else value for flag, value in target.flags)]
    with target.surroundings({}):
        assert target.main(argv) in (None, 0)


@pytest.mark.parametrize(
    "wrong",
    ["[][0]", "int('x')", "exec('a, b = [1]')", "1 / 0", "exit(1)", "bytearray(10**10)", "(lambda: (yield))().throw(KeyError)"],
)
def test_the_harness_itself_finds_what_is_no_sentence(wrong):
    with limits():
        assert outcome(lambda: eval(wrong)) is not None


def test_the_harness_takes_sentences_and_results(tmp_path: Path):
    from megatron_patch.llama.model_config import read_hf_config

    assert outcome(lambda: None) is None
    assert outcome(lambda: read_hf_config(tmp_path)) is None


def test_the_same_input_comes_again():
    made = [changed_json(random_of("1", "config.json", 7), CONFIG) for _ in range(2)]
    assert made[0] == made[1] != changed_json(random_of("1", "config.json", 8), CONFIG)
