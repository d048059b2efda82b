"""Every argument and flag of the five entry points. One at a time gets an odd value, as a shell would pass it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.fuzz import valid
from tests.launching import FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN_ARGUMENTS, ROOT, WITH_GA_ARGUMENTS

ODD = (
    "", " ", "\t", "x", "-1", "0", "1", "2", "3", "7", "1\r", "1\n", " 1", "1 ", "\r", "4\r\n", "٣", "４", "²", "1_000",
    "1e8", "+5", "-0", "00", "007",
    "9" * 19, "9" * 30, "9" * 4300, "9" * 4301, "9" * 20000, "1.0", ".5", "0x10", "NaN", "nan", "inf", "-inf", "Infinity",
    "1e400", "1e-400", "1e308",
    "true\r", "false\r", "True", "TRUE", "none\r", "None", "none ", "sel\r", "bf16\r", "dsw\r", "tiny\r", "llamabpe\r",
    "a" * 256, "a" * 300, "a" * 5000,
    "./" + "b" * 300 + "/c", "d/" * 2100, "中" * 100, "中文", "é", "e\u0301", "\udcff", "x\udc80y", "\ufeff1", "\u200b1",
    "\x1b[31m", "\x7f", "a\nb", "a\rb",
    "--", "-", "--help", "--seed", "=", "a=b", "$(x)", "`x`", "*", "?", "~", "..", ".", "/", "/dev/null", "/dev/null/x",
    "/proc/self/mem", "/proc/1/root/x",
    "1 2 3", "0.5 a 0.5", "0.5 a 0.5 b", "nan a 1 b", "inf a 1 b", "1e400 x 1 y", "0 x", "-1 x", "0.3,A,0.7,B", ",",
    "98,2,0", "98,2,0\r", "98,,0", "1",
    "1,", "9" * 5000 + ",1", "1e308,1e308,1e308", "0,0,0", "-1,2", "1,2,3,4", "٩٨,2,0", "5GB", "5gb\r", "0GB", "٣GB",
    "9" * 5000 + "GB", "1e3GB", "GB", "x.json", "x.jsonl",
    "[", "{}", "%s", "{0}", "alpaca", "tokenizer", "llama2-chat", "float16", "float16\r", "auto", "auto\r", "7B",
    "llama-7b", "wudao",
)  # fmt: skip
_FLAGS = (
    "seed", "weight-decay", "adam-beta1", "adam-beta2", "adam-eps", "clip-grad", "init-method-std", "initial-loss-scale",
    "loss-scale-window", "split",
    "eval-interval", "eval-iters", "log-interval", "num-workers", "keep-last", "exit-interval", "exit-duration-in-mins",
    "tokenizer-path", "template",
    "gradient-accumulation-steps", "packing", "kernels", "cuda-graphs", "pair-micro-batches", "peer-copies", "profile",
    "profile-step-start", "profile-step-end",
    "distributed-timeout-minutes",
)  # fmt: skip
_JOB = (
    "WORLD_SIZE",
    "RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NPROC_PER_NODE",
    "KUBERNETES_CONTAINER_RESOURCE_GPU",
    "GPUS_PER_NODE",
    "PYTHONPATH",
)

_WRITTEN = ("output-path", "target", "output-prefix", "output-dir", "sft-output-dir")


class Arguments:
    """One entry point: its main(), its `flags` with valid values, and `optional` flags that are sometimes added."""

    def __init__(
        self, folder: Path, main: Callable[[list[str]], object], optional: tuple[str, ...], words: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.folder, self.main, self.optional, self.words = folder, main, optional, words
        self.flags: list[tuple[str, str]] = []
        self.job = bool(words)  # whether it reads what DLC sets
        self.odd = (*ODD, str(GOLDEN), str(GOLDEN / "hf_mha"), str(GOLDEN / "data" / "corpus_text_document"), str(Path(__file__)))

    def make(self, random: Random) -> tuple[list[str], dict[str, str]]:
        """(arguments, environment variables that differ)."""
        flags, job = list(self.flags), {}
        for _ in range(random.choice((1, 1, 1, 2))):
            odd = random.choice(self.odd)
            how = random.random()
            if how < 0.65 or not self.optional:
                at = random.randrange(len(flags))
                flags[at] = flags[at][0], self._inside(flags[at][0], odd)
            elif self.job and how > 0.9:
                job |= {
                    "WORLD_SIZE": "1",
                    "RANK": "0",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": "29500",
                    random.choice(_JOB): odd.replace("\0", ""),
                }
                flags = [(name, "dlc" if name == "env" else value) for name, value in flags]
            else:
                name = random.choice(self.optional)
                flags.append((name, self._inside(name, odd)))
        argv = list(self.words)
        for name, value in flags:
            if not name:
                argv.append(value)
            elif random.random() < 0.9 or name not in self.optional:
                argv.append(f"--{name}={value}")
            else:
                argv += random.choice(([f"--{name}", value], [f"--{name}"], [f"--{name}x={value}"], [f"--{name}\r"]))
        return argv, job

    def _inside(self, name: str, odd: str) -> str:
        """The odd value, changed so that nothing is written outside of this target's folder."""
        outside = odd.startswith(("/", "..")) and not odd.startswith((str(self.folder), "/dev/null/", "/proc/"))
        return "/dev/null/x" if name in _WRITTEN and outside else odd

    @contextlib.contextmanager
    def surroundings(self, job: dict[str, str]) -> Iterator[None]:
        """Run the block in an empty current folder, and with an exec that replaces nothing."""
        before, execve, environment = os.getcwd(), os.execve, dict(os.environ)
        inside = self.folder / "cwd"
        inside.mkdir(exist_ok=True)
        os.chdir(inside)
        os.execve = lambda path, command, environment: [os.fsencode(word) for word in command]  # type: ignore[assignment, misc]
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", **job})
        try:
            yield
        finally:
            os.execve = execve
            os.chdir(before)
            for name in set(os.environ) - set(environment):
                del os.environ[name]
            os.environ.update(environment)
            if any(inside.iterdir()):
                shutil.rmtree(inside)


def _named(arguments: dict[str, object], table: dict, **changed: object) -> list[tuple[str, str]]:
    return [(table[name].flag[2:], str(value)) for name, value in {**arguments, **changed}.items()]


def training(folder: Path, task: str) -> Arguments:
    from megatron_patch import launch
    from megatron_patch.arguments.training import ARGUMENTS

    sft = GOLDEN / "sft" / "alpaca_output.json"
    defaults, data = {
        "pretrain": (PRETRAIN_ARGUMENTS, {"DATASET_PATH": GOLDEN / "data" / "corpus_text_document"}),
        "finetune": (FINETUNE_ARGUMENTS, dict.fromkeys(("TRAIN_DATASET_PATH", "VALID_DATASET_PATH"), sft)),
        "finetune_with_ga": (WITH_GA_ARGUMENTS, dict.fromkeys(("DATASET_PATH", "VALID_DATASET_PATH"), sft)),
    }[task]
    made = Arguments(folder, launch.main, _FLAGS, (task,))
    native = valid.native(made.folder / "native")
    values = {"MODEL_SIZE": "auto", "PRETRAIN_CHECKPOINT_PATH": native, "OUTPUT_BASEPATH": made.folder / "out", **data}
    made.flags = _named(defaults, ARGUMENTS[task], **values)
    made.odd += (
        str(native),
        str(native / "release"),
        f"1 {GOLDEN}/data/corpus_text_document 2 {GOLDEN}/data/corpus_text_document",
        f"1 {sft} 2 {sft}",
        f"{sft},{sft}",
    )
    # The golden data has ids up to 799.
    content = json.loads((native / "config.json").read_text()) | {"vocab_size": 800}
    (native / "config.json").write_text(json.dumps(content))
    return made


def conversion(folder: Path) -> Arguments:
    from megatron_patch.arguments.conversion import ARGUMENTS
    from megatron_patch.cli import convert

    made = Arguments(folder, convert.main, ("dtype", "overwrite", "verify", "max-shard-size"))
    hf = valid.hf_folder(made.folder / "hf")
    values = dict(
        MEGATRON_PATH="/root/x",
        SOURCE_CKPT_PATH=hf,
        TARGET_CKPT_PATH="new",
        TP=1,
        PP=1,
        MN="auto",
        EXTRA_VOCAB_SIZE=0,
        mg2hf="false",
    )
    made.flags = _named(values, ARGUMENTS)
    made.odd += (str(hf), str(valid.native(made.folder / "native")))
    return made


def preparation(folder: Path) -> Arguments:
    from megatron_patch.cli import preprocess

    optional = ("json-key", "clean", "workers", "max-bad-fraction", "valid-fraction", "no-append-eod", "overwrite",
    "megatron-path",
                "megatron-patch-path", "sft-output-dir", "output-dir", "tokenizer", "shard", "split-by-size", "text-keys",
                "tokenizer-engine")  # fmt: skip
    made = Arguments(folder, lambda argv: _not_1(preprocess.main(argv)), optional)
    small = made.folder / "small.jsonl"
    small.write_text('{"text": "to be or not to be"}\n')
    made.flags = [("input", str(small)), ("output-prefix", "p"), ("tokenizer-folder", str(GOLDEN / "hf_mha")), ("workers", "1")]
    made.odd += (str(small), str(ROOT))
    return made


def _not_1(status: object) -> object:
    """Status 1 as status 2: with 1 and a sentence preparation says that data or the disk stopped it."""
    return 2 if status == 1 else status


def inspection(folder: Path) -> Arguments:
    import megatron_patch.conversion.convert  # noqa: F401  before memory is limited, as all that is imported late
    import megatron_patch.formats.torch_files  # noqa: F401
    import megatron_patch.inspection.checkpoint  # noqa: F401
    from megatron_patch.cli import inspection as inspect
    from megatron_patch.data.tokenizer import load_tokenizer

    load_tokenizer(GOLDEN / "hf_mha")
    made = Arguments(folder, inspect.main, ("tokenizer-folder", "samples", "template", "seq-length", "max-padding-length"))
    made.flags = [
        ("", str(GOLDEN / "sft" / "alpaca_output.json")),
        ("samples", "1"),
        ("tokenizer-folder", str(GOLDEN / "hf_mha")),
    ]
    made.odd += tuple(
        str(GOLDEN / name) for name in ("hf_mha/config.json", "megatron_2023/october/gqa_tp2_pp1", "data/corpus.jsonl")
    )
    return made


ENTRY_POINTS: dict[str, Callable[[Path], Arguments]] = {
    "arguments-pretrain": lambda folder: training(folder, "pretrain"),
    "arguments-finetune": lambda folder: training(folder, "finetune"),
    "arguments-finetune-with-ga": lambda folder: training(folder, "finetune_with_ga"),
    "arguments-convert": conversion,
    "arguments-preprocess": preparation,
    "arguments-inspect": inspection,
}
