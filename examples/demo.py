"""make demo: the whole documented workflow on a small, real case, as a user would type it, on a CPU.

The text is Python's reference documentation, which every installation of Python has. A SentencePiece tokenizer, raw
data in WuDao's form and instructions are made of it. Then the documented scripts run one after the other, and
transformers continues a prompt with the result. Everything is written below .demo/, and a second run starts anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".demo"
VOCABULARY = 2048
SCRIPTS = {
    "convert": "toolkits/model_checkpoints_convertor/llama/model_convertor.sh",
    "prepare": "toolkits/pretrain_data_preprocessing/run_make_pretraining_dataset.sh",
    "pretrain": "examples/llama2/run_pretrain_megatron_llama.sh",
    "finetune": "examples/llama2/run_finetune_megatron_llama.sh",
}
PROMPT = "The statement is used to"
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
    make_raw_data(topics)
    run_workflow(hf)
    continuation = continue_a_prompt(WORK / "llama2-tiny-finetuned-hf")
    report(continuation, time.time() - started)


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

    sys.path.insert(0, str(ROOT))
    from megatron_patch.llama.model_config import LLAMA_SIZES, to_hf_config

    torch.manual_seed(1234)
    values = to_hf_config(LLAMA_SIZES["tiny"], dtype="float32")
    assert values["vocab_size"] == VOCABULARY
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in values.items() if k != "architectures"}))
    model.save_pretrained(folder)
    say(f"made a LLaMA-2 of {sum(p.numel() for p in model.parameters()):,} parameters in {folder}")


def make_raw_data(topics: dict[str, str]) -> None:
    """WuDao's raw form (JSON lists of objects with `content`), and instructions with answers."""
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


def instructions(name: str, text: str) -> list[dict[str, str]]:
    """A few sentences of a topic as instruction, input and answer: what follows this sentence?"""
    sentences = re.findall(r"[A-Z][^.\n]{20,110}\.", text.replace("\n", " "))[:7]
    instruction = f"Continue Python's documentation of {name}."
    pairs = zip(sentences, sentences[1:])
    return [{"instruction": instruction, "input": first, "content": second} for first, second in pairs]


def script(name: str, *arguments: object) -> None:
    """Run one documented script as typed in its own folder; its output is this program's."""
    path = ROOT / SCRIPTS[name]
    words = [str(argument) for argument in arguments]
    say("sh " + path.name + " \\\n     " + " ".join(shlex.quote(word) for word in words))
    # On a machine with GPUs too this is a demonstration of two processes on a CPU.
    environment = dict(os.environ, PYTHON=sys.executable, GPUS_PER_NODE="2", CUDA_VISIBLE_DEVICES="", PYTHONWARNINGS="ignore")
    result = subprocess.run(["sh", path.name, *words], cwd=path.parent, env=environment)
    if result.returncode:
        sys.exit(f"{path.name} ended with status {result.returncode}; its last lines above say why.")


def run_workflow(hf: Path) -> None:
    """Prepare, convert, pre-train on two processes with TP=2, fine-tune on two replicas, convert back."""
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


def newest(folder: Path, kind: str) -> Path:
    """The folder of the latest run of this kind, `pretrain` or `finetune`."""
    return max(folder.glob(f"dsw-{kind}-*"), key=lambda path: path.stat().st_mtime)


def continue_a_prompt(folder: Path) -> str:
    """What transformers makes of the fine-tuned model and a prompt in the training's form."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokens = tokenizer(PROMPT, return_tensors="pt")
    made = model.generate(**tokens, min_new_tokens=24, max_new_tokens=40, do_sample=False, repetition_penalty=1.3, pad_token_id=2)
    return " ".join(tokenizer.decode(made[0], skip_special_tokens=True).split())


LINE = re.compile(r"iteration +(\d+)/.*tokens per second per GPU: (\d+).*lm loss: (\S+)")


def curve(kind: str) -> list[tuple[int, float, float]]:
    """(iteration, loss, tokens per second of all processes) of a training, read from its log as any parser would."""
    log = newest(WORK / "output_megatron_llama2" / "log", kind) / "train.log"
    found = (LINE.search(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [(int(m[1]), float(m[3]), 2.0 * int(m[2])) for m in found if m]


def report(continuation: str, seconds: float) -> None:
    """The table, the picture, what to type next."""
    curves = {"pre-training": curve("pretrain"), "fine-tuning": curve("finetune")}
    picture = draw(curves)
    print("\n" + "=" * 100)
    print(f"{'':14} {'iterations':>10} {'loss first':>11} {'-> last':>9} {'tokens/s (2 processes)':>24}")
    for name, points in curves.items():
        rates = sorted(rate for _, _, rate in points)
        print(f"{name:14} {len(points):10} {points[0][1]:11.3f} {points[-1][1]:9.3f} {rates[len(rates) // 2]:24,.0f}")
    print(f"\ntransformers continues '{PROMPT}':\n    {continuation}\n")
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


def draw(curves: dict[str, list[tuple[int, float, float]]]) -> Path:
    """Draw the losses of both trainings; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(11, 4), layout="constrained")
    for axis, (name, points) in zip(axes, curves.items()):
        axis.plot([point[0] for point in points], [point[1] for point in points], linewidth=1.4)
        axis.set(title=f"{name}, LLaMA-2 tiny", xlabel="iteration", ylabel="lm loss")
        axis.grid(alpha=0.3)
    path = WORK / "loss.png"
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
