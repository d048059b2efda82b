"""A conversation in this process: Ctrl-C ends the answer alone, and one that outgrows the model's room says so."""

from __future__ import annotations

import signal

import pytest

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.generate import terminal
from megatron_patch.generate.asking import Asking
from megatron_patch.generate.prompt import prompt_maker
from megatron_patch.generate.sampling import Sampling
from tests.generate.models import engine_of
from tests.launching import GOLDEN


@pytest.fixture
def talk(monkeypatch, capsys):
    """A function from lines and a change of the engine to what stands on the terminal."""
    tokenizer = load_tokenizer(GOLDEN / "hf_gqa")
    asking = Asking(tokenizer, prompt_maker("llama2-chat", tokenizer), 60, 12, Sampling(), keeps_turns=True)

    def run(lines, change=lambda engine: None):
        engine, left = engine_of(GOLDEN / "hf_gqa", 1, 72), iter([*lines, None])
        change(engine)
        monkeypatch.setattr(terminal, "_typed", lambda: next(left))
        terminal.converse(engine, asking, print)
        assert engine.is_idle
        return capsys.readouterr().out.removeprefix(terminal.HELP + "\n")

    return run


def test_ctrl_c_ends_the_answer_and_not_the_conversation(talk):
    """The signal comes in the middle of the fourth pass, whose token is still shown."""
    whole = talk(["Say more"])

    def interrupt(engine):
        passes, step = [], engine.step

        def interrupted():
            passes.append(1)
            if len(passes) == 4:
                signal.raise_signal(signal.SIGINT)
            return step()

        engine.step = interrupted

    said = talk(["Say more", "/new", "Say more"], interrupt)
    first, second = said[: -len(whole)], said[-len(whole) :]
    assert second == whole and whole.startswith(first.rstrip("\n")) and 0 < len(first) < len(whole)


def test_a_conversation_that_is_cut_says_so(talk):
    assert "longer than 60 tokens" not in talk(["Say more"])
    assert "The conversation is longer than 60 tokens; the last ones were used." in talk(["Say more " * 30])
