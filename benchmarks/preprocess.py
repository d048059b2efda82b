"""What data preparation and loading cost on this machine.

    python benchmarks/preprocess.py [--megabytes 100] [--rounds 3] [--tokenizer FOLDER] [--megatron FOLDER]
                                                                    this project beside libraries alone
    python benchmarks/preprocess.py --workers 1 2 16                the whole command with so many workers, in turn,
                                                                    and as many times --megabytes for each to read
    python benchmarks/preprocess.py --memory-megabytes 1000         one run over a file of that size, its peak memory
    python benchmarks/preprocess.py --loader                        waiting for batches of 2048 tokens in 0.1 s steps
    python benchmarks/preprocess.py --index 10000000                megatron-core's sample index for that many documents

The first two read code, English and Chinese of `benchmarks/texts.py`, which says from where; where there is no Debian
to ask, code alone. `--texts` names some of them, or files of JSON Lines, whose texts are repeated up to --megabytes.

Each line of a table is a process of its own that reads a file of JSON Lines: this project's whole command, or a library
that tokenizes its texts one batch after the other on one thread and writes nothing. Its time to start and to load the
tokenizer is counted for the command and not for the libraries, which read all texts twice: cold and warm. The processes
take turns, and medians are printed. CPU seconds are the system's (`resource`) for the process and its children; where
other programs share the machine they say more than seconds do.

The tokenizer is `--tokenizer`'s; without it that of the package mistral-common, LLaMA's kind of 32,000 pieces, where it
is installed; else a SentencePiece BPE of 8000 pieces with byte fallback that is trained on the code.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import texts as text_sources

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", FASTOKENS_BPE_THREADS="1")


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


def huggingface_tokenizer(model: Path) -> Any:
    """The same tokenizer for the library `tokenizers`: its pieces, merges in the order of scores, byte fallback."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, models, normalizers

    pieces = SentencePieceProcessor(model_file=str(model))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    splits = [(-pieces.get_score(vocab[p]), vocab[p[:k]], vocab[p[k:]], p[:k], p[k:])
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


def library(name: str, corpus: Path, folder: Path) -> None:
    """Print CPU seconds that a library takes for the corpus, cold and then warm, as two numbers."""
    from sentencepiece import SentencePieceProcessor

    with open(corpus, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    model = folder / "tokenizer.model"
    if name == "sentencepiece":
        read: Any = SentencePieceProcessor(model_file=str(model)).encode
    elif name == "tokenizers":
        read = huggingface_tokenizer(model).encode_batch
    else:
        from megatron_patch.data.fast_engine import fast_tokenizer
        from megatron_patch.data.tokenizer import load_tokenizer

        read = fast_tokenizer(load_tokenizer(folder)).tokenize_batch
    for _ in range(2):
        begin = time.process_time()
        for i in range(0, len(texts), 256):
            read(texts[i : i + 256])
        print(time.process_time() - begin)


def timed(command: list[str]) -> tuple[float, float, str]:
    """(seconds, CPU seconds with children, output) of a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def command_of(corpus: Path, folder: Path, workers: int, *flags: str) -> list[str]:
    """The command that prepares `corpus` anew into `folder`."""
    for old in folder.glob("out*"):
        old.unlink()
    return [sys.executable, "-m", "megatron_patch.cli.preprocess", "--input", str(corpus), "--output-prefix",
            str(folder / "out"), "--tokenizer-folder", str(folder / "tokenizer"), "--workers", str(workers), *flags]  # fmt: skip


def megatron_command(tool: Path, corpus: Path, folder: Path) -> list[str]:
    """Megatron-LM's own tool with one worker; `tool` is a checkout."""
    return [sys.executable, str(tool / "tools" / "preprocess_data.py"), "--input", str(corpus), "--output-prefix",
            str(folder / "megatron"), "--tokenizer-type", "Llama2Tokenizer", "--tokenizer-model",
            str(folder / "tokenizer" / "tokenizer.model"), "--append-eod", "--workers", "1"]  # fmt: skip


def corpora(folder: Path, size: int, wanted: list[str]) -> dict[str, tuple[Path, int]]:
    """Name → (file, bytes of text) of the texts that are wanted."""
    made = {}
    for name in wanted:
        try:
            if name == "code":
                texts = text_sources.code()
            elif name in ("English", "Chinese"):
                unpacked = text_sources.unpack(folder)
                texts = text_sources.english(unpacked) if name == "English" else text_sources.chinese(unpacked)
            else:
                texts = text_sources.of_lines(Path(name))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: left out ({error})")
            continue
        path = folder / f"{Path(name).stem}.jsonl"
        total, unique = text_sources.write_lines(path, texts, size)
        print(f"{name}: {total / 1e6:.0f} MB of text, {unique / 1e6:.0f} MB of it different")
        made[Path(name).stem] = path, total
    return made


def compare(
    folder: Path, made: dict[str, tuple[Path, int]], rounds: int, libraries: list[str], megatron: Path | None
) -> None:  # fmt: skip
    """Measure the command with one worker and the libraries alone, `rounds` times in turn, and print medians."""
    for text, (corpus, size) in made.items():
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            runs = {"this project, 1 worker": command_of(corpus, folder, 1)}
            if "sentencepiece" in libraries:
                reference = command_of(corpus, folder, 1, "--tokenizer-engine", "reference")
                runs["this project, --tokenizer-engine reference"] = reference
            if megatron:
                runs["Megatron-LM's tool, 1 worker"] = megatron_command(megatron, corpus, folder)
            for name, command in runs.items():
                for old in folder.glob("out*"):
                    old.unlink()
                found.setdefault(name, []).append(timed(command)[1])
            for name in libraries:
                words = ["--library", name, "--corpus", str(corpus), "--folder", str(folder / "tokenizer")]
                inner = [sys.executable, __file__, *words]
                for heat, seconds in zip(("cold", "warm"), timed(inner)[2].split()):
                    found.setdefault(f"{name} alone, {heat}", []).append(float(seconds))
        print(f"{text}: medians of {rounds}, MB of text a CPU second", flush=True)
        for name, seconds in found.items():
            print(f"  {name:44s} {size / 1e6 / statistics.median(seconds):7.2f}")


def several(folder: Path, made: dict[str, tuple[Path, int]], rounds: int, workers: list[int]) -> None:
    """Measure the whole command with each number of workers, in turn, and print medians of seconds and CPU seconds.

    Each worker has one text file to read, whatever their number. So the time to start counts as much for sixteen as for
    one; with a file of one size for all, sixteen would spend most of their time on it.
    """
    for text, (corpus, size) in made.items():
        found: dict[int, list[tuple[float, float]]] = {count: [] for count in workers}
        for _ in range(rounds):
            for count in workers:
                inputs = folder / "inputs"
                shutil.rmtree(inputs, ignore_errors=True)
                inputs.mkdir()
                for number in range(count):
                    os.link(corpus, inputs / f"{number:03d}.jsonl")
                found[count].append(timed(command_of(inputs, folder, count))[:2])
        alone = [size * workers[0] / seconds for seconds, _ in found[workers[0]]]
        for count, pairs in found.items():
            wall, processor = (statistics.median(column) for column in zip(*pairs))
            times = statistics.median(size * count / seconds / one for one, (seconds, _) in zip(alone, pairs))
            rates = f"{size * count / 1e6 / wall:.1f} MB/s, {size * count / 1e6 / processor:.1f} MB a CPU second"
            print(f"{text}, {count} workers: {wall:.1f} s, {rates}, {times:.2f} × {workers[0]}", flush=True)


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


def provide_tokenizer(folder: Path, given: Path | None) -> None:
    """Put the tokenizer into `folder`: the given one, mistral-common's, or one that is trained."""
    folder.mkdir(parents=True, exist_ok=True)
    package = find_spec("mistral_common")
    own = Path(package.origin).parent / "data" / "tokenizer.model.v1" if package and package.origin else None
    if given:
        shutil.copytree(given, folder, dirs_exist_ok=True)
    elif own and own.is_file():
        shutil.copy(own, folder / "tokenizer.model")
    else:
        make_tokenizer(folder, documents(20_000_000))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--libraries", nargs="*", default=["fastokens", "sentencepiece", "tokenizers"])
    parser.add_argument("--megatron", type=Path)
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--texts", nargs="+", default=["code", "English", "Chinese"])
    parser.add_argument("--memory-megabytes", type=int)
    parser.add_argument("--loader", action="store_true")
    parser.add_argument("--index", type=int)
    for flag in ("--library", "--corpus", "--folder"):  # what `compare` starts
        parser.add_argument(flag, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.library:
        return library(args.library, Path(args.corpus), Path(args.folder))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.loader:
            return loader(folder)
        if args.index:
            return index(folder, args.index)
        provide_tokenizer(folder / "tokenizer", args.tokenizer)
        if args.memory_megabytes:
            return memory(folder, documents(20_000_000), args.memory_megabytes)
        libraries = ", ".join(f"{name} {version(name)}" for name in ("fastokens", "orjson") if find_spec(name))
        print(f"{len(os.sched_getaffinity(0))} CPUs; {libraries or 'neither fastokens nor orjson'}", flush=True)
        made = corpora(folder, args.megabytes * 10**6, args.texts)
        if args.workers:
            return several(folder, made, args.rounds, args.workers)
        compare(folder, made, args.rounds, args.libraries, args.megatron)


if __name__ == "__main__":
    main()
