"""What the small files of a tokenizer's folder say: special and added tokens, and the chat template.

Nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.data.end_token import read_object
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import is_whole_number, one_line, shown
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.formats.typed import whole_number

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json", "chat_template.jinja")  # fmt: skip
# What transformers' LLaMA tokenizer takes where the files name none.
USUAL_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROLES = (*USUAL_NAMES, "pad_token", "sep_token", "cls_token", "mask_token")
MOST_TOKENS = 1 << 28  # a larger id is no token's: the model would have that many rows
_MOST_TEMPLATE = 1 << 20  # bytes
# What Unicode calls white space, which the `tokenizers` library strips. Python's own list has four more.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@dataclass(frozen=True)
class Strips:
    """Literals of tokens that swallow the white space beside them: `lstrip` and `rstrip` in a folder's files."""

    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()


def fingerprint(folder: Path) -> str:
    """sha256 of the names and contents of the tokenizer's files, as hex digits.

    tokenizer.json beside tokenizer.model is not read and does not count: a conversion to Hugging Face's form adds it.

    Raises:
        UserError: a file is a Git LFS pointer instead of its content.
    """
    digest = hashlib.sha256()
    unread = {"tokenizer.json"} if (folder / "tokenizer.model").is_file() else set()
    for name in FILES:
        if (folder / name).is_file() and name not in unread:
            refuse_placeholder(folder / name)
            digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def read_names(folder: Path) -> dict[str, Any]:
    """`bos_token` and the other roles → what the folder's files say of each: a text, or an object with `content`.

    tokenizer_config.json and special_tokens_map.json both name them. As in transformers, the latter wins over an old
    tokenizer_config.json alone. A tokenizer_config.json with `added_tokens_decoder` wins; the other file adds what it
    lacks.

    Raises:
        UserError: a file is no JSON object.
    """
    settings, mapped = read_object(folder / "tokenizer_config.json"), read_object(folder / "special_tokens_map.json")
    if "added_tokens_decoder" in settings:
        return {**mapped, **{key: value for key, value in settings.items() if value is not None}}
    return {**settings, **mapped}


def template_names(folder: Path) -> dict[str, str]:
    """`bos_token` and the other roles → the token's text, as transformers gives them to a chat template.

    A role that tokenizer_config.json names as null has none, and a template writes nothing for it.

    Raises:
        UserError: a file is no JSON object.
    """
    settings, named = read_object(folder / "tokenizer_config.json"), read_names(folder)
    found = {role: content(named.get(role, USUAL_NAMES.get(role) if role not in settings else None)) for role in _ROLES}
    return {role: text for role, text in found.items() if isinstance(text, str)}


def read_strips(folder: Path) -> Strips:
    """The tokens that take white space beside them with them, as the folder's files say of each.

    Raises:
        UserError: a file is no JSON object.
    """
    decoder = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    described = [*read_names(folder).values(), *(decoder.values() if isinstance(decoder, dict) else ())]
    flags = {token["content"]: token for token in described if isinstance(token, dict) and isinstance(token.get("content"), str)}
    left, right = ({text for text, one in flags.items() if one.get(side)} for side in ("lstrip", "rstrip"))
    return Strips(frozenset(left), frozenset(right))


def read_added_tokens(folder: Path) -> dict[str, int]:
    """Literal → id of tokens that were added beside tokenizer.model: `added_tokens.json` and `added_tokens_decoder`.

    Raises:
        UserError: a file holds something else.
    """
    added = {}
    for literal, i in read_object(folder / "added_tokens.json").items():
        added[_literal(folder / "added_tokens.json", literal)] = _id(folder / "added_tokens.json", i)
    path = folder / "tokenizer_config.json"
    decoder = read_object(path).get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        got = shown(decoder)
        raise UserError(f"{path}: added_tokens_decoder is {got}; it must be an object: copy the model's own file there.")
    for i, token in decoder.items():
        added[_literal(path, content(token))] = _id(path, whole_number(i))
    return added


def without_padding(added: dict[str, int], names: Mapping[str, Any], rows: int | None) -> dict[str, int]:
    """Added tokens, but for padding tokens beyond the model's `rows`. None keeps all."""
    pad = content(names.get("pad_token"))
    padding = ("<pad>", "[PAD]", pad if isinstance(pad, str) else None)
    return {literal: i for literal, i in added.items() if rows is None or i < rows or literal not in padding}


def read_chat_templates(folder: Path) -> dict[str, str | None]:
    """The folder's `chat_template`, or None: `chat_template.jinja`, else tokenizer_config.json's.

    Of several in tokenizer_config.json the one named `default` is taken. As in transformers the one named `tool_use`
    writes a conversation with tools: it is the `tool_template`.

    Raises:
        UserError: it is no text, too large, or not UTF-8.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        with open(path, "rb") as file:
            data = file.read(_MOST_TEMPLATE + 1)
        if len(data) > _MOST_TEMPLATE:
            found = f"more than {_MOST_TEMPLATE} bytes, which no chat template has"
            raise UserError(f"{path} has {found}; copy the model's own file there.")
        try:
            return {"chat_template": data.decode("utf-8"), "tool_template": None}
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start}); copy the model's own file there.") from None
    own = read_object(folder / "tokenizer_config.json").get("chat_template")
    several = own if isinstance(own, list) else [{"name": "default", "template": own}]
    named = {str(one.get("name")): one.get("template") for one in reversed(several) if isinstance(one, dict)}
    templates = {"chat_template": named.get("default"), "tool_template": named.get("tool_use")}
    for template in templates.values():
        if not isinstance(template, (str, type(None))):
            raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is {shown(template)}; it must be a text.")
    return templates


def content(token: Any) -> Any:
    """A token's text. Tokenizer files write it plainly, or as an object's `content`."""
    return token.get("content") if isinstance(token, dict) else token


def name_of(path: Path, names: Mapping[str, Any], role: str) -> str | None:
    """The text that the folder's files give for a role such as `bos_token`; None without one.

    path: any file in that folder, for the sentence.

    Raises:
        UserError: they give something that is no text.
    """
    found = content(names.get(role))
    if not isinstance(found, (str, type(None))):
        raise UserError(f"{path.parent}: {role} is {shown(found)}; it must be a token's text: copy the model's own files there.")
    return found


def _literal(path: Path, literal: Any) -> str:
    """An added token's text, checked."""
    if not isinstance(literal, str) or not literal:
        raise UserError(f"{path}: {shown(literal)} is no added token's text; copy the model's own file there.")
    return literal


def _id(path: Path, value: Any) -> int:
    """A token's number, checked."""
    if not is_whole_number(value) or not 0 <= value < MOST_TOKENS:
        raise UserError(f"{path}: {shown(value)} is no token's number, 0 to {MOST_TOKENS - 1}; copy the model's own file there.")
    return value


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Turn what the `tokenizers` library raises into a UserError that names the file.

    The library has no exception class of its own for a tokenizer.json that it cannot follow. A panic of its Rust code
    is not even an Exception, only a BaseException.

    Raises:
        UserError: what the library raised, as a sentence.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = one_line(error)
        raise UserError(f"{path} is no tokenizer.json that `tokenizers` reads: {why}; copy the model's own file there.") from None
