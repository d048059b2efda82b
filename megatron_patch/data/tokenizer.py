"""The folder's LLaMA tokenizer: SentencePiece's `tokenizer.model`, or, if there is none, `tokenizer.json`.

SentencePiece itself runs `tokenizer.model`: it wrote the indexed data of Megatron-LM in 2023, and it is the faster
engine. Hugging Face's `tokenizers` runs `tokenizer.json`. transformers is not imported: its fifth version drops a
leading space that the others keep. Nothing that is read here can run code.

There are two ways to read a text:

- `tokenize`, for pre-training: a text is only text. A literal `</s>` in it becomes the pieces of its four characters.
- `tokenize_marked`, for fine-tuning and for chat templates that write `<s>` and `</s>` out: literals of special tokens
  become those tokens. Hugging Face's tokenizer for LLaMA (`legacy=False`) did so in 2023.

A LLaMA vocabulary has no padding token. `pad` is -1, megatron-core's "no such token": a real id would be left out of
the loss. Data sets mark padding by a mask and fill it with `fill`, an id inside the vocabulary.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.data.end_token import end_token
from megatron_patch.data.tokenizer_files import (
    MOST_TOKENS,
    USUAL_NAMES,
    WHITE_SPACE,
    Strips,
    content,
    faults_named,
    fingerprint,
    name_of,
    read_added_tokens,
    read_chat_templates,
    read_names,
    read_strips,
    template_names,
    without_padding,
)
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line

# Protobuf merges these bytes into a serialized SentencePiece model that they are appended to:
# normalizer_spec { add_dummy_prefix: false }, so that no space is put before a text.
_WITHOUT_DUMMY_PREFIX = bytes([0x1A, 2, 0x18, 0])
# (ids of several texts end to end, whole numbers [n]; int64 [texts], ids of each)
Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. `load_tokenizer` makes it. It has what megatron-core's GPTDataset asks of a tokenizer.

    Attributes:
        vocab_size: ids lie in [0, vocab_size).
        bos: the start token's id.
        eod: the id that ends a document of pre-training: LLaMA's </s>, in a ChatML folder too.
        eos: the id of the tokenizer's own `eos_token`, which chat templates write.
        answer_end: the id that ends an answer: what the folder's model waits for (`end_token`).
        end_note: a sentence if the folder's files disagree about `answer_end`; else empty.
        more_ends: further ids at which the folder's model stops.
        fill: the id in padding positions: inside the vocabulary, never learnt.
        fingerprint: sha256 of the tokenizer files' contents.
        special_tokens: literal → id.
        chat_template: Jinja source, as the folder has it.
        tool_template: another one, for conversations with tools; most folders have none.
        template_names: `bos_token` and its kin → the token's text, as chat templates know them.
        strips: literals that swallow white space beside them, where `encode_marked` looks for them itself.
        encode_plain, encode_marked, decode: the engine's part of `tokenize`, `tokenize_marked` and `detokenize`.
        encode_batch: the engine's part of `tokenize_batch`; None takes the texts one by one.
        piece: the name that the engine has for an id, such as `▁the` or `<0xE4>`.
        engine: the name of what reads the texts.
        left_out: ids that `detokenize` reads over, as if they were not there; a character may go on behind them.
        folder: where its files are.
    """

    vocab_size: int
    bos: int
    eod: int
    eos: int
    answer_end: int
    end_note: str
    fill: int
    fingerprint: str
    special_tokens: Mapping[str, int]
    chat_template: str | None
    encode_plain: Callable[[str], list[int]]
    encode_marked: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    piece: Callable[[int], str | None]
    engine: str
    folder: Path = Path()
    left_out: frozenset[int] = frozenset()
    encode_batch: Callable[[list[str]], Batch] | None = None
    more_ends: tuple[int, ...] = ()
    template_names: Mapping[str, str] = field(default_factory=dict)
    tool_template: str | None = None
    strips: Strips = Strips()

    @property
    def stops(self) -> frozenset[int]:
        """The ids that end an answer, each of them: transformers' generation with the folder's model stops there."""
        return frozenset((self.answer_end, *self.more_ends))

    @property
    def pad(self) -> int:
        """-1: no token of the vocabulary is a padding token (see the module's docstring)."""
        return -1

    @property
    def unique_identifiers(self) -> OrderedDict[str, Any]:
        """What megatron-core takes into the names of its index files: the files' contents, not their place."""
        return OrderedDict(kind="llama", vocab_size=self.vocab_size, sha256=self.fingerprint)

    @property
    def separator_note(self) -> str:
        """A sentence if documents and turns end in different tokens, as in a ChatML folder; else empty."""
        if self.eos == self.eod:
            return ""
        literal = {i: text for text, i in self.special_tokens.items()}
        ends = [f"{literal.get(i, 'token')} ({i})" for i in (self.eod, self.eos)]
        return f"documents end in {ends[0]}, as in the model's pre-training; the tokenizer's eos_token {ends[1]} ends a turn."

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text without BOS and EOS; literals of special tokens are ordinary text."""
        return self.encode_plain(text)

    def tokenize_batch(self, texts: list[str]) -> Batch:
        """Ids of several texts, each as by `tokenize`: (whole numbers [n], end to end; int64 [texts], ids of each)."""
        if self.encode_batch is not None:
            return self.encode_batch(texts)
        ids: list[int] = []
        lengths = []
        for text in texts:
            one = self.encode_plain(text)
            ids += one
            lengths.append(len(one))
        return np.array(ids, dtype=np.int64), np.array(lengths, dtype=np.int64)

    def tokenize_marked(self, text: str) -> list[int]:
        """Ids of a text without BOS and EOS; literals of special tokens become those tokens."""
        return self.encode_marked(text)

    def tokenize_after_end(self, text: str) -> list[int]:
        """Ids as by `tokenize_marked` for a text that follows an answer's end token: no space is put before it."""
        # Read the text behind a special token's literal, and drop that token. A text is read alike after each.
        literal = next((one for one in self.special_tokens if one not in self.strips.right), "")
        return self.encode_marked(literal + text)[1 if literal else 0 :]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of ids; BOS and EOS give nothing.

        Raises:
            UserError: an id lies outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token {i} lies outside the tokenizer's vocabulary of {self.vocab_size} tokens.")
        return self.decode(ids)


def load_tokenizer(folder: str | Path, rows: int | None = None, model_folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer in a Hugging Face folder or a converted checkpoint's root.

    Args:
        rows: number of rows of the model that it is for. A padding token beyond them is left out: LLaMA-2 was first
            published with a `<pad>` of number 32000 beside 32000 rows, and nothing here pads with a token.
        model_folder: folder of that model's config.json and generation_config.json, if it is not the tokenizer's.

    Raises:
        UserError: the folder has no tokenizer, or one that cannot be read or lacks a start or end token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"tokenizer folder {folder} does not exist; give the folder that holds tokenizer.model.")
    contents, names = fingerprint(folder), read_names(folder)
    added = read_added_tokens(folder)
    common = {"fingerprint": contents, "template_names": template_names(folder), **read_chat_templates(folder)}
    if (folder / "tokenizer.model").is_file():
        own = without_padding(added, names, rows)
        eos, strips = content(names.get("eos_token")), read_strips(folder)
        tokenizer = _from_sentencepiece(folder / "tokenizer.model", own, eos, strips, common)
    elif (folder / "tokenizer.json").is_file():
        tokenizer = _from_tokenizers(folder / "tokenizer.json", names, rows, common)
    else:
        raise UserError(f"{folder} holds neither tokenizer.model nor tokenizer.json; copy the model's tokenizer there.")
    literals = {i: literal for literal, i in tokenizer.special_tokens.items()}
    end = end_token(Path(model_folder or folder), tokenizer.eos, literals, tokenizer.vocab_size)
    return replace(tokenizer, answer_end=end.id, more_ends=end.others, end_note=end.note, folder=folder)


def marked_encoder(start: Callable, rest: Callable, special: Mapping[str, int], strips: Strips) -> Callable[[str], list[int]]:
    """A function from a text to ids that splits the text at special literals.

    Args:
        start: encodes what stands before the first literal, with SentencePiece's leading space.
        rest: encodes what follows a literal, without that space.
        special: literal → id.
        strips: which of them take white space with them. In Phi-3's folder nearly all do.
    """
    literals = re.compile("(" + "|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)) + ")")

    def encode(text: str) -> list[int]:
        pieces = literals.split(text)  # text, literal, text, literal, …, text
        for place in range(1, len(pieces), 2):
            if pieces[place] in strips.left:
                pieces[place - 1] = pieces[place - 1].rstrip(WHITE_SPACE)
            if pieces[place] in strips.right:
                pieces[place + 1] = pieces[place + 1].lstrip(WHITE_SPACE)
        ids = list(start(pieces[0]))
        for place, piece in enumerate(pieces[1:]):
            ids += rest(piece) if place % 2 else [special[piece]]
        return ids

    return encode


def _from_sentencepiece(path: Path, added: dict[str, int], eos_token: Any, strips: Strips, common: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a SentencePiece model and of `added` tokens, literal → id, beside it.

    Two processors read it. `whole` puts a space before a text, as LLaMA's model asks for. `inner` does not; it reads
    what follows a special token.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        whole = SentencePieceProcessor(model_file=str(path))
        inner = SentencePieceProcessor(model_proto=whole.serialized_model_proto() + _WITHOUT_DUMMY_PREFIX)
        for i in range(whole.vocab_size()):
            whole.id_to_piece(i)  # a piece that is no UTF-8 raises UnicodeDecodeError, a ValueError
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a SentencePiece model ({one_line(error)}); copy the model's own file there.") from error
    bos, eod, unk = whole.bos_id(), whole.eos_id(), whole.unk_id()
    if min(bos, eod) < 0:
        raise UserError(f"{path} lacks the start token <s> or the end token </s>; use a tokenizer of the LLaMA kind.")
    size = whole.vocab_size()
    special = {whole.id_to_piece(i): i for i in (unk, bos, eod) if i >= 0} | added
    eos = special.get(eos_token, eod) if isinstance(eos_token, str) else eod
    if isinstance(eos_token, str) and eos_token not in special and whole.piece_to_id(eos_token) not in (unk, -1):
        eos = special[eos_token] = whole.piece_to_id(eos_token)  # an ordinary piece of the model serves as end token
    # SentencePiece cannot decode tokens that were added beyond its own. Between those may be numbers of none, which a
    # model can choose; as in `tokenizers` they give nothing.
    beyond = {i: literal for literal, i in special.items() if i >= size}

    def decode(ids: list[int]) -> str:
        if max(ids, default=0) < size:
            return whole.decode(ids)
        runs = groupby(ids, key=lambda i: beyond.get(i, "") if i >= size else None)
        return "".join(whole.decode(list(run)) if literal is None else literal * len(list(run)) for literal, run in runs)

    return Tokenizer(
        vocab_size=max([size, *(i + 1 for i in beyond)]),
        bos=bos, eod=eod, eos=eos, answer_end=eos, end_note="", fill=max(unk, 0), special_tokens=special,
        encode_plain=whole.encode, encode_marked=marked_encoder(whole.encode, inner.encode, special, strips), strips=strips,
        decode=decode, piece=lambda i: whole.id_to_piece(i) if i < size else beyond.get(i), engine="SentencePiece", **common,
    )  # fmt: skip


def _from_tokenizers(path: Path, names: dict[str, Any], rows: int | None, common: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Two engines read it: `plain` takes special tokens' literals for text."""
    from tokenizers import Tokenizer as Engine

    with faults_named(path):
        plain, marked = Engine.from_file(str(path)), Engine.from_file(str(path))
        plain.encode_special_tokens = True
        decoder, vocabulary = plain.get_added_tokens_decoder(), plain.get_vocab()
    added = {token.content: i for i, token in decoder.items()}
    kept = without_padding(added, names, rows)
    special = {t.content: i for i, t in decoder.items() if t.special and t.content in kept and t.content}
    ids = [vocabulary.get(name_of(path, names, role) or usual) for role, usual in USUAL_NAMES.items()]
    if ids[0] is None or ids[1] is None:
        raise UserError(f"{path} lacks the start or end token that tokenizer_config.json names; they must be in it.")
    size = max(i for literal, i in vocabulary.items() if literal not in added or literal in kept) + 1
    if size > MOST_TOKENS or max(ids[0], ids[1], ids[2] or 0) >= size:
        found = f"numbers tokens up to {size}, or its start and end token beyond them"
        raise UserError(f"{path} {found}; copy the model's own file there.")

    def encoder(engine: Any) -> Callable[[str], list[int]]:
        def encode(text: str) -> list[int]:
            with faults_named(path):
                return engine.encode(text, add_special_tokens=False).ids

        return encode

    def decode(numbers: list[int]) -> str:
        with faults_named(path):
            return plain.decode(numbers)

    return Tokenizer(
        vocab_size=size, bos=ids[0], eod=special.get(USUAL_NAMES["eos_token"], ids[1]), eos=ids[1], answer_end=ids[1],
        end_note="", fill=ids[2] or 0, special_tokens=special,
        encode_plain=encoder(plain), encode_marked=encoder(marked), decode=decode, piece=plain.id_to_token,
        engine="tokenizers", left_out=frozenset(i for i, token in decoder.items() if token.special), **common,
    )  # fmt: skip
