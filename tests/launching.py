"""Run the documented scripts as users do, and read what they leave behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments import conversion_list, evaluation_list, generation_list, training_list
from megatron_patch.arguments.argument import Script
from tests.forked_runs import forked

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).resolve().parent / "golden"
CONVERT = ROOT / "toolkits/model_checkpoints_convertor/llama/model_convertor.sh"
PRETRAIN = ROOT / "examples/llama2/run_pretrain_megatron_llama.sh"
FINETUNE = ROOT / "examples/llama2/run_finetune_megatron_llama.sh"
EVALUATE = ROOT / "examples/llama2/run_evaluate_megatron_llama.sh"
GENERATE = ROOT / "examples/llama2/run_text_generation_megatron_llama.sh"
ENGINE = "/root/Megatron-LM-230512"  # the document's MEGATRON_PATH; it need not exist

# Environment variables that DLC or torchrun sets; Kubeflow Trainer sets PET_*.
_JOB = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE",
    "KUBERNETES_CONTAINER_RESOURCE_GPU",
)  # fmt: skip
# A test chooses its number of processes. If GPUs were visible, their number would decide; tests/gpu shows them again.
HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}

# script → the module that it becomes, the words before its flags, its list
_ENTRIES: dict[Path, tuple[str, list[str], Script]] = {
    CONVERT: ("megatron_patch.cli.convert", [], conversion_list.CONVERT),
    PRETRAIN: ("megatron_patch.launch", ["pretrain"], training_list.PRETRAIN),
    FINETUNE: ("megatron_patch.launch", ["finetune"], training_list.FINETUNE),
    EVALUATE: ("megatron_patch.launch", ["evaluate"], evaluation_list.EVALUATE),
    GENERATE: ("megatron_patch.launch", ["generate"], generation_list.GENERATE),
}

PRETRAIN_ARGUMENTS = dict(
    ENV="dsw", MEGATRON_PATH=ENGINE, MEGATRON_PATCH_PATH=str(ROOT), MODEL_SIZE="auto", BATCH_SIZE=1, GLOBAL_BATCH_SIZE=4,
    LR="1e-3", MIN_LR="1e-4", SEQ_LEN=32, PAD_LEN=32, EXTRA_VOCAB_SIZE=0, PR="fp32", TP=1, PP=1, AC="sel", DO="false",
    FL="false", SP="false", SAVE_INTERVAL=1000, DATASET_PATH="", PRETRAIN_CHECKPOINT_PATH="none", TRAIN_TOKENS=20 * 4 * 32,
    WARMUP_TOKENS=2 * 4 * 32, OUTPUT_BASEPATH="",
)  # fmt: skip
FINETUNE_ARGUMENTS = dict(
    ENV="dsw", MEGATRON_PATH=ENGINE, MEGATRON_PATCH_PATH=str(ROOT), MODEL_SIZE="auto", BATCH_SIZE=1, LR="1e-3",
    MIN_LR="1e-4", SEQ_LEN=128, PAD_LEN=80, EXTRA_VOCAB_SIZE=0, PR="fp32", TP=1, PP=1, AC="sel", DO="false", FL="false",
    SP="false", TRAIN_DATASET_PATH="", VALID_DATASET_PATH="", PRETRAIN_CHECKPOINT_PATH="none", EPOCH=2, OUTPUT_BASEPATH="",
)  # fmt: skip
# Those of the script with TRAIN_ITERS, a global batch, and no MEGATRON_PATH, in its order.
_AFTER_BATCHES = ("LR", "MIN_LR", "SEQ_LEN", "PAD_LEN", "EXTRA_VOCAB_SIZE", "PR", "TP", "PP", "AC", "DO", "FL", "SP")
WITH_GA_ARGUMENTS = dict(
    ENV="dsw", MEGATRON_PATCH_PATH=str(ROOT), MODEL_SIZE="auto", BATCH_SIZE=1, GLOBAL_BATCH_SIZE=4,
    **{name: FINETUNE_ARGUMENTS[name] for name in _AFTER_BATCHES}, TE="false", SAVE_INTERVAL=1000, DATASET_PATH="",
    VALID_DATASET_PATH="", PRETRAIN_CHECKPOINT_PATH="none", TRAIN_ITERS=6, WARMUP_ITERS=2, OUTPUT_BASEPATH="",
)  # fmt: skip


def environment(processes: int | None = None, job: Mapping[str, object] | None = None) -> dict[str, str]:
    """A user's environment, without the variables that DLC, torchrun or Kubeflow sets.

    Args:
        processes: GPUS_PER_NODE.
        job: the variables that the job's platform sets in this test.
    """
    left_out = ("TORCHELASTIC", "PET_")
    values = {key: value for key, value in os.environ.items() if key not in _JOB and not key.startswith(left_out)}
    values.update(PYTHON=sys.executable, PYTHONWARNINGS="ignore", **HIDDEN)
    if processes is not None:
        values["GPUS_PER_NODE"] = str(processes)
    return values | {name: str(value) for name, value in (job or {}).items()}


def hear_signals() -> None:
    """For `preexec_fn`: a command that hears SIGINT and SIGHUP, also if the tests run in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def run(
    script: Path, *arguments: object, shell: str = "dash", processes: int | None = None,
    job: Mapping[str, object] | None = None, cwd: Path = ROOT, timeout: int = 500,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run one script with positional arguments. Its output and its errors come back as one text."""
    words, both = [shell, str(script), *map(str, arguments)], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(words, env=environment(processes, job), cwd=cwd, timeout=timeout, text=True, **both)


def run_forked(
    script: Path, *arguments: object, processes: int | None = None, job: Mapping[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `run`, without the shell, and with ranks that need not import anything (tests/forked_runs.py).

    Where GPUs are visible, a forked process could not use them, and the script itself is started.
    """
    if HIDDEN["CUDA_VISIBLE_DEVICES"]:
        return run(script, *arguments, processes=processes, job=job)
    module, words, listed = _ENTRIES[script]
    documented = listed.documented
    flags = [f"{one.flag}={value}" for one, value in zip(documented, arguments)]
    argv = [*words, *flags, *map(str, arguments[len(documented) :])]
    return forked(module, argv, environment(processes, job), ROOT, timeout=500)


def run_ranks(module: str, *arguments: object, count: int) -> str:
    """Run a module of the tests in `count` processes of one group, as torchrun does; returns what they said."""
    return succeed(forked(module, list(map(str, arguments)), environment(), ROOT, timeout=300, ranks=count))


def without_torch(folder: Path) -> dict[str, str]:
    """Environment variables with which an import of torch ends the process with status 3.

    The answer to a usage error must not wait for torch. A test gives these as `job` and sees whether it does.
    """
    package = folder / "without torch" / "torch"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("import os\nprint('torch was imported', flush=True)\nos._exit(3)\n")
    (package / "version.py").write_text("cuda = None\n")
    return {"PYTHONPATH": str(package.parent)}


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """All of an archive. Python 3.11.0 to 3.11.3, which Debian 12 has, know no filter, and take none."""
    archive.extraction_filter = getattr(tarfile, "data_filter", None)
    archive.extractall(folder)


def long_model(folder: Path, layers: int = 1) -> Path:
    """The golden model for the document's 2048 positions, in `folder`: its first layers, since each takes seconds."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(GOLDEN / "hf_mha", folder)
    config = json.loads((folder / "config.json").read_text())
    changed = {"max_position_embeddings": 2048, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config | changed))
    found = re.compile(r"model\.layers\.(\d+)\.").match
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not (layer := found(name)) or int(layer[1]) < layers}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


AS_USERS_HAVE_IT = {"PYTHONWARNINGS": ""}  # a `job` in which warnings reach the console
# Python shows a warning as "FILE:LINE: SomeWarning: text", torch's C++ code as "[W1127 04:31… x.cpp:1] Warning: …".
_WARNING = re.compile(r"^.*(?:[wW]arning\b|\[W\d|deprecated|/site-packages/).*$", re.MULTILINE)


def library_warnings(console: str) -> list[str]:
    """The lines of a command's output that are warnings of a library below."""
    return _WARNING.findall(console)


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    """The output of a run, which must have ended with status 0."""
    assert result.returncode == 0, result.stdout[-6000:]
    return result.stdout


def convert(source: Path, target: Path, tp: int = 1, pp: int = 1, extra: int = 0, back: bool = False) -> Path:
    """Convert as model_convertor.sh does, with MODEL_SIZE auto; returns `target`. `back` converts to Hugging Face."""
    given = (ENGINE, source, target, tp, pp, "auto", extra, "true" if back else "false")
    succeed(run_forked(CONVERT, *given))
    return target


@dataclass(frozen=True)
class Step:
    """One iteration, as TensorBoard holds it in fp32."""

    loss: float
    grad_norm: float


def train(
    script: Path, output: Path, *flags: object, processes: int = 1, job: Mapping[str, object] | None = None,
    shell: str = "dash", **changed: object,
) -> list[Step]:  # fmt: skip
    """Train with the arguments above, except for those in `changed`, and read the iterations.

    With a job's variables or another shell than dash the documented script itself is started; else see `run_forked`.
    """
    defaults = PRETRAIN_ARGUMENTS if script == PRETRAIN else FINETUNE_ARGUMENTS
    assert set(changed) <= set(defaults), set(changed) - set(defaults)
    values = {**defaults, **changed, "OUTPUT_BASEPATH": output}
    options = ["--num-workers", 0, "--eval-interval", 0, *flags]
    if job is None and shell == "dash":
        succeed(run_forked(script, *values.values(), *options, processes=processes))
    else:
        succeed(run(script, *values.values(), *options, shell=shell, processes=processes, job=job))
    return list(steps(output))


def steps(output: Path) -> Iterator[Step]:
    """The iterations of all runs below OUTPUT_BASEPATH, in their order; of two runs that have one the later counts."""
    losses, norms = _scalars(output, "lm loss", "grad-norm")
    for iteration in sorted(losses):
        yield Step(losses[iteration], norms[iteration])


def scalars(output: Path, tag: str) -> dict[int, float]:
    """The values of a TensorBoard tag below OUTPUT_BASEPATH: iteration → value."""
    return _scalars(output, tag)[0]


def _scalars(output: Path, *tags: str) -> list[dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: list[dict[int, float]] = [{} for _ in tags]
    for folder in sorted((output / "tensorboard").iterdir()):
        events = EventAccumulator(str(folder)).Reload()
        for tag, values in zip(tags, found):
            if tag in events.Tags()["scalars"]:
                values.update({event.step: event.value for event in events.Scalars(tag)})
    return found
