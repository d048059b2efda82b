"""The valid files that the fuzz tests start from: small golden ones, and a LLaMA of one layer that is made here."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

from tests.launching import GOLDEN

HIDDEN, FFN, HEADS, VOCABULARY = 8, 16, 2, 16
CONFIG = {
    **json.loads((GOLDEN / "hf_mha" / "config.json").read_text(encoding="utf-8")),
    "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "num_hidden_layers": 1, "vocab_size": VOCABULARY,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m.role == 'system' %}{{ '<<SYS>>' ~ m.content }}{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% endif %}"
    "{% endfor %}"
)


def tokenizer(folder: Path, fast: bool = False) -> Path:
    """A tokenizer folder: SentencePiece's golden one, or a small tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"):
        shutil.copy(GOLDEN / "hf_mha" / name, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"chat_template": CHAT, "added_tokens_decoder": {"2": {"content": "</s>", "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 800}), encoding="utf-8")
    if not fast:
        shutil.copy(GOLDEN / "hf_mha" / "tokenizer.model", folder)
        return folder
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(["to be or not to be"], trainers.BpeTrainer(vocab_size=40, special_tokens=["<unk>", "<s>", "</s>"]))
    made.save(str(folder / "tokenizer.json"))
    return folder


def hf_folder(folder: Path, binary: bool = False, shards: bool = False) -> Path:
    """A Hugging Face model of one layer: safetensors, an index with two of them, or pytorch_model.bin."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,),
        **{f"model.layers.0.self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"model.layers.0.mlp.{name}_proj.weight": (FFN, HIDDEN) for name in ("gate", "up")},
        "model.layers.0.mlp.down_proj.weight": (HIDDEN, FFN), "model.layers.0.input_layernorm.weight": (HIDDEN,),
        "model.layers.0.post_attention_layernorm.weight": (HIDDEN,),
    }  # fmt: skip
    tensors = {name: torch.ones(shape, dtype=torch.float16) for name, shape in shapes.items()}
    if binary:
        torch.save(tensors, folder / "pytorch_model.bin")
    elif shards:
        where = {name: f"model-0000{1 + place % 2}-of-00002.safetensors" for place, name in enumerate(tensors)}
        for file in sorted(set(where.values())):
            save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def adapter(folder: Path, base: Path, binary: bool = False) -> Path:
    """PEFT's folder of a LoRA over the model in `base`: safetensors, or the pickle of earlier versions."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = json.loads((GOLDEN / "adapter_gqa" / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": str(base), "r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{name}A.weight": torch.ones(2, HIDDEN), f"{name}B.weight": torch.ones(HIDDEN, 2)}
    tensors["base_model.model.lm_head.weight"] = torch.ones(VOCABULARY, HIDDEN)
    if binary:
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def native(folder: Path) -> Path:
    """The same model as model_convertor.sh writes it, with the tokenizer beside it."""
    from megatron_patch.arguments.conversion import Conversion
    from megatron_patch.conversion.convert import convert

    source = tokenizer(hf_folder(folder.with_name(folder.name + "-source")))
    (source / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    convert(Conversion(source, folder, to_hf=False))
    return folder


def of_2023(folder: Path) -> Path:
    """A checkpoint in the layout of September 2023: the first layer of the golden one, with smaller matrices."""
    import torch

    golden = GOLDEN / "megatron_2023" / "september" / "mha_tp1_pp1" / "release" / "mp_rank_00" / "model_rng.pt"
    with torch.serialization.safe_globals([types.SimpleNamespace]):
        content = torch.load(golden, weights_only=True)
    sizes = {64: HIDDEN, 192: 3 * HIDDEN, 176: FFN, 800: VOCABULARY, 8: HIDDEN // HEADS // 2}

    def cut(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: cut(value) for key, value in tree.items() if "layers." not in str(key) or "layers.0." in str(key)}
        return tree[tuple(slice(0, sizes[n]) for n in tree.shape)].clone() if isinstance(tree, torch.Tensor) else tree

    args = content["args"]
    args.hidden_size, args.num_attention_heads, args.num_layers = HIDDEN, HEADS, 1
    args.orig_vocab_size = args.padded_vocab_size = VOCABULARY
    (folder / "release" / "mp_rank_00").mkdir(parents=True)
    torch.save({**content, "model": cut(content["model"])}, folder / "release" / "mp_rank_00" / "model_rng.pt")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
    return folder
