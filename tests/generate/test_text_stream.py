"""Text as it comes, against the whole answer decoded at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.generate.text_stream import TextStream
from tests.launching import GOLDEN

TOKENIZER = load_tokenizer(GOLDEN / "hf_gqa")
TEXT = "The 语言 model 😀 says: naïve\n\nEND of it"


def pieces(prompt, answer, stop=()):
    stream = TextStream(TOKENIZER, prompt, stop)
    out = []
    for token in answer:
        out.append(stream.add(token))
        if stream.is_stopped:
            break
    return [*out, stream.end()], stream


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_are_the_whole(before, after):
    prompt, whole = [1, *TOKENIZER.tokenize(before)], [1, *TOKENIZER.tokenize(before + after)]
    answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else TOKENIZER.tokenize(after)
    out, stream = pieces(prompt, answer)
    assert "".join(out) == stream.text == TOKENIZER.detokenize(prompt + answer)[len(TOKENIZER.detokenize(prompt)) :]


def test_no_piece_holds_a_part_of_a_character():
    out, _ = pieces([1], TOKENIZER.tokenize(TEXT))
    assert "\ufffd" not in "".join(out) and len([piece for piece in out if piece]) > 5


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 6))
def test_a_stop_word_ends_the_text_before_it(place, size):
    word = TEXT[place : place + size]
    out, stream = pieces([1], TOKENIZER.tokenize(TEXT), (word, "never comes"))
    assert "".join(out) == stream.text == TEXT[: TEXT.index(word)]
    assert stream.is_stopped
