"""An exported Hugging Face folder in other people's hands: `python -m tools.other_hands FOLDER`.

FOLDER is what model_convertor.sh wrote, with `tokenizer.model`; `make demo` leaves one in .demo. Each program of the
list opens it, does its usual work with it, and what comes out is compared with an independent truth. Prints a line
each, and ends with status 1 if one failed. A program that is not installed is passed over by name:

    pip install transformers peft "lm-eval[api,hf]" gguf

`--converter` names convert_hf_to_gguf.py of a checkout of llama.cpp, and `--vocabulary` the tokenizer.model of a real
model; the package mistral-common has one of LLaMA's kind, data/tokenizer.model.v1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.data.tokenizer_json import add_tokenizer_json
from tools.served_folder import served

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
CODE = Path(argparse.__file__).read_text(encoding="utf-8")
PROMPT = "Below is an instruction that describes a task."
QUESTIONS, ANSWER_TOKENS = 24, 16


def version(name: str) -> str:
    """A program and its version."""
    return f"{name} {importlib.metadata.version(name)}"


def model_of(folder: Path) -> Any:
    """The folder's model in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def check(condition: bool, what: str) -> None:
    """Go on where `condition` holds.

    Raises:
        AssertionError: it does not.
    """
    if not condition:
        raise AssertionError(what)


def with_transformers(folder: Path, work: Path) -> str:
    """Text to tokens as SentencePiece does it, and greedy answers as this project gives them."""
    from transformers import AutoTokenizer

    tokenizer, own = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    texts = [CODE[start : start + 600].lstrip(" ") for start in range(0, len(CODE), 600)]
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    alike = sum(ids == own.tokenize_marked(text) for ids, text in zip(found, texts))
    check(alike == len(texts), f"{len(texts) - alike} of {len(texts)} texts of code have other tokens")
    tokens = tokenizer(PROMPT, return_tensors="pt")
    made = model_of(folder).generate(**tokens, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    wanted = tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    with served(folder) as (url, name):
        body = {"model": name, "prompt": PROMPT, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            got = json.load(answer)["choices"][0]["text"]
    check(got.strip() == wanted.strip(), f"the greedy answer is {wanted!r}, this project's {got!r}")
    return f"{version('transformers')}: {len(texts)} texts of code have SentencePiece's tokens; the greedy answer is ours"


def with_vocabulary(model: Path, work: Path) -> str:
    """How transformers reads code with tokenizer.model alone, and with the tokenizer.json that conversion adds."""
    from transformers import AutoTokenizer

    shutil.copy(model, work / "tokenizer.model")
    (work / "config.json").write_text('{"model_type": "llama"}')
    (work / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": false}')
    texts = [path.read_text(encoding="utf-8", errors="ignore")[:3000] for path in sorted(Path(os.__file__).parent.glob("*.py"))]
    texts = [text.lstrip(" ") for text in texts if text]
    own, counts = load_tokenizer(work), []
    for _ in range(2):
        found = AutoTokenizer.from_pretrained(work)(texts, add_special_tokens=False)["input_ids"]
        counts.append(sum(ids != own.tokenize_marked(text) for ids, text in zip(found, texts)))
        note = add_tokenizer_json(work, own.vocab_size)
        check(note is None, str(note))
    check(counts[1] == 0, f"{counts[1]} of {len(texts)} files are read otherwise")
    read = f"of {len(texts)} files of code it reads {counts[0]} otherwise from {model.name} alone, and none with tokenizer.json"
    return f"{version('transformers')}: {read}"


def with_peft(folder: Path, work: Path) -> str:
    """LoRA over it learns, is merged, and what is merged goes through the converter both ways."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer(CODE[:2000])["input_ids"][:128]])
    adapted = get_peft_model(model_of(folder), LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(2):
        loss = adapted(tokens, labels=tokens).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    check(losses[1] < losses[0], f"the loss went from {losses[0]} to {losses[1]}")
    with torch.no_grad():
        wanted = adapted.eval()(tokens).logits
        merged = adapted.merge_and_unload()
        apart = float((merged(tokens).logits - wanted).abs().max())
        check(apart < 1e-4, f"merged, the logits are {apart} apart")
        merged.save_pretrained(work / "merged")
        tokenizer.save_pretrained(work / "merged")
        convert(work / "merged", work / "megatron", "false")
        convert(work / "megatron", work / "back", "true")
        check(torch.equal(model_of(work / "back")(tokens).logits, merged(tokens).logits), "conversion changed the logits")
    lost = f"a step of LoRA took the loss from {losses[0]:.3f} to {losses[1]:.3f}"
    return f"{version('peft')}: {lost}; merged, logits differ by {apart:.0e}, and by nothing after conversion both ways"


def convert(source: Path, target: Path, back: str) -> None:
    """model_convertor.sh, each tensor compared."""
    script = ROOT / "toolkits/model_checkpoints_convertor/llama/model_convertor.sh"
    command = ["sh", str(script), "none", str(source), str(target), "1", "1", "auto", "0", back, "--verify", "true"]
    subprocess.run(command, check=True, env=dict(os.environ, PYTHON=sys.executable), stdout=subprocess.DEVNULL)


def tasks(work: Path) -> Path:
    """Two tasks for lm-evaluation-harness over a module of Python's: choose the next line, and write on."""
    lines = [line.strip() for line in CODE.splitlines() if len(line.strip()) > 30][: 4 * QUESTIONS]
    documents = [
        {
            "context": lines[i],
            "choices": [lines[(i + k) % len(lines)] for k in (1, 7, 13, 29)],
            "label": 0,
            "target": lines[i + 1],
        }
        for i in range(0, 4 * QUESTIONS - 1, 4)
    ]
    folder = work / "tasks"
    folder.mkdir()
    (folder / "lines.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "lines.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
    }
    choose = {"task": "lines_choose", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "label"}
    write = {"task": "lines_write", "output_type": "generate_until", "doc_to_target": "{{target}}",
             "generation_kwargs": {"until": ["\n"], "max_gen_toks": ANSWER_TOKENS, "do_sample": False, "temperature": 0},
             "metric_list": [{"metric": "bleu"}]}  # fmt: skip
    choose["metric_list"] = [{"metric": "acc"}]
    for task in (choose, write):
        (folder / f"{task['task']}.yaml").write_text(json.dumps(common | task), encoding="utf-8")
    return folder


def with_lm_eval(folder: Path, work: Path) -> str:
    """A task of choices and one of texts, with the folder itself and through the server."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks(work)), include_defaults=False)

    def evaluate(kind: str, names: list[str], **arguments: Any) -> dict[str, Any]:
        return simple_evaluate(
            model=kind, model_args=arguments, tasks=names, task_manager=manager, batch_size=1, bootstrap_iters=0
        )

    def texts(results: dict[str, Any]) -> list[str]:
        samples = sorted(results["samples"]["lines_write"], key=lambda one: one["doc_id"])
        # lm-eval decodes an answer apart from its prompt, by which a space before it gets lost.
        return [one["resps"][0][0].strip() for one in samples]

    alone = evaluate(
        "hf", ["lines_choose", "lines_write"], pretrained=str(folder), dtype="float32", device="cpu", add_bos_token=True
    )
    accuracy = alone["results"]["lines_choose"]["acc,none"]
    with served(folder) as (url, name):
        server = dict(base_url=f"{url}/completions", model=name, tokenizer=str(folder), num_concurrent=4)
        through = evaluate("local-completions", ["lines_write"], tokenized_requests=False, **server)
        choices = evaluate("local-completions", ["lines_choose"], add_bos_token=True, **server)
    check_choices(alone["samples"]["lines_choose"], choices["samples"]["lines_choose"])
    other = [pair for pair in zip(texts(alone), texts(through)) if pair[0] != pair[1]]
    check(not other, f"{len(other)} of {QUESTIONS} texts are others through the server: {other[:3]}")
    return (
        f"{version('lm_eval')}: accuracy {accuracy:.3f} over {QUESTIONS} choices, by the folder and by the server, which also "
        f"writes the same {QUESTIONS} texts"
    )


def check_choices(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> None:
    """Each choice's log-probability, and whether the model would write it, as lm-evaluation-harness found them."""
    for one, other in zip(*(sorted(samples, key=lambda sample: sample["doc_id"]) for samples in (wanted, got)), strict=True):
        for (here, is_greedy), (there, was_greedy) in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            found = f"choice of question {one['doc_id']}: {here} {is_greedy} by the folder, {there} {was_greedy} by the server"
            check(abs(here - there) < 1e-3 and is_greedy == was_greedy, found)


def with_gguf(folder: Path, work: Path, converter: Path) -> str:
    """llama.cpp's converter takes it, and the file holds the same weights, tokens and scores."""
    import gguf
    import numpy as np
    from safetensors.torch import load_file
    from sentencepiece import SentencePieceProcessor

    target = work / "model.gguf"
    command = [sys.executable, str(converter), str(folder), "--outfile", str(target), "--outtype", "f32"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check(done.returncode == 0, done.stdout[-2000:])
    file = gguf.GGUFReader(target)
    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    def values(key: str) -> list[Any]:
        field = file.fields[key]
        return [bytes(field.parts[i]).decode() if "tokens" in key else field.parts[i][0] for i in field.data]

    tokens, scores = values("tokenizer.ggml.tokens"), values("tokenizer.ggml.scores")
    size = model.vocab_size()
    check(tokens[:size] == [model.id_to_piece(i) for i in range(size)], "other tokens")
    check(np.allclose(scores[:size], [model.get_score(i) for i in range(size)]), "other scores")
    weights = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    config = json.loads((folder / "config.json").read_text())
    for tensor in file.tensors:
        name, heads = hugging_face_name(tensor.name, config)
        wanted = weights.pop(name).float().numpy()
        if heads:  # llama.cpp rotates neighbours, Hugging Face halves
            wanted = wanted.reshape(heads, 2, -1, wanted.shape[-1]).swapaxes(1, 2).reshape(wanted.shape)
        check(np.array_equal(tensor.data.reshape(wanted.shape), wanted), f"{tensor.name} differs")
    check(not weights, f"{sorted(weights)} are missing")
    return (
        f"{version('gguf')}, convert_hf_to_gguf.py: {len(file.tensors)} tensors, bit for bit, and {size} tokens with their scores"
    )


def hugging_face_name(name: str, config: dict[str, Any]) -> tuple[str, int]:
    """The name of a tensor of GGUF in Hugging Face's folder, and the heads of those whose rows are in another order."""
    fixed = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    words = name.removesuffix(".weight").split(".")
    if len(words) == 1:
        return f"{fixed[words[0]]}.weight", 0
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(words[2], 0)
    return f"model.layers.{words[1]}.{parts[words[2]]}.weight", heads


def main() -> int:
    """Try each; the status to leave with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--vocabulary", type=Path, help="a tokenizer.model of a real model")
    asked = parser.parse_args()
    trials: list[Callable[[Path, Path], str]] = [with_transformers, with_peft, with_lm_eval]
    if asked.vocabulary:
        trials.append(lambda _, work: with_vocabulary(asked.vocabulary, work))
    if asked.converter:
        trials.append(lambda folder, work: with_gguf(folder, work, asked.converter.resolve()))
    failed = 0
    for trial in trials:
        with tempfile.TemporaryDirectory() as work:
            try:
                line = trial(asked.folder.resolve(), Path(work))
            except ImportError as error:
                line = f"passed over: {error.name} is not installed"
            except AssertionError as error:
                line, failed = f"FAILED: {error}", failed + 1
        print(f"* {line}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
