"""tokenizer.json out of tokenizer.model: the same vocabulary for libraries that do not run SentencePiece.

transformers 5 reads tokenizer.json where there is one. From tokenizer.model alone it joins pieces in the order of their
numbers. In LLaMA's vocabulary runs of spaces have low numbers and the worst score of all, so that it reads nearly every
file of code otherwise than SentencePiece, with which the model was trained.

What is made here joins pieces in the order of their scores. It is written only if it reads texts as SentencePiece does:
`difference` compares them. One thing cannot be had in this form, and is left out of the comparison. SentencePiece puts
a space before every text; `Metaspace`, which transformers puts into each LLaMA tokenizer, puts none before a text that
begins with one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_patch.data.end_token import read_object
from megatron_patch.data.probe_texts import probe_texts
from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.data.tokenizer_files import content, faults_named, read_names
from megatron_patch.errors import UserError
from megatron_patch.folders.durable_files import write_text
from megatron_patch.formats.json_files import one_line, shown
from megatron_patch.formats.sentencepiece_model import UNKNOWN, joins, read_model

NAME = "tokenizer.json"
_SPACE = "▁"
_SPACES = " ▁"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_tokenizer_json(folder: Path, rows: int) -> str | None:
    """Write tokenizer.json into a Hugging Face folder that has tokenizer.model alone. One that is there stays.

    Args:
        folder: a folder with the tokenizer's other files.
        rows: number of rows of the model, as for `load_tokenizer`.

    Returns:
        A sentence if none was written, or if the one that is there reads a text otherwise than tokenizer.model.
    """
    if not (folder / "tokenizer.model").is_file():
        return None
    try:
        tokenizer = load_tokenizer(folder, rows)
        if (folder / NAME).is_file():
            return _judged(folder / NAME, tokenizer)
        made = json.dumps(tokenizer_json(folder, tokenizer), ensure_ascii=False, indent=1)
    except UserError as error:
        return f"no {NAME} was made: {error}"
    found = difference(_engine(folder / NAME, made), tokenizer, _compared(tokenizer))
    if found:
        return f"no {NAME} was written, since none reads texts as this tokenizer.model does: {found}."
    write_text(folder / NAME, made + "\n")
    return None


def _judged(path: Path, tokenizer: Tokenizer) -> str | None:
    """A sentence if the tokenizer.json that came with the source reads plain text otherwise than tokenizer.model."""
    try:
        plain = [text for text in _compared(tokenizer) if not any(literal in text for literal in tokenizer.special_tokens)]
        found = difference(_engine(path, path.read_text(encoding="utf-8")), tokenizer, plain)
    except (UserError, UnicodeDecodeError) as error:
        return f"{NAME} was copied from the source, and transformers cannot read it: {one_line(error)}"
    advice = "transformers reads tokenizer.json: remove it from the source, and the next conversion makes one."
    return f"{NAME}, copied from the source, is not this tokenizer.model's: {found}. {advice}" if found else None


def _compared(tokenizer: Tokenizer) -> list[str]:
    """The texts on which the two are compared; none begins with a space."""
    return [text for one in probe_texts(tokenizer) if (text := one.lstrip(_SPACES))]


def tokenizer_json(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json for `folder`'s tokenizer.model and its added tokens.

    Raises:
        UserError: a file of the folder cannot be read.
    """
    model = read_model((folder / "tokenizer.model").read_bytes())
    begins_with_space = tokenizer.tokenize("a") != tokenizer.tokenize_after_end("a")
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins_with_space else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(folder, tokenizer),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "first" if begins_with_space else "never",
            "split": False,
        },
        "post_processor": _post_processor(folder, tokenizer),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.kinds.index(UNKNOWN)],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            # Tokens beyond tokenizer.model too, so that they keep their numbers where there is a gap before them.
            "vocab": {piece: i for i, piece in enumerate(model.pieces)} | dict(tokenizer.special_tokens),
            # A text, not a pair: every version of `tokenizers` reads it. No piece has a space.
            "merges": [f"{left} {right}" for left, right in joins(model)],
        },
    }


def _added_tokens(folder: Path, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Every special and added token, with the flags that tokenizer_config.json gives it."""
    decoder = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    given = {content(token): token for token in decoder.values() if isinstance(token, dict)}
    named = set(_texts(read_names(folder).values())) | {"<unk>", "<s>", "</s>"}
    made = []
    for literal, i in sorted(tokenizer.special_tokens.items(), key=lambda one: one[1]):
        usual = dict.fromkeys(_FLAGS, False) | {"special": literal in named}
        flags = {flag: bool(given.get(literal, usual).get(flag, usual[flag])) for flag in _FLAGS}
        made.append({"id": i, "content": literal, **flags})
    return made


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """The tokens' texts among the values of special_tokens_map.json: one a role, or a list."""
    for value in values:
        if isinstance(value, list):
            yield from _texts(value)
        elif isinstance(content(value), str):
            yield content(value)


def _post_processor(folder: Path, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Start and end token around a text, as tokenizer_config.json asks for them: a start token, unless it says no."""
    settings = read_object(folder / "tokenizer_config.json")
    literals = {i: literal for literal, i in tokenizer.special_tokens.items()}
    before = [literals[tokenizer.bos]] if settings.get("add_bos_token", True) else []
    after = [literals[tokenizer.eos]] if settings.get("add_eos_token", False) else []
    if not before + after:
        return None

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        ends = [[{"SpecialToken": {"id": literal, "type_id": number}} for literal in side] for side in (before, after)]
        return [*ends[0], {"Sequence": {"id": sequence, "type_id": number}}, *ends[1]]

    numbers = {literal: tokenizer.special_tokens[literal] for literal in before + after}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {literal: {"id": literal, "ids": [i], "tokens": [literal]} for literal, i in numbers.items()},
    }


def _engine(path: Path, source: str) -> Any:
    """What the `tokenizers` library makes of the content of `path`.

    Raises:
        UserError: it cannot follow it.
    """
    from tokenizers import Tokenizer as Engine

    with faults_named(path):
        return Engine.from_str(source)


def difference(engine: Any, tokenizer: Tokenizer, compared: list[str]) -> str | None:
    """How the two read a text of `compared` differently, as short as it can be cut; None where they agree on all."""
    found = engine.encode_batch(compared, add_special_tokens=False)
    for text, one in zip(compared, found):
        if one.ids != tokenizer.tokenize_marked(text):
            break
    else:
        return None

    def differ(part: str) -> bool:
        return engine.encode(part, add_special_tokens=False).ids != tokenizer.tokenize_marked(part)

    short = _shortened(text, differ)
    ids = engine.encode(short, add_special_tokens=False).ids, tokenizer.tokenize_marked(short)
    here, there = ("|".join(engine.id_to_token(i) or str(i) for i in side) for side in ids)
    return f"it makes {here} of {shown(short)}, and SentencePiece {there}"


def _shortened(text: str, holds: Callable[[str], bool]) -> str:
    """A part of `text` for which `holds` is true as well, and of which no half, quarter, … or character can go."""
    size = len(text) // 2
    while size:
        for start in range(0, len(text), size):
            part = (text[:start] + text[start + size :]).lstrip(_SPACES)
            if part and holds(part):
                text = part
                break
        else:
            size //= 2
        size = min(size, len(text) // 2)
    return text
