"""How many parameters LoRA trains. Imports no torch."""

from __future__ import annotations

from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.llama.model_config import LlamaConfig


def target_shapes(model: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Hugging Face name of a linear layer → (out, in)."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    queries, group = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    return {
        "q_proj": (queries, hidden),
        "k_proj": (group, hidden),
        "v_proj": (group, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (ffn, hidden),
        "up_proj": (ffn, hidden),
        "down_proj": (hidden, ffn),
    }


def adapter_parameters(model: LlamaConfig, lora: LoraConfig, tp: int = 1) -> int:
    """Parameters of one layer's adapters on one of `tp` ranks. What is not cut is whole on each."""
    found = 0
    for name, (out, width) in target_shapes(model).items():
        is_row = name in ("o_proj", "down_proj")
        found += lora.rank * ((width // tp + out) if is_row else (width + out // tp)) if name in lora.targets else 0
    return found


def packed_bytes(model: LlamaConfig, tp: int, layers: int, width: int) -> int:
    """Bytes of so many layers' linear weights in 4 bits, and of the largest of them in `width` bytes a number.

    4 bits a number, 8 bits for 64 of them, 64 bits for 256 of those.
    """
    shapes = target_shapes(model)
    numbers = linear_parameters(model, tp)
    largest = max(2 * shapes["up_proj"][0], shapes["q_proj"][0] + 2 * shapes["k_proj"][0]) * model.hidden_size // tp
    return int(layers * numbers * (4 + 8 / 64 + 64 / 64 / 256) / 8) + largest * width


def linear_parameters(model: LlamaConfig, tp: int) -> int:
    """Parameters of one layer's linear weights on one of `tp` ranks."""
    return sum(out * within for out, within in target_shapes(model).values()) // tp


def trained_parameters(model: LlamaConfig, lora: LoraConfig, extra_vocab_size: int) -> int:
    """Parameters that a run trains: adapters, and where PEFT would save them whole, embedding and output layer."""
    vocabulary = 2 * (model.vocab_size + extra_vocab_size) * model.hidden_size if lora.saved else 0
    return model.num_layers * adapter_parameters(model, lora) + vocabulary
