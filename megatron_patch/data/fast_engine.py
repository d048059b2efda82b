"""A folder's tokenizer on the library fastokens, which reads texts several times as fast as SentencePiece and
`tokenizers` do.

Nothing here says that its ids are right: `data/compared_engine.py` compares them. What is known to differ is not tried.
SentencePiece joins pieces by score, and fastokens by the rank of a pair. The two agree if no two joined pieces have one
score. Runs of spaces are the exception: in LLaMA's vocabulary all of them score -1e9, and the longer run goes first.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from megatron_patch.data.tokenizer import Batch, Tokenizer, marked_encoder
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line
from megatron_patch.formats.sentencepiece_model import (
    BPE,
    BYTE,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    joins,
    read_model,
)

_SPACE = "▁"


class NoFastEngineError(UserError):
    """The message is a phrase: why a folder's tokenizer does not run on fastokens."""


def fast_tokenizer(reference: Tokenizer) -> Tokenizer:
    """`reference` with fastokens as its engine. Takes half a second for 32,000 pieces.

    Decoding stays the reference's.

    Raises:
        NoFastEngineError: fastokens is not installed or does not take the folder's tokenizer.
    """
    try:
        import fastokens
    except ImportError as error:
        raise NoFastEngineError(f"fastokens cannot be imported ({one_line(error)})") from None
    folder = reference.folder
    try:
        if (folder / "tokenizer.model").is_file():
            model = read_model((folder / "tokenizer.model").read_bytes())
            engine = fastokens.Tokenizer.from_json_str(_as_json(model))
            encoders = _of_sentencepiece(engine, model.dummy_prefix, reference)
        else:
            engine = fastokens.Tokenizer.from_json_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            encoders = _of_json(engine)
    except NoFastEngineError:
        raise
    except BaseException as error:
        raise NoFastEngineError(f"fastokens does not take its tokenizer: {_why(error)}") from None
    return replace(reference, **encoders, engine=f"fastokens {version('fastokens')}")


def _why(error: BaseException) -> str:
    """What fastokens raised, for a sentence. A panic of its Rust code is a BaseException; others of that kind go on."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return one_line(error)


def _of_sentencepiece(engine: Any, dummy_prefix: bool, reference: Tokenizer) -> dict[str, Any]:
    """The encoders of an engine that puts no space before a text, as fields of Tokenizer."""
    before = " " if dummy_prefix else ""

    def start(text: str) -> list[int]:
        return engine.encode(before + text).ids if text else []

    def rest(text: str) -> list[int]:
        return engine.encode(text).ids

    def batch(texts: list[str]) -> Batch:
        return _batch(engine.encode_batch_flat([before + text if text else text for text in texts]))

    return {
        "encode_plain": start,
        "encode_marked": marked_encoder(start, rest, reference.special_tokens, reference.strips),
        "encode_batch": batch,
    }


def _of_json(engine: Any) -> dict[str, Any]:
    """The encoders of an engine made from tokenizer.json, as fields of Tokenizer."""
    return {
        "encode_plain": lambda text: engine.encode(text, split_special_tokens=True).ids,
        "encode_marked": lambda text: engine.encode(text).ids,
        "encode_batch": lambda texts: _batch(engine.encode_batch_flat(texts, split_special_tokens=True)),
    }


def _batch(flat: tuple[bytes, bytes]) -> Batch:
    """fastokens' (ids uint32, offsets uint64 [texts + 1]), both as bytes."""
    return np.frombuffer(flat[0], dtype="<u4"), np.diff(np.frombuffer(flat[1], dtype="<u8").astype(np.int64))


def _as_json(model: SentencePieceModel) -> str:
    """The model as a tokenizer.json without added tokens, which puts no space before a text.

    Raises:
        NoFastEngineError: fastokens would read texts differently.
    """
    _require_alike(model)
    # fastokens may read a text that is written like a control token as that token. Its name gets a space, which no text
    # has any more when it is cut.
    names = [piece if kind in (NORMAL, BYTE) else f"{piece} " for piece, kind in zip(model.pieces, model.kinds)]
    vocabulary = {name: i for i, name in enumerate(names)}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    rules = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary, "merges": joins(model),
    }  # fmt: skip
    parts = dict.fromkeys(("truncation", "padding", "pre_tokenizer", "post_processor", "decoder"))
    return json.dumps({"version": "1.0", "added_tokens": [], "normalizer": spaces, "model": rules, **parts}, ensure_ascii=False)


def _require_alike(model: SentencePieceModel) -> None:
    """Check that ranks of pairs can say what the model does.

    Raises:
        NoFastEngineError: they cannot.
    """
    joined = [
        score
        for piece, score, kind in zip(model.pieces, model.scores, model.kinds)
        if kind == NORMAL and len(piece) > 1 and piece.strip(_SPACE)
    ]
    reasons = {
        "it is no BPE with byte fallback": model.model_type != BPE or not model.byte_fallback,
        "it changes characters or spaces of a text": model.changes_text or model.plain_spaces,
        "it has pieces of its user's own": bool({USER_DEFINED, UNUSED}.intersection(model.kinds)),
        "several of its pieces have one score, so their order depends on the text": len(set(joined)) < len(joined),
    }
    for reason, found in reasons.items():
        if found:
            raise NoFastEngineError(reason)
