"""Text as it comes, against the whole answer decoded at once."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.generate.logprobs import Score
from megatron_patch.generate.openai_logprobs import Logprobs, TokenTexts
from megatron_patch.generate.text_stream import TextStream
from tests.data.test_tokenizer import write_tokenizer_json
from tests.launching import GOLDEN

TOKENIZER = load_tokenizer(GOLDEN / "hf_gqa")
TEXT = "The 语言 model 😀 says: naïve\n\nEND of it"
NAMES = {TOKENIZER.piece(token): token for token in range(TOKENIZER.vocab_size)}
# Beginnings, middles and ends of characters, bytes that are none's, whole ones.
CODES = (0x0A, 0x41, 0x80, 0x9F, 0xA9, 0xBE, 0x98, 0xC3, 0xE0, 0xE9, 0xED, 0xF0, 0xF4, 0xFF)
BYTES = [NAMES[f"<0x{byte:02X}>"] for byte in CODES]
TOKENS = st.lists(st.sampled_from([*BYTES * 3, TOKENIZER.bos, *TOKENIZER.tokenize("a b"), NAMES["▁"]]), max_size=14)
RARE = st.text(st.sampled_from("a \n龘é😀\ufffd"), max_size=12)


def pieces(prompt, answer, stop=(), tokenizer=TOKENIZER):
    stream = TextStream(tokenizer, prompt, stop)
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


@given(TOKENS, TOKENS)
def test_the_pieces_are_the_whole_of_any_bytes(prompt, answer):
    """A character that the prompt begins and the answer ends is the answer's; a broken one is text like another."""
    out, _ = pieces(prompt, answer)
    before, whole = TOKENIZER.detokenize(prompt), TOKENIZER.detokenize(prompt + answer)
    assert "".join(out) == whole[len(os.path.commonprefix([before, whole])) :]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The `tokenizers` library's tokenizers: one like SentencePiece's, and one whose tokens hold one to three bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folders = [tmp_path_factory.mktemp(name) for name in ("pieces", "words")]
    write_tokenizer_json(
        SentencePieceProcessor(model_file=str(GOLDEN / "hf_gqa" / "tokenizer.model")), folders[0] / "tokenizer.json"
    )
    given = "a龘é 😀b"
    (letters, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(given)
    names = sorted({letters[a : a + size] for size in (1, 2, 3) for a in range(len(letters))})
    engine = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<s>", "</s>")])
    engine.save(str(folders[1] / "tokenizer.json"))
    return [load_tokenizer(folder) for folder in folders]


@given(RARE, RARE)
def test_other_decoders_lose_nothing(others, before, after):
    """Of whole characters; a broken one `tokenizers` writes in another way once it sees what follows."""
    tokenizer = others[0]
    prompt, answer = [tokenizer.bos, *tokenizer.tokenize("a" + before)], tokenizer.tokenize(after)
    out, stream = pieces(prompt, answer, tokenizer=tokenizer)
    assert "".join(out) == tokenizer.detokenize(prompt + answer)[len(tokenizer.detokenize(prompt)) :]


@given(st.data())
def test_tokens_of_several_bytes(others, data):
    tokenizer = others[1]
    prompt, answer = (data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12)) for _ in range(2))
    is_the_whole(tokenizer, prompt, answer)


@pytest.mark.parametrize("which, begun, end", [(0, ("<0xE9>", "<0xBE>"), "<0x98>"), (1, ("Ġð", "ĺĢ"), "©")])
def test_special_tokens_inside_a_character(which, begun, end, others):
    """They are left out of the text, however many stand between its bytes, in the prompt and in the answer."""
    tokenizer = others[which]
    names = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size)}
    begun, end = [names[name] for name in begun], names[end]
    for count in range(9):
        between = [tokenizer.bos] * count
        before = [tokenizer.bos, begun[0], *between, begun[1], *between]
        is_the_whole(tokenizer, before, [end])
        is_the_whole(tokenizer, begun, [*between, end])
        if which == 0:
            assert TextStream(tokenizer, before).unfinished == len(before) - 1


def is_the_whole(tokenizer, prompt, answer):
    out, _ = pieces(prompt, answer, tokenizer=tokenizer)
    before, whole = tokenizer.detokenize(prompt), tokenizer.detokenize(prompt + answer)
    assert "".join(out) == whole[len(os.path.commonprefix([before, whole])) :]


@given(TOKENS, TOKENS)
def test_offsets_are_places_in_the_whole_text(prompt, answer):
    """Of a byte, the place of its character; the same whether the prompt is told or not."""
    texts = TokenTexts(TOKENIZER)

    def offsets(prompt, told):
        return Logprobs(texts, TOKENIZER, prompt, 0, is_echoed=not prompt).body([Score(token) for token in told])["text_offset"]

    whole, found = TOKENIZER.detokenize(prompt + answer), offsets([], prompt + answer)
    assert offsets(prompt, answer) == found[len(prompt) :]
    for place, (token, begin) in enumerate(zip(prompt + answer, found)):
        text = texts.of(token)
        if text.startswith("bytes:"):
            # The byte is one of the character's, or it is no character's.
            assert whole[begin] == "\ufffd" or TOKENIZER.piece(token)[1:-1] in map(hex_of, whole[begin].encode())
        elif token != TOKENIZER.bos:
            assert whole.startswith(text, begin) or not TOKENIZER.detokenize((prompt + answer)[:place])


def hex_of(byte):
    return f"0x{byte:02X}"


@pytest.mark.parametrize("token", [NAMES["<0xE9>"], NAMES["▁"], TOKENIZER.bos, NAMES["<unk>"]])
def test_each_token_costs_the_same(token):
    """A model may repeat a byte that is no character for ever, and a prompt may hold nothing else."""
    decoded = []
    counting = replace(TOKENIZER, decode=lambda ids: (decoded.append(len(ids)), TOKENIZER.decode(ids))[1])
    pieces([], [token] * 300, tokenizer=counting)
    Logprobs(TokenTexts(counting), counting, [token] * 300, 0, is_echoed=False)
    assert sum(decoded) < 300 * 2 * 20


def test_no_piece_holds_a_part_of_a_character():
    out, _ = pieces([1], TOKENIZER.tokenize(TEXT))
    assert "\ufffd" not in "".join(out) and len([piece for piece in out if piece]) > 5


@given(st.integers(0, len(TEXT) - 1), st.integers(1, 6))
def test_a_stop_word_ends_the_text_before_it(place, size):
    word = TEXT[place : place + size]
    out, stream = pieces([1], TOKENIZER.tokenize(TEXT), (word, "never comes"))
    assert "".join(out) == stream.text == TEXT[: TEXT.index(word)]
    assert stream.is_stopped
