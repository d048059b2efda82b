"""The folder's LLaMA tokenizer: SentencePiece's `tokenizer.model`, or, where there is none, `tokenizer.json`.

`tokenizer.model` is run by SentencePiece itself, the engine that wrote the indexed data of Megatron-LM in
2023 (and the faster one); `tokenizer.json` by Hugging Face's `tokenizers`. transformers is not imported: its
fifth version drops a leading space that the others keep. Nothing that is read here can run code.

Two ways to read a text:
- `tokenize`: a text is only text; a literal `</s>` in it becomes the pieces of its four characters
(pre-training).
- `tokenize_marked`: literals of special tokens become those tokens, as Hugging Face's tokenizer for LLaMA
  (`legacy=False`) did in 2023 (fine-tuning, and chat templates that write `<s>` and `</s>` out).

`pad` is -1, megatron-core's own "no such token": a LLaMA vocabulary has no padding token, and any real id
taken for it would hide that id's loss. Datasets mask padding by a mask and fill it with `fill`, an id inside
the vocabulary.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron_patch.data.end_token import end_token, read_object
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import is_whole_number, one_line, shown
from megatron_patch.formats.placeholders import refuse_placeholder
from megatron_patch.formats.typed import whole_number

# Appended to a serialized SentencePiece model, protobuf merges it in: normalizer_spec { add_dummy_prefix:
# false }.
_WITHOUT_DUMMY_PREFIX = bytes([0x1A, 2, 0x18, 0])
_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json", "chat_template.jinja")  # fmt: skip
_MOST_TOKENS = 1 << 28
_MOST_TEMPLATE = 1 << 20  # bytes
_USUAL_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Made by `load_tokenizer`; meets what megatron-core's GPTDataset asks of a
    tokenizer.
    """

    vocab_size: int  # ids lie in [0, vocab_size)
    bos: int
    eod: int  # ends a document of pre-training: LLaMA's </s>, in a ChatML folder too
    eos: int  # the tokenizer's own `eos_token`, which chat templates write
    answer_end: int  # ends an answer: what the folder's model waits for, see `end_token`
    end_note: str  # a sentence where the folder's files disagree about that; else empty
    fill: int  # what padding positions hold: inside the vocabulary, never learnt
    fingerprint: str  # sha256 of the tokenizer files' contents
    special_tokens: Mapping[str, int]  # literal → id
    chat_template: str | None  # Jinja source, as the folder has it
    encode_plain: Callable[[str], list[int]]
    encode_marked: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]

    @property
    def pad(self) -> int:
        """-1: no token of the vocabulary is a padding token (see the module's docstring)."""
        return -1

    @property
    def unique_identifiers(self) -> OrderedDict[str, Any]:
        """megatron-core takes these into the key of its index cache: the contents of the files, not their place."""
        return OrderedDict(kind="llama", vocab_size=self.vocab_size, sha256=self.fingerprint)

    @property
    def separator_note(self) -> str:
        """A sentence where documents and turns end in different tokens, as in a ChatML folder; else empty."""
        if self.eos == self.eod:
            return ""
        literal = {i: text for text, i in self.special_tokens.items()}
        ends = [f"{literal.get(i, 'token')} ({i})" for i in (self.eod, self.eos)]
        return f"documents end in {ends[0]}, as in the model's pre-training; the tokenizer's eos_token {ends[1]} ends a turn."

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text without BOS and EOS; literals of special tokens are ordinary text."""
        return self.encode_plain(text)

    def tokenize_marked(self, text: str) -> list[int]:
        """Ids of a text without BOS and EOS; literals of special tokens become those tokens."""
        return self.encode_marked(text)

    def tokenize_after_end(self, text: str) -> list[int]:
        """`tokenize_marked` of a text that goes on after an answer's end token: no space is put before it."""
        literal = next(iter(self.special_tokens), "")  # of any special token, since a text is read alike after each
        return self.encode_marked(literal + text)[1 if literal else 0 :]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids; BOS and EOS give nothing. UserError for an id outside the vocabulary."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token {i} lies outside the tokenizer's vocabulary of {self.vocab_size} tokens.")
        return self.decode(ids)


def load_tokenizer(folder: str | Path, rows: int | None = None, model_folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer in a Hugging Face folder or a converted checkpoint's root.

    rows: of the model that it is for. A padding token beyond them is left out: LLaMA-2 was first published with a `<pad>` of
    number 32000 beside 32000 rows, and nothing here pads with a token.
    model_folder: where that model's config.json and generation_config.json stand, if not beside the tokenizer.

    Raises UserError where the folder has no tokenizer, or one that cannot be read or lacks an end token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"tokenizer folder {folder} does not exist; give the folder that holds tokenizer.model.")
    digest = hashlib.sha256()
    for name in _FILES:
        if (folder / name).is_file():
            refuse_placeholder(folder / name)
            digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    settings = read_object(folder / "tokenizer_config.json")
    names = _names(settings, read_object(folder / "special_tokens_map.json"))
    added = _added_tokens(folder, settings)
    common = {"fingerprint": digest.hexdigest(), "chat_template": _chat_template(folder, settings)}
    if (folder / "tokenizer.model").is_file():
        own = _without_padding(added, names, rows)
        tokenizer = _from_sentencepiece(folder / "tokenizer.model", own, _content(names.get("eos_token")), common)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = _from_tokenizers(folder / "tokenizer.json", names, rows, common)
    else:
        raise UserError(f"{folder} holds neither tokenizer.model nor tokenizer.json; copy the model's tokenizer there.")
    literals = {i: literal for literal, i in tokenizer.special_tokens.items()}
    end = end_token(Path(model_folder or folder), tokenizer.eos, literals, tokenizer.vocab_size)
    return replace(tokenizer, answer_end=end.id, end_note=end.note)


def _from_sentencepiece(path: Path, added: dict[str, int], eos_token: Any, common: dict[str, Any]) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    try:
        whole = SentencePieceProcessor(model_file=str(path))
        inner = SentencePieceProcessor(model_proto=whole.serialized_model_proto() + _WITHOUT_DUMMY_PREFIX)
        for i in range(whole.vocab_size()):
            whole.id_to_piece(i)  # UnicodeDecodeError, a ValueError, for one that is no UTF-8: no text could hold it
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a SentencePiece model ({one_line(error)}); copy the model's own file there.") from error
    bos, eod, unk = whole.bos_id(), whole.eos_id(), whole.unk_id()
    if min(bos, eod) < 0:
        raise UserError(f"{path} lacks the start token <s> or the end token </s>; use a tokenizer of the LLaMA kind.")
    size = whole.vocab_size()
    special = {whole.id_to_piece(i): i for i in (unk, bos, eod) if i >= 0} | added
    eos = special.get(eos_token, eod) if isinstance(eos_token, str) else eod
    if isinstance(eos_token, str) and eos_token not in special and whole.piece_to_id(eos_token) not in (unk, -1):
        eos = special[eos_token] = whole.piece_to_id(eos_token)  # a piece of the model's own
    beyond = {i: literal for literal, i in special.items() if i >= size}

    def decode(ids: list[int]) -> str:
        runs = groupby(ids, key=lambda i: beyond.get(i))
        return "".join(literal * len(list(run)) if literal else whole.decode(list(run)) for literal, run in runs)

    return Tokenizer(
        vocab_size=max([size, *(i + 1 for i in beyond)]),
        bos=bos, eod=eod, eos=eos, answer_end=eos, end_note="", fill=max(unk, 0), special_tokens=special,
        encode_plain=whole.encode, encode_marked=_marked_encoder(whole.encode, inner.encode, special),
        decode=decode, **common,
    )  # fmt: skip


def _marked_encoder(start: Callable, rest: Callable, special: Mapping[str, int]) -> Callable[[str], list[int]]:
    """Splits a text at special literals; the first piece gets SentencePiece's leading space, the later ones
    do not.
    """
    literals = re.compile("(" + "|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)) + ")")

    def encode(text: str) -> list[int]:
        first, *others = literals.split(text)
        ids = start(first)
        for piece in others:
            ids += [special[piece]] if piece in special else rest(piece)
        return ids

    return encode


def _without_padding(added: dict[str, int], names: Mapping[str, Any], rows: int | None) -> dict[str, int]:
    """Added tokens but for padding tokens beyond the model's rows."""
    pad = _content(names.get("pad_token"))
    padding = ("<pad>", "[PAD]", pad if isinstance(pad, str) else None)
    return {literal: i for literal, i in added.items() if rows is None or i < rows or literal not in padding}


def _from_tokenizers(path: Path, names: dict[str, Any], rows: int | None, common: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer as Engine

    with _faults_named(path):
        plain, marked = Engine.from_file(str(path)), Engine.from_file(str(path))
        plain.encode_special_tokens = True
        decoder, vocabulary = plain.get_added_tokens_decoder(), plain.get_vocab()
    added = {token.content: i for i, token in decoder.items()}
    kept = _without_padding(added, names, rows)
    special = {t.content: i for i, t in decoder.items() if t.special and t.content in kept and t.content}
    ids = [vocabulary.get(_name(path, names, key) or usual) for key, usual in _USUAL_NAMES.items()]
    if ids[0] is None or ids[1] is None:
        raise UserError(f"{path} lacks the start or end token that tokenizer_config.json names; they must be in it.")
    size = max(i for literal, i in vocabulary.items() if literal not in added or literal in kept) + 1
    if size > _MOST_TOKENS or max(ids[0], ids[1], ids[2] or 0) >= size:
        found = f"numbers tokens up to {size}, or its start and end token beyond them"
        raise UserError(f"{path} {found}; copy the model's own file there.")

    def encoder(engine: Any) -> Callable[[str], list[int]]:
        def encode(text: str) -> list[int]:
            with _faults_named(path):
                return engine.encode(text, add_special_tokens=False).ids

        return encode

    def decode(numbers: list[int]) -> str:
        with _faults_named(path):
            return plain.decode(numbers)

    return Tokenizer(
        vocab_size=size, bos=ids[0], eod=special.get(_USUAL_NAMES["eos_token"], ids[1]), eos=ids[1], answer_end=ids[1],
        end_note="", fill=ids[2] or 0, special_tokens=special,
        encode_plain=encoder(plain), encode_marked=encoder(marked), decode=decode, **common,
    )  # fmt: skip


def _names(settings: dict[str, Any], special_tokens_map: dict[str, Any]) -> dict[str, Any]:
    """`bos_token` and the others. As in transformers, special_tokens_map.json wins over an old tokenizer_config.json alone:
    one with `added_tokens_decoder` is all that counts, but for what it lacks."""
    if "added_tokens_decoder" in settings:
        return {**special_tokens_map, **{key: value for key, value in settings.items() if value is not None}}
    return {**settings, **special_tokens_map}


@contextmanager
def _faults_named(path: Path) -> Iterator[None]:
    """Turn what `tokenizers` raises into a sentence: it has no class of its own for a tokenizer.json that it cannot follow, and a
    panic of its Rust code is no Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = one_line(error)
        raise UserError(f"{path} is no tokenizer.json that `tokenizers` reads: {why}; copy the model's own file there.") from None


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Literal → id of tokens that were added beside tokenizer.model (`added_tokens.json`,
    `added_tokens_decoder`).
    """
    added = {}
    for literal, i in read_object(folder / "added_tokens.json").items():
        added[_literal(folder / "added_tokens.json", literal)] = _id(folder / "added_tokens.json", i)
    path, decoder = folder / "tokenizer_config.json", settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        got = shown(decoder)
        raise UserError(f"{path}: added_tokens_decoder is {got}; it must be an object: copy the model's own file there.")
    for i, token in decoder.items():
        added[_literal(path, _content(token))] = _id(path, whole_number(i))
    return added


def _literal(path: Path, literal: Any) -> str:
    if not isinstance(literal, str) or not literal:
        raise UserError(f"{path}: {shown(literal)} is no added token's text; copy the model's own file there.")
    return literal


def _id(path: Path, value: Any) -> int:
    if not is_whole_number(value) or not 0 <= value < _MOST_TOKENS:
        raise UserError(f"{path}: {shown(value)} is no token's number, 0 to {_MOST_TOKENS - 1}; copy the model's own file there.")
    return value


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The folder's chat template: `chat_template.jinja`, or tokenizer_config.json's, the one named default of
    several.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        with open(path, "rb") as file:
            data = file.read(_MOST_TEMPLATE + 1)
        if len(data) > _MOST_TEMPLATE:
            found = f"more than {_MOST_TEMPLATE} bytes, which no chat template has"
            raise UserError(f"{path} has {found}; copy the model's own file there.")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start}); copy the model's own file there.") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = (t for t in template if isinstance(t, dict) and t.get("name") == "default")
        template = next((t.get("template") for t in named), None)
    if not isinstance(template, (str, type(None))):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is {shown(template)}; it must be a text.")
    return template


def _content(token: Any) -> Any:
    """A token's text, which tokenizer files write plainly or as an object's `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _name(path: Path, names: Mapping[str, Any], key: str) -> str | None:
    """The text that tokenizer_config.json or special_tokens_map.json gives for `bos_token` and the like; None without one."""
    content = _content(names.get(key))
    if not isinstance(content, (str, type(None))):
        raise UserError(f"{path.parent}: {key} is {shown(content)}; it must be a token's text: copy the model's own files there.")
    return content
