"""What a SentencePiece model (`tokenizer.model`) says of itself: pieces, scores, and how a text is changed before it is
cut. Imports no torch.

The library gives pieces and scores one at a time and keeps the rest to itself. The file is a protobuf message of a few
known fields (`sentencepiece_model.proto` of google/sentencepiece), and only those are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_patch.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_TEXT, _SCORE, _KIND = 1, 2, 3  # fields of SentencePiece
_MODEL_TYPE, _SPACE_AS_SUFFIX, _BYTE_FALLBACK = 3, 24, 35  # fields of TrainerSpec
_CHARACTERS, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPED_SPACES = 2, 3, 4, 5  # fields of NormalizerSpec
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # protobuf's wire types

Value = int | bytes


@dataclass(frozen=True)
class SentencePieceModel:
    """The fields of a model that decide how it cuts a text.

    Attributes:
        pieces, scores, kinds: of each id its text, its score and one of the kinds above.
        model_type: BPE, or another of SentencePiece's.
        byte_fallback: whether a character without a piece becomes the pieces of its bytes.
        dummy_prefix: whether a space is put before a text.
        changes_text: whether characters are exchanged or spaces removed before the text is cut.
        plain_spaces: whether spaces stand in pieces as they are, or at a word's end, instead of as ▁ before it.
    """

    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    model_type: int
    byte_fallback: bool
    dummy_prefix: bool
    changes_text: bool
    plain_spaces: bool


def joins(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Which two pieces of a BPE model join before which others, the first first: `merges` of a tokenizer.json.

    SentencePiece joins the pair whose result has the best score, and of equal ones the pair furthest left. A list of
    pairs can say that where each result has a score of its own, and for runs of spaces, which share one in LLaMA's
    vocabulary: there, furthest left means that a run that has begun grows before another begins, so the pair with the
    longer left part comes first. Control tokens, bytes and unused pieces are never joined, however they are written:
    `<` and `s>` do not become the start token.
    """
    barred = (CONTROL, UNKNOWN, BYTE, UNUSED)
    named = zip(model.pieces, model.scores, model.kinds)
    scores = {piece: score for piece, score, kind in named if kind not in barred}
    found = [
        (-score, -cut, cut - len(piece), piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found, key=lambda one: one[:3])]


def read_model(data: bytes) -> SentencePieceModel:
    """Read a serialized model.

    Raises:
        UserError: one phrase: the bytes are no such message.
    """
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    try:
        for field, value in _fields(data):
            if field == _PIECES:
                piece = dict(_fields(_message(value)))
                pieces.append(_message(piece.get(_TEXT, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", _message(piece.get(_SCORE, bytes(4))))[0])
                kinds.append(int(piece.get(_KIND, NORMAL)))
            elif field == _TRAINER:
                trainer.update(_fields(_message(value)))
            elif field == _NORMALIZER:
                normalizer.update(_fields(_message(value)))
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise UserError(f"it is no serialized SentencePiece model ({error})") from None
    return SentencePieceModel(
        pieces, scores, kinds,
        model_type=int(trainer.get(_MODEL_TYPE, 1)),
        byte_fallback=bool(trainer.get(_BYTE_FALLBACK, 0)),
        dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, 1)),
        changes_text=bool(normalizer.get(_CHARACTERS, b"")) or bool(normalizer.get(_EXTRA_SPACES, 1)),
        plain_spaces=not normalizer.get(_ESCAPED_SPACES, 1) or bool(trainer.get(_SPACE_AS_SUFFIX, 0)),
    )  # fmt: skip


def _message(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number stands where a message should")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(field number, value) of each field of a message: a whole number, or the field's bytes."""
    position = 0
    while position < len(data):
        key, position = data[position], position + 1
        if key > 127:
            key, position = _varint(data, position - 1)
        wire = key & 7
        if wire == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        size = {_EIGHT: 8, _FOUR: 4}.get(wire)
        if wire == _BYTES:
            size, position = _varint(data, position)
        if size is None or position + size > len(data):
            raise UserError(f"a field at byte {position} is cut off or of an unknown kind")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and the position behind it."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
        if shift > 63:
            raise UserError(f"a number before byte {position} has more than 64 bits")
