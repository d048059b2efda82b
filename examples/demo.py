"""make demo: the whole documented workflow on a small, real case, as a user would type it, on a CPU.

Real text that every Python installation has (its reference documentation) becomes a SentencePiece tokenizer,
WuDao-shaped raw data and instructions; then the documented scripts run one after the other. The last of them lets the
model answer an instruction before and after training, and transformers does it with the exported folder. Everything
lies in .demo/, and a second run starts anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".demo"
VOCABULARY = 2048
SCRIPTS = {
    "convert": "toolkits/model_checkpoints_convertor/llama/model_convertor.sh",
    "prepare": "toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh",
    "pretrain": "examples/llama2/run_pretrain_megatron_llama.sh",
    "finetune": "examples/llama2/run_finetune_megatron_llama.sh",
    "generate": "examples/llama2/run_text_generation_megatron_llama.sh",
}
ANSWER_TOKENS = 80
ENGINE = "/root/Megatron-LM-230512"  # as in the document; where it does not exist, pip's megatron-core is used


def main() -> None:
    """Make everything from nothing, run the workflow, and report."""
    started = time.time()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    topics = documentation()
    say(f"{len(topics)} topics of Python's reference documentation, {sum(map(len, topics.values())) / 1e6:.1f} MB of text")
    hf = WORK / "llama2-tiny-hf"
    make_tokenizer(topics, hf)
    make_hugging_face_folder(hf)
    question = make_raw_data(topics)
    megatron, finetuned = run_workflow(hf)
    prompt = prompt_of(question)
    answers = {
        "before training": generate(megatron, prompt, "before"),
        "after training": generate(finetuned, prompt, "after"),
        "in transformers": ask(WORK / "llama2-tiny-finetuned-hf", prompt),
    }
    report(question, answers, time.time() - started)


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def documentation() -> dict[str, str]:
    """Python's own language reference as shipped with every installation: topic → text."""
    from pydoc_data.topics import topics

    plain = {name: re.sub(r"[*`]{1,2}([^*`\n]+)[*`]{1,2}", r"\1", text).strip() for name, text in topics.items()}
    return {name: text for name, text in plain.items() if len(text) > 200}


def make_tokenizer(topics: dict[str, str], folder: Path) -> None:
    """A SentencePiece BPE model of LLaMA's kind: byte fallback, unk, bos, eos = 0, 1, 2."""
    import sentencepiece

    folder.mkdir()
    lines = [line for text in topics.values() for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    say(f"trained a SentencePiece tokenizer of {VOCABULARY} tokens")


def make_hugging_face_folder(folder: Path) -> None:
    """A tiny LLaMA-2 with random weights, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    sys.path.insert(0, str(ROOT))
    from megatron_patch.llama.model_config import LLAMA_SIZES, to_hf_config

    torch.manual_seed(1234)
    values = to_hf_config(LLAMA_SIZES["tiny"], dtype="float32")
    assert values["vocab_size"] == VOCABULARY
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in values.items() if k != "architectures"}))
    model.save_pretrained(folder)
    say(f"made a LLaMA-2 of {sum(p.numel() for p in model.parameters()):,} parameters in {folder}")


def make_raw_data(topics: dict[str, str]) -> dict[str, str]:
    """WuDao's raw form (JSON lists of objects with `content`), and instructions with answers.

    Returns one of the instructions for validation, which no training sees.
    """
    raw = WORK / "wudao_raw"
    raw.mkdir()
    items = [
        {"id": number, "title": name, "dataType": "documentation", "content": text}
        for number, (name, text) in enumerate(topics.items())
    ]
    for part in range(4):
        (raw / f"part-{part}.json").write_text(json.dumps(items[part::4], ensure_ascii=False), encoding="utf-8")
    samples = [sample for name, text in topics.items() for sample in instructions(name, text)]
    valid = samples[::8]
    train = [sample for number, sample in enumerate(samples) if number % 8]
    for name, content in (("wudao_train.json", train), ("wudao_valid.json", valid)):
        (WORK / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    say(f"{len(items)} WuDao-shaped documents, {len(train)} instructions for training, {len(valid)} for validation")
    return next(sample for sample in valid if sample["input"].count('"') % 2 == 0)  # not cut inside a quotation


def instructions(name: str, text: str) -> list[dict[str, str]]:
    """A few sentences of a topic as instruction, input and answer: what follows this sentence?"""
    sentences = re.findall(r"[A-Z][^.\n]{20,110}\.", " ".join(text.split()))[:7]
    instruction = f"Continue Python's documentation of {name}."
    pairs = zip(sentences, sentences[1:])
    return [{"instruction": instruction, "input": first, "content": second} for first, second in pairs]


def script(name: str, *arguments: object, processes: int = 2) -> None:
    """Run one documented script as typed in its own folder; its output is this program's."""
    path = ROOT / SCRIPTS[name]
    words = [str(argument) for argument in arguments]
    say("sh " + path.name + " \\\n     " + " ".join(shlex.quote(word) for word in words))
    # On a machine with GPUs too this is a demonstration on a CPU.
    environment = dict(os.environ, PYTHON=sys.executable, GPUS_PER_NODE=str(processes), CUDA_VISIBLE_DEVICES="")
    result = subprocess.run(["sh", path.name, *words], cwd=path.parent, env=environment)
    if result.returncode:
        sys.exit(f"{path.name} ended with status {result.returncode}; its last lines above say why.")


def run_workflow(hf: Path) -> tuple[Path, Path]:
    """Prepare, convert, pre-train on two processes with TP=2, fine-tune on two replicas, convert back.

    Returns the checkpoints before and after training.
    """
    data, output = WORK / "llama2-datasets", WORK / "output_megatron_llama2"
    script("prepare", ENGINE, ROOT, WORK / "wudao_raw", "llamabpe", data, hf)
    megatron = WORK / "llama2-tiny-hf-to-megatron-tp2-pp1"
    script("convert", ENGINE, hf, megatron, 2, 1, "tiny", 0, "false")
    prefix = data / "wudao_llamabpe_text_document"
    batch, length, iterations = 16, 128, 400
    script(
        "pretrain", "dsw", ENGINE, ROOT, "tiny", 8, batch, "3e-3", "3e-4", length, 80, 0, "bf16", 2, 1, "sel", "true",
        "true", "true", 100000, prefix, megatron, iterations * batch * length, 10 * batch * length, output,
    )  # fmt: skip
    pretrained = newest(output / "checkpoint", "pretrain")
    script(
        "finetune", "dsw", ENGINE, ROOT, "tiny", 8, "1e-3", "1e-4", 160, 160, 0, "bf16", 1, 1, "sel", "true",
        "true", "false", WORK / "wudao_train.json", WORK / "wudao_valid.json", pretrained, 2, output,
    )  # fmt: skip
    finetuned = newest(output / "checkpoint", "finetune")
    script("convert", ENGINE, finetuned, WORK / "llama2-tiny-finetuned-hf", 1, 1, "tiny", 0, "true")
    return megatron, finetuned


def newest(folder: Path, kind: str) -> Path:
    """The folder of the latest run of this kind, `pretrain` or `finetune`."""
    return max(folder.glob(f"dsw-{kind}-*"), key=lambda path: path.stat().st_mtime)


def prompt_of(record: dict[str, str]) -> str:
    """An instruction in the form of the fine-tuning's prompts."""
    return (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{record['instruction']}\n\n### Input:\n{record['input']}\n\n### Response:"
    )


def generate(checkpoint: Path, prompt: str, name: str) -> str:
    """What the documented script makes of a prompt: always the most probable token."""
    queries, answers = WORK / "queries.jsonl", WORK / f"answers_{name}.jsonl"
    queries.write_text(json.dumps({"query": prompt}) + "\n", encoding="utf-8")
    script(
        "generate", "dsw", ENGINE, ROOT, checkpoint, "tiny", 1, 1, 400, 400, 0, "fp32", 1, 400 - ANSWER_TOKENS, ANSWER_TOKENS,
        queries, answers, 0, 1.0, 1.0, "--template", "none", processes=1,
    )  # fmt: skip
    return one_line(json.loads(answers.read_text(encoding="utf-8"))["response"])


def ask(folder: Path, prompt: str) -> str:
    """What transformers makes of the exported folder and a prompt, up to the end token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokens = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**tokens, max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return one_line(tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))


def one_line(text: str) -> str:
    """A model's text without its line ends."""
    return " ".join(text.split())


TRAINED = re.compile(r"iteration +(\d+)/.*tokens per second per GPU: (\d+).*learning rate: (\S+) .*lm loss: (\S+)")
VALIDATED = re.compile(r"validation loss at iteration (\d+) \| lm loss value: (\S+)")


@dataclass(frozen=True)
class Curve:
    """What a training's log says, read as any parser would: values by iteration."""

    losses: dict[int, float]
    rates: dict[int, float]  # learning rate
    validation: dict[int, float]
    speed: float  # median tokens per second of both processes


def curve(kind: str) -> Curve:
    """What the log of the latest run of this kind says, read as any parser would."""
    log = newest(WORK / "output_megatron_llama2" / "log", kind) / "train.log"
    text = log.read_text(encoding="utf-8")
    lines = [(int(m[1]), int(m[2]), float(m[3]), float(m[4])) for m in map(TRAINED.search, text.splitlines()) if m]
    speeds = sorted(2.0 * speed for _, speed, _, _ in lines)
    return Curve(
        losses={iteration: loss for iteration, _, _, loss in lines},
        rates={iteration: rate for iteration, _, rate, _ in lines},
        validation={int(m[1]): float(m[2]) for m in VALIDATED.finditer(text)},
        speed=speeds[len(speeds) // 2],
    )


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """The exponential moving mean, as TensorBoard draws it: without a pull towards zero at the beginning."""
    mean, known, found = 0.0, 0.0, []
    for value in values:
        mean, known = weight * mean + (1 - weight) * value, weight * known + (1 - weight)
        found.append(mean / known)
    return found


def report(question: dict[str, str], answers: dict[str, str], seconds: float) -> None:
    """The table, the picture, the answers, what to type next."""
    curves = {"pre-training": curve("pretrain"), "fine-tuning": curve("finetune")}
    picture = draw(curves)
    print("\n" + "=" * 100)
    print(f"{'':14} {'iterations':>10} {'loss first':>11} {'-> last':>9} {'validation':>11} {'tokens/s (2 processes)':>24}")
    for name, one in curves.items():
        losses, valid = list(one.losses.values()), list(one.validation.values())
        print(f"{name:14} {len(losses):10} {losses[0]:11.3f} {losses[-1]:9.3f} {valid[-1]:11.3f} {one.speed:24,.0f}")
    print(f"\n{question['instruction']}\n    {question['input']}\n")
    for name, answer in answers.items():
        print(f"{name:16} {textwrap.shorten(answer, 110, placeholder=' …')}")
    print()
    rows = {
        "loss curve": picture,
        "checkpoints": WORK / "output_megatron_llama2" / "checkpoint",
        "Hugging Face": WORK / "llama2-tiny-finetuned-hf",
        "TensorBoard": f"tensorboard --logdir {WORK / 'output_megatron_llama2' / 'tensorboard'}",
        "look inside": f"python -m megatron_patch.cli.inspection {WORK / 'llama2-datasets' / 'wudao_llamabpe_text_document'}",
        "next": "the same scripts with your own checkpoint and data: README.md, README_zh-CN.md",
    }
    for name, value in rows.items():
        print(f"{name:14} {value}")
    print(f"{'time':14} {seconds:.0f} s")


def draw(curves: dict[str, Curve]) -> Path:
    """Loss of each iteration and its moving mean, validation, and the learning rate on the axis to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(12, 4.5), layout="constrained")
    for axis, (name, one) in zip(axes, curves.items()):
        iterations, losses = list(one.losses), list(one.losses.values())
        axis.plot(iterations, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="each iteration")
        axis.plot(iterations, smoothed(losses), color="tab:blue", linewidth=1.8, label="moving mean")
        axis.plot(list(one.validation), list(one.validation.values()), "o", color="tab:red", label="validation")
        axis.set(title=f"{name}, LLaMA-2 tiny", xlabel="iteration", ylabel="lm loss")
        axis.grid(alpha=0.3)
        right = axis.twinx()
        right.plot(iterations, list(one.rates.values()), color="tab:gray", linestyle="--", linewidth=1.0, label="learning rate")
        right.set_ylim(bottom=0)
        right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        right.set_ylabel("learning rate")
        handles = [handle for side in (axis, right) for handle in side.get_legend_handles_labels()[0]]
        axis.legend(handles=handles, loc="upper right")
    path = WORK / "loss.png"
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
