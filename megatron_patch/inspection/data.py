"""What is in an indexed dataset or a fine-tuning file, as lines of text to print."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from megatron_patch.data.json_dataset import build_json_dataset, read_records
from megatron_patch.data.json_report import counted
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.preparation.state import read_record, record_path
from megatron_patch.records.indexed import read_index
from megatron_patch.records.skipped import Skipped

_WHOLE_BYTES = 1 << 30  # a .bin up to this size is read whole for its range of ids, a larger one in samples
_SHOWN_TOKENS = 200


def histogram(lengths: np.ndarray, unit: str, width: int = 40) -> list[str]:
    """How many lengths lie in each doubling range, as bars; the longest bar is `width` characters."""
    edges = [0, *(1 << k for k in range(31))]
    counts = np.histogram(lengths, bins=edges)[0]
    used = np.flatnonzero(counts)
    out = [
        f"lengths in {unit}: {lengths.min()} to {lengths.max()}, " + f"mean {lengths.mean():.1f}, median {np.median(lengths):.0f}"
    ]
    for i in range(used[0], used[-1] + 1) if used.size else []:
        bar = "#" * -(-int(counts[i]) * width // int(counts.max()))
        out.append(f"  {edges[i]:>9} to {edges[i + 1] - 1:<9} {counts[i]:>10} {bar}")
    return out


def describe_indexed(prefix: str, tokenizer: Tokenizer | None, samples: int) -> list[str]:
    """Counts, lengths, range of ids, first documents (decoded with a tokenizer). UserError for a pair that
    is damaged.
    """
    data = read_index(prefix)
    out = [
        f"indexed dataset {prefix}.bin/.idx",
        f"{data.boundaries - 1} documents, {len(data.lengths)} sequences, {data.tokens} tokens, {data.dtype} ids, "
        + f"{data.tokens * data.dtype.itemsize / 1e6:.1f} MB",
    ]
    made = record_path(prefix)
    if made.is_file():
        record = read_record(made)
        counts, files = record.counts, len(record.made_from["files"])
        out.append(f"made from {files} files; {counts.bad} bad and {counts.empty} empty records skipped")
    out += histogram(np.asarray(data.lengths), "tokens")
    low, high, whole = _id_range(prefix, data.dtype, data.tokens)
    out.append(f"ids from {low} to {high}, {'all' if whole else 'a sample'} of them read")
    if tokenizer:
        fits = "within" if low >= 0 and high < tokenizer.vocab_size else "OUTSIDE"
        out.append(f"that is {fits} the tokenizer's vocabulary of {tokenizer.vocab_size}")
        ended = sum(data.document(i)[-1:].tolist() == [tokenizer.eod] for i in range(min(100, len(data.lengths))))
        out.append(f"{ended} of the first {min(100, len(data.lengths))} documents end with the end token {tokenizer.eod}")
    for i in range(min(samples, len(data.lengths))):
        ids = data.document(i, _SHOWN_TOKENS).tolist()
        known = tokenizer is not None and all(0 <= id < tokenizer.vocab_size for id in ids)
        more = " …" if data.lengths[i] > len(ids) else ""
        shown = tokenizer.detokenize(ids) if tokenizer and known else " ".join(map(str, ids))
        out.append(f"document {i}, {data.lengths[i]} tokens, all of them learnt: {shown}{more}")
    return out


def _id_range(prefix: str, dtype: np.dtype, tokens: int) -> tuple[int, int, bool]:
    ids = np.memmap(prefix + ".bin", dtype=dtype, mode="r", shape=(tokens,))
    whole = ids.nbytes <= _WHOLE_BYTES
    starts = range(0, tokens, 1 << 22) if whole else np.linspace(0, tokens - (1 << 16), 256).astype(np.int64)
    blocks = [ids[s : s + ((1 << 22) if whole else (1 << 16))] for s in starts]
    return min(int(b.min()) for b in blocks), max(int(b.max()) for b in blocks), whole


def describe_sft(
    path: Path, tokenizer: Tokenizer | None, samples: int, *, template: str, pad_len: int, seq_len: int
) -> list[str]:
    """Counts, fields, lengths, and the first samples with what is learnt between ⟦ and ⟧. UserError for bad
    data.
    """
    fields: Counter[str] = Counter()
    sizes: list[int] = []
    first: list[str] = []
    bad = 0
    for _, _, record in read_records(path):
        if isinstance(record, Skipped):
            bad += record.records
            continue
        fields.update(record.keys())
        text = json.dumps(record, ensure_ascii=False)
        sizes.append(len(text))
        first += [text] if len(first) < samples else []
    if not sizes:
        raise UserError(f"{path} holds no samples; give a JSON list or JSON Lines file with at least one.")
    out = [
        f"fine-tuning file {path}",
        f"{len(sizes)} samples; fields: " + ", ".join(f"{k} ({n})" for k, n in fields.items()),
    ]
    if tokenizer is None:
        out += [f"{counted(bad, 'record')} cannot be read as JSON objects"] if bad else []
        out += histogram(np.array(sizes), "characters of JSON")
        return [*out, *first, "add --tokenizer-folder to see tokens, what is learnt and what is cut"]
    dataset = build_json_dataset(path, tokenizer, pad_len=pad_len, seq_len=seq_len, template=template, max_bad_fraction=1.0)
    out += [*dataset.report.lines(), *histogram(np.diff(dataset.table.offsets), "tokens")]
    ids = np.asarray(dataset.table.flat) & ~np.int32(1 << 30)
    out.append(f"ids from {ids.min()} to {ids.max()} of {tokenizer.vocab_size}; template {template}")
    for i in range(min(samples, len(dataset.table))):
        tokens, learnt = dataset.table.sample(i, dataset.length)
        out.append(f"sample {i + 1}, {len(tokens)} tokens: {marked_text(tokens, learnt, tokenizer)}")
    return out


def marked_text(ids: np.ndarray, learnt: np.ndarray, tokenizer: Tokenizer) -> str:
    """The decoded text with learnt runs between ⟦ and ⟧, and special tokens written out."""
    literal = {i: text for text, i in tokenizer.special_tokens.items()}
    out, begin = [], 0
    changes = [*(np.flatnonzero(np.diff(learnt)) + 1), len(ids)]
    for end in map(int, changes):
        run, text = ids[begin:end].tolist(), ""
        plain: list[int] = []
        for i in [*run, None]:
            if i is None or i in literal:
                text += (tokenizer.detokenize(plain) if plain else "") + (literal[i] if i is not None else "")
                plain = []
            else:
                plain.append(i)
        out.append(f"⟦{text}⟧" if learnt[begin] else text)
        begin = end
    return "".join(out)
