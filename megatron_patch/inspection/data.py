"""What is in an indexed dataset or a fine-tuning file, as lines of text to print."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from megatron_patch.data.json_dataset import build_json_dataset, read_records
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError
from megatron_patch.language.sentences import counted, fill, in_language
from megatron_patch.preparation.resumable_state import read_record, record_path
from megatron_patch.records.indexed import read_index
from megatron_patch.records.skipped import Skipped

_WHOLE_BYTES = 1 << 30  # of a .bin; up to this size all its ids are read for their range, of a larger one a sample
_SHOWN_TOKENS = 200  # of a document


def histogram(lengths: np.ndarray, unit: str, width: int = 40) -> list[str]:
    """Lines with the range of `lengths` and a bar for each power of two: how many lengths lie between it and the next.

    The longest bar has `width` characters.
    """
    edges = [0, *(1 << k for k in range(31))]
    counts = np.histogram(lengths, bins=edges)[0]
    used = np.flatnonzero(counts)
    out = [
        fill(
            "lengths in {}: {} to {}, mean {}, median {}",
            *(fill(unit), lengths.min(), lengths.max(), f"{lengths.mean():.1f}", f"{np.median(lengths):.0f}"),
        )
    ]
    for i in range(used[0], used[-1] + 1) if used.size else []:
        bar = "#" * -(-int(counts[i]) * width // int(counts.max()))
        out.append(fill("  {} to {} {} {}", f"{edges[i]:>9}", f"{edges[i + 1] - 1:<9}", f"{counts[i]:>10}", bar))
    return out


def describe_indexed(prefix: str, tokenizer: Tokenizer | None, samples: int) -> list[str]:
    """Lines about PREFIX.bin and PREFIX.idx: counts, lengths, range of ids, and the first `samples` documents.

    Documents are shown as text if there is a tokenizer, otherwise as ids.

    Raises:
        UserError: a file of the pair is missing or damaged.
    """
    data = read_index(prefix)
    out = [
        fill("indexed dataset {}.bin/.idx", prefix),
        fill(
            "{} documents, {} sequences, {} tokens, {} ids, {} MB",
            *(data.boundaries - 1, len(data.lengths), data.tokens, data.dtype, f"{data.tokens * data.dtype.itemsize / 1e6:.1f}"),
        ),
    ]
    made = record_path(prefix)
    if made.is_file():
        record = read_record(made)
        counts, files = record.counts, len(record.made_from["files"])
        out.append(fill("made from {} files; {} bad and {} empty records skipped", files, counts.bad, counts.empty))
    out += histogram(np.asarray(data.lengths), "tokens")
    low, high, whole = _id_range(prefix, data.dtype, data.tokens)
    read = "ids from {} to {}, all of them read" if whole else "ids from {} to {}, a sample of them read"
    out.append(fill(read, low, high))
    if tokenizer:
        within, outside = "that is within the tokenizer's vocabulary of {}", "that is OUTSIDE the tokenizer's vocabulary of {}"
        out.append(fill(within if low >= 0 and high < tokenizer.vocab_size else outside, tokenizer.vocab_size))
        ended = sum(data.document(i)[-1:].tolist() == [tokenizer.eod] for i in range(min(100, len(data.lengths))))
        seen = min(100, len(data.lengths))
        out.append(fill("{} of the first {} documents end with the end token {}", ended, seen, tokenizer.eod))
    for i in range(min(samples, len(data.lengths))):
        ids = data.document(i, _SHOWN_TOKENS).tolist()
        known = tokenizer is not None and all(0 <= id < tokenizer.vocab_size for id in ids)
        more = " …" if data.lengths[i] > len(ids) else ""
        shown = tokenizer.detokenize(ids) if tokenizer and known else " ".join(map(str, ids))
        out.append(fill("document {}, {} tokens, all of them learnt: {}{}", i, data.lengths[i], shown, more))
    return out


def _id_range(prefix: str, dtype: np.dtype, tokens: int) -> tuple[int, int, bool]:
    """(smallest id, largest id, whether all were read). Of a large file 256 blocks of 65,536 ids are read."""
    ids = np.memmap(prefix + ".bin", dtype=dtype, mode="r", shape=(tokens,))
    whole = ids.nbytes <= _WHOLE_BYTES
    starts = range(0, tokens, 1 << 22) if whole else np.linspace(0, tokens - (1 << 16), 256).astype(np.int64)
    blocks = [ids[s : s + ((1 << 22) if whole else (1 << 16))] for s in starts]
    return min(int(b.min()) for b in blocks), max(int(b.max()) for b in blocks), whole


def describe_sft(
    path: Path, tokenizer: Tokenizer | None, samples: int, *, template: str, pad_len: int, seq_len: int
) -> list[str]:
    """Lines about a fine-tuning file: counts, fields, lengths, and the first `samples` records.

    With a tokenizer lengths are in tokens, and of each sample the part that is learnt stands between ⟦ and ⟧. Without
    one lengths are in characters of JSON.

    Args:
        template: the name of the prompt's template.
        pad_len, seq_len: PAD_LEN and SEQ_LEN of the training, in tokens.

    Raises:
        UserError: the file cannot be read, or holds no usable record.
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
        fill("fine-tuning file {}", path),
        fill("{} samples; fields: {}", len(sizes), ", ".join(f"{k} ({n})" for k, n in fields.items())),
    ]
    if tokenizer is None:
        out += [fill("{} cannot be read as JSON objects", counted(bad, "record"))] if bad else []
        out += histogram(np.array(sizes), "characters of JSON")
        return [*out, *first, fill("add --tokenizer-folder to see tokens, what is learnt and what is cut")]
    dataset = build_json_dataset(path, tokenizer, pad_len=pad_len, seq_len=seq_len, template=template, max_bad_fraction=1.0)
    out += [*map(in_language, dataset.report.lines()), *histogram(np.diff(dataset.table.offsets), "tokens")]
    ids: np.ndarray = np.asarray(dataset.table.flat) & ~np.int32(1 << 30)  # the table marks learnt tokens by this bit
    out.append(fill("ids from {} to {} of {}; template {}", ids.min(), ids.max(), tokenizer.vocab_size, template))
    for i in range(min(samples, len(dataset.table))):
        tokens, learnt = dataset.table.sample(i, dataset.length)
        out.append(fill("sample {}, {} tokens: {}", i + 1, len(tokens), marked_text(tokens, learnt, tokenizer)))
    return out


def marked_text(ids: np.ndarray, learnt: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of ids [S], with each run of `learnt` [S] tokens between ⟦ and ⟧, and special tokens written out."""
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
