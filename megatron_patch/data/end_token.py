"""The tokens that end an answer: those at which the folder's model stops generating.

Three files of a Hugging Face folder may name them. Generation stops at generation_config.json's `eos_token_id`, a
number, or a list of which each one ends an answer: in Phi-3's folder `<|endoftext|>`, `<|assistant|>` and `<|end|>`. An
answer that is learnt gets one of them. Without that file transformers takes config.json's. If neither has one, only the
tokenizer's own `eos_token` is known. The files may disagree: a ChatML folder made from a LLaMA may have `<|im_end|>` in
some and `</s>` in others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import json_object, shown

_MODEL_FILES = ("generation_config.json", "config.json")  # the first one that names a token decides, as in transformers


@dataclass(frozen=True)
class EndToken:
    """What ends an answer.

    Attributes:
        id: what is written after an answer.
        note: a sentence if the folder's files disagree about it; else an empty one.
        others: ids at which the model stops too.
    """

    id: int
    note: str
    others: tuple[int, ...] = ()


def end_token(folder: Path, eos: int, literals: dict[int, str], vocab_size: int) -> EndToken:
    """The end token of answers for the model in `folder`.

    Args:
        eos: the tokenizer's own end token, which is taken if the model stops at it too.
        literals: id → how a special token is written, for the sentence.
        vocab_size: ids from there on cannot be written, and are not taken.

    Raises:
        UserError: a file's `eos_token_id` is no token number and no list of them.
    """
    named = {name: _ids(folder / name) for name in _MODEL_FILES}
    waited = next((ids for ids in named.values() if ids), (eos,))
    decides = next((name for name, ids in named.items() if ids), "the tokenizer")
    known = [i for i in waited if i < vocab_size]
    taken = eos if eos in waited or not known else known[0]
    others = tuple(i for i in known if i != taken)
    if taken == eos and all(taken in ids for ids in named.values() if ids):
        return EndToken(taken, "", others)

    def named_ids(*ids: int) -> str:
        return " or ".join(f"{literals[i]} ({i})" if i in literals else str(i) for i in ids)

    said = [f"{name} {named_ids(*ids)}" for name, ids in named.items() if ids]
    why = f"generation with this model stops at what {decides} names"
    if taken not in waited:
        why = f"the tokenizer has no {named_ids(*waited)}, which {decides} names"
    return EndToken(
        taken,
        f"The files in {folder} name different end tokens (the tokenizer {named_ids(eos)}, {', '.join(said)}); "
        f"answers end in {named_ids(taken)}: {why}.",
        others,
    )


def _ids(path: Path) -> tuple[int, ...]:
    """`eos_token_id` of a JSON file; empty if the file or the key is missing."""
    value = read_object(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise UserError(f"{path}: eos_token_id is {shown(value)}; it takes a token's number, or a list of them.")
    return tuple(ids)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    return json_object(path) if path.is_file() else {}
