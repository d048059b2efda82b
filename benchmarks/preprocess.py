"""What data preparation and loading cost on this machine.

    python benchmarks/preprocess.py [--megabytes 60] [--rounds 5]   1 and 2 workers, and `tokenizers.encode_batch` alone
    python benchmarks/preprocess.py --memory-megabytes 1000         one run over a file of that size, its peak memory
    python benchmarks/preprocess.py --loader                        waiting for batches of 2048 tokens in 0.1 s steps
    python benchmarks/preprocess.py --index 10000000                megatron-core's sample index for that many documents

The text is the source code of Python's standard library, cut into documents and repeated up to the wanted size. The
tokenizer is a SentencePiece BPE of 8000 pieces with byte fallback, trained on that text. Runs that are compared take
turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")


def documents(limit: int) -> list[str]:
    """Pieces of 1 to 8 thousand characters of the standard library's sources, `limit` characters in all at most."""
    out, total, sizes = [], 0, (1000, 3000, 8000, 2000)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py")):
        text, at = path.read_text(encoding="utf-8", errors="ignore"), 0
        while at < len(text) and total < limit:
            size = sizes[len(out) % len(sizes)]
            out.append(text[at : at + size])
            total, at = total + size, at + size
    return out


def make_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train a tokenizer.model of LLaMA's kind on `texts`, in `folder`."""
    from sentencepiece import SentencePieceTrainer

    folder.mkdir(parents=True, exist_ok=True)
    SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts[:1500] for line in text.splitlines() if line.strip()),
        model_prefix=str(folder / "tokenizer"), vocab_size=8000, model_type="bpe", byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.9999, minloglevel=2,
    )  # fmt: skip


def huggingface_tokenizer(model: Path) -> object:
    """The same tokenizer for the library `tokenizers`: its pieces, merges in the order of scores, byte fallback."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, models, normalizers

    pieces = SentencePieceProcessor(model_file=str(model))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    splits = [(vocab[p], vocab[p[:k]], vocab[p[k:]], p[:k], p[k:])
              for p in vocab for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]  # fmt: skip
    merges = [(left, right) for *_, left, right in sorted(splits)]
    engine = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return engine


def write_corpus(path: Path, texts: list[str], size: int) -> tuple[int, int]:
    """Write JSON Lines with about `size` bytes of text; returns (number of documents, bytes of text)."""
    count = total = 0
    with open(path, "w", encoding="utf-8") as file:
        while total < size:
            text = texts[count % len(texts)]
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count, total = count + 1, total + len(text.encode())
    return count, total


def run_cli(corpus: Path, folder: Path, workers: int) -> tuple[float, int, int]:
    """One run of the command: (seconds, peak resident bytes of all its processes together, tokens).

    Raises:
        RuntimeError: the command failed.
    """
    import psutil

    prefix = folder / "out"
    command = [sys.executable, "-m", "megatron_patch.cli.preprocess", "--input", str(corpus),
               "--output-prefix", str(prefix), "--tokenizer-folder", str(folder / "tokenizer"),
               "--workers", str(workers)]  # fmt: skip
    for old in folder.glob("out*"):
        old.unlink()
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tree, stop = psutil.Process(process.pid), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.1):
            try:
                peak = max(peak, sum(p.memory_info().rss for p in [tree, *tree.children(recursive=True)]))
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - begin
    stop.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} left with status {code}")
    return seconds, peak, json.loads((folder / "out.made").read_text())["counts"]["tokens"]


def measure_encode_batch(engine: object, corpus: Path) -> float:
    """Seconds that `encode_batch` takes for the corpus in batches of 256, on one thread, reading not counted."""
    with open(corpus, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    begin = time.perf_counter()
    for i in range(0, len(texts), 256):
        engine.encode_batch(texts[i : i + 256])  # type: ignore[attr-defined]
    return time.perf_counter() - begin


def compare(folder: Path, texts: list[str], megabytes: int, rounds: int) -> None:
    """Measure 1 worker, 2 workers and `encode_batch` in turn, `rounds` times, and print medians."""
    corpus = folder / "corpus.jsonl"
    count, size = write_corpus(corpus, texts, megabytes << 20)
    engine = huggingface_tokenizer(folder / "tokenizer" / "tokenizer.model")
    times: dict[str, list[float]] = {"1 worker": [], "2 workers": [], "encode_batch, 1 thread": []}
    peaks: dict[str, int] = {}
    tokens, load = 0, os.getloadavg()[0]
    for _ in range(rounds):
        for workers, name in ((1, "1 worker"), (2, "2 workers")):
            seconds, peak, tokens = run_cli(corpus, folder, workers)
            times[name].append(seconds)
            peaks[name] = max(peak, peaks.get(name, 0))
        times["encode_batch, 1 thread"].append(measure_encode_batch(engine, corpus))
    print(
        f"{size / 1e6:.0f} MB of text, {count} documents, {tokens} tokens, {rounds} rounds, medians; "
        "the whole command, its start included"
    )
    for name, seconds in times.items():
        t = statistics.median(seconds)
        memory = f"  peak {peaks[name] / 2**20:.0f} MiB" if name in peaks else ""
        print(f"  {name:24s} {size / 1e6 / t:6.2f} MB/s {count / t:8.0f} documents/s {tokens / t:10.0f} tokens/s{memory}")
    ones, twos, alones = times.values()
    speedup = statistics.median(one / two for one, two in zip(ones, twos))
    against = statistics.median(alone / one for one, alone in zip(ones, alones))
    print(f"  within a round: 2 workers are {speedup:.2f} times as fast as 1; 1 worker {against:.2f} times as encode_batch")
    print(f"  load average before and after: {load:.2f}, {os.getloadavg()[0]:.2f}")


def memory(folder: Path, texts: list[str], megabytes: int) -> None:
    """Measure one run with 2 workers over a large file, and print its peak memory."""
    corpus = folder / "corpus.jsonl"
    count, size = write_corpus(corpus, texts, megabytes * 10**6)
    seconds, peak, tokens = run_cli(corpus, folder, 2)
    print(f"{size / 1e6:.0f} MB, {count} documents, 2 workers: {seconds:.0f} s, {size / 1e6 / seconds:.2f} MB/s, "
          f"{tokens / seconds:.0f} tokens/s, peak {peak / 2**20:.0f} MiB in all processes together")  # fmt: skip


def gpt_dataset(prefix: Path, cache: Path, samples: int | None) -> object:
    """core's training dataset over the pair at `prefix`, with samples of 2048 tokens."""
    import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from megatron_patch.data.run_tokenizer import VocabularyOnly

    config = GPTDatasetConfig(
        random_seed=1234, sequence_length=2048, blend=([str(prefix)], None), split="98,2,0", path_to_cache=str(cache),
        tokenizer=VocabularyOnly(32000), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        create_attention_mask=False,
    )  # fmt: skip
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def write_random_pair(prefix: Path, count: int, mean: int) -> None:
    """Write a .bin/.idx pair of `count` documents of random ids, about `mean` tokens each."""
    import numpy as np

    from megatron_patch.records.indexed import write_index

    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 2 * mean, count, dtype=np.int32)
    with open(f"{prefix}.bin", "wb") as file:
        left, block = int(lengths.sum(dtype=np.int64)), generator.integers(0, 32000, 1 << 22, dtype=np.uint16)
        while left:
            file.write(block[:left].tobytes())
            left -= min(left, block.size)
    with open(f"{prefix}.idx", "wb") as file:
        write_index(file, lengths, np.dtype(np.uint16))


def index(folder: Path, count: int) -> None:
    """Measure how long core builds its index over `count` documents of about 100 tokens, and then loads it."""
    write_random_pair(folder / "pair", count, 100)
    for what in ("built", "found in the cache"):
        begin = time.perf_counter()
        dataset = gpt_dataset(folder / "pair", folder / "cache", None)
        print(f"index of {count} documents, {len(dataset)} samples, {what} in {time.perf_counter() - begin:.1f} s")


def loader(folder: Path, steps: int = 100, step_seconds: float = 0.1) -> None:
    """Measure how long a training loop waits for its batches if each step takes `step_seconds`."""
    from megatron_patch.config import Options
    from megatron_patch.data.batches import micro_batches
    from megatron_patch.data.batches import BatchPlan, MicroBatchSampler

    write_random_pair(folder / "pair", 100_000, 600)
    dataset = gpt_dataset(folder / "pair", folder / "cache", None)
    begin = time.perf_counter()
    for i in range(200):
        dataset[i]  # type: ignore[index]
    print(f"one sample of 2048 tokens takes {(time.perf_counter() - begin) / 200 * 1e6:.0f} µs to make")
    for size in (1, 4):
        sampler = MicroBatchSampler(BatchPlan(len(dataset), size, size, 1), 0)  # type: ignore[arg-type]
        options = dict(vocab_size=1 << 20, num_workers=Options().num_workers, pin_memory=False)
        batches = micro_batches(dataset, sampler, **options)  # type: ignore[arg-type]
        next(batches)
        waits = []
        for _ in range(steps):
            time.sleep(step_seconds)
            begin = time.perf_counter()
            next(batches)
            waits.append(time.perf_counter() - begin)
        median, worst = statistics.median(waits), max(waits)
        print(f"micro-batch {size}: waits {median * 1e3:.2f} ms a step ({median / step_seconds:.2%}), "
              f"worst {worst * 1e3:.2f} ms, "
              f"{Options().num_workers} loader processes")  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-megabytes", type=int)
    parser.add_argument("--loader", action="store_true")
    parser.add_argument("--index", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.loader:
            return loader(folder)
        if args.index:
            return index(folder, args.index)
        texts = documents(20_000_000)
        make_tokenizer(folder / "tokenizer", texts)
        if args.memory_megabytes:
            return memory(folder, texts, args.memory_megabytes)
        compare(folder, texts, args.megabytes, args.rounds)


if __name__ == "__main__":
    main()
